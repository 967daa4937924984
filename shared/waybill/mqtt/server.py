"""The asyncio shell of the MQTT server: sockets, TLS, one task that commits, one that looks for the overdue.

::

    socket ─▶ _Wire.data_received ─▶ Connection.feed ─▶ Broker.pending ─▶ committer ─▶ Sink.commit
                                                                              │ returned
    socket ◀──────────── one write a connection ◀──────── Broker.committed ◀──┘

Shutdown follows the data: stop accepting, stop reading, fire the wills, commit what was read, send the acks, close.
Wills are published at a shutdown, as the standard has it for connections that the server closes (3.1.2.5); after a
crash they are not: the next start does not know them.

Whether a PUBACK arrived (O1) is asked of TCP itself: ``TCP_INFO.tcpi_bytes_acked``. It stays exact after a reset and
for a peer that vanished, and needs no account of what waits in the process. (``SIOCOUTQ`` does not: after a reset the
kernel's queue and asyncio's buffer are emptied, and bytes that were never sent look acknowledged.) Under TLS, on a
Unix socket and where the kernel does not tell, it is unknown, and that counts as not acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Final, cast

from waybill.errors import Unavailable
from waybill.mqtt.broker import Broker
from waybill.mqtt.connection import OVERDUE
from waybill.mqtt.reader import Reader
from waybill.mqtt.reasons import Reason
from waybill.mqtt.settings import Counters, Hooks, Settings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from waybill.mqtt.settings import OnMessage
    from waybill.mqtt.state import Sink

logger = logging.getLogger(__name__)

SWEEP: Final = 0.5
"""Seconds between two looks for the overdue."""

RETRY: Final = (0.1, 5.0)
"""Seconds to wait after a failed commit: at first, and at most (doubling)."""

BACKLOG: Final = 4096
LINGER: Final = 5.0
"""Seconds that a closed connection has to take its last output."""

TCP_BYTES_ACKED: Final = struct.Struct("=Q")
TCP_BYTES_ACKED_AT: Final = 120  # of tcpi_bytes_acked in struct tcp_info, linux/tcp.h, since Linux 4.1
TCP_INFO_SIZE: Final = TCP_BYTES_ACKED_AT + TCP_BYTES_ACKED.size


def bytes_acked(sock: socket.socket) -> int | None:
    """Return how many bytes the peer's TCP has acknowledged; None where the system does not tell."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    except OSError:
        return None
    return TCP_BYTES_ACKED.unpack_from(info, TCP_BYTES_ACKED_AT)[0] if len(info) == TCP_INFO_SIZE else None


def _now() -> tuple[int, int]:
    """Return wall time in ms and monotonic time in ns."""
    return time.time_ns() // 1_000_000, time.monotonic_ns()


class _Wire(Reader, asyncio.Protocol):
    """A connection on an asyncio transport."""

    __slots__ = ("_base", "_server", "_socket", "_transport", "close_at")

    def __init__(self, server: MqttServer) -> None:
        server.tick()
        super().__init__(server.broker)
        self._server = server
        self._transport: asyncio.Transport
        self._socket: socket.socket | None = None
        self._base = 0
        self.close_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection, or close it at the limit."""
        self._transport = cast("asyncio.Transport", transport)  # as asyncio promises for a stream
        transport = self._transport
        counters = self.broker.counters
        server = self._server
        server.wires.add(self)
        counters.connections += 1
        if counters.connections > self.broker.settings.max_connections or server.closing:
            counters.over_limit += 1
            self.close("too many connections")
            return
        transport.set_write_buffer_limits(high=self.broker.settings.output_bytes)
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if sys.platform == "linux" and transport.get_extra_info("ssl_object") is None:
                # asyncio's and uvloop's own make a new one for each question, or ask for the address too
                real = socket.socket(sock.family, socket.SOCK_STREAM, sock.proto, sock.fileno())
                base = bytes_acked(real)
                if base is not None:
                    self._socket, self._base = real, base
                else:
                    real.detach()

    def data_received(self, data: bytes) -> None:
        """Feed what was read."""
        broker = self.broker
        broker.wall_ms, broker.mono_ns = time.time_ns() // 1_000_000, time.monotonic_ns()  # tick(), without the calls
        self.feed(data)

    def eof_received(self) -> bool:
        """The peer will send no more: close."""
        return False

    def pause_writing(self) -> None:
        """More output waits than ``output_bytes``."""
        self.output_full()

    def resume_writing(self) -> None:
        """The output has drained."""
        if not self.closed:
            self._server.tick()
            self.output_free()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; the socket is still open here, so what it acknowledged can be read."""
        self._server.tick()
        if not self.closed:
            self.broker.detach(self, f"connection lost: {exc}" if exc else "connection lost")
            self.lost()
        if self._socket is not None:
            self._socket.detach()  # the transport closes it
            self._socket = None
        self.broker.counters.connections -= 1
        self._server.forget(self)

    def peer(self) -> tuple[bytes | None, str]:
        """Return certificate and address."""
        tls = self._transport.get_extra_info("ssl_object")
        name = self._transport.get_extra_info("peername")
        address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name or "unix")
        return (tls.getpeercert(binary_form=True) if tls is not None else None), address

    def write(self, data: bytes) -> None:
        """Send."""
        self._transport.write(data)

    def shut(self) -> None:
        """Close when the output has left, or when it takes too long."""
        self.close_at = time.monotonic() + LINGER
        self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def buffered(self) -> int:
        """Return the bytes of output that wait."""
        return self._transport.get_write_buffer_size()

    def acknowledged(self) -> int | None:
        """Return how many bytes of the output have been acknowledged."""
        if self._socket is None:
            return None
        acked = bytes_acked(self._socket)
        return None if acked is None else acked - self._base


class MqttServer:
    """An MQTT server whose acknowledgements wait for ``sink``.

    ``start`` restores the state and starts the two tasks; ``listen`` may then be called for each address; ``close``
    ends it all. The server lives in one event loop and must be used from there.
    """

    def __init__(self, sink: Sink, settings: Settings | None = None, hooks: Hooks | None = None) -> None:
        self.settings = settings or Settings()
        self.hooks = hooks or Hooks()
        self.broker: Broker
        self.wires: set[_Wire] = set()
        self.closing = False
        self.last_error: Exception | None = None
        """Why the last commit failed; None once one has returned."""
        self._sink = sink
        self._servers: list[asyncio.Server] = []
        self._something = asyncio.Event()
        self._idle = asyncio.Event()
        self._gone = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def counters(self) -> Counters:
        """The server's counters, live."""
        self.broker.counters.uncommitted = self.broker.uncommitted
        return self.broker.counters

    def forget(self, wire: _Wire) -> None:
        """A connection has ended."""
        self.wires.discard(wire)
        if not self.wires:
            self._gone.set()

    def tick(self) -> None:
        """Tell the broker the time."""
        self.broker.wall_ms, self.broker.mono_ns = _now()

    async def start(self) -> None:
        """Restore the state from the sink and start. Raises what ``Sink.restore`` raises."""
        saved = await self._sink.restore()
        self.broker = Broker(
            self.settings,
            self.hooks,
            saved,
            new_id=lambda: f"auto-{secrets.token_hex(8)}",
            wake=self._something.set,
            now=_now(),
        )
        for name, work in (("mqtt-commit", self._commit), ("mqtt-sweep", self._sweep)):
            task = asyncio.create_task(work(), name=name)
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)

    async def listen(self, host: str, port: int, ssl_context: ssl.SSLContext | None = None) -> tuple[str, int]:
        """Accept connections on an address (port 0: any).

        Returns the one bound. Raises Unavailable where it is taken.
        """
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: _Wire(self),
                host,
                port,
                ssl=ssl_context,
                backlog=BACKLOG,
                ssl_handshake_timeout=self.settings.connect_timeout if ssl_context else None,
            )
        except OSError as error:
            why = error.strerror or error
            raise Unavailable(f"cannot listen on {host}:{port}: {why}; free it or choose another") from error
        self._servers.append(server)
        bound = server.sockets[0].getsockname()
        return bound[0], bound[1]

    async def publish(self, topic: str, payload: bytes, qos: int = 0, *, retain: bool = False) -> int:
        """Publish for the program itself, to local subscribers; returns how many sessions have a matching subscription.

        QoS 0 that is not retained goes out at once and is nowhere stored. Anything else returns when the copies for
        persistent sessions and the retained message are durable. It never is an arrival. Raises Malformed for a bad
        topic, Unavailable when the commit failed.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def after(error: Exception | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(Unavailable(f"not published: {error}"))

        self.tick()
        count = self.broker.publish(topic, payload, qos, retain=retain, after=after)
        await done
        return count

    def send(self, topic: str, payload: bytes) -> int:
        """Publish with QoS 0 at once, from a callback; returns how many sessions have a matching subscription."""
        return self.broker.publish(topic, payload, 0, retain=False, after=lambda _: None)

    def subscribe(self, pattern: str, callback: OnMessage) -> Callable[[], None]:
        """Subscribe the program itself; ``callback`` hears each matching message after its commit.

        Returns how to end it. Raises Malformed for a bad filter.
        """
        return self.broker.listen(pattern, callback)

    def disconnect(self, client_id: str, reason: str = "disconnected by the server") -> bool:
        """Close a client's connection (its will fires); False where it has none."""
        session = self.broker.sessions.get(client_id)
        if session is None or session.connection is None:
            return False
        self.tick()
        session.connection.close(reason, Reason.ADMINISTRATIVE_ACTION)
        return True

    async def died(self) -> None:
        """Wait for the end of one of the server's own tasks, which only :meth:`close` should bring; raise its error."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and (error := task.exception()):
                raise error

    async def close(self) -> None:
        """Stop accepting, commit what was read, send the acks, close; waits at most ``close_timeout`` for the sink."""
        self.closing = True
        for server in self._servers:
            server.close()
        self.tick()
        for wire in list(self.wires):
            wire.pause()
            self.broker.detach(wire, "the server shuts down")
            wire.finish(Reason.SERVER_SHUTTING_DOWN)
        self.broker.last_wills()
        if self._tasks and not self._tasks[0].done():
            self._something.set()
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), self.settings.close_timeout)
            except TimeoutError:
                logger.error(  # noqa: TRY400 - where it waited says nothing
                    "the store did not commit within %.0f s; what it holds is not acknowledged",
                    self.settings.close_timeout,
                )
        for task in self._tasks:
            task.remove_done_callback(self._task_ended)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self.wires:  # what they are still to read has a moment to leave
            self._gone.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), 1.0)
        for wire in list(self.wires):
            wire.close("the server shuts down")
            wire.abort()
        await asyncio.sleep(0)
        self._servers.clear()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A task that should never end did.

        Nothing would be acknowledged any more, so say it and close every connection.
        """
        if task.cancelled():
            return
        error = task.exception()
        logger.critical("the task %s died; the server stops", task.get_name(), exc_info=error)
        self.closing = True
        self.last_error = error if isinstance(error, Exception) else RuntimeError(f"{task.get_name()} ended")
        for server in self._servers:
            server.close()
        for wire in list(self.wires):
            wire.abort()

    async def _commit(self) -> None:
        """Commit batch after batch, one at a time, as long as there is something.

        Everything that arrives meanwhile is the next batch.
        """
        broker, something, idle = self.broker, self._something, self._idle
        wait = RETRY[0]
        while True:
            if not broker.pending.woken:
                idle.set()
                something.clear()
                await something.wait()
                idle.clear()
                continue
            pending = broker.cut()
            try:
                if pending.batch.arrivals or pending.batch.changes:
                    await self._sink.commit(pending.batch)
            except Exception as error:
                self.tick()
                self.last_error = error
                logger.exception("a commit failed; nothing of it is acknowledged")
                broker.failed(pending, error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, RETRY[1])
            else:
                self.tick()
                self.last_error = None
                wait = RETRY[0]
                broker.committed(pending)

    async def _sweep(self) -> None:
        """Close what is overdue, and let expire what has to."""
        while True:
            await asyncio.sleep(SWEEP)
            self.tick()
            now = self.broker.mono_ns
            for wire in list(self.wires):
                if wire.closed:
                    if now > wire.close_at * 1_000_000_000:
                        wire.abort()
                    continue
                reason = wire.overdue(now)
                if reason:
                    self.broker.counters.timed_out += 1
                    wire.close(reason, OVERDUE.get(reason, Reason.UNSPECIFIED))
            self.broker.sweep()

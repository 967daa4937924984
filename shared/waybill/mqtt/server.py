"""The asyncio shell of the MQTT server: its listeners, one task that commits, one that looks for the overdue.

::

    socket ─▶ Wire.data_received  ─▶ Connection.feed ─▶ Broker.pending ─▶ committer ─▶ Sink.commit
                                                                              │ returned
    socket ◀──────────── one write a connection ◀──────── Broker.committed ◀──┘

Shutdown follows the data: stop accepting, stop reading, fire the wills, commit what was read, send the acks, close.
Wills are published at a shutdown, as the standard has it for connections that the server closes (3.1.2.5); after a
crash they are not: the next start does not know them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from os import PathLike, fspath
from typing import TYPE_CHECKING, Final

from waybill.errors import Unavailable
from waybill.mqtt.broker import Broker
from waybill.mqtt.connection import OVERDUE
from waybill.mqtt.listeners import Listener
from waybill.mqtt.reasons import Reason
from waybill.mqtt.settings import GATHERED, Counters, Hooks, Settings
from waybill.mqtt.transport import Wire, address_of, ip_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from waybill.mqtt.limits import Limits
    from waybill.mqtt.proxy import Network
    from waybill.mqtt.settings import OnMessage
    from waybill.mqtt.state import Sink

logger = logging.getLogger(__name__)

SWEEP: Final = 0.5
"""Seconds between two looks for the overdue."""

DRAIN_STEP: Final = 0.02
"""Seconds that a drain sleeps at least."""

RETRY: Final = (0.1, 5.0)
"""Seconds to wait after a failed commit: at first, and at most (doubling)."""


def _now() -> tuple[int, int]:
    """Return wall time in ms and monotonic time in ns."""
    return time.time_ns() // 1_000_000, time.monotonic_ns()


class MqttServer:
    """An MQTT server whose acknowledgements wait for ``sink``.

    ``start`` restores the state and starts the two tasks; ``listen`` and ``listen_unix`` may then be called for each
    address; ``close`` ends it all. The server lives in one event loop and must be used from there.
    """

    def __init__(self, sink: Sink, settings: Settings | None = None, hooks: Hooks | None = None) -> None:
        self.settings = settings or Settings()
        self.hooks = hooks or Hooks()
        self.broker: Broker
        self.wires: set[Wire] = set()
        self.closing = False
        self.last_error: Exception | None = None
        """Why the last commit failed; None once one has returned."""
        self._sink = sink
        self.listeners: list[Listener] = []
        self.handshakes: set[asyncio.Task[None]] = set()
        """Connections whose TLS handshake is under way."""
        self._something = asyncio.Event()
        self._idle = asyncio.Event()
        self._gone = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def counters(self) -> Counters:
        """The server's counters, live."""
        self.broker.counters.uncommitted = self.broker.uncommitted
        return self.broker.counters

    def forget(self, wire: Wire) -> None:
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

    async def listen(
        self,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext | None = None,
        *,
        name: str = "",
        websocket: bool = False,
        limits: Limits | None = None,
        proxies: tuple[Network, ...] = (),
        accept_rate: float = 0.0,
    ) -> tuple[str, int]:
        """Accept connections on an address (port 0: any), with ``ssl_context`` over TLS, with ``websocket`` over that.

        ``name``: what hooks hear as ``listener``. ``limits``: of this listener; without them those of the settings.
        ``proxies``: who says in a header of the PROXY protocol which client a connection is of. ``accept_rate``: TLS
        handshakes begun a second, 0 for any number; further connections wait in the system's queue.
        Returns the address bound. Raises Unavailable where it is taken.
        """
        wire: type[Wire] = Wire
        if websocket:
            from waybill.mqtt.websocket import WebSocketWire  # only where it is used: it takes memory

            wire = WebSocketWire
        listener = Listener(name, limits or self.settings, wire, ssl_context, proxies, accept_rate)
        bound = await listener.open(self, host, port)
        self.listeners.append(listener)
        return bound

    async def listen_unix(
        self, path: str | PathLike[str], *, name: str = "", mode: int = 0o660, limits: Limits | None = None
    ) -> None:
        """Accept connections on a Unix socket, whose file gets ``mode`` and is removed by ``close``.

        A file that a dead server left is replaced. Raises Unavailable where something listens there, or where the file
        is no socket.
        """
        listener = Listener(name, limits or self.settings)
        await listener.open_unix(self, fspath(path), mode)
        self.listeners.append(listener)

    def admit(self, listener: Listener, name: object) -> bool:
        """Count a new connection; False, and counted as such, where it is one too many. ``name``: the peer's."""
        counters = self.broker.counters
        if counters.connections >= self.settings.max_connections:
            why = "too many connections"
        else:
            why = "the server shuts down" if self.closing else listener.admits(ip_of(name))
        if why:
            counters.over_limit += 1
            self.broker.turned_away(address_of(name), why)
            return False
        counters.connections += 1
        return True

    def leave(self, listener: Listener, address: str) -> None:
        """A connection that was admitted has ended."""
        listener.leaves(address)
        self.broker.counters.connections -= 1

    def handshake_failed(self, address: str, why: str) -> None:
        """A connection ended before MQTT could begin."""
        self.broker.counters.handshakes_failed += 1
        self.broker.turned_away(address, why)

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

    def send(self, topic: str, payload: bytes, qos: int = 0) -> int:
        """Publish from a callback, QoS 0 at once; returns how many sessions have a matching subscription."""
        return self.broker.publish(topic, payload, qos, retain=False, after=lambda _: None)

    def subscribe(self, pattern: str, callback: OnMessage) -> Callable[[], None]:
        """Subscribe the program itself; ``callback`` hears each matching message after its commit.

        Returns how to end it. Raises Malformed for a bad filter.
        """
        return self.broker.listen(pattern, callback)

    def refuse(self, shut: Callable[[bytes], bool] | None) -> None:
        """Take no PUBLISH of QoS 1 or 2 to topics for which ``shut`` is true; None: take all.

        MQTT 5 gets 0x97 for it. A client of 3.1.1 is not read until there is room, and closed after ``full_timeout``.
        What is being committed, wills and QoS 0 come to the sink as ever.
        """
        self.broker.shut = shut
        self.tick()
        self.broker.relieve()

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

    async def drain(
        self, seconds: float, rate: float = 100.0, answered: Callable[[str], Awaitable[None]] | None = None
    ) -> None:
        """Accept nobody more and let go of the clients one by one, ``rate`` a second, all within ``seconds``.

        Who comes back to another server does not come with all others at once. What is published meanwhile is
        committed and acknowledged as ever; ``answered(client_id)`` returns when the program has nothing to say to a
        client any more. Neither is waited for longer than ``close_timeout``.
        """
        for listener in self.listeners:
            listener.close()
        clients = [session.client_id for session in self.broker.sessions.values() if session.connection is not None]
        random.shuffle(clients)
        pause = min(1 / rate, seconds / max(1, len(clients)))
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, client_id in enumerate(clients, 1):
                group.create_task(self._let_go(client_id, answered))
                ahead = began + number * pause - time.monotonic()
                if ahead > DRAIN_STEP:
                    await asyncio.sleep(ahead)

    async def _let_go(self, client_id: str, answered: Callable[[str], Awaitable[None]] | None) -> None:
        session = self.broker.sessions.get(client_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.close_timeout):
                while session is not None and session.connection is not None and session.connection.uncommitted:  # noqa: ASYNC110 - a commit has no event
                    await asyncio.sleep(DRAIN_STEP)
                if answered is not None:
                    await answered(client_id)
        self.disconnect(client_id, "the server shuts down")

    async def close(self) -> None:
        """Stop accepting, commit what was read, send the acks, close; waits at most ``close_timeout`` for the sink."""
        self.closing = True
        for listener in self.listeners:
            listener.close()
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
        for handshake in self.handshakes:
            handshake.cancel()
        await asyncio.gather(*self.handshakes, return_exceptions=True)
        await asyncio.sleep(0)
        self.listeners.clear()

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
        for listener in self.listeners:
            listener.close()
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
            if self.settings.gather and not self.closing and len(broker.pending.batch.arrivals) < GATHERED:
                await asyncio.sleep(self.settings.gather)
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
            del pending  # it holds all of a batch, and this task may wait for the next one for long

    async def _sweep(self) -> None:
        """Close what is overdue, and let expire what has to."""
        while True:
            await asyncio.sleep(SWEEP)
            self.tick()
            self._look_around(self.broker.mono_ns)
            self.broker.sweep()
            self.broker.relieve()

    def _look_around(self, now: int) -> None:
        """Weigh and close connections; the task that sleeps between two looks keeps none of them alive."""
        for wire in list(self.wires):
            if wire.weight:
                wire.weigh()
            if wire.closed:
                if now > wire.close_at * 1_000_000_000:
                    wire.abort()
                continue
            reason = wire.overdue(now)
            if reason:
                self.broker.counters.timed_out += 1
                wire.close(reason, OVERDUE.get(reason, Reason.UNSPECIFIED))

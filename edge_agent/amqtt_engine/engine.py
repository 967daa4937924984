"""amqtt behind the agent's :class:`edge_agent.engine.Engine`: sockets, group commit, start and end.

::

    socket ─▶ Packets ─▶ amqtt ─▶ Handler.handle_publish ─▶ commit ─▶ Sink.commit
                                        │ returned
    socket ◀── PUBACK ◀── subscribers ◀─┘

All that arrives while one commit runs is the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
import warnings
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from amqtt.errors import AMQTTError, PluginError, PluginLoadError

from edge_agent.amqtt_engine.broker import LISTENER, Broker
from edge_agent.amqtt_engine.packets import Held, Listener, Output, Packets
from edge_agent.amqtt_engine.plugins import authenticates
from waybill.errors import ConfigError, Unavailable
from waybill.mqtt import codec
from waybill.mqtt.listeners import BACKLOG
from waybill.mqtt.retained import RetainedMessage, RetainedMessages
from waybill.mqtt.server import RETRY
from waybill.mqtt.settings import GATHERED, Client, Counters, Hooks, Settings
from waybill.mqtt.state import Arrival, Batch, Publish, RetainCleared, Retained

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from edge_agent.config import AmqttSettings
    from waybill.mqtt.limits import Limits
    from waybill.mqtt.state import Change, Sink

logger = logging.getLogger(__name__)

QUIET: Final = ("amqtt.broker", "amqtt.mqtt.protocol.handler", "transitions")
"""Loggers that have a line or more for each connection; what ends one is said through the hooks instead."""


class _Message(NamedTuple):
    """A PUBLISH to be stored. ``will``: it came without a packet of its own, and is an arrival of its own."""

    client_id: str
    user: str | None
    wall_ms: int
    mono_ns: int
    topic: bytes
    payload: bytes
    flags: int
    pid: bytes | None
    will: bool


class AmqttEngine:
    """See :class:`edge_agent.engine.Engine`. ``settings``: what of them holds for amqtt is in docs/amqtt.md."""

    def __init__(self, config: AmqttSettings, sink: Sink, settings: Settings, hooks: Hooks) -> None:
        """Load the plug-ins. Raises ConfigError."""
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("amqtt.broker.plugins").setLevel(logging.INFO)
        self.settings = settings
        self.authenticates = authenticates(config.plugins)
        self._counters = Counters()
        self._sink = sink
        self.hooks = hooks
        self._held = Held(settings.uncommitted_bytes_all)
        self._retained = RetainedMessages(settings.retained_messages, settings.retained_bytes, {})
        self._servers: list[asyncio.Server] = []
        self._connections: set[Packets] = set()
        self._closing = False
        self._shut: Callable[[bytes], bool] | None = None
        self._reopened = asyncio.Event()
        self._messages: list[_Message] = []
        self._changes: list[Change] = []
        self._committed = _future()
        self._something = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        amqtt_config: dict[str, Any] = {"plugins": {path: dict(options) for path, options in config.plugins.items()}}
        if config.session_expiry_interval is not None:
            amqtt_config["session_expiry_interval"] = config.session_expiry_interval
        try:
            with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):  # its own business
                self._broker = Broker(self, amqtt_config)
        except (AMQTTError, PluginError, PluginLoadError) as error:
            why = [str(one) for one in (error, error.__cause__) if one and str(one)]
            raise ConfigError(f"[amqtt.plugins]: {': '.join(why)}") from error

    @property
    def counters(self) -> Counters:
        """The engine's counters, live."""
        self._counters.uncommitted = self._held.bytes
        return self._counters

    async def start(self) -> None:
        """Restore the retained messages and start. Raises what ``Sink.restore`` raises."""
        saved = await self._sink.restore()
        await self._broker.start()
        for topic, kept in saved.retained.items():
            if not kept.expires_ms and self.keep(topic, kept.payload, kept.qos):
                await self._broker.retain_message(None, topic.decode(), kept.payload, kept.qos)
        self._tasks.append(asyncio.create_task(self._commit(), name="amqtt-commit"))

    async def listen(
        self,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext | None = None,
        *,
        name: str = "",
        websocket: bool = False,
        limits: Limits | None = None,
    ) -> tuple[str, int]:
        """Accept connections on an address (port 0: any), with ``ssl_context`` over TLS; ``websocket`` is refused.

        ``name``: what hooks hear as ``listener``. ``limits``: of this listener; without them those of the settings.
        Returns the one bound. Raises Unavailable where it is taken.
        """
        if websocket:
            raise ConfigError('engine = "amqtt" does not listen for WebSockets')
        settings = self.settings if limits is None else replace(self.settings, **asdict(limits))
        try:
            server = await asyncio.start_server(
                partial(self._serve, Listener(name, settings)),
                host,
                port,
                ssl=ssl_context,
                backlog=BACKLOG,
                ssl_handshake_timeout=settings.connect_timeout if ssl_context else None,
            )
        except OSError as error:
            why = error.strerror or error
            raise Unavailable(f"cannot listen on {host}:{port}: {why}; free it or choose another") from error
        self._servers.append(server)
        bound = server.sockets[0].getsockname()
        return bound[0], bound[1]

    async def listen_unix(self, path: Path, *, name: str = "", limits: Limits | None = None) -> None:
        """Refuse: amqtt wants an address of every client. Raises ConfigError."""
        del name, limits
        raise ConfigError(f'{path}: engine = "amqtt" does not listen on Unix sockets')

    def refuse(self, shut: Callable[[bytes], bool] | None) -> None:
        """Let publishes of QoS 1 and 2 wait, to topics for which ``shut`` is true; None: none."""
        self._shut = shut
        self._reopened.set()
        self._reopened = asyncio.Event()

    def _is_shut(self, topic: bytes) -> bool:
        return self._shut is not None and self._shut(topic)

    async def room_for(self, client: Client, topic: str) -> bool:
        """Wait until there is room for a topic; False where ``full_timeout`` was not enough."""
        name = topic.encode()
        if not self._is_shut(name):
            return True
        self._counters.no_room += 1
        if self.hooks.on_no_room is not None:
            self.hooks.on_no_room(client, topic)
        try:
            async with asyncio.timeout(self.settings.full_timeout):
                while self._is_shut(name):
                    await self._reopened.wait()
        except TimeoutError:
            return False
        return True

    def disconnect(self, client_id: str, reason: str) -> bool:
        """Close a client's connection (its will fires); False where it has none."""
        return self._broker.disconnect(client_id, reason)

    async def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        """Publish for the agent itself, to local subscribers; for sleeping sessions it is in memory then."""
        await self._broker.internal_message_broadcast(topic, payload, qos)

    async def died(self) -> None:
        """Wait for the end of one of the engine's own tasks, which only :meth:`close` should bring; raise its error."""
        tasks = [*self._tasks, *self._broker.tasks()]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and (error := task.exception()):
                raise error

    async def close(self) -> None:
        """Stop accepting, commit what was read, send the acks, fire the wills, close, in ``close_timeout`` at most."""
        if self._closing:
            return
        self._closing = True
        self.refuse(None)  # what has been read goes into the reserve
        for server in self._servers:
            server.close()
        for packets in list(self._connections):
            packets.end("the server shuts down")
        if not await self._all_ended(self.settings.close_timeout):
            logger.error(
                "not every connection ended within %.0f s; what is not committed is not acknowledged",
                self.settings.close_timeout,
            )
            for packets in list(self._connections):
                packets.abort()
            await self._all_ended(1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._broker.shutdown()
        self._tasks.clear()
        self._servers.clear()

    async def _all_ended(self, seconds: float) -> bool:
        """Wait for the end of every connection."""
        try:
            async with asyncio.timeout(seconds):
                for packets in list(self._connections):
                    await packets.ended.wait()
        except TimeoutError:
            return False
        return True

    # -- a connection ------------------------------------------------------------------------------------------------

    async def _serve(self, listener: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection from its first byte to its last."""
        counters, name = self._counters, writer.get_extra_info("peername")
        address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unknown"
        counters.connections += 1
        listener.connections += 1
        output = Output(writer, self.settings.stall_timeout)
        packets = Packets(reader, output, listener, counters, self._held)
        try:
            many = counters.connections > self.settings.max_connections
            if many or listener.connections > listener.settings.max_connections or self._closing:
                counters.over_limit += 1
                packets.end("too many connections")
                return
            writer.transport.set_write_buffer_limits(high=self.settings.output_bytes)
            self._connections.add(packets)
            await self._broker.external_connected(packets, output, LISTENER)
        except Exception:
            logger.exception("a connection at %s is closed", address)
            packets.end("an error of the server")
        finally:
            self._connections.discard(packets)
            packets.settle()
            self._broker.forget(packets)
            counters.connections -= 1
            listener.connections -= 1
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()
            self._ended(packets, address)

    def _ended(self, packets: Packets, address: str) -> None:
        """Say how a connection ended."""
        hooks = self.hooks
        if not packets.accepted:
            if hooks.on_turned_away is not None:
                hooks.on_turned_away(address, packets.why)
        elif hooks.on_disconnected is not None:
            hooks.on_disconnected(packets.client, "" if packets.goodbye else packets.why)

    # -- what it publishes -------------------------------------------------------------------------------------------

    def count(self, what: Literal["received", "sent"], qos: int) -> None:
        """Count a PUBLISH."""
        name = f"{what}_{qos}"
        setattr(self._counters, name, getattr(self._counters, name) + 1)

    def commit(
        self, client: Client, topic: str, payload: bytes, flags: int, pid: int | None, *, will: bool = False
    ) -> asyncio.Future[None]:
        """Put a message into the next commit; ``pid``: None for QoS 0, 0 for a will of QoS 1 or 2.

        Returns what is done when that commit is; it raises Unavailable where the commit failed. It is shared: never
        cancel it.
        """
        name = topic.encode()
        self._messages.append(
            _Message(
                client.client_id,
                client.user,
                time.time_ns() // 1_000_000,
                time.monotonic_ns(),
                name,
                payload,
                flags & 15,
                None if pid is None else pid.to_bytes(2, "big"),
                will,
            )
        )
        if flags & codec.RETAIN:
            if not payload:
                self._changes.append(RetainCleared(name))
            elif self._retained.fits(name, RetainedMessage(flags >> 1 & 3, payload)):
                self._changes.append(Retained(name, flags >> 1 & 3, payload))
        self._something.set()
        return self._committed

    def keep(self, topic: bytes, payload: bytes, qos: int) -> bool:
        """Say whether a committed message may be kept as retained, and count it; an empty one always."""
        message = RetainedMessage(qos, payload) if payload else None
        if message is not None and not self._retained.fits(topic, message):
            self._counters.unretained += 1
            return False
        self._retained.put(topic, message)
        return True

    async def _commit(self) -> None:
        """Commit what waits, one commit at a time."""
        wait = RETRY[0]
        while True:
            await self._something.wait()
            if self.settings.gather and not self._closing and len(self._messages) < GATHERED:
                await asyncio.sleep(self.settings.gather)
            self._something.clear()
            batch = Batch(_arrivals(self._messages), self._changes)
            committed = self._committed
            self._messages, self._changes, self._committed = [], [], _future()
            try:
                await self._sink.commit(batch)
            except Exception as error:
                logger.exception("a commit failed; nothing of it is acknowledged")
                self._counters.commits_failed += 1
                if self.hooks.on_commit_failed is not None:
                    self.hooks.on_commit_failed(error)
                committed.set_exception(Unavailable(f"not stored: {error}"))
                committed.exception()  # those who waited for it may be gone
                await asyncio.sleep(wait)
                wait = min(wait * 2, RETRY[1])
            else:
                self._counters.commits += 1
                wait = RETRY[0]
                committed.set_result(None)


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _arrivals(messages: list[_Message]) -> list[Arrival]:
    """Return messages as arrivals: runs of one client are one, a will is one of its own."""
    arrivals: list[Arrival] = []
    numbered = enumerate(messages)
    for _, run in itertools.groupby(numbered, lambda one: (one[1].client_id, one[0] if one[1].will else -1)):
        packets: list[bytes] = []
        publishes: list[Publish] = []
        at = 0
        first: _Message | None = None
        for _, message in run:
            first = first or message
            packet = codec.publish(message.topic, message.payload, message.flags, message.pid or b"")
            publishes.append((message.topic, message.payload, message.flags, message.pid, at, at + len(packet), b""))
            packets.append(packet)
            at += len(packet)
        assert first is not None  # noqa: S101 - a group has a member
        arrivals.append(
            Arrival(
                first.client_id,
                first.user,
                codec.MQTT_3_1_1,
                first.wall_ms,
                first.mono_ns,
                b"".join(packets),
                publishes,
            )
        )
    return arrivals

"""The agent's wiring.

::

    a broker ───▶ Source ──────╮
    devices ────▶ Engine ────▶ Intake ──▶ SqliteBuffer ──▶ Forwarder ──▶ Uplink ──▶ cloud
       ▲  PUBACK ◀── commit returned ─────────┘   ▲  settle ◀──┴── ack ◀──┘ │
       └────────── cmd/{device}/{id}/req ◀── Commands ◀──── command ◀───────┘

What is below stands in the order of that flow; shutdown follows the data too: stop accepting, commit what was read, ack
it, close the devices' connections, say offline, close the uplink, close the buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from edge_agent import engine, lanes
from edge_agent.buffer.directory import size
from edge_agent.buffer.sqlite import SqliteBuffer
from edge_agent.clock import Clock
from edge_agent.commands import Commands
from edge_agent.config import EdgeConfig, memory_ceiling, server_settings
from edge_agent.flash import Flash
from edge_agent.forward.forwarder import Forwarder
from edge_agent.forward.training import FILE, Training
from edge_agent.health.watch import Watch
from edge_agent.intake import Forward, Intake
from edge_agent.listener_config import ListenerSettings
from edge_agent.plan.gauge import Gauge
from edge_agent.plan.meter import Meter
from edge_agent.presence import Presence
from edge_agent.status import SOCKET, EdgeStatus, LaneState, LinkState, ListenerState, Rate
from edge_agent.uplink.config import certificates, metered
from waybill.acl import Acl
from waybill.auth import Auth, Door
from waybill.errors import ConfigError, Unavailable
from waybill.lifecycle import Tasks, say
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.settings import Answer, Client, ConnectInfo, Hooks
from waybill.pki import server_context
from waybill.systemd import keep_watchdog, notify
from waybill.wire import Ack

if TYPE_CHECKING:
    from edge_agent.source.source import Source
    from edge_agent.uplink.link import Link
    from edge_agent.uplink.uplinks import Uplinks

log = logging.getLogger(__name__)

CLOSE_PATIENCE = 5.0
"""Seconds that the last commit may take at a shutdown; then what it holds stays unacknowledged."""


class Agent:
    """One agent. ``store``: the class of its buffer."""

    def __init__(
        self, settings: EdgeConfig, say: Callable[[str], None], store: type[SqliteBuffer] = SqliteBuffer
    ) -> None:
        """Take ``settings``; ``say`` gets the few lines that a person, or a test, waits for."""
        self._settings = settings
        self._say = say
        self._store = store
        self._version = importlib.metadata.version("waybill")
        self._clock = Clock(settings.data)
        self._started_ms = self._clock.wall_ms()
        self._flash = Flash(self._clock.mono())
        self._in, self._out = Rate(), Rate()
        self._tasks = Tasks()
        self._listening: list[ListenerState] = []
        self._uplinks: Uplinks | None = None
        self._sources: list[Source] = []
        self._meter: Meter | None = None
        self._metered = metered(settings.uplinks)

    async def run(self) -> int:
        """Run until SIGTERM, SIGINT, ``stop`` or the failure of a task, and return the exit code.

        Raises ConfigError (Locked among them), and Unavailable where a listener's address is taken.
        """
        settings = self._settings
        contexts = [_context(listener, self._clock) for listener in settings.listeners]  # wrong files are said first
        doors = {_name(number, listener): _door(listener) for number, listener in enumerate(settings.listeners, 1)}
        self._auth = auth = Auth(doors, Acl(settings.acl or ()))
        if settings.uplinks:
            from edge_agent.uplink.uplinks import Uplinks

            self._uplinks = Uplinks(settings.uplinks, settings.gateway, self._version, floor_ms=self._clock.floor_ms)
        files = certificates(settings.uplinks)
        self._watch = Watch(self._clock, settings.data, self.status, self._uplinks, files)
        self._buffer = buffer = await self._store.open(
            settings.data,
            settings.buffer,
            gateway=settings.gateway,
            boot=self._clock.boot,
            lanes=lanes.complete(settings.lanes),
            age=self._clock.age_ms,
        )
        try:
            forward = Forward(settings.forward.filters, settings.forward.exclude, settings.lanes)
            self._intake = intake = Intake(buffer, forward, [source.name for source in settings.sources])
            self._presence = Presence(buffer.commit, self._clock) if settings.presence else None
            self._server = server = engine.make(
                settings,
                intake,
                server_settings(settings, CLOSE_PATIENCE),
                Hooks(
                    authorize_connect=self._authorize_connect,
                    authorize_publish=auth.authorize_publish if settings.acl else None,
                    authorize_subscribe=auth.authorize_subscribe if settings.acl else None,
                    on_connected=self._on_connected,
                    on_disconnected=self._on_disconnected,
                    on_subscribed=lambda _client, pattern, _qos: self._commands.on_subscribed(pattern),
                    on_no_room=lambda _client, topic: intake.turned_down(topic),
                    on_turned_away=lambda address, reason: say_gone(f"at {address}", reason),
                ),
            )
            await server.start()
            if settings.sources:
                self._make_sources(intake)
            buffer.on_refusing(self._on_refusing)
            self._lanes = lanes.complete(settings.lanes, [backlog.lane for backlog in buffer.backlog()])
            self._forwarder = Forwarder(buffer, self._lanes, settings.forward, self._clock)
            self._gauge = Gauge(
                buffer,
                self._forwarder,
                self._lanes,
                self._clock,
                linger_ms=settings.forward.linger_ms,
                online=lambda: self._uplinks is not None and self._uplinks.state.state == "online",
            )
            if settings.plan is not None and self._uplinks is not None:
                self._meter = Meter(
                    settings.plan,
                    self._metered,
                    [lane.name for lane in self._lanes],
                    settings.data,
                    clock=self._clock,
                    traffic=self._uplinks.traffic,
                    shut=partial(self._forwarder.shut, "plan"),
                )
            self._commands = Commands(buffer, self._to_devices, self._clock)
            self._forwarder.on_framed = self._watch.framed
            async with self._watch.served(settings.data / SOCKET), self._metrics() as metrics:
                try:
                    self._start_tasks()
                    self._tasks.heed_signals()
                    for name, listener, context in zip(doors, settings.listeners, contexts, strict=True):
                        await self._listen(name, listener, context)
                    for source in self._sources:
                        self._say(f"subscribing at {source.settings.url} ({source.name})")
                    if metrics:
                        self._say(f"listening on {metrics} (metrics)")
                    if self._uplinks is None:
                        self._say("no uplink is configured: messages are buffered and sent nowhere")
                    notify("READY=1")
                    await self._tasks.until_stopped()
                finally:
                    await self._stop_tasks()
        finally:
            auth.close()
            await _patiently(buffer.close(), "the buffer")
        return 1 if self._tasks.failure else 0

    @contextlib.asynccontextmanager
    async def _metrics(self) -> AsyncIterator[str]:
        """Serve them, where that is wanted, and yield the address or an empty string."""
        if self._settings.metrics is None:
            yield ""
            return
        from edge_agent.metrics import metrics, trouble
        from waybill.metrics import serve

        async with serve(self._settings.metrics.listen, self.status, metrics, trouble) as address:
            yield address

    def stop(self) -> None:
        """Ask :meth:`run` to end; returns at once."""
        self._tasks.stop()

    def _make_sources(self, intake: Intake) -> None:
        from edge_agent.source.sessions import Sessions
        from edge_agent.source.source import Source

        sessions = Sessions(self._settings.data)
        for each in self._settings.sources:
            known = intake.remembered[each.name]
            self._sources.append(Source(each, intake.commit, known, sessions, floor_ms=self._clock.floor_ms))

    def _authorize_connect(self, info: ConnectInfo) -> Answer | Awaitable[Answer]:
        if any(source.name == info.client_id for source in self._sources):  # their messages are told apart by that
            log.warning("a client that calls itself %r is refused: a [[source]] is called so", info.client_id)
            return ConnackCode.BAD_CLIENT_ID
        return self._auth.authorize_connect(info)

    def _on_refusing(self, lanes: Collection[str]) -> None:
        shut = self._intake.shut if lanes else None
        self._server.refuse(shut)
        for source in self._sources:
            source.refuse(shut)

    async def _to_devices(self, topic: str, payload: bytes) -> None:
        await self._server.publish(topic, payload, 1)
        for source in self._sources:
            source.command(topic, payload)

    async def _listen(self, name: str, listener: ListenerSettings, context: ssl.SSLContext | None) -> None:
        """Open one listener, and say so."""
        limits = listener.limits(self._settings.limits)
        if listener.path is not None:
            await self._server.listen_unix(listener.path, name=name, limits=limits)
            kind, address = "unix", str(listener.path)
        else:
            websocket = listener.kind == "websocket"
            host, port = await self._server.listen(
                listener.host, listener.port, context, name=name, websocket=websocket, limits=limits
            )
            kind = ("ws" if websocket else "mqtt") + ("" if context is None else "s")
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._listening.append(ListenerState(listener.name, kind, address))
        self._say(f"listening on {address}" if kind == "mqtt" else f"listening on {address} ({kind})")
        if not listener.inside and listener.lets_anybody:
            log.warning("%s: anybody who reaches it may connect: anonymous = true", address)
        if not listener.inside and listener.passwords is not None and context is None:
            log.warning("%s: passwords cross the network as they are; give the listener certificate and key", address)

    def _on_connected(self, client: Client) -> None:
        self._auth.on_connected(client)
        self._watch.came(client)
        if self._presence is not None:
            self._presence.came(client.client_id)

    def _on_disconnected(self, client: Client, reason: str) -> None:
        self._auth.on_disconnected(client)
        self._watch.went(client.client_id)
        if self._presence is not None:
            self._presence.went(client.client_id, reason)
        say_gone(f"{client.client_id!r}", reason)

    def _start_tasks(self) -> None:
        """Every long-lived task of the agent; the server's own are watched."""
        self._tasks.start("mqtt", self._server.died())
        self._tasks.start("passwords", self._auth.watch(self._server.disconnect))
        self._tasks.start("commands", self._commands.publish())
        if self._presence is not None:
            self._tasks.start("presence", self._presence.report())
        self._tasks.start("forwarder", self._forwarder.watch())
        if self._uplinks is not None:
            self._tasks.start("uplink", self._uplinks.run(self._over))
            if self._settings.forward.dictionaries:
                training = Training(self._forwarder.dictionaries, self._buffer, self._settings.data / FILE, self._clock)
                self._tasks.start("dictionaries", training.run())
        for source in self._sources:
            self._tasks.start(f"source {source.name}", source.run(self._commands.open))
        if self._meter is not None:
            self._tasks.start("plan", self._meter.run())
        self._tasks.start("rates", self._sample())
        self._tasks.start("gauge", self._gauge.run())
        self._tasks.start("watchdog", keep_watchdog(lambda: self._buffer.busy_s))
        if self._uplinks is not None and self._settings.health.interval:
            self._tasks.start("health", self._watch.report(self._settings.health.interval, self._buffer.commit))

    async def _over(self, link: Link) -> None:
        """Use one connection to the cloud, until it is lost."""
        others = [lane.name for lane in self._lanes if lane.only_on and link.uplink not in lane.only_on]
        self._forwarder.shut("uplink", others)
        is_metered = link.uplink in self._metered
        over = contextlib.nullcontext(link) if self._meter is None else self._meter.over(link, metered=is_metered)
        with over as sender:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forwarder.send_over(sender, metered=is_metered), name="sender")
                group.create_task(self._receive(link), name="receiver")

    async def _receive(self, link: Link) -> None:
        async for message in link.received():
            if isinstance(message, Ack):
                await self._forwarder.on_ack(message)
            else:
                await self._commands.receive(message)

    async def _stop_tasks(self) -> None:
        notify("STOPPING=1")
        await asyncio.gather(self._server.close(), *(source.close() for source in self._sources))
        if self._presence is not None:
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(CLOSE_PATIENCE):
                    await self._presence.flush()
        await self._tasks.cancel("presence")
        sources = [f"source {source.name}" for source in self._sources]
        for name in (
            "mqtt",
            *sources,
            "passwords",
            "commands",
            "dictionaries",
            "uplink",
            "forwarder",
            "plan",
            "rates",
            "gauge",
            "watchdog",
            "health",
        ):
            await self._tasks.cancel(name)
        if self._meter is not None:
            await _patiently(self._meter.close(), "the data plan")
        self._clock.save()

    # --- what it says of itself ---

    def status(self) -> EdgeStatus:
        """Return the snapshot."""
        window = self._forwarder.window
        return EdgeStatus(
            gateway=self._settings.gateway,
            version=self._version,
            epoch=self._buffer.epoch,
            at_ms=self._clock.wall_ms(),
            started_ms=self._started_ms,
            listeners=tuple(self._listening),
            uplinks=self._uplinks.states if self._uplinks is not None else (),
            link=self._uplinks.state if self._uplinks is not None else LinkState("off", self._started_ms),
            lanes=tuple(self._lane_states()),
            rate_in=self._in.value,
            rate_out=self._out.value,
            in_flight=window.in_flight,
            credit=window.credit,
            memory_ceiling=memory_ceiling(self._settings),
            fault=self._buffer.fault,
            error=self._forwarder.error,
            counters=self._counters(),
            alarm=self._buffer.alarm,
            flash=self._flash.state(self._clock.mono(), self._buffer.counters.messages),
            left=tuple((str(path), size(path)) for path in self._buffer.left),
            sources=tuple(source.state for source in self._sources),
            clock=self._clock.trouble,
            full=self._buffer.full if self._buffer.refusing else "",
            holds_s=self._gauge.outlook.holds_s,
            outage_s=self._gauge.outlook.outage_s,
            drained_s=self._gauge.outlook.drained_s,
            outlook_known=self._gauge.outlook.known,
            plan=self._meter.state() if self._meter is not None else None,
        )

    def _lane_states(self) -> Iterator[LaneState]:
        refusing, refused = self._buffer.refusing, self._intake.counters.refused
        caps = {lane.name: lane.max_bytes for lane in self._lanes}
        for one in self._buffer.backlog():
            yield LaneState(
                one.lane,
                one.count,
                one.bytes,
                one.oldest_ms,
                tuple(self._forwarder.why_shut(one.lane)),
                caps.get(one.lane, 0),
                one.dropped,
                one.expired,
                refused[one.lane],
                one.lane in refusing,
                *self._gauge.outlook.lane(one.lane),
            )

    def _counters(self) -> dict[str, float]:
        counts: dict[str, float] = {
            f"{stage}_{name}": count
            for stage, one in (
                ("mqtt", asdict(self._server.counters)),
                ("auth", asdict(self._auth.counters)),
                ("buffer", asdict(self._buffer.counters)),
                ("forwarder", asdict(self._forwarder.counters)),
                ("commands", asdict(self._commands.counters)),
                ("dictionaries", asdict(self._forwarder.dictionaries.counters)),
            )
            for name, count in one.items()
        }
        for source in self._sources:
            for name, count in asdict(source.counters).items():
                counts[f"source_{name}"] = counts.get(f"source_{name}", 0) + count
        counts["forwarder_resent"] = self._forwarder.window.resent
        counts |= self._meter.counters() if self._meter is not None else {}
        counts["uplink_connects"] = self._uplinks.connects if self._uplinks is not None else 0
        return counts

    async def _sample(self) -> None:
        while True:
            now, received = self._clock.mono(), self._server.counters
            others = sum(source.counters.received for source in self._sources)
            came, acked = (
                received.received_0 + received.received_1 + received.received_2 + others,
                self._forwarder.counters.acked,
            )
            self._in.sample(now, came)
            self._out.sample(now, acked)
            self._watch.sample(came, acked, self._forwarder.window.acks, self._forwarder.window.waited)
            self._clock.look()
            if self._clock.is_unsaved:
                await asyncio.to_thread(self._clock.save)
            await asyncio.sleep(1)


def say_gone(device: str, reason: str) -> None:
    """Say why a device was cut off, for whoever mends it.

    Not what is everyday: a device that says good-bye or is away, and the agent's own end.
    """
    if reason and not reason.startswith(("connection lost", "the server shuts down")):
        log.warning("device %s is cut off: %s", device, reason)


def _name(number: int, listener: ListenerSettings) -> str:
    """Return what the server calls a listener; no rule can name one that has no name."""
    return listener.name or f"[[listener]] {number}"


def _door(listener: ListenerSettings) -> Door:
    return Door(listener.passwords, listener.certificates, listener.lets_anybody, listener.client_ids == "user")


def _context(listener: ListenerSettings, clock: Clock) -> ssl.SSLContext | None:
    if listener.certificate is None or listener.key is None:
        return None
    context = server_context(listener.certificate, listener.key, listener.client_ca, floor_ms=clock.floor_ms)
    if listener.certificates == "optional":
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


async def _patiently(work: Coroutine[None, None, None], what: str) -> None:
    """Wait for the end of ``work``, but not for ever: a disk that hangs must not keep the process from ending."""
    task = asyncio.create_task(work, name=f"close {what}")
    _, pending = await asyncio.wait({task}, timeout=CLOSE_PATIENCE)
    if pending:
        log.error("%s did not close within %.0f s; what is not committed was not acknowledged", what, CLOSE_PATIENCE)
    else:
        task.result()


def event_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return a new event loop, of ``asyncio`` or ``uvloop``. Raises ConfigError where that is not installed."""
    if name == "asyncio":
        return asyncio.new_event_loop()
    try:
        import uvloop
    except ImportError as error:
        raise ConfigError("event_loop: uvloop is not installed: pip install 'waybill[uvloop]', or remove it") from error
    return uvloop.new_event_loop()


def run(settings: EdgeConfig, store: type[SqliteBuffer] = SqliteBuffer) -> int:
    """Run an agent as this process's main program, and return its exit code; raises what :meth:`Agent.run` raises.

    Raises ConfigError where the event loop is not installed.
    Not ``asyncio.run``: that would wait for the thread in which a connection attempt or a name look-up hangs.
    """
    loop = event_loop(settings.event_loop)
    try:
        return loop.run_until_complete(Agent(settings, say, store).run())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

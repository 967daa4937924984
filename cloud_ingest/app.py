"""The cloud ingest: its parts, wired.

::

    gateways ──▶ Listener ──▶ Intake ──▶ Log.append_frame          (journal; then the ack)
    devices ───▶ Devices ──▶ NodeFrames ─────┘│
                    ▲                         │
                    │ envelopes               ▼ Log.own_partitions
                Dispatcher ◀── Log.follow   Router.route ──▶ topics, dead letters, ledger, command-status
    tools ──▶ DATA/cloud.sock: snapshot, append, command, and what the HTTP API answers: fleet, gateway, …

A log that is away stops nobody: gateways connect, frames are answered ``retry``, and it is tried again until it is
there. Shutdown follows the data: answer what was taken, let go of the gateways, end the routing, close the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.metadata
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloud_ingest import command_record
from cloud_ingest.command_record import DIRECT
from cloud_ingest.commands import Dispatcher
from cloud_ingest.config import Kafka, Settings
from cloud_ingest.devices import Devices
from cloud_ingest.fleet.node import node_state
from cloud_ingest.fleet.watcher import Watcher
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import OutRecord
from cloud_ingest.listener import Listener
from cloud_ingest.logs import from_fields, open_log
from cloud_ingest.metrics import metrics, trouble
from cloud_ingest.node_frames import NodeFrames
from cloud_ingest.presence_keeper import Keeper
from cloud_ingest.router.routes import Routes
from cloud_ingest.router.worker import Router, Status
from cloud_ingest.status import (
    MAX_GATEWAYS,
    AlarmSnapshot,
    CloudSnapshot,
    CommandsSnapshot,
    DevicesSnapshot,
    FramesSnapshot,
    GatewaySnapshot,
    PartitionSnapshot,
    PlainSnapshot,
    Rates,
)
from cloud_ingest.wall import now_ms
from waybill import logs, snapshot
from waybill.errors import ConfigError, Locked, Refused, Unavailable
from waybill.lifecycle import Tasks, allow_connections, say, spare_garbage_collection
from waybill.metrics import serve
from waybill.systemd import keep_watchdog, notify
from waybill.wire import Envelope

if TYPE_CHECKING:
    from cloud_ingest.external import External
    from cloud_ingest.fleet.api import HttpApi

log = logging.getLogger(__name__)

PATIENCE: Final = 3.0
"""Seconds for each stage of a shutdown, and for the log at a start before gateways are let in without it."""

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 10.0
MAX_ALARMS: Final = 100


async def main(settings: Settings) -> int:
    """Run the ingest until SIGTERM, SIGINT or a failure; return the exit code.

    Raises ConfigError, Unavailable (the address is taken).
    """
    logs.set_up(settings.config.logging, deployment=settings.config.deployment)
    spare_garbage_collection()
    devices = settings.config.devices
    allow_connections(settings.config.listener.connections + (devices.connections if devices else 0))
    ingest = Ingest(settings)
    with _owned(settings.data):
        try:
            await ingest.start()
            ingest.tasks.heed_signals()
            say(f"listening on {ingest.listener.address}")
            if ingest.listener.websocket_address:
                say(f"listening on {ingest.listener.websocket_address} (WebSocket)")
            if ingest.devices is not None:
                say(f"listening on {ingest.devices.address} (devices)")
            if ingest.metrics_address:
                say(f"listening on {ingest.metrics_address} (metrics)")
            if ingest.api is not None:
                say(f"listening on {ingest.api.address} (API)")
            notify("READY=1")
            await ingest.tasks.until_stopped()
        finally:
            notify("STOPPING=1")
            await ingest.stop()
    if isinstance(ingest.failure, ConfigError):
        raise ingest.failure
    return 0 if ingest.tasks.failure is None else 1


class Ingest:
    """One ingest process."""

    def __init__(self, settings: Settings) -> None:
        """Make the parts; nothing runs yet. Raises ConfigError."""
        config = settings.config
        self._settings = settings
        self._started_ms = now_ms()
        routes = Routes(config.route, settings.where)
        self.log, retention_ms = open_log(settings)
        self.dispatcher = Dispatcher(self.log, config.topics, self._send)
        self.frames = NodeFrames(self.log, self._closed)
        self.presence = Keeper(self.log, config.topics.presence, self.frames.name)
        self.presence.close = self._end
        self.listener = self._front()
        self.devices: Devices | None = None
        self.metrics_address = ""
        if config.devices is not None:
            self.devices = Devices(
                config.devices,
                config.acl,
                self.frames,
                presence=self.presence,
                attached=self.dispatcher.attach,
                detached=self.dispatcher.detach,
            )
        self.router = Router(self.log, config.topics, routes)
        self.lag = Lag(retention_ms)
        self.rates = Rates()
        self.tasks = Tasks()
        self.failure: ConfigError | None = None
        self.watcher = self._watch()
        self.api = self._http_api()
        self._fault = "the log is not connected yet"
        self._connected = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()

    def _front(self) -> Listener | External:
        """Return where gateways come in. Raises ConfigError."""
        config = self._settings.config
        attached, detached = self.dispatcher.attach, self.dispatcher.detach
        if config.listener.broker is None:
            return Listener(
                config.listener,
                self.log,
                websocket=config.websocket,
                presence=self.presence,
                closed=self._closed,
                attached=attached,
                detached=detached,
            )
        from cloud_ingest.external import External

        return External(
            config.listener,
            self.log,
            self.frames,
            presence=self.presence,
            closed=self._closed,
            owns=lambda gateway: partition_of(gateway.encode(), self.log.partitions) in self.router.partitions,
            attached=attached,
            detached=detached,
        )

    def _watch(self) -> Watcher:
        """Return what knows the whole fleet."""
        config, presence, dispatcher, node = self._settings.config, self.presence, self.dispatcher, self.frames.name
        watcher = Watcher(
            self.log,
            config.topics,
            tuple(route.topic for route in config.route),
            deployment=config.deployment,
            node=node,
            kind="kafka" if isinstance(self._settings.log, Kafka) else "embedded",
            me=lambda: node_state(node, self.snapshot()),
        )
        presence.on_read, dispatcher.on_read = watcher.presence, watcher.command
        watcher.faults = lambda: (presence.fault, dispatcher.fault)
        return watcher

    def _http_api(self) -> HttpApi | None:
        """Return the HTTP API, where it is configured. Raises ConfigError."""
        if self._settings.config.api is None:
            return None
        from cloud_ingest.fleet.api import HttpApi

        return HttpApi(self._settings.config.api, self.watcher)

    async def start(self) -> None:
        """Start everything; returns when gateways can connect. Raises ConfigError, Unavailable."""
        routing = self.tasks.start("routing", self._route())
        # A log that cannot be used is said before gateways are let in; one that is away holds nobody up.
        connected = asyncio.create_task(self._connected.wait())
        await asyncio.wait({routing, connected}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        connected.cancel()
        if self.failure:
            raise self.failure
        await self.listener.start()
        if self.devices is not None:
            await self.devices.start()
            self.tasks.start("devices: mqtt", self.devices.server.died())
            self.tasks.start("devices: passwords", self.devices.auth.watch(self.devices.server.disconnect))
            self.tasks.start("devices: report", self.devices.report())
        self._stack.enter_context(self.watcher.lines.attached())
        if self.api is not None:
            await self._stack.enter_async_context(self.api.serving())
        ops = {"append": self._append, "command": self._command, **self.watcher.ops()}
        await self._stack.enter_async_context(snapshot.serve(self._settings.socket, self.snapshot, ops))
        if (asked := self._settings.config.metrics) is not None:
            self.metrics_address = await self._stack.enter_async_context(
                serve(asked.listen, self.snapshot, metrics, trouble)
            )
        if isinstance(self.listener, Listener):
            self.tasks.start("mqtt", self.listener.server.died())
        else:
            self.tasks.start("external: look around", self.listener.look_around())
            self.tasks.start("external: plain", self.listener.journal_plain())
        self.tasks.start("credit", self.listener.intake.renew_credit())
        self.tasks.start("commands: send", self.dispatcher.send())
        self.tasks.start("sampling", self._sample())
        self.tasks.start("fleet: tell", self.watcher.tell())
        self.tasks.start("watchdog", keep_watchdog(lambda: self.log.busy_s))

    async def stop(self) -> None:
        """Stop everything, in the order of the data; bounded."""
        ends = [self.listener.close(PATIENCE)]
        if self.devices is not None:
            ends.append(self.devices.close(self._settings.config.listener.drain))
        await asyncio.gather(*ends)
        for name in (
            "mqtt",
            "external: look around",
            "external: plain",
            "devices: mqtt",
            "devices: passwords",
            "devices: report",
            "commands: send",
            "credit",
            "sampling",
            "watchdog",
            "commands: read",
            "presence: follow",
            "presence: write",
            "fleet: follow",
            "fleet: tell",
            "routing",
        ):
            await self.tasks.cancel(name)
        await self.presence.finish(PATIENCE)
        await self.watcher.finish(PATIENCE)
        await self._stack.aclose()
        await self.log.close()

    async def _route(self) -> None:
        """Connect the log, however long it takes, then route what this process owns."""
        pause = FIRST_PAUSE
        while True:
            try:
                await self.log.start()
                break
            except Unavailable as error:
                if self._fault != str(error):
                    log.warning("the log is away, trying again: %s", error)
                self._fault = str(error)
            except ConfigError as error:
                self.failure = error
                self.tasks.stop()
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        log.info("the log is connected")
        self._fault = ""
        self._connected.set()
        self.tasks.start("commands: read", self.dispatcher.read())
        self.tasks.start("presence: follow", self.presence.follow())
        self.tasks.start("presence: write", self.presence.write())
        self.tasks.start("fleet: follow", self.watcher.follow())
        while True:
            try:
                await self.log.own_partitions(self.router.route)
            except Unavailable as error:
                log.warning("routing waits: %s", error)
            await asyncio.sleep(LONGEST_PAUSE)

    def _end(self, key: str, reason: str) -> None:
        """End a connection that the presence topic says is not the current one (C3)."""
        gateway, _, device = key.partition("/")
        if gateway:
            self.listener.end(gateway, reason)
        elif self.devices is not None:
            self.devices.server.disconnect(device, reason)

    def _send(self, recipient: str, envelope: Envelope) -> None:
        if not recipient.startswith(DIRECT):
            self.listener.send_envelope(recipient, envelope)
        elif self.devices is not None:
            self.devices.send(envelope)

    def _closed(self) -> str:
        return self._fault or self.lag.reason(self.router.partitions, time.monotonic())

    async def _append(self, request: dict[str, Any]) -> None:
        """Write a command for a tool: the embedded log has one writer, this process. Raises Refused, Unavailable."""
        record = from_fields(request)
        if record.topic != self._settings.config.topics.commands:
            raise Refused(f"{record.topic}: only {self._settings.config.topics.commands} is written by hand")
        await self._write(record)

    async def _command(self, request: dict[str, Any]) -> None:
        """Write a command that a tool gives by its fields. Raises Refused, Unavailable."""
        await self._write(command_record.record(request.get("command"), self._settings.config.topics.commands))

    async def _write(self, record: OutRecord) -> None:
        if self._fault:
            raise Unavailable(self._fault)
        await self.log.append(record)

    async def _sample(self) -> None:
        while True:
            frames = self.listener.intake.counters
            routed = sum(status.counters.routed for status in self.router.partitions.values())
            self.rates.sample(time.monotonic(), frames.journaled, frames.bytes, routed)
            self.lag.reason(self.router.partitions, time.monotonic())
            await asyncio.sleep(1.0)

    def snapshot(self) -> CloudSnapshot:
        """Return the state of the process as of now."""
        intake, server, commands = self.listener.intake, self.listener.counters, self.dispatcher
        frames = intake.counters
        gateways = sorted(self.listener.connected.items())
        statuses = [self.router.partitions[number] for number in sorted(self.router.partitions)]
        alarms = sorted((AlarmSnapshot(each.at_ms, each.text) for s in statuses for each in s.alarms), key=_moment)
        return CloudSnapshot(
            deployment=self._settings.config.deployment,
            version=importlib.metadata.version("waybill"),
            log="kafka" if isinstance(self._settings.log, Kafka) else "embedded",
            address=self.listener.address,
            websocket=self.listener.websocket_address,
            started_ms=self._started_ms,
            now_ms=now_ms(),
            state="waiting" if self._fault else "running",
            fault=self._fault or self.listener.fault,
            connected=len(gateways),
            denied=server.denied,
            refused=server.refused,
            handshakes=server.handshakes_failed,
            gateways=tuple(
                GatewaySnapshot(
                    name,
                    one.address,
                    one.since_ms,
                    one.state.state if one.state else "",
                    one.state.version if one.state else "",
                )
                for name, one in gateways[:MAX_GATEWAYS]
            ),
            frames=FramesSnapshot(
                frames.journaled,
                frames.bytes,
                frames.refused,
                frames.retried,
                frames.unknown_versions,
                intake.pending,
                self.rates.per_second(0),
                self.rates.per_second(1),
                intake.fault,
            ),
            routed_per_second=self.rates.per_second(2),
            partitions=tuple(map(_partition, statuses)),
            commands=CommandsSnapshot(
                commands.open,
                commands.counters.sent,
                commands.counters.sent_again,
                commands.counters.malformed,
                commands.counters.postponed,
                commands.fault,
            ),
            alarms=tuple(alarms[-MAX_ALARMS:]),
            devices=self._devices(),
            plain=self._plain(),
            presence=self.presence.fault,
            api=self.api.address if self.api is not None else "",
        )

    def _plain(self) -> PlainSnapshot | None:
        front = self.listener
        if isinstance(front, Listener):
            return None
        own = front.own
        return PlainSnapshot(own.plain, front.plain_waiting, own.nameless, own.too_large, front.plain_fault)

    def _devices(self) -> DevicesSnapshot | None:
        devices, frames = self.devices, self.frames
        if devices is None:
            return None
        mine = devices.server.counters
        return DevicesSnapshot(
            devices.address,
            devices.connected,
            frames.counters.messages,
            frames.counters.frames,
            devices.commands,
            mine.refused,
            mine.denied,
            mine.handshakes_failed,
            frames.fault,
        )


class Lag:
    """R8: says when a partition that is routed here has not been routed for half of the journal's retention. Pure."""

    def __init__(self, retention_ms: int | None) -> None:
        """``retention_ms``: None where frames are kept until they are routed; then nothing is ever said."""
        self._limit = None if retention_ms is None else retention_ms / 2000
        self._ready_at: dict[int, float] = {}

    def reason(self, partitions: Mapping[int, Status], now: float) -> str:
        """Return why nothing more may be acknowledged, or an empty string. ``now``: monotonic, seconds."""
        if self._limit is None:
            return ""
        for number in self._ready_at.keys() - partitions.keys():
            del self._ready_at[number]
        found = ""
        for number, status in partitions.items():
            since = self._ready_at.setdefault(number, now)
            if status.state == "ready":
                self._ready_at[number] = now
            elif now - since > self._limit:
                found = f"partition {number} was not routed for half of the journal's retention: {status.reason}"
        return found


def _partition(status: Status) -> PartitionSnapshot:
    counters = status.counters
    return PartitionSnapshot(
        status.partition,
        status.state,
        status.reason,
        status.position,
        status.behind_ms,
        status.held_frames,
        status.held_bytes,
        counters.routed,
        counters.copies,
        counters.dead,
        counters.dropped,
    )


def _moment(alarm: AlarmSnapshot) -> int:
    return alarm.at_ms


@contextlib.contextmanager
def _owned(data: Path) -> Iterator[None]:
    """Make the data directory and own it while the context is open. Raises ConfigError, Locked."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(data / "cloud.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"data directory {data}: {error.strerror}; make it writable, or name another") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(
                f"data directory {data} is in use by another cloud ingest; stop it, or name another"
            ) from error
        yield
    finally:
        os.close(handle)

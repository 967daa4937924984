"""A broker that is already there: its messages into the buffer, each acknowledged to it after our commit (B1).

::

    broker ─▶ Connection ─▶ batch ─▶ Intake.commit ─▶ PUBACK       everything that came while the last commit ran
       ▲                      ▲ ResendMemory: a copy is acked, not stored (O1)
       └── session: what came while the agent was away, and what it has no ack of

The session is the broker's: what it keeps for us while we are away, and whether it still has that after its own
restart, is its own matter (docs/configuration.md). When it has forgotten us, that is counted and said.

A message whose ack the broker did not get comes again, with DUP. It is told from a new one as a device's is, by
:class:`waybill.mqtt.resend.ClientMemory`, under the source's name, in the same commits. That an ack arrived the broker
says itself (:meth:`Connection.settled`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from edge_agent.source.client import MAX_PACKET, Connection, Message, SourceLost
from edge_agent.source.config import SourceSettings
from edge_agent.source.sessions import Sessions
from edge_agent.status import LinkState, SourceState
from edge_agent.uplink.uplinks import STABLE, backoff
from waybill.errors import ConfigError, Unavailable
from waybill.mqtt import codec
from waybill.mqtt.budget import PUBLISH
from waybill.mqtt.resend import Chunk, ClientMemory, Commit, Entry
from waybill.mqtt.state import Arrival, Batch, Publish, ResendEntry, ResendFrozen
from waybill.mqtt.topics import valid_topic
from waybill.pki import FloorMs, client_context

log = logging.getLogger(__name__)

UNCOMMITTED: Final = 4 << 20
"""Bytes that are read and not committed, at which reading stops until half of it is."""

PATIENCE: Final = 5.0
"""Seconds for the last commit at a shutdown; what it holds stays unacknowledged and comes again."""

PROOF: Final = 0.1
"""Seconds between two questions to the broker which acks it has."""

RETRY: Final = 1.0
"""Seconds until open commands that could not be read are asked for again."""

MAX_LEVELS: Final = 1024
"""Levels of a topic."""

_VERSIONS = {"3.1.1": codec.MQTT_3_1_1, "5": codec.MQTT_5}


@dataclass(slots=True)
class Counters:
    """Since the start.

    ``copies``: acknowledged and not stored (O1). ``dropped``: over 512 KiB, or with a topic that is none.
    ``forgotten``: connects at which the broker had lost our session, and with it what it had kept for us.
    ``commands``: published to devices there.
    """

    received: int = 0
    copies: int = 0
    dropped: int = 0
    forgotten: int = 0
    connects: int = 0
    commands: int = 0


@dataclass(slots=True)
class _Pending:
    """What the next commit takes, and what is to be said after it to ``connection``."""

    batch: Batch = field(default_factory=Batch)
    mark: Commit = field(default_factory=Commit)
    frozen_at: int | None = None
    connection: Connection | None = None
    acks: list[int] = field(default_factory=list)
    proves: list[Chunk | Entry] = field(default_factory=list)
    size: int = 0


class Source:
    """One broker, for the life of the agent."""

    def __init__(
        self,
        settings: SourceSettings,
        commit: Callable[[Batch], Awaitable[None]],
        remembered: Sequence[ResendEntry],
        sessions: Sessions,
        *,
        floor_ms: FloorMs | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Take settings that are completed; raise ConfigError where certificate or password files cannot be used.

        ``commit``: makes a batch durable. ``remembered``: what the last start knew of this source's messages.
        """
        self.settings = settings
        self.name = settings.name
        self._commit = commit
        self._sessions = sessions
        self._rng = rng or random.SystemRandom()
        self._context: ssl.SSLContext | None = None
        if settings.tls:
            self._context = client_context(settings.ca, settings.certificate, settings.key, floor_ms=floor_ms)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2  # that broker is not ours
        self._password = _password(settings.password_file)
        self._version = _VERSIONS[settings.version]
        self._memory = ClientMemory(saved=remembered)
        self._acked = 0  # batches acknowledged
        self._unproven = asyncio.Event()
        self._pending = _Pending()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._uncommitted = 0
        self._shut: Callable[[bytes], bool] | None = None
        self._opened = asyncio.Event()
        self._connection: Connection | None = None
        self._closing = False
        self._link = LinkState("connecting", _wall_ms())
        self.counters = Counters()

    # --- its life ---

    async def run(self, open_commands: Callable[[], Awaitable[Sequence[tuple[str, bytes]]]]) -> None:
        """Keep a connection, and commit what it brings, until cancelled; call :meth:`close` before that.

        ``open_commands``: topic and payload of each command that waits for its device's answer; raises Unavailable.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._commit_all(), name=f"source {self.name}: commit")
            await self._keep_connected(open_commands)

    async def close(self) -> None:
        """Read nothing more, commit and acknowledge what was read, say good-bye; all of it bounded."""
        self._closing = True
        connection = self._connection
        if connection is not None:
            connection.pause()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self._uncommitted or self._pending.acks:
                    self._idle.clear()
                    await self._idle.wait()
        if connection is not None:
            connection.disconnect()

    async def _keep_connected(self, open_commands: Callable[[], Awaitable[Sequence[tuple[str, bytes]]]]) -> None:
        attempt = 0
        while not self._closing:
            await self._room.wait()
            started = time.monotonic()
            try:
                await self._once(open_commands)
            except* SourceLost as lost:
                reason = str(lost.exceptions[0])
            else:
                reason = "closed"
            if self._closing:
                return
            if self._link.state == "online" and time.monotonic() - started >= STABLE:
                attempt = 0
            delay = backoff(attempt, self._rng)
            attempt += 1
            self._offline(reason, delay)
            await asyncio.sleep(delay)

    async def _once(self, open_commands: Callable[[], Awaitable[Sequence[tuple[str, bytes]]]]) -> None:
        connection = self._connection = Connection(self.settings, self._context, self._password, self._arrived)
        try:
            present = await connection.open()
            self.counters.connects += 1
            await self._subscribe(connection, present=present)
            self._say("online", "")
            log.info("source %s: online at %s", self.name, self.settings.url)
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(self._commands_again(open_commands))]
                beside.append(group.create_task(self._prove(connection)))
                try:
                    await connection.ended()
                finally:
                    for task in beside:
                        task.cancel()
        finally:
            connection.abort()
            self._connection = None
            self._freeze()

    async def _subscribe(self, connection: Connection, *, present: bool) -> None:
        """Make the session at the broker what is configured, without asking again for what it has.

        To subscribe again would bring all retained messages again.
        """
        settings, wanted = self.settings, self.settings.filters
        known = self._sessions.of(settings)
        if known is not None and not present:
            self.counters.forgotten += 1
            log.warning(
                "source %s: the broker has forgotten this session: what it had kept for the agent may be lost; look at "
                "its persistence and expiry settings",
                self.name,
            )
        had = known.filters if known is not None and present else []
        sure = known is not None and known.sure
        if sure and set(had) == set(wanted):
            return
        await self._sessions.begin(settings, {*had, *wanted})
        await connection.unsubscribe([each for each in had if each not in wanted])
        await connection.subscribe([each for each in wanted if not (sure and each in had)])
        await self._sessions.done(settings)

    def _say(self, state: Literal["online", "offline"], error: str) -> None:
        since = self._link.since_ms if self._link.state == state else _wall_ms()
        self._link = LinkState(state, since, error or self._link.error)

    def _offline(self, reason: str, delay: float) -> None:
        again = self._link.state == "offline" and self._link.error == reason
        level = logging.DEBUG if again else logging.WARNING
        log.log(level, "source %s: offline: %s; next attempt in %.1f s", self.name, reason, delay)
        self._say("offline", reason)

    @property
    def state(self) -> SourceState:
        """How it is."""
        counters = self.counters
        return SourceState(
            self.name, self.settings.url, self._link, counters.received, counters.forgotten, counters.dropped
        )

    # --- messages ---

    def _arrived(self, connection: Connection, messages: Sequence[Message]) -> None:
        """Take what one read brought."""
        pending = self._pending
        if pending.connection is not connection:  # acks of an earlier one have nobody to hear them
            pending.connection, pending.acks, pending.proves = connection, [], []
        self.counters.received += len(messages)
        raws: list[bytes] = []
        publishes: list[Publish] = []
        at = 0
        for mid, qos, retain, dup, topic, payload, block in messages:
            if qos:
                pending.acks.append(mid)
            if not valid_topic(topic, MAX_LEVELS) or len(topic) + len(payload) + len(block) > MAX_PACKET:
                self._drop(topic, len(payload))
                continue
            flags = qos << 1 | retain | dup << 3
            pid = mid.to_bytes(2, "big") if qos else None
            if pid and dup and (entry := self._memory.judge(pid, topic, payload, flags, block)):
                self.counters.copies += 1
                pending.proves.append(entry)  # its own commit is this one, or an earlier one (O2)
                continue
            raw = codec.publish(topic, payload, flags, pid or b"", block if connection.five else None)
            publishes.append((topic, payload, flags, pid, at, at + len(raw), block))
            raws.append(raw)
            at += len(raw)
        if publishes:
            self._store(pending, b"".join(raws), publishes)
        self._wake.set()
        if self._uncommitted > UNCOMMITTED:
            self._room.clear()
            connection.pause()

    def _store(self, pending: _Pending, raw: bytes, publishes: list[Publish]) -> None:
        keep = self._memory.tail_count
        count = sum(publish[3] is not None for publish in publishes)
        wall_ms, mono_ns = time.time_ns() // 1_000_000, time.monotonic_ns()
        pending.batch.arrivals.append(Arrival(self.name, None, self._version, wall_ms, mono_ns, raw, publishes, keep))
        if count:
            pending.proves.append(self._memory.add(publishes, count, len(raw), pending.mark))
        size = len(raw) + PUBLISH * len(publishes)
        pending.size += size
        self._uncommitted += size

    def _drop(self, topic: bytes, size: int) -> None:
        self.counters.dropped += 1
        log.error(
            "source %s: dropped a message of %d bytes on %r: larger than %d bytes, or its topic is none",
            self.name, size, topic[:100], MAX_PACKET,
        )  # fmt: skip

    async def _commit_all(self) -> None:
        """Commit what arrived, one batch at a time, and acknowledge it."""
        while True:
            self._idle.set()
            await self._wake.wait()
            self._wake.clear()
            pending, self._pending = self._pending, _Pending(connection=self._pending.connection)
            if pending.frozen_at is not None:
                pending.batch.changes.append(ResendFrozen(self.name, self._memory.saved(), pending.frozen_at))
            if pending.batch.arrivals or pending.batch.changes:
                await self._until_open(pending.batch)
                await self._commit(pending.batch)
            pending.mark.open = False
            self._uncommitted -= pending.size
            self._acknowledge(pending)
            if self._uncommitted <= UNCOMMITTED // 2 and not self._room.is_set():
                self._room.set()
                if self._connection is not None and not self._closing:
                    self._connection.resume()

    def refuse(self, shut: Callable[[bytes], bool] | None) -> None:
        """Hold messages whose topics ``shut`` names, and what comes behind them, at the broker; None: there is room.

        A subscriber cannot refuse a message: to a broker, an ack with an error is one, too.
        """
        self._shut = shut
        self._opened.set()

    async def _until_open(self, batch: Batch) -> None:
        """Wait while there is no room for something in ``batch`` that would have to be acknowledged."""
        while self._shut is not None:
            shut = self._shut
            topics = {each[0] for arrival in batch.arrivals for each in arrival.publishes if each[3] is not None}
            if not any(shut(topic) for topic in topics):
                return
            self._opened.clear()
            await self._opened.wait()

    def _acknowledge(self, pending: _Pending) -> None:
        connection = pending.connection
        if connection is None or connection is not self._connection or not pending.acks:
            return  # what is not acknowledged comes again, and is told as a copy
        connection.acknowledge(pending.acks)
        self._acked += 1
        for each in pending.proves:
            if isinstance(each, Chunk):
                each.end = self._acked
            else:
                self._memory.reacknowledged(each, self._acked)
        self._unproven.set()

    async def _prove(self, connection: Connection) -> None:
        """Let the broker say which acks have arrived (O1)."""
        while True:
            await self._unproven.wait()
            self._unproven.clear()
            acked = self._acked
            if await connection.settled():
                self._memory.prove(acked)
            else:  # reading is paused, or it is lost, which cancels this
                self._unproven.set()
            await asyncio.sleep(PROOF)

    def _freeze(self) -> None:
        """The connection has ended: what is not proven acknowledged by now may come again."""
        if self._memory.freeze():
            self._pending.frozen_at = len(self._pending.batch.arrivals)
            self._wake.set()

    # --- commands ---

    def command(self, topic: str, payload: bytes) -> None:
        """Publish a command to the devices there; where that is not possible now, it follows the next connect."""
        if self.settings.commands and self._connection is not None and self._connection.publish(topic, payload):
            self.counters.commands += 1

    async def _commands_again(self, open_commands: Callable[[], Awaitable[Sequence[tuple[str, bytes]]]]) -> None:
        """Publish those that wait for an answer: what the last connection had of them may not have arrived."""
        while True:
            try:
                for topic, payload in await open_commands():
                    self.command(topic, payload)
            except Unavailable:
                await asyncio.sleep(RETRY)
            else:
                return


def _password(path: Path | None) -> str | None:
    """Return the first line of a password file. Raises ConfigError."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"password_file: {path} cannot be read: {error}") from error


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000

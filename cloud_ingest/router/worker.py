"""The router's shell: one worker a frames partition, load → read → plan → commit, and what to do when that fails.

* Fenced: let go (R3).
* Unavailable: the outcome may be unknown; wait, fence and load anew (R3). So too where the commands may not be read.
* RecordRefused: plan again with half as many messages, down to one; that one becomes a dead letter (R5).
* TopicRefused: plan again with that topic's records as dead letters, for ``REFUSED_FOR`` seconds (R5).
* Either of these for the ledger or for dead letters: this partition stops with an alarm, and is tried again every
  ``STOPPED_FOR`` seconds; the others go on (R5).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from cloud_ingest.config import Topics
from cloud_ingest.following import Readable, following
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import CaughtUp, JournalRecord, PartitionLog
from cloud_ingest.router.commands import Commands
from cloud_ingest.router.dictionaries import Dictionaries
from cloud_ingest.router.ledger import Ledger
from cloud_ingest.router.routes import Routes
from cloud_ingest.router.state import Counters, Limits, Partition, Plan
from cloud_ingest.router.step import plan as plan_step
from waybill.errors import Corrupt, Fenced, RecordRefused, TopicRefused, Unavailable

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 10.0
STOPPED_FOR: Final = 60.0
REFUSED_FOR: Final = 60.0
FORGET_EVERY: Final = 60.0
READ_WAIT: Final = 1.0
"""Seconds that a read waits at most; also how late a frame is given up or a command expires at worst."""

KEPT_ALARMS: Final = 100


class Source(Readable, Protocol):
    """The part of a :class:`~cloud_ingest.journal.port.Log` that the router needs besides its partitions."""

    @property
    def partitions(self) -> int:
        """How many frames partitions there are."""


class _Stopped(Exception):
    """This partition cannot go on until a person mends it; the text says what."""


@dataclass(frozen=True, slots=True)
class RaisedAlarm:
    """Something a person should look at. ``at_ms``: milliseconds since 1970 UTC."""

    at_ms: int
    text: str


@dataclass(slots=True)
class Status:
    """One partition's worker, for the snapshot.

    ``state``: ``loading``, ``ready``, ``waiting``, ``stopped``, ``released``; ``reason``: why, where it is not ready.
    ``position``: the next journal offset to be read. ``held_frames``, ``held_bytes``: what waits for order (R7).
    ``commit_seconds``: spent in commits. ``behind_ms``: age of the newest frame routed when its step was committed; 0
    where the partition is read to its end.
    """

    partition: int
    state: str = "loading"
    reason: str = ""
    position: int = 0
    commits: int = 0
    commit_seconds: float = 0.0
    behind_ms: int = 0
    held_frames: int = 0
    held_bytes: int = 0
    open_commands: int = 0
    counters: Counters = field(default_factory=Counters)
    alarms: deque[RaisedAlarm] = field(default_factory=lambda: deque(maxlen=KEPT_ALARMS))


class Router:
    """The routing of one process; give ``route`` to :meth:`Log.own_partitions`."""

    def __init__(
        self,
        source: Source,
        topics: Topics,
        routes: Routes,
        *,
        limits: Limits | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """``source``: the log, whose commands are followed; ``clock_ms``: milliseconds since 1970 UTC."""
        self._source = source
        self._topics = topics
        self._routes = routes
        self._limits = limits or Limits()
        self._clock_ms = clock_ms
        self.partitions: dict[int, Status] = {}

    async def route(self, partition: PartitionLog) -> None:
        """Route one frames partition until fenced (returns) or cancelled. Everything else is waited out."""
        number = partition.partition
        status = self.partitions[number] = Status(number)
        worker = _Worker(self._source, partition, self._topics, self._routes, self._limits, self._clock_ms, status)
        try:
            await worker.run()
        finally:
            if self.partitions.get(number) is status:
                del self.partitions[number]


class _Worker:
    """The worker of one partition."""

    def __init__(
        self,
        source: Source,
        partition: PartitionLog,
        topics: Topics,
        routes: Routes,
        limits: Limits,
        clock_ms: Callable[[], int],
        status: Status,
    ) -> None:
        self._source = source
        self._log = partition
        self._topics = topics
        self._limits = limits
        self._clock_ms = clock_ms
        self._status = status
        self._routes = routes
        self._refused_until: dict[str, float] = {}
        self._forget_at = 0.0

    async def run(self) -> None:
        pause = FIRST_PAUSE
        status = self._status
        while True:
            status.state, status.reason = "loading", status.reason
            commits = status.commits
            try:
                await self._own()
            except Fenced as error:
                log.info("router: partition %d is another's now: %s", self._log.partition, error)
                status.state, status.reason = "released", str(error)
                return
            except (Unavailable, TopicRefused) as error:  # refused: the commands may not be read
                if status.commits > commits:
                    pause = FIRST_PAUSE
                if status.reason != str(error):
                    log.warning("router: partition %d waits: %s", self._log.partition, error)
                status.state, status.reason = "waiting", str(error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                pause = min(pause * 2, LONGEST_PAUSE)
            except (_Stopped, Corrupt) as error:
                self._alarm(f"partition {self._log.partition} is stopped: {error}")
                status.state, status.reason = "stopped", str(error)
                await asyncio.sleep(STOPPED_FOR)

    async def _own(self) -> None:
        """Load, then route until something fails. Raises Fenced, Unavailable, Corrupt, _Stopped."""
        loaded = await self._log.load()
        number = self._log.partition
        partitions = loaded.partitions or self._source.partitions
        commands = Commands(lambda gateway: partition_of(gateway.encode(), partitions) == number)
        state = Partition(number, self._topics, self._routes, commands, self._limits)
        state.counters = self._status.counters
        state.partitions, state.cleared = loaded.partitions, loaded.cleared
        state.resume(
            Ledger.load(loaded.ledger, number), Dictionaries.load(loaded.dictionaries), loaded.start, loaded.lost
        )
        if loaded.lost:
            self._alarm(
                f"partition {number}: {loaded.lost} frames before offset {loaded.start} were deleted before they were "
                "routed; "
                "what is missing shows in the audit; give the frames topic a longer retention"
            )
        async with self._following(commands) as follower:
            await self._loop(state, follower)

    @contextlib.asynccontextmanager
    async def _following(self, commands: Commands) -> AsyncIterator[asyncio.Task[None]]:
        """Keep ``commands`` up to date while the context is open; entered when all that was written before is known."""
        caught_up = asyncio.Event()

        async def follow() -> None:
            topics = (self._topics.commands, self._topics.command_status)
            async with following(self._source, topics) as records:
                async for record in records:
                    if isinstance(record, CaughtUp):
                        caught_up.set()
                    else:
                        commands.learn(record, self._topics.commands)

        task = asyncio.create_task(follow(), name=f"router commands {self._log.partition}")
        ready = asyncio.create_task(caught_up.wait())
        try:
            await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
            yield task
        finally:
            for each in (task, ready):
                each.cancel()
            await asyncio.wait({task, ready})
            if not task.cancelled():
                task.exception()  # seen: the loop raised it, or something else came first

    async def _loop(self, state: Partition, follower: asyncio.Task[None]) -> None:
        status = self._status
        records: Sequence[JournalRecord] = ()
        status.state, status.reason = "ready", ""
        read_at = time.monotonic()
        while True:
            if follower.done():
                follower.result()
                raise Unavailable("the commands topics cannot be followed any more")
            if state.commands.stale:
                raise Unavailable("there is room for more commands: they are read again")
            records, at_end = await self._read()
            log_start = None
            if (now := time.monotonic()) >= self._forget_at:
                self._forget_at = now + FORGET_EVERY
                log_start = await self._log.log_start()
            if records:
                read_at = time.monotonic()
            # The log's clock goes on from its newest stamp: this node's own may be wrong.
            log_ms = state.newest_ms + int((time.monotonic() - read_at) * 1000)
            self._clear(state, log_ms)
            await self._advance(state, records, at_end=at_end, log_start=log_start, log_ms=log_ms)
            if at_end:
                status.behind_ms = 0

    def _clear(self, state: Partition, log_ms: int) -> None:
        """Learn up to which offset gaps may be given up (R7); the log is asked only when there is one to give up.

        While it has to wait, frames of this partition are not routed, and may be deleted: R8 counts that time.
        """
        status, waits = self._status, ""
        if state.is_overdue(log_ms):
            state.cleared, waits = self._log.cleared()
        if waits and status.reason != waits:
            log.warning("router: partition %d: a gap waits: %s", self._log.partition, waits)
        status.state, status.reason = ("waiting", waits) if waits else ("ready", "")

    async def _read(self) -> tuple[Sequence[JournalRecord], bool]:
        """Read frames; at the journal's end the first one waits for others as long as the routes allow."""
        count = self._limits.read_frames
        records, at_end = await self._log.read(count, READ_WAIT)
        until = time.monotonic() + self._routes.linger
        while records and at_end and len(records) < count and (left := until - time.monotonic()) > 0:
            more, at_end = await self._log.read(count - len(records), min(left, READ_WAIT))
            records = [*records, *more]
        return records, at_end

    async def _advance(
        self,
        state: Partition,
        records: Sequence[JournalRecord],
        *,
        at_end: bool,
        log_start: int | None,
        log_ms: int,
    ) -> None:
        """Commit steps until ``records`` are done with."""
        limit: int | None = None
        condemned = ""
        while True:
            self._forgive(state)
            plan = plan_step(
                state,
                records,
                self._clock_ms(),
                at_end=at_end,
                limit=limit,
                condemned=condemned,
                log_start=log_start,
                log_ms=log_ms,
            )
            if plan is None:
                return
            try:
                await self._commit(plan)
            except TopicRefused as error:
                self._refuse(state, error)
                continue
            except RecordRefused as error:
                limit, condemned = _bisect(plan, condemned, error)
                continue
            state.adopt(plan)
            self._tell(state, plan)
            condemned, log_start = "", None
            if limit is not None:
                limit = limit * 2 if limit < self._limits.step_messages else None
            records = records[plan.consumed :]
            if not plan.more:
                return
            await asyncio.sleep(0)  # a long backlog must not starve the listener in this process

    async def _commit(self, plan: Plan) -> None:
        started = time.perf_counter()
        await self._log.commit(plan.step)
        self._status.commits += 1
        self._status.commit_seconds += time.perf_counter() - started

    def _refuse(self, state: Partition, error: TopicRefused) -> None:
        """Send a refused topic's records to its dead letters from now on, for a while (R5)."""
        if error.topic in state.refused or error.topic not in self._routes.topics | {
            self._topics.command_status,
            self._topics.presence,
            self._topics.health,
        }:
            raise _Stopped(f"{error}; create the topic, or allow this deployment to write to it")
        state.refused[error.topic] = str(error)
        self._refused_until[error.topic] = time.monotonic() + REFUSED_FOR
        self._alarm(f"partition {self._log.partition}: refused, goes to dead letters: {error}")

    def _forgive(self, state: Partition) -> None:
        """Try topics again that were refused some time ago; a person may have mended them."""
        now = time.monotonic()
        for topic in [topic for topic in state.refused if self._refused_until.get(topic, 0.0) <= now]:
            del state.refused[topic]

    def _tell(self, state: Partition, plan: Plan) -> None:
        status = self._status
        status.position = state.position
        status.held_frames = len(state.held.frames)
        status.held_bytes = state.held.size
        status.open_commands = len(state.commands)
        if plan.consumed:
            status.behind_ms = max(0, self._clock_ms() - state.newest_ms)
        for notice in plan.notices:
            text = f"gateway {notice.key.gateway}, lane {notice.key.lane}, epoch {notice.key.epoch}: {notice.text}"
            if notice.alarm is None:
                log.info("router: %s", text)
            else:
                self._alarm(text)
        if plan.counters.given_up:
            text = f"{plan.counters.given_up} messages did not come within {self._limits.hold_ms / 1000:g} s"
            log.warning("router: partition %d: %s; their lanes go on without them", self._log.partition, text)

    def _alarm(self, text: str) -> None:
        if not self._status.alarms or self._status.alarms[-1].text != text:
            log.error("router: %s", text)
        self._status.alarms.append(RaisedAlarm(self._clock_ms(), text))


def _bisect(plan: Plan, condemned: str, error: RecordRefused) -> tuple[int, str]:
    """Say how to plan again: with fewer messages, or the only one as a dead letter. Raises _Stopped."""
    if plan.messages > 1:
        return plan.messages // 2, ""
    if condemned or not plan.messages:
        raise _Stopped(f"the ledger or the dead letters refuse a record: {error}")
    return 1, str(error)

"""The buffer on SQLite: the port's methods as jobs of the engine."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from edge_agent.buffer.changes import saved_state, size_of
from edge_agent.buffer.connection import say, trouble_of
from edge_agent.buffer.directory import Directory
from edge_agent.buffer.engine import Counters, Engine, Job
from edge_agent.buffer.index import Track
from edge_agent.buffer.keeper import Keeper, within
from edge_agent.buffer.mark import MarkFile, mark_of
from edge_agent.buffer.opening import open_file
from edge_agent.buffer.port import Backlog, Commit, Lease, OutboxEntry, Position
from edge_agent.buffer.reader import Damaged, Missing, Run
from edge_agent.buffer.relief import Age, Policy
from edge_agent.buffer.settings import BufferSettings
from edge_agent.buffer.sql import SQL
from edge_agent.buffer.start import Start
from edge_agent.buffer.writer import Transaction
from edge_agent.lanes import Lane, complete
from waybill.errors import Unavailable
from waybill.mqtt.state import ResendEntry, SavedState
from waybill.wire import Envelope, Receipt, Span

T = TypeVar("T")

SETTLE_DELAY: Final = 0.5
"""Seconds that deletions wait for a commit to go with: one transaction less for the flash."""

PAUSES: Final = (0.1, 2.0)
"""First and longest pause between attempts of what is held, seconds."""


def _clock() -> tuple[int, int]:
    return time.time_ns() // 1_000_000, time.monotonic_ns()


class SqliteBuffer:
    """A :class:`edge_agent.buffer.port.Buffer` on SQLite. Made by ``open``."""

    engine: type[Engine] = Engine

    def __init__(self, engine: Engine, settings: BufferSettings, memories: dict[str, Sequence[ResendEntry]]) -> None:
        self._engine = engine
        self._index = engine.index
        self._settings = settings
        self._memories = memories
        self._flusher: asyncio.Task[Any] | None = None
        self._relaxed = frozenset(lane.name for lane in engine.policy.lanes.values() if lane.durability == "relaxed")

    @classmethod
    async def open(
        cls,
        path: Path,
        settings: BufferSettings | None = None,
        *,
        gateway: str,
        boot: str,
        lanes: Sequence[Lane] = complete(()),
        clock: Callable[[], tuple[int, int]] = _clock,
        age: Age | None = None,
    ) -> Self:
        """Open the data directory ``path``, making it where there is none, and mint this start's epoch (E1).

        ``boot``: the boot id of this machine's run. ``clock``: wall time in ms and monotonic time in ns. ``lanes``: as
        configured. ``age``: how old a stamp is; without it only what is of this boot expires.
        Raises Locked (B3), ConfigError (not a buffer, or a newer one), Unavailable (disk full, I/O error).
        """
        settings = settings or BufferSettings()
        directory = Directory(path, settings.ballast_bytes)
        try:
            mark = MarkFile.read(path)
            begin = Start(gateway, boot, [lane.name for lane in lanes], settings.dup_window, clock)
            try:
                opened = await open_file(directory, mark.last, cls.engine.synchronous, begin)
            except (sqlite3.Error, OSError) as error:
                if trouble_of(error) != "full" or not directory.drop_ballast():
                    raise
                opened = await open_file(directory, mark.last, cls.engine.synchronous, begin)
            directory.take_ballast(settings.min_free_bytes)
            await asyncio.to_thread(mark.write, mark_of(opened.started.context.index), sync=True)
        except (sqlite3.Error, OSError) as error:
            directory.close()
            if trouble_of(error) is None:
                raise
            raise Unavailable(f"{path}: the buffer cannot be opened now: {say(error)}") from error
        except BaseException:
            directory.close()
            raise
        engine = cls.engine(directory, settings, opened, mark, Policy({lane.name: lane for lane in lanes}))
        with contextlib.suppress(Unavailable):  # the first commit will say it
            await engine.look()
        engine.spawn("buffer: keep", Keeper(engine, age or within(boot)).run())
        return cls(engine, settings, opened.started.memories)

    @property
    def epoch(self) -> int:
        """The epoch of this start (E1)."""
        return self._index.epoch

    @property
    def fault(self) -> str:
        """Why commits do not get through at present, or an empty string."""
        return self._engine.fault

    @property
    def busy_s(self) -> float:
        """Seconds for which the file's present work has been with the disk; 0 while there is none."""
        return self._engine.busy_s

    @property
    def alarm(self) -> str:
        """What was wrong with the file, and how many messages were lost since the start; mostly empty."""
        return self._engine.alarm

    @property
    def left(self) -> list[Path]:
        """Damaged files that are left for people to look at, and never deleted."""
        return self._engine.left()

    @property
    def refusing(self) -> frozenset[str]:
        """Names of the lanes that have no room now."""
        return self._engine.refusing

    @property
    def full(self) -> str:
        """Which limit leaves no room for lanes that refuse, or an empty string: none, but for a lane's own cap."""
        return self._engine.full

    def on_refusing(self, tell: Callable[[frozenset[str]], None]) -> None:
        """Have ``tell`` called now, and whenever :attr:`refusing` has changed."""
        self._engine.on_refusing = tell
        tell(self.refusing)

    @property
    def counters(self) -> Counters:
        """Plain counters since the start."""
        return self._engine.counters

    @property
    def path(self) -> Path:
        """The database file in use."""
        return self._engine.path

    async def restore(self) -> SavedState:
        """Return the MQTT server's state as the last start left it: one call, before the first commit."""
        memories, self._memories = self._memories, {}
        return await self._engine.read(lambda db: saved_state(db, memories))

    async def commit(self, commit: Commit) -> None:
        """Make ``commit`` durable; wait and try again while that cannot be. See the port."""
        size = sum([len(chunk.raw) for chunk in commit.chunks]) + size_of(commit.changes)
        size = max(1, size)
        job = Job(lambda transaction: transaction.commit(commit, size), size, self._may_be_lost(commit))
        began = time.perf_counter()
        await self._held(lambda: self._engine.write(job))
        self.counters.commits += 1
        self.counters.seconds += time.perf_counter() - began

    def _may_be_lost(self, commit: Commit) -> bool:
        """Tell whether a power cut may take ``commit`` back: all that it brings is of lanes that say so."""
        if not self._relaxed or commit.changes or commit.results or commit.own:
            return False
        return all(chunk.lane in self._relaxed for chunk in commit.chunks)

    async def lease(self, lane: str, after: Position | None, count: int, size: int) -> Lease | None:
        """Return the next messages of ``lane``. See the port. Waits while the file cannot be read."""
        return await self._lease(lane, lambda: self._index.next_unsettled(lane, after), count, size)

    async def lease_newest(
        self, lane: str, under_way: Sequence[tuple[int, int, int]], count: int, size: int
    ) -> Lease | None:
        """Return the newest messages of ``lane``. See the port. Waits while the file cannot be read."""
        newest = partial(self._index.newest_unsettled, lane, under_way, count, size)
        return await self._lease(lane, newest, count, 2 * size)

    async def _lease(
        self, lane: str, find: Callable[[], tuple[Track, int, int] | None], count: int, size: int
    ) -> Lease | None:
        while True:
            found = await self._held(lambda: self._engine.lease(lane, find, count, size))
            if found is None:
                return None
            track, run = found
            if isinstance(run, Run):
                end = Position(track.ordinal, run.first + len(run.messages) - 1)
                oldest = self._index.oldest_epoch(lane)
                prev = track.prev_epoch, track.prev_last
                return Lease(lane, track.epoch, *prev, oldest, run.first, run.messages, end, track.boot)
            await self._held(partial(self._lose, lane, track, run))

    async def _lose(self, lane: str, track: Track, run: Damaged | Missing) -> None:
        """Declare what cannot be read."""
        if isinstance(run, Damaged):
            first, last, size, why = max(1, run.first), run.last, run.bytes, "damaged: checksum"
            self.counters.damaged += 1
        else:
            first, last, size, why = run.first, run.last, 0, "missing from the buffer's file"

        def work(transaction: Transaction) -> None:
            if isinstance(run, Damaged):
                transaction.set_aside(lane, track, run.first, run.bytes)
            transaction.declare_again((lane,))
            transaction.declare(lane, track, first, last, size=size, why=why)

        await self._engine.write(Job(work))
        track.settled.add(first, last)
        self._engine.say_lost(last - first + 1, f"messages {first} to {last} of lane {lane}, {why}")

    async def settle(self, spans: Sequence[Span]) -> int:
        """Forget messages; see the port. As far as this object shows they are gone at once.

        In the file they go with the next transaction, after half a second at the latest. A crash before that only
        makes the agent send them again, which the ledger tells.
        """
        before = self.counters.settled
        for span in spans:
            if clamped := self._index.clamp(span):
                track, first, last = clamped
                if first <= track.delivered + 1:
                    track.delivered = max(track.delivered, last)
        self._forget(spans)
        return self.counters.settled - before

    def _forget(self, spans: Sequence[Span]) -> None:
        for span in spans:
            if clamped := self._index.clamp(span):
                self._mark(span.lane, *clamped)
        if self._engine.leaving and (self._flusher is None or self._flusher.done()):
            self._flusher = self._engine.spawn("buffer: settle", self._flush())

    def _mark(self, lane: str, track: Track, first: int, last: int) -> None:
        before = track.settled.total
        interval = track.settled.add(first, last)
        self.counters.settled += track.settled.total - before
        if interval:
            self._engine.leaving.append((lane, track.ordinal, *interval))
        if not track.pending:
            self._index.forget_done(lane)

    async def _flush(self) -> None:
        """Delete what is settled, unless a commit has taken it along."""
        pause = SETTLE_DELAY
        while self._engine.leaving and not self._engine.closing.is_set():
            await self._engine.pause(pause)
            if self._engine.leaving:
                try:
                    await self._engine.write(Job(lambda _: None))
                except Unavailable:
                    pause = PAUSES[1]

    async def give_up(self, receipt: Receipt) -> None:
        """Declare a loss and settle its span; see the port. Raises Unavailable where that cannot be written now."""
        span = Span(receipt.epoch, receipt.lane, receipt.first, receipt.last)
        clamped = self._index.clamp(span)
        interval = clamped and clamped[0].settled.covering(*clamped[1:])

        def work(transaction: Transaction) -> None:
            transaction.receipt(receipt)
            if clamped and interval:
                transaction.settle(receipt.lane, clamped[0].ordinal, *interval)

        await self._engine.write(Job(work))
        self._forget([span])

    async def receive(self, envelope: Envelope, now_ms: int) -> bool:
        """Take a command in; see the port. Raises Unavailable: not now, or the outbox is full."""
        if envelope.expires_ms <= now_ms:
            return False
        limit, before = self._settings.outbox_limit, now_ms - self._settings.outbox_margin_ms
        taken = await self._engine.write(Job(lambda transaction: transaction.receive(envelope, now_ms, limit, before)))
        if taken is None:
            raise Unavailable(f"the outbox holds {limit} commands: command {envelope.id} is not accepted")
        return bool(taken)

    async def outbox(self, now_ms: int) -> Sequence[OutboxEntry]:
        """Return the open commands; see the port. Raises Unavailable where the file cannot be used now."""
        before = now_ms - self._settings.outbox_margin_ms
        if await self._engine.read(lambda db: db.execute(SQL["old_commands"], (before,)).fetchone()):
            await self._engine.write(Job(lambda transaction: transaction.forget_commands(before)))
        rows = await self._engine.read(lambda db: db.execute(SQL["open_commands"], (now_ms,)).fetchall())
        return [OutboxEntry(*row) for row in rows]

    async def changed(self) -> None:
        """Wait until something was appended since the last call returned."""
        await self._engine.appended.wait()
        self._engine.appended.clear()

    def backlog(self) -> Sequence[Backlog]:
        """Return what waits in every lane, from memory."""
        return self._index.backlog()

    async def space(self) -> tuple[int, int]:
        """Return the bytes of the file that hold something, and how many more it may take. Raises Unavailable."""
        return await self._engine.space()

    async def close(self) -> None:
        """Delete what is settled, checkpoint, close; waits for the commit under way, ends one that is held."""
        if not self._engine.closing.is_set():
            await self._engine.close()

    async def _held(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Try until it goes through. Raises Unavailable only once the buffer is closed."""
        pause, longest = PAUSES
        while True:
            if self._engine.closing.is_set():
                raise Unavailable("the buffer is closed")
            try:
                return await attempt()
            except Unavailable:
                await self._engine.pause(pause)
                pause = min(2 * pause, longest)

"""The embedded log (D4): journal, topics and ledger in one SQLite file, for one server without Kafka.

One writer task commits everything that waits in one transaction (``synchronous=FULL``), so many gateways share an
fsync, and a router step is one transaction like all else. Readers in this process and in others read only.

Limits: at ``max_bytes`` nothing more is written (R8): frames are answered ``retry`` and gateways keep them; a little
before it, only what the router writes. What is deleted before: :mod:`cloud_ingest.journal.embedded_retention`; what is
left to routing, and on a full disk: ``embedded_room`` beside it. At most
``MAX_JOBS`` writes wait for the disk; more wait for their turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from cloud_ingest.config import Topics
from cloud_ingest.journal import embedded_file as file
from cloud_ingest.journal.embedded_file import Job, Row
from cloud_ingest.journal.embedded_partition import EmbeddedPartition
from cloud_ingest.journal.embedded_reader import Reader
from cloud_ingest.journal.embedded_retention import Retention, data_topics, prune
from cloud_ingest.journal.embedded_room import Room, is_full
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import CaughtUp, Described, OutRecord, PartitionLog, TopicRecord, TopicSeen
from waybill.errors import ConfigError, Fenced, Refused, Unavailable

log = logging.getLogger(__name__)

MAX_JOBS: Final = 1024
MAX_FRAME: Final = 4 << 20
MAX_RECORD: Final = 16 << 20
"""Largest key, value and headers of a record together, bytes."""

BATCH_BYTES: Final = 16 << 20
"""A transaction takes no more once it has so much; it may pass the cap by as much."""

PRUNE_EVERY: Final = 60.0

BITES: Final = 100
"""How often in a row a little is deleted where the disk is full, before others may write again."""

MAX_BYTES: Final = 4 << 30


class EmbeddedLog:
    """The :class:`~cloud_ingest.journal.port.Log` on one SQLite file."""

    def __init__(
        self,
        path: Path,
        topics: Topics,
        *,
        max_bytes: int = MAX_BYTES,
        retention: Retention | None = None,
        max_record: int = MAX_RECORD,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """``max_bytes``: the file's disk cap. ``retention``: of data topics.

        ``clock_ms``: the log's clock, milliseconds since 1970 UTC.
        """
        self.path = path
        self.topics = topics
        self.max_record = max_record
        self._max_bytes = max_bytes
        self._retention = retention or Retention()
        self._clock_ms = clock_ms
        self._partitions = topics.partitions
        self._log_id = 0
        self._known: dict[str, file.Topic] = {}
        self._heads: dict[tuple[int, int], int] = {}
        self._jobs: asyncio.Queue[Job | None] = asyncio.Queue(MAX_JOBS)
        self._spread = itertools.count()
        self._wake = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()
        self._writer: file.Connection | None = None
        self._broken = False
        self._room = Room(path)
        self._newest_ms = 0
        self._unpruned = ""
        self._inode: tuple[int, int] | None = None
        self._prune_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.generations = [0] * self._partitions
        self.fault = ""
        """Why nothing is written at present, or an empty string."""

    @property
    def partitions(self) -> int:
        """How many partitions every topic has."""
        return self._partitions

    @property
    def log_id(self) -> int:
        """Which file this is, drawn when it was made; 0 before it is open."""
        return self._log_id

    @property
    def busy_s(self) -> float:
        """Seconds for which the writer's present work has been with the disk; 0 while it has none."""
        began = None if self._writer is None else self._writer.began
        return 0.0 if began is None else time.monotonic() - began

    async def start(self) -> None:
        """Open the file, or make it. Raises ConfigError, Locked."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._stack.enter_context(file.locked(self.path.with_name(self.path.name + ".lock")))
        try:
            file.check_whole(self.path)
            await self._open()
            self.connection = await file.open_to_read(self.path)
            self._stack.push_async_callback(self.connection.close)
        except BaseException:
            await self.close()
            raise
        self.reader = Reader(self.path, self.connection, self.topics.frames, lambda: partial(self.mark(), None))
        self._task = asyncio.create_task(self._write(), name="embedded log writer")

    async def _open(self) -> None:
        try:
            try:
                found = await self._connect()
            except sqlite3.Error:
                if not self._room.ballast.drop():
                    raise
                found = await self._connect()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"{self.path}: cannot be opened: {error}") from error
        if found != self._partitions:
            raise ConfigError(
                f"{self.path}: made with {found} partitions; set [topics] partitions = {found}, or name another path"
            )
        self._log_id = await self._identity()
        await self._learn()
        self._room.ballast.take()

    async def _connect(self) -> int:
        """Open the file, or make it; return how many partitions it has. Raises ConfigError, sqlite3.Error."""
        await self._disconnect()
        self._writer = await file.open_to_write(self.path)
        if not await self._writer.run(lambda db: file.check(db, self.path)):
            await self._writer.run(lambda db: file.create(db, self._partitions))
        self._inode = file.inode(self.path)
        return await self._writer.run(file.partitions_of)

    async def _disconnect(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await writer.close()

    async def _identity(self) -> int:
        assert self._writer is not None  # noqa: S101 - opened
        try:
            return await self._writer.run(file.log_id_of)
        except sqlite3.Error as error:  # a full disk, say: it is drawn in the next start
            log.warning(
                "%s: its id cannot be written, gateways send their dictionaries more often: %s", self.path, error
            )
            return 0

    async def _learn(self) -> None:
        assert self._writer is not None  # noqa: S101 - opened
        self._known, self._heads = await self._writer.run(lambda db: (file.topics_of(db), file.heads_of(db)))
        data = data_topics(self._known.values(), self.topics)
        self._newest_ms = await self._writer.run(lambda db: file.newest_of(db, data, self._partitions))

    # --- writing ---

    async def append_frame(self, gateway: str, frame: bytes, partition: int | None = None) -> None:
        """Journal a frame; durable on return. Raises Unavailable, Refused."""
        if len(frame) > MAX_FRAME:
            raise Refused(f"a frame of {len(frame)} bytes; the journal takes {MAX_FRAME}")
        await self.submit(Job([Row(self.topics.frames, partition, gateway.encode(), frame, file.NO_HEADERS)]))

    async def append(self, record: OutRecord) -> None:
        """Append one record to a topic; durable on return. Raises Unavailable, Refused."""
        row = Row(record.topic, None, record.key, record.value, file.pack_headers(record.headers))
        if row.size > self.max_record:
            raise Refused(f"{record.topic}: a record of {row.size} bytes; the log takes {self.max_record}")
        await self.submit(Job([row]))

    async def submit(self, job: Job) -> None:
        """Write ``job``; durable on return. Raises Unavailable, Fenced."""
        if self._task is None or self._closed:
            raise Unavailable(f"{self.path}: the log is closed")
        await self._jobs.put(job)
        if self._closed:
            raise Unavailable(f"{self.path}: the log was closed")  # perhaps written, perhaps not
        await job.done

    async def _write(self) -> None:
        """Commit what waits, again and again, until ``close``."""
        while True:
            taken = [await self._jobs.get()]
            size = taken[0].size if taken[0] else 0
            while size < BATCH_BYTES and not self._jobs.empty():
                taken.append(job := self._jobs.get_nowait())
                size += job.size if job else 0
            jobs = [job for job in taken if job is not None]
            if live := [job for job in jobs if not job.done.cancelled() and not _is_fenced(job)]:
                steps = [job for job in live if job.routed is not None] if self._room.tight else []
                rest = [job for job in live if job.routed is None] if steps else live
                for part in (steps, rest):  # what makes room, then all else
                    if part:
                        await self._commit(part)
            if None in taken:
                return
            if time.monotonic() >= self._prune_at:
                self._prune_at = time.monotonic() + PRUNE_EVERY
                await self._prune()

    async def _commit(self, jobs: Sequence[Job]) -> None:
        try:
            if self._broken:
                await self._reopen()
            assert self._writer is not None  # noqa: S101 - opened
            known, heads = dict(self._known), dict(self._heads)
            await self._writer.run(lambda db: self._apply(db, jobs, known, heads))
        except (sqlite3.Error, Unavailable, ValueError) as error:
            self._broken = self._broken or not isinstance(error, Unavailable)
            self._prune_at = 0.0  # perhaps that makes room
            self._room.short |= is_full(error)
            self._fail(jobs, f"{self.path}: {self._room.lack() if is_full(error) else error}")
            return
        except Exception as error:  # one bad job must not end the writer, which all depend on
            self._broken = True
            log.exception("%s: a write failed", self.path)
            self._fail(jobs, f"{self.path}: {error!r}")
            return
        self._known, self._heads = known, heads
        if self.fault and not self._room.tight:
            log.warning("%s: written again", self.path)
            self.fault = ""
        for job in jobs:
            if not job.done.done():
                job.done.set_result(None)
        self._wake.set()
        self._wake = asyncio.Event()

    def _fail(self, jobs: Sequence[Job], fault: str) -> None:
        if fault != self.fault:
            log.error("nothing is written: %s", fault)
            self.fault = fault
        for job in jobs:
            if not job.done.done():
                job.done.set_exception(Unavailable(fault))

    async def _reopen(self) -> None:
        """Read all anew after an error of the disk, and check that what was written is there (B2)."""
        self._check_there()
        await self._disconnect()
        self._writer = await file.open_to_write(self.path)
        busy = await self._writer.run(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        if busy:
            raise Unavailable("a reader holds the write-ahead log after an error of the disk; stop it")
        await self._learn()
        self._broken = False

    def _check_there(self) -> None:
        """SQLite writes on into a file that was removed, which no start would find again. Raises Unavailable."""
        if file.inode(self.path) != self._inode:
            raise Unavailable("removed or replaced while it is in use: put it back, or start the ingest anew")

    def _apply(
        self,
        db: sqlite3.Connection,
        jobs: Sequence[Job],
        known: dict[str, file.Topic],
        heads: dict[tuple[int, int], int],
    ) -> None:
        """Write ``jobs`` in one transaction (in the writer's thread); ``known`` and ``heads`` change with it."""
        self._check_there()
        if need := sum(job.size for job in jobs):
            steps = all(job.routed is not None for job in jobs if job.rows)
            self._room.check_cap(db, need, self._max_bytes, steps=steps)
            self._room.check_disk(db, need, steps=steps)
        stamp = self._clock_ms()
        db.execute("BEGIN IMMEDIATE")
        try:
            touched: set[tuple[int, int]] = set()
            for job in jobs:
                if job.routed is None:
                    touched.update(self._add(db, row, stamp, known, heads) for row in job.rows)
                else:  # a clock that was set back makes no record old: it would be deleted early (R6)
                    self._newest_ms = max(stamp, self._newest_ms)
                    touched.update(self._add(db, row, self._newest_ms, known, heads) for row in job.rows)
                    db.execute(file.SQL["set_routed"], job.routed)
            db.executemany(file.SQL["set_head"], [(*where, heads[where]) for where in touched])
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _add(
        self,
        db: sqlite3.Connection,
        row: Row,
        stamp: int,
        known: dict[str, file.Topic],
        heads: dict[tuple[int, int], int],
    ) -> tuple[int, int]:
        name, partition, key, value, headers = row
        topic = known.get(name)
        if topic is None:
            compact = name in {
                self.topics.ledger,
                self.topics.dictionaries,
                self.topics.presence,
                self.topics.health,
            }
            number = db.execute(file.SQL["add_topic"], (name, compact)).fetchone()[0]
            topic = known[name] = file.Topic(number, name, compact)
        if partition is None:
            partition = next(self._spread) % self._partitions if key is None else partition_of(key, self._partitions)
        where = (topic.number, partition)
        offset = heads.get(where, 0)
        heads[where] = offset + 1
        if topic.compact:
            db.execute(file.SQL["add_compacted"], (*where, key, offset, stamp, value, headers))
        else:
            db.execute(file.SQL["add_record"], (file.record_id(*where, offset), stamp, key, value, headers))
        return where

    # --- reading ---

    def follow(
        self, topics: Sequence[str], *, only: int | None = None, end: bool = False
    ) -> AsyncIterator[TopicRecord | CaughtUp]:
        """Yield records; see :meth:`cloud_ingest.journal.port.Log.follow`. Raises Unavailable."""
        return self.reader.follow(topics, only=only, end=end)

    def unrouted(self) -> AsyncGenerator[TopicRecord, None]:
        """Yield frames; see :meth:`cloud_ingest.journal.port.Log.unrouted`. Raises Unavailable."""
        return self.reader.unrouted()

    def mark(self) -> Callable[[float | None], Awaitable[None]]:
        """Return what waits for the next write after this call, so many seconds at most."""
        wake = self._wake

        async def changed(wait: float | None) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await wake.wait()

        return changed

    def topic(self, name: str) -> file.Topic | None:
        """Return a topic, None where nothing was ever written to it."""
        return self._known.get(name)

    def head(self, topic: str, partition: int) -> int:
        """Return the offset of the next record."""
        known = self._known.get(topic)
        return self._heads.get((known.number, partition), 0) if known else 0

    async def oldest(self, partition: int) -> int:
        """Return the offset of the oldest frame, or that of the next one where there is none."""
        topic = self._known.get(self.topics.frames)
        if topic is None:
            return 0
        bounds = _bounds(topic, partition)
        found: int | None = await self.read(lambda db: db.execute(file.SQL["oldest"], bounds).fetchone()[0])
        return self.head(self.topics.frames, partition) if found is None else file.offset_of(found)

    async def describe(self, topics: Collection[str]) -> Described:
        """Say how ``topics`` are now; there are no brokers. Raises Unavailable."""
        known = [topic for topic in self._known.values() if topic.name in topics]

        def work(db: sqlite3.Connection) -> dict[str, list[int | None]]:
            statement = file.SQL["oldest"]
            return {
                topic.name: [
                    None if topic.compact else db.execute(statement, _bounds(topic, number)).fetchone()[0]
                    for number in range(self._partitions)
                ]
                for topic in known
            }

        found = await self.read(work)
        seen: dict[str, TopicSeen] = {}
        for topic in known:
            heads = [self.head(topic.name, number) for number in range(self._partitions)]
            firsts = found[topic.name]
            offsets = [
                (0 if topic.compact else head if first is None else file.offset_of(first), head)
                for first, head in zip(firsts, heads, strict=True)
            ]
            seen[topic.name] = TopicSeen(1, 0, 0, tuple(offsets))
        return Described((), seen)

    async def read(self, work: Callable[[sqlite3.Connection], file.T]) -> file.T:
        """Run ``work`` on the connection that reads. Raises Unavailable."""
        try:
            return await self.connection.run(work)
        except (sqlite3.Error, ValueError) as error:
            raise Unavailable(f"{self.path}: cannot be read: {error}") from error

    # --- owning ---

    async def own_partitions(self, route: Callable[[PartitionLog], Awaitable[None]]) -> None:
        """Run ``route`` as a task for each partition, until cancelled."""

        async def own(partition: int) -> None:
            await route(EmbeddedPartition(self, partition))

        async with asyncio.TaskGroup() as group:
            for partition in range(self._partitions):
                group.create_task(own(partition), name=f"router {partition}")
            await asyncio.Event().wait()

    async def _prune(self) -> None:
        """Delete what need not be kept any more; on a full disk in the room of the ballast."""
        trouble = ""
        try:
            try:
                more = await self._delete()
            except sqlite3.Error:
                self._broken = True  # opened anew, which moves the write-ahead log into the file
                self._room.ballast.drop()
                more = await self._delete()
            if more:
                self._prune_at = 0.0
        except (sqlite3.Error, OSError, Unavailable, ValueError) as error:
            trouble = str(error)
            if trouble != self._unpruned:
                log.warning("%s: old records cannot be pruned: %s", self.path, trouble)
        self._unpruned = trouble

    async def _delete(self) -> bool:
        """Prune and see to the ballast; tell whether there may be more. Raises sqlite3.Error, OSError, Unavailable."""
        if self._broken:
            await self._reopen()
        assert self._writer is not None  # noqa: S101 - opened
        now, known, room = self._clock_ms(), self._known, self._room

        def work(db: sqlite3.Connection) -> bool:
            short = room.short
            more = True
            for _ in range(BITES if short else 1):
                full = short or file.used_bytes(db, self.path) > self._max_bytes // 2
                if more:
                    more = prune(
                        db, self.path, known.values(), self.topics, now, self._retention, full=full, short=short
                    )
            room.relieve(db)
            return more

        return await self._writer.run(work)

    async def close(self) -> None:
        """Finish what is being written, refuse what waits, close the file."""
        self._closed = True
        if self._task is not None:
            await self._jobs.put(None)
            await asyncio.wait({self._task})
        self._wake.set()
        await self._stack.aclose()
        await self._disconnect()


def _bounds(topic: file.Topic, partition: int) -> tuple[int, int]:
    return file.record_id(topic.number, partition, 0), file.record_id(topic.number, partition + 1, 0)


def _is_fenced(job: Job) -> bool:
    if job.fence is None:
        return False
    try:
        job.fence()
    except Fenced as error:
        job.done.set_exception(error)
        return True
    return False

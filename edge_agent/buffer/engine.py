"""How a transaction of the buffer runs: one lock, one hop to the connection's thread, and what an error means.

::

    job ─▶ lock ─▶ BEGIN … COMMIT ─▶ index ─▶ return (B1)
                     ├─ the log is too long ─▶ checkpoint, once more; else Unavailable
                     ├─ no room, disk full ─▶ checkpoint, give the ballast up if the job makes room; else Unavailable
                     └─ I/O error ─▶ repair (B2), once more; else Unavailable

The index in memory is changed after a transaction returned and never before, so that an error leaves it right.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from edge_agent.buffer.connection import Connection, checkpoint, say, transaction, trouble_of
from edge_agent.buffer.directory import Directory
from edge_agent.buffer.file import BufferFile
from edge_agent.buffer.index import Outcome, Track
from edge_agent.buffer.mark import MarkFile
from edge_agent.buffer.opening import Opened
from edge_agent.buffer.reader import Damaged, Missing, Run
from edge_agent.buffer.relief import Part, Policy, Relief
from edge_agent.buffer.room import LOG_BYTES, LongLog, NoRoom, Room
from edge_agent.buffer.settings import BufferSettings
from edge_agent.buffer.upkeep import Upkeep
from edge_agent.buffer.writer import Transaction
from waybill.errors import Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class Counters:
    """Since the start. ``seconds``: within commits that returned. ``faults``: attempts that failed."""

    commits: int = 0
    seconds: float = 0.0
    transactions: int = 0
    messages: int = 0
    bytes: int = 0
    blocks: int = 0
    blocks_deleted: int = 0
    settled: int = 0
    damaged: int = 0
    faults: int = 0
    repairs: int = 0


@dataclass(slots=True)
class Job:
    """One transaction on its way. ``size``: bytes a commit brings; 0 for what must go through even at the cap.

    ``relaxed``: a power cut may take it back (``synchronous=NORMAL``).

    ``result`` and ``outcome`` are set before COMMIT: where that fails with an I/O error the transaction may be there
    nevertheless; ``present`` says that it is.
    """

    work: Callable[[Transaction], Any]
    size: int = 0
    relaxed: bool = False
    result: Any = None
    outcome: Outcome | None = None
    leaving: int = 0
    tight: tuple[int, str] = (0, "")
    present: bool = False


class Engine:
    """The file and the index of one buffer. Every method but ``close`` may be called at any time."""

    synchronous: ClassVar[str] = "FULL"

    def __init__(
        self, directory: Directory, settings: BufferSettings, opened: Opened, mark: MarkFile, policy: Policy
    ) -> None:
        self.counters = Counters()
        self.index = opened.started.context.index
        self.fault = ""
        self.refusing: frozenset[str] = frozenset()
        self.on_refusing: Callable[[frozenset[str]], None] = lambda _: None
        self.tight = 0
        """Bytes that are lacking of the reserve."""
        self.full = ""
        """Which limit says so."""
        self.policy = policy
        self.leaving: list[tuple[str, int, int, int]] = []
        """(lane, ordinal, first, last) that are settled and to be deleted with the next transaction."""
        self.appended = asyncio.Event()
        self.closing = asyncio.Event()
        self._directory = directory
        self._settings = settings
        self._context = opened.started.context
        self._file = BufferFile(directory, opened, self.synchronous, self._resolve)
        # The room of the ballast is enough to move the log into the database, even where all of it makes that longer.
        self._upkeep = Upkeep(self, mark, min(LOG_BYTES, settings.ballast_bytes or LOG_BYTES))
        self._room = Room(directory, settings)
        self._held_back = False
        self._relaxed = False
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._doubt: Job | None = None

    # --- for the buffer ---

    async def write(self, job: Job) -> Any:  # noqa: ANN401 - what the job's work returns
        """Run ``job`` as one transaction; return what its work returned.

        Raises Unavailable: it is not there, or, where ``job`` is given again, that will be found out first.
        """
        await self.guarded("buffer: write", self._run(job))
        return job.result

    async def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``read`` in the connection's thread. Raises Unavailable."""
        return await self.guarded("buffer: read", self._read(lambda db: db.run(read)))

    async def space(self) -> tuple[int, int]:
        """Return the bytes of the file that hold something, and how many more it may take. Raises Unavailable."""
        return await self.read(lambda db: self._room.space(db, self.path))

    async def lease(
        self, lane: str, find: Callable[[], tuple[Track, int, int] | None], count: int, size: int
    ) -> tuple[Track, Run | Damaged | Missing] | None:
        """Read the run of a lane that ``find`` finds in the index; None where nothing waits. Raises Unavailable."""

        async def lease(db: Connection) -> tuple[Track, Run | Damaged | Missing] | None:
            found = find()  # not before the lock is held: what is evicted meanwhile is not missing
            if found is None:
                return None
            track, first, last = found
            reader = self._file.reader(lane)
            run = await db.run(reader.read, track, first, last, count, size)
            if isinstance(run, Run):  # before another transaction looks (B5)
                track.leased.add(run.first, run.first + len(run.messages) - 1)
            return track, run

        return await self.guarded("buffer: lease", self._read(lease))

    async def guarded(self, name: str, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` in a task of its own: a caller that is cancelled must not leave file and index apart."""
        return await asyncio.shield(self.spawn(name, work))

    def spawn(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that ``close`` waits for."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, Unavailable):
            log.error("%s failed: %r", task.get_name(), error)

    @property
    def path(self) -> Path:
        """The file in use."""
        return self._file.path

    @property
    def alarm(self) -> str:
        """What was wrong with the file, and how many messages were lost since the start, in a sentence."""
        return self._file.alarm

    def say_lost(self, count: int, why: str) -> None:
        """Tell people that so many messages are lost."""
        self._file.say_lost(count, why)

    def left(self) -> list[Path]:
        """Return the damaged files that are left in the data directory."""
        return self._directory.left()

    @property
    def busy(self) -> bool:
        """Whether a transaction is under way."""
        return self._lock.locked()

    @property
    def busy_s(self) -> float:
        """Seconds for which the work under way has been with the disk; 0 during a repair, which may copy gigabytes."""
        return 0.0 if self._file.db is None else self._file.db.busy_s

    async def tend(self, work: Callable[..., T], *args: object) -> T | None:
        """Do what nobody waits for; None where it cannot be done now."""
        async with self._lock:
            with contextlib.suppress(Unavailable):
                db = await self._usable()
                try:
                    return await db.run(work, *args)
                except (sqlite3.Error, OSError) as error:
                    await self._trouble(error, None, again=True)
        return None

    async def pause(self, seconds: float) -> None:
        """Sleep, but not past the close."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closing.wait(), seconds)

    async def close(self) -> None:
        """Delete what is settled, checkpoint, close, unlock."""
        self.closing.set()
        while self._tasks:
            await asyncio.wait(self._tasks)
        async with self._lock:
            try:
                if self._file.db is not None and not self._file.broken:
                    if self.leaving:
                        await self._transact(self._file.db, Job(lambda _: None))
                    await self._file.db.run(checkpoint, "TRUNCATE")
            except (sqlite3.Error, OSError) as error:
                log.warning("%s: not tidied at its close: %s", self.path, error)
            finally:
                await self._file.close()
                self._upkeep.close()
                self._directory.close()

    # --- one transaction ---

    async def _run(self, job: Job) -> None:
        async with self._lock:
            repeated: set[bool] = set()
            while True:
                db = await self._usable()
                if job.present:
                    break
                try:
                    await self._transact(db, job)
                    break
                except (sqlite3.Error, OSError, NoRoom) as error:
                    self._file.bad_reads += trouble_of(error) == "corrupt"
                    early = isinstance(error, LongLog)  # nothing was tried: whether there is room shows the next time
                    await self._trouble(error, job, again=early not in repeated)
                    repeated.add(early)
            if job.size or not self._held_back:
                self._note("")
            self._upkeep.start()
            self._directory.take_ballast(self._settings.min_free_bytes)

    async def _transact(self, db: Connection, job: Job) -> None:
        job.leaving = len(self.leaving)
        await db.run(self._work, job, tuple(self.leaving), self.parts())
        self._apply(job)

    def parts(self) -> dict[str, list[Part]]:
        """Return copies of what of the index says what may go, for use in the connection's thread."""
        lanes = self.index.lanes
        return {
            name: [Part.of(track) for track in lanes[name].tracks if track.pending]
            for name in self.policy.eaten
            if name in lanes
        }

    def relief(self, db: sqlite3.Connection, parts: dict[str, list[Part]], *, plenty: bool = False) -> Relief:
        """Return what makes room, for use in the connection's thread; with ``plenty`` only lanes' own caps count."""
        return Relief(db, self.policy, parts, None if plenty else lambda need: self._room.lacking(db, self.path, need))

    def _work(
        self,
        db: sqlite3.Connection,
        job: Job,
        leaving: tuple[tuple[str, int, int, int], ...],
        parts: dict[str, list[Part]],
    ) -> None:
        job.outcome = None
        self._directory.check(self.path)
        plenty = self._room.is_plenty(db, self.path, job.size)
        if job.size and not plenty:
            self._room.check_log(db, self.path, job.size)
        if job.relaxed is not self._relaxed:
            db.execute(f"PRAGMA synchronous = {'NORMAL' if job.relaxed else self.synchronous}")
            self._relaxed = job.relaxed
        with transaction(db):
            writer = Transaction(db, self._context, self.relief(db, parts, plenty=plenty))
            for lane, ordinal, first, last in leaving:
                writer.settle(lane, ordinal, first, last)
            job.result = job.work(writer)
            job.outcome = writer.finish()
            job.tight = (0, "") if plenty else self._short(db)

    def _short(self, db: sqlite3.Connection) -> tuple[int, str]:
        return self._room.lacking(db, self.path, self._room.reserve(self.path))

    async def look(self) -> None:
        """Find out how much room there is: others may have taken some, or given some back. Raises Unavailable."""
        self._refuse(*await self.read(self._short))

    def _refuse(self, tight: int, why: str) -> None:
        """Find out which lanes are to take nothing, and tell where that has changed."""
        self.tight, self.full = tight, why
        reserve = self._room.reserve(self.path) if tight else 0
        refusing = self.policy.refusing(self.index, reserve, tight=tight)
        if refusing != self.refusing:
            self.refusing = refusing
            because = f": {why}" if why and refusing else ""
            log.info("buffer: lanes that take nothing now: %s%s", ", ".join(sorted(refusing)) or "none", because)
            self.on_refusing(refusing)

    def _apply(self, job: Job) -> None:
        outcome = job.outcome
        if outcome is None:
            return
        self.index.apply(outcome)
        del self.leaving[: job.leaving]
        counters = self.counters
        counters.transactions += 1
        counters.messages += outcome.messages
        counters.blocks += outcome.blocks
        counters.blocks_deleted += outcome.deleted
        counters.bytes += sum(outcome.added.values())
        self._upkeep.after(outcome)
        self._file.bad_reads = 0
        if outcome.messages:
            self.appended.set()
        self._refuse(*job.tight)

    async def _read(self, read: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        async with self._lock:
            for attempt in (1, 2):
                db = await self._usable()
                try:
                    return await read(db)
                except (sqlite3.Error, OSError) as error:
                    self._file.bad_reads += 1
                    await self._trouble(error, None, again=attempt == 1)
        raise Unavailable(self.fault)

    # --- trouble ---

    async def _trouble(self, error: Exception, job: Job | None, *, again: bool) -> None:
        """Return where trying once more makes sense. Raises Unavailable, or ``error`` where it is our own mistake."""
        trouble = "full" if isinstance(error, NoRoom) else trouble_of(error)
        if trouble is None:
            raise error
        self.counters.faults += 1
        if trouble == "full":
            text = str(error) if isinstance(error, NoRoom) else f"disk full: {self.path}"
            self._refuse(max(1, self.tight), text)
            makes_room = job is None or not job.size
            if again:
                await self._make_room(0 if job is None or isinstance(error, NoRoom) else job.size, makes=makes_room)
                return
            self._held_back = not makes_room
            self._note(text)
            raise Unavailable(text) from error
        self._file.broken = True
        self._doubt = job
        self._note(f"{self.path}: {say(error)}")
        if not again:
            raise Unavailable(self.fault) from error

    async def _make_room(self, need: int, *, makes: bool) -> None:
        """Shorten the log. Give the ballast up for a job that ``makes`` room itself.

        ``need``: bytes for which the disk had no room; lanes that drop then give as much.
        """
        gives = bool(need) and any(lane.when_full == "drop-oldest" for lane in self.policy.drops)
        if makes or gives:
            self._directory.drop_ballast()
        db = self._file.db
        if db is None:
            return
        with contextlib.suppress(sqlite3.OperationalError):
            try:
                await db.run(checkpoint, "TRUNCATE")
            except sqlite3.OperationalError:  # the database would become longer by what is in the log
                if not self._directory.drop_ballast():
                    raise
                await db.run(checkpoint, "TRUNCATE")
            if gives:
                await self._transact(db, Job(lambda transaction: transaction.free(need)))
                await db.run(checkpoint, "TRUNCATE")

    def _note(self, fault: str) -> None:
        """Say what is wrong, once a change."""
        if fault and fault != self.fault:
            log.error("buffer: nothing is acknowledged: %s", fault)
        elif self.fault and not fault:
            log.info("buffer: writing again")
        self.fault = fault
        if not fault:
            self._held_back = False

    async def _usable(self) -> Connection:
        """Return the connection, after a repair where one is due (B2). Raises Unavailable."""
        if self._file.broken or self._file.db is None:
            self.counters.repairs += 1
            self._relaxed = False
            try:
                return await self._file.repair()
            except (sqlite3.Error, OSError) as error:
                if trouble_of(error) == "full":
                    self._directory.drop_ballast()
                self._note(f"{self.path}: {say(error)}")
                raise Unavailable(self.fault) from error
        return self._file.db

    def _resolve(self, count: int | None) -> None:
        """Find out whether the transaction in doubt is in the file, whose count of transactions this is."""
        job, self._doubt = self._doubt, None
        if job is not None and job.outcome is not None and count == self.index.transactions + 1:
            self._apply(job)
            job.present = True

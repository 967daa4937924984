"""The file of one buffer, and how it goes on after an I/O error (B2).

::

    broken ─▶ close ─▶ open, log moved and synced ─┬─ as the index has it ───────────────────────▶ usable
                │ cannot be opened, or read twice  ├─ less than the index has: receipts for that ─▶ usable
                └─▶ a new file with what can be read of the old one, which is left as it is ──┘
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable
from typing import Final, TypeVar

from edge_agent.buffer import repair
from edge_agent.buffer.connection import Connection, connect, say, transaction, trouble_of
from edge_agent.buffer.directory import Directory, log_of, size
from edge_agent.buffer.index import Outcome
from edge_agent.buffer.opening import Opened, loss_of
from edge_agent.buffer.reader import Reader
from edge_agent.buffer.writer import Transaction
from waybill.errors import ConfigError, Corrupt

log = logging.getLogger(__name__)

T = TypeVar("T")

_DAMAGED: Final = "the buffer's file was damaged"


class BufferFile:
    """The open file. One caller at a time; what is in it is the index's to say."""

    def __init__(
        self, directory: Directory, opened: Opened, synchronous: str, resolve: Callable[[int | None], None]
    ) -> None:
        """Take over what was ``opened``.

        ``resolve`` is told, before anything else is decided, how many transactions a file has seen that was opened
        anew, or was given up; None where that cannot be read.
        """
        self.path = opened.path
        self.db: Connection | None = opened.db
        self.broken = False
        """Whether it needs a repair before it is used again."""
        self.bad_reads = 0
        """Reads in a row that failed; opening it anew helps once."""
        self._directory = directory
        self._context = opened.started.context
        self._index = opened.started.context.index
        self._synchronous = synchronous
        self._resolve = resolve
        self._readers: dict[str, Reader] = {}
        self._found = opened.alarm
        self._lost = 0
        self._unusable = ""

    def reader(self, lane: str) -> Reader:
        """Return what reads ``lane``."""
        return self._readers.setdefault(lane, Reader(lane))

    def say_lost(self, count: int, why: str) -> None:
        """Tell people that so many messages are lost."""
        self._lost += count
        if count:
            log.warning("buffer: %s: %s: %s", self.path, why, loss_of(count))

    @property
    def alarm(self) -> str:
        """What was wrong with the file, and how many messages were lost since the start, in a sentence."""
        lost = f"{self.path}: since the start {loss_of(self._lost)}" if self._lost else ""
        return "; ".join(filter(None, (self._found, lost)))

    async def close(self) -> None:
        """Close it, if it is open."""
        db, self.db = self.db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error, OSError):
                await db.close()

    async def repair(self) -> Connection:
        """Open it anew, or go on in a new one, and declare what is gone. Raises sqlite3.Error, OSError: not now."""
        await self.close()
        self._readers.clear()
        # Opening it helped once and not again; or it would take a log for old whose file is gone.
        unreadable = self.bad_reads > 1 or (not size(self.path) and size(log_of(self.path)))
        db = None if unreadable else await self._open()
        if db is None:
            db = await self._move()
            damaged = True
        else:
            count = await _tried(db, repair.transactions)
            self._resolve(count)
            damaged = count < self._index.transactions
        if damaged:
            try:
                await self._declare_lost(db)
            except (sqlite3.Error, Corrupt) as error:
                if trouble_of(error) != "corrupt":
                    raise
                db = await self._move()
                await self._declare_lost(db)
        self.db = db
        self.broken = False
        self._unusable = ""
        return db

    async def _open(self) -> Connection | None:
        """Return None where it cannot be used any more."""
        try:
            return await connect(self.path, self._synchronous)
        except (sqlite3.Error, OSError, ConfigError) as error:
            if trouble_of(error) == "full":
                raise
            if (why := say(error)) != self._unusable:  # the same again and again is one event
                log.error("buffer: %s cannot be used any more: %s", self.path, why)  # noqa: TRY400
                self._unusable = why
            return None

    async def _move(self) -> Connection:
        """Go on in a new file with what can be read of the old one."""
        written, path = self._directory.successor()
        written.unlink(missing_ok=True)
        db = await connect(written, self._synchronous)
        try:
            self._resolve(await db.run(lambda _: repair.count_in(self.path)))
            await db.run(repair.copy, self.path, self._index)
        finally:
            await db.close()
        self._directory.promote(written, path)
        what = "was damaged and is left as it is" if size(self.path) else "is gone"
        self._found = f"{self.path} {what}; going on in {path}"
        log.error("buffer: %s", self._found)
        self.path = path
        self.bad_reads = 0
        return await connect(path, self._synchronous)

    async def _declare_lost(self, db: Connection) -> None:
        """Write receipts for what a repaired file has not, and take over what it has."""
        index = self._index
        await _tried(db, repair.align, index)
        found = await _tried(db, lambda db: list(repair.places(db)))
        lost = repair.missing(found, index)
        tracks = {(name, t.ordinal): t for name, lane in index.lanes.items() for t in lane.tracks}

        def write(db: sqlite3.Connection) -> Outcome:
            with transaction(db):
                writer = Transaction(db, self._context)
                writer.declare_again({lane for lane, *_ in lost})
                for lane, ordinal, first, last in lost:
                    writer.declare(lane, tracks[lane, ordinal], first, last, why=f"lost: {_DAMAGED}")
                return writer.finish()

        for name, lane in index.lanes.items():
            there = [place for place in found if place[0] == name]
            lane.bytes = sum(place[4] for place in there)
            lane.oldest_ms = there[0][5] if there else None
        index.apply(await _tried(db, write))
        for lane_name, ordinal, first, last in lost:
            tracks[lane_name, ordinal].settled.add(first, last)
        self.say_lost(sum(last - first + 1 for _, _, first, last in lost), _DAMAGED)


async def _tried(db: Connection, work: Callable[..., T], *args: object) -> T:
    """Run ``work`` in the connection's thread; where it fails, close the connection."""
    try:
        return await db.run(work, *args)
    except BaseException:
        await db.close()
        raise

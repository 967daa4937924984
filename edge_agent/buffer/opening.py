"""Opening the buffer's file: as it is, or with what can be saved of it.

::

    log ends before the mark ─▶ copy of the log kept ─▶ blocks of the log that their checksums prove ─┐
    as it should be ─────────────────────────────────────────────────────────────────────────────────┴▶ start
    SQLite cannot read it ───▶ a new file, with what can be read; the old one is left as it is ───────▶ start

Nothing is deleted: the damaged file, and the log, stay for people to look at. A database of another program, one of a
newer version, and a file that shows nothing of a buffer are refused and left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edge_agent.buffer import repair, salvage
from edge_agent.buffer.connection import APPLICATION_ID, Connection, check_version, connect, read_only, trouble_of
from edge_agent.buffer.directory import Directory, log_of, size
from edge_agent.buffer.mark import Mark
from edge_agent.buffer.salvage import Row
from edge_agent.buffer.sql import SQL
from edge_agent.buffer.start import Found, Start, Started
from waybill.errors import ConfigError, Corrupt, Unavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """A buffer that has started. ``alarm``: what is wrong with what was found, in a sentence; mostly empty."""

    db: Connection
    path: Path
    started: Started
    alarm: str


async def open_file(directory: Directory, mark: Mark | None, synchronous: str, start: Start) -> Opened:
    """Open the current file of ``directory``, making it where there is none, and start in it.

    Raises ConfigError where the file is not a buffer, or a newer one; sqlite3.Error, OSError: disk full, I/O
    error; Unavailable where there is no room to save a damaged file.
    """
    path = directory.current()
    there = size(path) > 0
    found = Found(mark)
    try:
        if size(log_of(path)) and (mark is not None or not there):
            found = await asyncio.to_thread(_look, path, mark)
        db, started = await _begin(path, synchronous, start, found)
    except (sqlite3.Error, Corrupt) as error:
        if trouble_of(error) != "corrupt":
            raise
        identity = salvage.identity(path)
        if identity is not None:
            check_version(path, identity[1])
        if mark is None and (identity is None or identity[0] != APPLICATION_ID):
            raise ConfigError(
                f"{path}: not a readable database ({error}), and nothing in it is of a buffer; it was left as it is:"
                " move it away, or use another --data"
            ) from error
        return await _salvaged(directory, mark, synchronous, start, error)
    alarm = ""
    if found.rows and not there:
        alarm = (
            f"{path} is gone; going on with {len(found.rows)} blocks of messages that its log held;"
            f" {loss_of(started.lost)}, and subscriptions and commands are gone"
        )
    elif started.lost and not started.behind:
        alarm = (
            f"{path} is another one than it was (a file was put in its place), and lacks what was acknowledged;"
            f" {loss_of(started.lost)}"
        )
    elif started.behind:
        what = "is older than it was" if there else "is gone"
        alarm = (
            f"{path} {what}: its last {started.behind} transactions are missing (a log that was damaged or removed, a"
            " file that was put back; a power cut, where only a relaxed lane is concerned);"
            f" {loss_of(started.lost)}, and subscriptions and commands are as they were then"
        )
    if alarm:
        log.error("buffer: %s", alarm)
    return Opened(db, path, started, alarm)


def loss_of(lost: int) -> str:
    """Return a loss of so many messages as a person reads it."""
    return f"up to {lost} messages that were acknowledged to devices are lost and declared"


async def _begin(path: Path, synchronous: str, start: Start, found: Found) -> tuple[Connection, Started]:
    db = await connect(path, synchronous)
    try:
        return db, await db.run(start.run, found)
    except BaseException:
        await db.close()
        raise


def _look(path: Path, mark: Mark | None) -> Found:
    """Compare a file whose log was not moved into it with the mark, before anything touches the log.

    Where it is behind, or gone, keep a copy of the log and take from it what SQLite no longer sees: what its own
    checksums prove.
    """
    epochs: dict[int, int] = {}
    if size(path):
        try:
            with closing(read_only(path)) as db:
                if mark is None or repair.transactions(db) >= mark.transactions:
                    return Found(mark)
                epochs = {ordinal: epoch for ordinal, epoch, _ in db.execute(SQL["epochs"])}
        except sqlite3.OperationalError:  # not for reading alone, or no table yet
            return Found(mark)
        finally:
            path.with_name(path.name + "-shm").unlink(missing_ok=True)
    epochs |= {one.ordinal: one.epoch for one in mark.reached} if mark else {}
    rows = list(salvage.rows(path, epochs, log_only=True))
    with contextlib.suppress(OSError):  # no room for evidence is no reason not to go on
        shutil.copyfile(log_of(path), _free_name(log_of(path)))
    return Found(mark, rows, epochs)


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in range(1, 1000))
    return next(name for name in names if not name.exists())


def _save_undelivered(db: sqlite3.Connection, source: Path, mark: Mark) -> int:
    """Copy from an earlier file what the mark knows to be open: the current one may never have been the buffer's."""
    epochs = {one.ordinal: one.epoch for one in mark.reached}
    found = epochs.copy()
    delivered = {(one.lane, one.ordinal): one.delivered for one in mark.reached}

    def wanted(row: Row) -> bool:
        last = row.first + row.messages - 1
        if found[row.ordinal] != epochs.get(row.ordinal):
            found.clear()  # what another epoch's block proves is not the mark's
            found.update(epochs)
            return False
        return last > delivered.get(row[:2], last)

    return repair.save_blocks(db, source, found, wanted)


async def _salvaged(
    directory: Directory, mark: Mark | None, synchronous: str, start: Start, error: Exception
) -> Opened:
    """Start in a new file, with what can be read of the current one."""
    source = directory.current()
    log.error("buffer: %s cannot be read (%s); what can be saved of it goes into a new file", source, error)
    written, path = directory.successor()
    try:
        db = await connect(written, synchronous)
        try:
            epochs = {one.ordinal: one.epoch for one in mark.reached} if mark else {}
            count = await db.run(repair.save, source, epochs)
            for other in directory.before():
                if mark is not None:
                    count += await db.run(_save_undelivered, other, mark)
            started = await db.run(start.run, Found(mark, salvaged=True))
        finally:
            await db.close()
    except (sqlite3.Error, OSError) as trouble:
        for each in (written, log_of(written)):
            each.unlink(missing_ok=True)
        if trouble_of(trouble) != "full" or directory.ballast():  # that is given up first
            raise
        need = ((size(source) + size(log_of(source))) >> 20) + 1
        raise Unavailable(
            f"{source} is damaged, and its disk has no room for what can be saved of it: make room, up to {need} MiB;"
            " nothing was changed"
        ) from trouble
    directory.promote(written, path)
    alarm = (
        f"{source} was damaged and is left as it is; going on in {path} with {count} blocks of messages that could be"
        f" saved; {loss_of(started.lost)}"
    )
    log.error("buffer: %s", alarm)
    return Opened(await connect(path, synchronous), path, started, alarm)

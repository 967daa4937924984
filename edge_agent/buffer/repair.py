"""B2: what follows an I/O error. Runs in a thread, on files that nobody else has open.

A COMMIT that failed may be on the disk or not, and one failed fsync can make the next one lie. So the file is opened
anew and its whole log moved into the database and synced (``connection.connect``); only if that succeeds the file is
used again. Then the count of transactions in it says whether the failed one is there: if it is, it is durable by now
and counts as committed; if it is not, it is written again. That is the same as deleting what lies above the last seq
whose commit returned and writing it again, and it holds for sessions too. If opening or syncing fails, everything that
can be read is copied into a new file, and the old one is left as it is.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from edge_agent.buffer.connection import checkpoint, transaction
from edge_agent.buffer.index import Index
from edge_agent.buffer.spans import SpanSet
from edge_agent.buffer.sql import SQL

log = logging.getLogger(__name__)

_TABLES: Final = ("sessions", "subscriptions", "queue", "inbound", "retained", "resend", "resend_tail", "outbox")
_STEP: Final = 64
_UNREADABLE: Final = 1000
"""Rows in a row that cannot be read before the rest of a table is given up."""

_Block = tuple[str, int, int, int, int, int, int, bytes, bytes]


def transactions(db: sqlite3.Connection) -> int:
    """Return how many transactions the file has seen."""
    row = db.execute(SQL["transactions"]).fetchone()
    return int(row[0]) if row else 0


def align(db: sqlite3.Connection, index: Index) -> None:
    """Make the file agree with ``index``: its epochs and lanes, and no block above a lane's last seq."""
    lasts = {(name, t.ordinal): t.last for name, lane in index.lanes.items() for t in lane.tracks}
    with transaction(db):
        for name, lane in index.lanes.items():
            for track in lane.tracks:
                db.execute(SQL["ensure_epoch"], (track.ordinal, track.epoch, ""))
                row = (name, track.ordinal, track.last, track.prev_epoch, track.prev_last)
                db.execute(SQL["set_lane"], row)
        db.execute(SQL["ensure_epoch"], (index.ordinal, index.epoch, ""))
        for block, name, ordinal, first, count in db.execute(SQL["block_ids"]).fetchall():
            if first + count - 1 > lasts.get((name, ordinal), 0):
                db.execute(SQL["delete_block"], (block,))
        db.execute(SQL["count_transaction"], (index.transactions,))


Place = tuple[str, int, int, int, int, int]
"""Lane, ordinal, first, count, bytes, wall_ms of a block."""


def places(db: sqlite3.Connection) -> list[Place]:
    """Return where every block is, by lane and in order."""
    return db.execute(SQL["block_places"]).fetchall()


def missing(found: Iterable[Place], index: Index) -> list[tuple[str, int, int, int]]:
    """Return (lane, ordinal, first, last) of what is neither settled nor among the blocks ``found``."""
    held: dict[tuple[str, int], SpanSet] = {}
    for name, ordinal, first, count, _, _ in found:
        held.setdefault((name, ordinal), SpanSet()).add(first, first + count - 1)
    lost: list[tuple[str, int, int, int]] = []
    for name, lane in index.lanes.items():
        for track in lane.tracks:
            there = held.get((name, track.ordinal), SpanSet())
            for first, last in track.settled:
                there.add(first, last)
            at = 1
            while at <= track.last and (gap := there.next_gap(at, track.last)):
                lost.append((name, track.ordinal, *gap))
                at = gap[1] + 1
    return lost


def count_in(source: Path) -> int | None:
    """Return how many transactions a file that is not open has seen; None where that cannot be read."""
    try:
        with closing(_read_only(source)) as db:
            return transactions(db)
    except sqlite3.Error:
        return None


def copy(target: sqlite3.Connection, source: Path, index: Index) -> None:
    """Copy what can be read of ``source`` into ``target``, a new and empty buffer file, and align it with ``index``.

    Raises sqlite3.Error where the target cannot be written.
    """
    with closing(_read_only(source)) as db:
        for table in _TABLES:
            _copy_table(db, target, table)
        step: list[_Block] = []
        for block in _blocks(db):
            step.append(block)
            if len(step) >= _STEP:
                _write(target, step)
                step.clear()
        _write(target, step)
    align(target, index)
    checkpoint(target, "TRUNCATE")


def _read_only(source: Path) -> sqlite3.Connection:
    # mode=ro neither checkpoints nor deletes the log: the source stays as it is
    return sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def _copy_table(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> None:
    rows: list[tuple[object, ...]] = []
    try:
        for row in source.execute(f"SELECT * FROM {table}"):  # noqa: S608 - names of our own
            rows.append(row)  # noqa: PERF402 - what was read before an error counts
    except sqlite3.Error as error:
        log.error("buffer: table %s can be read only in part, %d rows: %s", table, len(rows), error)  # noqa: TRY400
    if rows:
        with transaction(target):
            places = ",".join("?" * len(rows[0]))
            target.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", rows)  # noqa: S608


def _blocks(db: sqlite3.Connection) -> Iterator[_Block]:
    """Yield the blocks that can be read; the reader checks them, as ever."""
    at = failed = 0
    worst: sqlite3.Error | None = None
    while failed < _UNREADABLE:
        try:
            row = db.execute(SQL["block_at_or_after"], (at,)).fetchone()
        except sqlite3.Error as error:
            worst = error
            at += 1
            failed += 1
            continue
        if row is None:
            break
        at, failed = row[0] + 1, 0
        yield row[1:]
    if worst:
        log.error("buffer: not every block could be read: %s", worst)


def _write(target: sqlite3.Connection, blocks: list[_Block]) -> None:
    if blocks:
        with transaction(target):
            target.executemany(SQL["add_block"], blocks)
        checkpoint(target, "PASSIVE")

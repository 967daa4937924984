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
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.buffer import salvage
from edge_agent.buffer.connection import checkpoint, read_only, transaction
from edge_agent.buffer.directory import size
from edge_agent.buffer.index import Index
from edge_agent.buffer.salvage import Row
from edge_agent.buffer.spans import SpanSet
from edge_agent.buffer.sql import SQL
from waybill.errors import Corrupt

log = logging.getLogger(__name__)

_TABLES: Final = (
    "epochs",
    "lanes",
    "losses",
    "sessions",
    "subscriptions",
    "queue",
    "inbound",
    "retained",
    "resend",
    "resend_tail",
    "outbox",
)
_STEP: Final = 64


def transactions(db: sqlite3.Connection) -> int:
    """Return how many transactions the file has seen."""
    row = db.execute(SQL["transactions"]).fetchone()
    return int(row[0]) if row else 0


def check(db: sqlite3.Connection) -> None:
    """Raise Corrupt where a table that the agent will read later is damaged; the blocks have their own checksums."""
    for table in _TABLES:
        (found,) = db.execute(f"PRAGMA quick_check({table})").fetchone()
        if found != "ok":
            raise Corrupt(f"{table}: {found}")
        kinds = [(name, kind.lower()) for _, name, kind, *_ in db.execute(f"PRAGMA table_info({table})")]
        odd = " OR ".join(f"typeof({name}) <> '{kind}'" for name, kind in kinds)
        if db.execute(f"SELECT 1 FROM {table} WHERE {odd} LIMIT 1").fetchone():  # noqa: S608 - names of our own
            raise Corrupt(f"{table}: a row is not what its columns say")


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
        db.execute(SQL["forget_losses"])
        db.executemany(SQL["set_loss"], map(msgspec.structs.astuple, index.losses.values()))
        for block, name, ordinal, first, count in db.execute(SQL["block_ids"]).fetchall():
            if not isinstance(first, int) or not isinstance(count, int):
                raise Corrupt("blocks: a row is damaged")
            if first + count - 1 > lasts.get((name, ordinal), 0):
                db.execute(SQL["delete_block"], (block,))
        db.execute(SQL["count_transaction"], (index.transactions,))


Place = tuple[str, int, int, int, int, int]
"""Lane, ordinal, first, count, bytes, wall_ms of a block."""


_PLACE_TYPES: Final = (str, int, int, int, int, int)


def places(db: sqlite3.Connection) -> Iterator[Place]:
    """Yield where every block is, by lane and in order. Raises Corrupt where a row is not what its columns say."""
    for place in db.execute(SQL["block_places"]):
        if tuple(map(type, place)) != _PLACE_TYPES or place[2] < 1 or place[3] < 1:
            raise Corrupt(f"blocks: a row is damaged: {place!r}")
        yield place


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
        with closing(read_only(source)) as db:
            return transactions(db)
    except sqlite3.Error:
        return None


def copy(target: sqlite3.Connection, source: Path, index: Index) -> None:
    """Copy what can be read of ``source`` into ``target``, a new and empty buffer file, and align it with ``index``.

    Raises sqlite3.Error where the target cannot be written.
    """
    tracks = {(name, track.ordinal): track for name, lane in index.lanes.items() for track in lane.tracks}

    def wanted(row: Row) -> bool:
        track = tracks.get(row[:2])
        return track is not None and track.settled.next_gap(row.first, row.first + row.messages - 1) is not None

    save(target, source, {track.ordinal: track.epoch for track in tracks.values()}, wanted)
    align(target, index)
    checkpoint(target, "TRUNCATE")


def save(
    target: sqlite3.Connection, source: Path, epochs: dict[int, int], wanted: Callable[[Row], bool] = lambda _: True
) -> int:
    """Copy what can be read of ``source`` into ``target``, a new and empty buffer file; return how many blocks.

    Blocks come page by page (:mod:`edge_agent.buffer.salvage`), the rest as far as SQLite gets. ``epochs``: by
    ordinal, as far as known; with those that blocks prove they are the file's. Raises sqlite3.Error where the target
    cannot be written.
    """
    unreadable = ["no table"]
    if size(source):  # else only its log is there
        with closing(read_only(source)) as db:
            unreadable = [said for table in _TABLES if (said := _copy_table(db, target, table))]
    if unreadable:
        log.error("buffer: %s: not everything could be read: %s", source, "; ".join(unreadable))
    return save_blocks(target, source, epochs, wanted)


def save_blocks(target: sqlite3.Connection, source: Path, epochs: dict[int, int], wanted: Callable[[Row], bool]) -> int:
    """Copy blocks alone, and epochs that they prove. See ``save``."""
    count = 0
    step: list[Row] = []
    for row in salvage.rows(source, epochs):
        if wanted(row):
            step.append(row)
            count += 1
        if len(step) >= _STEP:
            _write(target, step)
            step.clear()
    _write(target, step)
    with transaction(target):
        target.executemany(SQL["prove_epoch"], epochs.items())
    return count


_KINDS: Final = {"INTEGER": int, "TEXT": str, "BLOB": bytes}


def _copy_table(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> str:
    """Copy the rows that can be read and are what the columns say; return what is wrong with the rest."""
    columns = {name: _KINDS[kind] for _, name, kind, *_ in target.execute(f"PRAGMA table_info({table})")}
    rows: list[tuple[object, ...]] = []
    names: list[str] = []
    wrong = ""
    odd = 0
    try:
        cursor = source.execute(f"SELECT * FROM {table}")  # noqa: S608 - names of our own
        names = [column[0] for column in cursor.description]
        kinds = [columns[name] for name in names]
        for row in cursor:
            if all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=True)):
                rows.append(row)
            else:
                odd += 1
    except sqlite3.Error as error:
        wrong = f"{table} ({len(rows)} rows were): {error}"
    if rows:
        with transaction(target):
            places = ",".join("?" * len(names))
            # what one row says twice, or against another, is as good as unread
            target.executemany(f"INSERT OR IGNORE INTO {table} ({','.join(names)}) VALUES ({places})", rows)  # noqa: S608
    return wrong or (f"{table}: {odd} rows are damaged" if odd else "")


def _write(target: sqlite3.Connection, blocks: list[Row]) -> None:
    if blocks:
        with transaction(target):
            target.executemany(SQL["salvage_block"], blocks)
        checkpoint(target, "PASSIVE")

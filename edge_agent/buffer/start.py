"""What happens to the file at a start of the agent, in one transaction: E1, and O3's writing down."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Sequence

from edge_agent.buffer.connection import transaction
from edge_agent.buffer.index import Index, LaneIndex, Tail, Track
from edge_agent.buffer.resend import freeze_all, remembered
from edge_agent.buffer.sql import SQL
from waybill.mqtt.state import ResendEntry


def start(
    db: sqlite3.Connection, boot: str, lanes: Iterable[str], window: int
) -> tuple[Index, dict[str, Sequence[ResendEntry]]]:
    """Mint this start's epoch and prune what no frame can name any more; return the index and the resend memories."""
    with transaction(db):
        epochs = {ordinal: (epoch, its_boot) for ordinal, epoch, its_boot in db.execute(SQL["epochs"])}
        newest = max(epochs, default=0)
        memories = remembered(db, newest, epochs[newest][0], window) if newest else {}
        db.execute(SQL["drop_settled_lanes"])
        db.execute(SQL["drop_unused_epochs"])
        epoch = secrets.randbelow(2**63 - 1) + 1
        db.execute(SQL["add_epoch"], (newest + 1, epoch, boot))
        freeze_all(db, memories)
        row = db.execute(SQL["transactions"]).fetchone()
        index = Index(newest + 1, epoch, boot, lanes)
        index.transactions = (row[0] if row else 0) + 1
        db.execute(SQL["count_transaction"], (index.transactions,))
        for lane, ordinal, last, prev_epoch, prev_last in db.execute(SQL["lanes"]):
            its_epoch, its_boot = epochs[ordinal]
            track = Track(ordinal, its_epoch, its_boot, prev_epoch, prev_last, last)
            index.lanes.setdefault(lane, LaneIndex()).tracks.append(track)
        _read_blocks(db, index)
    index.tails = {client: Tail(frozen=True) for client in memories}
    return index, memories


def _read_blocks(db: sqlite3.Connection, index: Index) -> None:
    """Take from the file what is there: bytes, oldest message, and as settled every seq that no block holds."""
    expected: dict[tuple[str, int], int] = {}
    for name, lane in index.lanes.items():
        for track in lane.tracks:
            expected[name, track.ordinal] = 1
    for name, ordinal, first, count, size, wall_ms in db.execute(SQL["block_places"]):
        lane = index.lanes[name]
        lane.bytes += size
        lane.oldest_ms = wall_ms if lane.oldest_ms is None else lane.oldest_ms
        if first > expected[name, ordinal]:
            _track(lane, ordinal).settled.add(expected[name, ordinal], first - 1)
        expected[name, ordinal] = first + count
    for (name, ordinal), following in expected.items():
        track = _track(index.lanes[name], ordinal)
        if following <= track.last:
            track.settled.add(following, track.last)


def _track(lane: LaneIndex, ordinal: int) -> Track:
    return next(track for track in lane.tracks if track.ordinal == ordinal)

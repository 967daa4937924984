"""What happens to the file at a start of the agent, in one transaction: E1, O3's writing down, and what is missing."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_agent.buffer.blocks import intact
from edge_agent.buffer.connection import transaction
from edge_agent.buffer.index import Index, LaneIndex, Tail, Track
from edge_agent.buffer.mark import Mark
from edge_agent.buffer.repair import Place, check, places, transactions
from edge_agent.buffer.resend import freeze_all, remembered
from edge_agent.buffer.salvage import Row
from edge_agent.buffer.sql import SQL
from edge_agent.buffer.writer import Context, Transaction
from waybill.errors import Corrupt
from waybill.mqtt.state import ResendEntry
from waybill.wire import Receipt

_Lane = tuple[str, int]
"""Lane and ordinal: one epoch's part of a lane."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of the buffer beside its file.

    ``mark``: how far it had come at least. ``rows``: blocks that the file may lack, and
    ``epochs`` by ordinal, theirs among them. ``salvaged``: the file was put
    together from what could be read of a damaged one, so that every gap in it may be a loss.
    """

    mark: Mark | None = None
    rows: Sequence[Row] = ()
    epochs: Mapping[int, int] = field(default_factory=dict)
    salvaged: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """``behind``: how many transactions the file was behind its mark.

    ``lost``: how many messages are missing, at most: acknowledged to devices and not by the cloud. Receipts declare
    them.
    """

    context: Context
    memories: dict[str, Sequence[ResendEntry]]
    behind: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """A start of the agent. ``boot``: the boot id. ``clock``: wall time in ms and monotonic time in ns."""

    gateway: str
    boot: str
    lanes: Iterable[str]
    window: int
    clock: Callable[[], tuple[int, int]]

    def run(self, db: sqlite3.Connection, found: Found) -> Started:
        """Mint this start's epoch, declare what is missing, and prune what no frame can name any more.

        Raises sqlite3.Error, and Corrupt where the file's tables are damaged or contradict each other.
        """
        outcome = None
        check(db)
        with transaction(db):
            count = transactions(db)
            behind = max(0, found.mark.transactions - count) if found.mark else 0
            differs = behind or found.rows or found.salvaged or lacks(db, found.mark)
            losses = catch_up(db, found) if differs else []
            boots = {ordinal: (epoch, its_boot) for ordinal, epoch, its_boot in db.execute(SQL["epochs"])}
            newest = max(boots, default=0)
            memories = remembered(db, newest, boots[newest][0], self.window) if newest else {}
            db.execute(SQL["drop_settled_lanes"])
            db.execute(SQL["drop_unused_epochs"])
            epoch = secrets.randbelow(2**63 - 1) + 1
            db.execute(SQL["add_epoch"], (newest + 1, epoch, self.boot))
            freeze_all(db, memories)
            index = Index(newest + 1, epoch, self.boot, self.lanes)
            index.transactions = count + behind + 1
            db.execute(SQL["count_transaction"], (index.transactions,))
            index.losses = {(row[0], row[1], row[4]): Receipt(*row) for row in db.execute(SQL["losses"])}
            for lane, ordinal, last, prev_epoch, prev_last in db.execute(SQL["lanes"]):
                if ordinal not in boots:
                    raise Corrupt(f"lane {lane!r} is of an epoch that the file does not know")
                its_epoch, its_boot = boots[ordinal]
                track = Track(ordinal, its_epoch, its_boot, prev_epoch, prev_last, last)
                index.lanes.setdefault(lane, LaneIndex()).tracks.append(track)
            _take_delivered(index, found.mark)
            _read_blocks(db, index)
            index.tails = {client: Tail(frozen=True) for client in memories}
            context = Context(self.gateway, index, self.window, self.clock)
            if losses:
                writer = Transaction(db, context)
                for loss in losses:
                    writer.receipt(loss)
                outcome = writer.finish()
        if outcome is not None:
            index.apply(outcome)
        return Started(context, memories, behind, sum(loss.count for loss in losses))


def gaps(found: Iterable[Place], lasts: Mapping[_Lane, int]) -> Iterator[tuple[_Lane, int, int]]:
    """Yield (lane, first, last) of what no block holds up to ``lasts``; ``found`` by lane and in order.

    Raises Corrupt where a block is of a lane that is not in ``lasts``.
    """
    expected = dict.fromkeys(lasts, 1)
    for name, ordinal, first, count, _, _ in found:
        lane = name, ordinal
        following = expected.get(lane)
        if following is None:
            raise Corrupt(f"a block of lane {name!r} is of an epoch that the file does not know")
        if first > following:
            yield lane, following, first - 1
        expected[lane] = max(following, first + count)
    for lane, following in expected.items():
        if following <= lasts[lane]:
            yield lane, following, lasts[lane]


def _read_blocks(db: sqlite3.Connection, index: Index) -> None:
    """Take from the file what is there: bytes, oldest message, and as settled every seq that no block holds.

    But what is beside a block whose place is damaged may have been in it. It is settled as far as the cloud is known
    to have it; the rest is found missing when it is to be read.
    """
    tracks = {(name, track.ordinal): track for name, lane in index.lanes.items() for track in lane.tracks}

    def counted() -> Iterator[Place]:
        for place in places(db):
            yield place
            lane = index.lanes[place[0]]
            lane.bytes += place[4]
            lane.oldest_ms = place[5] if lane.oldest_ms is None else lane.oldest_ms

    for lane, first, last in gaps(counted(), {lane: track.last for lane, track in tracks.items()}):
        track = tracks[lane]
        if not _places_hold(db, lane[0], track, first, last):
            last = min(last, track.delivered)  # noqa: PLW2901 - the part of the gap that is none
        if first <= last:
            track.settled.add(first, last)


def _places_hold(db: sqlite3.Connection, name: str, track: Track, first: int, last: int) -> bool:
    """Tell whether the blocks on both sides of a gap are sure to be where, and as long as, their rows say."""
    beside: list[tuple[Any, ...]] = []
    before = db.execute(SQL["last_block_before"], (name, track.ordinal, first)).fetchone()
    if before:
        beside += db.execute(SQL["blocks_from"], (name, track.ordinal, before[0])).fetchmany(1)
    beside += db.execute(SQL["blocks_from"], (name, track.ordinal, last + 1)).fetchmany(1)
    return all(intact(name, track.epoch, at, count, crc, head, body) for _, at, count, _, crc, head, body in beside)


def _take_delivered(index: Index, mark: Mark | None) -> None:
    for one in mark.reached if mark else ():
        if track := index.track(one.lane, one.epoch):
            track.delivered = one.delivered


def lacks(db: sqlite3.Connection, mark: Mark | None) -> bool:
    """Tell whether the mark names what the file never had: it is another one, however many transactions it has seen.

    A start takes no row away without a mark that leaves it out, too; what was delivered is not asked for.
    """
    epochs = {epoch: ordinal for ordinal, epoch, _ in db.execute(SQL["epochs"])}
    lasts = {(lane, ordinal): last for lane, ordinal, last, *_ in db.execute(SQL["lanes"])}
    return any(
        one.last > max(one.delivered, lasts.get((one.lane, epochs.get(one.epoch, 0)), 0))
        for one in (mark.reached if mark else ())
    )


def catch_up(db: sqlite3.Connection, found: Found) -> list[Receipt]:
    """Bring a file up to its mark and to the blocks found; return the receipts of what stays missing.

    Missing is what no block holds, behind what was there already and behind what the cloud is known to have. The
    ledger knows better what the cloud has: for a seq that was delivered the receipt is without effect (B5).
    """
    db.executemany(SQL["ensure_epoch"], [(ordinal, epoch, "") for ordinal, epoch in found.epochs.items()])
    ordinals = {epoch: ordinal for ordinal, epoch, _ in db.execute(SQL["epochs"])}
    rows = {(lane, ordinal): (last, *prev) for lane, ordinal, last, *prev in db.execute(SQL["lanes"])}
    sure: dict[_Lane, int] = {} if found.salvaged else {lane: row[0] for lane, row in rows.items()}
    for one in reversed(found.mark.reached if found.mark else ()):
        ordinal = ordinals.get(one.epoch)
        if ordinal is None:
            ordinal = ordinals[one.epoch] = max(one.ordinal, max(ordinals.values(), default=0) + 1)
            db.execute(SQL["add_epoch"], (ordinal, one.epoch, ""))
        lane = one.lane, ordinal
        last = max(one.last, rows[lane][0] if lane in rows else 0)
        rows[lane] = last, one.prev_epoch, one.prev_last
        sure[lane] = max(one.delivered, sure.get(lane, 0))
    db.executemany(
        SQL["salvage_block"], [row for row in found.rows if row.first + row.messages - 1 > sure.get(row[:2], 0)]
    )
    epochs = {ordinal: epoch for epoch, ordinal in ordinals.items()}
    for name, ordinal, last in db.execute(SQL["block_lasts"]).fetchall():
        if (name, ordinal) in rows:
            known, *prev = rows[name, ordinal]
        else:  # the row is lost: as far as is known
            before = max(((other, row[0]) for (lane, other), row in rows.items() if lane == name and other < ordinal),
                         default=None)  # fmt: skip
            known, prev = 0, [epochs[before[0]], before[1]] if before else [0, 0]
        rows[name, ordinal] = max(last, known), *prev
    for (name, ordinal), (last, prev_epoch, prev_last) in rows.items():
        db.execute(SQL["set_lane"], (name, ordinal, last, prev_epoch, prev_last))
    why = "lost: the buffer's file was damaged" if found.salvaged else "lost: the buffer's file was behind its mark"
    losses: list[Receipt] = []
    for lane, first, last in gaps(places(db), {lane: row[0] for lane, row in rows.items()}):
        first = max(first, sure.get(lane, 0) + 1)  # noqa: PLW2901 - the part of the gap that is a loss
        if first <= last:
            prev_epoch, prev_last = rows[lane][1:]
            count = last - first + 1
            losses.append(Receipt(epochs[lane[1]], lane[0], prev_epoch, prev_last, first, last, count, 0, why))
    return losses

"""One write transaction: what it does to the file, and the :class:`Outcome` that the index takes over afterwards.

Everything here runs in the connection's thread, between BEGIN and COMMIT.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from edge_agent.buffer import changes as sessions
from edge_agent.buffer.blocks import BLOCK_BYTES, checksum, chunk_size, cut, pack
from edge_agent.buffer.index import Gone, Index, Outcome, Tail, Track
from edge_agent.buffer.losses import declare, due
from edge_agent.buffer.port import LOCAL, Chunk, CommandResult, Commit, Own
from edge_agent.buffer.relief import DROPPED, EXPIRED, Age, Part, Relief, Row
from edge_agent.buffer.resend import pack_entries, readable_heads
from edge_agent.buffer.sql import SQL
from edge_agent.lanes import Lane
from waybill.mqtt.codec import publish
from waybill.mqtt.resend import entries_of
from waybill.mqtt.state import Change, ResendEntry, ResendFrozen
from waybill.wire import COMMAND_STATUS_TOPIC, CONTROL_LANE, RECEIPT_TOPIC, CommandStatus, Envelope, Receipt

_json = msgspec.json.Encoder().encode
_MQTT_3_1_1 = 4

ResendEntries = Sequence[ResendEntry]


@dataclass(frozen=True, slots=True)
class Context:
    """What a transaction needs besides the file. ``clock`` returns wall time in ms and monotonic time in ns."""

    gateway: str
    index: Index
    window: int
    clock: Callable[[], tuple[int, int]]


@dataclass(slots=True)
class _Dropped:
    count: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Appended:
    """What a transaction brings to a lane: what is stored, and how much is declared before and behind it."""

    stored: list[tuple[Chunk, int]] = field(default_factory=list)
    before: _Dropped = field(default_factory=_Dropped)
    behind: _Dropped = field(default_factory=_Dropped)
    seen: int = 0


_ALL: Final = (0, 1 << 62)


class Transaction:
    """The statements of one transaction. Call any of the methods, then ``finish`` last."""

    def __init__(self, db: sqlite3.Connection, context: Context, relief: Relief | None = None) -> None:
        """Begin with nothing; without ``relief`` there is room for everything, and nothing expires."""
        self._db = db
        self._relief = relief
        self._context = context
        self._index = context.index
        self.outcome = Outcome()
        self._lanes: dict[str, _Appended] = {}
        self._kept: dict[str, tuple[int, int]] = {}

    # --- what devices and the agent bring ---

    def commit(self, commit: Commit, size: int) -> None:
        """Take in all of ``commit``, which brings about ``size`` bytes; what lanes drop is declared. Raises NoRoom."""
        if self._relief is not None:
            self._kept = self._relief.make_room(self, commit.chunks, size)
        frozen = [change for change in commit.changes if isinstance(change, ResendFrozen)]
        if frozen:
            self._chunks(commit.chunks, frozen)
            self._changes(change for change in commit.changes if not isinstance(change, ResendFrozen))
        else:
            self._chunks(commit.chunks, ())
            self._changes(commit.changes)
        for result in commit.results:
            self.command_result(result)
        for own in commit.own:
            self.own(own)

    def _changes(self, changes: Iterable[Change]) -> None:
        sessions.apply(self._db, changes)

    def _chunks(self, chunks: Sequence[Chunk], frozen: Sequence[ResendFrozen]) -> None:
        due = 0
        for at, chunk in enumerate(chunks):
            while due < len(frozen) and frozen[due].at <= at:
                self._freeze(frozen[due])
                due += 1
            self._chunk(chunk)
        for freeze in frozen[due:]:
            self._freeze(freeze)

    def _chunk(self, chunk: Chunk) -> None:
        start = 0
        tail = self._tail(chunk.client, make=chunk.remembered > 0)
        if tail is not None:
            start = tail.total
            tail.total += chunk.remembered
            tail.low = max(tail.low, start - chunk.keep, tail.total - self._context.window)
        if chunk.lane != LOCAL and self._add(chunk, start):
            if tail is not None and (chunk.remembered or start):
                tail.blocks += 1
        elif tail is not None:  # no block will say what it proved, nor hold what is to be remembered
            entries = entries_of(chunk.raw, chunk.version) if chunk.remembered else ()
            self._keep(chunk.client, start, entries, tail)
            self._set_low(chunk.client, tail)

    def _add(self, chunk: Chunk, start: int) -> bool:
        """Add a chunk to its lane; False where it is declared instead of stored."""
        lane = self._lanes.get(chunk.lane)
        if lane is None:
            lane = self._lanes[chunk.lane] = _Appended()
        begin, end = self._kept.get(chunk.lane, _ALL)
        at, lane.seen = lane.seen, lane.seen + 1
        if begin <= at < end:
            lane.stored.append((chunk, start))
            return True
        dropped = lane.before if at < begin else lane.behind
        dropped.count += chunk.count
        dropped.bytes += chunk_size(chunk)
        return False

    def own(self, own: Own) -> None:
        """Append a message of the agent itself to the control lane."""
        wall_ms, mono_ns = self._context.clock()
        raw = publish(own.topic.encode(), own.payload, 0)
        self._chunk(Chunk(CONTROL_LANE, "", _MQTT_3_1_1, wall_ms, mono_ns, 0, 1, raw))

    def receipt(self, receipt: Receipt) -> None:
        """Declare a loss on the control lane."""
        self.own(Own(RECEIPT_TOPIC, _json(receipt)))

    def declare(self, lane: str, track: Track, first: int, last: int, *, size: int = 0, why: str) -> None:
        """Write the receipt of a loss at once (E5). ``size``: bytes, where known."""
        prev = track.prev_epoch, track.prev_last
        self.receipt(Receipt(track.epoch, lane, *prev, first, last, last - first + 1, size, why))

    def declare_again(self, lanes: Iterable[str]) -> None:
        """Declare what is settled, where what could not be read of ``lanes`` may have been receipts.

        For what was delivered, or declared before, that is without effect: the ledger's first entry wins (B5).
        """
        if CONTROL_LANE in lanes:
            for lane, track, first, last in self._index.settled_elsewhere():
                self.declare(lane, track, first, last, why="declared again: its receipt was damaged")

    # --- commands (C2) ---

    def receive(self, envelope: Envelope, now_ms: int, limit: int, forget_ms: int) -> bool | None:
        """Take a command in, with its ``delivered`` status. False: known; None: the outbox holds ``limit`` ids.

        Ids of commands that expired before ``forget_ms`` are forgotten first.
        """
        self.forget_commands(forget_ms)
        if self._db.execute(SQL["command"], (envelope.id,)).fetchone():
            return False
        if self._db.execute(SQL["commands"]).fetchone()[0] >= limit:
            return None
        row = (envelope.id, envelope.device, envelope.name, envelope.payload, envelope.expires_ms)
        self._db.execute(SQL["add_command"], row)
        self._status(CommandStatus(envelope.id, self._context.gateway, envelope.device, "delivered", now_ms))
        return True

    def command_result(self, result: CommandResult) -> None:
        """Mark a command done and say so, once."""
        row = self._db.execute(SQL["command"], (result.id,)).fetchone()
        if row is None or row[0] != result.device or row[1]:
            return
        self._db.execute(SQL["command_done"], (result.id,))
        done = CommandStatus(result.id, self._context.gateway, result.device, "done", result.at_ms, result.payload)
        self._status(done)

    def forget_commands(self, before_ms: int) -> None:
        """Forget the ids of commands that expired before ``before_ms``."""
        self._db.execute(SQL["forget_commands"], (before_ms,))

    def _status(self, status: CommandStatus) -> None:
        self.own(Own(COMMAND_STATUS_TOPIC, _json(status)))

    # --- what leaves ---

    def settle(self, lane: str, ordinal: int, first: int, last: int) -> None:
        """Delete the blocks that lie wholly within ``first..last``; their resend memory stays (O3)."""
        leaving: dict[str, list[tuple[int, ResendEntries]]] = {}
        for block, size, head in self._db.execute(SQL["blocks_within"], (lane, ordinal, first, last, last)).fetchall():
            self._delete(lane, ordinal, block, size, head, leaving)
        for client, kept in leaving.items():
            self._left(client, kept)

    def _delete(
        self,
        lane: str,
        ordinal: int,
        block: int,
        size: int,
        head: bytes,
        leaving: dict[str, list[tuple[int, ResendEntries]]],
    ) -> None:
        if ordinal == self._index.ordinal:
            self._leave(block, head, leaving)
        self._db.execute(SQL["delete_block"], (block,))
        self.outcome.deleted += 1
        self.outcome.removed[lane] = self.outcome.removed.get(lane, 0) + size
        self.outcome.oldest[lane] = None

    def stored(self, lane: str) -> int:
        """Return the bytes of a lane in the file by now."""
        known = self._index.lanes.get(lane)
        return (known.bytes if known else 0) - self.outcome.removed.get(lane, 0)

    def evict(self, lane: str, part: Part, row: Row, reason: str) -> None:
        """Delete a block, whose resend memory stays (O3), and declare what of it is not settled."""
        block, first, count, size, head = row
        leaving: dict[str, list[tuple[int, ResendEntries]]] = {}
        self._delete(lane, part.track.ordinal, block, size, head, leaving)
        for client, kept in leaving.items():
            self._left(client, kept)
        at, last = first, first + count - 1
        while at <= last and (gap := part.settled.next_gap(at, last)):
            self._lose(lane, part.track, *gap, size * (gap[1] - gap[0] + 1) // count, reason)
            at = gap[1] + 1

    def free(self, size: int) -> None:
        """Evict until about ``size`` bytes are free within the file, whatever the limits say: the disk is full."""
        if self._relief is not None:
            self._relief.free(self, size)

    def expire(self, lane: Lane, age: Age) -> bool:
        """Let go what is older than the lane's TTL; return whether there may be more."""
        return self._relief is not None and self._relief.expire(self, lane, age)

    def _lose(self, lane: str, track: Track, first: int, last: int, size: int, reason: str) -> None:
        gone = self.outcome.gone
        if gone and (gone[-1].lane, gone[-1].track.ordinal, gone[-1].reason) == (lane, track.ordinal, reason):
            before = gone[-1]
            if before.last + 1 == first:
                before.last = last
                before.bytes += size
                return
        gone.append(Gone(lane, track, first, last, size, reason, expired=reason == EXPIRED))

    def say_losses(self) -> None:
        """Put what is declared on the control lane, unless that is full of it."""
        if due(self._index.losses, self._index.waiting(CONTROL_LANE)):
            for loss in self._index.losses.values():
                self.receipt(loss)
            self._db.execute(SQL["forget_losses"])
            self.outcome.losses = {}

    def _leave(self, block: int, head: bytes, leaving: dict[str, list[tuple[int, ResendEntries]]]) -> None:
        """Note what of a block that is about to go must be remembered."""
        body = b""
        at = 0
        for chunk in readable_heads(head):
            if chunk.remembered or chunk.start:
                tail = self._tail(chunk.client, make=True)
                kept = leaving.setdefault(chunk.client, [])
                if tail is not None:
                    tail.blocks -= 1
                    if chunk.start + chunk.remembered > tail.low:
                        body = body or self._db.execute(SQL["block_body"], (block,)).fetchone()[0]
                        kept.append((chunk.start, entries_of(body[at : at + chunk.size], chunk.version)))
            at += chunk.size

    def _left(self, client: str, kept: Sequence[tuple[int, ResendEntries]]) -> None:
        tail = self._tail(client, make=True)
        if tail is None:
            return
        for start, entries in kept:
            self._keep(client, start, entries, tail)
        self._set_low(client, tail)

    def _set_low(self, client: str, tail: Tail) -> None:
        """Write down what is proven, and forget a client of whom nothing is left."""
        self._db.execute(SQL["trim_tail"], (client, tail.low))
        if tail.remembers or tail.blocks:
            self._db.execute(SQL["set_low"], (client, tail.low))
        else:
            self._forget(client)

    # --- resend memory (O3) ---

    def _tail(self, client: str, *, make: bool) -> Tail | None:
        """Return this transaction's copy of a client's counters."""
        tails = self.outcome.tails
        tail = tails.get(client)
        if tail is None:
            known = self._index.tails.get(client) if client not in tails else None
            if known is None and not make:
                return None
            tail = tails[client] = known.copy() if known else Tail()
        return tail

    def _keep(self, client: str, start: int, entries: ResendEntries, tail: Tail) -> None:
        skip = max(0, tail.low - start)
        if skip < len(entries):
            row = (client, start + skip, len(entries) - skip, pack_entries(entries[skip:]))
            self._db.execute(SQL["add_tail"], row)

    def _freeze(self, frozen: ResendFrozen) -> None:
        tail = self._tail(frozen.client, make=True)
        if tail is None:
            return
        tail.low = tail.total
        tail.frozen = bool(frozen.entries)
        self._db.execute(SQL["trim_tail"], (frozen.client, tail.low))
        if tail.frozen or tail.blocks:
            self._db.execute(SQL["set_resend"], (frozen.client, tail.low, pack_entries(frozen.entries)))
        else:
            self._forget(frozen.client)

    def _forget(self, client: str) -> None:
        self._db.execute(SQL["forget_resend"], (client,))
        self.outcome.tails[client] = None

    # --- the end ---

    def set_aside(self, lane: str, track: Track, first: int, size: int) -> None:
        """Move a damaged block out of its lane, where the file still has it: a repair may have come between."""
        place = lane, track.ordinal, first
        self._db.execute(SQL["set_aside"], (track.epoch, *place))
        if not self._db.execute(SQL["delete_place"], place).rowcount:
            return
        self.outcome.removed[lane] = self.outcome.removed.get(lane, 0) + size
        self.outcome.oldest[lane] = None

    def finish(self) -> Outcome:
        """Write the blocks with their numbers (B1) and the transaction's own (B2)."""
        for lane, appended in self._lanes.items():
            self._append(lane, appended)
        self._declare()
        for lane in self.outcome.oldest:
            row = self._db.execute(SQL["oldest_wall_ms"], (lane,)).fetchone()
            self.outcome.oldest[lane] = row[0] if row else None
        self._db.execute(SQL["count_transaction"], (self._index.transactions + 1,))
        return self.outcome

    def _append(self, lane: str, appended: _Appended) -> None:
        track = self._index.upcoming(lane)
        last = self._drop(lane, track, track.last, appended.before)
        stored = 0
        for part in cut(appended.stored, BLOCK_BYTES):
            count, head, body = pack(part)
            crc = checksum(lane, track.epoch, last + 1, count, head, body)
            size = len(head) + len(body)
            row = (lane, track.ordinal, last + 1, count, size, part[0][0].wall_ms, crc, head, body)
            self._db.execute(SQL["add_block"], row)
            last += count
            stored += size
            self.outcome.blocks += 1
        last = self._drop(lane, track, last, appended.behind)
        self.outcome.messages += last - track.last
        self.outcome.added[lane] = stored
        self.outcome.lasts[lane] = last
        known = self._index.lanes.get(lane)
        if known is None or known.oldest_ms is None:
            self.outcome.oldest[lane] = None
        self._db.execute(SQL["set_lane"], (lane, track.ordinal, last, track.prev_epoch, track.prev_last))

    def _drop(self, lane: str, track: Track, last: int, dropped: _Dropped) -> int:
        """Give numbers to what is not stored; return the last one."""
        if dropped.count:
            self._lose(lane, track, last + 1, last + dropped.count, dropped.bytes, DROPPED)
        return last + dropped.count

    def _declare(self) -> None:
        """Write down what is lost, and not said yet (E5)."""
        if not self.outcome.gone:
            return
        losses = self._index.losses.copy() if self.outcome.losses is None else self.outcome.losses
        for gone in self.outcome.gone:
            track, count = gone.track, gone.last - gone.first + 1
            prev = track.prev_epoch, track.prev_last
            loss = Receipt(track.epoch, gone.lane, *prev, gone.first, gone.last, count, gone.bytes, gone.reason)
            key, row = declare(losses, loss)
            losses[key] = row
            self._db.execute(SQL["set_loss"], msgspec.structs.astuple(row))
        self.outcome.losses = losses

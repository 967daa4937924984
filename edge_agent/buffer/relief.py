"""What gives way where there is no room, and what has expired.

In one transaction with the commit that needs the room: lanes with a cap of their own first, then, at a limit of the
whole buffer, lanes that drop, the least urgent first. What was sent and is not acknowledged goes last of all (B5).
Every message that goes is declared (E5). Runs in the connection's thread, on :class:`Part`s, which are copies.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import le
from typing import Final, Protocol

from edge_agent.buffer.blocks import chunk_size, newest_stamp
from edge_agent.buffer.index import Index, Track
from edge_agent.buffer.port import Chunk
from edge_agent.buffer.room import NoRoom, free_bytes
from edge_agent.buffer.spans import SpanSet
from edge_agent.buffer.sql import SQL
from edge_agent.lanes import Lane

EVICTED: Final = "evicted: full"
DROPPED: Final = "dropped: full"
EXPIRED: Final = "expired: ttl"

SLICE: Final = 1 << 20
"""Bytes that one transaction deletes at most beyond what it needs itself: a cap that was lowered is reached bit by
bit, and no commit is held up for long."""

_PAGE: Final = 32
_LOOK: Final = 4096
"""Bytes deleted between two looks at how much room there is."""

_BLOCK: Final = 512
"""What the deletion of a block costs beside its bytes, in bytes."""

Row = tuple[int, int, int, int, bytes]
"""Of a block: id, first, count, bytes, head."""

Age = Callable[[int, int, str], int | None]
"""Wall time (ms) and monotonic time (ns) of a stamp, and its boot → its age in ms; None: who knows."""


@dataclass(frozen=True, slots=True)
class Part:
    """One epoch's part of a lane at the begin of a transaction. ``sent``: read for sending, not settled."""

    track: Track
    settled: SpanSet
    sent: SpanSet

    @classmethod
    def of(cls, track: Track) -> Part:
        """Copy what the event loop goes on changing."""
        return cls(track, track.settled.copy(), track.leased.without(track.settled))


@dataclass(frozen=True, slots=True)
class Policy:
    """Lanes as configured, by name.

    ``drops``: those that drop, the least urgent first. ``eaten``: names of those of which something stored may go.
    """

    lanes: Mapping[str, Lane]
    drops: Sequence[Lane] = field(init=False)
    eaten: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        drops = [lane for lane in self.lanes.values() if lane.when_full != "reject"]
        eaten = [lane.name for lane in self.lanes.values() if lane.ttl_s or lane.when_full == "drop-oldest"]
        object.__setattr__(self, "drops", sorted(drops, key=lambda lane: -lane.priority))
        object.__setattr__(self, "eaten", eaten)

    def refusing(self, index: Index, reserve: int, *, tight: int) -> frozenset[str]:
        """Return the lanes that take nothing at present. ``tight``: bytes that the buffer lacks of its ``reserve``."""

        def stored(lane: Lane) -> int:
            known = index.lanes.get(lane.name)
            return known.bytes if known else 0

        def gives(lane: Lane) -> bool:
            """Tell whether others, less urgent or as urgent, have something to give."""
            return any(
                each.when_full == "drop-oldest" and each.priority >= lane.priority and stored(each) > tight + reserve
                for each in self.drops
            )

        return frozenset(
            lane.name
            for lane in self.lanes.values()
            if lane.when_full == "reject"
            and lane.priority
            and ((lane.max_bytes and stored(lane) >= lane.max_bytes) or (tight and not gives(lane)))
        )


class Loser(Protocol):
    """What relief needs of a transaction."""

    def stored(self, lane: str) -> int:
        """Return the bytes of a lane in the file by now."""

    def evict(self, lane: str, part: Part, row: Row, reason: str) -> None:
        """Delete a block and declare what of it is not settled."""


class Relief:
    """Makes room in one transaction. ``lacking``: bytes to come → bytes that must go before they fit, and why."""

    def __init__(
        self,
        db: sqlite3.Connection,
        policy: Policy,
        parts: Mapping[str, Sequence[Part]],
        lacking: Callable[[int], tuple[int, str]] | None,
    ) -> None:
        """Begin. ``lacking`` None: there is room for whatever comes."""
        self._db = db
        self._policy = policy
        self._parts = parts
        self._lacking = lacking or (lambda _: (0, ""))

    def make_room(self, by: Loser, chunks: Sequence[Chunk], need: int) -> dict[str, tuple[int, int]]:
        """Make room for ``chunks``, and ``need`` bytes in all.

        Returns which chunks of a lane are to be stored, of those that do not fit whole: from, to. The others are to be
        declared. Raises NoRoom where nothing more gives way.
        """
        sizes: dict[str, list[int]] = {}
        if self._policy.drops:
            for chunk in chunks:
                sizes.setdefault(chunk.lane, []).append(chunk_size(chunk))
        kept: dict[str, tuple[int, int]] = {}
        for lane in self._policy.drops:
            if lane.max_bytes and lane.name in sizes:
                over = by.stored(lane.name) + sum(sizes[lane.name]) - lane.max_bytes
                if over > 0:
                    kept[lane.name] = self._fit(by, lane, sizes[lane.name], over)
        for name, (begin, end) in kept.items():
            need -= sum(sizes[name]) - sum(sizes[name][begin:end])
        short, why = self._lacking(max(1, need))
        if short:
            need = self._give_way(by, sizes, kept, max(1, need))
            if need < 0:
                raise NoRoom(why)
        return kept

    def _fit(self, by: Loser, lane: Lane, sizes: Sequence[int], over: int) -> tuple[int, int]:
        """Make room below a lane's own cap."""
        begin, end = 0, len(sizes)
        if lane.when_full == "drop-oldest":
            most = min(over, sum(sizes) + SLICE)
            freed = self._evict(by, lane.name, partial(le, most), sent=False)
            if freed < most:
                freed += self._evict(by, lane.name, partial(le, most - freed), sent=True)
            over = 0 if freed >= most else over - freed
            while over > 0 and begin < end:
                over -= sizes[begin]
                begin += 1
        while over > 0 and end > begin:
            end -= 1
            over -= sizes[end]
        return begin, end

    def _give_way(
        self, by: Loser, sizes: Mapping[str, Sequence[int]], kept: dict[str, tuple[int, int]], need: int
    ) -> int:
        """Make room in the whole buffer, the least urgent lane first; return what is needed then, -1: no room."""
        freed = 0

        def enough(more: int) -> bool:
            # what is dropped whole takes no room, even where a cap that was lowered is below what is stored
            return need <= 1 or freed + more >= 2 * need + SLICE or not self._lacking(need)[0]

        for lane in self._policy.drops:
            name = lane.name
            if lane.when_full == "drop-oldest":
                freed += self._evict(by, name, enough, sent=False)
            begin, end = kept.get(name, (0, len(sizes.get(name, ()))))
            while begin < end and not enough(0):
                if lane.when_full == "drop-oldest":
                    need -= sizes[name][begin]
                    begin += 1
                else:
                    end -= 1
                    need -= sizes[name][end]
                need = max(1, need)
                kept[name] = begin, end
            if enough(0):
                return need
        for lane in self._policy.drops:
            if lane.when_full == "drop-oldest":
                freed += self._evict(by, lane.name, enough, sent=True)
        return need if enough(0) else -1

    def free(self, by: Loser, size: int) -> None:
        """Delete until about ``size`` bytes are free within the file."""
        size -= free_bytes(self._db)
        for sent in (False, True):
            for lane in self._policy.drops:
                if size > 0 and lane.when_full == "drop-oldest":
                    size -= self._evict(by, lane.name, partial(le, size), sent=sent)

    def expire(self, by: Loser, lane: Lane, age: Age) -> bool:
        """Delete what is older than the lane's TTL and not in flight; return whether there may be more."""
        freed = 0
        for part in self._parts.get(lane.name, ()):
            for row in self._blocks(lane.name, part, sent=False):
                if not expired(row[4], part.track, lane, age):
                    break
                if freed >= SLICE:
                    return True
                by.evict(lane.name, part, row, EXPIRED)
                freed += row[3] + _BLOCK
        return False

    def has_expired(self, lane: Lane, age: Age) -> bool:
        """Tell whether :meth:`expire` has something to do."""
        return any(
            expired(row[4], part.track, lane, age)
            for part in self._parts.get(lane.name, ())
            for row in islice(self._blocks(lane.name, part, sent=False), 1)
        )

    def _evict(self, by: Loser, lane: str, enough: Callable[[int], bool], *, sent: bool) -> int:
        """Delete the oldest blocks of a lane until that is ``enough``; return the bytes deleted."""
        freed = looked = 0
        for part in self._parts.get(lane, ()):
            for row in self._blocks(lane, part, sent=sent):
                if not freed or freed - looked >= _LOOK:
                    looked = freed
                    if enough(freed):
                        return freed
                by.evict(lane, part, row, EVICTED)
                freed += row[3]
        return freed

    def _blocks(self, lane: str, part: Part, *, sent: bool) -> Iterator[Row]:
        """Yield the blocks of a part, oldest first; without ``sent`` none that holds what is in flight.

        The last one may be deleted before the next is asked for.
        """
        at = 0
        while rows := self._db.execute(SQL["oldest_blocks"], (lane, part.track.ordinal, at, _PAGE)).fetchall():
            for row in rows:
                first, last = row[1], row[1] + row[2] - 1
                busy = None if sent else part.sent.overlapping(first, last)
                if busy:
                    at = max(busy[1], first)
                    break
                at = first
                yield row


def expired(head: bytes, track: Track, lane: Lane, age: Age) -> bool:
    """Tell whether the newest message of a block is older than the lane's TTL; in doubt it is not."""
    stamp = newest_stamp(head)
    old = age(*stamp, track.boot) if stamp else None
    return old is not None and old > lane.ttl_s * 1000

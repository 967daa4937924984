"""Whether what gateways declare lost is what is missing of their vehicles' messages. Pure.

A message that did not arrive has no number of its gateway's that anybody could read. What is known is where it belongs:
a vehicle's messages get their gateway's numbers in the order in which they were published, so the number of a missing
one lies between those of its neighbours that arrived. A :class:`Slot` is such a run of missing messages with the
numbers between which it lies. Each declared number stands for one message; each missing message needs one.

So two matchings of numbers and slots decide it; where each side can be served, both can at once (Mendelsohn, Dulmage):

- each acknowledged message that is missing gets a declared number that fits: those that get none are lost;
- each declared number gets a missing message that fits: those that get none were declared for nothing.

Numbers on a line and slots that are intervals of it: taking for each number, in order, the open slot that closes first
leaves as few unmatched as can be.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from fleet_simulator.numbers import Bits

CONTROL: Final = "control"
"""The lane of the agent's own messages: no vehicle's."""

FAR: Final = 1 << 120
_EPOCH: Final = 1 << 64  # positions of an epoch's numbers on the line of its lane

Span = tuple[int, int]
Name = tuple[str, int, str]
"""Gateway, epoch, lane."""


class LaneAudit(msgspec.Struct, frozen=True):
    """What matters of an entry of ``waybill cloud audit --json``; see there."""

    gateway: str
    epoch: int
    lane: str
    last: int
    delivered: int
    dropped: int
    reasons: dict[str, int]
    dead: int
    pending: int
    missing_count: int
    missing: tuple[Span, ...] = ()
    dropped_spans: tuple[Span, ...] = ()
    dead_spans: tuple[Span, ...] = ()

    @property
    def name(self) -> Name:
        """Whose entry it is."""
        return self.gateway, self.epoch, self.lane

    @property
    def gone(self) -> int:
        """Messages that are declared not to come: dropped, or dead letters."""
        return self.dropped + self.dead

    @property
    def spans(self) -> list[Span]:
        """The numbers of these, as far as the audit keeps them, in order."""
        return sorted((*self.dropped_spans, *self.dead_spans))

    @property
    def exact(self) -> bool:
        """Whether all of them are in ``spans``."""
        return _total(self.spans) == self.gone


class Slot(msgspec.Struct):
    """Missing messages ``first`` to ``last`` of a stream: ``must`` acknowledged ones and ``may`` others.

    ``lane``: of the gateway, None where nothing of the stream arrived. They lie after ``after`` and before ``before``,
    each (epoch, number) in that lane; None: open on that side. ``lost``: set by :func:`settle`.
    """

    vehicle: str
    stream: str
    gateway: str
    first: int
    last: int
    must: int
    may: int
    lane: str | None = None
    after: Span | None = None
    before: Span | None = None
    lost: int = 0


class Account(msgspec.Struct, frozen=True):
    """What a gateway's declarations came to. ``for_nothing``: numbers declared that no missing message fits."""

    gateway: str
    declared: int
    reasons: dict[str, int]
    missing: int
    lost: int
    for_nothing: int
    exact: bool


def settle(audits: Sequence[LaneAudit], slots: Iterable[Slot]) -> list[Account]:
    """Match what is declared with what is missing, gateway by gateway; each slot's ``lost`` is set.

    ``audits`` of one lane stand in the order of their epochs, as the audit gives them.
    """
    by_gateway: dict[str, list[Slot]] = {}
    for slot in slots:
        by_gateway.setdefault(slot.gateway, []).append(slot)
    found = []
    for gateway in sorted({*by_gateway, *(one.gateway for one in audits)}):
        mine = [one for one in audits if one.gateway == gateway and one.lane != CONTROL]
        theirs = by_gateway.get(gateway, [])
        short = _serve(mine, theirs, "must")
        for slot, lost in short.slots:
            slot.lost = lost
        reasons: dict[str, int] = {}
        for one in mine:
            for reason, count in (*one.reasons.items(), ("dead letter", one.dead)):
                if count:
                    reasons[reason] = reasons.get(reason, 0) + count
        found.append(
            Account(
                gateway,
                sum(one.gone for one in mine),
                reasons,
                sum(slot.must for slot in theirs),
                sum(lost for _, lost in short.slots),
                _serve(mine, theirs, "both").numbers,
                all(one.exact for one in mine),
            )
        )
    return found


class _Left(msgspec.Struct):
    """What got no partner."""

    slots: list[tuple[Slot, int]]
    numbers: int


def _serve(audits: Sequence[LaneAudit], slots: Sequence[Slot], want: str) -> _Left:
    """Match as many as can be; ``want``: ``must`` for acknowledged messages alone, ``both`` for the others, too."""

    def size(slot: Slot) -> int:
        return slot.must if want == "must" else slot.must + slot.may

    numbers = 0
    left: list[tuple[Slot, int]] = []
    lanes = {one.lane for one in audits}
    anywhere = [slot for slot in slots if slot.lane not in lanes and size(slot)]
    for lane in sorted(lanes):
        epochs = [one for one in audits if one.lane == lane]
        rank = {one.epoch: at for at, one in enumerate(epochs)}
        points = [
            (rank[one.epoch] * _EPOCH + first, rank[one.epoch] * _EPOCH + last)
            for one in epochs
            for first, last in one.spans
        ]
        open_slots: list[tuple[int, int, int, Slot]] = []
        for slot in slots:
            if slot.lane == lane and size(slot):
                low = _place(slot.after, rank, -1)
                open_slots.append((low, _place(slot.before, rank, FAR), size(slot), slot))
        short, over = match(points, open_slots)
        # Of what an entry counts and does not name the number may be any.
        loose = sum(one.gone - _total(one.spans) for one in epochs)
        for slot, count in short:
            served = min(count, loose)
            loose -= served
            if count > served:
                left.append((slot, count - served))
        numbers += over + loose
    for slot in anywhere:
        served = min(size(slot), numbers)
        numbers -= served
        if size(slot) > served:
            left.append((slot, size(slot) - served))
    return _Left(left, numbers)


def _place(known: Span | None, rank: Mapping[int, int], default: int) -> int:
    """Return where a number stands on its lane's line; an epoch that the audit forgot leaves that side open."""
    if known is None or known[0] not in rank:
        return default
    return rank[known[0]] * _EPOCH + known[1]


def match(points: Sequence[Span], slots: Iterable[tuple[int, int, int, Slot]]) -> tuple[list[tuple[Slot, int]], int]:
    """Match points of a line with slots (low, high, size): a slot takes points between its ends, both excluded.

    ``points``: ranges in order. Returns the slots that stay short with by how much, and how many points are left over.
    """
    coming = sorted(slots, key=lambda slot: slot[0])
    open_slots: list[tuple[int, int, int, Slot]] = []  # high, order, what it still takes
    short: list[tuple[Slot, int]] = []
    over = order = at = 0
    for first, last in points:
        now = first
        while now <= last:
            while at < len(coming) and coming[at][0] < now:
                _, high, size, slot = coming[at]
                heapq.heappush(open_slots, (high, order, size, slot))
                at, order = at + 1, order + 1
            while open_slots and open_slots[0][0] <= now:
                _, _, size, slot = heapq.heappop(open_slots)
                short.append((slot, size))
            # Nothing changes until the next slot opens.
            until = min(last, coming[at][0]) if at < len(coming) else last
            if not open_slots:
                over += until - now + 1
                now = until + 1
                continue
            high, number, size, slot = heapq.heappop(open_slots)
            taken = min(size, until - now + 1, high - now)
            if size > taken:
                heapq.heappush(open_slots, (high, number, size - taken, slot))
            now += taken
    short += [(slot, size) for _, _, size, slot in open_slots]
    short += [(slot, size) for _, _, size, slot in coming[at:]]
    return short, over


class Disagreement(msgspec.Struct, frozen=True):
    """A gateway's lane whose numbers are not what the audit says of them; ``text`` names number and record."""

    lane: str
    count: int
    text: str


def compare(audits: Sequence[LaneAudit], seen: Mapping[Name, Bits]) -> Iterator[Disagreement]:
    """Yield where the numbers that arrived are not those that the ledger of the cloud counts as delivered.

    The control lane's are not looked for: they are no vehicle's. ``seen``: of all topics that vehicles' messages are
    routed to.
    """
    known = set()
    for one in audits:
        known.add(one.name)
        if one.lane == CONTROL or one.gateway.startswith("node:"):
            continue
        title = f"{one.gateway}/{one.epoch}/{one.lane}"
        there = seen.get(one.name) or Bits()
        if one.missing_count:
            yield Disagreement(title, one.missing_count, f"the audit misses {one.missing_count}: {_said(one.missing)}")
        for first, last in one.spans:
            both = sum(number in there for number in range(first, last + 1)) if there.count else 0
            if both:
                yield Disagreement(title, both, f"{both} of {first} to {last} are declared lost, and in the topic")
        if there.count < one.delivered:
            gone = list(_outside(there.missing(one.last), [*one.spans, *one.missing]))
            which = f"; not there: {_said(gone)}" if one.exact and not one.pending else ""
            count = one.delivered - there.count
            yield Disagreement(title, count, f"{one.delivered} were routed, {there.count} are in the topics{which}")
        elif there.count > one.delivered:
            count = there.count - one.delivered
            yield Disagreement(title, count, f"{there.count} are in the topics, {one.delivered} were routed")
    for name, there in seen.items():
        if name not in known and not name[0].startswith("node:"):
            title = "/".join(map(str, name))
            yield Disagreement(
                title, there.count, f"{there.count} are in the topics, and the audit does not know of it"
            )


def _outside(ranges: Iterable[Span], others: Iterable[Span]) -> Iterator[Span]:
    """Yield what of ``ranges`` is in none of ``others``; both in order but for ``others``."""
    taken = sorted(others)
    for first, last in ranges:
        start = first
        for low, high in taken:
            if high < start or low > last:
                continue
            if low > start:
                yield start, low - 1
            start = high + 1
        if start <= last:
            yield start, last


def _total(spans: Iterable[Span]) -> int:
    return sum(last - first + 1 for first, last in spans)


def _said(spans: Sequence[Span], most: int = 4) -> str:
    words = [f"{first}" if first == last else f"{first} to {last}" for first, last in spans[:most]]
    return ", ".join(words) + (", …" if len(spans) > most else "")

"""The verdict: what the vehicles had acknowledged, compared with what was read back. Pure, and small in memory.

Sequence numbers are the vehicles' own, counted from 1 and carried in the payload, so nothing that Waybill does can
make up for a message that is missing, doubled or out of place. Both sides are kept as ranges: memory grows with the
gaps, not with the messages.

What makes it FAIL
    lost          acknowledged to the vehicle and not in the topic
    duplicated    a vehicle's number is in the topic a second time
    out_of_order  a number lower than one of the same vehicle before it in the topic
    misplaced     the key is not the vehicle, or the vehicle is in two partitions (where nothing orders it)
    reused        one ``ce_id`` on two different messages
    unreadable    a record without vehicle and number: it does not belong there

A message that was never acknowledged may be there or not: it is counted in ``unacked`` and in ``delivered``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

EXAMPLES: Final = 20
"""How many findings are told in words; all are counted."""


class Ranges:
    """A set of integers, kept as sorted disjoint closed ranges."""

    def __init__(self) -> None:
        """Start empty."""
        self._first: list[int] = []
        self._last: list[int] = []
        self.count = 0

    def add(self, number: int) -> bool:
        """Add ``number``; return False where it was there already."""
        at = bisect_right(self._first, number) - 1
        if at >= 0 and number <= self._last[at]:
            return False
        left = at >= 0 and self._last[at] == number - 1
        right = at + 1 < len(self._first) and self._first[at + 1] == number + 1
        if left and right:
            self._last[at] = self._last.pop(at + 1)
            del self._first[at + 1]
        elif left:
            self._last[at] = number
        elif right:
            self._first[at + 1] = number
        else:
            self._first.insert(at + 1, number)
            self._last.insert(at + 1, number)
        self.count += 1
        return True

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._first, number) - 1
        return at >= 0 and number <= self._last[at]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges (first, last) in order."""
        return zip(self._first, self._last, strict=True)

    def minus(self, other: Ranges) -> Iterator[tuple[int, int]]:
        """Yield the ranges of what is here and not in ``other``, in order."""
        theirs = list(other)
        at = 0
        for first, last in self:
            while at < len(theirs) and theirs[at][1] < first:
                at += 1
            start, look = first, at
            while look < len(theirs) and theirs[look][0] <= last:
                if start < theirs[look][0]:
                    yield start, theirs[look][0] - 1
                start = theirs[look][1] + 1
                look += 1
            if start <= last:
                yield start, last


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome; every number counts messages. ``examples``: the first findings, in words."""

    acked: int
    delivered: int
    lost: int
    duplicated: int
    out_of_order: int
    misplaced: int
    reused: int
    unreadable: int
    unacked: int
    examples: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything acknowledged is there once and in order; of nothing at all nothing is proven."""
        wrong = self.lost + self.duplicated + self.out_of_order + self.misplaced + self.reused + self.unreadable
        return wrong == 0 and self.acked > 0

    def line(self, command: str | None = None) -> str:
        """Return the one line ``verdict: PASS delivered=N lost=0 duplicated=0 out_of_order=0 command=ok``.

        ``command``: ``ok`` or what went wrong with it; None leaves it out.
        """
        word = "PASS" if self.passed and command in (None, "ok") else "FAIL"
        text = (
            f"verdict: {word} delivered={self.delivered} lost={self.lost} duplicated={self.duplicated} "
            f"out_of_order={self.out_of_order}"
        )
        return text if command is None else f"{text} command={command}"


@dataclass(slots=True)
class _Vehicle:
    acked: Ranges = field(default_factory=Ranges)
    seen: Ranges = field(default_factory=Ranges)
    highest: int = 0
    partition: int | None = None


class Comparison:
    """Takes what was acknowledged and what is read back, in any mixture, and judges at the end.

    Records of one partition must be given in the order of their offsets.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._vehicles: dict[str, _Vehicle] = {}
        self._ids: dict[str, Ranges] = {}
        self._duplicated = self._out_of_order = self._misplaced = self._reused = self._unreadable = 0
        self._examples: list[str] = []

    def acked(self, vehicle: str, seq: int) -> None:
        """Note that ``vehicle`` saw its message ``seq`` acknowledged."""
        self._of(vehicle).acked.add(seq)

    def read(self, vehicle: str, seq: int, *, key: str | None, partition: int, ce_id: str) -> None:
        """Note a record read back. ``ce_id``: ``gateway/epoch/lane/seq``."""
        one = self._of(vehicle)
        said = f"{vehicle} seq {seq} (ce_id {ce_id}, partition {partition})"
        new_id = self._new_id(ce_id)
        if key != vehicle or one.partition not in (None, partition):
            self._misplaced += 1
            self._tell(f"misplaced: {said} with key {key!r}, the vehicle's first record in partition {one.partition}")
        one.partition = partition if one.partition is None else one.partition
        if not one.seen.add(seq):
            self._duplicated += 1
            self._tell(f"duplicated: {said}, {'another ce_id' if new_id else 'the same ce_id'} as before")
            return
        if not new_id:
            self._reused += 1
            self._tell(f"reused: {said}: another message has this ce_id")
        if seq < one.highest:
            self._out_of_order += 1
            self._tell(f"out of order: {said} after seq {one.highest}")
        one.highest = max(one.highest, seq)

    def unreadable(self, where: str) -> None:
        """Note a record from which no vehicle and number could be read."""
        self._unreadable += 1
        self._tell(f"unreadable: {where}")

    def verdict(self) -> Verdict:
        """Judge what was noted so far."""
        lost, examples = 0, list(self._examples)
        for name, one in self._vehicles.items():
            for first, last in one.acked.minus(one.seen):
                lost += last - first + 1
                if len(examples) < EXAMPLES:
                    examples.append(f"lost: {name} seq {first}" + (f" to {last}" if last > first else ""))
        acked = sum(one.acked.count for one in self._vehicles.values())
        delivered = sum(one.seen.count for one in self._vehicles.values())
        return Verdict(
            acked=acked,
            delivered=delivered,
            lost=lost,
            duplicated=self._duplicated,
            out_of_order=self._out_of_order,
            misplaced=self._misplaced,
            reused=self._reused,
            unreadable=self._unreadable,
            unacked=delivered - (acked - lost),
            examples=tuple(examples),
        )

    def _of(self, vehicle: str) -> _Vehicle:
        found = self._vehicles.get(vehicle)
        if found is None:
            found = self._vehicles[vehicle] = _Vehicle()
        return found

    def _new_id(self, ce_id: str) -> bool:
        lane, _, number = ce_id.rpartition("/")
        if not (lane and number.isdigit()):
            self._tell(f"ce_id {ce_id!r} is not gateway/epoch/lane/seq")
            self._reused += 1
            return True
        ranges = self._ids.get(lane)
        if ranges is None:
            ranges = self._ids[lane] = Ranges()
        return ranges.add(int(number))

    def _tell(self, finding: str) -> None:
        if len(self._examples) < EXAMPLES:
            self._examples.append(finding)

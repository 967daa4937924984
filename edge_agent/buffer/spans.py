"""A set of sequence numbers as closed intervals: what of a lane is settled. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class SpanSet:
    """Disjoint closed intervals that do not touch, in order. Adding costs O(log n) and what it swallows."""

    __slots__ = ("_firsts", "_lasts", "total")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self.total = 0
        """How many numbers are in the set."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._firsts, self._lasts, strict=True))

    def __len__(self) -> int:
        return len(self._firsts)

    def copy(self) -> SpanSet:
        """Return one with the same numbers."""
        other = SpanSet()
        other._firsts, other._lasts, other.total = self._firsts.copy(), self._lasts.copy(), self.total
        return other

    def without(self, other: SpanSet) -> SpanSet:
        """Return the numbers that are not in ``other``."""
        left = SpanSet()
        for first, last in self:
            at = first
            while at <= last and (gap := other.next_gap(at, last)):
                left.add(*gap)
                at = gap[1] + 1
        return left

    def overlapping(self, first: int, last: int) -> tuple[int, int] | None:
        """Return the first interval that has a number of ``first..last``; None where none has."""
        at = bisect_left(self._lasts, first)
        return (self._firsts[at], self._lasts[at]) if at < len(self) and self._firsts[at] <= last else None

    def covering(self, first: int, last: int) -> tuple[int, int]:
        """Return the interval that would hold ``first..last`` if they were added."""
        low, high = self._touching(first, last)
        if low < high:
            return min(first, self._firsts[low]), max(last, self._lasts[high - 1])
        return first, last

    def add(self, first: int, last: int) -> tuple[int, int] | None:
        """Add ``first..last``; return the interval that holds it now, or None where it was there before."""
        low, high = self._touching(first, last)
        if low < high and self._firsts[low] <= first and last <= self._lasts[low]:
            return None
        first, last = self.covering(first, last)
        swallowed = sum(b - a + 1 for a, b in zip(self._firsts[low:high], self._lasts[low:high], strict=True))
        self._firsts[low:high] = [first]
        self._lasts[low:high] = [last]
        self.total += last - first + 1 - swallowed
        return first, last

    def _touching(self, first: int, last: int) -> tuple[int, int]:
        """Return the slice of intervals that overlap or touch ``first..last``."""
        return bisect_left(self._lasts, first - 1), bisect_right(self._firsts, last + 1)

    def next_gap(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the first run of numbers within ``start..end`` that are not in the set; None where all are."""
        at = bisect_left(self._lasts, start)
        if at < len(self._firsts) and self._firsts[at] <= start:
            start = self._lasts[at] + 1
            at += 1
        if start > end:
            return None
        return start, min(end, self._firsts[at] - 1) if at < len(self._firsts) else end

    def last_gap(self, end: int) -> tuple[int, int] | None:
        """Return the last run of numbers within ``1..end`` that are not in the set; None where all are."""
        at = bisect_right(self._firsts, end) - 1
        if at >= 0 and self._lasts[at] >= end:
            end = self._firsts[at] - 1
            at -= 1
        if end < 1:
            return None
        return (self._lasts[at] + 1 if at >= 0 else 1), end

"""A set of sequence numbers as closed intervals: what the ledger keeps instead of a row a message. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

Interval = tuple[int, int]
"""``(first, last)``, both inclusive."""


class Intervals:
    """A set of integers ≥ 1, kept as sorted intervals that neither overlap nor touch.

    ``len()`` is the number of intervals, ``count`` that of the integers in them.
    """

    __slots__ = ("_firsts", "_lasts", "count")

    def __init__(self, intervals: Sequence[Interval] = ()) -> None:
        """Start with ``intervals``, in any order."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self.count = 0
        for first, last in intervals:
            self.add(first, last)

    def __len__(self) -> int:
        return len(self._firsts)

    def __iter__(self) -> Iterator[Interval]:
        return zip(self._firsts, self._lasts, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self._firsts == other._firsts and self._lasts == other._lasts

    __hash__ = None  # type: ignore[assignment] # mutable

    def __repr__(self) -> str:
        return f"Intervals({list(self)!r})"

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    @property
    def first(self) -> int:
        """The smallest number, 0 where the set is empty."""
        return self._firsts[0] if self._firsts else 0

    @property
    def last(self) -> int:
        """The largest number, 0 where the set is empty."""
        return self._lasts[-1] if self._lasts else 0

    def copy(self) -> Intervals:
        """Return an independent copy."""
        twin = Intervals()
        twin._firsts = self._firsts.copy()
        twin._lasts = self._lasts.copy()
        twin.count = self.count
        return twin

    def add(self, first: int, last: int) -> None:
        """Add ``first..last``; what is there already stays once."""
        firsts, lasts = self._firsts, self._lasts
        if lasts and lasts[-1] == first - 1:  # the common case: a lane goes on where it stopped
            lasts[-1] = last
            self.count += last - first + 1
            return
        low = bisect_left(lasts, first - 1)
        high = bisect_right(firsts, last + 1)
        count = self.count - sum(map(int.__sub__, lasts[low:high], firsts[low:high])) - (high - low)
        if low < high:
            first = min(first, firsts[low])
            last = max(last, lasts[high - 1])
        firsts[low:high] = [first]
        lasts[low:high] = [last]
        self.count = count + last - first + 1

    def missing(self, first: int, last: int) -> list[Interval]:
        """Return what of ``first..last`` is not in the set, in order."""
        gaps: list[Interval] = []
        firsts, lasts = self._firsts, self._lasts
        at = bisect_left(lasts, first)
        while first <= last:
            if at == len(firsts) or firsts[at] > last:
                gaps.append((first, last))
                break
            if firsts[at] > first:
                gaps.append((first, firsts[at] - 1))
            first = lasts[at] + 1
            at += 1
        return gaps

    def touches(self, first: int, last: int) -> bool:
        """Tell whether adding ``first..last`` would make no interval more."""
        at = bisect_left(self._lasts, first - 1)
        return at < len(self._firsts) and self._firsts[at] <= last + 1

    def reach(self, base: int) -> int:
        """Return the last number of the run that begins at ``base + 1``; ``base`` where that is not in the set."""
        at = bisect_right(self._firsts, base + 1) - 1
        return max(base, self._lasts[at]) if at >= 0 else base

    def drop_oldest(self, keep: int) -> int:
        """Forget all but the last ``keep`` intervals; return how many numbers were forgotten."""
        excess = max(0, len(self) - keep)
        gone = sum(map(int.__sub__, self._lasts[:excess], self._firsts[:excess])) + excess
        del self._firsts[:excess], self._lasts[:excess]
        self.count -= gone
        return gone

    def drop_below(self, number: int) -> None:
        """Forget everything below ``number``."""
        self.drop_oldest(len(self) - bisect_left(self._lasts, number))
        if self._firsts and self._firsts[0] < number:
            self.count -= number - self._firsts[0]
            self._firsts[0] = number

    def pack(self) -> list[int]:
        """Return the set as ``[first, length-1, gap, length-1, gap, …]``: small numbers, short in MessagePack."""
        packed: list[int] = []
        end = 0
        for first, last in self:
            packed += (first - end, last - first)
            end = last
        return packed

    @classmethod
    def unpack(cls, packed: Sequence[int]) -> Intervals:
        """Read what ``pack`` wrote. Raises ValueError where that is no such list."""
        made = cls()
        end = 0
        for gap, length in zip(packed[::2], packed[1::2], strict=True):
            if gap < 1 or length < 0:
                msg = "intervals out of order"
                raise ValueError(msg)
            first = end + gap
            end = first + length
            made._firsts.append(first)
            made._lasts.append(end)
            made.count += length + 1
        return made

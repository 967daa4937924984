"""Sets of numbers that count from 1: as ranges, where most are there, and as bits, where any may be missing. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

_CHUNK: Final = 8192
_BYTES: Final = _CHUNK // 8
_FULL: Final = b"\xff" * _BYTES
_BITS: Final = tuple(1 << bit for bit in range(8))
_MOST: Final = 1 << 20


class TooMany(Exception):
    """More chunks of numbers than a set of bits takes: the numbers are strewn, as no program counts."""


class Ranges:
    """A set of integers, kept as sorted disjoint closed ranges: memory grows with the gaps."""

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


class Bits:
    """A set of integers from 1 on, a bit each, in whatever order they come: 100 million take 13 MB.

    Chunks of 8192 that are full take nothing. Raises TooMany where a million chunks are in use: then the numbers were
    never counted from 1.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._chunks: dict[int, bytearray | bytes] = {}
        self._missing: dict[int, int] = {}  # of each chunk: how many numbers are not there yet
        self.count = 0
        self.last = 0

    def add(self, number: int) -> bool:
        """Add ``number``; return False where it was there already."""
        at, place = divmod(number, _CHUNK)
        chunk = self._chunks.get(at)
        if chunk is None:
            if len(self._chunks) >= _MOST:
                raise TooMany(f"number {number}")
            chunk = self._chunks[at] = bytearray(_BYTES)
            self._missing[at] = _CHUNK
        byte, bit = place >> 3, _BITS[place & 7]
        if chunk[byte] & bit:
            return False
        chunk[byte] |= bit  # type: ignore[index] # a full one, of bytes, has the bit
        self._missing[at] -= 1
        if not self._missing[at]:
            self._chunks[at] = _FULL
        self.count += 1
        self.last = max(self.last, number)
        return True

    def __contains__(self, number: int) -> bool:
        at, place = divmod(number, _CHUNK)
        chunk = self._chunks.get(at)
        return chunk is not None and bool(chunk[place >> 3] & _BITS[place & 7])

    def missing(self, last: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges (first, last) of the numbers from 1 to ``last`` that are not there, in order."""
        start = 0  # of the gap that is open, 0 for none
        number = 1
        while number <= last:
            at, place = divmod(number, _CHUNK)
            chunk = self._chunks.get(at)
            if chunk is None or chunk is _FULL:
                if chunk is None:
                    start = start or number
                elif start:
                    yield start, number - 1
                    start = 0
                number = (at + 1) * _CHUNK
                continue
            byte = chunk[place >> 3]
            whole = not place & 7 and number + 7 <= last
            if whole and byte == (0 if start else 0xFF):  # goes on as it was for eight numbers
                number += 8
                continue
            there = bool(byte & _BITS[place & 7])
            if there and start:
                yield start, number - 1
                start = 0
            elif not there:
                start = start or number
            number += 1
        if start:
            yield start, last

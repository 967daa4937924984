"""Values over time in bounded memory: what the charts are drawn from. Pure.

Times are milliseconds since 1970 UTC.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import msgspec

POINTS: Final = 1000
"""Points of a line at least before it is thinned; twice as many at most."""

_HOLE: Final = 5
"""Steps without a message that are drawn as a hole."""

_STEPS: Final = 8
"""Bins a factor of two of latency: each percentile is right within 9 %."""


class Line(msgspec.Struct, frozen=True):
    """One line of a chart: points (at_ms, value); a value of None is a hole."""

    name: str
    subject: str
    points: tuple[tuple[int, float | None], ...]


class Samples:
    """Values of one counter or gauge, thinned evenly where they become too many: every second one goes."""

    def __init__(self) -> None:
        """Start empty."""
        self._points: list[tuple[int, float]] = []
        self._stride = 1
        self._skipped = 0

    def add(self, at_ms: int, value: float) -> None:
        """Note ``value`` at a time that is not before the last one's."""
        self._skipped += 1
        if self._skipped < self._stride:
            return
        self._skipped = 0
        self._points.append((at_ms, value))
        if len(self._points) >= 2 * POINTS:
            del self._points[1::2]
            self._stride *= 2

    def __iter__(self) -> Iterator[tuple[int, float]]:
        """Yield the points kept, in order."""
        return iter(self._points)

    def values(self, name: str, subject: str) -> Line:
        """Return them as they are."""
        return Line(name, subject, tuple((at, value) for at, value in self._points))

    def rates(self, name: str, subject: str) -> Line:
        """Return how much a sum grew, a second; where it starts anew (a process did) from nothing."""
        points: list[tuple[int, float | None]] = []
        for (before, low), (at, high) in zip(self._points, self._points[1:], strict=False):
            if at > before:
                points.append((at, (high - low if high >= low else high) * 1000 / (at - before)))
        return Line(name, subject, tuple(points))


class Latencies:
    """Latencies by the second in which messages were made, arrivals by theirs; wider steps where the run is long."""

    def __init__(self, *, real_time: bool = True) -> None:
        """``real_time``: False where the messages' times are not this clock's: then there are arrivals alone."""
        self._real_time = real_time
        self._width = self._arrived_width = 1000
        self._bins: dict[int, dict[int, int]] = {}
        self._arrived: dict[int, int] = {}
        self.negative = 0

    def add(self, made_ms: int, arrived_ms: int) -> None:
        """Note a message. One that arrived before it was made (clocks) counts as arrived at once; 0: made who knows."""
        second = arrived_ms // self._arrived_width
        self._arrived[second] = self._arrived.get(second, 0) + 1
        if len(self._arrived) > 2 * POINTS:
            self._arrived_width *= 2
            self._arrived = _halved(self._arrived)
        if not (made_ms and self._real_time):
            return
        late = arrived_ms - made_ms
        if late < 0:
            self.negative += 1
        bucket = self._bins.get(made_ms // self._width)
        if bucket is None:
            bucket = self._bins[made_ms // self._width] = {}
        step = int(math.log2(late) * _STEPS) if late > 1 else 0
        bucket[step] = bucket.get(step, 0) + 1
        if len(self._bins) > 2 * POINTS:
            self._widen()

    def _widen(self) -> None:
        self._width *= 2
        bins: dict[int, dict[int, int]] = {}
        for at, bucket in self._bins.items():
            wider = bins.setdefault(at // 2, {})
            for step, count in bucket.items():
                wider[step] = wider.get(step, 0) + count
        self._bins = bins

    def arrivals(self, name: str) -> Line:
        """Return how many arrived, a second; nothing in a step is nothing."""
        if not self._arrived:
            return Line(name, "", ())
        first, last = min(self._arrived), max(self._arrived)
        # Where clocks jumped, only what there is.
        steps = range(first, last + 1) if last - first <= 4 * POINTS else sorted(self._arrived)
        width, seconds = self._arrived_width, self._arrived_width / 1000
        return Line(name, "", tuple((at * width, self._arrived.get(at, 0) / seconds) for at in steps))

    def percentiles(self, *shares: float) -> list[Line]:
        """Return a line for each share (0.5, 0.99, 1 for the longest), in milliseconds by when messages were made.

        Where for some steps no message was made, or none of them arrived, is a hole.
        """
        found: list[list[tuple[int, float | None]]] = [[] for _ in shares]
        before = None
        for at in sorted(self._bins):
            hole = before is not None and at - before > _HOLE
            for points, value in zip(found, _quantiles(self._bins[at], shares), strict=True):
                if hole:
                    points.append((at * self._width, None))
                points.append((at * self._width, value))
            before = at
        return [Line(f"p{share * 100:g}", "", tuple(points)) for share, points in zip(shares, found, strict=True)]

    def overall(self, *shares: float) -> list[float]:
        """Return these shares over all messages, in milliseconds; nothing where there are none."""
        bucket: dict[int, int] = {}
        for one in self._bins.values():
            for step, count in one.items():
                bucket[step] = bucket.get(step, 0) + count
        return _quantiles(bucket, shares) if bucket else []


def _halved(counts: dict[int, int]) -> dict[int, int]:
    wider: dict[int, int] = {}
    for at, count in counts.items():
        wider[at // 2] = wider.get(at // 2, 0) + count
    return wider


def _quantiles(bucket: dict[int, int], shares: tuple[float, ...]) -> list[float]:
    total, steps = sum(bucket.values()), sorted(bucket)
    values = []
    for share in shares:
        need, count = math.ceil(share * total), 0
        for step in steps:
            count += bucket[step]
            if count >= need:
                values.append(round(2 ** ((step + 0.5) / _STEPS), 1))
                break
    return values

"""Who uses the link: the topics and devices of which most is sent, in bounded memory. Pure: time and choice come in.

Each list is a summary of the heaviest names (Misra, Gries: "Finding repeated elements", 1982), cut back as in Agarwal
et al., "Mergeable Summaries", 2012: above ``MOST`` names what the next one after the ``ENTRIES`` largest weighs is
taken off all, and who has nothing left is forgotten. So each weighs what is said and ``taken`` more at most, and who
has more than the total / ``ENTRIES`` is never missing. Of a large frame ``SAMPLE`` messages stand for all, so that
counting costs the same however much is sent.

What is said is of this hour and the one before: what was sent long ago is forgotten.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from edge_agent.buffer.port import Stored
from waybill.fleet_state import Talker, Talkers

ENTRIES: Final = 64
MOST: Final = 4 * ENTRIES
"""Names that a summary holds before it is cut back."""

SAMPLE: Final = 64
SPAN: Final = 3600.0
"""Seconds of an hour."""

NAME: Final = 256
"""Characters of a name by which it is told from others."""

Choose = Callable[[Sequence[Stored], int], Sequence[Stored]]
"""Returns that many of the messages, each at random."""

COUNT: Final = 0
BYTES: Final = 1


class Summary:
    """The names with the largest counts (``by`` COUNT) or bytes (BYTES)."""

    def __init__(self, by: int) -> None:
        self._by = by
        self.found: dict[str, list[int]] = {}
        """Of each name its count and bytes."""
        self.taken = 0

    def add(self, sums: Iterable[tuple[str, int, int]]) -> None:
        """Count messages: of each name so many, of so many bytes in all."""
        found = self.found
        for name, count, size in sums:
            one = found.get(name)
            if one is None:
                found[name] = [count, size]
            else:
                one[COUNT] += count
                one[BYTES] += size
        if len(found) > MOST:
            self._cut()

    def _cut(self) -> None:
        by = self._by
        less = heapq.nlargest(ENTRIES + 1, (one[by] for one in self.found.values()))[-1]
        self.taken += less
        self.found = {name: one for name, one in self.found.items() if one[by] > less}
        for one in self.found.values():
            one[by] -= less


def largest(summaries: Sequence[Summary], by: int, most: int) -> tuple[Talker, ...]:
    """Return ``most`` of what several summaries found in all, the largest first."""
    sums: dict[str, list[int]] = {}
    for summary in summaries:
        for name, weights in summary.found.items():
            one = sums.setdefault(name, [0, 0])
            one[COUNT] += weights[COUNT]
            one[BYTES] += weights[BYTES]
    taken = sum(summary.taken for summary in summaries)
    count, size = (taken, 0) if by == COUNT else (0, taken)
    ordered = heapq.nlargest(most, sums.items(), key=lambda each: each[1][by])
    return tuple(Talker(name, one[COUNT] + count, one[BYTES] + size, count, size) for name, one in ordered)


class _Hour:
    """What was sent from ``began`` (monotonic) and ``since_ms`` (wall) on."""

    def __init__(self, began: float, since_ms: int) -> None:
        self.began = began
        self.since_ms = since_ms
        self.count = self.bytes = self.wire = 0
        self.topics = Summary(BYTES), Summary(COUNT)
        self.devices = Summary(BYTES), Summary(COUNT)


class TopTalkers:
    """Counts what goes into frames. ``choose``: how the sample of a large one is drawn."""

    def __init__(self, now: float, wall_ms: int, choose: Choose) -> None:
        """``now``: monotonic seconds."""
        self._choose = choose
        self._hours = [_Hour(now, wall_ms)]

    def count(self, messages: Sequence[Stored], wire: int, now: float, wall_ms: int) -> None:
        """Count the messages (at least one) of a frame, or of several; ``wire``: what they have in all, bytes."""
        hour = self._hour(now, wall_ms)
        total, scale = len(messages), 1.0
        if total > SAMPLE:
            messages, scale = self._choose(messages, SAMPLE), total / SAMPLE
        sums: dict[tuple[str, str], list[int]] = {}
        for one in messages:
            known = sums.get((one.topic, one.client))
            if known is None:
                known = sums[one.topic, one.client] = [0, 0]
            known[COUNT] += 1
            known[BYTES] += len(one.payload)
        topics = [
            (topic[:NAME], client[:NAME], round(count * scale), round((size + count * len(topic)) * scale))
            for (topic, client), (count, size) in sums.items()
        ]
        hour.bytes += sum(one[3] for one in topics)
        for summary in hour.topics:
            summary.add((topic, count, size) for topic, _, count, size in topics)
        for summary in hour.devices:
            summary.add((client, count, size) for _, client, count, size in topics if client)
        hour.count += total
        hour.wire += wire

    def _hour(self, now: float, wall_ms: int) -> _Hour:
        if now - self._hours[-1].began >= SPAN:
            self._hours = [*(one for one in self._hours[-1:] if now - one.began < 2 * SPAN), _Hour(now, wall_ms)]
        return self._hours[-1]

    def state(self, now: float, wall_ms: int, most: int) -> Talkers:
        """Return ``most`` of each list at most."""
        self._hour(now, wall_ms)
        hours = self._hours
        return Talkers(
            hours[0].since_ms,
            sum(hour.count for hour in hours),
            sum(hour.bytes for hour in hours),
            sum(hour.wire for hour in hours),
            largest([hour.topics[0] for hour in hours], BYTES, most),
            largest([hour.topics[1] for hour in hours], COUNT, most),
            largest([hour.devices[0] for hour in hours], BYTES, most),
            largest([hour.devices[1] for hour in hours], COUNT, most),
        )

"""Who uses the link: the topics and devices of which most is sent, in bounded memory. Pure: time and choice come in.

Each list is a Space-Saving summary (Metwally, Agrawal, El Abbadi: "Efficient Computation of Frequent and Top-k Elements
in Data Streams", 2005) of ``ENTRIES`` names. A name that is not among them takes the place of the smallest, and begins
with its weight: no weight is too small, and none is too large by more than is said. Of a large frame ``SAMPLE``
messages stand for all, so that what is counted costs the same however much is sent.

What is said is of this hour and the one before: what was sent long ago is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from edge_agent.buffer.port import Stored
from waybill.fleet_state import Talker, Talkers

ENTRIES: Final = 64
SAMPLE: Final = 256
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
        self.found: dict[str, tuple[list[int], int]] = {}
        """Of each name its count and bytes, and by how much that of ``by`` may be too large."""

    def add(self, name: str, count: int, size: int) -> None:
        """Count ``count`` messages of ``size`` bytes in all."""
        one = self.found.get(name)
        if one is not None:
            one[0][COUNT] += count
            one[0][BYTES] += size
            return
        weights, over = [count, size], 0
        if len(self.found) >= ENTRIES:
            smallest = min(self.found, key=lambda each: self.found[each][0][self._by])
            over = self.found.pop(smallest)[0][self._by]
            weights[self._by] += over
        self.found[name] = weights, over


def largest(summaries: Iterable[Summary], by: int) -> tuple[Talker, ...]:
    """Return what several summaries found in all, the largest first."""
    sums: dict[str, list[int]] = {}
    for summary in summaries:
        for name, (weights, over) in summary.found.items():
            one = sums.setdefault(name, [0, 0, 0])
            one[COUNT] += weights[COUNT]
            one[BYTES] += weights[BYTES]
            one[2] += over
    ordered = sorted(sums.items(), key=lambda each: -each[1][by])
    overs = [(0, one[2]) if by == BYTES else (one[2], 0) for _, one in ordered]
    return tuple(Talker(name, one[COUNT], one[BYTES], *over) for (name, one), over in zip(ordered, overs, strict=True))


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
        for (topic, client), (count, size) in sums.items():
            many, much = round(count * scale), round((size + count * len(topic)) * scale)
            hour.bytes += much
            for summary in hour.topics:
                summary.add(topic[:NAME], many, much)
            if client:
                for summary in hour.devices:
                    summary.add(client[:NAME], many, much)
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
            largest((hour.topics[0] for hour in hours), BYTES)[:most],
            largest((hour.topics[1] for hour in hours), COUNT)[:most],
            largest((hour.devices[0] for hour in hours), BYTES)[:most],
            largest((hour.devices[1] for hour in hours), COUNT)[:most],
        )

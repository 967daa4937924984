"""How much may be under way on this link, and how large a frame should be. Pure: time comes in.

What the cloud acknowledges, and how soon, says what the link is like::

    rate   bytes a second: the best that was delivered in the last second or two, or four to eight ``base``
    base   seconds until the ack of a frame that finds the link empty, without the time its own bytes take

    window = rate × (1.25 × base + slack)     slack: two frames' time, 0.2 to 1 s, and at least half of ``base``;
    frame  = rate × 0.5 s                     while the rate still grows 1 s, and at least ``base``

So the link is always busy, and what is urgent finds about a second of other bytes before it, however slow the link is.
A window that was too small grows with each round trip, because more than what was measured may go.

The first bytes of a connection often go much faster than those behind them (a token bucket). So after the first of it
the window is at most twice what was delivered so far, and a frame a quarter: no frame takes longer than its
keepalive because those before it went fast.

``base`` is measured whenever a frame finds nothing in flight. Where none does, because there is always more to send,
the link is let run empty once in a while: every 30 s, or 30 times ``base``; and at once when an ack takes far longer
than it should, which means that the link has become slower, or longer. What was sent alone, or when there was little to
send, says of the rate only that it is at least that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

START_FRAME: Final = 2 << 10
START_WINDOW: Final = 8 << 10
"""Bytes before anything is known of the link, and at least while it was never filled."""

SMALLEST: Final = 1 << 10
"""Bytes of a frame below which its header and its ack would be much of it; the window is never below four of them."""

FRAME_SECONDS: Final = 0.5
MIN_SLACK: Final = 0.2
MAX_SLACK: Final = 1.0
BASE_AGE: Final = 30.0
"""Seconds that a measured ``base`` holds, and round trips: the larger of the two."""

GROWS: Final = 1.25
"""A rate that has not become this many times larger has found its end."""

LATE: Final = 3.0
"""An ack that takes this many times as long as it should is news of the link."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The state of things when a frame was handed out."""

    at: float
    delivered: int
    delivered_at: float
    alone: bool
    starved: bool


class Pace:
    """The measures of one link. All times: seconds, monotonic."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew: another connection may be another link."""
        self.rate = 0.0
        """Bytes a second; 0.0 before the first ack."""
        self.filled = False
        """Whether the link was ever the limit."""
        self.base = 0.0
        self._base_at = float("-inf")
        self._before = self._best = 0.0
        self._until = float("-inf")
        self._delivered = 0
        self._delivered_at = 0.0
        self._starved_until = 1
        self._peak = 0.0
        self._alone = 0
        self._emptying = self._settled = False

    @property
    def window(self) -> int:
        """Bytes that may be in flight. One frame may always."""
        if self._emptying:
            return 0
        least = 4 * SMALLEST if self.filled else START_WINDOW
        return max(least, min(2 * self._delivered, int(self.rate * (1.25 * self.base + self._slack))))

    @property
    def frame(self) -> int:
        """Bytes that the next frame should have, encoded."""
        least = SMALLEST if self.filled else START_FRAME
        return max(least, min(self._delivered // 4, int(self.rate * FRAME_SECONDS)))

    @property
    def _slack(self) -> float:
        if not self._settled:
            return max(self.base, MAX_SLACK)
        return max(self.base / 2, min(max(2 * self._peak / self.rate, MIN_SLACK), MAX_SLACK))

    def starve(self, in_flight: int) -> None:
        """There is nothing to send, although it might go."""
        self._starved_until = self._delivered + in_flight + 1

    def sent(self, size: int, in_flight: int, now: float) -> Mark:
        """``size`` bytes are handed out, where ``in_flight`` were before."""
        if not in_flight:
            self._delivered_at, self._emptying = now, False
        elif self.filled and now >= self._base_at + BASE_AGE * max(1.0, self.base):
            self._emptying = True
        self._peak = max(float(size), self._peak * 7 / 8)
        return Mark(now, self._delivered, self._delivered_at, not in_flight, self._delivered < self._starved_until)

    def acked(self, size: int, mark: Mark, in_flight: int, now: float) -> None:
        """The ack of ``size`` bytes is here that were sent once, at ``mark``; ``in_flight`` are left."""
        self._delivered += size
        self._delivered_at = now
        took = now - mark.at
        own = size / self.rate if self.filled else 0.0
        late = self.filled and took > LATE * (self.base + MAX_SLACK) and (mark.alone or in_flight > 0)
        if late:  # slower or longer: the rate is what came now, and the next frame that is alone tells which of the two
            self._emptying, self._settled, self._until = in_flight > 0, False, float("-inf")
        elif mark.alone or took < self.base:
            self.base, self._base_at = took - own if own < took else took, now
            self._alone = size
        if (elapsed := now - mark.delivered_at) > 0:
            self._measure(
                (self._delivered - mark.delivered) / elapsed, now, sure=late or not (mark.starved or mark.alone)
            )

    def _measure(self, rate: float, now: float, *, sure: bool) -> None:
        if sure:
            if not self.filled:
                self.filled = True
                self.base -= min(self._alone / rate, self.base)  # it could not be told before
            span = max(1.0, 4 * self.base)
            if now >= self._until:
                self._settled = self._settled or rate < GROWS * self._best
                self._before = self._best if now < self._until + span else 0.0
                self._best, self._until = rate, now + span
        elif rate <= self.rate:
            return
        self._best = max(self._best, rate)
        self.rate = max(self._before, self._best)

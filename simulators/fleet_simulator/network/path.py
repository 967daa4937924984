"""When bytes arrive at the other end of a network, as TCP delivers them: whole, in order, and late. Pure.

A relay of TCP connections has no packets to lose: the kernels at its two sides would mend that at once. What
applications see of a loss is the time that it takes TCP to mend it, and that is what this works out: bytes are cut into
packets, each is lost or not, and a lost one holds up all behind it (RFC 9293, section 3.8; RFC 6298) by a round trip
where others follow it, which bring the duplicate acks, and by the retransmission time-out, doubled for each loss in a
row, where none does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fleet_simulator.network.profiles import Model

PACKET: Final = 1400
"""Bytes of one packet."""

SHORTEST_TIMEOUT: Final = 0.2
LONGEST_TIMEOUT: Final = 60.0
"""Bounds of the retransmission time-out in seconds: Linux's lower one, and RFC 6298's upper one."""

MOST_LOSSES: Final = 8
"""Losses of one packet in a row; then it passes. Two minutes and a half, at least."""


class Weather:
    """The phases of a link, good and bad: a Markov chain in continuous time (after Gilbert 1960 and Elliott 1963)."""

    def __init__(self, model: Model, chance: Callable[[], float], expovariate: Callable[[float], float]) -> None:
        """``chance``: from 0 to 1; ``expovariate``: exponential, of a rate. The first packet finds a good phase."""
        self.model = model
        self.bad = False
        self._chance = chance
        self._expovariate = expovariate
        self._until: float | None = None

    def lost(self, now: float) -> bool:
        """Whether a packet that sets out at ``now`` (seconds, never less than before) is lost."""
        model = self.model
        if model.bad_s:
            if self._until is None:
                self._until = now + self._expovariate(1 / model.good_s)
            while now >= self._until:
                self.bad = not self.bad
                self._until += self._expovariate(1 / (model.bad_s if self.bad else model.good_s))
        share = model.loss_bad if self.bad else model.loss_good
        return share > 0 and self._chance() < share


class Path:
    """One direction of a connection."""

    def __init__(self, weather: Weather, chance: Callable[[], float], *, up: bool) -> None:
        """``weather`` is that of the link, which all its connections and both directions have in common."""
        self.lost = 0
        self._up = up
        self._chance = chance
        self._weather = weather
        self._free = 0.0
        self._arrived = 0.0

    def change(self, weather: Weather) -> None:
        """Go on in another network; what is under way arrives as it would have, and nothing overtakes it."""
        self._weather = weather

    @property
    def rate(self) -> float:
        """Bytes a second, 0 for as many as there are."""
        model = self._weather.model
        return (model.up_kbit if self._up else model.down_kbit) * 125

    def queued(self, now: float) -> float:
        """Return how long what was given to it needs until it is all sent, in seconds."""
        return max(0.0, self._free - now)

    def arrival(self, now: float, size: int) -> float:
        """Return when ``size`` bytes that are given to it at ``now`` are at the other end, in seconds and in order."""
        model, rate, at = self._weather.model, self.rate, max(now, self._free)
        delay = model.delay_ms / 1000
        late = at
        for start in range(0, size, PACKET):
            more = size - start > PACKET
            at += min(PACKET, size - start) / rate if rate else 0.0
            # While one packet is mended those behind it travel: its delay holds them up, but does not add up.
            late = max(late, at + self._held(at, delay, more=more))
        self._free = at
        jitter = model.jitter_ms / 1000 * self._chance() if model.jitter_ms else 0.0
        self._arrived = max(self._arrived, late + delay + jitter)
        return self._arrived

    def _held(self, at: float, delay: float, *, more: bool) -> float:
        """Return by how long losses hold a packet up that sets out at ``at``."""
        timeout = max(SHORTEST_TIMEOUT, 3 * delay)
        held = 0.0
        for number in range(MOST_LOSSES):
            if not self._weather.lost(at + held):
                break
            self.lost += 1
            if more and number == 0:
                held += 2 * delay
            else:
                held += timeout
                timeout = min(2 * timeout, LONGEST_TIMEOUT)
        return held

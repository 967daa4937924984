"""The scenario's own time: as real, some times faster, or as fast as messages are acknowledged. Pure."""

from __future__ import annotations

from typing import Literal


class Pace:
    """Scenario seconds since the start. ``speed``: of them in a real one, or ``"max"``."""

    def __init__(self, speed: float | Literal["max"], now: float) -> None:
        """``now``: real seconds of any clock that does not jump."""
        self.speed = speed
        self.now = 0.0
        self._real = now

    def advance(self, real: float, next_due: float, *, wait_for: float = float("inf")) -> float:
        """Go on to the real time ``real`` and return the scenario's.

        ``next_due``: when the next thing is to happen, where a ``"max"`` run goes at once. ``wait_for``: when somebody
        was due who cannot go on: time that is not real stays there.
        """
        passed, self._real = real - self._real, real
        if self.speed == "max":
            self.now = max(self.now, min(next_due, wait_for))
        elif self.speed == 1:
            self.now += passed
        else:
            self.now = max(self.now, min(self.now + passed * self.speed, wait_for))
        return self.now

    def pause_until(self, due: float) -> float:
        """Return for how many real seconds nothing is to do before ``due``."""
        return 0.0 if self.speed == "max" else max(0.0, (due - self.now) / self.speed)

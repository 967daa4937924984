"""The last minutes of growing counts, as rates. Pure: time comes in."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from waybill.fleet_state import History

POINTS: Final = 120


class Counts(NamedTuple):
    """Since the start: messages from devices, messages acked by the cloud, bytes on the wire.

    ``acks``: frames that were acked after having been sent once, and ``waited``: the seconds they took in all.
    """

    came: int
    acked: int
    bytes: int
    acks: int
    waited: float


class Recorder:
    """The last ``POINTS`` steps of ``step_s`` seconds."""

    def __init__(self, step_s: int) -> None:
        self._step_s = step_s
        self._last: tuple[float, Counts] | None = None
        self._until_ms = 0
        self._points: deque[tuple[float, float, float, float | None]] = deque(maxlen=POINTS)

    def sample(self, now: float, wall_ms: int, counts: Counts) -> None:
        """Note the counts; at least once a step. ``now``: monotonic seconds."""
        if self._last is None:
            self._last = now, counts
            return
        began, before = self._last
        if (took := now - began) < self._step_s:
            return
        acks = counts.acks - before.acks
        self._points.append(
            (
                round((counts.came - before.came) / took, 2),
                round((counts.acked - before.acked) / took, 2),
                round((counts.bytes - before.bytes) / took * 60, 1),
                round((counts.waited - before.waited) / acks * 1000, 1) if acks else None,
            )
        )
        self._last, self._until_ms = (now, counts), wall_ms

    def state(self) -> History:
        """Return the points that are complete."""
        if not self._points:
            return History(self._step_s)
        came, acked, size, latency = zip(*self._points, strict=True)
        return History(self._step_s, self._until_ms, came, acked, size, latency)

"""Drive cycles: speed traces that are made up here, in the manner of regulatory ones, and those that are recorded.

A made-up cycle is a list of speeds and how long each is held; between them the vehicle speeds up and slows down evenly.
No table of a regulation is copied. What such tables are like: low, medium, high and extra high phases of half an hour
(WLTP, UN GTR 15), stop and go (UDDS, NEDC), stops every few hundred metres (SORT of UITP).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fleet_simulator.vehicles.drives import Drive, recorded, recordings
from waybill.errors import ConfigError

PARKED: Final = "parked"
"""The cycle of a vehicle that stays where it is; an electric one is plugged in."""

_KMH: Final = 1 / 3.6


@dataclass(frozen=True, slots=True)
class _Plan:
    """``holds``: (km/h, seconds at that speed). ``up``, ``down``: m/s² in between."""

    holds: tuple[tuple[float, int], ...]
    up: float = 1.0
    down: float = 1.1


_URBAN: Final = (
    (0, 12), (31, 14), (12, 3), (42, 21), (0, 24), (49, 38), (27, 6), (47, 17), (0, 9), (22, 8), (0, 15), (38, 26),
    (51, 33), (33, 5), (46, 12), (0, 31), (28, 11), (0, 6), (52, 47), (20, 4), (35, 19), (0, 18),
)  # fmt: skip
_SUBURBAN: Final = (
    (0, 8), (48, 25), (62, 52), (40, 7), (71, 64), (55, 18), (0, 14), (57, 33), (76, 41), (30, 5), (60, 45), (0, 10),
)  # fmt: skip
_FAST: Final = ((0, 5), (68, 20), (92, 75), (84, 20), (97, 90), (61, 8), (80, 45), (97, 60), (72, 10), (0, 6))
_MOTORWAY: Final = ((0, 4), (74, 9), (112, 80), (126, 95), (104, 25), (131, 110), (118, 60), (88, 12), (124, 70))
_ROUND: Final = (
    (0, 45), (28, 14), (0, 70), (19, 6), (0, 38), (34, 24), (0, 85), (24, 10), (0, 52), (41, 36), (22, 6), (0, 95),
    (30, 20), (0, 60), (16, 5), (0, 41), (47, 58), (35, 12), (0, 30),
)  # fmt: skip
_STOPS: Final = (
    (0, 21), (36, 18), (0, 14), (44, 27), (0, 19), (28, 9), (0, 26), (48, 41), (30, 6), (0, 17), (39, 16), (0, 33),
    (33, 20), (0, 12), (46, 30), (18, 5), (0, 24), (41, 22), (0, 90),
)  # fmt: skip
_HAUL: Final = ((0, 20), (30, 15), (62, 60), (84, 900), (78, 120), (85, 1300), (60, 40), (83, 800), (40, 25), (0, 150))

_PLANS: Final = {
    "urban": _Plan(_URBAN),
    "highway": _Plan((*_MOTORWAY, (121, 240), (96, 30), (129, 180), (70, 15), (0, 10)), up=1.2),
    "commute": _Plan((*_URBAN, *_SUBURBAN, *_FAST, *_MOTORWAY[:4], (0, 5)), up=1.15, down=1.2),
    "delivery": _Plan(_ROUND, up=1.1, down=1.3),
    "bus-stops": _Plan(_STOPS, up=0.9, down=0.9),
    "long-haul": _Plan(_HAUL, up=0.35, down=0.6),
    PARKED: _Plan(((0, 60),)),
}


def names() -> list[str]:
    """Return the names of all drives: built-in cycles, then recorded ones."""
    return [*_PLANS, *recordings()]


@functools.cache
def named(name: str) -> Drive:
    """Return a drive by its name. Raises ConfigError that lists the names."""
    if name in _PLANS:
        plan = _PLANS[name]
        return Drive(name, tuple(_trace(plan)))
    if name in recordings():
        return recorded(name)
    raise ConfigError(f"cycle {name!r} is not known; there are: {', '.join(names())}")


def _trace(plan: _Plan) -> Iterable[float]:
    """Yield m/s, one a second."""
    speed = 0.0
    for kmh, seconds in plan.holds:
        wanted = kmh * _KMH
        while speed < wanted:
            speed = min(speed + plan.up * (1 - speed / 60), wanted)  # the faster, the slower it gets faster
            yield speed
        while speed > wanted:
            speed = max(speed - plan.down, wanted)
            yield speed
        for second in range(seconds):
            # nobody holds a speed to the metre an hour: a slow swing of two percent
            yield wanted * (1 + 0.02 * (abs(second % 20 - 10) / 10 - 1))

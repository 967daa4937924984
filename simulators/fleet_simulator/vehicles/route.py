"""Where a vehicle drives: a polyline in WGS 84, driven lap after lap. Metres along it say where tunnels are.

Lengths are taken segment by segment on the ellipsoid's two radii of curvature, which is right to a millimetre in a
kilometre for segments of up to some kilometres.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from waybill.errors import ConfigError

Point = Sequence[float]
"""Latitude, longitude in degrees; altitude in metres, 0 where it is not given."""

MADE: Final = 16
"""How many made-up routes there are."""

_CENTRE: Final = (41.86, -88.02)  # where the recorded trips were driven, some way from the lake
_CORNERS: Final = 48
_MOST_POINTS: Final = 100_000
_SHORTEST: Final = 100.0
_STEEPEST: Final = 0.3
_MOST: Final = (89.0, 180.0, 9000.0)  # degrees, degrees, m


class Route:
    """A polyline. A closed one is driven round; an open one there and back, which is one lap."""

    def __init__(self, points: Sequence[Point], *, closed: bool = True) -> None:
        """``closed``: the last point is joined to the first. Raises ConfigError that names the point."""
        if len(points) > _MOST_POINTS:
            raise ConfigError(f"route: {len(points)} points are too many: leave out some, {_MOST_POINTS} are taken")
        line = [_checked(number, point) for number, point in enumerate(points, 1)]
        way = [*line, line[0]] if closed and line else line + line[-2::-1]
        ends: list[float] = []
        self._legs: list[tuple[float, float, float, float, float, float, float, float]] = []
        end = 0.0
        for number, (here, there) in enumerate(itertools.pairwise(way), 1):
            length, heading = _leg(here, there)
            if length == 0:
                continue
            rise = there[2] - here[2]
            if abs(rise) > _STEEPEST * length:
                raise ConfigError(
                    f"route: {rise:g} m up in {length:.0f} m after point {min(number, len(line))} is steeper than "
                    f"{_STEEPEST:.0%}: mend the altitude, which is in metres"
                )
            east = _wrapped(there[1] - here[1])
            self._legs.append(
                (end, *here, (there[0] - here[0]) / length, east / length, rise / length, heading),
            )
            end += length
            ends.append(end)
        self._inner = ends[:-1]
        self.lap = end
        """Metres of a lap."""
        self.length = end if closed else end / 2
        """Metres from the first point to the last (of a closed one: round to the first)."""
        if self.length < _SHORTEST:
            raise ConfigError(
                f"route: it is {self.length:.0f} m long; give two points or more, {_SHORTEST:.0f} m apart"
            )

    def metre(self, travelled: float) -> float:
        """Return where on the polyline, 0 ≤ m ≤ length, a vehicle is after so many metres from its first point."""
        at = travelled % self.lap
        return at if at <= self.length else self.lap - at

    def grade(self, travelled: float) -> float:
        """Return rise over run after so many metres from the first point, in the direction that is driven."""
        return self._legs[bisect_right(self._inner, travelled % self.lap)][6]

    def at(self, travelled: float) -> tuple[float, float, float, float]:
        """Return latitude, longitude, altitude and heading (degrees, 0 north, 90 east) after so many metres."""
        metre = travelled % self.lap
        start, latitude, longitude, altitude, north, east, grade, heading = self._legs[bisect_right(self._inner, metre)]
        on = metre - start
        longitude += east * on
        if not -180 <= longitude <= 180:  # noqa: PLR2004 - the date line
            longitude = _wrapped(longitude)
        return latitude + north * on, longitude, altitude + grade * on, heading


@functools.cache
def made_up(number: int) -> Route:
    """Return one of ``MADE`` rounds of 13 to 34 km with gentle hills; they follow no streets."""
    rng = random.Random(f"route/{number % MADE}")  # noqa: S311 - the same in every process is the point
    centre = (_CENTRE[0] + 0.1 * (rng.random() - 0.5), _CENTRE[1] + 0.1 * (rng.random() - 0.5))
    size = 0.018 + 0.03 * rng.random()
    bumps = [(waves, 0.25 * rng.random() / waves, math.tau * rng.random()) for waves in (2, 3, 5)]
    hills = [(waves, 24 * rng.random() / waves, math.tau * rng.random()) for waves in (1, 2, 3)]
    points: list[Point] = []
    for corner in range(_CORNERS):
        angle = math.tau * corner / _CORNERS
        radius = size * (1 + sum(high * math.sin(waves * angle + phase) for waves, high, phase in bumps))
        altitude = 210 + sum(high * math.sin(waves * angle + phase) for waves, high, phase in hills)
        points.append(
            (
                round(centre[0] + radius * math.cos(angle), 6),
                round(centre[1] + radius * math.sin(angle) / math.cos(math.radians(centre[0])), 6),
                round(altitude, 1),
            )
        )
    return Route(points)


def _checked(number: int, point: Point) -> tuple[float, float, float]:
    numbers = (*point, 0.0) if len(point) == 2 else point  # noqa: PLR2004
    if len(numbers) != 3 or not all(abs(number) <= most for number, most in zip(numbers, _MOST, strict=True)):  # noqa: PLR2004
        raise ConfigError(
            f"route: point {number} is {point}: write latitude (-89 to 89), longitude (-180 to 180) and, if known, "
            "altitude in metres"
        )
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _leg(here: tuple[float, float, float], there: tuple[float, float, float]) -> tuple[float, float]:
    """Return metres and heading from one point to the next (WGS 84; metres a degree as a series in latitude)."""
    middle = math.radians((here[0] + there[0]) / 2)
    north = (there[0] - here[0]) * (111_132.954 - 559.822 * math.cos(2 * middle) + 1.175 * math.cos(4 * middle))
    a_degree = 111_412.84 * math.cos(middle) - 93.5 * math.cos(3 * middle) + 0.118 * math.cos(5 * middle)
    east = _wrapped(there[1] - here[1]) * a_degree
    return math.hypot(north, east), math.degrees(math.atan2(east, north)) % 360


def _wrapped(longitude: float) -> float:
    return (longitude + 180) % 360 - 180

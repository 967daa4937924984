"""Tunnels and dead zones: what network there is where a vehicle is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Stretch(Protocol):
    """A part of the route, in metres; see :class:`fleet_simulator.scenarios.Zone`."""

    @property
    def first(self) -> float:
        """Where it begins."""

    @property
    def last(self) -> float:
        """Where it ends."""

    @property
    def every(self) -> float:
        """After how many metres it comes again, 0 for never."""


Z = TypeVar("Z", bound=Stretch)


def here(zones: Sequence[Z], metre: float) -> Z | None:
    """Return the first zone that ``metre`` of the route is in, None where it is in none."""
    for zone in zones:
        at = metre % zone.every if zone.every else metre
        if zone.first <= at < zone.last:
            return zone
    return None

"""What a simulated vehicle says: JSON telemetry of an electric car that drives one of the recorded drives. Pure.

The same id and seed say the same, whatever the process, machine or Python. A message, UTF-8 JSON, no spaces::

    {"vehicle":"V7","seq":12,"ts":1700000012000,"speed":13.4,"rpm":3686,"lat":41.878112,"lon":-87.629801,"soc":81.52}

``seq`` counts a vehicle's messages from 1; ``ts``: milliseconds since 1970 UTC, as given; ``speed``: m/s; ``rpm``: the
motor's; ``lat``, ``lon``: degrees, WGS 84; ``soc``: state of charge in percent.
"""

from __future__ import annotations

import math
import random
from typing import Final

import msgspec

from fleet_simulator.drives import Drive, drives

# An ordinary electric car.
_MASS: Final = 1800.0  # kg
_DRAG: Final = 0.5 * 1.2 * 0.62  # half the density of air × drag area, kg/m
_ROLLING: Final = 0.01 * _MASS * 9.81  # N
_CAPACITY: Final = 60.0 * 3.6e6  # J
_RECOVERED: Final = 0.6  # of braking energy
_RPM: Final = 60 / (2 * math.pi * 0.32) * 9.2  # wheel radius 0.32 m, reduction 9.2
_METRES_A_DEGREE: Final = 111_320.0


class Telemetry(msgspec.Struct, frozen=True):
    """One message; see the module for the units."""

    vehicle: str
    seq: int
    ts: int
    speed: float
    rpm: int
    lat: float
    lon: float
    soc: float


class Vehicle:
    """One vehicle on its endless drive."""

    def __init__(self, vehicle: str, seed: int = 0) -> None:
        """``vehicle``: its id, which is a level of its topics."""
        self.id = vehicle
        self._random = random.Random(f"{seed}/{vehicle}")  # noqa: S311 - the same for the same seed is the point
        self._drive: Drive = self._random.choice(drives())
        self._at = self._random.randrange(len(self._drive.speeds))
        self._speed = self._drive.speeds[self._at]
        self._heading = self._random.uniform(0, 2 * math.pi)
        self._lat = 41.88 + self._random.uniform(-0.1, 0.1)
        self._lon = -87.63 + self._random.uniform(-0.1, 0.1)
        self._charge = _CAPACITY * self._random.uniform(0.5, 0.95)
        self._seq = 0

    def step(self, ts: int) -> Telemetry:
        """Drive for a second and return what there is to say. ``ts``: milliseconds since 1970 UTC."""
        self._at = (self._at + 1) % len(self._drive.speeds)
        before, self._speed = self._speed, self._drive.speeds[self._at]
        mean = (before + self._speed) / 2
        force = _MASS * (self._speed - before) + _DRAG * mean**2 + (_ROLLING if mean else 0.0)
        work = force * mean  # joules in one second
        self._charge = min(max(self._charge - work * (1 if work > 0 else _RECOVERED), 0.0), _CAPACITY)
        self._heading += self._random.gauss(0, 0.05) if mean else 0.0
        self._lat += mean * math.cos(self._heading) / _METRES_A_DEGREE
        self._lon += mean * math.sin(self._heading) / (_METRES_A_DEGREE * math.cos(math.radians(self._lat)))
        self._seq += 1
        return Telemetry(
            vehicle=self.id,
            seq=self._seq,
            ts=ts,
            speed=round(self._speed, 2),
            rpm=round(self._speed * _RPM),
            lat=round(self._lat, 6),
            lon=round(self._lon, 6),
            soc=round(100 * self._charge / _CAPACITY, 2),
        )

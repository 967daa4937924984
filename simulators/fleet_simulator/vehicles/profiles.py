"""What kinds of vehicle there are: masses, resistances and powertrains, of the size that their data sheets give.

The figures are of no one make. ``dataclasses.replace`` makes another vehicle out of one of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fleet_simulator.vehicles import signals
from fleet_simulator.vehicles.signals import Signal


@dataclass(frozen=True, slots=True)
class Electric:
    """A battery and a motor with one fixed gear.

    ``capacity``: kWh, net. ``power``, ``regeneration``: W at the wheels at most, driving and braking. ``reduction``:
    turns of the motor for one of the wheel. ``charger``: W into the battery. ``efficiency``: to the wheel, and back.
    """

    capacity: float
    power: float
    regeneration: float
    reduction: float
    charger: float
    efficiency: float = 0.9


@dataclass(frozen=True, slots=True)
class Combustion:
    """A Diesel engine and a gearbox.

    ``power``: W at most. ``idle``, ``most``: turns a minute. ``gears``: engine turns for one of the wheel, first gear
    first. ``displacement``: litres, which friction goes by. ``tank``: litres. ``efficiency``: of what the gas does.
    """

    power: float
    idle: float
    most: float
    gears: tuple[float, ...]
    displacement: float
    tank: float
    efficiency: float = 0.44


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of vehicle.

    ``mass``: kg as it drives. ``drag_area``: m², c_w times area. ``rolling``: resistance over weight. ``wheel``: its
    radius, m. ``top_speed``: m/s. ``pull``, ``brake``: m/s² at most. ``auxiliary``: W for all but driving. ``power``:
    None for what has none of its own. ``cycles``: one of these is driven. ``period``: seconds between two telemetry
    messages.
    ``says``: what is in them. ``commands``: what it can do.
    """

    name: str
    mass: float
    drag_area: float
    rolling: float
    wheel: float
    top_speed: float
    pull: float
    brake: float
    auxiliary: float
    power: Electric | Combustion | None
    cycles: tuple[str, ...]
    period: float = 1.0
    says: tuple[Signal, ...] = (*signals.VEHICLE, *signals.ELECTRIC)
    commands: frozenset[str] = frozenset({"lock", "unlock", "horn", "locate", "diagnostics", "clear-codes"})


_DOORS: Final = frozenset({"lock", "unlock", "horn", "locate", "diagnostics", "clear-codes"})
_PLUG: Final = _DOORS | {"charging-limit"}
_ENGINE: Final = (*signals.VEHICLE, *signals.COMBUSTION)

_CAR: Final = Profile(
    name="car",
    mass=1850,
    drag_area=0.62,
    rolling=0.0100,
    wheel=0.33,
    top_speed=160 / 3.6,
    pull=3.5,
    brake=8.5,
    auxiliary=450,
    power=Electric(capacity=60, power=150e3, regeneration=65e3, reduction=9.2, charger=90e3),
    cycles=("commute", "urban", "highway"),
    commands=_PLUG,
)
_VAN: Final = Profile(
    name="van",
    mass=2700,
    drag_area=1.60,
    rolling=0.0105,
    wheel=0.34,
    top_speed=140 / 3.6,
    pull=2.5,
    brake=8.0,
    auxiliary=700,
    power=Combustion(110e3, 800, 4200, (16.0, 9.9, 6.5, 4.6, 3.55, 2.9), displacement=2.0, tank=75),
    cycles=("delivery", "urban", "commute"),
    says=_ENGINE,
    commands=_DOORS,
)
_TRUCK: Final = Profile(
    name="truck",
    mass=32_000,
    drag_area=5.6,
    rolling=0.0055,
    wheel=0.50,
    top_speed=90 / 3.6,
    pull=1.2,
    brake=6.0,
    auxiliary=4000,
    power=Combustion(
        340e3, 550, 2000, tuple(38.5 * 0.7735**n for n in range(12)), displacement=12.8, tank=600, efficiency=0.47
    ),
    cycles=("long-haul",),
    says=_ENGINE,
    commands=_DOORS,
)
_BUS: Final = Profile(
    name="bus",
    mass=15_500,
    drag_area=5.0,
    rolling=0.0075,
    wheel=0.48,
    top_speed=80 / 3.6,
    pull=1.3,
    brake=6.0,
    auxiliary=6500,
    power=Electric(capacity=350, power=240e3, regeneration=150e3, reduction=21.0, charger=150e3, efficiency=0.88),
    cycles=("bus-stops",),
    commands=_PLUG,
)
_SCOOTER: Final = Profile(
    name="scooter",
    mass=185,
    drag_area=0.60,
    rolling=0.0140,
    wheel=0.23,
    top_speed=45 / 3.6,
    pull=2.0,
    brake=6.0,
    auxiliary=12,
    power=Electric(capacity=2.0, power=3500, regeneration=700, reduction=6.0, charger=1200, efficiency=0.85),
    cycles=("urban",),
    period=10.0,
    says=signals.SCOOTER,
    commands=frozenset({"lock", "unlock", "locate", "diagnostics", "charging-limit"}),
)
_SENSOR: Final = Profile(
    name="sensor",
    mass=1,
    drag_area=0.0,
    rolling=0.0,
    wheel=0.1,
    top_speed=160 / 3.6,
    pull=8.0,
    brake=8.0,
    auxiliary=0,
    power=None,
    cycles=("parked",),
    period=60.0,
    says=signals.READING,
    commands=frozenset({"locate", "diagnostics"}),
)

PROFILES: Final = {one.name: one for one in (_CAR, _VAN, _TRUCK, _BUS, _SCOOTER, _SENSOR)}
"""By name: car, van, truck, bus, scooter, sensor."""

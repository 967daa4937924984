"""A battery and its motor: energy in and out, temperatures, charging. Pure arithmetic; J, W, m/s, °C.

What goes to the wheels costs ``1/efficiency`` of it; what braking gives back comes as ``efficiency`` of it, up to what
motor and battery take, so no round gains anything. Battery and motor are one lump of heat each: warmed by their losses,
cooled by the air, and the battery by its pump once it is warmer than 35 °C.
"""

from __future__ import annotations

import math
from typing import Final

from fleet_simulator.vehicles.profiles import Electric

LOW: Final = 20.0
"""Percent of charge below which a vehicle charges at its next stop."""

EMPTY: Final = 4.0
"""Percent of charge below which it stops at once."""

LEAST_LIMIT: Final = 30
"""Percent: a lower charging limit is refused, because nothing would be left to drive with."""

_CREEP: Final = 2.0  # m/s below which the friction brake alone stops
_HOT_BATTERY: Final = 55.0
_PUMP: Final = 35.0
_TAPER: Final = 80.0  # percent above which charging slows down
_NOTHING: Final = 1.0  # percent below the limit that is not worth plugging in for


class Battery:
    """State of an electric powertrain. ``level``: percent. ``battery_power``: W, positive into the battery (as VSS)."""

    __slots__ = (
        "_heat_battery",
        "_heat_motor",
        "_model",
        "_rpm",
        "attention",
        "battery_power",
        "battery_temperature",
        "energy",
        "filling",
        "level",
        "limit",
        "motor_temperature",
        "rpm",
        "stored",
    )

    def __init__(self, model: Electric, wheel: float, level: float, ambient: float) -> None:
        """``wheel``: radius in m. ``level``: percent to begin with."""
        self._model = model
        self._rpm = 60 * model.reduction / (math.tau * wheel)
        self.energy = model.capacity * 3.6e6
        """J when full."""
        self.stored = self.energy * level / 100
        self.level = level
        self.limit = 80.0
        self.filling = False
        self.attention = level < LOW
        """Whether ``low``, ``empty`` or ``fault`` say anything."""
        self.battery_power = 0.0
        self.battery_temperature = self.motor_temperature = ambient
        self.rpm = 0.0
        # W/K: half the power for long makes the motor 60 K and the battery 15 K warmer than the air.
        self._heat_motor = 0.07 * 0.5 * model.power / 60
        self._heat_battery = 0.05 * 0.25 * model.power / 15

    def force(self, speed: float) -> float:
        """Return N that it can put to the wheels at a speed."""
        return self._model.power / speed if speed > 1 else self._model.power

    def step(self, force: float, speed: float, after: float, dt: float, auxiliary: float, ambient: float) -> None:
        """Drive or brake with ``force`` at a mean ``speed``, to the speed ``after``, for ``dt`` seconds."""
        model = self._model
        mechanical = force * speed
        if mechanical >= 0:
            loss = mechanical * (1 / model.efficiency - 1)
            electrical = mechanical + loss
        else:
            taken = min(-mechanical, model.regeneration) if speed > _CREEP and self.level < 100 else 0.0  # noqa: PLR2004
            electrical = -taken * model.efficiency
            loss = taken + electrical
        electrical += auxiliary
        self.rpm = after * self._rpm
        self.motor_temperature += (
            dt * (loss - self._heat_motor * (self.motor_temperature - ambient)) / (600 * self._heat_motor)
        )
        self._flow(-electrical, dt, ambient)

    def fill(self, dt: float, ambient: float) -> None:
        """Charge for ``dt`` seconds at standstill; slower above 80 %."""
        slow = 1.0 if self.level < _TAPER else max((100 - self.level) / (100 - _TAPER), 0.05)
        self.rpm = 0.0
        self.motor_temperature += dt * (ambient - self.motor_temperature) / 600
        self._flow(self._model.charger * slow, dt, ambient)

    def rest(self, dt: float, ambient: float) -> None:
        """Stand for ``dt`` seconds, switched off."""
        self.rpm = 0.0
        self.motor_temperature += dt * (ambient - self.motor_temperature) / 600
        self._flow(0.0, dt, ambient)

    def _flow(self, power: float, dt: float, ambient: float) -> None:
        self.stored = min(max(self.stored + power * dt, 0.0), self.energy)
        self.level = 100 * self.stored / self.energy
        self.battery_power = power
        warm = self.battery_temperature
        cooling = self._heat_battery if warm < _PUMP else 4 * self._heat_battery
        self.battery_temperature = warm + dt * (
            0.05 * power * power / self._model.power - cooling * (warm - ambient)
        ) / (3600 * self._heat_battery)
        self.attention = self.level < LOW or warm > _HOT_BATTERY

    @property
    def low(self) -> bool:
        """Whether it would charge at a stop."""
        return self.level < LOW

    @property
    def could_take(self) -> bool:
        """Whether charging does anything where there is a charger anyway."""
        return self.level < self.limit - _NOTHING

    @property
    def empty(self) -> bool:
        """Whether it has to stop at once."""
        return self.level < EMPTY

    @property
    def full(self) -> bool:
        """Whether charging ends."""
        return self.level >= self.limit

    @property
    def fault(self) -> str:
        """The trouble code of the state it is in, empty for none."""
        return "P0A7E" if self.battery_temperature > _HOT_BATTERY else ""

    @property
    def filling_json(self) -> bytes:
        """``filling`` as JSON."""
        return b"true" if self.filling else b"false"

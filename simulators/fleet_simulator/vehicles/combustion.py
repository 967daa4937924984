"""A Diesel engine with its gearbox: gears, fuel, coolant. Pure arithmetic; J, W, m/s, °C.

Fuel goes by Willans' line: what the engine gives and what its own friction takes, over the efficiency of the gas.
Friction is a mean pressure of 1.6 bar, so it goes by displacement and turns; it also brakes, without fuel. A gear is
kept until the turns leave a band that moves up with the load; of two that both leave it the lower is kept.
"""

from __future__ import annotations

import math
from typing import Final

from fleet_simulator.vehicles.profiles import Combustion

LITRE: Final = 35.8e6
"""J in a litre of Diesel."""

LOW: Final = 12.0
"""Percent of the tank below which it is filled at the next stop."""

EMPTY: Final = 1.0
"""Percent of the tank below which it stops at once."""

_DRIVELINE: Final = 0.95
_PUMP: Final = 0.7  # litres a second
_FULL: Final = 97.0
_FRICTION: Final = 1.6e5 / (4 * math.pi) / 1000  # Nm a litre of displacement, of a four-stroke engine
_THERMOSTAT: Final = 88.0
_OVERHEATED: Final = 112.0
_COOLANT: Final = 0.3  # of the fuel's heat


class Engine:
    """State of an engine. ``level``: percent of the tank. ``gear``: 0 at standstill. ``used``: litres burnt."""

    __slots__ = (
        "_band",
        "_friction",
        "_model",
        "_rpm",
        "attention",
        "coolant_temperature",
        "filling",
        "gear",
        "kilowatts",
        "level",
        "litres",
        "rpm",
        "used",
    )

    def __init__(self, model: Combustion, wheel: float, level: float, ambient: float) -> None:
        """``wheel``: radius in m. ``level``: percent to begin with."""
        self._model = model
        self._rpm = (0.0, *(60 * gear / (math.tau * wheel) for gear in model.gears))
        self._friction = _FRICTION * model.displacement * math.tau / 60  # W a turn a minute
        self._band = model.most - model.idle
        self.litres = model.tank * level / 100
        self.level = level
        self.used = 0.0
        self.rpm = model.idle
        self.gear = 0
        self.kilowatts = 0.0
        self.filling = False
        self.attention = level < LOW
        """Whether ``low``, ``empty`` or ``fault`` say anything."""
        self.coolant_temperature = ambient

    def force(self, speed: float) -> float:
        """Return N that it can put to the wheels at a speed."""
        power = self._model.power * _DRIVELINE
        return power / speed if speed > 1 else power

    def step(self, force: float, speed: float, after: float, dt: float, auxiliary: float, ambient: float) -> None:
        """Drive or brake with ``force`` at a mean ``speed``, to the speed ``after``, for ``dt`` seconds."""
        model = self._model
        wheels = force * speed
        power = (wheels / _DRIVELINE if wheels > 0 else 0.0) + auxiliary
        share = min(power / model.power, 1.0)
        self._shift(after, share)
        friction = self._friction * self.rpm
        coasting = wheels < -friction and self.gear > 0
        heat = 0.0 if coasting else min(power + friction, 1.3 * model.power) / model.efficiency
        self.kilowatts = 0.0 if coasting else share * model.power / 1000
        self._burn(heat, dt)
        self._warm(heat, dt, ambient)

    def fill(self, dt: float, ambient: float) -> None:
        """Fill the tank for ``dt`` seconds, the engine off."""
        self.litres = min(self.litres + _PUMP * dt, self._model.tank)
        self.level = 100 * self.litres / self._model.tank
        self.rest(dt, ambient)

    def rest(self, dt: float, ambient: float) -> None:
        """Stand for ``dt`` seconds, the engine off."""
        self.gear = 0
        self.rpm = self.kilowatts = 0.0
        self._warm(0.0, dt, ambient)

    def _shift(self, speed: float, share: float) -> None:
        model, gear, per = self._model, self.gear, self._rpm
        if speed <= 0:
            self.gear, self.rpm = 0, model.idle
            return
        gear = gear or 1
        highest = model.idle + (0.30 + 0.45 * share) * self._band
        lowest = model.idle + (0.08 + 0.22 * share) * self._band
        while gear < len(model.gears) and speed * per[gear] > highest:
            gear += 1
        while gear > 1 and speed * per[gear] < lowest:
            gear -= 1
        self.gear = gear
        self.rpm = min(max(speed * per[gear], model.idle), model.most)

    def _burn(self, heat: float, dt: float) -> None:
        litres = min(heat * dt / LITRE, self.litres)
        self.litres -= litres
        self.used += litres
        self.level = 100 * self.litres / self._model.tank

    def _warm(self, heat: float, dt: float, ambient: float) -> None:
        model, warm = self._model, self.coolant_temperature
        opened = min(max((warm - _THERMOSTAT) / 10, 0.0), 1.0)
        away = model.power * (0.0003 + 0.0117 * opened) * (warm - ambient)
        self.coolant_temperature = warm + dt * (_COOLANT * heat - away) / (0.8 * model.power)
        self.attention = self.level < LOW or warm > _OVERHEATED

    @property
    def low(self) -> bool:
        """Whether it would be filled at a stop."""
        return self.level < LOW

    @property
    def could_take(self) -> bool:
        """Whether filling does anything; nobody fills a Diesel where it is parked."""
        return False

    @property
    def empty(self) -> bool:
        """Whether it has to stop at once."""
        return self.level < EMPTY

    @property
    def full(self) -> bool:
        """Whether filling ends."""
        return self.level >= _FULL

    @property
    def fault(self) -> str:
        """The trouble code of the state it is in, empty for none."""
        return "P0217" if self.coolant_temperature > _OVERHEATED else ""

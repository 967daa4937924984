"""One vehicle: it follows a speed trace along a route as far as its power allows, and says how that goes.

Every message is a UTF-8 JSON object without spaces. It begins with ``vehicle``, ``stream`` (``telemetry``, ``events``
or ``replies``), ``seq``, which counts the vehicle's messages of that stream from 1, and ``ts``, ms since 1970 UTC::

    {"vehicle":"V7","stream":"telemetry","seq":12,"ts":1700000012000,"Vehicle.Speed":48.3, …}
    {"vehicle":"V7","stream":"events","seq":2,"ts":1700000012000,"event":"harsh-braking", …}
    {"vehicle":"V7","stream":"replies","seq":1,"ts":1700000012000,"id":"c-1","times":1,"command":"lock","ok":true, …}
"""

from __future__ import annotations

import math
import random
from operator import attrgetter
from typing import Final

import msgspec

from fleet_simulator.vehicles import cycles, signals, troubles
from fleet_simulator.vehicles.combustion import Engine
from fleet_simulator.vehicles.commands import REMEMBERED, Done, carry_out
from fleet_simulator.vehicles.drives import Drive
from fleet_simulator.vehicles.electric import Battery
from fleet_simulator.vehicles.profiles import PROFILES, Electric, Profile
from fleet_simulator.vehicles.route import MADE, Route, made_up
from waybill.errors import ConfigError

TELEMETRY: Final = "telemetry"
EVENTS: Final = "events"
REPLIES: Final = "replies"

FINEST: Final = 1.0
"""Seconds of one step of the model at most; longer steps are cut up."""

SHORTEST: Final = 0.001
"""Seconds between two telemetry messages at least."""

LONGEST: Final = 86_400.0
"""Seconds that one call may ask for."""

HARSH: Final = -4.5
"""m/s² from which braking is an event; the next one counts after it was half of that."""

_GRAVITY: Final = 9.81
_AIR: Final = 1.2  # kg/m³
_INERTIA: Final = 1.05  # what turns weighs, too
_SCARES: Final = 0.04 / 1000  # hard stops a metre: one in 25 km
_TROUBLES: Final = 0.1 / 3600  # trouble codes a second: one in ten hours
_SCARE_BRAKING: Final = 6.5
_STILL: Final = 1e-9  # m/s: what rounding leaves of a speed
_DAY: Final = 86_400_000
_AIRING: Final = 60_000  # ms after which the air's temperature is worked out anew

_encode = msgspec.json.encode


class Said(msgspec.Struct, frozen=True, gc=False):
    """One message: its stream, its number there, and its bytes."""

    stream: str
    seq: int
    payload: bytes


class Vehicle:
    """A vehicle on its endless drive.

    ``travelled``: metres since the beginning. ``speed``: m/s. ``latitude``, ``longitude``, ``altitude``, ``heading``:
    where it is. ``acted``: how often each command id had an effect (once, or never), newest last.
    """

    def __init__(
        self,
        name: str,
        profile: Profile = PROFILES["car"],
        seed: int = 0,
        *,
        cycle: Drive | None = None,
        route: Route | None = None,
        start: float | None = None,
        period: float | None = None,
    ) -> None:
        """``name``: its id, a level of its topics. What is not given is drawn with ``seed`` from what the profile has.

        ``start``: metres along the route to begin at. ``period``: seconds between two telemetry messages.
        Raises ConfigError.
        """
        if not name or any(sign in name for sign in "/+#\0"):
            raise ConfigError(
                f"{name!r} cannot name a vehicle: it is a level of an MQTT topic, so it is not empty and has no '/', "
                "'+' or '#'"
            )
        if start is not None and not math.isfinite(start):
            raise ConfigError(f"vehicle {name}: start {start:g}: give metres along the route")
        if period is not None and not SHORTEST <= period <= LONGEST:
            raise ConfigError(
                f"vehicle {name}: period {period:g}: give seconds between two messages, {SHORTEST} to a day"
            )
        self.name = name
        self.profile = profile
        rng = random.Random(f"{seed}/{name}")  # noqa: S311 - the same for the same seed is the point
        self._chance = rng.random  # nothing else of it: other methods differ from one Python to the next
        drawn = [rng.random() for _ in range(9)]
        self.route = route if route is not None else made_up(int(drawn[0] * MADE))
        self.cycle = cycle or cycles.named(profile.cycles[int(drawn[1] * len(profile.cycles))])
        self._trace = self.cycle.speeds
        self._at = drawn[2] * len(self._trace)
        self._pace = 0.94 + 0.08 * drawn[3]
        self._parked = not any(self._trace)
        self._start = drawn[4] * self.route.lap if start is None else start
        self._odometer = 1e6 * (5 + 145 * drawn[5])
        self._climate = -2 + 22 * drawn[6]
        self.period = profile.period if period is None else period
        self._since = self.period * drawn[7]  # not all of a fleet at the same moment
        # What stands still and has no battery to look after takes any step at once.
        self._fine = self.period if self._parked and profile.power is None else min(FINEST, self.period)
        self.travelled = 0.0
        self.speed = self.acceleration = 0.0
        self.ambient = self._climate
        self._aired = -_AIRING
        level = 45 + 35 * drawn[8]
        self.power: Battery | Engine | None = None
        if isinstance(profile.power, Electric):
            self.power = Battery(profile.power, profile.wheel, level, self.ambient)
        elif profile.power is not None:
            self.power = Engine(profile.power, profile.wheel, level, self.ambient)
        self.locked = self._parked
        self.codes: list[str] = []
        self._possible = troubles.possible(profile.power)
        self._scare = 0.0
        self._calm = True
        self.acted: dict[str, int] = {}
        self._done: dict[str, Done] = {}
        self._seqs = {TELEMETRY: 0, EVENTS: 0, REPLIES: 0}
        self._values = attrgetter(*(one.attribute for one in profile.says))
        self._template = signals.template(name, TELEMETRY, profile.says)
        self._place()

    # -- driving --

    def step(self, now_ms: int, seconds: float, *, mute: bool = False) -> list[Said]:
        """Drive for ``seconds`` that end at ``now_ms`` (since 1970 UTC); return what is said in them, oldest first.

        ``mute``: drive all the same, but say nothing, and give no number to what was not said.
        """
        if not 0 < seconds <= LONGEST:
            raise ValueError(f"a step of {seconds!r} s: it must be more than 0 and at most {LONGEST:.0f}")
        count = math.ceil(seconds / self._fine - 1e-9)
        dt = seconds / count
        said: list[Said] = []
        for left in range(count - 1, -1, -1):
            at_ms = now_ms - int(1000 * dt * left)
            self._move(at_ms, dt, said)
            self._since += dt
            if self._since >= self.period - 1e-6:
                self._since -= self.period
                if not mute:
                    said.append(self._telemetry(at_ms))
        if mute:
            self._seqs[EVENTS] -= len(said)
            said.clear()
        if self._placed != self.travelled:
            self._place()
        return said

    def _move(self, at_ms: int, dt: float, said: list[Said]) -> None:
        power = self.power
        if abs(at_ms - self._aired) >= _AIRING:
            self._air(at_ms)
        if self._parked or (power is not None and power.filling):
            self._stand(power, at_ms, dt, said)
            return
        before = self.speed
        wanted = self._wanted(before, dt, at_ms, said)
        push, mean, force = self._motion(before, wanted, dt)
        after = before + push * dt
        if after < _STILL:
            after = 0.0
        self.speed = after
        self.acceleration = push
        self.travelled += mean * dt
        if push <= HARSH or not self._calm:
            self._brakes(push, at_ms, said)
        if power is None:
            return
        power.step(force, mean, after, dt, self.profile.auxiliary, self.ambient)
        if power.attention:
            if power.fault:
                self._breaks(power.fault, at_ms, said)
            if after == 0 and wanted == 0 and power.low:
                self._fill(power, at_ms, said)

    def _brakes(self, push: float, at_ms: int, said: list[Said]) -> None:
        """Tell of hard braking, once each time."""
        if self._calm:
            said.append(self._event(at_ms, "harsh-braking", signals.SPEED, signals.ACCELERATION))
        self._calm = push > HARSH / 2

    def _motion(self, before: float, wanted: float, dt: float) -> tuple[float, float, float]:
        """Return acceleration, mean speed and force at the wheels on the way to the speed that is wanted."""
        profile = self.profile
        push = (wanted - before) / dt
        if push > profile.pull:
            push = profile.pull
        elif push < -profile.brake:
            push = -profile.brake
        mean = before + push * dt / 2
        if mean <= 0:
            return push, mean, 0.0
        inert = profile.mass * _INERTIA
        against = (
            profile.mass * _GRAVITY * (profile.rolling + self.route.grade(self._start + self.travelled))
            + 0.5 * _AIR * profile.drag_area * mean * mean
        )
        force = inert * push + against
        if self.power is not None and force > (most := self.power.force(mean)):
            force = most
            push = max((force - against) / inert, -before / dt)
            mean = before + push * dt / 2
        return push, mean, force

    def _air(self, at_ms: int) -> None:
        """Work out the air's temperature anew: by the sun, coldest at four, warmest at four."""
        self._aired = at_ms
        day = at_ms % _DAY / _DAY + self.longitude / 360
        self.ambient = self._climate + 4.5 * math.sin(math.tau * day - 2.6)

    def _wanted(self, before: float, dt: float, at_ms: int, said: list[Said]) -> float:
        """Return the speed to be at after ``dt``: the trace's, or less where something happens."""
        chance = self._chance()
        if chance < _TROUBLES * dt and self._possible:
            self._breaks(self._possible[int(self._chance() * len(self._possible))], at_ms, said)
        elif chance > 1 - _SCARES * before * dt and before > 8:  # noqa: PLR2004 - m/s: nobody is scared in a queue
            self._scare = 0.4 * before
        if self.power is not None and self.power.attention and self.power.empty:
            return max(before - 1.5 * dt, 0.0)
        trace = self._trace
        self._at = at = (self._at + dt) % len(trace)
        second = int(at)
        here = trace[second]
        wanted = here + (trace[second + 1 - len(trace)] - here) * (at - second)
        wanted = min(wanted * self._pace, self.profile.top_speed)
        if self._scare:
            if before > self._scare:
                return min(wanted, max(before - min(_SCARE_BRAKING, self.profile.brake) * dt, self._scare))
            self._scare = 0.0
        return wanted

    def _stand(self, power: Battery | Engine | None, at_ms: int, dt: float, said: list[Said]) -> None:
        """Stay where it is: parked, charging or at the pump."""
        self.speed = self.acceleration = 0.0
        if power is None:
            return
        if not power.filling:
            power.rest(dt, self.ambient)
            if power.could_take:
                self._fill(power, at_ms, said)
            return
        power.fill(dt, self.ambient)
        if power.full:
            power.filling = False
            said.append(self._filling_event(power, at_ms, "ends"))

    def _fill(self, power: Battery | Engine, at_ms: int, said: list[Said]) -> None:
        power.filling = True
        said.append(self._filling_event(power, at_ms, "begins"))

    # -- what it says --

    def _telemetry(self, at_ms: int) -> Said:
        if self._placed != self.travelled:
            self._place()
        self._seqs[TELEMETRY] = seq = self._seqs[TELEMETRY] + 1
        return Said(TELEMETRY, seq, self._template % (seq, at_ms, *self._values(self)))

    def _filling_event(self, power: Battery | Engine, at_ms: int, what: str) -> Said:
        if isinstance(power, Battery):
            return self._event(at_ms, f"charging-{what}", signals.CHARGE)
        return self._event(at_ms, f"refuelling-{what}", signals.FUEL)

    def _breaks(self, code: str, at_ms: int, said: list[Said]) -> None:
        if code not in self.codes and len(self.codes) < troubles.MOST:
            self.codes.append(code)
            said.append(self._event(at_ms, "trouble-code", signals.CODES, signals.SPEED, code=code))

    def _event(self, at_ms: int, event: str, *shown: signals.Signal, code: str = "") -> Said:
        self._place()
        more: dict[str, object] = {"code": code, "meaning": troubles.MEANINGS[code]} if code else {}
        return self._say(EVENTS, at_ms, {"event": event, **more, **self.shown(*shown, *signals.PLACE)})

    def _say(self, stream: str, at_ms: int, body: dict[str, object]) -> Said:
        self._seqs[stream] = seq = self._seqs[stream] + 1
        return Said(stream, seq, _encode({"vehicle": self.name, "stream": stream, "seq": seq, "ts": at_ms, **body}))

    def shown(self, *shown: signals.Signal) -> dict[str, object]:
        """Return signals as they are now, by name."""
        return {one.name: msgspec.Raw(one.form.encode() % attrgetter(one.attribute)(self)) for one in shown}

    # -- where it is --

    def _place(self) -> None:
        self._placed = self.travelled
        self.latitude, self.longitude, self.altitude, self.heading = self.route.at(self._start + self.travelled)

    @property
    def metre(self) -> float:
        """Where it is along its route, metres from the first point: 0 to ``route.length``."""
        return self.route.metre(self._start + self.travelled)

    @property
    def lap(self) -> int:
        """How many laps it has finished, counted from the route's first point."""
        return int((self._start + self.travelled) // self.route.lap)

    # -- what signals read --

    @property
    def kmh(self) -> float:
        """Speed in km/h."""
        return 3.6 * self.speed

    @property
    def odometer_km(self) -> float:
        """What the odometer shows, km."""
        return (self._odometer + self.travelled) / 1000

    @property
    def seen_latitude(self) -> float:
        """Latitude as its receiver sees it, two metres off at most."""
        return self.latitude + (self.travelled * 7.31 % 1 - 0.5) * 3e-5

    @property
    def seen_longitude(self) -> float:
        """Longitude as its receiver sees it."""
        return self.longitude + (self.travelled * 5.77 % 1 - 0.5) * 3e-5

    @property
    def locked_json(self) -> bytes:
        """``locked`` as JSON."""
        return b"true" if self.locked else b"false"

    @property
    def codes_json(self) -> bytes:
        """``codes`` as JSON."""
        return _encode(self.codes)

    @property
    def trouble_count(self) -> int:
        """How many trouble codes it has."""
        return len(self.codes)

    @property
    def cell_voltage(self) -> float:
        """Volts of a sensor's cell, which gives less in the cold."""
        return 3.6 + 0.004 * (self.ambient - 20)

    # -- commands --

    def command(self, command_id: str, payload: bytes, now_ms: int) -> Said:
        """Carry out a command (see :mod:`fleet_simulator.vehicles.commands`) and return the reply.

        An id that it knows is not carried out again; the reply has the same content under a new ``seq``.
        """
        done = self._done.get(command_id)
        if done is None:
            done = carry_out(self, payload)
            self._done[command_id] = done
            self.acted[command_id] = 1 if done.ok else 0
            if len(self._done) > REMEMBERED:
                oldest = next(iter(self._done))
                del self._done[oldest], self.acted[oldest]
        body = {"id": command_id, "times": self.acted[command_id], **msgspec.structs.asdict(done)}
        return self._say(REPLIES, now_ms, body)

"""The data plan: what a metered link may carry from one cycle day to the next, and what waits when it runs short. Pure.

::

    bytes on the wire ──spend──▶ Account ──look──▶ used, forecast ──▶ lanes that wait
    clock ──────────────look──────▲

**A cycle** begins at 00:00 UTC of the cycle day, or of a month's last day where the month is shorter. The count is set
back then and at no other time, so the clock has to be believed: it must be called synchronised, and not have jumped for
``SETTLED`` seconds. While it is not, the cycle lasts for as long as this gateway has run of it, which is
never too short; what is spent meanwhile counts in the old cycle, and in the new one too if it turns out that one had
begun. A believed clock that goes back to the cycle before brings its count back.

**What waits.** Each rule of ``shed`` names lanes that wait from a share of the budget on: of what is used, or of what
the forecast says will be. At the budget every lane waits but the control lane. A rule by forecast lets its lanes go
again when the forecast has fallen by a tenth.

**The forecast** is what is used, and what the mean rate makes of the rest of the cycle. The mean is of about the last
day, and there is none before it was counted for an hour.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal

import msgspec

from waybill.errors import ConfigError
from waybill.printable import say_bytes
from waybill.wire import CONTROL_LANE

DAY: Final = 86_400.0
LONGEST: Final = 31 * DAY
"""Seconds of a cycle of which not even the beginning is known."""

SETTLED: Final = 5.0
"""Seconds for which the clock must not have jumped."""

STEP: Final = 1.0
"""Seconds by which wall time and monotonic time may drift apart between two looks: more is a jump."""

ENOUGH: Final = 3600.0
"""Seconds that the mean rate must be of."""

EASED: Final = 0.9
"""How far a forecast must fall below its limit until what waited for it goes again."""

INTERFACE: Final = "interface:"
_IFNAMSIZ: Final = 16
_RECORD: Final = 22  # what TLS 1.3 puts around a few bytes

_EPOCH: Final = dt.date(1970, 1, 1)
_FIRST, _LAST = 1, (dt.date(9998, 1, 1) - _EPOCH).days  # what dates can say, with room for the next month


class Shed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lanes that wait from ``at`` of the budget on (0.8: four fifths). ``by``: what is compared with it."""

    at: Annotated[float, msgspec.Meta(gt=0, le=10)]
    lanes: tuple[str, ...]
    by: Literal["used", "forecast"] = "used"


class PlanSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[plan]``.

    ``budget_bytes``: of a cycle, both directions together, as on the wire. ``cycle_day``: on which a cycle begins,
    UTC. ``count``: ``uplink`` counts the connections of the metered uplinks; ``interface:NAME`` all that passes a
    network interface, whoever sends it. ``shed``: what waits before the budget is used up.
    """

    budget_bytes: Annotated[int, msgspec.Meta(ge=1)]
    cycle_day: Annotated[int, msgspec.Meta(ge=1, le=31)] = 1
    count: str = "uplink"
    shed: tuple[Shed, ...] = ()

    @property
    def interface(self) -> str:
        """The network interface that is counted; empty where connections are."""
        return self.count.removeprefix(INTERFACE) if self.count.startswith(INTERFACE) else ""


def check(plan: PlanSettings, lanes: Sequence[str], where: str, *, metered: bool) -> None:
    """Check what a type cannot say. ``lanes``: those there are; ``metered``: an uplink is. Raises ConfigError."""
    if not metered:
        raise ConfigError(f"{where}: [plan]: which link is it for? say metered = true of an uplink")
    name = plan.interface
    if plan.count != "uplink" and (not 0 < len(name.encode()) < _IFNAMSIZ or "/" in name or name in {".", ".."}):
        raise ConfigError(f'{where}: [plan] count: {plan.count!r}: write "uplink" or "{INTERFACE}NAME"')
    for number, rule in enumerate(plan.shed, 1):
        for lane in rule.lanes:
            if lane == CONTROL_LANE:
                raise ConfigError(f"{where}: [plan] shed {number} lanes: {lane!r} never waits; leave it out")
            if lane not in lanes:
                known = ", ".join(repr(each) for each in lanes if each != CONTROL_LANE)
                raise ConfigError(f"{where}: [plan] shed {number} lanes: there is no lane {lane!r}; lanes are: {known}")
        if rule.by == "used" and rule.at >= 1:
            raise ConfigError(f'{where}: [plan] shed {number} at: every lane waits at 1; give less, or by = "forecast"')


class Account(msgspec.Struct):
    """What is kept over restarts. All bytes are of both directions together but for ``sent`` and ``received``.

    ``cycle``: the day (since 1970, UTC) on which the cycle began, 0 while that is not known; ``cycle_day``: as it was
    configured then. ``left_s``: seconds to its end at ``clock_s``, CLOCK_BOOTTIME of ``boot``. ``doubtful``: spent
    since the clock was last believed. ``since_ms``: wall time since when the count is of this cycle, 0: from its
    beginning on.
    ``last_cycle``, ``last_used``: the cycle before. ``mean_bytes``, ``mean_s``: of the mean rate, fading.
    ``interface``, ``at_sent``, ``at_received``: the interface's own counters when last looked at, in ``at_boot``.
    """

    cycle: int = 0
    cycle_day: int = 0
    left_s: float = LONGEST
    sent: int = 0
    received: int = 0
    doubtful: int = 0
    since_ms: int = 0
    last_cycle: int = 0
    last_used: int = 0
    mean_bytes: float = 0.0
    mean_s: float = 0.0
    boot: str = ""
    clock_s: float = 0.0
    interface: str = ""
    at_boot: str = ""
    at_sent: int = 0
    at_received: int = 0

    @property
    def used(self) -> int:
        """Bytes of this cycle."""
        return self.sent + self.received


class PlanState(msgspec.Struct, frozen=True):
    """The plan at one moment, for the status. Bytes, milliseconds since 1970 UTC.

    ``cycle_ms``, ``ends_ms``: when the cycle began and ends, None while the clock was never believed. ``since_ms``:
    when the count began, where that was within the cycle. ``forecast``: what will have been used at its end, None
    where that cannot be said yet. ``held``: the lanes that wait, on a metered link. ``stage``: how many rules are in
    force; ``used_up``: the budget is. ``idle``: what the connection costs in 30 days without a message, about.
    ``error``: why the count cannot be kept, or be made.
    """

    budget: int
    used: int
    sent: int
    received: int
    forecast: int | None
    cycle_ms: int | None
    ends_ms: int | None
    since_ms: int | None
    last_used: int | None
    stage: int
    used_up: bool
    held: tuple[str, ...]
    idle: int = 0
    error: str = ""


def idle_bytes(ping: float, *, tls: bool) -> int:
    """Return what a connection without a message costs in 30 days, bytes, about. ``ping``: seconds between two pings.

    Over IPv4: PINGREQ, PINGRESP and the acknowledgement of TCP, each with 52 bytes of headers.
    """
    return int(30 * DAY / ping * (3 * 52 + 2 * (2 + (_RECORD if tls else 0))))


def began(day: int, cycle_day: int) -> int:
    """Return the day on which the cycle began that ``day`` is of. Days since 1970."""
    date = _EPOCH + dt.timedelta(day)
    if (first := _in_month(date.year, date.month, cycle_day)) <= day:
        return first
    before = date.replace(day=1) - dt.timedelta(1)
    return _in_month(before.year, before.month, cycle_day)


def ends(cycle: int, cycle_day: int) -> int:
    """Return the day on which the cycle after that of day ``cycle`` begins. Days since 1970."""
    date = _EPOCH + dt.timedelta(cycle)
    if (this := _in_month(date.year, date.month, cycle_day)) > cycle:
        return this
    after = date.replace(day=1) + dt.timedelta(31)
    return _in_month(after.year, after.month, cycle_day)


def _in_month(year: int, month: int, day: int) -> int:
    first = dt.date(year, month, 1)
    length = ((first + dt.timedelta(31)).replace(day=1) - first).days
    return (first - _EPOCH).days + min(day, length) - 1


class DataPlan:
    """One gateway's plan. ``lanes``: all there are; ``boot``: the id of this boot, empty where there is none."""

    def __init__(self, settings: PlanSettings, lanes: Iterable[str], account: Account, boot: str) -> None:
        self.sent = self.received = 0
        """Bytes counted since the start; the account goes back further, and begins anew with each cycle."""
        self.account = account
        self._settings = settings
        self._lanes = tuple(lane for lane in lanes if lane != CONTROL_LANE)
        self._boot = boot
        self._offset = math.nan
        self._believed_from = math.inf
        self._now = account.clock_s if boot and account.boot == boot else None
        self._by_forecast: frozenset[int] = frozenset()
        self._said: tuple[int, bool] = (0, False)
        self.believed = False
        """Whether the clock was, at the last look."""
        self.stage = 0
        self.held: tuple[str, ...] = ()
        """The lanes that wait."""

    # --- what is spent ---

    def spend(self, sent: int, received: int) -> None:
        """Count bytes on the wire."""
        account = self.account
        self.sent += sent
        self.received += received
        account.sent += sent
        account.received += received
        account.doubtful += sent + received
        account.mean_bytes += sent + received

    def interface(self, name: str, sent: int, received: int) -> None:
        """Take the counters of the network interface ``name``: what they grew by since the last look is spent.

        Those of another boot, or lower ones, began anew at 0; the first ones ever are where counting begins.
        """
        account = self.account
        if account.interface == name:
            again = account.at_boot != self._boot
            self.spend(_grown(account.at_sent, sent, again=again), _grown(account.at_received, received, again=again))
        account.interface, account.at_boot = name, self._boot
        account.at_sent, account.at_received = sent, received

    # --- time ---

    def look(self, wall_ms: int, clock_s: float, *, synced: bool) -> list[str]:
        """Say what time it is, and decide what waits. Returns what is to be logged.

        ``clock_s``: CLOCK_BOOTTIME. ``synced``: whether the wall clock is called synchronised.
        """
        account, settings = self.account, self._settings
        notes: list[str] = []
        passed = max(0.0, clock_s - self._now) if self._now is not None else 0.0
        self._now, account.clock_s, account.boot = clock_s, clock_s, self._boot
        account.left_s -= passed
        fade = math.exp(-passed / DAY)
        account.mean_bytes, account.mean_s = account.mean_bytes * fade, account.mean_s * fade + passed
        day = wall_ms // 86_400_000
        self.believed = self._believes(wall_ms, clock_s, synced=synced) and _FIRST <= day <= _LAST
        if self.believed:
            self._believed(began(day, settings.cycle_day), wall_ms, notes)
            account.doubtful = 0
        elif account.left_s <= 0:
            self._next(notes)
        self._decide(notes)
        return notes

    def _believes(self, wall_ms: int, clock_s: float, *, synced: bool) -> bool:
        offset = wall_ms / 1000 - clock_s
        if not abs(offset - self._offset) <= STEP:  # so that NaN is a jump
            self._believed_from = clock_s + SETTLED
        self._offset = offset
        return synced and clock_s >= self._believed_from

    def _believed(self, cycle: int, wall_ms: int, notes: list[str]) -> None:
        """It is known to be a day of ``cycle``."""
        account, cycle_day = self.account, self._settings.cycle_day
        if not account.cycle:
            account.since_ms = wall_ms
        elif account.cycle_day != cycle_day:
            notes.append(f"cycles begin on day {cycle_day} from now on; the count goes on at {say_bytes(account.used)}")
        elif cycle > account.cycle:
            self._turn(cycle, account.doubtful, notes)
        elif cycle < account.cycle and cycle == account.last_cycle:
            account.received += account.last_used  # which way is not kept
            account.last_cycle = account.last_used = 0
            notes.append(f"the clock went back to the cycle of {_date(cycle)}; what was used of it counts again")
        account.cycle, account.cycle_day = cycle, cycle_day
        account.left_s = ends(cycle, cycle_day) * DAY - wall_ms / 1000

    def _next(self, notes: list[str]) -> None:
        """The clock is not believed, and this gateway has run for as long as the cycle was."""
        account, cycle_day = self.account, self._settings.cycle_day
        cycle = 0
        while account.left_s <= 0:
            known = cycle or account.cycle
            cycle = ends(known, cycle_day) if 0 < known < _LAST else 0
            account.left_s += (ends(cycle, cycle_day) - cycle) * DAY if cycle else LONGEST
        self._turn(cycle, 0, notes)
        account.cycle, account.cycle_day, account.doubtful = cycle, cycle_day, 0

    def _turn(self, cycle: int, carried: int, notes: list[str]) -> None:
        """Set the count back, to ``carried`` bytes."""
        account = self.account
        began_on = f" on {_date(cycle)}" if cycle else ""
        notes.append(f"a new cycle began{began_on}; {say_bytes(account.used)} were used in the one before")
        account.last_cycle, account.last_used = account.cycle, account.used
        account.sent, account.received, account.since_ms = 0, carried, 0

    # --- what waits ---

    @property
    def forecast(self) -> int | None:
        """Bytes that will have been used at the cycle's end; None where that cannot be said."""
        account = self.account
        if account.mean_s < ENOUGH or not account.cycle:
            return None
        return account.used + int(account.mean_bytes / account.mean_s * max(0.0, account.left_s))

    @property
    def used_up(self) -> bool:
        """Whether the budget is."""
        return self.account.used >= self._settings.budget_bytes

    def _decide(self, notes: list[str]) -> None:
        budget, used, forecast = self._settings.budget_bytes, self.account.used, self.forecast
        active, by_forecast = [], set[int]()
        for number, rule in enumerate(self._settings.shed):
            if rule.by == "used":
                if used >= rule.at * budget:
                    active.append(rule)
            elif forecast is not None:
                eased = EASED if number in self._by_forecast else 1.0
                if forecast >= rule.at * budget * eased:
                    by_forecast.add(number)
                    active.append(rule)
        self._by_forecast = frozenset(by_forecast)
        waits = set(self._lanes) if self.used_up else {lane for rule in active for lane in rule.lanes}
        self.held = tuple(lane for lane in self._lanes if lane in waits)
        self.stage = len(active)
        if (self.stage, self.used_up) != self._said:
            self._said = (self.stage, self.used_up)
            notes.append(self._say(forecast))

    def _say(self, forecast: int | None) -> str:
        used, budget = self.account.used, self._settings.budget_bytes
        expected = "" if forecast is None else f", {say_bytes(forecast)} expected by its end"
        spent = f"{say_bytes(used)} of {say_bytes(budget)} are used{expected}"
        if self.used_up:
            return f"the budget is used up: {spent}; everything but the control lane waits in the buffer"
        return f"{spent}; " + (f"these lanes wait: {', '.join(self.held)}" if self.held else "no lane waits")

    def state(self, *, idle: int = 0, error: str = "") -> PlanState:
        """Return the snapshot. ``idle``, ``error``: see there."""
        account = self.account
        known = account.cycle > 0
        return PlanState(
            budget=self._settings.budget_bytes,
            used=account.used,
            sent=account.sent,
            received=account.received,
            forecast=self.forecast,
            cycle_ms=account.cycle * 86_400_000 if known else None,
            ends_ms=ends(account.cycle, account.cycle_day) * 86_400_000 if known else None,
            since_ms=account.since_ms or None,
            last_used=account.last_used if account.last_cycle else None,
            stage=self.stage,
            used_up=self.used_up,
            held=self.held,
            idle=idle,
            error=error,
        )


def _grown(before: int, now: int, *, again: bool) -> int:
    return now if again or now < before else now - before


def _date(day: int) -> str:
    return (_EPOCH + dt.timedelta(day)).isoformat()

"""The data plan: when a cycle begins, what the count survives, and what waits."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec
import pytest

from edge_agent import config
from edge_agent.plan.plan import (
    DAY,
    ENOUGH,
    LONGEST,
    SETTLED,
    Account,
    DataPlan,
    PlanSettings,
    Shed,
    began,
    check,
    ends,
    idle_bytes,
)
from waybill.errors import ConfigError
from waybill.printable import say_bytes

LANES = ("control", "alarm", "bulk")
BUDGET = 1_000_000
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def days(text: str) -> int:
    """Return a date as days since 1970."""
    return (dt.date.fromisoformat(text) - EPOCH.date()).days


class Gateway:
    """A plan on a machine: the right time, a wall clock that may be wrong, and CLOCK_BOOTTIME."""

    def __init__(self, start: str = "2026-11-15T12:00", *, synced: bool = True, **settings: object) -> None:
        self.settings = PlanSettings(**({"budget_bytes": BUDGET} | settings))  # type: ignore[arg-type]
        self.time = dt.datetime.fromisoformat(start).replace(tzinfo=dt.UTC).timestamp()
        self.error = 0.0
        self.synced = synced
        self.boot, self.booted = "first", self.time - 100
        self.plan = DataPlan(self.settings, LANES, Account(), self.boot)
        self.notes: list[str] = []

    @property
    def account(self) -> Account:
        return self.plan.account

    def look(self, seconds: float = 0.0) -> None:
        """Let time pass, and look."""
        self.time += seconds
        wall_ms = int((self.time + self.error) * 1000)
        self.notes += self.plan.look(wall_ms, self.time - self.booted, synced=self.synced)

    def settle(self) -> Gateway:
        """Look until the clock would be believed."""
        self.look()
        self.look(SETTLED)
        return self

    def spend(self, count: int) -> None:
        self.plan.spend(count // 2, count - count // 2)
        self.look()

    def restart(self, *, off: float = 0.0, reboot: bool = False) -> None:
        """Start again from what is saved now."""
        saved = msgspec.json.encode(self.account)
        self.time += off
        if reboot:
            self.boot, self.booted = self.boot + "'", self.time - 10
        self.plan = DataPlan(self.settings, LANES, msgspec.json.decode(saved, type=Account), self.boot)
        self.look()


@pytest.mark.parametrize(
    ("day", "cycle_day", "first", "next_one"),
    [
        ("2026-11-15", 1, "2026-11-01", "2026-12-01"),
        ("2026-11-01", 1, "2026-11-01", "2026-12-01"),
        ("2026-12-31", 1, "2026-12-01", "2027-01-01"),
        ("2027-01-05", 10, "2026-12-10", "2027-01-10"),
        ("2026-02-28", 31, "2026-02-28", "2026-03-31"),
        ("2026-02-27", 31, "2026-01-31", "2026-02-28"),
        ("2026-03-30", 31, "2026-02-28", "2026-03-31"),
        ("2028-02-28", 30, "2028-01-30", "2028-02-29"),
        ("2028-02-29", 29, "2028-02-29", "2028-03-29"),
        ("2026-03-01", 29, "2026-02-28", "2026-03-29"),
        ("2026-04-30", 31, "2026-04-30", "2026-05-31"),
    ],
)
def test_a_cycle_begins_on_its_day_or_on_the_last_of_a_shorter_month(
    day: str, cycle_day: int, first: str, next_one: str
) -> None:
    assert began(days(day), cycle_day) == days(first)
    assert ends(days(first), cycle_day) == days(next_one)


@pytest.mark.parametrize("cycle_day", range(1, 32))
def test_cycles_follow_each_other_without_a_gap(cycle_day: int) -> None:
    cycle = began(days("2024-01-15"), cycle_day)
    for day in range(days("2024-01-15"), days("2032-03-02")):
        if day >= ends(cycle, cycle_day):
            cycle = ends(cycle, cycle_day)
        assert began(day, cycle_day) == cycle
        assert 28 <= ends(cycle, cycle_day) - cycle <= 31


def test_the_count_is_set_back_when_the_next_cycle_begins_and_says_so() -> None:
    gateway = Gateway("2026-11-30T23:59:00").settle()
    gateway.spend(700_000)
    assert gateway.account.used == 700_000
    gateway.look(50)
    assert gateway.account.used == 700_000
    gateway.look(5)
    assert (gateway.account.used, gateway.account.cycle) == (0, days("2026-12-01"))
    assert gateway.notes == ["a new cycle began on 2026-12-01; 700.0 kB were used in the one before"]
    state = gateway.plan.state()
    assert (state.last_used, state.since_ms) == (700_000, None)
    assert state.ends_ms == days("2027-01-01") * 86_400_000


@pytest.mark.parametrize("error", [-50 * 365 * DAY, 40 * DAY, 365 * DAY, 4000 * 365 * DAY])
def test_a_clock_that_nobody_vouches_for_neither_ends_a_cycle_nor_sets_the_count_back(error: float) -> None:
    gateway = Gateway().settle()
    gateway.spend(700_000)
    gateway.error, gateway.synced = error, False
    gateway.look(10)
    gateway.restart(reboot=True)
    gateway.look(DAY)
    assert (gateway.account.used, gateway.account.cycle) == (700_000, days("2026-11-01"))
    gateway.error, gateway.synced = 0.0, True
    gateway.settle()
    assert (gateway.account.used, gateway.account.cycle) == (700_000, days("2026-11-01"))


def test_a_jump_that_the_kernel_has_not_noticed_yet_changes_nothing() -> None:
    gateway = Gateway().settle()
    gateway.spend(700_000)
    gateway.error = 60 * DAY
    for _ in range(4):
        gateway.look(1)
    gateway.error = 0.0
    for _ in range(10):
        gateway.look(1)
    assert (gateway.account.used, gateway.account.cycle) == (700_000, days("2026-11-01"))


def test_a_clock_that_was_believed_and_goes_back_brings_the_count_back() -> None:
    gateway = Gateway().settle()
    gateway.spend(700_000)
    gateway.error = 60 * DAY
    gateway.settle()
    assert gateway.account.used == 0
    gateway.spend(100_000)
    gateway.error = 0.0
    gateway.settle()
    assert (gateway.account.used, gateway.account.cycle) == (800_000, days("2026-11-01"))
    assert "went back to the cycle of 2026-11-01" in gateway.notes[-1]


def test_what_was_spent_before_the_clock_was_set_counts_in_the_cycle_that_had_begun() -> None:
    gateway = Gateway("2026-11-29T12:00").settle()
    gateway.spend(700_000)
    gateway.synced, gateway.error = False, -40 * DAY
    gateway.restart(off=3 * DAY, reboot=True)
    gateway.spend(50_000)
    assert gateway.account.used == 750_000
    gateway.synced, gateway.error = True, 0.0
    gateway.settle()
    assert (gateway.account.used, gateway.account.cycle) == (50_000, days("2026-12-01"))


def test_without_a_clock_a_cycle_ends_after_it_has_run_for_as_long_and_not_sooner() -> None:
    gateway = Gateway("2026-11-20T00:00").settle()
    gateway.synced, gateway.error = False, -50 * 365 * DAY
    gateway.spend(700_000)
    gateway.restart(off=5 * DAY, reboot=True)  # which nobody can know
    gateway.look(5.9 * DAY)
    assert gateway.account.used == 700_000
    gateway.restart(off=4.9 * DAY)  # the same boot: this is known
    assert gateway.account.used == 700_000
    gateway.look(DAY)
    assert (gateway.account.used, gateway.account.cycle) == (0, days("2026-12-01"))
    gateway.look(30.1 * DAY)
    assert gateway.account.cycle == days("2026-12-01")
    gateway.look(70 * DAY)
    assert gateway.account.cycle == days("2027-03-01")


def test_a_clock_that_was_never_set_makes_cycles_of_31_days_and_their_dates_are_not_known() -> None:
    gateway = Gateway(synced=False)
    gateway.settle()
    gateway.spend(700_000)
    state = gateway.plan.state()
    assert (state.used, state.cycle_ms, state.ends_ms, state.forecast) == (700_000, None, None, None)
    gateway.look(LONGEST - 10)
    assert gateway.account.used == 700_000
    gateway.look(10)
    assert gateway.account.used == 0
    assert gateway.notes[-1] == "a new cycle began; 700.0 kB were used in the one before"
    gateway.spend(300_000)
    gateway.synced = True
    gateway.settle()
    state = gateway.plan.state()
    assert (state.used, state.cycle_ms) == (300_000, days("2026-12-01") * 86_400_000)
    assert state.since_ms is not None


def test_another_cycle_day_sets_nothing_back() -> None:
    gateway = Gateway("2026-11-15T12:00").settle()
    gateway.spend(700_000)
    gateway.settings = PlanSettings(BUDGET, cycle_day=10)
    gateway.restart()
    gateway.settle()
    assert (gateway.account.used, gateway.account.cycle) == (700_000, days("2026-11-10"))
    assert gateway.notes == ["cycles begin on day 10 from now on; the count goes on at 700.0 kB"]
    gateway.look(25 * DAY)
    assert (gateway.account.used, gateway.account.cycle) == (0, days("2026-12-10"))


def test_lanes_wait_in_stages_and_at_the_budget_all_but_control() -> None:
    gateway = Gateway(shed=(Shed(0.5, ("bulk",)), Shed(0.8, ("alarm",)))).settle()
    seen = []
    for _ in range(10):
        gateway.spend(100_000)
        seen.append((gateway.plan.stage, gateway.plan.held, gateway.plan.used_up))
    assert seen == [
        *[(0, (), False)] * 4,
        *[(1, ("bulk",), False)] * 3,
        *[(2, ("alarm", "bulk"), False)] * 2,
        (2, ("alarm", "bulk"), True),
    ]
    assert gateway.notes == [
        "500.0 kB of 1.0 MB are used; these lanes wait: bulk",
        "800.0 kB of 1.0 MB are used; these lanes wait: alarm, bulk",
        "the budget is used up: 1.0 MB of 1.0 MB are used; everything but the control lane waits in the buffer",
    ]
    gateway.restart()
    assert gateway.plan.held == ("alarm", "bulk")
    gateway.look(20 * DAY)
    gateway.settle()
    assert not gateway.plan.state().held
    assert gateway.notes[-1] == "0 B of 1.0 MB are used, 0 B expected by its end; no lane waits"


def test_the_forecast_is_what_the_mean_rate_makes_of_the_rest() -> None:
    gateway = Gateway("2026-11-21T00:00").settle()
    for _ in range(11):
        gateway.spend(100)
        gateway.look(300)
    assert gateway.plan.state().forecast is None
    gateway.spend(100)
    gateway.look(400)
    assert gateway.account.mean_s >= ENOUGH
    forecast = gateway.plan.state().forecast
    assert forecast is not None
    assert forecast == pytest.approx(100 / 300 * 10 * DAY, rel=0.05)


def test_lanes_shed_by_forecast_go_again_when_it_has_fallen_by_a_tenth() -> None:
    gateway = Gateway("2026-11-21T00:00", shed=(Shed(1.0, ("bulk",), "forecast"),)).settle()
    rate = BUDGET / (10 * DAY)
    for _ in range(30):
        gateway.spend(int(rate * 600 * 1.2))
        gateway.look(600)
    assert gateway.plan.held == ("bulk",)
    assert not gateway.plan.used_up
    limits = []
    while gateway.plan.held:
        gateway.look(600)
        forecast = gateway.plan.forecast
        assert forecast is not None
        limits.append(forecast / BUDGET)
    assert limits[-1] < 0.9 <= limits[-2]
    assert sum("wait" in note for note in gateway.notes) == 2


def test_an_interface_counts_from_where_it_was() -> None:
    gateway = Gateway().settle()
    gateway.plan.interface("wwan0", 1000, 9000)
    assert gateway.account.used == 0
    gateway.plan.interface("wwan0", 1500, 9700)
    assert (gateway.account.sent, gateway.account.received) == (500, 700)
    gateway.restart()  # others went on while the agent was away
    gateway.plan.interface("wwan0", 2000, 9700)
    assert gateway.account.used == 1700
    gateway.plan.interface("wwan0", 30, 40)  # made anew
    assert gateway.account.used == 1770
    gateway.restart(reboot=True)
    gateway.plan.interface("wwan0", 3000, 50)
    assert gateway.account.used == 1770 + 3050
    gateway.plan.interface("wwan1", 5, 5)
    gateway.plan.interface("wwan1", 6, 5)
    assert gateway.account.used == 1770 + 3051


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"count": "interface:"}, r'count: .*write "uplink" or "interface:NAME"'),
        ({"count": "interface:a/b"}, "count"),
        ({"count": "wwan0"}, "count"),
        ({"shed": (Shed(0.5, ("control",)),)}, r"\[plan\] shed 1 lanes: 'control' never waits"),
        ({"shed": (Shed(0.5, ("bulk",)), Shed(0.6, ("x",)))}, "shed 2 lanes: there is no lane 'x'; lanes are: 'alarm'"),
        ({"shed": (Shed(1.0, ("bulk",)),)}, 'shed 1 at: every lane waits at 1; give less, or by = "forecast"'),
    ],
)
def test_a_wrong_plan_is_refused_with_its_mend(settings: dict[str, object], fault: str) -> None:
    plan = PlanSettings(BUDGET, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=fault):
        check(plan, LANES, "edge.toml", metered=True)


def test_a_plan_needs_a_metered_uplink() -> None:
    with pytest.raises(ConfigError, match=r"edge.toml: \[plan\]: which link is it for\? say metered = true"):
        check(PlanSettings(BUDGET), LANES, "edge.toml", metered=False)
    check(PlanSettings(BUDGET, shed=(Shed(1.2, ("bulk",), "forecast"),)), LANES, "edge.toml", metered=True)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[plan]\n", "the key 'budget_bytes' is missing"),
        ("[plan]\nbudget_bytes = 0\n", "budget_bytes"),
        ("[plan]\nbudget_bytes = 1\ncycle_day = 32\n", "cycle_day"),
        ("[plan]\nbudget_bytes = 1\n", "which link is it for"),
        ('[plan]\nbudget_bytes = 1\nshed = [{ at = 0.5, lane = ["a"] }]\n', "unknown key 'lane'; did you mean 'lanes'"),
    ],
)
def test_a_wrong_table_is_named_with_its_mend(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(f'gateway = "g"\ndata = "d"\n[[uplink]]\nurl = "mqtt://h"\n{text}')
    with pytest.raises(ConfigError, match=fault):
        config.load(path)


def test_bytes_are_said_in_thousands() -> None:
    assert [say_bytes(n) for n in (0, 999, 1000, 12_345_678, 5 * 10**9)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 MB",
        "5.00 GB",
    ]
    assert say_bytes(idle_bytes(14, tls=True)) == "37.8 MB"

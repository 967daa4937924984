"""The data plan against a machine whose clock, power and agent fail: nothing spent is forgotten, no cycle is missed."""

from __future__ import annotations

import copy
import datetime as dt
import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_agent.plan.plan import DAY, SETTLED, Account, DataPlan, PlanSettings, began

LONG = bool(os.environ.get("WAYBILL_LONG"))
BUDGET = 10_000
FRAME = 3000


class PlanMachine(RuleBasedStateMachine):
    """``spent``: what went over the link and is not forgotten by a crash, by its true time."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: list[tuple[float, int]] = []
        self.saved: tuple[Account, list[tuple[float, int]]] = (Account(), [])
        self.error = 0.0
        self.synced = True
        self.boots = 0
        self.late = False

    @initialize(cycle_day=st.integers(1, 31), start=st.integers(0, 1500), second=st.integers(0, 86_399))
    def first_start(self, cycle_day: int, start: int, second: int) -> None:
        self.settings = PlanSettings(BUDGET, cycle_day)
        self.now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp() + start * DAY + second
        self.booted = self.now - 10
        self.plan = DataPlan(self.settings, ["control", "bulk"], Account(), "0")
        self.set_clock()
        self.save()

    def look(self, seconds: float = 0.0) -> None:
        """Look after ``seconds``, and check that a cycle began if it should."""
        self.now += seconds
        was_believed, before = self.plan.believed, self.plan.account.cycle
        self.plan.look(int((self.now + self.error) * 1000), self.now - self.booted, synced=self.synced)
        if before != self.plan.account.cycle and self.late and not self.plan.believed:
            self.spent.clear()  # without a clock, and with hours that nobody counted, it could not begin in time
        if self.plan.believed:
            self.late = False
            assert self.plan.account.cycle == self.cycle
            if was_believed and before != self.cycle:
                assert self.plan.account.used == self.used

    @property
    def cycle(self) -> int:
        """The day on which the true cycle began."""
        return began(int(self.now // DAY), self.settings.cycle_day)

    @property
    def used(self) -> int:
        """What was truly used of it, as far as a crash has not made it forgotten."""
        return sum(count for at, count in self.spent if at >= self.cycle * DAY)

    @rule(seconds=st.floats(0, 4) | st.floats(0, 20 * DAY))
    def wait(self, seconds: float) -> None:
        self.look(seconds)

    @precondition(lambda self: not self.plan.held)
    @rule(count=st.integers(1, FRAME))
    def send(self, count: int) -> None:
        self.plan.spend(count, 0)
        self.spent.append((self.now, count))
        self.look()

    @rule()
    def set_clock(self) -> None:
        self.error, self.synced = 0.0, True
        self.look()
        self.look(SETTLED)

    @rule(error=st.floats(-60 * 365 * DAY, 60 * 365 * DAY))
    def lose_clock(self, error: float) -> None:
        self.error, self.synced = error, False
        self.look()

    @precondition(lambda self: self.synced)
    @rule(error=st.floats(-400 * DAY, 400 * DAY))
    def jump_unnoticed(self, error: float) -> None:
        self.error = error
        self.look(0.5)
        self.look(SETTLED - 1)
        self.error = 0.0
        self.look(0.5)

    @rule()
    def save(self) -> None:
        self.saved = copy.copy(self.plan.account), list(self.spent)

    @rule(off=st.floats(0, 20 * DAY))
    def kill(self, off: float) -> None:
        self.now += off
        self.start()

    @rule()
    def cut_power(self) -> None:
        self.boots, self.booted = self.boots + 1, self.now
        self.late = True  # what ran since the last save is not known
        self.start()

    @rule(off=st.floats(0, 100 * DAY), before=st.integers(0, FRAME))
    def switch_off(self, off: float, before: int) -> None:
        """Nobody can say for how long; the clock is set a while after, when something was sent already."""
        self.now += off
        self.boots, self.booted = self.boots + 1, self.now
        self.error, self.synced = -off, False
        self.start()
        if not self.plan.held:
            self.plan.spend(0, before)
            self.spent.append((self.now, before))
        self.set_clock()
        self.save()

    def start(self) -> None:
        account, spent = self.saved
        self.spent = list(spent)
        self.plan = DataPlan(self.settings, ["control", "bulk"], copy.copy(account), str(self.boots))
        self.look()
        self.save()  # of which boot it is, and that the clock is believed, is on the disk at once
        if self.synced:
            self.look(SETTLED)
            self.save()

    @invariant()
    def nothing_of_this_cycle_is_forgotten(self) -> None:
        assert self.plan.account.used >= self.used

    @invariant()
    def no_more_than_a_frame_goes_beyond_the_budget(self) -> None:
        assert self.used < BUDGET + FRAME


TestPlan = PlanMachine.TestCase
TestPlan.settings = settings(
    max_examples=3000 if LONG else 150, stateful_step_count=60, deadline=None, derandomize=not LONG
)

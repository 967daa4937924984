"""The data plan's account in its file, and what is read of an interface."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import pytest

from edge_agent.clock import Clock
from edge_agent.plan.meter import FILE, IDLE_SECONDS, SAVE_BYTES, SAVE_SECONDS, Meter, counters_of, encode, load, write
from edge_agent.plan.plan import Account, PlanSettings, Shed
from edge_agent.uplink.config import UplinkSettings
from edge_agent.uplink.traffic import Traffic

BUDGET = 1_000_000


class SetClock(Clock):
    """A clock that a test sets."""

    now = 1000.0

    def mono(self) -> float:
        return self.now


class Line:
    """A connection, and what all of them have cost."""

    def __init__(self) -> None:
        self.cost = Traffic()
        self.frames = 0

    def traffic(self) -> dict[str, Traffic]:
        return {"lte": self.cost, "wifi": Traffic(10**6, 10**6)}

    async def send(self, frame: bytes) -> int:
        self.cost = self.cost.plus(Traffic(len(frame), 0))
        self.frames += 1
        return self.frames

    def has_left(self, mark: int) -> bool:
        return mark < self.frames


class Bench:
    """A meter on a line."""

    def __init__(self, data: Path, **settings: object) -> None:
        self.line = Line()
        self.shut: list[set[str]] = []
        self.clock = SetClock(synced=lambda: False)
        plan = PlanSettings(**({"budget_bytes": BUDGET} | settings))  # type: ignore[arg-type]
        self.meter = Meter(
            plan,
            {"lte": UplinkSettings("mqtts://ingest", metered=True)},
            ["control", "bulk", "alarm"],
            data,
            clock=self.clock,
            traffic=self.line.traffic,
            shut=self.note,
        )

    def note(self, lanes: Collection[str]) -> None:
        self.shut.append(set(lanes))

    def spend(self, sent: int, received: int = 0) -> None:
        self.line.cost = self.line.cost.plus(Traffic(sent, received))
        self.meter.look()


async def test_lanes_are_shut_between_two_frames_and_on_metered_links_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, shed=(Shed(0.5, ("bulk",)),))
    with bench.meter.over(bench.line, metered=True) as sender:
        mark = await sender.send(b"x" * 499_999)
        assert (sender.has_left(mark), bench.shut) == (False, [])
        await sender.send(b"x")
        assert bench.shut == [{"bulk"}]
        await sender.send(b"x" * 500_000)
        assert bench.shut == [{"bulk"}, {"bulk", "alarm"}]
    assert bench.shut.pop() == set()
    with bench.meter.over(bench.line, metered=False) as sender:
        assert sender is bench.line
        assert bench.shut == [{"bulk"}, {"bulk", "alarm"}]
        # A better link is there before the worse is gone.
        with bench.meter.over(bench.line, metered=True):
            assert bench.shut[-1] == {"bulk", "alarm"}
    assert bench.shut[-1] == set()


async def test_a_restart_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.spend(300, 700)
    await bench.meter.close()
    again = Bench(tmp_path)
    again.spend(5)
    state = again.meter.state()
    assert (state.sent, state.received, state.used) == (305, 700, 1005)
    assert again.meter.counters() == {"plan_sent": 5, "plan_received": 0, "plan_saves": 0}  # since the start


async def test_it_is_saved_after_so_many_bytes_or_so_long_or_when_something_changes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, shed=(Shed(0.5, ("bulk",)),))
    meter = bench.meter

    async def due() -> bool:
        if is_due := meter._is_due():
            await meter.save()
        return is_due

    bench.spend(0)
    assert await due()  # of this boot
    bench.spend(SAVE_BYTES - 1)
    assert not await due()
    bench.spend(1)
    assert await due()
    bench.spend(1)
    assert not await due()
    bench.clock.now += SAVE_SECONDS
    assert await due()
    bench.clock.now += SAVE_SECONDS
    assert not await due()  # nothing was spent
    bench.clock.now += IDLE_SECONDS
    assert await due()
    bench.spend(500_000 - bench.meter.state().used - 1)
    assert await due()
    bench.spend(1)  # bulk waits from here on
    assert await due()
    assert meter.saves == 6
    assert load(tmp_path / FILE).used == 500_000
    assert Bench(tmp_path, budget_bytes=10**9).meter._step == 10**6


@pytest.mark.parametrize("damage", [b"", b"{}", b"00000000 {}\n", b"\xff" * 100])
def test_a_damaged_account_is_put_aside_and_its_loss_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    path = tmp_path / FILE
    path.write_bytes(damage)
    assert load(path) == Account()
    assert "data plan: the count is lost, it begins at 0" in caplog.text
    assert (tmp_path / "plan.damaged").read_bytes() == damage
    assert not path.exists()


def test_every_changed_byte_of_an_account_is_noticed(tmp_path: Path) -> None:
    whole = encode(Account(cycle=20_000, sent=123_456, boot="b", interface="wwan0"))
    path = tmp_path / FILE
    write(path, whole)
    assert encode(load(path)) == whole
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE]
    for at in range(len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert load(path) == Account(), at


def test_a_first_start_says_where_the_count_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert load(tmp_path / FILE) == Account()
    assert "there is no count in" in caplog.text


async def test_a_count_that_cannot_be_saved_is_said_once_and_saved_when_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "plan.new").mkdir()
    bench.spend(10)
    await bench.meter.save()
    await bench.meter.save()
    assert "the count cannot be saved" in bench.meter.state().error
    assert caplog.text.count("cannot be saved") == 1
    (tmp_path / "plan.new").rmdir()
    assert bench.meter._is_due()
    await bench.meter.save()
    assert bench.meter.state().error == ""
    assert load(tmp_path / FILE).used == 10


def test_an_interface_that_is_not_there_is_said_and_one_that_is_there_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, count="interface:none-such")
    bench.spend(100)
    bench.spend(100)
    assert bench.meter.state().used == 0
    assert bench.meter.state().error == "there is no network interface 'none-such' to count"
    assert caplog.text.count("none-such") == 1
    sent, received = counters_of("lo") or (-1, -1)
    assert sent == received >= 0
    bench = Bench(tmp_path, count="interface:lo")
    bench.meter.look()
    assert bench.meter.state().error == ""

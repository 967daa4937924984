"""How long the buffer holds, and when its backlog is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.buffer.port import Chunk, Commit
from edge_agent.buffer.settings import MIB, BufferSettings
from edge_agent.buffer.sqlite import SqliteBuffer
from edge_agent.plan.outlook import ENOUGH, Arrived, Outlook, Space, Waiting, on_disk
from waybill.mqtt.codec import publish

STEP = 5.0
GIB = 1 << 30


class Site:
    """A buffer that is filled and emptied at set rates; blocks of 10 messages."""

    def __init__(self, left: int = GIB, size: int = 1000) -> None:
        self.outlook = Outlook()
        self.now, self.size = 100.0, size
        self.used, self.left = 1 << 20, left
        self.arrived = self.count = 0
        self.online = True

    def run(self, seconds: float, rate_in: float, rate_out: float = 0.0, *, shut: bool = False, cap: int = 0) -> None:
        """Let so many messages a second come and go."""
        for _ in range(int(seconds / STEP)):
            self.now += STEP
            came = int(rate_in * STEP)
            gone = min(self.count + came, int(rate_out * STEP))
            self.arrived += came
            self.count += came - gone
            self.used += (came - gone) * self.size
            self.left -= (came - gone) * self.size
            arrived = Arrived(self.arrived * self.size, self.arrived // 10)
            behind = self.count > rate_in * 10
            waiting = Waiting("telemetry", self.count, self.count * self.size, cap, behind=behind, shut=shut)
            space = Space(self.used, self.left)
            self.outlook.sample(self.now, space, arrived, [waiting], online=self.online)


def test_nothing_is_said_before_enough_was_seen() -> None:
    site = Site()
    assert (site.outlook.holds_s, site.outlook.outage_s, site.outlook.drained_s) == (None, None, 0.0)
    site.online = False
    site.run(STEP, 100)
    assert (site.outlook.holds_s, site.outlook.known) == (None, False)
    site.run(ENOUGH + STEP, 100)
    assert site.outlook.holds_s is not None
    assert site.outlook.known
    site.online = True
    site.run(STEP, 100)
    assert not site.outlook.known, "of this phase"


def test_what_waits_without_an_uplink_is_a_backlog_at_once() -> None:
    site = Site()
    site.run(STEP, 100)
    assert site.count
    assert site.outlook.drained_s == 0.0
    site.online = False
    site.run(STEP, 100)
    assert site.outlook.drained_s is None


def test_in_an_outage_it_holds_for_what_is_left_at_the_rate_at_which_it_fills() -> None:
    site = Site()
    site.run(7200, 50, 50)
    assert site.outlook.holds_s is None
    assert site.outlook.drained_s == 0.0
    assert site.outlook.outage_s == pytest.approx(GIB / (50 * on_disk(10_000) / 10), rel=0.01)
    site.online = False
    for _ in range(10):
        site.run(600, 50)
        assert site.outlook.holds_s == pytest.approx(site.left / 50_000, rel=0.001)
        assert site.outlook.drained_s is None


def test_a_rate_that_comes_in_gusts_is_the_mean_of_the_outage() -> None:
    site = Site()
    site.online = False
    for _ in range(20):
        site.run(10, 500)
        site.run(50, 0)
    assert site.outlook.holds_s == pytest.approx(site.left / (500 / 6 * 1000), rel=0.15)


def test_a_backlog_is_gone_at_the_rate_at_which_it_falls_or_never() -> None:
    site = Site()
    site.online = False
    site.run(3600, 100)
    site.online = True
    site.run(60, 100, 300)
    assert site.outlook.drained_s == pytest.approx(site.count / 200, rel=0.01)
    assert site.outlook.holds_s is None
    assert site.outlook.lane("telemetry")[1] == pytest.approx(site.count / 200, rel=0.01)
    site.run(90, 100, 60)  # the link got slow
    assert site.outlook.drained_s is None
    site.run(120, 100, 60)
    assert site.outlook.holds_s == pytest.approx(site.left / 40_000, rel=0.1)
    site.run(100_000, 100, 300)
    assert site.count < 2000
    assert site.outlook.drained_s == 0.0


def test_a_backlog_that_begins_is_not_taken_for_the_one_before() -> None:
    site = Site()
    site.online = False
    site.run(3600, 100)
    site.online = True
    while site.outlook.drained_s != 0.0:
        site.run(STEP, 100, 1000)
    site.run(30, 100, 50)  # and at once the link got slow
    assert site.count > 1000
    assert site.outlook.drained_s is None


def test_a_lane_that_is_shut_never_drains_and_is_no_part_of_the_whole() -> None:
    site = Site()
    site.online = False
    site.run(600, 100)
    site.online = True
    site.run(60, 100, 0, shut=True)
    assert site.outlook.drained_s == 0.0
    assert site.outlook.lane("telemetry") == (None, None)


def test_a_lane_that_is_shut_does_not_slow_the_others_down() -> None:
    outlook = Outlook()
    for number in range(20):
        both = [Waiting("open", 10_000 - 100 * number, 10**6), Waiting("shut", 1000 * number, 10**6, shut=True)]
        outlook.sample(number * STEP, Space(10**7, GIB), Arrived(number, number), both, online=True)
    assert outlook.drained_s == pytest.approx((10_000 - 100 * 19) / (100 / STEP), rel=0.01)
    assert outlook.lane("open")[1] == pytest.approx(outlook.drained_s)


def test_a_lane_with_a_cap_of_its_own_is_full_before_the_buffer() -> None:
    site = Site()
    site.online = False
    site.run(600, 100, cap=100_000_000)
    assert site.outlook.lane("telemetry")[0] == pytest.approx((100_000_000 - site.count * 1000) / 100_000, rel=0.01)
    assert site.outlook.lane("none") == (None, None)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**6), st.booleans())))
def test_it_never_says_a_negative_time(samples: list[tuple[int, int, int, bool]]) -> None:
    outlook = Outlook()
    arrived = 0
    for number, (used, left, count, online) in enumerate(samples):
        arrived += count
        waiting = [Waiting("a", count, used, 1000), Waiting("b", count // 2, left, shut=online)]
        outlook.sample(number * 5.0, Space(used, left), Arrived(arrived, number), waiting, online=online)
        for said in (outlook.holds_s, outlook.outage_s, outlook.drained_s, *outlook.lane("a"), *outlook.lane("b")):
            assert said is None or said >= 0


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many commits, and no power cut."""
    monkeypatch.setattr(SqliteBuffer.engine, "synchronous", "OFF")


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("messages", "size"), [(1, 40), (1, 1000), (1, 5000), (10, 200), (100, 200), (1000, 200)])
async def test_what_a_block_takes_is_what_the_file_grows_by(tmp_path: Path, messages: int, size: int) -> None:
    buffer = await SqliteBuffer.open(tmp_path, BufferSettings(min_free_bytes=0), gateway="gw1", boot="b")
    before, left = await buffer.space()
    raw = publish(b"vehicles/V7/telemetry", b"x" * size, 0) * messages
    count = max(20, 500 // messages)
    for _ in range(count):
        await buffer.commit(Commit(chunks=[Chunk("telemetry", "V7", 4, 1000, 0, 0, messages, raw)]))
    after, rest = await buffer.space()
    counters = buffer.counters
    await buffer.close()
    assert counters.blocks == count
    assert after - before == pytest.approx(count * on_disk(counters.bytes / counters.blocks), rel=0.05, abs=3 * 4096)
    assert left - rest == after - before


@pytest.mark.usefixtures("fast")
async def test_nothing_more_fits_when_lanes_begin_to_refuse(tmp_path: Path) -> None:
    settings = BufferSettings(max_bytes=16 * MIB, min_free_bytes=0, ballast_bytes=MIB)
    buffer = await SqliteBuffer.open(tmp_path, settings, gateway="gw1", boot="b")
    raw = publish(b"vehicles/V7/telemetry", b"x" * 50_000, 0)
    rest = []
    while not buffer.refusing:
        rest.append((await buffer.space())[1])
        await buffer.commit(Commit(chunks=[Chunk("telemetry", "V7", 4, 1000, 0, 0, 1, raw)]))
    assert (await buffer.space())[1] == 0
    assert 0 < rest[-1] < 70_000
    assert len(rest) > 50
    await buffer.close()

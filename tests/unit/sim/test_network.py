"""Networks as TCP sees them: rate, delay, and losses that come in bursts and hold up what is behind them."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_simulator.network.path import LONGEST_TIMEOUT, MOST_LOSSES, PACKET, Path, Weather
from fleet_simulator.network.profiles import PROFILES, Model
from waybill.errors import ConfigError

BURSTS = Model(good_s=20, bad_s=2, loss_good=0.005, loss_bad=0.3)


def weather(model: Model, seed: int = 1) -> Weather:
    chance = random.Random(seed)
    return Weather(model, chance.random, chance.expovariate)


def path(model: Model, *, up: bool = True, seed: int = 1) -> Path:
    return Path(weather(model, seed), random.Random(seed).random, up=up)


def test_a_rate_and_a_delay_are_what_they_say() -> None:
    one = path(Model(delay_ms=100, up_kbit=8, down_kbit=80))  # 1,000 bytes a second up
    assert one.arrival(0.0, 500) == pytest.approx(0.6)
    assert one.queued(0.0) == pytest.approx(0.5)
    assert one.arrival(0.0, 1000) == pytest.approx(1.6)  # behind the first
    assert one.arrival(10.0, 1000) == pytest.approx(11.1)  # nothing was in the way any more
    assert path(Model(delay_ms=100, up_kbit=8, down_kbit=80), up=False).arrival(0.0, 500) == pytest.approx(0.15)


def test_without_figures_nothing_takes_time() -> None:
    assert path(Model()).arrival(3.0, 1 << 20) == 3.0


def test_a_loss_costs_a_round_trip_where_others_follow_and_a_timeout_at_the_end() -> None:
    class Once(Weather):
        def lost(self, now: float) -> bool:  # noqa: ARG002
            self.left = getattr(self, "left", 1) - 1
            return self.left == 0

    model = Model(delay_ms=300)
    chance = random.Random(1)
    alone = Path(Once(model, chance.random, chance.expovariate), chance.random, up=True)
    assert alone.arrival(0.0, 100) == pytest.approx(0.3 + 0.9)
    first_of_two = Path(Once(model, chance.random, chance.expovariate), chance.random, up=True)
    assert first_of_two.arrival(0.0, 2 * PACKET) == pytest.approx(0.3 + 0.6)
    assert (alone.lost, first_of_two.lost) == (1, 1)


def test_a_packet_that_is_always_lost_passes_in_the_end() -> None:
    one = path(Model(loss_good=1.0))
    assert one.arrival(0.0, 1) == pytest.approx(sum(min(0.2 * 2**n, LONGEST_TIMEOUT) for n in range(MOST_LOSSES)))
    assert one.lost == MOST_LOSSES


def test_in_the_long_run_the_share_is_the_models_and_losses_come_together() -> None:
    one = weather(BURSTS)
    lost = [one.lost(n * 0.1) for n in range(500_000)]  # fourteen hours
    share = sum(lost) / len(lost)
    assert share == pytest.approx(BURSTS.loss, rel=0.1)
    after_a_loss = sum(b for a, b in itertools.pairwise(lost) if a) / sum(lost)
    assert after_a_loss > 5 * share


def test_bad_phases_last_as_long_as_the_model_says() -> None:
    one = weather(Model(good_s=20, bad_s=2, loss_bad=1.0))
    lost = [one.lost(n * 0.1) for n in range(500_000)]
    phases = sum(b and not a for a, b in itertools.pairwise(lost))
    assert sum(lost) * 0.1 / phases == pytest.approx(2, rel=0.1)


def test_the_same_seed_has_the_same_weather() -> None:
    times = [n * 0.05 for n in range(20_000)]
    first, second, other = weather(BURSTS, 7), weather(BURSTS, 7), weather(BURSTS, 8)
    found = [first.lost(at) for at in times]
    assert found == [second.lost(at) for at in times]
    assert found != [other.lost(at) for at in times]


@given(
    st.sampled_from(sorted(PROFILES)),
    st.integers(0, 5),
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 20_000)), max_size=40),
)
def test_nothing_arrives_out_of_order_or_before_it_was_sent(
    name: str, seed: int, sent: list[tuple[float, int]]
) -> None:
    one = path(PROFILES[name], seed=seed)
    now = last = 0.0
    for pause, size in sent:
        now += pause
        arrived = one.arrival(now, size)
        assert arrived >= max(last, now + PROFILES[name].delay_ms / 1000)
        last = arrived


def test_a_change_lets_nothing_overtake() -> None:
    one = path(Model(delay_ms=5000))
    assert one.arrival(0.0, 10) == 5.0
    one.change(weather(Model()))
    assert one.arrival(1.0, 10) == 5.0
    assert one.arrival(6.0, 10) == 6.0


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (Model(delay_ms=-1), "delay_ms"),
        (Model(up_kbit=float("inf")), "up_kbit"),
        (Model(good_s=0), "good_s"),
        (Model(loss_bad=1.5), "loss_bad"),
        (Model(loss_good=float("nan")), "loss_good"),
    ],
)
def test_figures_that_cannot_be_are_named(model: Model, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[network\.x\] {field}: "):
        model.check("[network.x]")


def test_the_built_in_ones_can_be() -> None:
    for name, model in PROFILES.items():
        model.check(name)
    assert PROFILES["satellite"].delay_ms > 250
    assert PROFILES["nb-iot"].up_kbit < PROFILES["2g"].up_kbit < PROFILES["3g"].up_kbit < PROFILES["lte"].up_kbit

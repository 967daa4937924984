"""Scenarios: what they may say, what is wrong with others, and what happens when."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_simulator.network.zones import here
from fleet_simulator.run.pace import Pace
from fleet_simulator.run.world import place
from fleet_simulator.scenarios import Fault, LinkChange, Scenario, Zone, jump, load, parse, shipped, span, template
from fleet_simulator.schedule import moments
from waybill.errors import ConfigError

LEAST = """
[[gateway]]
name = "g"
count = 2
[[vehicle]]
name = "v"
count = 5
gateway = "g"
"""


def scenario(more: str = "", before: str = "") -> Scenario:
    return parse(before + LEAST + more, "x.toml", "x")


def test_what_comes_with_the_package_can_be_read_and_says_what_it_is() -> None:
    assert "commute" in shipped()
    for name in shipped():
        one = load(name)
        assert one.name == name
        assert one.about
        assert one.length <= 90 or one.pace != 1


def test_the_template_is_a_scenario(tmp_path: Path) -> None:
    one = parse(template(), "new")
    assert one.link
    assert one.fault
    uncommented = "\n".join(
        line.removeprefix("# ")
        if line.startswith(("# cycle", "# route", "# closed", "# interval", "# mqtt", "# window", "# queue"))
        else line
        for line in template().splitlines()
    )
    car = parse(uncommented, "new").vehicle[0]
    assert (car.mqtt, car.cycle, car.route[1], car.closed) == ("5", "urban", (48.14, 11.5, 530), False)
    (tmp_path / "mine.toml").write_text(template())
    assert load(str(tmp_path / "mine.toml")).name == "mine"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(5, 5), (0.5, 0.5), ("90s", 90), ("200ms", 0.2), ("5m", 300), ("2h", 7200), ("7d", 604_800), ("25%", 50)],
)
def test_times(text: float | str, seconds: float) -> None:
    assert span(text, "x", 200) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "-1s", "1 week", "10%", -1, float("inf"), float("nan")])
def test_what_is_no_time_is_told(text: float | str) -> None:
    with pytest.raises(ConfigError, match="at: .* is no time: write seconds"):
        span(text, "at")


def test_a_clock_can_jump_back() -> None:
    assert (jump("-2h", "by"), jump(-3, "by"), jump("8d", "by")) == (-7200, -3, 691_200)


@pytest.mark.parametrize(
    ("before", "more", "said"),
    [
        ("seconds = 0", "", "seconds: the run has to last"),
        ("pace = 0", "", "pace: 0: write 1 for real time"),
        ('pace = "quick"', "", "pace"),
        ('topic = "vehicles/{vehicle}"', "", "topic: .*write {vehicle} and {stream}"),
        ('topic = "v/{vehicle}/{stream}/{site}"', "", "topic: .*write {vehicle} and {stream} once each"),
        ('topic = "v/{vehicle}/{stream}/{"', "", "topic: .*write {vehicle} and {stream} once each"),
        ("speed = 2", "", "unknown key 'speed'"),
        ("seed = 9999999999999999999", "", "seed: 9999999999999999999: write a number of 18 digits"),
        ("", 'profile = "boat"', "'v' profile: there is no 'boat'; there are bus, car"),
        ("", 'cycle = "rally"', "'v' cycle: there is no 'rally'; there are .*commute, delivery"),
        ("", "route = [[48.1, 11.5]]", "'v' route: it is 0 m long; give two points or more"),
        ("", "route = [[48.1, 11.5], [11.5, 248.1]]", "'v' route: point 2 is .*: write latitude .* longitude"),
        ("", "route = [[48.1], [48.2]]", "'v' route: point 1 is .*: write latitude"),
        ("", "interval = 0", "'v' interval: more than 0"),
        ("", "window = 0", "window: 0: from 1"),
        ("", "queue = 5", "queue: 5: no less than window, 100"),
        ("", 'mqtt = "4"', "mqtt"),
        ("", '[[vehicle]]\nname = "v"\ngateway = "g"', "'v' is there twice"),
        ("", '[[vehicle]]\nname = "w"\ngateway = "h"', "'w' gateway: there is no 'h'; there are g"),
        ("", '[[vehicle]]\nname = "a/b"\ngateway = "g"', "letters, digits"),
        ("", '[[vehicle]]\nname = "w"\ngateway = "g"\ncount = 30000', "30005 vehicles; at most 20000"),
        ("", '[[gateway]]\nname = "h"', "'h': no .* is behind it"),
        ("", '[[link]]\nlink = "q"', "number 1 link: there is no 'q'; there are g"),
        ("", '[[link]]\nkind = "network"', "network: goes with kind"),
        ("", '[[link]]\nkind = "network"\nnetwork = "5g"', "there is no '5g'; there are 2g, 3g"),
        ("", "[[link]]\nevery = 5\nmean = 5", "every .* or mean"),
        ("", "[[link]]\nevery = 0", "every: more than 0"),
        (
            "",
            '[[link]]\nat = "100%"',
            r"\[\[link\]\] number 1 at: '100%' is not before the end, \d+ s: it never happens",
        ),
        ("", '[[link]]\nkind = "sever"', 'link.0..kind: .sever.: write "cut" or "black-hole" or'),
        ("", '[[link]]\nat = "soon"', "number 1 at: 'soon' is no time"),
        ("", '[[link]]\nfor = "-1s"', "number 1 for: '-1s' is no time"),
        ("", '[[fault]]\nwhat = "database"', "there is no 'database'; there are agent, ingest, kafka"),
        ("", '[[fault]]\nkind = "clock"', "by: goes with kind"),
        ("", '[[fault]]\nkind = "clock"\nby = "2h"\nwhat = "ingest"', "only the clock of an"),
        ("", '[[fault]]\nkind = "pause"', "how long it is stopped is missing"),
        ("", '[[fault]]\nwhat = "kafka"', r"where \[kafka\] has down and up"),
        ("", '[[zone]]\nname = "t"\nfirst = 5\nlast = 5', "first is below last"),
        ("", '[[zone]]\nname = "t"\nfirst = 5\nlast = 50\nnetwork = "2g"', "only a vehicle with a gateway of its own"),
        ("", '[[command]]\nvehicle = "w"', "vehicle: there is no 'w'; there are v"),
        ("", '[[command]]\nname = "explode"', "number 1 for 'v': Invalid value 'explode'"),
        ("", '[[command]]\nname = "charging-limit"\nvehicle = "v-2"', "number 1 for 'v': .*percent"),
        ("", '[[vehicle]]\nname="s"\nprofile="sensor"\ngateway="g"\n[[command]]', "for 's': a sensor can only"),
        ("", "[network.lte]\ndelay_ms = 5", "is built in"),
        ("", "[network.mine]\nloss_bad = 2", r"\[network.mine\] loss_bad: 2: a share"),
        ("", "[kafka]\n", "give either bootstrap"),
        ("", '[kafka]\nstart = ["kafka"]', "start and stop go together"),
        ("", '[target]\nmqtt = "mqtt://h"', r"leave \[\[gateway\]\]"),
        ("", '[kafka]\nbootstrap = "h:1"\ndown = ["x"]', "down and up go together"),
        (
            "",
            "[[gateway]]\nname = 'x'\n[gateway.agent.uplink]\nurl = 'x'\n[[vehicle]]\nname='w'\ngateway='x'",
            "sets that itself",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_the_mend(before: str, more: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        scenario(more, before + "\n")
    assert str(caught.value).startswith("x.toml: ")


def test_a_scenario_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file, and no scenario of that name; there are .*commute"):
        load(str(tmp_path / "none.toml"))


def test_vehicles_are_spread_evenly_and_some_carry_their_own_gateway() -> None:
    assert Counter(gateway for _, _, gateway in place(scenario())) == {"g-1": 3, "g-2": 2}
    own = scenario('[[gateway]]\nname = "o"\ncount = "each"\n[[vehicle]]\nname = "w"\ncount = 3\ngateway = "o"')
    assert [gateway for name, _, gateway in place(own) if name.startswith("w")] == ["o-1", "o-2", "o-3"]


LINKS = ["g-1", "g-2"]
STORY = """
[[link]]
link = "g-2"
at = "10%"
for = 5
[[link]]
kind = "half-open"
every = 20
pick = 1
[[fault]]
what = "ingest"
mean = "10s"
for = "1s"
until = "50%"
[[fault]]
at = 30
"""


def test_a_story_is_in_order_the_same_for_a_seed_and_within_its_bounds() -> None:
    one = scenario(STORY)
    found = moments(one, LINKS, LINKS, [])
    assert found == moments(one, LINKS, LINKS, [])
    assert found != moments(scenario(STORY, "seed = 2\n"), LINKS, LINKS, [])
    assert [moment.at for moment in found] == sorted(moment.at for moment in found)
    cut = [moment for moment in found if isinstance(moment.what, LinkChange) and moment.what.kind == "cut"]
    assert [(moment.at, moment.end, moment.subject) for moment in cut] == [(6, 11, "g-2")]
    half_open = [moment for moment in found if isinstance(moment.what, LinkChange) and moment.what.kind == "half-open"]
    assert [moment.at for moment in half_open] == [0, 20, 40]
    by_chance = [moment for moment in found if moment.subject == "ingest"]
    assert by_chance
    assert all(moment.at < 30 and moment.end == moment.at + 1 for moment in by_chance)
    assert [moment.subject for moment in found if isinstance(moment.what, Fault) and moment.at == 30] == LINKS


def test_what_happens_by_chance_happens_as_often_as_it_is_to() -> None:
    one = scenario('[[fault]]\nwhat = "ingest"\nmean = 10', "seconds = 10000\n")
    assert len(moments(one, LINKS, LINKS, [])) == pytest.approx(1000, rel=0.1)


def test_a_longer_run_stretches_shares_and_keeps_seconds() -> None:
    found = moments(scenario(STORY, "seconds = 600\n"), LINKS, LINKS, [])
    assert [(moment.at, moment.end) for moment in found if moment.subject == "g-2" and moment.number == 1] == [(60, 65)]


def test_too_much_of_a_story_is_told() -> None:
    with pytest.raises(ConfigError, match="more than 100000 things happen"):
        moments(scenario("[[link]]\nevery = '1ms'", "seconds = '1h'\n"), LINKS, LINKS, [])


def test_zones_come_again() -> None:
    zones = [Zone("tunnel", 100, 200, every=1000), Zone("valley", 2150, 2300, network="2g")]
    found = [here(zones, metre) for metre in (99, 100, 199.9, 200, 1150, 2160, 2250, 2300)]
    tunnel, valley = zones
    assert found == [None, tunnel, tunnel, None, tunnel, tunnel, valley, None]


def test_real_time_waits_for_nobody_and_other_times_do() -> None:
    real = Pace(1, 50.0)
    assert real.advance(51.0, 99, wait_for=0.5) == 1.0
    fast = Pace(60, 50.0)
    assert fast.advance(51.0, 99) == 60.0
    assert fast.advance(52.0, 99, wait_for=70) == 70.0
    assert fast.advance(53.0, 99, wait_for=70) == 70.0
    assert fast.advance(53.5, 99) == 100.0
    assert fast.pause_until(160) == 1.0
    most = Pace("max", 50.0)
    assert most.advance(50.0, 99) == 99
    assert most.advance(50.0, 120, wait_for=100) == 100
    assert most.pause_until(1e9) == 0


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), max_size=30), st.sampled_from([1, 0.5, 60, "max"]))
def test_time_never_goes_back(steps: list[tuple[float, float]], speed: float) -> None:
    pace, real, before = Pace(speed, 0.0), 0.0, 0.0
    for passed, wait_for in steps:
        real += passed
        now = pace.advance(real, before + 5, wait_for=wait_for)
        assert now >= before
        before = now

"""The pictures of the demonstration are pure: a view in, text out, whatever the width and without colour."""

from dataclasses import replace

import pytest
from rich.console import Console

from fleet_simulator.demo import GatewayView, Outcome, View
from fleet_simulator.demo_view import live, plain, table
from fleet_simulator.verdict import Comparison

VIEW = View(
    elapsed=17.25,
    seconds=60,
    stage="driving",
    gateways=(
        GatewayView("depot-1", "running", "cut", 730, 800, 10),
        GatewayView("depot-2", "killed", "online", None, 812, 0),
    ),
    connected=10,
    acked=1612,
    waiting=7,
    records=850,
    events=((0.0, "20 vehicles drive"), (9.0, "the uplink of depot-1 is cut [for] 15 s")),
)


def drawn(view: View, width: int) -> str:
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(live(view))
    return capture.get()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_live_picture_says_it_all(width: int) -> None:
    text = drawn(VIEW, width)
    assert "driving 17/60 s: 10 vehicles connected, 1612 messages acknowledged" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["depot-1", "running", "cut", "730", "10", "800"] in rows
    assert ["depot-2", "killed", "online", "–", "0", "812"] in rows
    assert "9.0 s  the uplink of depot-1 is cut [for] 15 s" in text


def test_only_the_last_events_are_drawn() -> None:
    many = replace(VIEW, events=tuple((float(n), f"event number {n}.") for n in range(50)))
    assert "event number 49." in drawn(many, 80)
    assert "event number 20." not in drawn(many, 80)


def test_the_plain_line() -> None:
    assert plain(VIEW) == (
        "  17.2 s  driving 17/60 s: 10 vehicles connected, 1612 messages acknowledged, 7 wait, 850 routed; "
        "depot-1: agent running, uplink cut, backlog 730, depot-2: agent killed, uplink online, backlog ?"
    )


def test_the_outcome_fails_with_the_verdict_or_the_command() -> None:
    comparison = Comparison()
    comparison.acked("V1", "telemetry", 1, 1)
    comparison.read("V1", "telemetry", 1, key="V1", place=("t", 0), ce_id="g/1/telemetry/1")
    good = Outcome(comparison.verdict(), "ok", (("lost", "0"),))
    assert good.passed
    assert good.line == "verdict: PASS delivered=1 lost=0 duplicated=0 out_of_order=0 command=ok"
    assert not replace(good, command="unanswered").passed
    assert replace(good, command="unanswered").line.startswith("verdict: FAIL ")
    console = Console(width=60, no_color=True)
    with console.capture() as capture:
        console.print(table(good))
    assert capture.get().split() == ["lost", "0"]

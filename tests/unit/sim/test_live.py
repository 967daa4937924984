"""What a run looks like while it goes on."""

import io

import pytest
from rich.console import Console

from fleet_simulator.report.live import Rates, line, picture, shown
from fleet_simulator.run.runner import GatewayView, View

GATEWAYS = (
    GatewayView("depot-1", "", running=True, backlog=3),
    GatewayView("depot-2", "black-hole", running=True, backlog=1200),
    GatewayView("depot-3", "", running=False, backlog=None),
)
VIEW = View("commute", "driving", 15, 60, 15, 40, 38, 30_000, 29_990, 0, 29_000, GATEWAYS)


def drawn(view: View, rates: Rates, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as said:
        console.print(picture(view, rates))
    return said.get()


def later(view: View, seconds: float, more: int) -> View:
    changes = {"elapsed": view.elapsed + seconds, "published": view.published + more, "acked": view.acked + more}
    return View(**{name: changes.get(name, getattr(view, name)) for name in View.__dataclass_fields__})


def test_a_picture_says_how_far_it_is_how_fast_and_which_link_is_away() -> None:
    rates = Rates()
    rates.take(VIEW)
    rates.take(later(VIEW, 2, 4000))
    text = drawn(VIEW, rates)
    assert all(len(row) <= 80 for row in text.splitlines())
    assert "25%, 15 s" in text
    assert "2,000/s" in text
    assert "38 of 40 vehicles online" in text
    rows = [row.split() for row in text.splitlines() if row.strip().startswith("depot")]
    assert [row[0] for row in rows] == ["depot-3", "depot-2", "depot-1"]
    assert rows[1] == ["depot-2", "running", "black-hole", "1,200"]


def test_a_line_names_who_is_away() -> None:
    text = "38/40 vehicles online, 30000 published, 29990 acked, 1203 in gateways, away: depot-2 depot-3"
    assert line(VIEW, Rates()) == f"  15.0 s  driving   {text}"


def test_why_no_vehicle_is_online_is_said_in_both() -> None:
    view = View(**{name: getattr(VIEW, name) for name in View.__dataclass_fields__} | {"online": 0, "trouble": "no\n"})
    assert "0/40 vehicles online (no\\n), 30000 published" in line(view, Rates())
    assert "0 of 40 vehicles online (no\\n)" in drawn(view, Rates())


def test_many_gateways_are_a_table_that_ends() -> None:
    many = tuple(GatewayView(f"G{n}", "", running=True, backlog=1) for n in range(500))
    view = View(**{name: getattr(VIEW, name) for name in View.__dataclass_fields__} | {"gateways": many})
    text = drawn(view, Rates())
    assert "and 488 more" in text
    assert len(text.splitlines()) < 25


@pytest.mark.parametrize("color", [False, True])
def test_on_a_terminal_it_is_drawn_without_colour_where_nobody_wants_one(
    *, color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    with shown(Console(file=out, force_terminal=True, width=100)) as show:
        show(VIEW)
    assert "depot-2" in out.getvalue()
    assert ("\x1b[1;31m" in out.getvalue()) is color


def test_elsewhere_it_is_lines_not_more_often_than_needed() -> None:
    out = io.StringIO()
    with shown(Console(file=out, force_terminal=False)) as show:
        for seconds in (0, 1, 2, 5.5, 6, 11):
            show(later(VIEW, seconds, round(seconds * 100)))
    rows = out.getvalue().splitlines()
    assert [row.split()[0] for row in rows] == ["15.0", "20.5", "26.0"]
    assert "\x1b" not in out.getvalue()

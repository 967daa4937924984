"""What the demonstration looks like: pure rendering of frozen views, for a terminal and as plain lines."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleet_simulator.demo import Outcome, View

_EVENTS = 12
_GOOD = {"online": "green", "running": "green"}
_BAD = {"cut": "bold red", "killed": "bold red", "offline": "red"}


def live(view: View) -> RenderableType:
    """Return the picture of one moment."""
    gateways = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name, right in (("gateway", False), ("agent", False), ("uplink", False), ("backlog", True), ("vehicles", True)):
        gateways.add_column(name, justify="right" if right else "left")
    gateways.add_column("acknowledged", justify="right")
    for one in view.gateways:
        backlog = "–" if one.backlog is None else f"{one.backlog}"
        gateways.add_row(one.name, _state(one.agent), _state(one.link), backlog, f"{one.vehicles}", f"{one.acked}")
    events = Text()
    for at, event in view.events[-_EVENTS:]:
        events.append(f"{at:6.1f} s  ", style="dim")
        events.append(f"{event}\n")
    return Group(Text(headline(view), style="bold"), gateways, events)


def headline(view: View) -> str:
    """Return how far it is, in one line."""
    records = "" if view.records is None else f", {view.records} routed"
    return (
        f"{view.stage} {min(view.elapsed, view.seconds):.0f}/{view.seconds:.0f} s: "
        f"{view.connected} vehicles connected, {view.acked} messages acknowledged, {view.waiting} wait{records}"
    )


def plain(view: View) -> str:
    """Return one line on how it is, for where nothing can be drawn over."""
    states = ", ".join(
        f"{one.name}: agent {one.agent}, uplink {one.link}, backlog {'?' if one.backlog is None else one.backlog}"
        for one in view.gateways
    )
    return f"{view.elapsed:6.1f} s  {headline(view)}; {states}"


def table(outcome: Outcome) -> RenderableType:
    """Return the table at the end."""
    found = Table(box=box.SIMPLE_HEAD, show_header=False)
    for name, value in outcome.facts:
        found.add_row(name, value)
    return found


def _state(word: str) -> Text:
    return Text(word, style=_GOOD.get(word) or _BAD.get(word) or "")

"""What a run looks like while it goes on: a picture on a terminal, lines elsewhere; NO_COLOR takes the colours away."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fleet_simulator.run.runner import GatewayView, View
from waybill.printable import printable

ROWS: Final = 12
"""Gateways that are drawn, the worst first."""

_EVERY: Final = 5.0
_HISTORY: Final = 60
_SPARKS: Final = "▁▂▃▄▅▆▇█"


class Rates:
    """Messages a second, from view to view; the last minute of them."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.published: deque[float] = deque(maxlen=_HISTORY)
        self.acked: deque[float] = deque(maxlen=_HISTORY)
        self._before: View | None = None

    def take(self, view: View) -> None:
        """Note a view; one of the same moment, or of another stage's clock, says nothing."""
        before, self._before = self._before, view
        if before is not None and view.elapsed > before.elapsed:
            seconds = view.elapsed - before.elapsed
            self.published.append(max(0, view.published - before.published) / seconds)
            self.acked.append(max(0, view.acked - before.acked) / seconds)


def picture(view: View, rates: Rates) -> RenderableType:
    """Return the picture of one moment."""
    share = min(view.at / view.length, 1.0) if view.length else 1.0
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(view.name, style="bold"),
        Text(view.stage),
        ProgressBar(total=1.0, completed=share, width=30),
        Text(f"{share:.0%}, {view.elapsed:.0f} s"),
    )
    numbers = Table.grid(padding=(0, 2))
    for name, total, row in (("published", view.published, rates.published), ("acknowledged", view.acked, rates.acked)):
        now = f"{row[-1]:,.0f}/s" if row else ""
        numbers.add_row(name, Text(f"{total:,}", justify="right"), Text(now, justify="right"), Text(sparks(row)))
    if view.routed is not None:
        numbers.add_row("in the topic", Text(f"{view.routed:,}", justify="right"), "", "")
    silent = f", {view.silent:,} messages not made" if view.silent else ""
    online = Text(f"{view.online} of {view.vehicles} vehicles online{_why(view)}{silent}")
    return Group(head, numbers, online, _gateways(view))


def line(view: View, rates: Rates) -> str:
    """Return one line on how it is, for where nothing can be drawn over."""
    away = [one.name for one in view.gateways if one.link or not one.running]
    backlog = sum(one.backlog or 0 for one in view.gateways)
    rate = f" ({rates.published[-1]:.0f}/s)" if rates.published else ""
    text = (
        f"{view.elapsed:6.1f} s  {view.stage:8}  {view.online}/{view.vehicles} vehicles online{_why(view)}, "
        f"{view.published} published{rate}, {view.acked} acked, {backlog} in gateways"
    )
    more = f" and {len(away) - 5} more" if len(away) > 5 else ""  # noqa: PLR2004
    return text + (f", away: {' '.join(away[:5])}{more}" if away else "")


def sparks(values: deque[float]) -> str:
    """Return a row of bars, the highest value as the highest one."""
    most = max(values, default=0.0)
    return "".join(_SPARKS[round(value / most * (len(_SPARKS) - 1))] for value in values) if most else ""


@contextlib.contextmanager
def shown(console: Console) -> Iterator[Callable[[View], None]]:
    """Give what shows views on ``console``: a picture that changes, or a line each five seconds and at each stage."""
    rates = Rates()
    if not console.is_terminal:
        yield _lines(console, rates)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def draw(view: View) -> None:
            rates.take(view)
            live.update(picture(view, rates))

        yield draw


def _lines(console: Console, rates: Rates) -> Callable[[View], None]:
    stage, last = "", 0.0

    def tell(view: View) -> None:
        nonlocal stage, last
        rates.take(view)
        if view.stage != stage or view.elapsed - last >= _EVERY:
            stage, last = view.stage, view.elapsed
            console.print(line(view, rates), markup=False, highlight=False, soft_wrap=True)

    return tell


def _gateways(view: View) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("gateway", "agent", "uplink"):
        table.add_column(name)
    table.add_column("backlog", justify="right")
    ranked = sorted(view.gateways, key=_badness)
    for one in ranked[:ROWS]:
        agent = Text("running", style="green") if one.running else Text("down", style="bold red")
        link = Text(one.link, style="bold red") if one.link else Text("whole", style="green")
        table.add_row(Text(one.name), agent, link, "–" if one.backlog is None else f"{one.backlog:,}")
    if len(ranked) > ROWS:
        backlog = sum(one.backlog or 0 for one in ranked[ROWS:])
        table.add_row(Text(f"and {len(ranked) - ROWS} more", style="dim"), "", "", f"{backlog:,}")
    return table


def _why(view: View) -> str:
    return f" ({printable(view.trouble)})" if view.trouble else ""


def _badness(one: GatewayView) -> tuple[bool, bool, int]:
    return one.running, not one.link, -(one.backlog or 0)

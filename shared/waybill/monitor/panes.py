"""What a person has before them: a view, where they are in it, and what of it fits. Knows no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from waybill.monitor.sources import Feed
from waybill.monitor.table import Order, arranged, fit, heading, line
from waybill.monitor.views import Page, Table, View, waiting
from waybill.monitor.words import Bit, Line, bit, brief, clock, span, width

_NOTES: Final = 3
"""So many lines above a table."""


class Pane:
    """One screen and where one is in it. ``gateway``: whose it is, where the view is of one."""

    def __init__(self, view: View, gateway: str = "") -> None:
        """Begin at its top, with nothing known."""
        self.view = view
        self.gateway = gateway
        self.feed = Feed()
        self.order = view.order
        self._top = 0
        self._looked_at: object = None  # None: the first row, whichever that is (the last, where it follows)
        self._at = 0
        self._rows: list[Any] = []
        self._whole = 0
        self._index: dict[object, int] = {}
        self._of: tuple[Any, Order] | None = None
        self._summary: tuple[Any, Line] | None = None
        self._shown = (0, 0, 0, 0)
        self._room = 1

    # --- what is there ---

    @property
    def row(self) -> Any:  # noqa: ANN401 - of the view's table
        """The row that is looked at; None where there is none."""
        self._arrange()
        return self._rows[self._at] if self._rows else None

    @property
    def position(self) -> str:
        """What is shown of how much, in words."""
        first, last, found, whole = self._shown
        if not whole:
            return ""
        less = f"/{whole:,}" if found < whole else ""
        return f"{min(first + 1, last):,}–{last:,} of {found:,}{less}"

    def _arrange(self) -> None:
        body, picture = self.view.body, self.feed.picture
        if not isinstance(body, Table) or picture is None:
            return
        if self._of is None or self._of[0] is not picture or self._of[1] != self.order:
            rows = body.rows(picture)
            self._whole = len(rows)
            self._rows = arranged(rows, body.columns, self.order, body.text)
            self._index = {body.key(row): at for at, row in enumerate(self._rows)}
            self._of = (picture, self.order)
        last = max(0, len(self._rows) - 1)
        if self._looked_at is None:
            self._at = last if body.follows and not self.order.turned else 0
        else:
            self._at = self._index.get(self._looked_at, min(self._at, last))

    # --- keys ---

    def move(self, by: int) -> None:
        """Go ``by`` rows or lines down."""
        body = self.view.body
        if not isinstance(body, Table):
            self._top = max(0, self._top + by)
            return
        self._arrange()
        if self._rows:
            last = len(self._rows) - 1
            to = min(last, max(0, self._at + by))
            home = last if body.follows and not self.order.turned else 0
            self._looked_at = None if to == home else body.key(self._rows[to])

    def page(self, pages: int) -> None:
        """Go so many pages down."""
        self.move(pages * max(1, self._room - 1))

    def end(self, *, first: bool) -> None:
        """Go to the first or to the last."""
        self.move(-(1 << 40) if first else 1 << 40)

    def sort(self) -> None:
        """Sort by what comes next."""
        self._begin(self.order.by_next(self.view.sorts))

    def turn(self) -> None:
        """Sort the other way round."""
        self._begin(replace(self.order, turned=not self.order.turned))

    def filter(self, words: str) -> None:
        """Show what holds ``words``."""
        self._begin(replace(self.order, filter=words))

    def _begin(self, order: Order) -> None:
        self.order, self._top, self._looked_at = order, 0, None

    # --- lines ---

    def lines(self, cells: int, height: int, name: str) -> tuple[list[Line], int | None]:
        """Return what fits, and which line is looked at. ``name``: who is asked."""
        picture, body = self.feed.picture, self.view.body
        if picture is None:
            self._shown = (0, 0, 0, 0)
            return waiting(name, self.feed.error), None
        if isinstance(body, Page):
            whole = body.lines(picture, cells, self.order)
            self._top, self._room = min(self._top, max(0, len(whole) - height)), height
            shown = whole[self._top : self._top + height]
            self._shown = (self._top, self._top + len(shown), len(whole), len(whole))
            return shown, None
        return self._table(body, picture, cells, height)

    def _table(self, body: Table, picture: Any, cells: int, height: int) -> tuple[list[Line], int | None]:  # noqa: ANN401
        self._arrange()
        notes = body.notes(picture)
        if len(notes) > _NOTES:
            notes = [*notes[: _NOTES - 1], (Bit(f"  and {len(notes) - _NOTES + 1} more", "look"),)]
        fitting = fit(body.columns, cells)
        above = [*notes, heading(fitting, self.order)]
        room = self._room = max(1, height - len(above))
        self._top = max(0, min(max(self._at - room + 1, min(self._top, self._at)), len(self._rows) - room))
        shown = self._rows[self._top : self._top + room]
        self._shown = (self._top, self._top + len(shown), len(self._rows), self._whole)
        if not shown:
            why = "nothing holds all words of the filter" if self.order.filter else "nothing"
            return [*above, (Bit(f"  {why}", "quiet"),)], None
        return [*above, *(line(row, fitting) for row in shown)], len(above) + self._at - self._top

    def summary(self, now: float) -> Line:
        """Return the line above: how it all is, or for how long nothing was heard of it, and why."""
        feed = self.feed
        if feed.error:
            again = max(0.0, feed.due - now)
            old = f"this is {span(now - feed.seen)} old; " if feed.picture is not None else ""
            return (bit(f"✖ LOST {span(now - feed.lost)}; {old}{feed.error}; again in {brief(again)}", "bad"),)
        if feed.picture is None:
            return ()
        if self._summary is None or self._summary[0] is not feed.picture:
            self._summary = feed.picture, self.view.summary(feed.picture)
        return self._summary[1]

    def about(self) -> Line:
        """Return the line below: more of the row that is looked at."""
        body = self.view.body
        row = self.row if isinstance(body, Table) else None
        return body.about(row) if isinstance(body, Table) and row is not None else ()


def tabs(panes: Sequence[Pane], current: Pane, cells: int, name: str) -> Line:
    """Return the line at the top: the screens with their keys, of whom, and of when."""
    bits = [Bit(" Waybill ", "head")]
    for number, pane in enumerate(panes, 1):
        bits.append(Bit(f" [{pane.view.title}]" if pane is current else f"  {number} {pane.view.title}", "head"))
    if current not in panes:
        bits.append(Bit(f"  [{current.view.title}]", "head"))
    picture = current.feed.picture
    time = f"{clock(picture.at_ms)}Z" if picture is not None else ""
    room = cells - width(bits) - 1
    for right in (f"{name}  {time}", time, ""):
        if width((bit(right),)) + 2 <= room:
            return (*bits, Bit(" " * (room - width((bit(right),)))), bit(right, "quiet"))
    return tuple(bits)

"""Lines on a terminal: only those that changed are sent to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from waybill.monitor.words import Line, Tone, fitted

# The terminal's own sixteen colours: its owner chose them to be read, and they are a few bytes each.
STYLES: Final[dict[Tone, Style]] = {
    "": Style.null(),
    "head": Style(bold=True),
    "good": Style(color="green"),
    "look": Style(color="yellow"),
    "bad": Style(color="red", bold=True),
    "quiet": Style(dim=True),
}
_OLD: Final = Style(dim=True)
_CURSOR: Final = Style(reverse=True)


class Board(Widget):
    """A rectangle of lines, the first at its top."""

    DEFAULT_CSS = """
    Board { width: 1fr; height: 1fr; }
    Board.line { height: 1; }
    """

    def __init__(self, *, classes: str = "", id: str | None = None) -> None:  # noqa: A002 - textual's name
        """Show nothing."""
        super().__init__(classes=classes, id=id)
        self._lines: list[tuple[Line, bool]] = []
        self._old = False
        self._strips: dict[int, Strip] = {}

    def show(self, lines: Sequence[Line], *, cursor: int | None = None, old: bool = False) -> None:
        """Show ``lines``; the one at ``cursor`` as the one that is looked at. ``old``: they are not of now."""
        before, was_old = self._lines, self._old
        self._lines = [(line, at == cursor) for at, line in enumerate(lines[: self.size.height])]
        self._old = old
        for at in range(max(len(before), len(self._lines))):
            same = at < len(before) and at < len(self._lines) and before[at] == self._lines[at]
            if not same or was_old != old:
                self._strips.pop(at, None)
                self.refresh(Region(0, at, self.size.width, 1))

    def on_resize(self) -> None:
        """Forget how lines were cut."""
        self._strips.clear()

    def render_line(self, y: int) -> Strip:
        """Return the line ``y`` of the widget."""
        strip = self._strips.get(y)
        if strip is None or strip.cell_length != self.size.width:
            strip = self._strips[y] = self._strip(y)
        return strip

    def _strip(self, y: int) -> Strip:
        cells = self.size.width
        if y >= len(self._lines):
            return Strip.blank(cells)
        line, looked_at = self._lines[y]
        if looked_at:  # in one piece: patches of colour, turned round, are hard to read
            segments = [Segment("".join(each.text for each in fitted(line, cells)), _CURSOR)]
        else:
            segments = [
                Segment(each.text, _OLD if self._old and each.text.strip() else STYLES[each.tone])
                for each in fitted(line, cells)
            ]
        return Strip(segments, cells).simplify()

"""A terminal's lines as SVG: words where they stand, in the reader's own monospaced font, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from rich.cells import cell_len
from rich.segment import Segment

WIDE, HIGH, SIZE = 8.4, 18.0, 14
PAPER, INK, DIM = "#1e2227", "#d5d9de", "#868d96"
COLOURS = {"green": "#8fc36b", "yellow": "#e5c07b", "red": "#ef7a85"}
WORDS = re.compile(r"\S+(?: \S+)*")


def drawn(strips: Sequence[Sequence[Segment]], title: str) -> str:
    """Return the picture of a terminal with ``strips`` on it."""
    cells = max(sum(cell_len(each.text) for each in strip) for strip in strips)
    width, height = cells * WIDE + 20, len(strips) * HIGH + 20
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="100%" height="100%" rx="6" fill="{PAPER}"/>\n'
        f'<g font-family="ui-monospace, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="{SIZE}" '
        f'fill="{INK}">\n'
    )
    return head + "".join(line for at, strip in enumerate(strips) for line in _line(at, strip)) + "</g>\n</svg>\n"


def _line(at: int, strip: Sequence[Segment]) -> Iterator[str]:
    base, cell = 10 + at * HIGH, 0
    for text, style, _ in strip:
        long = cell_len(text)
        ink = COLOURS.get(style.color.name if style and style.color else "", "")
        if style and style.dim:
            ink = DIM
        if style and style.reverse:
            yield (
                f'<rect x="{10 + cell * WIDE:.1f}" y="{base:.1f}" width="{long * WIDE:.1f}" height="{HIGH:.0f}" '
                f'fill="{ink or INK}"/>\n'
            )
            ink = PAPER
        marks = (f' fill="{ink}"' if ink else "") + (' font-weight="bold"' if style and style.bold else "")
        for found in WORDS.finditer(text):
            x = 10 + (cell + cell_len(text[: found.start()])) * WIDE
            wide = cell_len(found[0]) * WIDE
            yield (
                f'<text x="{x:.1f}" y="{base + HIGH - 5:.1f}" textLength="{wide:.1f}"{marks} '
                f'xml:space="preserve">{escape(found[0])}</text>\n'
            )
        cell += long

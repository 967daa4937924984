"""Values as a terminal shows them. Pure.

A line is a row of bits: text and what it means (its tone). No state is told by a tone alone, so that nothing is lost
without colour. Text of devices and gateways comes in through :func:`bit` or :func:`cut`, which leave nothing in it that
a terminal obeys.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Final, Literal, NamedTuple, TypeAlias

from rich.cells import cell_len, chop_cells, set_cell_size

from waybill.printable import printable, say_span

Tone = Literal["", "head", "good", "look", "bad", "quiet"]
"""``head``: a title. ``good``, ``look``, ``bad``: all is well, a person should look, something is wrong."""


class Bit(NamedTuple):
    """A stretch of a line."""

    text: str
    tone: Tone = ""


Line: TypeAlias = tuple[Bit, ...]

GLYPHS: Final[dict[Tone, str]] = {"good": "●", "look": "▲", "bad": "✖", "quiet": "○", "": "·"}
"""What stands before a state, so that it is seen without colour, too."""

GAP: Final = 3
"""Cells between two columns of a page."""

NEVER: Final = "–"
"""What stands where there is no value."""

_BARS: Final = "▁▂▃▄▅▆▇█"


def bit(text: str, tone: Tone = "") -> Bit:
    """Return ``text``, of whoever, as a bit."""
    return Bit(printable(text), tone)


def width(line: Iterable[Bit]) -> int:
    """Return how many cells ``line`` takes."""
    return sum(cell_len(each.text) for each in line)


def text(line: Iterable[Bit]) -> str:
    """Return ``line`` without tones and without spaces at its end."""
    return "".join(each.text for each in line).rstrip()


def cut(words: str, cells: int, *, prose: bool = False) -> str:
    """Return ``words`` printable, in at most ``cells`` cells.

    What gives way is the middle, as names differ at their ends; of ``prose`` the end.
    """
    words = printable(words)
    if cell_len(words) <= cells:
        return words
    if prose and cells > 1:
        return set_cell_size(words, cells - 1).rstrip() + "…"
    if cells < 4:  # noqa: PLR2004 - no room for two ends
        return set_cell_size(words, cells).rstrip()
    tail = cells // 2
    end = ""
    for letter in reversed(words):
        if cell_len(letter + end) > tail:
            break
        end = letter + end
    return set_cell_size(words, cells - 1 - cell_len(end)) + "…" + end


def fitted(line: Iterable[Bit], cells: int) -> Line:
    """Return ``line`` in exactly ``cells`` cells: cut off at its end, or filled with spaces."""
    fit: list[Bit] = []
    room = cells
    for each in line:
        long = cell_len(each.text)
        if long > room:
            fit.append(Bit(set_cell_size(each.text, room), each.tone))
            return tuple(fit)
        fit.append(each)
        room -= long
    return (*fit, Bit(" " * room)) if room else tuple(fit)


def folded(words: str, cells: int, tone: Tone = "") -> list[Line]:
    """Return ``words`` printable, as lines of at most ``cells`` cells, broken between words where that can be."""
    lines: list[str] = []
    rest = ""
    for word in printable(words).split(" "):
        if cell_len(rest) + 1 + cell_len(word) <= cells and rest:
            rest = f"{rest} {word}"
            continue
        if rest:
            lines.append(rest)
        *whole, rest = chop_cells(word, max(cells, 2)) or [""]
        lines += whole
    return [(Bit(each, tone),) for each in [*lines, rest]]


def beside(left: Sequence[Line], right: Sequence[Line], cells: int) -> list[Line]:
    """Return two columns, the left one ``cells`` wide, ``GAP`` between them."""
    pairs = zip_longest(left, right, fillvalue=())
    return [(*fitted(one, cells), Bit(" " * GAP), *other) if other else one for one, other in pairs]


# --- numbers and times ---


def span(seconds: float | None) -> str:
    """Say a duration in its largest unit and the next smaller one: ``3 h 12 min``."""
    return NEVER if seconds is None else say_span(seconds)


def brief(seconds: float | None) -> str:
    """Say a duration in a table, in at most four cells: ``3h``."""
    if seconds is None:
        return NEVER
    rest = int(max(0.0, seconds))
    for unit, size in (("y", 365 * 86_400), ("d", 86_400), ("h", 3_600), ("m", 60)):
        if rest >= 2 * size or (rest >= size and unit != "m"):
            return f"{min(rest // size, 999)}{unit}"
    return f"{rest}s"


def count(number: float | None) -> str:
    """Say a number in a table, in at most five cells: ``1.2M``."""
    if number is None:
        return NEVER
    size = abs(float(number))
    sign = "-" if number < 0 else ""
    for unit in ("", "k", "M", "G", "T"):
        if size < 999.5:  # noqa: PLR2004 - else it is rounded to a thousand
            return f"{sign}{size:.1f}{unit}" if unit and size < 9.95 else f"{sign}{size:.0f}{unit}"  # noqa: PLR2004
        size /= 1000
    return f"{sign}{size:.0f}P"


def many(number: int, what: str) -> str:
    """Say how many there are of something: ``1 line``, ``2 lines``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size(number: float | None) -> str:
    """Say bytes: ``1.2 MiB``."""
    if number is None:
        return NEVER
    rest = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if rest < 1024:  # noqa: PLR2004 - a power of two
            return f"{rest:.0f} {unit}" if unit == "B" else f"{rest:.1f} {unit}"
        rest /= 1024
    return f"{rest:.1f} TiB"


def clock(at_ms: int) -> str:
    """Say a time of day, UTC: ``12:30:05``."""
    return moment(at_ms)[11:19]


def moment(at_ms: int) -> str:
    """Say a time, UTC: ``2026-11-21 12:30:05``."""
    try:
        return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "no time".ljust(19)


def sparkline(values: Sequence[float], cells: int) -> str:
    """Return the last values as bars, one a cell; more of them than cells are joined by their largest."""
    if not values or cells < 1:
        return ""
    each = -(-len(values) // cells)
    first = len(values) % each  # the newest group is whole
    groups = ([values[:first]] if first else []) + [values[at : at + each] for at in range(first, len(values), each)]
    tops = [max(0.0, *group) if len(group) > 1 else max(0.0, group[0]) for group in groups]
    most = max(tops)
    return "".join(" " if top <= 0 else _BARS[min(7, int(top / most * 8 - 1e-9))] for top in tops)


def bar(share: float, cells: int) -> str:
    """Return a share of 1 as a bar that fills ``cells``."""
    full = round(min(1.0, max(0.0, share)) * cells)
    return "█" * full + "░" * (cells - full)

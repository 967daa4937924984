"""A table as a value: columns, which rows show and in which order, and a row as a line. Pure.

Only rows that are on the screen are made into lines; filtering and sorting see all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from rich.cells import cell_len, set_cell_size

from waybill.monitor.words import Bit, Line, cut

Row = TypeVar("Row")
LONGEST_FILTER: Final = 200
"""Characters."""


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """One column. ``show``: a row's bit, of any length; ``key``: what rows are sorted by, None: they cannot be.

    ``width``: cells at least. ``rank``: where there is no room, the column of the highest rank goes first, one of rank
    0 never. ``grow``: its share of the room that is left. ``falls``: sorted from the largest first. ``prose``: cut at
    its end.
    """

    title: str
    width: int
    show: Callable[[Row], Bit]
    key: Callable[[Row], Any] | None = None
    right: bool = False
    rank: int = 0
    grow: int = 0
    falls: bool = False
    prose: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: rows that hold all words of ``filter`` (``!word``: do not hold it), sorted by a column."""

    filter: str = ""
    column: str = ""
    turned: bool = False

    def by_next(self, titles: Sequence[str]) -> Order:
        """Return this, sorted by what comes after the present one in ``titles``."""
        at = titles.index(self.column) + 1 if self.column in titles else 1
        return replace(self, column=titles[at % len(titles)], turned=False)


def sorts(columns: Sequence[Column[Any]]) -> list[str]:
    """Return the titles of the columns that rows can be sorted by."""
    return [each.title for each in columns if each.key]


def arranged(
    rows: Iterable[Row], columns: Sequence[Column[Row]], order: Order, text: Callable[[Row], str] | None = None
) -> list[Row]:
    """Return the rows that ``order`` asks for. Those that sort alike stay as they came.

    ``text``: where words are looked for, None: in what the columns show.
    """
    text = text or (lambda row: "\n".join(column.show(row).text for column in columns))
    words = order.filter[:LONGEST_FILTER].lower().split()
    wanted = [word for word in words if not word.startswith("!")]
    unwanted = [word[1:] for word in words if len(word) > 1 and word.startswith("!")]
    if words:
        rows = [row for row in rows if _holds(text(row).lower(), wanted, unwanted)]
    column = next((each for each in columns if each.title == order.column and each.key), None)
    if column is None or column.key is None:
        return list(rows)
    return sorted(rows, key=column.key, reverse=column.falls != order.turned)


def _holds(text: str, wanted: Sequence[str], unwanted: Sequence[str]) -> bool:
    return all(word in text for word in wanted) and not any(word in text for word in unwanted)


def fit(columns: Sequence[Column[Row]], cells: int) -> list[tuple[Column[Row], int]]:
    """Return the columns that have room in ``cells``, a space between two, each with its width."""
    kept = list(columns)
    while sum(each.width + 1 for each in kept) - 1 > cells:
        last = max(kept, key=lambda each: each.rank)
        if not last.rank:
            break
        kept.remove(last)
    spare = max(0, cells - sum(each.width + 1 for each in kept) + 1)
    shares = sum(each.grow for each in kept)
    return [(each, each.width + (spare * each.grow // shares if shares else 0)) for each in kept]


def heading(fitting: Sequence[tuple[Column[Row], int]], order: Order) -> Line:
    """Return the line above the rows; the column that they are sorted by is marked."""
    bits: list[Bit] = []
    for column, cells in fitting:
        sorts = column.title == order.column
        mark = ("↓" if column.falls != order.turned else "↑") if sorts else ""
        title = column.title if cell_len(column.title + mark) <= cells else column.title[: cells - len(mark)]
        bits += [Bit(_aligned(title + mark, cells, right=column.right), "head"), Bit(" ")]
    return tuple(bits[:-1])


def line(row: Row, fitting: Sequence[tuple[Column[Row], int]]) -> Line:
    """Return ``row`` as a line."""
    bits: list[Bit] = []
    for column, cells in fitting:
        words, tone = column.show(row)
        bits += [Bit(_aligned(cut(words, cells, prose=column.prose), cells, right=column.right), tone), Bit(" ")]
    return tuple(bits[:-1])


def _aligned(words: str, cells: int, *, right: bool) -> str:
    return " " * (cells - cell_len(words)) + words if right else set_cell_size(words, cells)

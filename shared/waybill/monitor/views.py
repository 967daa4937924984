"""The screens, as values: what each asks for, and the pure functions that draw it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from waybill.monitor import commands, fleet, gateway, kafka, logs
from waybill.monitor.sources import Kind
from waybill.monitor.table import Column, Order, sorts
from waybill.monitor.words import Bit, Line, bit, folded


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below each other. ``key``: what a row is known by; ``about``: a line on the row that is looked at.

    ``notes``: lines above the table, those of a picture. ``opens``: the gateway whose screen a row opens; None: a row
    is shown in full. ``text``: see :func:`waybill.monitor.table.arranged`. ``follows``: what is new comes at the end,
    and is looked at.
    """

    columns: Sequence[Column[Any]]
    rows: Callable[[Any], Sequence[Any]]
    key: Callable[[Any], object]
    about: Callable[[Any], Line]
    notes: Callable[[Any], list[Line]] = lambda _: []
    opens: Callable[[Any], str] | None = None
    text: Callable[[Any], str] | None = None
    follows: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Lines of a picture, so many cells wide, in an order."""

    lines: Callable[[Any, int, Order], list[Line]]


@dataclass(frozen=True, slots=True)
class View:
    """A screen. ``sorts``: what it can be sorted by; ``order``: how it begins.

    ``apart``: seconds between two pictures at least: of some each is a whole one.
    """

    kind: Kind
    title: str
    summary: Callable[[Any], Line]
    body: Table | Page
    sorts: Sequence[str]
    order: Order
    apart: float = 0.0


VIEWS: Final[Mapping[Kind, View]] = {
    "fleet": View(
        "fleet",
        "Fleet",
        fleet.summary,
        Table(
            fleet.COLUMNS,
            fleet.rows,
            lambda one: one.row.gateway,
            fleet.about,
            fleet.faults,
            lambda one: str(one.row.gateway),
            fleet.words,
        ),
        sorts(fleet.COLUMNS),
        Order(column="link"),
    ),
    "gateway": View(
        "gateway", "Gateway", gateway.summary, Page(gateway.page), gateway.SORTS, Order(column=gateway.SORTS[0])
    ),
    "commands": View(
        "commands",
        "Commands",
        commands.summary,
        Table(commands.COLUMNS, commands.rows, lambda one: one.row.id, commands.about),
        sorts(commands.COLUMNS),
        Order(column="sent"),
        2.0,
    ),
    "kafka": View("kafka", "Kafka", kafka.summary, Page(kafka.page), kafka.SORTS, Order(column="replicas"), 5.0),
    "log": View(
        "log",
        "Log",
        logs.summary,
        Table(logs.COLUMNS, lambda log: log.lines, lambda line: line.number, logs.about, follows=True),
        sorts(logs.COLUMNS),
        Order(column=logs.COLUMNS[0].title),
    ),
}


def whole(table: Table, row: Any, cells: int) -> list[Line]:  # noqa: ANN401 - a row of that table
    """Return all that a row says, a column after the other, in lines of ``cells``."""
    wide = max(len(column.title) for column in table.columns) + 2
    lines: list[Line] = []
    for column in table.columns:
        words, tone = column.show(row)
        for at, each in enumerate(folded(words, max(8, cells - wide), tone)):
            lines.append((Bit((column.title if at == 0 else "").ljust(wide), "quiet"), *each))
    about = "".join(each.text for each in table.about(row))
    return [*lines, (), *folded(about, cells)]


def waiting(name: str, error: str) -> list[Line]:
    """Return what stands where there is no picture yet."""
    return folded(f"nothing yet: {error}", 78, "bad") if error else [(bit(f"asking {name} …", "quiet"),)]

"""Columns that fit, rows that are filtered and sorted."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from waybill.monitor import commands, fleet, kafka, logs
from waybill.monitor.table import Column, Order, arranged, fit, heading, line, sorts
from waybill.monitor.words import bit, text, width


class Car(NamedTuple):
    name: str
    speed: int


CARS = [Car("red one", 50), Car("blue one", 90), Car("red two", 20)]
COLUMNS: list[Column[Car]] = [
    Column("name", 8, lambda car: bit(car.name), lambda car: car.name, grow=1),
    Column("speed", 5, lambda car: bit(str(car.speed)), lambda car: car.speed, right=True, falls=True, rank=1),
    Column("note", 9, lambda _: bit("-"), None, rank=2),
]


def names(order: Order) -> list[str]:
    return [car.name for car in arranged(CARS, COLUMNS, order)]


def test_rows_hold_all_words_and_none_that_is_not_wanted() -> None:
    assert names(Order("RED")) == ["red one", "red two"]
    assert names(Order("red one")) == ["red one"]
    assert names(Order("one !red")) == ["blue one"]
    assert names(Order("!")) == ["red one", "blue one", "red two"]
    assert names(Order("green")) == []


def test_sorting_begins_with_what_matters_and_can_be_turned() -> None:
    assert names(Order(column="speed")) == ["blue one", "red one", "red two"]
    assert names(Order(column="speed", turned=True)) == ["red two", "red one", "blue one"]
    assert names(Order(column="name")) == ["blue one", "red one", "red two"]
    assert names(Order(column="note")) == names(Order())


def test_the_next_column_skips_those_that_cannot_be_sorted_by() -> None:
    order = Order(column="name")
    seen = [(order := order.by_next(sorts(COLUMNS))).column for _ in range(3)]
    assert seen == ["speed", "name", "speed"]


def test_columns_of_little_rank_stay() -> None:
    assert [column.title for column, _ in fit(COLUMNS, 24)] == ["name", "speed", "note"]
    assert [column.title for column, _ in fit(COLUMNS, 20)] == ["name", "speed"]
    assert [(column.title, cells) for column, cells in fit(COLUMNS, 12)] == [("name", 12)]


def test_a_line_is_aligned_with_its_heading() -> None:
    fitting = fit(COLUMNS, 20)
    assert text(heading(fitting, Order(column="speed"))) == "name           speed"[:-5] + "spee↓"
    assert text(line(CARS[0], fitting)) == "red one           50"


@given(st.sampled_from([fleet.COLUMNS, commands.COLUMNS, logs.COLUMNS, kafka.TOPICS]), st.integers(79, 300))
def test_every_table_fits_from_eighty_cells_on(columns: list[Column[Any]], cells: int) -> None:
    fitting = fit(columns, cells)
    assert width(heading(fitting, Order())) <= cells

"""Values as a terminal shows them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pictures import HOSTILE
from waybill.monitor.words import (
    NEVER,
    Bit,
    beside,
    bit,
    brief,
    clock,
    count,
    cut,
    fitted,
    folded,
    many,
    moment,
    size,
    span,
    sparkline,
    text,
    width,
)


@pytest.mark.parametrize(
    ("seconds", "said", "short"),
    [
        (None, NEVER, NEVER),
        (-5, "0 s", "0s"),
        (59, "59 s", "59s"),
        (119, "1 min 59 s", "119s"),
        (120, "2 min", "2m"),
        (3 * 3600 + 720, "3 h 12 min", "3h"),
        (26 * 3600, "1 d 2 h", "1d"),
        (40 * 86_400, "40 d", "40d"),
        (800 * 86_400, "800 d", "2y"),
    ],
)
def test_durations(seconds: float | None, said: str, short: str) -> None:
    assert (span(seconds), brief(seconds)) == (said, short)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (None, NEVER),
        (0, "0"),
        (999, "999"),
        (999.6, "1.0k"),
        (1204, "1.2k"),
        (9960, "10k"),
        (48_120_000, "48M"),
        (-7, "-7"),
    ],
)
def test_counts(number: float | None, said: str) -> None:
    assert count(number) == said


@given(st.one_of(st.integers(0, 10**17), st.floats(0, 1e17)))
def test_counts_and_durations_have_room_in_their_columns(number: float) -> None:
    assert len(count(number)) <= 5
    assert len(brief(number)) <= 4


def test_sizes_and_times() -> None:
    assert [size(each) for each in (None, 0, 1023, 1024, 5 << 30, 3 << 40)] == [
        NEVER, "0 B", "1023 B", "1.0 KiB", "5.0 GiB", "3.0 TiB"
    ]  # fmt: skip
    assert (moment(1_795_262_405_000), clock(1_795_262_405_000)) == ("2026-11-21 12:00:05", "12:00:05")
    assert len(moment(1 << 62)) == len(moment(0))


def test_nothing_of_a_name_is_obeyed_by_a_terminal() -> None:
    for shown in (bit(HOSTILE).text, cut(HOSTILE, 12), text(folded(HOSTILE, 200)[0])):
        assert shown.isprintable()
    assert "\\x1b]0;owned\\x07[bold red]V9[/]\\x1b[2J\\u202e" in bit(HOSTILE).text


@given(st.text(), st.integers(1, 40))
def test_what_is_cut_fits_and_can_be_printed(words: str, cells: int) -> None:
    for prose in (False, True):
        shown = cut(words, cells, prose=prose)
        assert width((Bit(shown),)) <= cells
        assert shown.isprintable()


@given(st.lists(st.text()), st.integers(0, 40))
def test_a_line_is_as_wide_as_it_is_told(words: list[str], cells: int) -> None:
    assert width(fitted([bit(each) for each in words], cells)) == cells


@given(st.text(), st.integers(2, 40))
def test_a_fold_loses_no_word(words: str, cells: int) -> None:
    lines = folded(words, cells)
    assert all(width(line) <= cells for line in lines)
    assert "".join(text(line) for line in lines).replace(" ", "") == bit(words).text.replace(" ", "")


def test_names_differ_at_their_ends_and_prose_does_not() -> None:
    assert cut("depot-north-0001", 10) == "depo…-0001"
    assert cut("no answer within a minute", 10, prose=True) == "no answer…"


def test_sparklines() -> None:
    assert sparkline([], 5) == ""
    assert sparkline([0, 0], 5) == "  "
    assert sparkline([0, 1, 8], 5) == " ▁█"
    assert sparkline([8, 0, 0, 1, 0, 4], 3) == "█▁▄"  # two a cell, the larger one
    assert sparkline([8, 0, 0, 4, 1], 3) == "█ ▄"  # the newest cell is whole


def test_one_and_many() -> None:
    assert [many(number, "line") for number in (0, 1, 2000)] == ["0 lines", "1 line", "2,000 lines"]


def test_columns_stand_beside_each_other() -> None:
    pair = beside([(Bit("a"),), (Bit("b"),)], [(Bit("1"),)], 4)
    assert [text(line) for line in pair] == ["a      1", "b"]

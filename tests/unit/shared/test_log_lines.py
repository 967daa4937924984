"""The newest lines of a log: bounded, numbered, and from where a reader was."""

from __future__ import annotations

import logging

import pytest

from waybill.log_lines import KEPT, TEXT, LogLines


def test_a_reader_is_told_what_is_new_since_it_asked() -> None:
    lines = LogLines()
    lines.add("info", "gw1", "online", 5)
    first = lines.state()
    assert [(line.number, line.source, line.text) for line in first.lines] == [(1, "gw1", "online")]
    assert not lines.state(first.since).lines
    lines.add("warning", "gw1", "offline", 6)
    assert [line.text for line in lines.state(first.since).lines] == ["offline"]


@pytest.mark.parametrize("since", ["x", "-", "00000000-1", "-1", "a-b-c", f"0-{'9' * 5000}"])
def test_another_starts_place_means_nothing_here(since: str) -> None:
    lines = LogLines()
    lines.add("info", "a", "b", 1)
    assert len(lines.state(since).lines) == 1


def test_only_the_newest_are_kept_and_none_is_long() -> None:
    lines = LogLines()
    for number in range(KEPT + 3):
        lines.add("info", "a", str(number) * 600, number)
    found = lines.state().lines
    assert (len(found), found[0].number, found[-1].number) == (KEPT, 4, KEPT + 3)
    assert all(len(line.text) <= TEXT for line in found)


def test_what_the_process_logs_is_taken_while_it_is_attached() -> None:
    lines = LogLines()
    logger = logging.getLogger("waybill.somewhere")
    with lines.attached():
        logger.warning("a %s", "warning")
        logger.error("an error")
        logger.debug("a detail")
    logger.warning("later")
    assert [(line.level, line.source, line.text) for line in lines.state().lines] == [
        ("warning", "somewhere", "a warning"),
        ("error", "somewhere", "an error"),
    ]

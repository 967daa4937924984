"""Lines of the log: how they look, and how many there are."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator

import msgspec
import pytest

from waybill import logs
from waybill.config import LogFormat, LogSettings
from waybill.logs import BURST, EACH, KINDS, Limit

log = logging.getLogger("waybill.example")


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def said(settings: LogSettings, *about: tuple[str, str]) -> io.StringIO:
    """Let the process log into what is returned."""
    stream = io.StringIO()
    logs.set_up(settings, stream, **dict(about))
    return stream


def test_a_line_has_its_time_level_logger_text_and_gateway() -> None:
    stream = said(LogSettings(), ("gateway", "depot-1"))
    log.warning("the clock is %s", "wrong")
    line = stream.getvalue()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning  waybill\.example: .*\n", line)
    assert line.endswith("the clock is wrong  gateway=depot-1\n")


def test_a_line_about_a_gateway_names_that_one() -> None:
    stream = said(LogSettings(format="json"), ("deployment", "prod"))
    log.info("connected from %s", "10.0.0.7:4711", extra={"gateway": "depot-2"})
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "waybill.example",
        "text": "connected from 10.0.0.7:4711",
        "deployment": "prod",
        "gateway": "depot-2",
    }


def test_the_journal_is_told_the_priority_of_each_line_and_no_time() -> None:
    stream = said(LogSettings(format="journald"))
    log.error("first")
    try:
        raise ValueError("second")
    except ValueError:
        log.exception("failed")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "<3>waybill.example: first"
    assert lines[1] == "<3>waybill.example: failed"
    assert lines[-1] == "<3>ValueError: second"
    assert all(line.startswith("<3>") for line in lines)


def test_stderr_that_is_the_journal_is_known(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("journal") / "stream"
    with path.open("w") as stream, pytest.MonkeyPatch.context() as patch:
        found = os.fstat(stream.fileno())
        patch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        logs.set_up(LogSettings(), stream)
        log.info("one")
        patch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + 1}")
        logs.set_up(LogSettings(), stream)
        log.info("two")
    first, second = path.read_text().splitlines()
    assert first == "<6>waybill.example: one"
    assert second.endswith("Z info     waybill.example: two")


@pytest.mark.parametrize("form", ["text", "journald"])
def test_what_others_sent_makes_no_line_and_moves_no_cursor(form: LogFormat) -> None:
    stream = said(LogSettings(format=form))
    log.warning("%s is refused", "V1\n<0>forged\x1b[2J\r\u202e\x9b")
    assert stream.getvalue().endswith("V1\\n<0>forged\\x1b[2J\\r\\u202e\\x9b is refused\n")
    assert stream.getvalue().count("\n") == 1


def test_json_takes_any_text_and_any_value() -> None:
    stream = said(LogSettings(format="json"))
    log.warning("one", extra={"gateway": "\ud800"})
    log.warning("two", extra={"gateway": object})
    assert [json.loads(line)["gateway"] for line in stream.getvalue().splitlines()] == ["\ud800", "<class 'object'>"]


def test_what_is_less_grave_is_left_out() -> None:
    stream = said(LogSettings(level="error"))
    log.warning("left out")
    log.error("said")
    assert stream.getvalue().count("\n") == 1


def test_a_wrong_format_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="format"):
        msgspec.convert({"format": "xml"}, LogSettings)


def test_a_kind_of_lines_is_one_a_second_after_the_first_few_and_says_how_many_were_left_out() -> None:
    now = 100.0
    limit = Limit(lambda: now)

    def ask(text: str, gateway: str = "") -> tuple[bool, int]:
        record = logging.LogRecord("x", logging.WARNING, "file.py", 7, text, (), None)
        if gateway:
            record.gateway = gateway
        return limit.filter(record), getattr(record, "left_out", 0)

    assert [ask("a %d") for _ in range(EACH + 5)] == [(True, 0)] * EACH + [(False, 0)] * 5
    assert ask("b") == (True, 0)
    assert ask("a %d", gateway="depot-2") == (True, 0)
    now += 1
    assert [ask("a %d"), ask("a %d")] == [(True, 5), (False, 0)]
    now += 3600
    assert ask("a %d") == (True, 1)
    assert [ask("a %d")[0] for _ in range(EACH)] == [True] * (EACH - 1) + [False]


def test_all_lines_together_are_bounded_and_so_is_what_is_remembered() -> None:
    now = 100.0
    limit = Limit(lambda: now)

    def ask(number: int) -> tuple[bool, int]:
        record = logging.LogRecord("x", logging.WARNING, "file.py", number, "text", (), None)
        return limit.filter(record), getattr(record, "left_out_of_others", 0)

    assert sum(ask(number)[0] for number in range(10 * KINDS)) == BURST
    assert len(limit._kinds) == KINDS
    now += 1
    assert ask(0) == (True, 10 * KINDS - BURST)

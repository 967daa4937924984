"""Records as lines, and which of them `tail` shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import pytest

from cloud_ingest.journal.port import CaughtUp, TopicRecord
from cloud_ingest.tail import as_json, as_text, tail


def record(offset: int = 0, key: bytes | None = b"V1", value: bytes | None = b'{"a":1}') -> TopicRecord:
    return TopicRecord("t", 3, offset, 1_700_000_000_123, key, value, (("ce_id", b"g/1/l/2"), ("x", b"\xff")))


def test_a_json_line_says_everything() -> None:
    assert json.loads(as_json(record(9))) == {
        "topic": "t",
        "partition": 3,
        "offset": 9,
        "timestamp": 1_700_000_000_123,
        "key": "V1",
        "headers": {"ce_id": "g/1/l/2", "x": "\\xff"},
        "value": '{"a":1}',
    }


def test_bytes_that_are_no_text_are_base64_and_nothing_is_null() -> None:
    line = json.loads(as_json(record(key=None, value=b"\xff\x00")))
    assert (line["key"], line["value_base64"]) == (None, "/wA=")
    assert "value" not in line
    assert json.loads(as_json(record(key=b"\xfe", value=None)))["key_base64"] == "/g=="


def test_headers_that_nobody_asked_for_are_left_out() -> None:
    whole = json.loads(as_json(record(9)))
    name = next(iter(whole["headers"]))
    assert len(whole["headers"]) > 1
    assert json.loads(as_json(record(9), {name, "other"})) == whole | {"headers": {name: whole["headers"][name]}}


def test_a_text_line_cannot_move_the_terminals_cursor() -> None:
    assert as_text(record()) == 't/3@0 2023-11-14T22:13:20.123Z V1 {"a":1}'
    assert as_text(record(key=None, value=b"\x1b[2J\n\xff")).endswith(" - \\x1b[2J\\n\\xff")


class Source:
    def __init__(self) -> None:
        self.closed = False

    async def follow(
        self, topics: Sequence[str], *, only: int | None = None, end: bool = False
    ) -> AsyncIterator[TopicRecord | CaughtUp]:
        assert list(topics) == ["t"]
        assert only in (None, 3)
        try:
            for offset in range(5):
                yield record(offset)
            yield CaughtUp()
            if not end:
                yield record(5)
                await asyncio.Event().wait()
        finally:
            self.closed = True


@pytest.mark.parametrize(
    ("last", "end", "offsets"),
    [(2, False, [3, 4, 5]), (2, True, [3, 4]), (None, True, [0, 1, 2, 3, 4]), (None, False, [0, 1, 2, 3, 4, 5])],
)
async def test_the_last_records_then_new_ones(*, last: int | None, end: bool, offsets: list[int]) -> None:
    source = Source()
    shown: list[int] = []
    task = asyncio.create_task(tail(source, "t", lambda one: shown.append(one.offset), partition=3, last=last, end=end))
    if not end:
        async with asyncio.timeout(60):
            while 5 not in shown:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.001)
        task.cancel()
    await asyncio.wait({task})
    assert shown == offsets
    assert source.closed

"""The record of waybill.commands: what is a command, and what is said of a record that is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_ingest.command_record import MAX_PAYLOAD, Command, MalformedCommand, parse

GOOD: dict[str, Any] = {
    "id": "c-17",
    "gateway": "depot-4",
    "device": "V7",
    "name": "unlock",
    "payload": {"door": 2},
    "expires_at": 1_800_000_000_000,
}


def value(**changes: object) -> bytes:
    return json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not None}).encode()


def test_a_command_reaches_the_device_as_it_was_written() -> None:
    command = parse(b'{"id":"c","gateway":"g","device":"V 7","name":"n","payload": {"b": 1.0},"expires_at":7,"new":1}')
    assert command == Command("c", "g", "V 7", "n", b'{"b": 1.0}', 7)
    envelope = command.envelope()
    assert (envelope.id, envelope.payload, envelope.expires_ms) == ("c", b'{"b": 1.0}', 7)


@pytest.mark.parametrize(("payload", "expected"), [(None, b""), ("x", b'"x"'), (5, b"5"), ([], b"[]")])
def test_payload_is_any_json_value(payload: object, expected: bytes) -> None:
    assert parse(value(payload=payload)).payload == expected


def test_payload_as_bytes() -> None:
    assert parse(value(payload=None, payload_base64="AP8=")).payload == b"\x00\xff"


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("1970-01-01T00:00:01Z", 1000), ("1970-01-01T01:00:01.5+01:00", 1500), (12, 12)],
)
def test_expiry_is_a_time_or_milliseconds(text: object, milliseconds: int) -> None:
    assert parse(value(expires_at=text)).expires_ms == milliseconds


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expires_at": None}, "expires_at"),
        ({"expires_at": "tomorrow"}, "neither RFC 3339"),
        ({"expires_at": "2026-11-21T10:00:00"}, "no offset"),
        ({"expires_at": -5}, "out of range"),
        ({"expires_at": 1e99}, "expires_at"),
        ({"id": "a/b"}, "id 'a/b'"),
        ({"id": ""}, "id ''"),
        ({"gateway": "node:1"}, "gateway"),
        ({"gateway": 7}, "gateway"),
        ({"device": "a/#"}, "device"),
        ({"name": ""}, "name"),
        ({"payload_base64": "AA=="}, "exclude each other"),
        ({"payload": None, "payload_base64": "?"}, "payload_base64"),
        ({"payload": "x" * MAX_PAYLOAD}, "at most"),
    ],
)
def test_a_malformed_record_says_why_and_whose_it_was(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(MalformedCommand, match=reason) as caught:
        parse(value(**changes))
    if not {"id"} & set(changes):
        assert caught.value.id == "c-17"
    if "gateway" not in changes:
        assert caught.value.gateway == "depot-4"


@pytest.mark.parametrize("data", [None, b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000])
def test_no_json_object_at_all(data: bytes | None) -> None:
    with pytest.raises(MalformedCommand) as caught:
        parse(data)
    assert (caught.value.id, caught.value.gateway, caught.value.device) == ("", "", "")


@given(
    st.binary() | st.recursive(st.none() | st.text() | st.floats() | st.integers(), st.lists).map(repr).map(str.encode)
)
def test_whatever_is_there_it_is_a_command_or_malformed(data: bytes) -> None:
    with pytest.raises(MalformedCommand):
        parse(data)

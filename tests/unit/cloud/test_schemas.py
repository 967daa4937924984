"""docs/schemas says what the program does: examples are read by it, schemas have its fields, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_ingest import command_record
from cloud_ingest.config import DEFAULT_ROUTES
from cloud_ingest.journal.port import JournalRecord, OutRecord
from cloud_ingest.presence import Here
from cloud_ingest.router.entry import Entry
from cloud_ingest.router.records import append_records, dead_frame, dead_letter
from cloud_ingest.router.routes import Routes
from waybill.fleet_state import (
    CommandsState,
    FleetSnapshot,
    GatewayDetail,
    Health,
    KafkaState,
    LogState,
    NodeState,
)
from waybill.frames import decode, encode_plain
from waybill.wire import CommandStatus

SCHEMAS = Path(__file__).parents[3] / "docs" / "schemas"


def read(name: str) -> Any:
    return json.loads((SCHEMAS / name).read_text())


def check(value: Any, schema: dict[str, Any]) -> None:
    """Check the few keywords that the schemas of headers use."""
    assert set(schema.get("required", ())) <= value.keys()
    for name, item in value.items():
        rule = schema["properties"][name]
        assert "const" not in rule or item == rule["const"]
        assert "enum" not in rule or item in rule["enum"]
        assert "pattern" not in rule or re.search(rule["pattern"], item)


def headers(record: OutRecord) -> dict[str, str]:
    return {name: value.decode() for name, value in record.headers}


def journaled() -> tuple[JournalRecord, OutRecord]:
    data = encode_plain(
        epoch=4711,
        prev_epoch=0,
        prev_last=0,
        oldest_epoch=4711,
        lane="telemetry",
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=12,
        base_ms=1_795_255_198_125,
        sources=[("vehicles/V7/telemetry", "V7")],
        rows=[(0, 0, 1, b'{"a":1}', b"")],
    )
    record = JournalRecord(2, 1204, 1_795_255_199_000, "depot-4", data)
    out: list[OutRecord] = []
    target = Routes(DEFAULT_ROUTES).target("depot-4", "vehicles/V7/telemetry", "V7")
    append_records(out, record, decode(data), [target], 12, 12)
    return record, out[0]


def test_the_example_of_a_command_is_one() -> None:
    command = command_record.parse((SCHEMAS / "command.example.json").read_bytes())
    assert (command.id, command.payload) == ("c-17", b'{ "door": 2 }')


def test_the_schema_of_a_command_has_the_programs_fields() -> None:
    ours = msgspec.structs.fields(command_record._Json)
    schema = read("command.schema.json")
    assert schema["properties"].keys() == {field.encode_name for field in ours}
    assert set(schema["required"]) == {field.encode_name for field in ours if field.required}


@pytest.mark.parametrize("field", ["id", "gateway", "device"])
@pytest.mark.parametrize(
    "text", ["a", "A.b_c-9", "", "a/b", "a b", "+", "a\n", "é", "x" * 64, "x" * 65, "x" * 128, "x" * 129, ":"]
)
def test_the_schema_and_the_program_agree_on_names(field: str, text: str) -> None:
    rule = read("command.schema.json")["properties"][field]
    allowed = bool(re.fullmatch(rule["pattern"].removesuffix("$"), text)) and len(text) <= rule.get(
        "maxLength", 1 << 20
    )
    value = json.dumps({**read("command.example.json"), field: text}).encode()
    try:
        command_record.parse(value)
    except command_record.MalformedCommand:
        assert not allowed
    else:
        assert allowed


def test_a_command_status_is_as_documented() -> None:
    example = (SCHEMAS / "command-status.example.json").read_bytes()
    status = msgspec.json.decode(example, type=CommandStatus)
    assert status.result == b'{"door":2}'
    assert json.loads(msgspec.json.encode(status)) == json.loads(example)
    ours = msgspec.json.schema(CommandStatus)["$defs"]["CommandStatus"]
    schema = read("command-status.schema.json")
    assert schema["properties"].keys() == ours["properties"].keys()
    assert schema["required"] == ours["required"]
    assert set(schema["properties"]["state"]["enum"]) == set(ours["properties"]["state"]["enum"])


def test_presence_is_as_documented() -> None:
    example = (SCHEMAS / "presence.example.json").read_bytes()
    here = msgspec.json.decode(example, type=Here)
    assert json.loads(msgspec.json.encode(here)) == json.loads(example)
    ours = msgspec.json.schema(Here)["$defs"]["Here"]
    schema = read("presence.schema.json")
    assert schema["properties"].keys() == ours["properties"].keys()
    assert schema["required"] == ours["required"]
    assert set(schema["properties"]["state"]["enum"]) == set(ours["properties"]["state"]["enum"])


def test_the_schema_of_the_fleets_state_is_the_programs() -> None:
    kinds = (FleetSnapshot, GatewayDetail, CommandsState, KafkaState, LogState, Health, NodeState)
    _, components = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    assert read("fleet-state.schema.json")["$defs"] == json.loads(msgspec.json.encode(components))


@pytest.mark.parametrize(("name", "kind"), [("health", Health), ("node", NodeState)])
def test_what_is_said_of_health_is_as_documented(name: str, kind: type[msgspec.Struct]) -> None:
    example = (SCHEMAS / f"{name}.example.json").read_bytes()
    assert json.loads(msgspec.json.encode(msgspec.json.decode(example, type=kind))) == json.loads(example)


def test_the_headers_of_a_message_are_as_documented() -> None:
    schema, example = read("message-headers.schema.json"), read("message-headers.example.json")
    check(example, schema)
    _, record = journaled()
    assert headers(record) == example


def test_the_headers_of_dead_letters_are_as_documented() -> None:
    schema = read("dead-letter-headers.schema.json")
    whole = schema["properties"] | read("message-headers.schema.json")["properties"]
    check(read("dead-letter-headers.example.json"), schema)
    record, message = journaled()
    for letter in (
        dead_letter("fleet.telemetry.dlq", message, "too large"),
        dead_frame("waybill.dlq", record, decode(record.frame).header, "damaged"),
        dead_frame("waybill.dlq", record, None, "not a frame"),
    ):
        found = headers(letter)
        assert found.keys() <= whole.keys()
        check({name: value for name, value in found.items() if name in schema["properties"]}, schema)


def test_the_example_of_a_ledger_entry_is_one() -> None:
    value = msgspec.msgpack.encode(read("ledger-entry.example.json"))
    entry = Entry.decode(value)
    assert entry.encode() == value
    assert (entry.prev_epoch, entry.prev_last, entry.end) == (4710, 88, 500)
    assert (entry.covered.count, entry.dropped_count, entry.delivered_count) == (500, 10, 490)

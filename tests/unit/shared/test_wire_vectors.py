"""The published test vectors: what third parties build against."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from waybill.errors import Corrupt, UnknownVersion
from waybill.frames import Dictionary, Frame, decode, read_header
from waybill.health import unpack
from waybill.wire import decode_ack, decode_envelope

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[3] / "docs" / "wire-vectors.json").read_text()
)


def vectors(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in VECTORS[kind]])


DICTIONARIES = {each.id: each for each in (Dictionary(base64.b64decode(v["bytes"])) for v in VECTORS["dictionaries"])}


def decoded(data: bytes) -> Frame:
    return decode(data, dictionary=DICTIONARIES.get(read_header(data).dictionary))


@vectors("dictionaries")
def test_dictionaries(vector: dict[str, Any]) -> None:
    assert vector["id"] in DICTIONARIES


@vectors("bad_dictionaries")
def test_bad_dictionaries(vector: dict[str, Any]) -> None:
    with pytest.raises(Corrupt):
        Dictionary(base64.b64decode(vector["bytes"]))


@vectors("frames")
def test_frames(vector: dict[str, Any]) -> None:
    frame = decoded(base64.b64decode(vector["bytes"]))
    header = {name: getattr(frame.header, name) for name in vector["header"]}
    assert header == vector["header"]
    assert [list(source) for source in frame.sources] == vector["sources"]
    rows = [[*row[:3], base64.b64encode(row[3]).decode(), base64.b64encode(row[4]).decode()] for row in frame.rows]
    assert rows == vector["rows"]


@vectors("bad_frames")
def test_bad_frames(vector: dict[str, Any]) -> None:
    with pytest.raises(UnknownVersion if vector["error"] == "unknown version" else Corrupt):
        decoded(base64.b64decode(vector["bytes"]))


@vectors("acks")
def test_acks(vector: dict[str, Any]) -> None:
    assert json.loads(msgspec.json.encode(decode_ack(base64.b64decode(vector["bytes"])))) == vector["value"]


@vectors("envelopes")
def test_envelopes(vector: dict[str, Any]) -> None:
    assert json.loads(msgspec.json.encode(decode_envelope(base64.b64decode(vector["bytes"])))) == vector["value"]


@vectors("health")
def test_health_records(vector: dict[str, Any]) -> None:
    assert json.loads(msgspec.json.encode(unpack(base64.b64decode(vector["bytes"])))) == vector["value"]

"""Acks and envelopes: there and back, forward compatible, and garbage refused."""

from __future__ import annotations

import msgspec
import pytest

from waybill.errors import Corrupt
from waybill.wire import GATEWAY_ID, Ack, Envelope, RefusedSpan, Span, decode_ack, decode_envelope, encode


def test_an_ack_comes_back() -> None:
    ack = Ack(
        journaled=(Span(2**63 - 1, "telemetry", 1, 1000),),
        credit=1 << 20,
        refused=(RefusedSpan(5, "control", 1, 1, "does not decode"),),
        retry=(Span(5, "telemetry", 7, 9),),
    )
    assert decode_ack(encode(ack)) == ack
    assert len(encode(Ack(journaled=ack.journaled))) < 60


def test_an_envelope_comes_back() -> None:
    envelope = Envelope("c1", "command", "V1", "horn", b"\x00{}", 1_700_000_000_000)
    assert decode_envelope(encode(envelope)) == envelope


def test_fields_added_later_are_ignored() -> None:
    assert decode_ack(msgspec.msgpack.encode({"c": 3, "colour": "blue"})) == Ack(credit=3)


NOT_UTF8 = b"\xa1\xff"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x93\x01\x02\x03",
        msgspec.msgpack.encode({"c": "much"}),
        b"\x82\xa1r\x91\x95\x05" + NOT_UTF8 + b"\x01\x01\xa1x\xa2id" + NOT_UTF8,
        b"\x81\xa1x" + b"\x91" * 100_000,
    ],
)
def test_garbage_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_ack(data)
    with pytest.raises(Corrupt):
        decode_envelope(data)


def test_gateway_ids() -> None:
    for good in ("gw-1", "A", "a.b_c-9", "x" * 64):
        assert GATEWAY_ID.fullmatch(good)
    for bad in ("", "node:1", "a/b", "a b", "+", "#", "x" * 65, "ü"):
        assert not GATEWAY_ID.fullmatch(bad)

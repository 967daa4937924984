"""waybill.mqtt.codec: packets as bytes."""

from __future__ import annotations

import pytest

from tests.unit.mqtt import rig
from waybill.mqtt import codec
from waybill.mqtt.codec import NEVER, Connect, Wanted, Will
from waybill.mqtt.properties import variable
from waybill.mqtt.reasons import Malformed, UnsupportedVersion


def body(packet: bytes) -> bytes:
    return packet[2:]


def test_connect_with_everything() -> None:
    packet = rig.connect("d-1", clean=False, keepalive=60, will=("w/t", b"gone", 1, True), user="u", password=b"p\0")
    assert codec.parse_connect(body(packet)) == Connect(
        4, "d-1", False, 60, Will(b"w/t", b"gone", 1, True), "u", b"p\0", NEVER
    )


def test_connect_of_mqtt_3_1_is_taken_as_3_1_1() -> None:
    parsed = codec.parse_connect(body(rig.connect("old", name=b"MQIsdp", level=3)))
    assert (parsed.version, parsed.client_id) == (3, "old")
    assert codec.connack(3, 0, present=True) == b"\x20\x02\x00\x00"  # 3.1 has no session-present flag


@pytest.mark.parametrize(
    ("name", "level", "answer"),
    [
        (b"MQTT", 6, b"\x20\x03\x00\x84\x00"),
        (b"MQTT", 3, b"\x20\x02\x00\x01"),
        (b"MQIsdp", 4, b"\x20\x02\x00\x01"),
        (b"MQTT", 0x84, b"\x20\x02\x00\x01"),  # a bridge of mosquitto
    ],
)
def test_other_versions_are_answered(name: bytes, level: int, answer: bytes) -> None:
    with pytest.raises(UnsupportedVersion) as caught:
        codec.parse_connect(body(rig.connect(name=name, level=level)))
    assert caught.value.answer == answer


GOOD = body(rig.connect("dev"))


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(body(rig.connect(name=b"MQTX")), id="protocol name"),
        pytest.param(GOOD + b"x", id="trailing byte"),
        pytest.param(GOOD[:-1], id="client id cut"),
        pytest.param(GOOD[:8], id="no client id"),
        pytest.param(b"", id="empty"),
        pytest.param(GOOD[:7] + b"\x03" + GOOD[8:], id="reserved flag"),
        pytest.param(GOOD[:7] + b"\x0a" + GOOD[8:], id="will qos without will"),
        pytest.param(GOOD[:7] + b"\x22" + GOOD[8:], id="will retain without will"),
        pytest.param(GOOD[:7] + b"\x1e" + GOOD[8:] + b"\0\1t\0\1p", id="will qos 3"),
        pytest.param(GOOD[:7] + b"\x42" + GOOD[8:] + b"\0\1p", id="password without user"),
        pytest.param(GOOD[:7] + b"\x82" + GOOD[8:], id="user announced and missing"),
        pytest.param(GOOD[:7] + b"\xc2" + GOOD[8:] + b"\0\1u", id="password announced and missing"),
        pytest.param(GOOD[:7] + b"\x06" + GOOD[8:] + b"\0\1t", id="will announced and missing"),
        pytest.param(GOOD[:7] + b"\x82" + GOOD[8:] + b"\0\1\xff", id="user not UTF-8"),
        pytest.param(body(rig.connect(b"\xff\xfe")), id="client id not UTF-8"),
        pytest.param(body(rig.connect(b"a\0b")), id="U+0000"),
        pytest.param(body(rig.connect(b"\xed\xa0\x80")), id="surrogate"),
    ],
)
def test_malformed_connects(broken: bytes) -> None:
    with pytest.raises(Malformed):
        codec.parse_connect(broken)


def test_subscribe_and_unsubscribe() -> None:
    assert codec.parse_subscribe(body(rig.subscribe(("a/+", 1), ("#", 2), pid=258))) == (
        b"\1\2",
        [Wanted("a/+", 1), Wanted("#", 2)],
    )
    assert codec.parse_unsubscribe(body(rig.unsubscribe("a", "b", pid=7))) == (b"\0\7", ["a", "b"])


@pytest.mark.parametrize(
    "broken", [b"", b"\0", b"\0\0\0\1a\0", b"\0\1", b"\0\1\0\1a", b"\0\1\0\1a\3", b"\0\1\0\5a\0", b"\0\1\0\1\xff\0"]
)
def test_malformed_subscribes(broken: bytes) -> None:
    with pytest.raises(Malformed):
        codec.parse_subscribe(broken)


@pytest.mark.parametrize("broken", [b"", b"\0\1", b"\0\0\0\1a", b"\0\1\0\2a", b"\0\1\0\1\xff"])
def test_malformed_unsubscribes(broken: bytes) -> None:
    with pytest.raises(Malformed):
        codec.parse_unsubscribe(broken)


@pytest.mark.parametrize("broken", [b"", b"\1", b"\0\0", b"\0\1\0"])
def test_malformed_acks(broken: bytes) -> None:
    with pytest.raises(Malformed):
        codec.parse_ack(broken)


@pytest.mark.parametrize(
    ("size", "encoded"),
    [
        (0, b"\0"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (268_435_455, b"\xff\xff\xff\x7f"),
    ],
)
def test_remaining_length(size: int, encoded: bytes) -> None:
    assert variable(size) == encoded


@pytest.mark.parametrize("size", [0, 100, 130, 20_000])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_publish(size: int, qos: int) -> None:
    payload = b"x" * size
    encoded = codec.publish(b"a/b", payload, qos << 1 | 1, b"\0\7" if qos else b"")
    assert encoded == rig.publish("a/b", payload, qos, 7, retain=True)


def test_acks() -> None:
    assert codec.acks(codec.PUBACK, [b"\0\1", b"\0\2"]) == rig.puback(1) + rig.puback(2)
    assert codec.acks(codec.PUBREL, [b"\0\1"]) == rig.pubrel(1)
    assert codec.suback(b"\0\1", [0, 0x80]) == rig.suback(0, 0x80)
    assert codec.unsuback(b"\0\1") == rig.unsuback()

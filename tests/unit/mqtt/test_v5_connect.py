"""MQTT 5: CONNECT, CONNACK, DISCONNECT and the reasons for which a server closes."""

from __future__ import annotations

import pytest

from tests.unit.mqtt import rig, v5
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.settings import Hooks, Settings


def last(wire: Wire) -> v5.Packet:
    return v5.take(wire)[-1]


def refused(packet: bytes, r: Rig | None = None) -> int:
    """The reason with which a CONNECT is refused."""
    r = r or Rig()
    wire = Wire(r)
    (answer,) = v5.packets(wire(packet, rig.PING))
    assert wire.shut_down
    assert not answer.present
    assert not wire.session
    return answer.reason


def test_connack_says_what_the_server_takes() -> None:
    """[MQTT-3.2.2-9] QoS 2, retained messages and all subscriptions are there, so nothing says otherwise."""
    wire = Rig(Settings(receive_maximum=7, max_packet=1_000, topic_aliases=3)).open(v5.connect())
    (answer,) = v5.take(wire)
    assert (answer.kind, answer.reason, answer.present) == (0x20, 0, False)
    assert {kind: int.from_bytes(value, "big") for kind, value in answer.properties} == {0x21: 7, 0x27: 1_000, 0x22: 3}


def test_the_receive_maximum_announced_is_what_can_be_remembered() -> None:
    """O3."""
    (answer,) = v5.take(Rig(Settings(receive_maximum=9_000, dup_window=50)).open(v5.connect()))
    assert answer.number(0x21) == 50


@pytest.mark.parametrize("clean", [True, False])
def test_an_empty_client_id_gets_one(clean: bool) -> None:  # noqa: FBT001
    r = Rig()
    wire = r.open(v5.connect("", v5.expiry(60), clean=clean))
    (answer,) = v5.take(wire)
    assert answer.values(0x12) == [b"made-1"]
    assert "made-1" in r.broker.sessions
    (other,) = v5.take(r.open(v5.connect("")))
    assert other.values(0x12) == [b"made-2"]
    assert not last(r.open(v5.connect("mine"))).values(0x12)


def test_the_servers_keepalive_rules() -> None:
    r = Rig(Settings(max_keepalive=60))
    for asked, told in ((0, 60), (61, 60), (60, None), (10, None)):
        wire = r.open(v5.connect(keepalive=asked))
        assert last(wire).number(0x13) == told
        assert wire.keepalive_ns == (told or asked) * 10**9


def test_keepalive_expiry_says_why() -> None:
    r = Rig()
    wire = r.open(v5.connect(keepalive=10))
    wire.take()
    r.pass_time(15.1)
    assert wire.overdue(r.broker.mono_ns) == "keepalive"


def test_take_over_says_so() -> None:
    r = Rig()
    old = v5.client(r)
    v5.client(r)
    assert last(old).reason == 0x8E
    assert old.shut_down


def test_a_session_expiry_is_capped() -> None:
    r = Rig(Settings(max_session_expiry=100))
    assert last(r.open(v5.connect("a", v5.expiry(500)))).number(0x11) == 100
    assert last(r.open(v5.connect("b", v5.expiry(100)))).number(0x11) is None
    assert r.broker.sessions["a"].expiry == 100


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ConnackCode.BAD_CREDENTIALS, 0x86),
        (ConnackCode.NOT_AUTHORIZED, 0x87),
        (ConnackCode.UNAVAILABLE, 0x88),
        (ConnackCode.BAD_CLIENT_ID, 0x85),
    ],
)
def test_refusals_have_the_reasons_of_version_5(code: ConnackCode, reason: int) -> None:
    assert refused(v5.connect(), Rig(hooks=Hooks(authorize_connect=lambda _: code))) == reason


def test_a_client_id_that_is_too_long_is_not_valid() -> None:
    assert refused(v5.connect("x" * 1025)) == 0x85


def test_one_session_too_many_is_a_quota() -> None:
    assert refused(v5.connect("b", v5.expiry(1)), Rig(Settings(max_sessions=0))) == 0x97
    hooks = Hooks(authorize_connect=lambda _: ConnackCode.BAD_CREDENTIALS)
    assert refused(v5.connect("b", v5.expiry(1)), Rig(Settings(max_sessions=0), hooks)) == 0x86  # who knows nobody


def test_enhanced_authentication_is_not_spoken() -> None:
    """[MQTT-4.12.0-1]."""
    assert refused(v5.connect("", b"\x15" + rig.text("SCRAM"))) == 0x8C
    wire = v5.client(Rig())
    wire.feed(rig.packet(0xF0, b"\x18\0"))
    assert last(wire).reason == 0x8C
    assert wire.shut_down


MALFORMED = {
    "reserved flag": (v5.connect(flags=1), 0x81),
    "will QoS without a will": (v5.connect(flags=0x08), 0x81),
    "will retain without a will": (v5.connect(flags=0x20), 0x81),
    "will QoS 3": (v5.connect(will=("a", b"", 3, False, b"")), 0x81),
    "will announced and missing": (v5.connect(flags=0x04), 0x81),
    "will topic not UTF-8": (rig.packet(0x10, rig.text(b"MQTT") + b"\5\6\0\0\0\0\0\0\0\1\xff\0\0"), 0x90),
    "user name announced and missing": (v5.connect(flags=0x80), 0x81),
    "user name not UTF-8": (rig.packet(0x10, rig.text(b"MQTT") + b"\5\x82\0\0\0\0\0\0\1\xff"), 0x81),
    "password announced and missing": (v5.connect(flags=0x40), 0x81),
    "client id missing": (rig.packet(0x10, rig.text(b"MQTT") + b"\5\2\0\0\0"), 0x81),
    "client id not UTF-8": (v5.connect(b"\xff"), 0x81),
    "no properties": (rig.packet(0x10, rig.text(b"MQTT") + b"\5\2\0\0"), 0x81),
    "properties cut": (rig.packet(0x10, rig.text(b"MQTT") + b"\5\2\0\0\5\x11"), 0x81),
    "unknown property": (v5.connect("a", b"\x7f\0"), 0x81),
    "property of another packet": (v5.connect("a", v5.alias(1)), 0x81),
    "property cut": (v5.connect("a", b"\x11\0\0"), 0x81),
    "user property not UTF-8": (v5.connect("a", b"\x26\0\1a\0\1\xff"), 0x81),
    "a property twice": (v5.connect("a", v5.expiry(1) + v5.expiry(1)), 0x82),
    "receive maximum 0": (v5.connect("a", v5.receive_maximum(0)), 0x82),
    "maximum packet size 0": (v5.connect("a", v5.max_packet(0)), 0x82),
    "request problem information 2": (v5.connect("a", b"\x17\2"), 0x82),
    "request response information 2": (v5.connect("a", b"\x19\2"), 0x82),
    "authentication data without method": (v5.connect("a", b"\x16" + rig.text(b"x")), 0x82),
    "will topic with wildcard": (v5.connect(will=("a/#", b"", 0, False, b"")), 0x90),
    "will property of another packet": (v5.connect(will=("a", b"", 0, False, v5.alias(1))), 0x81),
    "trailing bytes": (rig.packet(0x10, v5.connect("a")[2:] + b"x"), 0x81),
}


@pytest.mark.parametrize(("packet", "reason"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_connect_that_does_not_conform_is_answered_with_why(packet: bytes, reason: int) -> None:
    r = Rig()
    assert refused(packet, r) == reason
    assert r.broker.counters.malformed == 1


def test_a_password_needs_no_user_name() -> None:
    assert last(Rig().open(v5.connect(password=b"secret"))).reason == 0


def test_every_property_of_connect_is_taken() -> None:
    said = v5.expiry(5) + v5.receive_maximum(9) + v5.max_packet(4_000) + v5.alias_maximum(2) + b"\x19\1\x17\0"
    wire = Rig().open(v5.connect("a", said + v5.user("a", "b") + v5.user("a", "b")))
    answer = last(wire)
    assert answer.reason == 0
    assert not answer.values(0x1A)  # [MQTT-3.1.2-28] no response information
    assert (wire.terms.receive_maximum, wire.terms.max_packet) == (9, 4_000)


VIOLATIONS = {
    "second CONNECT": (v5.connect(), 0x82),
    "QoS 3": (rig.packet(0x36, rig.text("a") + b"\0\1\0"), 0x81),
    "DUP with QoS 0": (v5.publish("a", dup=True), 0x81),
    "packet id 0": (v5.publish("a", b"", 1, 0), 0x81),
    "no property length": (rig.packet(0x32, rig.text("a") + b"\0\1"), 0x81),
    "properties longer than the packet": (rig.packet(0x30, rig.text("a") + b"\x09\1\1"), 0x81),
    "unknown property": (v5.publish("a", properties=b"\x7f\0"), 0x81),
    "payload format 2": (v5.publish("a", properties=b"\x01\x02"), 0x82),
    "expiry twice": (v5.publish("a", properties=v5.expires(1) * 2), 0x82),
    "content type not UTF-8": (v5.publish("a", properties=b"\x03\0\1\xff"), 0x81),
    "response topic not UTF-8": (v5.publish("a", properties=b"\x08\0\1\xff"), 0x81),
    "response topic with wildcard": (v5.publish("a", properties=b"\x08\0\1+"), 0x82),
    "user property with U+0000": (v5.publish("a", properties=v5.user("a", "\0")), 0x81),
    "subscription identifier from a client": (v5.publish("a", properties=v5.identifier(1)), 0x82),
    "wildcard in a topic": (v5.publish("a/#"), 0x90),
    "neither topic nor alias": (v5.publish(""), 0x82),
    "topic alias 0": (v5.publish("a", properties=v5.alias(0)), 0x94),
    "topic alias too high": (v5.publish("a", properties=v5.alias(33)), 0x94),
    "topic alias never given": (v5.publish("", properties=v5.alias(1)), 0x94),
    "too large": (b"\x30\xff\xff\xff\x7f", 0x95),
    "SUBSCRIBE of nothing": (v5.subscribe(), 0x82),
    "SUBSCRIBE with QoS 3": (v5.subscribe(("a", 3)), 0x81),
    "SUBSCRIBE with reserved bits": (v5.subscribe(("a", 0x40)), 0x81),
    "SUBSCRIBE with retain handling 3": (v5.subscribe(("a", 0x30)), 0x82),
    "SUBSCRIBE with identifier 0": (v5.subscribe(("a", 0), properties=v5.identifier(0)), 0x82),
    "SUBSCRIBE with two identifiers": (v5.subscribe(("a", 0), properties=v5.identifier(1) * 2), 0x82),
    "SUBSCRIBE to what is not UTF-8": (rig.packet(0x82, b"\0\1\0\0\1\xff\0"), 0x81),
    "SUBSCRIBE to a bad filter": (v5.subscribe(("a#", 0)), 0x8F),
    "SUBSCRIBE with wrong flags": (rig.packet(0x80, v5.subscribe(("a", 0))[2:]), 0x81),
    "shared without a filter": (v5.subscribe(("$share/g", 0)), 0x8F),
    "shared with an empty filter": (v5.subscribe(("$share/g/", 0)), 0x8F),
    "shared without a name": (v5.subscribe(("$share//a", 0)), 0x8F),
    "shared name with wildcard": (v5.subscribe(("$share/g+/a", 0)), 0x8F),
    "shared with No Local": (v5.subscribe(("$share/g/a", 4)), 0x82),
    "UNSUBSCRIBE of nothing": (v5.unsubscribe(), 0x82),
    "UNSUBSCRIBE from what is not UTF-8": (rig.packet(0xA2, b"\0\1\0\0\1\xff"), 0x81),
    "UNSUBSCRIBE with wrong flags": (rig.packet(0xA0, v5.unsubscribe("a")[2:]), 0x81),
    "PUBREL with wrong flags": (rig.ack(0x60, 1), 0x81),
    "PUBACK with an unknown reason": (v5.ack(0x40, 1, 1), 0x82),
    "PUBREL with an unknown reason": (v5.ack(0x62, 1, 0x87), 0x82),
    "PUBACK with a wrong property": (rig.packet(0x40, b"\0\1\0\5" + v5.expires(1)), 0x81),
    "PUBACK of id 0": (rig.puback(0), 0x81),
    "PINGREQ with a body": (rig.packet(0xC0, b"x"), 0x81),
    "DISCONNECT with flags": (rig.packet(0xE1, b""), 0x81),
    "DISCONNECT with an unknown reason": (v5.disconnect(0x01), 0x82),
    "DISCONNECT that keeps what ends": (v5.disconnect(0, v5.expiry(5)), 0x82),
    "DISCONNECT with a server reference": (v5.disconnect(0, b"\x1c" + rig.text("x")), 0x81),
    "CONNACK from a client": (b"\x20\x03\0\0\0", 0x81),
    "AUTH with flags": (rig.packet(0xF1, b""), 0x81),
    "packet type 0": (rig.packet(0x00, b""), 0x81),
}


@pytest.mark.parametrize(("packet", "reason"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_what_is_wrong_ends_that_connection_with_its_reason(packet: bytes, reason: int) -> None:
    """[MQTT-4.13.1-1] A DISCONNECT that names the reason, nothing after it, and nobody else is concerned."""
    r = Rig()
    other, wire = v5.client(r, "other"), v5.client(r)
    wire.feed(packet + rig.PING)
    (said,) = v5.take(wire)
    assert (said.kind, said.reason) == (0xE0, reason)
    assert said.values(0x1F)  # and says it in words
    assert not said.values(0x11)
    r.commit()
    assert wire.take() == b""
    assert wire.shut_down
    assert r.broker.counters.malformed == 1
    assert other(rig.PING) == rig.PONG


def test_no_disconnect_before_connack() -> None:
    """[MQTT-3.14.0-1]."""
    r = Rig()
    wire = Wire(r)
    wire.feed(v5.connect("a", v5.expiry(5)))
    wire.feed(rig.packet(0x00, b""))
    assert wire.take() == b""
    assert wire.shut_down


def test_words_that_are_too_long_for_the_client_are_left_out() -> None:
    """[MQTT-3.14.2-3] [MQTT-3.1.2-24]."""
    for size, bytes_sent in ((100, True), (10, True), (3, False)):
        wire = v5.client(Rig(), "a", v5.max_packet(max(size, 30)))
        wire.terms.max_packet = size
        wire.feed(rig.packet(0x00, b""))
        output = wire.take()
        assert len(output) <= size
        assert bool(output) is bytes_sent


def test_an_answer_that_the_client_does_not_take_ends_the_connection() -> None:
    """[MQTT-3.1.2-24]."""
    r = Rig()
    wire = v5.client(r, "a", v5.max_packet(30))
    wire.feed(v5.subscribe(*[(f"t/{n}", 0) for n in range(40)]))
    (said,) = v5.take(wire)
    assert (said.kind, said.reason) == (0xE0, 0x95)


@pytest.mark.parametrize("packet", [v5.disconnect(), rig.DISCONNECT, rig.packet(0xE0, b"\0")])
def test_a_normal_disconnect_takes_the_will_off(packet: bytes) -> None:
    r = Rig()
    wire = r.open(v5.connect(will=("w", b"gone", 1, False, b"")))
    wire.take()
    assert wire(packet) == b""
    r.commit()
    assert wire.shut_down
    assert r.stored == []


@pytest.mark.parametrize("reason", [0x04, 0x80, 0x98])
def test_a_disconnect_with_a_reason_sends_the_will(reason: int) -> None:
    r = Rig()
    wire = r.open(v5.connect(will=("w", b"gone", 1, False, b"")))
    wire.feed(v5.disconnect(reason, b"\x1f" + rig.text("why") + v5.user("a", "b")))
    r.commit()
    assert r.stored == [b"gone"]


def test_a_failed_commit_says_so() -> None:
    r = Rig()
    wire = v5.client(r)
    wire.feed(v5.publish("a", b"x", 1, 1))
    r.commit(OSError("disk"))
    assert last(wire).reason == 0x83


def test_a_connack_that_the_client_does_not_take_is_a_refusal() -> None:
    """[MQTT-3.1.2-24]."""
    r = Rig()
    assert refused(v5.connect("a", v5.max_packet(10) + v5.expiry(9)), r) == 0x95
    assert not r.broker.sessions


@pytest.mark.parametrize(("size", "answer"), [(4, b""), (5, b"\x20\3\0\x87\0")])
def test_a_refusal_that_the_client_does_not_take_is_not_sent(size: int, answer: bytes) -> None:
    """[MQTT-3.1.2-24]."""
    wire = Wire(Rig(hooks=Hooks(authorize_connect=lambda _: ConnackCode.NOT_AUTHORIZED)))
    assert wire(v5.connect("a", v5.max_packet(size))) == answer
    assert wire.shut_down


def test_client_ids_of_every_length_are_taken() -> None:
    """[MQTT-3.1.3-5]."""
    letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    r = Rig()
    for size in (*range(1, 24), 62):
        assert last(r.open(v5.connect(letters[-size:]))).reason == 0
        assert r.open(rig.connect(letters[:size])).take() == rig.ACCEPTED

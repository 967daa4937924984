"""waybill.mqtt.connection: bytes to packets, runs of PUBLISH, malformed input, limits, time-outs."""

from __future__ import annotations

import pytest

from tests.unit.mqtt import rig
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt.settings import Settings

P1 = rig.publish("a/b", b"one", 1, 1)
P2 = rig.publish("a/b", b"two", 1, 2)
P0 = rig.publish("a/c", b"zero")


def test_a_run_of_publishes_is_one_arrival_sliced_whole() -> None:
    r = Rig()
    wire = r.client()
    assert wire(P1, P0, P2) == b""
    r.commit()
    assert wire.take() == rig.puback(1) + rig.puback(2)
    (arrival,) = r.sink.arrivals
    assert arrival.raw == P1 + P0 + P2
    assert [arrival.raw[each[4] : each[5]] for each in arrival.publishes] == [P1, P0, P2]
    assert [each[:4] for each in arrival.publishes] == [
        (b"a/b", b"one", 2, b"\0\1"),
        (b"a/c", b"zero", 0, None),
        (b"a/b", b"two", 2, b"\0\2"),
    ]
    assert (arrival.client_id, arrival.version, arrival.wall_ms, arrival.mono_ns) == ("dev", 4, 5_000, 10**9)


def test_other_packets_split_runs() -> None:
    r = Rig()
    wire = r.client()
    assert wire(P1, rig.PING, P2) == rig.PONG
    r.commit()
    assert [arrival.raw for arrival in r.sink.arrivals] == [P1, P2]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100, 129, 1000])
def test_any_chunking_gives_the_same(step: int) -> None:
    r = Rig()
    wire = Wire(r)
    stream = b"".join(
        [rig.connect(), P1, rig.publish("a", b"x" * 130, 1, 3), rig.publish("a", b"y" * 20_000, 2, 4), P0]
    )
    for at in range(0, len(stream), step):
        wire.feed(stream[at : at + step])
    r.commit()
    assert r.stored == [b"one", b"x" * 130, b"y" * 20_000, b"zero"]
    assert wire.take() == rig.ACCEPTED + rig.puback(1) + rig.puback(3) + rig.pubrec(4)


GOOD = rig.connect()
MALFORMED = {
    "PUBLISH before CONNECT": P0,
    "PINGREQ before CONNECT": rig.PING,
    "second CONNECT": GOOD + GOOD,
    "QoS 3": GOOD + rig.packet(0x36, rig.text("a") + b"\0\1"),
    "QoS 3 under an id that is held": GOOD + rig.publish("a", b"x", 2, 1) + rig.packet(0x36, rig.text("a") + b"\0\1"),
    "QoS 3 with DUP": GOOD + rig.packet(0x3E, rig.text("a") + b"\0\1"),
    "DUP with QoS 0": GOOD + rig.publish("a", b"", dup=True),
    "packet id 0 in PUBLISH": GOOD + rig.publish("a", b"x", 1, 0),
    "PUBLISH without packet id": GOOD + rig.packet(0x32, rig.text("a") + b"\1"),
    "PUBLISH shorter than its topic": GOOD + rig.packet(0x30, b"\0\5ab"),
    "PUBLISH without a topic length": GOOD + rig.packet(0x30, b"\0"),
    "PUBLISH of nothing": GOOD + rig.packet(0x30, b""),
    "empty topic": GOOD + rig.publish("", b"x"),
    "wildcard + in a topic": GOOD + rig.publish("a/+", b"x"),
    "wildcard # in a topic": GOOD + rig.publish("a/#", b"x"),
    "topic not UTF-8": GOOD + rig.publish(b"\xff", b"x"),
    "U+0000 in a topic": GOOD + rig.publish(b"a\0", b"x"),
    "topic too deep": GOOD + rig.publish("a/" * 64 + "a", b"x"),
    "remaining length of five bytes": GOOD + b"\x30\xff\xff\xff\xff\x01",
    "packet too large": GOOD + b"\x30\xff\xff\xff\x7f",
    "packet type 0": GOOD + rig.packet(0x00, b""),
    "packet type 15": GOOD + rig.packet(0xF0, b""),
    "CONNACK from a client": GOOD + rig.ACCEPTED,
    "SUBACK from a client": GOOD + rig.suback(0),
    "PINGRESP from a client": GOOD + rig.PONG,
    "SUBSCRIBE with wrong flags": GOOD + rig.packet(0x80, rig.subscribe(("a", 0))[2:]),
    "SUBSCRIBE of nothing": GOOD + rig.subscribe(),
    "SUBSCRIBE with QoS 3": GOOD + rig.subscribe(("a", 3)),
    "SUBSCRIBE to a bad filter": GOOD + rig.subscribe(("a#", 0)),
    "SUBSCRIBE with packet id 0": GOOD + rig.subscribe(("a", 0), pid=0),
    "UNSUBSCRIBE with wrong flags": GOOD + rig.packet(0xA0, rig.unsubscribe("a")[2:]),
    "UNSUBSCRIBE of nothing": GOOD + rig.unsubscribe(),
    "PUBREL with wrong flags": GOOD + rig.ack(0x60, 1),
    "PUBACK too long": GOOD + rig.packet(0x40, b"\0\1\0"),
    "PUBACK of id 0": GOOD + rig.puback(0),
    "PINGREQ with a body": GOOD + rig.packet(0xC0, b"x"),
    "DISCONNECT with flags": GOOD + rig.packet(0xE1, b""),
    "CONNECT with flags": rig.packet(0x11, GOOD[2:]),
    "CONNECT cut": rig.packet(0x10, GOOD[2:-1]),
    "will topic with a wildcard": rig.connect(will=("a/#", b"", 0, False)),
    "first packet too large": b"\x10\xff\xff\x7f",
}


@pytest.mark.parametrize("stream", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_closes_that_connection_alone(stream: bytes) -> None:
    r = Rig()
    other = r.client("other")
    wire = Wire(r)
    wire.feed(stream)
    r.commit()
    assert wire.shut_down
    assert wire.session is None
    assert r.broker.counters.malformed == 1
    assert not other.shut_down
    assert other(rig.PING) == rig.PONG


def test_what_came_before_a_malformed_packet_is_stored() -> None:
    r = Rig()
    wire = r.client()
    wire.feed(P1 + rig.publish("a/+", b"x", 1, 2))
    r.commit()
    assert wire.shut_down
    assert r.stored == [b"one"]


def test_nothing_is_read_after_the_end() -> None:
    r = Rig()
    wire = r.client()
    wire.feed(rig.DISCONNECT + P1)
    wire.feed(P2)
    r.commit()
    assert wire.shut_down
    assert r.stored == []


def test_a_disconnect_closes_after_the_acks_that_are_owed() -> None:
    r = Rig()
    wire = r.client()
    assert wire(P1, rig.DISCONNECT) == b""
    assert not wire.shut_down
    r.commit()
    assert wire.take() == rig.puback(1)
    assert wire.shut_down


def test_the_packet_limit_is_exact() -> None:
    r = Rig(Settings(max_packet=200))
    wire = r.client()
    packet = rig.publish("a", b"x" * (200 - 6))
    assert len(packet) == 200
    wire.feed(packet)
    assert not wire.shut_down
    wire.feed(rig.publish("a", b"x" * (200 - 5)))
    assert wire.shut_down


def test_reading_pauses_on_uncommitted_bytes_and_goes_on_when_half_is_committed() -> None:
    r = Rig(Settings(uncommitted_bytes=1000))
    wire = r.client()
    wire.feed(rig.publish("a", b"x" * 600, 1, 1))
    assert wire.reading
    wire.feed(rig.publish("a", b"x" * 600, 1, 2))
    assert not wire.reading
    r.commit()
    assert wire.reading
    assert r.broker.uncommitted == wire.uncommitted == 0


def test_reading_pauses_on_the_uncommitted_bytes_of_all() -> None:
    r = Rig(Settings(uncommitted_bytes_all=1000))
    wires = [r.client(f"c{n}") for n in range(3)]
    for wire in wires:
        wire.feed(rig.publish("a", b"x" * 600, 1, 1))
    assert not any(wire.reading for wire in wires)  # the first one is not to send more either
    r.commit()
    assert all(wire.reading for wire in wires)


def test_subscribes_count_as_uncommitted_too() -> None:
    r = Rig(Settings(uncommitted_bytes=1000))
    wire = r.client()
    for n in range(10):
        wire.feed(rig.subscribe((f"t{n}", 0)))
    assert not wire.reading


def test_a_connection_without_connect_is_overdue() -> None:
    r = Rig(Settings(connect_timeout=10))
    wire = Wire(r)
    wire.feed(rig.connect()[:5])
    r.pass_time(9.9)
    wire.feed(rig.connect()[5:7])
    assert wire.overdue(r.broker.mono_ns) == ""
    r.pass_time(0.2)
    assert wire.overdue(r.broker.mono_ns) == "no CONNECT in time"


def test_keepalive_is_one_and_a_half() -> None:
    r = Rig()
    wire = r.open(rig.connect(keepalive=10))
    r.pass_time(14.9)
    assert wire.overdue(r.broker.mono_ns) == ""
    r.pass_time(0.2)
    assert wire.overdue(r.broker.mono_ns) == "keepalive"
    wire.feed(rig.PING)
    assert wire.overdue(r.broker.mono_ns) == ""


def test_keepalive_0_never_expires() -> None:
    r = Rig()
    wire = r.open(rig.connect(keepalive=0))
    r.pass_time(1e6)
    assert wire.overdue(r.broker.mono_ns) == ""


def test_a_trickle_is_no_sign_of_life() -> None:
    r = Rig(Settings(stall_timeout=60))
    wire = r.open(rig.connect())
    packet = rig.publish("a", b"x" * 5000)
    wire.feed(packet[:10])
    for at in range(10, 71):
        r.pass_time(1)
        wire.feed(packet[at : at + 1])
    assert wire.overdue(r.broker.mono_ns) == "unfinished packet"


def test_a_large_packet_over_a_slow_link_is_one() -> None:
    r = Rig(Settings(stall_timeout=60))
    wire = r.open(rig.connect(keepalive=20))
    packet = rig.publish("a", b"x" * 20_000)
    for at in range(0, len(packet), 1100):
        r.pass_time(25)
        wire.feed(packet[at : at + 1100])
        assert wire.overdue(r.broker.mono_ns) == ""
    r.commit()
    assert r.stored == [b"x" * 20_000]


def test_who_is_not_read_is_not_overdue() -> None:
    r = Rig(Settings(uncommitted_bytes=100))
    wire = r.open(rig.connect(keepalive=10))
    wire.feed(rig.publish("a", b"x" * 200, 1, 1))
    assert not wire.reading
    r.pass_time(1000)
    assert wire.overdue(r.broker.mono_ns) == ""
    r.commit()
    r.pass_time(14)
    assert wire.overdue(r.broker.mono_ns) == ""


def test_who_does_not_read_is_not_read_and_is_overdue_in_the_end() -> None:
    r = Rig(Settings(stall_timeout=60))
    wire = r.client()
    wire.unread = 1000
    wire.output_full()
    assert not wire.reading
    assert wire.overdue(r.broker.mono_ns) == ""
    r.pass_time(50)
    wire.unread = 900
    assert wire.overdue(r.broker.mono_ns) == ""
    r.pass_time(59)
    assert wire.overdue(r.broker.mono_ns) == ""
    r.pass_time(2)
    assert wire.overdue(r.broker.mono_ns) == "reads nothing"
    wire.unread = 0
    wire.output_free()
    assert wire.reading
    assert wire.overdue(r.broker.mono_ns) == ""


def test_a_silent_connection_keeps_no_batch_alive() -> None:
    r = Rig()
    wire = r.client()
    wire.feed(rig.publish("a", b"x", 1, 1))
    r.commit()
    assert (wire.ticket, wire.ticket_of) == (None, None)
    wire.feed(rig.publish("a", b"y", 1, 2))
    r.commit_one(OSError("disk"))
    assert (wire.ticket, wire.ticket_of) == (None, None)


def test_3_1_sends_again_with_dup() -> None:
    r = Rig()
    wire = r.open(rig.connect("old", name=b"MQIsdp", level=3))
    again = bytearray(rig.subscribe(("a", 1)))
    again[0] |= 8
    wire.feed(bytes(again))
    r.commit()
    assert wire.take().endswith(rig.suback(1))
    new = r.open(rig.connect("new"))
    new.feed(bytes(again))
    assert new.shut_down

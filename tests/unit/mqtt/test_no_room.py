"""The program has no room for some topics: MQTT 5 hears it, 3.1.1 is not read, everybody else goes on."""

from __future__ import annotations

import pytest

from tests.unit.mqtt import rig, v5
from tests.unit.mqtt.rig import MS, Rig
from waybill.mqtt.settings import Hooks, Settings

FULL, FREE = "full/1", "free/1"


def full(topic: bytes) -> bool:
    return topic.startswith(b"full")


def stored(r: Rig) -> list[bytes]:
    return [each[1] for arrival in r.sink.arrivals for each in arrival.publishes]


def test_mqtt_5_is_answered_0x97_between_the_acks_of_what_is_taken() -> None:
    said: list[tuple[str, str]] = []
    r = Rig(hooks=Hooks(on_no_room=lambda client, topic: said.append((client.client_id, topic))))
    wire = v5.client(r)
    r.broker.shut = full
    wire.feed(v5.publish(FREE, b"1", 1, 1) + v5.publish(FULL, b"2", 1, 2) + v5.publish(FREE, b"3", 1, 3))
    wire.feed(v5.publish(FULL, b"4", 2, 4) + rig.PING)
    r.commit()
    assert wire.take() == rig.PONG + rig.puback(1) + v5.ack(0x40, 2, 0x97) + rig.puback(3) + v5.ack(0x50, 4, 0x97)
    assert stored(r) == [b"1", b"3"]
    assert said == [("dev", FULL)] * 2
    assert r.broker.counters.no_room == 2
    assert wire.session is not None
    assert not wire.session.held  # the id may be used again
    r.broker.shut = None
    wire.feed(v5.publish(FULL, b"4", 2, 4))
    r.commit()
    assert wire.take() == rig.pubrec(4)


@pytest.mark.parametrize("qos", [1, 2])
def test_mqtt_3_1_1_is_not_read_until_there_is_room(qos: int) -> None:
    r = Rig()
    wire, other = r.client("a"), r.client("b")
    r.broker.shut = full
    wire.feed(
        rig.publish(FREE, b"1", 1, 1) + rig.publish(FULL, b"2", qos, 2) + rig.publish(FREE, b"3", 1, 3) + rig.PING
    )
    other.feed(rig.publish(FREE, b"4", 1, 4) + rig.PING)
    r.commit()
    assert (wire.take(), wire.reading) == (rig.puback(1), False)
    assert (other.take(), other.reading) == (rig.PONG + rig.puback(4), True)
    r.broker.relieve()
    assert not wire.reading
    r.broker.shut = None
    r.broker.relieve()
    assert wire.reading
    r.commit()
    acks = rig.puback(2) + rig.puback(3) if qos == 1 else rig.puback(3) + rig.pubrec(2)  # one packet type a run
    assert wire.take() == rig.PONG + acks
    assert stored(r) == [b"1", b"4", b"2", b"3"]


def test_one_that_waits_too_long_is_closed_and_its_reason_named() -> None:
    r = Rig(Settings(full_timeout=5))
    wire = r.client()
    r.broker.shut = full
    wire.feed(rig.publish(FULL, b"1", 1, 1))
    r.pass_time(4)
    assert wire.overdue(r.broker.mono_ns) == ""
    r.broker.shut = None
    r.broker.relieve()
    r.broker.shut = full
    wire.feed(rig.publish(FULL, b"2", 1, 2))
    r.pass_time(4)
    assert wire.overdue(r.broker.mono_ns) == ""  # there was room meanwhile
    r.broker.relieve()  # as it is called again and again: that there is still none begins nothing anew
    r.pass_time(2)
    assert wire.overdue(r.broker.mono_ns) == "no room for full/1"


def test_qos_0_and_wills_come_to_the_sink_as_ever() -> None:
    r = Rig()
    wire = r.open(rig.connect(will=(FULL, b"will", 1, False)))
    r.broker.shut = full
    wire.feed(rig.publish(FULL, b"0"))
    wire.drop()
    r.commit()
    assert stored(r) == [b"0", b"will"]


def test_o1_a_copy_of_what_was_taken_is_acknowledged_where_there_is_no_room_for_more() -> None:
    r = Rig()
    wire = r.client("a", clean=False)
    wire.feed(rig.publish(FULL, b"1", 1, 1) + rig.publish(FULL, b"2", 2, 2))
    r.commit()
    wire.take()
    wire.drop()
    r.broker.shut = full
    wire = r.client("a", clean=False)
    wire.feed(rig.publish(FULL, b"1", 1, 1, dup=True) + rig.publish(FULL, b"2", 2, 2, dup=True))
    r.commit()
    assert wire.take() == rig.puback(1) + rig.pubrec(2)
    assert stored(r) == [b"1", b"2"]
    wire.feed(rig.publish(FULL, b"other", 1, 1, dup=True))
    assert not wire.reading


def test_a_refused_message_counts_against_nobody_and_the_rate_holds() -> None:
    r = Rig(Settings(receive_maximum=2, publish_rate=2))
    wire = v5.client(r)
    r.broker.shut = full
    r.broker.mono_ns += MS
    for pid in range(1, 6):
        wire.feed(v5.publish(FULL, b"x", 1, pid))
    r.commit()
    assert len(v5.take(wire)) == 5  # not over the Receive Maximum
    assert not wire.reading  # but over its rate

"""MQTT 5: PUBLISH in both directions: properties, expiry, aliases, flow control, reasons."""

from __future__ import annotations

import pytest

from tests.unit.mqtt import rig, v5
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt.resend import entries_of
from waybill.mqtt.settings import Hooks, Message, Settings

ALL = v5.FORMAT + v5.CONTENT + v5.RESPONSE + v5.CORRELATION + v5.user("b", "1") + v5.user("a", "2") + v5.user("b", "1")


# -- what is stored --------------------------------------------------------------------------------------------------


def test_a_run_is_stored_as_it_came_with_its_properties() -> None:
    r = Rig()
    wire = v5.client(r)
    sent = [v5.publish("a", b"1", 1, 1, ALL), v5.publish("a", b"2", 0), v5.publish("b", b"3", 1, 2, v5.expires(9))]
    wire.feed(b"".join(sent))
    r.commit()
    assert wire.take() == rig.puback(1) + rig.puback(2)
    (arrival,) = r.sink.arrivals
    assert (arrival.raw, arrival.version) == (b"".join(sent), 5)
    assert [arrival.raw[each[4] : each[5]] for each in arrival.publishes] == sent
    assert [(each[0], each[1], each[6]) for each in arrival.publishes] == [
        (b"a", b"1", ALL),
        (b"a", b"2", b""),
        (b"b", b"3", v5.expires(9)),
    ]


@pytest.mark.parametrize("step", [1, 2, 5, 64, 10_000])
def test_any_chunking_gives_the_same(step: int) -> None:
    r = Rig()
    wire = Wire(r)
    long = v5.user("n", "x" * 200)
    stream = v5.connect() + b"".join(
        [
            v5.publish("t", b"1", 1, 1, v5.alias(1)),
            v5.publish("", b"2", 1, 2, v5.alias(1) + long),
            v5.publish("t", b"y" * 300, 2, 3, long),
            v5.publish("u", b"4"),
        ]
    )
    for at in range(0, len(stream), step):
        wire.feed(stream[at : at + step])
    r.commit()
    assert [(topic, payload) for arrival in r.sink.arrivals for topic, payload, *_ in arrival.publishes] == [
        (b"t", b"1"),
        (b"t", b"2"),
        (b"t", b"y" * 300),
        (b"u", b"4"),
    ]
    assert [(each.kind, each.pid) for each in v5.take(wire)[1:]] == [(0x40, 1), (0x40, 2), (0x50, 3)]


def test_a_topic_alias_is_stored_with_its_topic() -> None:
    """[MQTT-3.3.2-12] Packets with an alias are encoded anew, their neighbours are not."""
    r = Rig()
    wire = v5.client(r)
    plain = v5.publish("x/y", b"0", 1, 9, ALL)
    wire.feed(
        plain
        + v5.publish("long/topic", b"1", 1, 1, v5.CONTENT + v5.alias(32))
        + v5.publish("", b"2", 0, 0, v5.alias(32) + v5.expires(5))
        + plain
        + v5.publish("other", b"3", 0, 0, v5.alias(32))
        + v5.publish("", b"4", 0, 0, v5.alias(32))
    )
    r.commit()
    (arrival,) = r.sink.arrivals
    expected = [
        plain,
        v5.publish("long/topic", b"1", 1, 1, v5.CONTENT),
        v5.publish("long/topic", b"2", 0, 0, v5.expires(5)),
        plain,
        v5.publish("other", b"3"),
        v5.publish("other", b"4"),
    ]
    assert arrival.raw == b"".join(expected)
    assert [arrival.raw[each[4] : each[5]] for each in arrival.publishes] == expected
    assert [each[0] for each in arrival.publishes] == [b"x/y", b"long/topic", b"long/topic", b"x/y", b"other", b"other"]


def test_an_alias_ends_with_its_connection() -> None:
    """[MQTT-3.3.2-7]."""
    r = Rig()
    wire = v5.client(r, "dev", v5.expiry(60))
    wire.feed(v5.publish("a", b"1", 0, 0, v5.alias(1)))
    wire.drop()
    wire = v5.client(r, "dev", v5.expiry(60), clean=False)
    wire.feed(v5.publish("", b"2", 0, 0, v5.alias(1)))
    assert v5.take(wire)[0].reason == 0x94


def test_no_aliases_where_none_are_offered() -> None:
    r = Rig(Settings(topic_aliases=0))
    wire = r.open(v5.connect())
    assert v5.take(wire)[0].number(0x22) is None
    wire.feed(v5.publish("a", b"", 0, 0, v5.alias(1)))
    assert v5.take(wire)[0].reason == 0x94


# -- resends (O1-O3) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [True, False])
def test_o1_a_resend_in_the_same_session_is_stored_once(restart: bool) -> None:  # noqa: FBT001
    r = Rig()
    wire = v5.client(r, "dev", v5.expiry(60))
    wire.feed(v5.publish("a", b"x", 1, 7, ALL))
    r.commit()
    wire.drop()
    r.commit()
    if restart:
        r.restart()
    wire = v5.client(r, "dev", v5.expiry(60), clean=False)
    wire.feed(v5.publish("a", b"x", 1, 7, v5.CONTENT, dup=True))  # other properties: another message
    r.commit()
    assert r.stored == [b"x", b"x"]
    wire.drop()
    wire = v5.client(r, "dev", v5.expiry(60), clean=False)
    wire.feed(v5.publish("a", b"x", 1, 7, v5.CONTENT, dup=True))
    r.commit()
    assert wire.take() == rig.puback(7)
    assert r.stored == [b"x", b"x"]


def test_o1_a_resend_with_an_alias_is_the_same_message() -> None:
    r = Rig()
    wire = v5.client(r, "dev", v5.expiry(60))
    wire.feed(v5.publish("a", b"0", 0, 0, v5.alias(1)) + v5.publish("", b"x", 1, 7, v5.alias(1) + v5.CONTENT))
    r.commit()
    wire.drop()
    r.commit()
    r.restart()
    wire = v5.client(r, "dev", v5.expiry(60), clean=False)
    wire.feed(v5.publish("a", b"x", 1, 7, v5.CONTENT + v5.alias(2), dup=True))
    r.commit()
    assert wire.take() == rig.puback(7)
    assert r.stored == [b"0", b"x"]


@pytest.mark.parametrize("restart", [True, False])
def test_o1_in_a_new_session_nothing_is_a_resend(restart: bool) -> None:  # noqa: FBT001
    """In doubt store: version 5 sends again within a session only (4.4), so a DUP of a new one repeats its own."""
    r = Rig()
    wire = v5.client(r)
    wire.feed(v5.publish("a", b"x", 1, 7))
    r.commit()
    wire.drop()
    r.commit()
    if restart:
        r.restart()
    wire = v5.client(r)
    wire.feed(v5.publish("a", b"x", 1, 7, dup=True))
    r.commit()
    assert r.stored == [b"x", b"x"]


def test_o3_as_many_are_remembered_as_may_be_under_way() -> None:
    r = Rig(Settings(receive_maximum=2))
    wire = v5.client(r, "dev", v5.expiry(60))
    wire.tcp = None
    for pid in (1, 2, 3):
        wire.feed(v5.publish("a", b"%d" % pid, 1, pid))
        r.commit()
    wire.drop()
    r.commit()
    memory = r.broker.memories.get("dev")
    assert memory is not None
    assert [pid for pid, _ in memory.saved()] == [2, 3]


def test_o3_entries_of_version_5() -> None:
    r = Rig()
    wire = v5.client(r)
    wire.tcp = None
    wire.feed(v5.publish("a", b"x", 1, 7, ALL) + v5.publish("b", b"", 0) + v5.publish("c", b"z", 2, 8))
    raw = r.broker.pending.batch.arrivals[0].raw
    wire.drop()
    memory = r.broker.memories.get("dev")
    assert memory is not None
    assert tuple(entries_of(raw, 5)) == memory.saved()


# -- what subscribers get --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_properties_go_on_unaltered_and_in_order(qos: int, clean: bool) -> None:  # noqa: FBT001
    """[MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.2-20]."""
    r = Rig()
    sub = v5.subscriber(r, ("a", 2), properties=b"" if clean else v5.expiry(60), clean=clean)
    old = r.client("old")
    old(rig.subscribe(("a", 2)))
    r.commit()
    old.take()
    v5.client(r, "pub").feed(v5.publish("a", b"x", qos, 3, ALL + v5.alias(4)))
    r.commit()
    assert sub.take() == v5.publish("a", b"x", qos, 1, ALL)
    assert old.take() == rig.publish("a", b"x", qos, 1)


def test_properties_survive_a_restart_in_a_queue() -> None:
    r = Rig()
    v5.subscriber(r, ("a", 1), properties=v5.expiry(60), said=v5.identifier(300), clean=False).drop()
    v5.client(r, "pub").feed(v5.publish("a", b"x", 1, 3, ALL))
    r.commit()
    r.restart()
    sub = r.open(v5.connect("sub", v5.expiry(60), clean=False))
    message = v5.take(sub)[1]
    assert message.values(0x26) == [b"b=1", b"a=2", b"b=1"]
    assert message.number(0x0B) == 300


def test_the_program_hears_the_properties() -> None:
    r = Rig()
    heard: list[Message] = []
    r.broker.listen("a", heard.append)
    v5.client(r).feed(v5.publish("a", b"x", 1, 1, ALL + v5.expires(3)))
    r.commit()
    assert heard[0].properties == ALL + v5.expires(3)


# -- message expiry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [True, False])
def test_the_expiry_counts_down_while_a_message_waits(restart: bool) -> None:  # noqa: FBT001
    """[MQTT-3.3.2-5] [MQTT-3.3.2-6]."""
    r = Rig()
    v5.subscriber(r, ("a", 1), properties=v5.expiry(600), clean=False).drop()
    pub = v5.client(r, "pub")
    pub.feed(v5.publish("a", b"short", 1, 1, v5.expires(10)) + v5.publish("a", b"long", 1, 2, v5.expires(60)))
    pub.feed(v5.publish("a", b"ever", 1, 3))
    r.commit()
    r.pass_time(20)
    if restart:
        r.restart()
    sub = r.open(v5.connect("sub", v5.expiry(600), clean=False))
    # what may have been on its way before a restart is sent whatever its age
    got = [(each.body, each.number(2)) for each in v5.take(sub)[1:]]
    assert got == ([(b"short", 0)] if restart else []) + [(b"long", 40), (b"ever", None)]
    assert r.broker.counters.expired == (0 if restart else 1)


def test_what_expires_in_a_queue_leaves_the_store_and_makes_room() -> None:
    r = Rig(Settings(queue_messages=2))
    v5.subscriber(r, ("a", 1), properties=v5.expiry(600), clean=False).drop()
    pub = v5.client(r, "pub")
    pub.feed(b"".join(v5.publish("a", b"old", 1, n, v5.expires(10)) for n in (1, 2)))
    r.commit()
    r.pass_time(11)
    pub.feed(b"".join(v5.publish("a", b"new", 1, n) for n in (3, 4)))
    r.commit()
    assert (r.broker.counters.dropped, r.broker.counters.expired) == (0, 2)
    r.restart()
    assert [out.payload for out in r.broker.sessions["sub"].waiting] == [b"new", b"new"]


def test_what_was_sent_does_not_expire() -> None:
    """[MQTT-4.3.3-7]."""
    r = Rig()
    sub = v5.subscriber(r, ("a", 2), properties=v5.expiry(600), clean=False)
    v5.client(r, "pub").feed(v5.publish("a", b"x", 2, 1, v5.expires(1)))
    r.commit()
    assert v5.take(sub)[0].number(2) == 1
    sub.drop()
    r.pass_time(5)
    sub = r.open(v5.connect("sub", v5.expiry(600), clean=False))
    (_, again) = v5.take(sub)
    assert (again.body, again.number(2), again.flags & 8) == (b"x", 0, 8)


def test_a_retained_message_expires() -> None:
    r = Rig()
    v5.client(r, "pub").feed(
        v5.publish("a", b"x", 1, 1, v5.expires(10) + v5.CONTENT, retain=True) + v5.publish("b", b"y", 1, 2, retain=True)
    )
    r.commit()
    r.pass_time(4)
    r.restart()
    sub = v5.client(r, "sub")
    sub.feed(v5.subscribe(("#", 0)))
    r.commit()
    got = {each.topic: each for each in v5.take(sub)[1:]}
    assert (got[b"a"].number(2), got[b"a"].values(3), got[b"b"].number(2)) == (6, [b"text/plain"], None)
    r.pass_time(7)
    late = v5.client(r, "late")
    late.feed(v5.subscribe(("#", 0)))
    r.commit()
    assert [each.topic for each in v5.take(late)[1:]] == [b"b"]
    r.broker.sweep()
    r.commit()
    r.restart()
    assert len(r.broker.retained) == 1


# -- the client's limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [True, False])
def test_the_clients_receive_maximum_bounds_what_is_in_flight(clean: bool) -> None:  # noqa: FBT001
    """[MQTT-3.3.4-9] [MQTT-3.3.4-10] [MQTT-4.9.0-2] [MQTT-4.9.0-3]."""
    r = Rig()
    said = v5.receive_maximum(2) + (b"" if clean else v5.expiry(60))
    sub = v5.subscriber(r, ("a", 2), properties=said, clean=clean)
    pub = v5.client(r, "pub")
    pub.feed(b"".join(v5.publish("a", b"%d" % n, 1 + n % 2, n) for n in range(1, 6)))
    pub.feed(v5.publish("a", b"quick"))
    r.commit()
    assert [each.body for each in v5.take(sub)] == [b"quick", b"1", b"2"]
    assert sub(rig.PING) == rig.PONG
    sub.feed(rig.pubrec(1))
    r.commit()
    assert sub.take() == rig.pubrel(1)
    assert sub(rig.PING) == rig.PONG  # not before PUBCOMP
    assert [each.body for each in v5.packets(sub(rig.pubcomp(1)))] == [b"3"]
    assert [each.body for each in v5.packets(sub(v5.ack(0x40, 2, 0x80)))] == [b"4"]
    assert [each.body for each in v5.packets(sub(v5.ack(0x50, 3, 0x83)))] == [b"5"]


def test_a_smaller_receive_maximum_holds_for_what_is_sent_again() -> None:
    """[MQTT-3.3.4-9] [MQTT-4.4.0-1]."""
    r = Rig()
    sub = v5.subscriber(r, ("a", 1), properties=v5.expiry(60), clean=False)
    v5.client(r, "pub").feed(b"".join(v5.publish("a", b"%d" % n, 1, n) for n in range(1, 5)))
    r.commit()
    sub.take()
    sub.drop()
    sub = r.open(v5.connect("sub", v5.expiry(60) + v5.receive_maximum(1), clean=False))
    got = v5.take(sub)[1:]
    for pid in (1, 2, 3, 4):
        (message,) = got
        assert (message.body, message.pid, message.flags) == (b"%d" % pid, pid, 0x0A)
        got = v5.packets(sub(rig.puback(pid)))
    assert got == []


def test_the_servers_receive_maximum() -> None:
    """The client may have as many out as CONNACK said, and not one more."""
    r = Rig(Settings(receive_maximum=3))
    wire = v5.client(r)
    wire.feed(v5.publish("a", b"1", 1, 1) + v5.publish("a", b"2", 2, 2) + v5.publish("a", b"3", 1, 3))
    r.commit()
    assert [each.kind for each in v5.take(wire)] == [0x40, 0x40, 0x50]
    wire.feed(v5.publish("a", b"4", 1, 4) + v5.publish("a", b"5", 2, 5))
    r.commit()
    wire.take()
    wire.feed(rig.pubrel(2) + rig.pubrel(5))
    assert wire.take() == b""
    wire.feed(v5.publish("a", b"6", 1, 6))
    assert wire.take() == b""
    r.commit()
    wire.take()
    wire.feed(b"".join(v5.publish("a", b"x", 1, n) for n in (7, 8, 9)))
    r.commit()
    assert [each.pid for each in v5.take(wire)] == [7, 8, 9]
    wire.feed(b"".join(v5.publish("a", b"x", 1, n) for n in (10, 11, 12)))
    wire.feed(v5.publish("a", b"one too many", 1, 13))
    (said,) = v5.take(wire)
    assert said.reason == 0x93
    r.commit()
    assert b"one too many" not in r.stored
    assert wire.take() == b""


@pytest.mark.parametrize("clean", [True, False])
def test_what_is_too_large_for_the_client_is_as_if_sent(clean: bool) -> None:  # noqa: FBT001
    """[MQTT-3.1.2-24] [MQTT-3.1.2-25]."""
    r = Rig()
    said = v5.max_packet(40) + (b"" if clean else v5.expiry(60))
    sub = v5.subscriber(r, ("a", 1), properties=said, clean=clean)
    fits = v5.publish("a", b"x" * 32, 1, 2)
    assert len(fits) == 40
    pub = v5.client(r, "pub")
    pub.feed(v5.publish("a", b"x" * 33, 1, 1) + v5.publish("a", b"x" * 32, 1, 2))
    pub.feed(v5.publish("a", b"x" * 40) + v5.publish("a", b"small", 0, 0, ALL) + v5.publish("a", b"small"))
    r.commit()
    assert sorted(each.body for each in v5.take(sub)) == [b"small", b"x" * 32]
    sub.feed(rig.puback(2))
    r.commit()
    assert r.broker.sessions["sub"].queued == 0
    if not clean:
        assert not r.sink._sessions["sub"].queue


def test_topics_that_come_again_are_sent_by_alias() -> None:
    """[MQTT-3.1.2-26] [MQTT-3.3.2-11]."""
    r = Rig()
    sub = v5.subscriber(r, ("#", 1), properties=v5.alias_maximum(2))
    pub = v5.client(r, "pub")
    got = []
    for topic in ("long/1", "long/2", "long/3", "long/1", "long/3", "long/2", "s"):
        pub.feed(v5.publish(topic, b"x"))
        r.commit()
        (message,) = v5.take(sub)
        got.append((message.topic, message.number(0x23)))
    assert got == [
        (b"long/1", 1),
        (b"long/2", 2),
        (b"long/3", None),
        (b"", 1),
        (b"long/3", None),
        (b"", 2),
        (b"s", None),
    ]


def test_no_alias_for_who_takes_none_and_none_beyond_a_connection() -> None:
    """[MQTT-3.1.2-27] [MQTT-3.3.2-7]."""
    r = Rig()
    plain = v5.subscriber(r, ("#", 1), name="plain")
    said = v5.alias_maximum(5) + v5.expiry(60)
    sub = v5.subscriber(r, ("#", 1), properties=said, clean=False)
    pub = v5.client(r, "pub")
    pub.feed(v5.publish("long/1", b"x", 1, 1) + v5.publish("long/1", b"y", 1, 2))
    r.commit()
    assert [(each.topic, each.number(0x23)) for each in v5.take(sub)] == [(b"long/1", 1), (b"", 1)]
    assert [(each.topic, each.number(0x23)) for each in v5.take(plain)] == [(b"long/1", None)] * 2
    sub.drop()
    sub = r.open(v5.connect("sub", said, clean=False))
    assert [(each.topic, each.number(0x23)) for each in v5.take(sub)[1:]] == [(b"long/1", 1), (b"", 1)]


def test_what_is_dropped_teaches_no_alias() -> None:
    r = Rig()
    sub = v5.subscriber(r, ("#", 0), properties=v5.alias_maximum(5) + v5.max_packet(40))
    pub = v5.client(r, "pub")
    pub.feed(v5.publish("long/topic", b"x" * 60))
    sub.output_full()
    pub.feed(v5.publish("long/topic", b"1"))
    r.commit()
    sub.output_free()
    pub.feed(v5.publish("long/topic", b"2"))
    r.commit()
    assert [(each.topic, each.number(0x23), each.body) for each in v5.take(sub)] == [(b"long/topic", 1, b"2")]


# -- reasons ---------------------------------------------------------------------------------------------------------


def test_a_publish_that_is_not_allowed_is_answered_and_not_stored() -> None:
    """[MQTT-3.5.2-1] [MQTT-4.3.3-9]."""
    r = Rig(hooks=Hooks(authorize_publish=lambda _, topic: topic != "no"))
    wire = v5.client(r)
    wire.feed(
        v5.publish("yes", b"1", 1, 1)
        + v5.publish("no", b"2", 1, 2)
        + v5.publish("no", b"3", 2, 3)
        + v5.publish("no", b"4")
        + v5.publish("yes", b"5", 2, 3)
    )
    r.commit()
    assert [(each.kind, each.pid, each.reason) for each in v5.take(wire)] == [
        (0x40, 1, 0),
        (0x40, 2, 0x87),
        (0x50, 3, 0x87),
        (0x50, 3, 0),
    ]
    assert r.stored == [b"1", b"5"]
    assert r.broker.counters.denied == 3
    assert not wire.shut_down


def test_ids_that_nobody_knows() -> None:
    """[MQTT-3.6.2-1] [MQTT-3.7.2-1]."""
    r = Rig()
    wire = v5.client(r)
    wire.feed(rig.pubrel(7) + rig.pubrec(8) + rig.puback(9) + rig.pubcomp(10) + v5.ack(0x50, 11, 0x80))
    r.commit()
    assert [(each.kind, each.pid, each.reason) for each in v5.take(wire)] == [(0x70, 7, 0x92), (0x60, 8, 0x92)]


def test_a_repeated_pubrel_in_a_session_that_goes_on_is_no_mismatch() -> None:
    """Its PUBCOMP was lost with the last connection."""
    r = Rig()
    wire = v5.client(r, "dev", v5.expiry(60))
    wire.feed(v5.publish("a", b"x", 2, 7) + rig.pubrel(7))
    r.commit()
    wire.drop()
    wire = v5.client(r, "dev", v5.expiry(60), clean=False)
    wire.feed(rig.pubrel(7))
    r.commit()
    assert [(each.kind, each.pid, each.reason) for each in v5.take(wire)] == [(0x70, 7, 0)]
    assert r.stored == [b"x"]


def test_acks_may_have_reasons_and_properties() -> None:
    r = Rig()
    sub = v5.subscriber(r, ("a", 2))
    v5.client(r, "pub").feed(v5.publish("a", b"1", 1, 1) + v5.publish("a", b"2", 2, 2))
    r.commit()
    sub.take()
    why = v5.block(b"\x1f" + rig.text("why") + v5.user("a", "b") + v5.user("c", "d"))
    sub.feed(rig.packet(0x40, b"\0\1\x10" + why) + rig.packet(0x50, b"\0\2\0" + why))
    r.commit()
    assert sub.take() == rig.pubrel(2)
    sub.feed(rig.packet(0x70, b"\0\2\0\0"))
    assert r.broker.sessions["sub"].queued == 0


def test_a_refused_message_is_not_sent_again() -> None:
    """[MQTT-4.4.0-2]."""
    r = Rig()
    sub = v5.subscriber(r, ("a", 2), properties=v5.expiry(60), clean=False)
    v5.client(r, "pub").feed(v5.publish("a", b"1", 1, 1) + v5.publish("a", b"2", 2, 2))
    r.commit()
    sub.take()
    sub.feed(v5.ack(0x40, 1, 0x99) + v5.ack(0x50, 2, 0x87))
    r.commit()
    assert sub.take() == b""
    sub.drop()
    r.restart()
    assert len(v5.take(r.open(v5.connect("sub", v5.expiry(60), clean=False)))) == 1


def test_text_is_compared_and_passed_on_byte_for_byte() -> None:
    """[MQTT-1.5.4-3] [MQTT-4.7.3-4] Nothing is normalized, and U+FEFF is a character like others."""
    r = Rig()
    composed, decomposed, marked = "\u00e9", "e\u0301", "\ufeff\u00e9"
    sub = v5.subscriber(r, (composed, 0))
    pub = v5.client(r, "pub")
    said = v5.user(marked, decomposed)
    pub.feed(b"".join(v5.publish(topic, topic.encode(), 0, 0, said) for topic in (decomposed, marked, composed)))
    r.commit()
    assert sub.take() == v5.publish(composed, composed.encode(), 0, 0, said)


def test_the_longest_property_lengths() -> None:
    """[MQTT-1.5.5-1] [MQTT-2.2.2-1]."""
    r = Rig()
    sub = v5.subscriber(r, ("a", 0))
    for size in (0, 1, 120, 121, 122, 123, 16_370, 16_379, 16_380, 65_000):
        block = v5.user("k", "x" * size) if size else b""
        v5.client(r, "pub").feed(v5.publish("a", b"p", 1, 1, block))
        r.commit()
        assert sub.take() == v5.publish("a", b"p", 0, 0, block)


def test_dup_is_not_passed_on() -> None:
    """[MQTT-3.3.1-3] [MQTT-4.3.1-1] [MQTT-4.3.2-2] [MQTT-4.3.3-2]."""
    r = Rig()
    subs = [v5.subscriber(r, ("a", qos), name=str(qos)) for qos in (0, 1, 2)]
    v5.client(r, "pub").feed(v5.publish("a", b"x", 2, 1, dup=True))
    r.commit()
    assert [v5.take(sub)[0].flags for sub in subs] == [0, 2, 4]


def test_what_is_not_retained_leaves_what_is() -> None:
    """[MQTT-3.3.1-8]."""
    r = Rig()
    v5.client(r, "pub").feed(
        v5.publish("a", b"kept", 1, 1, retain=True) + v5.publish("a", b"live", 1, 2) + v5.publish("a", b"", 1, 3)
    )
    r.commit()
    late = v5.client(r, "late")
    late.feed(v5.subscribe(("#", 1)))
    r.commit()
    assert [(each.body, each.flags) for each in v5.take(late)[1:]] == [(b"kept", 3)]


@pytest.mark.parametrize(
    "packet",
    [b"\xc0\x80\x00", b"\x30\x06\x00\x01a\x80\x00x", b"\x30\x87\x00\x00\x01a\x00abc"],
)
def test_an_integer_of_more_bytes_than_it_needs_is_malformed(packet: bytes) -> None:
    """[MQTT-1.5.5-1]."""
    r = Rig()
    wire = v5.client(r)
    wire.feed(packet)
    assert wire.shut_down
    assert r.stored == []


@pytest.mark.parametrize("packet", [b"\x36\x08\x00\x02no\x00\x01\x00x", b"\x38\x06\x00\x02no\x00x"])
def test_a_malformed_publish_is_that_where_it_is_not_allowed_either(packet: bytes) -> None:
    r = Rig(hooks=Hooks(authorize_publish=lambda _, topic: topic != "no"))
    wire = v5.client(r)
    wire.feed(packet)
    assert wire.shut_down

"""waybill.mqtt.broker and exchange: sessions, QoS, retained messages, wills, take-over, limits, hooks."""

from __future__ import annotations

import pytest

from tests.unit.mqtt import rig
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.reasons import Malformed
from waybill.mqtt.settings import Client, ConnectInfo, Hooks, Message, Settings
from waybill.mqtt.state import Queued, SessionDeleted, SessionOpened


def subscriber(r: Rig, *filters: tuple[str, int], name: str = "sub", clean: bool = True) -> Wire:
    wire = r.client(name, clean=clean)
    wire.feed(rig.subscribe(*filters))
    r.commit()
    assert wire.take() == rig.suback(*[qos for _, qos in filters])
    return wire


# -- connect ---------------------------------------------------------------------------------------------------------


def test_an_empty_client_id_needs_a_clean_session() -> None:
    r = Rig()
    wire = Wire(r)
    assert wire(rig.connect("", clean=False)) == b"\x20\x02\x00\x02"
    assert wire.shut_down
    r = Rig()
    wire = Wire(r)
    assert wire(rig.connect("")) == rig.ACCEPTED
    assert wire.client is not None
    assert wire.client.client_id == "made-1"


def test_a_refused_connect_touches_no_session() -> None:
    seen: list[ConnectInfo] = []

    def authorize(info: ConnectInfo) -> ConnackCode | None:
        seen.append(info)
        return None if info.password == b"good" else ConnackCode.BAD_CREDENTIALS

    r = Rig(hooks=Hooks(authorize_connect=authorize))
    first = r.open(rig.connect("dev", user="u", password=b"good"))
    assert first.take() == rig.ACCEPTED
    second = Wire(r)
    assert second(rig.connect("dev", user="u", password=b"bad")) == b"\x20\x02\x00\x04"
    assert second.shut_down
    assert not first.shut_down
    assert first(rig.PING) == rig.PONG
    assert (seen[0].client_id, seen[0].user, seen[0].version, seen[0].clean) == ("dev", "u", 4, True)


def test_the_identity_of_the_hook_goes_into_the_arrivals() -> None:
    r = Rig(hooks=Hooks(authorize_connect=lambda _: "gateway-7"))
    wire = r.open(rig.connect("dev", user="u"))
    wire.feed(rig.publish("a", b"x"))
    r.commit()
    assert r.sink.arrivals[0].user == "gateway-7"


def test_take_over_closes_the_old_connection() -> None:
    r = Rig()
    old = r.client("dev")
    new = r.client("dev")
    assert old.shut_down
    assert new(rig.PING) == rig.PONG
    assert r.broker.counters.taken_over == 1
    assert len(r.broker.sessions) == 1


def test_the_session_of_a_clean_client_ends_with_its_connection() -> None:
    r = Rig()
    sub = subscriber(r, ("a", 1))
    sub.drop()
    assert not r.broker.sessions
    r.client("pub")(rig.publish("a", b"x", 1, 1))
    r.commit()
    again = r.open(rig.connect("sub"))
    assert again.take() == rig.ACCEPTED


def test_clean_session_1_wipes_a_persistent_session() -> None:
    r = Rig()
    subscriber(r, ("a", 1), clean=False).drop()
    wire = r.open(rig.connect("sub", clean=True))
    assert wire.take() == rig.ACCEPTED
    assert r.sink.changes[-1] == SessionDeleted("sub")
    wire.drop()
    wire = r.open(rig.connect("sub", clean=False))
    assert wire.take() == rig.ACCEPTED  # no session present
    r.client("pub")(rig.publish("a", b"x", 1, 1))
    r.commit()
    assert wire.take() == b""


def test_persistent_sessions_are_bounded() -> None:
    r = Rig(Settings(max_sessions=1))
    r.client("a", clean=False).drop()
    assert r.open(rig.connect("b", clean=False)).take() == b"\x20\x02\x00\x03"
    assert r.open(rig.connect("a", clean=False)).take() == rig.PRESENT
    assert r.open(rig.connect("b", clean=True)).take() == rig.ACCEPTED


def test_acks_never_come_before_connack() -> None:
    r = Rig()
    wire = Wire(r)
    assert wire(rig.connect(clean=False), rig.PING, rig.publish("a", b"x", 1, 1)) == b""
    r.commit()
    assert wire.take() == rig.ACCEPTED + rig.PONG + rig.puback(1)


def test_nothing_reaches_a_subscriber_before_connack() -> None:
    r = Rig()
    subscriber(r, ("a", 1), clean=False).drop()
    r.client("pub")(rig.publish("a", b"x", 1, 1))
    r.commit()
    wire = Wire(r)
    assert wire(rig.connect("sub", clean=False, name=b"MQIsdp", level=3)) == b""  # another version: a change
    r.client("pub2")(rig.publish("a", b"y", 0))
    assert wire.take() == rig.ACCEPTED + rig.publish("a", b"x", 1, 1)


# -- B1 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "packet", "answer"),
    [
        ([], rig.publish("a", b"x", 1, 5), rig.puback(5)),
        ([], rig.publish("a", b"x", 2, 5), rig.pubrec(5)),
        ([rig.publish("a", b"x", 2, 5)], rig.pubrel(5), rig.pubcomp(5)),
        ([], rig.subscribe(("a", 1), pid=5), rig.suback(1, pid=5)),
        ([], rig.unsubscribe("a", pid=5), rig.unsuback(5)),
        ([rig.publish("a", b"x", 2, 5)], rig.publish("a", b"x", 2, 5, dup=True), rig.pubrec(5)),
    ],
    ids=["PUBACK", "PUBREC", "PUBCOMP", "SUBACK", "UNSUBACK", "PUBREC of a copy"],
)
@pytest.mark.parametrize("clean", [True, False])
def test_b1_no_ack_before_the_commit(before: list[bytes], packet: bytes, answer: bytes, clean: bool) -> None:  # noqa: FBT001
    r = Rig()
    wire = r.client(clean=clean)
    for each in before:
        wire(each)
        r.commit()
        wire.take()
    assert wire(packet) == b""
    pending = r.broker.cut()
    assert wire.take() == b""
    wire.feed(rig.PING)
    assert wire.take() == rig.PONG
    r.broker.committed(pending)
    assert wire.take() == answer


def test_b1_connack_of_a_new_persistent_session_waits() -> None:
    r = Rig()
    wire = Wire(r)
    assert wire(rig.connect(clean=False)) == b""
    r.commit()
    assert wire.take() == rig.ACCEPTED
    assert r.sink.changes == [SessionOpened("dev", 4)]
    wire.drop()
    assert Wire(r)(rig.connect(clean=False)) == rig.PRESENT  # nothing changes: no need to wait


def test_b1_copies_and_retained_messages_are_in_the_commit_of_the_publish() -> None:
    r = Rig()
    subscriber(r, ("a/#", 1), name="sleeper", clean=False).drop()
    r.commit()
    pub = r.client("pub")
    pub(rig.publish("a/b", b"x", 1, 1, retain=True))
    pending = r.broker.cut()
    assert [each.raw for each in pending.batch.arrivals] == [rig.publish("a/b", b"x", 1, 1, retain=True)]
    assert [type(each).__name__ for each in pending.batch.changes] == ["Retained", "Queued"]


def test_b1_pubrel_waits_until_pubrec_is_durable() -> None:
    r = Rig()
    sub = subscriber(r, ("a", 2), clean=False)
    r.client("pub")(rig.publish("a", b"x", 2, 1))
    r.commit()
    assert sub.take() == rig.publish("a", b"x", 2, 1)
    assert sub(rig.pubrec(1)) == b""
    r.commit()
    assert sub.take() == rig.pubrel(1)


def test_b1_a_reconnect_does_not_overtake_the_commit_of_pubrec() -> None:
    r = Rig()
    sub = subscriber(r, ("a", 2), clean=False)
    r.client("pub")(rig.publish("a", b"x", 2, 1))
    r.commit()
    sub(rig.pubrec(1))
    pending = r.broker.cut()
    sub.drop()
    sub = Wire(r)
    assert sub(rig.connect("sub", clean=False)) == b""
    r.broker.committed(pending)
    r.commit()
    assert sub.take() == rig.PRESENT + rig.pubrel(1)


def test_what_arrives_during_a_commit_is_one_batch() -> None:
    r = Rig()
    wires = [r.client(f"c{n}") for n in range(3)]
    wires[0](rig.publish("a", b"0", 1, 1))
    pending = r.broker.cut()
    for n, wire in enumerate(wires):
        wire(rig.publish("a", b"%d" % n, 1, 2))
    r.broker.committed(pending)
    assert [wire.take() for wire in wires] == [rig.puback(1), b"", b""]
    following = r.broker.cut()
    assert [each.client_id for each in following.batch.arrivals] == ["c0", "c1", "c2"]


# -- delivery --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("sent", [0, 1, 2])
@pytest.mark.parametrize("clean", [True, False])
def test_a_message_comes_with_the_lower_qos_after_the_commit(granted: int, sent: int, clean: bool) -> None:  # noqa: FBT001
    r = Rig()
    sub = subscriber(r, ("a/+", granted), clean=clean)
    r.client("pub")(rig.publish("a/b", b"x", sent, 9))
    assert sub.take() == b""
    r.commit()
    qos = min(granted, sent)
    assert sub.take() == rig.publish("a/b", b"x", qos, 1)


def test_a_client_hears_itself_and_overlapping_filters_count_once() -> None:
    r = Rig()
    wire = subscriber(r, ("a/#", 0), ("a/b", 1))
    wire(rig.publish("a/b", b"x", 1, 3))
    r.commit()
    assert wire.take() == rig.puback(3) + rig.publish("a/b", b"x", 1, 1)


def test_a_sleeping_session_gets_what_it_missed_in_order() -> None:
    r = Rig()
    subscriber(r, ("a", 1), clean=False).drop()
    pub = r.client("pub")
    for n in range(5):
        pub(rig.publish("a", b"%d" % n, 1, n + 1))
    pub(rig.publish("a", b"qos 0 is not queued", 0))
    r.commit()
    sub = r.open(rig.connect("sub", clean=False))
    assert sub.take() == rig.PRESENT + b"".join(rig.publish("a", b"%d" % n, 1, n + 1) for n in range(5))


def test_in_flight_messages_come_again_in_order_with_dup() -> None:
    r = Rig()
    sub = subscriber(r, ("a", 2), clean=False)
    pub = r.client("pub")
    pub(rig.publish("a", b"1", 1, 1), rig.publish("a", b"2", 2, 2), rig.publish("a", b"3", 2, 3))
    r.commit()
    sub(rig.pubrec(3))
    sub.drop()
    r.commit()
    sub = r.open(rig.connect("sub", clean=False))
    assert sub.take() == rig.PRESENT + rig.publish("a", b"1", 1, 1, dup=True) + rig.publish(
        "a", b"2", 2, 2, dup=True
    ) + rig.pubrel(3)
    sub(rig.puback(1), rig.pubcomp(3), rig.pubrec(2))
    r.commit()
    assert sub.take() == rig.pubrel(2)
    sub(rig.pubcomp(2))
    r.commit()
    assert r.broker.sessions["sub"].queued == r.broker.sessions["sub"].queued_bytes == 0


def test_the_window_bounds_what_is_in_flight() -> None:
    r = Rig(Settings(inflight=2))
    sub = subscriber(r, ("a", 1))
    pub = r.client("pub")
    pub(*[rig.publish("a", b"%d" % n, 1, n) for n in range(1, 6)])
    r.commit()
    assert sub.take() == rig.publish("a", b"1", 1, 1) + rig.publish("a", b"2", 1, 2)
    assert sub(rig.puback(1)) == rig.publish("a", b"3", 1, 3)
    assert sub(rig.puback(1)) == b""
    assert sub(rig.puback(3), rig.puback(2)) == rig.publish("a", b"4", 1, 4) + rig.publish("a", b"5", 1, 5)


def test_of_qos_2_no_more_is_in_flight_than_clients_of_3_1_1_are_known_to_take() -> None:
    r = Rig()
    sub = subscriber(r, ("a", 2))
    pub = r.client("pub")
    pub(*[rig.publish("a", b"m", 2, n) for n in range(1, 31)])
    r.commit()
    assert sub.take() == b"".join(rig.publish("a", b"m", 2, n) for n in range(1, 21))
    sub(rig.pubrec(1))
    r.commit()
    assert sub.take() == rig.pubrel(1)
    assert sub(rig.pubcomp(1)) == rig.publish("a", b"m", 2, 21)


@pytest.mark.parametrize("clean", [True, False])
def test_a_full_queue_drops_and_counts(clean: bool) -> None:  # noqa: FBT001
    r = Rig(Settings(inflight=1, queue_messages=3))
    sub = subscriber(r, ("a", 1), clean=clean)
    pub = r.client("pub")
    pub(*[rig.publish("a", b"%d" % n, 1, n) for n in range(1, 6)])
    r.commit()
    assert r.broker.counters.dropped == 2
    got = [sub.take(), *[sub(rig.puback(pid)) for pid in (1, 2, 3)]]
    assert got == [rig.publish("a", b"%d" % n, 1, n) for n in (1, 2, 3)] + [b""]
    assert len(r.stored) == 5


def test_a_queue_is_bounded_in_bytes_too() -> None:
    r = Rig(Settings(inflight=1, queue_bytes=3000))
    subscriber(r, ("a", 1))
    pub = r.client("pub")
    pub(*[rig.publish("a", b"x" * 1000, 1, n) for n in range(1, 6)])
    r.commit()
    assert r.broker.counters.dropped == 3
    assert r.broker.sessions["sub"].queued_bytes <= 3000


def test_qos_0_to_a_subscriber_that_does_not_read_is_dropped() -> None:
    r = Rig()
    slow, quick = subscriber(r, ("a", 0), name="slow"), subscriber(r, ("a", 0), name="quick")
    slow.output_full()
    r.client("pub")(rig.publish("a", b"x"))
    r.commit()
    assert slow.take() == b""
    assert quick.take() == rig.publish("a", b"x")
    assert r.broker.counters.dropped == 1


def test_qos_1_to_a_subscriber_that_does_not_read_waits() -> None:
    r = Rig()
    sub = subscriber(r, ("a", 1))
    sub.output_full()
    r.client("pub")(rig.publish("a", b"x", 1, 1))
    r.commit()
    assert sub.take() == b""
    sub.output_free()
    assert sub.take() == rig.publish("a", b"x", 1, 1)


def test_unsubscribe_ends_delivery() -> None:
    r = Rig()
    sub = subscriber(r, ("a", 0), ("b", 0))
    sub(rig.unsubscribe("a", "never"))
    r.commit()
    assert sub.take() == rig.unsuback()
    r.client("pub")(rig.publish("a", b"x"), rig.publish("b", b"y"))
    r.commit()
    assert sub.take() == rig.publish("b", b"y")


def test_subscriptions_are_bounded() -> None:
    r = Rig(Settings(max_subscriptions=2))
    sub = r.client("sub")
    sub(rig.subscribe(("a", 0), ("b", 0), ("c", 0), ("a", 1)))
    r.commit()
    assert sub.take() == rig.suback(0, 0, 0x80, 1)
    assert r.broker.counters.over_quota == 1


# -- QoS 2 from clients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [True, False])
def test_qos_2_is_stored_once_whatever_is_repeated(clean: bool) -> None:  # noqa: FBT001
    r = Rig()
    wire = r.client(clean=clean)
    wire(rig.publish("a", b"x", 2, 5), rig.publish("a", b"x", 2, 5, dup=True), rig.publish("a", b"other", 2, 5))
    r.commit()
    assert wire.take() == rig.pubrec(5) * 3
    assert r.stored == [b"x"]
    wire(rig.pubrel(5), rig.pubrel(5))
    r.commit()
    assert wire.take() == rig.pubcomp(5) * 2
    wire(rig.publish("a", b"y", 2, 5))
    r.commit()
    assert r.stored == [b"x", b"y"]


def test_qos_2_of_a_persistent_session_survives_a_restart() -> None:
    r = Rig()
    wire = r.client(clean=False)
    wire(rig.publish("a", b"x", 2, 5), rig.publish("a", b"y", 2, 6), rig.pubrel(6))
    r.commit()
    r.restart()
    wire = r.client(clean=False)
    wire(rig.publish("a", b"the id says it all", 2, 5, dup=True), rig.publish("a", b"z", 2, 6))
    r.commit()
    assert r.stored == [b"x", b"y", b"z"]


# -- retained --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [True, False])
def test_retained_messages_come_with_a_subscription(clean: bool) -> None:  # noqa: FBT001
    r = Rig()
    pub = r.client("pub")
    pub(rig.publish("a/b", b"old", 1, 1, retain=True), rig.publish("a/b", b"new", 1, 2, retain=True))
    pub(rig.publish("a/c", b"zero", 0, retain=True), rig.publish("$SYS/x", b"sys", 0, retain=True))
    r.commit()
    sub = r.client("sub", clean=clean)
    sub(rig.subscribe(("#", 1)))
    r.commit()
    output = sub.take()
    expected = [rig.suback(1), rig.publish("a/b", b"new", 1, 1, retain=True), rig.publish("a/c", b"zero", retain=True)]
    assert output.startswith(expected[0])
    assert len(output) == sum(map(len, expected))
    assert all(each in output for each in expected)


def test_a_live_retained_message_comes_without_the_flag_and_an_empty_one_clears() -> None:
    r = Rig()
    sub = subscriber(r, ("a", 0))
    pub = r.client("pub")
    pub(rig.publish("a", b"x", retain=True))
    r.commit()
    assert sub.take() == rig.publish("a", b"x")
    pub(rig.publish("a", b"", retain=True))
    r.commit()
    assert sub.take() == rig.publish("a", b"")
    late = r.client("late")
    late(rig.subscribe(("a", 0)))
    r.commit()
    assert late.take() == rig.suback(0)


def test_retained_messages_survive_a_restart() -> None:
    r = Rig()
    r.client("pub")(rig.publish("a", b"x", 1, 1, retain=True), rig.publish("b", b"y", retain=True))
    r.commit()
    r.client("pub")(rig.publish("b", b"", retain=True))
    r.commit()
    r.restart()
    sub = r.client("sub")
    sub(rig.subscribe(("a", 1), ("b", 1)))
    r.commit()
    assert sub.take() == rig.suback(1, 1) + rig.publish("a", b"x", 1, 1, retain=True)


def test_retained_messages_are_bounded() -> None:
    r = Rig(Settings(retained_messages=1))
    pub = r.client("pub")
    pub(*[rig.publish(topic, payload, retain=True) for topic, payload in (("a", b"1"), ("b", b"2"), ("a", b"3"))])
    r.commit()
    assert r.broker.counters.unretained == 1
    assert len(r.stored) == 3
    assert [(topic, each.payload) for topic, each in r.broker.retained.matching("#", 0)] == [(b"a", b"3")]


# -- wills -----------------------------------------------------------------------------------------------------------

WILL = ("w/dev", b"gone", 1, True)


def with_will(r: Rig) -> Wire:
    wire = r.open(rig.connect("dev", keepalive=10, will=WILL))
    assert wire.take() == rig.ACCEPTED
    return wire


def test_a_will_is_stored_delivered_and_retained() -> None:
    r = Rig()
    sub = subscriber(r, ("w/#", 1))
    with_will(r).drop()
    r.commit()
    assert sub.take() == rig.publish("w/dev", b"gone", 1, 1)
    (arrival,) = r.sink.arrivals
    assert arrival.client_id == "dev"
    assert arrival.raw == rig.publish("w/dev", b"gone", 1, 0, retain=True)
    assert arrival.publishes == [(b"w/dev", b"gone", 3, b"\0\0", 0, len(arrival.raw), b"")]
    assert r.broker.retained.get(b"w/dev") is not None


def test_a_disconnect_takes_the_will_off() -> None:
    r = Rig()
    with_will(r)(rig.DISCONNECT)
    r.commit()
    assert r.stored == []


@pytest.mark.parametrize("how", ["malformed", "keepalive", "take-over", "closed by the server"])
def test_every_other_end_fires_the_will(how: str) -> None:
    r = Rig()
    wire = with_will(r)
    if how == "malformed":
        wire.feed(b"\0\0")
    elif how == "keepalive":
        r.pass_time(16)
        wire.close(wire.overdue(r.broker.mono_ns))
    elif how == "take-over":
        r.client("dev")
    else:
        wire.close("disconnected by the server")
    wire.drop()
    r.commit()
    assert r.stored == [b"gone"]


# -- hooks -----------------------------------------------------------------------------------------------------------


def test_a_publish_that_is_not_allowed_closes_the_connection() -> None:
    asked: list[str] = []

    def allow(client: Client, topic: str) -> bool:
        asked.append(topic)
        return topic.startswith(f"wb/{client.client_id}/")

    r = Rig(hooks=Hooks(authorize_publish=allow))
    wire = r.client("g1")
    wire(rig.publish("wb/g1/up", b"1", 1, 1), rig.publish("wb/g1/up", b"2", 1, 2))
    assert asked == ["wb/g1/up"]
    wire(rig.publish("wb/g2/up", b"3", 1, 3))
    r.commit()
    assert wire.shut_down
    assert r.stored == [b"1", b"2"]
    assert r.broker.counters.denied == 1


def test_a_will_that_is_not_allowed_refuses_the_connection() -> None:
    r = Rig(hooks=Hooks(authorize_publish=lambda _, topic: topic != "w/dev"))
    wire = Wire(r)
    assert wire(rig.connect("dev", will=WILL)) == b"\x20\x02\x00\x05"
    r.commit()
    assert r.stored == []


def test_a_subscription_that_is_not_allowed_is_answered_with_failure() -> None:
    r = Rig(hooks=Hooks(authorize_subscribe=lambda _, pattern: pattern == "mine"))
    sub = r.client("sub")
    sub(rig.subscribe(("mine", 1), ("#", 1)))
    r.commit()
    assert sub.take() == rig.suback(1, 0x80)
    r.client("pub")(rig.publish("yours", b"x"))
    r.commit()
    assert sub.take() == b""


def test_hooks_hear_of_clients_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[str, ...]] = []

    def gone(client: Client, reason: str) -> None:
        heard.append(("gone", client.client_id, reason))
        raise RuntimeError("a bug of the program")

    r = Rig(
        hooks=Hooks(
            on_connected=lambda client: heard.append(("connected", client.client_id)),
            on_disconnected=gone,
            on_subscribed=lambda client, pattern, qos: heard.append(
                ("subscribed", client.client_id, pattern, str(qos))
            ),
        )
    )
    subscriber(r, ("a", 1))(rig.DISCONNECT)
    r.client("sub").drop()
    assert heard == [
        ("connected", "sub"),
        ("subscribed", "sub", "a", "1"),
        ("gone", "sub", ""),
        ("connected", "sub"),
        ("gone", "sub", "connection lost"),
    ]
    assert "a hook failed" in caplog.text


# -- the program itself ----------------------------------------------------------------------------------------------


def test_the_program_hears_messages_after_their_commit() -> None:
    heard: list[Message] = []
    r = Rig()
    end = r.broker.listen("cmd/+/+/res", heard.append)
    wire = r.client()
    wire(rig.publish("cmd/d/1/res", b"ok", 1, 1))
    assert heard == []
    r.commit()
    assert heard == [Message("dev", "cmd/d/1/res", b"ok", 1, False)]
    end()
    wire(rig.publish("cmd/d/2/res", b"ok", 1, 2))
    r.commit()
    assert len(heard) == 1


def test_the_program_publishes_qos_0_at_once_and_stores_nothing() -> None:
    r = Rig()
    sub = subscriber(r, ("wb/v1/g/ack", 1))
    results: list[Exception | None] = []
    count = r.broker.publish("wb/v1/g/ack", b"x", 0, retain=False, after=results.append)
    assert (count, results) == (1, [None])
    assert sub.take() == rig.publish("wb/v1/g/ack", b"x")
    assert not r.broker.pending.woken


def test_the_program_publishes_qos_1_through_a_commit() -> None:
    r = Rig()
    subscriber(r, ("cmd/#", 1), clean=False).drop()
    r.commit()
    results: list[Exception | None] = []
    r.broker.publish("cmd/d/1/req", b"x", 1, retain=False, after=results.append)
    assert results == []
    r.commit()
    assert results == [None]
    assert r.sink.arrivals == []
    assert r.sink.changes[-1] == Queued("sub", 1, 1, False, b"cmd/d/1/req", b"x")
    sub = r.open(rig.connect("sub", clean=False))
    assert sub.take() == rig.PRESENT + rig.publish("cmd/d/1/req", b"x", 1, 1)


def test_the_program_cannot_publish_to_a_wildcard() -> None:
    with pytest.raises(Malformed):
        Rig().broker.publish("a/#", b"", 0, retain=False, after=lambda _: None)


# -- restart ---------------------------------------------------------------------------------------------------------


def test_a_persistent_session_survives_a_restart() -> None:
    r = Rig(Settings(inflight=2))
    sub = subscriber(r, ("a", 2), ("gone", 1), clean=False)
    sub(rig.unsubscribe("gone"))
    pub = r.client("pub")
    pub(*[rig.publish("a", b"%d" % n, 2, n) for n in range(1, 5)])
    r.commit()
    sub.take()
    sub(rig.pubrec(2))
    r.commit()
    r.restart()
    pub = r.client("pub")
    pub(rig.publish("a", b"5", 1, 5), rig.publish("gone", b"x", 1, 6))
    r.commit()
    sub = r.open(rig.connect("sub", clean=False))
    assert sub.take() == rig.PRESENT + rig.pubrel(2) + rig.publish("a", b"1", 2, 1, dup=True)
    # what was within the window may have been sent before the restart, and says so; what was beyond was not
    assert sub(rig.pubcomp(2)) == rig.publish("a", b"3", 2, 3)

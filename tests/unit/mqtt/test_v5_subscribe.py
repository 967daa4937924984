"""MQTT 5: subscription options and identifiers, retain handling, shared subscriptions."""

from __future__ import annotations

import pytest

from tests.unit.mqtt import rig, tallies, v5
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt.settings import Client, Hooks, Settings

NO_LOCAL, AS_PUBLISHED, IF_NEW, NEVER = 4, 8, 0x10, 0x20


def heard(wire: Wire) -> list[bytes]:
    return [each.body for each in v5.take(wire) if each.kind == 0x30]


def test_suback_and_unsuback_have_a_reason_a_filter() -> None:
    """[MQTT-3.9.3-1] [MQTT-3.11.3-1]."""
    hooks = Hooks(authorize_subscribe=lambda _, pattern: pattern != "no")
    r = Rig(Settings(max_subscriptions=3), hooks)
    wire = v5.client(r)
    wire.feed(v5.subscribe(("a", 0), ("no", 1), ("b", 1), ("c", 2), ("d", 0), pid=9))
    r.commit()
    assert wire.take() == v5.suback(0, 0x87, 1, 2, 0x97, pid=9)
    wire.feed(v5.unsubscribe("c", "x", "a", "c", pid=10))
    r.commit()
    assert wire.take() == v5.unsuback(0, 0x11, 0, 0x11, pid=10)
    v5.client(r, "pub").feed(v5.publish("a", b"1") + v5.publish("b", b"2") + v5.publish("c", b"3"))
    r.commit()
    assert heard(wire) == [b"2"]


@pytest.mark.parametrize("clean", [True, False])
def test_no_local(clean: bool) -> None:  # noqa: FBT001
    """[MQTT-3.8.3-3]."""
    r = Rig()
    wire = v5.subscriber(
        r, ("a", 1 | NO_LOCAL), properties=b"" if clean else v5.expiry(60), said=v5.identifier(7), clean=clean
    )
    wire.feed(v5.publish("a", b"mine", 1, 1))
    v5.client(r, "pub").feed(v5.publish("a", b"theirs", 1, 1))
    r.commit()
    assert heard(wire) == [b"theirs"]
    wire.feed(v5.subscribe(("a/#", 0), properties=v5.identifier(8)))  # this one may hear itself
    r.commit()
    wire.take()
    wire.feed(v5.publish("a", b"mine", 1, 2))
    v5.client(r, "other").feed(v5.publish("a", b"theirs", 1, 1))
    r.commit()
    got = [(each.body, each.qos, sorted(each.values(0x0B))) for each in v5.take(wire) if each.kind == 0x30]
    assert sorted(got) == [
        (b"mine", 0, [b"\0\0\0\x08"]),
        (b"theirs", 1, [b"\0\0\0\x07", b"\0\0\0\x08"]),
    ]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("qos", [0, 1])
def test_retain_as_published(qos: int, clean: bool) -> None:  # noqa: FBT001
    """[MQTT-3.3.1-12] [MQTT-3.3.1-13]."""
    r = Rig()
    said = b"" if clean else v5.expiry(60)
    kept = v5.subscriber(r, ("a", 1 | AS_PUBLISHED), name="kept", properties=said, clean=clean)
    plain = v5.subscriber(r, ("a", 1), name="plain", properties=said, clean=clean)
    v5.client(r, "pub").feed(v5.publish("a", b"1", qos, 1, retain=True) + v5.publish("a", b"2", qos, 2))
    r.commit()
    assert [each.flags & 1 for each in v5.take(kept)] == [1, 0]
    assert [each.flags & 1 for each in v5.take(plain)] == [0, 0]


@pytest.mark.parametrize("clean", [True, False])
def test_retain_handling(clean: bool) -> None:  # noqa: FBT001
    """[MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11] [MQTT-3.8.4-4]."""
    r = Rig()
    v5.client(r, "pub").feed(v5.publish("a", b"kept", 1, 1, v5.CONTENT, retain=True))
    wire = v5.client(r, "sub", b"" if clean else v5.expiry(60), clean=clean)

    def after(options: int) -> int:
        wire.feed(v5.subscribe(("a", options), properties=v5.identifier(5)))
        r.commit()
        messages = [each for each in v5.take(wire) if each.kind == 0x30]
        for each in messages:
            assert (each.flags & 1, each.number(0x0B), each.values(3)) == (1, 5, [b"text/plain"])
            wire.feed(rig.puback(each.pid))
        return len(messages)

    assert after(1 | IF_NEW) == 1
    assert after(1 | IF_NEW) == 0
    assert after(1) == 1
    assert after(1 | NEVER) == 0
    wire.feed(v5.unsubscribe("a"))
    assert after(1 | NEVER) == 0


@pytest.mark.parametrize("clean", [True, False])
def test_overlapping_subscriptions_are_one_message_with_all_identifiers(clean: bool) -> None:  # noqa: FBT001
    """[MQTT-3.3.4-2] [MQTT-3.3.4-3] [MQTT-3.3.4-4]."""
    r = Rig()
    wire = v5.client(r, "sub", b"" if clean else v5.expiry(60), clean=clean)
    wire.feed(v5.subscribe(("a/#", 0), properties=v5.identifier(1)))
    wire.feed(v5.subscribe(("a/+", 2), properties=v5.identifier(268_435_455)))
    wire.feed(v5.subscribe(("a/b", 1)))
    r.commit()
    wire.take()
    v5.client(r, "pub").feed(v5.publish("a/b", b"x", 2, 1, v5.CONTENT))
    r.commit()
    (message,) = v5.take(wire)
    assert message.qos == 2
    assert sorted(message.values(0x0B)) == [(1).to_bytes(4, "big"), (268_435_455).to_bytes(4, "big")]


def test_a_new_subscription_replaces_the_old_one_whole() -> None:
    """[MQTT-3.8.4-3]."""
    r = Rig()
    wire = v5.subscriber(r, ("a", 1 | NO_LOCAL), said=v5.identifier(1), properties=v5.expiry(9), clean=False)
    wire.feed(v5.subscribe(("a", 0)))
    r.commit()
    wire.drop()
    r.restart()
    wire = v5.client(r, "sub", v5.expiry(9), clean=False)
    wire.feed(v5.publish("a", b"x", 1, 1))
    r.commit()
    (_, message) = v5.take(wire)
    assert (message.qos, message.properties) == (0, [])


# -- shared subscriptions --------------------------------------------------------------------------------------------


def member(r: Rig, name: str, options: int = 1, *, seconds: int = 0, pattern: str = "$share/g/a/#") -> Wire:
    said = v5.expiry(seconds) if seconds else b""
    return v5.subscriber(r, (pattern, options), name=name, properties=said, clean=not seconds)


@pytest.mark.parametrize("seconds", [0, 60])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_shared_subscription_gives_each_message_to_one(qos: int, seconds: int) -> None:
    r = Rig()
    one, two, three = (member(r, name, 2, seconds=seconds) for name in ("1", "2", "3"))
    alone = member(r, "4", 2, seconds=seconds, pattern="$share/h/a/#")
    plain = v5.subscriber(r, ("a/#", 2), name="5")
    pub = v5.client(r, "pub")
    sent = [b"%d" % n for n in range(9)]
    pub.feed(b"".join(v5.publish("a/b", payload, qos, n + 1) for n, payload in enumerate(sent)))
    r.commit()
    got = [heard(each) for each in (one, two, three)]
    assert [len(each) for each in got] == [3, 3, 3]
    assert sorted(got[0] + got[1] + got[2]) == sent
    assert heard(alone) == heard(plain) == sent


def test_a_shared_subscription_respects_what_each_was_granted() -> None:
    """[MQTT-4.8.2-3]."""
    r = Rig()
    members = [member(r, str(qos), qos) for qos in (0, 1, 2)]
    v5.client(r, "pub").feed(b"".join(v5.publish("a", b"x", 2, n) for n in range(1, 7)))
    r.commit()
    assert [[each.qos for each in v5.take(wire)] for wire in members] == [[0, 0], [1, 1], [2, 2]]


def test_shared_subscriptions_get_no_retained_messages() -> None:
    r = Rig()
    v5.client(r, "pub").feed(v5.publish("a", b"kept", 1, 1, retain=True))
    r.commit()
    assert heard(member(r, "1")) == []


def test_those_who_are_away_are_chosen_only_when_nobody_is_there() -> None:
    r = Rig()
    one, two = member(r, "1", seconds=60), member(r, "2", seconds=60)
    one.drop()
    pub = v5.client(r, "pub")
    pub.feed(b"".join(v5.publish("a", b"%d" % n, 1, n) for n in (1, 2)))
    r.commit()
    assert heard(two) == [b"1", b"2"]
    two.output_full()  # and who does not read, only when no other does
    three = member(r, "3")
    pub.feed(b"".join(v5.publish("a", b"%d" % n, 1, n) for n in (3, 4)))
    r.commit()
    assert heard(three) == [b"3", b"4"]
    three.feed(rig.puback(1) + rig.puback(2))
    two.drop()
    three.drop()
    pub.feed(v5.publish("a", b"5", 1, 5))
    pub.feed(v5.publish("a", b"6"))
    r.commit()
    r.restart()
    one, two = (r.open(v5.connect(name, v5.expiry(60), clean=False)) for name in ("1", "2"))
    assert sorted(heard(one) + heard(two)) == [b"1", b"2", b"5"]


@pytest.mark.parametrize("seconds", [0, 5])
def test_when_a_session_ends_others_get_what_it_had_not_acknowledged(seconds: int) -> None:
    """[MQTT-4.8.2-5] QoS 2 that was sent is not given to another."""
    r = Rig()
    one = member(r, "1", 2, seconds=seconds)
    pub = v5.client(r, "pub")
    pub.feed(v5.publish("a", b"first", 1, 1, v5.CONTENT) + v5.publish("a", b"second", 2, 2))
    r.commit()
    assert heard(one) == [b"first", b"second"]
    two = member(r, "2", 2)
    one.drop()
    if seconds:
        r.commit()
        assert heard(two) == []
        r.pass_time(6)
        r.broker.sweep()
    r.commit()
    (message,) = v5.take(two)
    assert (message.body, message.flags, message.values(3)) == (b"first", 2, [b"text/plain"])


def test_qos_2_is_completed_by_the_session_that_began_it() -> None:
    """[MQTT-4.8.2-4]."""
    r = Rig()
    one = member(r, "1", 2, seconds=60)
    v5.client(r, "pub").feed(v5.publish("a", b"x", 2, 1))
    r.commit()
    one.drop()
    two = member(r, "2", 2)
    one = r.open(v5.connect("1", v5.expiry(60), clean=False))
    assert heard(one) == [b"x"]
    assert heard(two) == []


def test_who_refuses_a_shared_message_ends_it() -> None:
    """[MQTT-4.8.2-6]."""
    r = Rig()
    one, two = member(r, "1"), member(r, "2")
    v5.client(r, "pub").feed(v5.publish("a", b"x", 1, 1))
    r.commit()
    assert heard(one) == [b"x"]
    one.feed(v5.ack(0x40, 1, 0x80))
    one.drop()
    r.commit()
    assert heard(two) == []


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("seconds", [0, 60])
def test_a_message_for_a_member_that_ends_during_the_commit_goes_to_another(seconds: int, cut: bool) -> None:  # noqa: FBT001
    """What was acknowledged to its publisher is not lost with the member that was chosen."""
    r = Rig()
    one, two = member(r, "1", 1, seconds=seconds), member(r, "2", 1, seconds=seconds)
    pub = v5.client(r, "pub")
    pub.feed(v5.publish("a", b"x", 1, 1) + v5.publish("a", b"y", 1, 2))
    pending = r.broker.cut() if cut else None
    one.feed(v5.disconnect(0, v5.expiry(0)) if seconds else v5.disconnect(0))
    if pending is not None:
        r.broker.committed(pending)
    r.commit()
    r.commit()
    assert sorted(heard(two)) == [b"x", b"y"]
    tallies.check(r.broker)


def test_shared_subscriptions_end() -> None:
    r = Rig()
    one, two = member(r, "1"), member(r, "2")
    one.feed(v5.unsubscribe("$share/g/a/#"))
    r.commit()
    assert one.take() == v5.unsuback(0)
    pub = v5.client(r, "pub")
    pub.feed(v5.publish("a", b"1") + v5.publish("a", b"2"))
    r.commit()
    assert heard(one) == []
    assert heard(two) == [b"1", b"2"]
    two.drop()
    assert not r.broker._groups
    assert not r.broker._tree._root.children


def test_shared_subscriptions_come_back_after_a_restart() -> None:
    r = Rig()
    for name in ("1", "2"):
        member(r, name, seconds=60).drop()
    r.commit()
    r.restart()
    one, two = (v5.client(r, name, v5.expiry(60), clean=False) for name in ("1", "2"))
    v5.client(r, "pub").feed(v5.publish("a", b"1", 1, 1) + v5.publish("a", b"2", 1, 2))
    r.commit()
    assert sorted(heard(one) + heard(two)) == [b"1", b"2"]


def test_version_3_shares_too() -> None:
    r = Rig()
    wires = [r.client(name) for name in ("1", "2")]
    for wire in wires:
        wire.feed(rig.subscribe(("$share/g/a", 0)))
        r.commit()
        assert wire.take() == rig.suback(0)
    v5.client(r, "pub").feed(v5.publish("a", b"1") + v5.publish("a", b"2"))
    r.commit()
    assert [wire.take() for wire in wires] == [rig.publish("a", b"1"), rig.publish("a", b"2")]


def test_the_filter_behind_the_share_is_what_must_be_allowed() -> None:
    asked: list[str] = []

    def allow(_: Client, pattern: str) -> bool:
        asked.append(pattern)
        return False

    r = Rig(hooks=Hooks(authorize_subscribe=allow))
    wire = v5.client(r)
    wire.feed(v5.subscribe(("$share/g/secret/#", 0)))
    r.commit()
    assert wire.take() == v5.suback(0x87)
    assert asked == ["secret/#"]


def test_what_was_sent_is_completed_after_unsubscribe() -> None:
    """[MQTT-3.10.4-3]."""
    r = Rig()
    sub = v5.subscriber(r, ("a", 2), properties=v5.expiry(60), clean=False)
    v5.client(r, "pub").feed(v5.publish("a", b"1", 2, 1))
    r.commit()
    assert heard(sub) == [b"1"]
    sub.feed(v5.unsubscribe("a"))
    sub.feed(rig.pubrec(1))
    r.commit()
    assert sub.take() == v5.unsuback(0) + rig.pubrel(1)
    sub.drop()
    sub = r.open(v5.connect("sub", v5.expiry(60), clean=False))
    sub.take()
    sub.feed(rig.pubcomp(1))
    assert r.broker.sessions["sub"].queued == 0

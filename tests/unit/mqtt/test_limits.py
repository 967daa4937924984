"""Every limit at its edge: what still goes, what does not, what is counted, what is given back."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from tests.unit.mqtt import rig, tallies, v5
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt import budget, properties
from waybill.mqtt.broker import MOST_FILTERS
from waybill.mqtt.budget import Budget
from waybill.mqtt.limits import Limits
from waybill.mqtt.reasons import Malformed
from waybill.mqtt.resend import Commit
from waybill.mqtt.settings import Client, Hooks, Settings

KIB = 1024


def v5_client(r: Rig, name: str = "dev", properties: bytes = b"", **more: object) -> Wire:
    wire = r.open(v5.connect(name, properties, **more))  # type: ignore[arg-type]
    assert wire.take()[3] == 0
    return wire


def ended(wire: Wire, reason: int) -> bool:
    """Whether a client of MQTT 5 was told ``reason`` in a DISCONNECT."""
    said = wire.take()
    return wire.shut_down and said[0] == 0xE0 and said[2] == reason


def test_a_budget_leaves_something_for_the_next() -> None:
    shared = Budget(120)
    holders = [0, 0, 0]
    for holder in range(3):
        while shared.fits(1, holders[holder]):
            holders[holder] += 1
            shared.used += 1
    assert holders == [60, 30, 15]
    assert shared.fits(15)
    assert not shared.fits(16)


# -- topics, filters, properties ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("packet", "reason"), [("publish", 0x90), ("subscribe", 0x8F), ("will", 0x90)])
def test_topics_are_bounded(packet: str, reason: int) -> None:
    for topic, goes in (("t" * 20, True), ("t" * 21, False), ("ä" * 10, True), ("ä" * 10 + "t", False)):
        r = Rig(Settings(max_topic=20))
        if packet == "will":
            wire = r.open(v5.connect("dev", will=(topic, b"", 0, False, b"")))
            assert wire.take()[3] == (0 if goes else reason)
        else:
            wire = v5_client(r)
            wire.feed(v5.publish(topic, b"") if packet == "publish" else v5.subscribe((topic, 0)))
            assert wire.shut_down != goes
            assert goes or ended(wire, reason)


def test_a_topic_that_is_too_long_or_deep_is_told_the_limit() -> None:
    for topic, text in (("t" * 21, "a topic of 21 bytes, at most 20"), ("a/a/a/a/a", "more than 4 levels")):
        r = Rig(Settings(max_topic=20, max_levels=4))
        wire = v5_client(r)
        with pytest.raises(Malformed, match=text):
            r.broker.resolve(topic.encode())
        wire.feed(v5.publish(topic, b""))
        assert ended(wire, 0x90)


def test_user_properties_are_bounded() -> None:
    for count in (properties.MOST_USER, properties.MOST_USER + 1):
        wire = v5_client(Rig())
        wire.feed(v5.publish("a", b"", properties=v5.user("k", "v") * count))
        assert wire.shut_down == (count > properties.MOST_USER)
        assert not wire.shut_down or ended(wire, 0x95)


def test_properties_are_bounded() -> None:
    for size in (properties.MOST_BYTES, properties.MOST_BYTES + 1):
        wire = v5_client(Rig())
        block = v5.user("k", "x" * 30_000)
        block += v5.user("k", "x" * (size - len(block) - 6))
        assert len(block) == size
        wire.feed(v5.publish("a", b"", properties=block))
        assert wire.shut_down == (size > properties.MOST_BYTES)
        assert not wire.shut_down or ended(wire, 0x95)


def test_filters_in_a_subscribe_are_bounded() -> None:
    for count in (MOST_FILTERS, MOST_FILTERS + 1):
        r = Rig(Settings(max_subscriptions=5000))
        wire = v5_client(r)
        wire.feed(v5.subscribe(*[(f"t{n}", 0) for n in range(count)]))
        r.commit()
        assert ended(wire, 0x97) == (count > MOST_FILTERS)


def test_what_a_subscribe_makes_the_server_look_at_is_bounded_and_its_client_waits_for_it() -> None:
    r = Rig(Settings(max_subscriptions=5000))
    pub = r.client("pub")
    pub(*[rig.publish(f"r/{n}", b"kept", retain=True) for n in range(2000)])
    r.commit()
    wire = v5_client(r)
    wire.feed(v5.subscribe(*[(f"+/x{n}/#", 0) for n in range(150)]))
    r.commit()
    assert wire.take()[-150:] == b"\0" * 100 + b"\x97" * 50  # 100 times 2,000 retained messages
    assert not wire.reading
    r.pass_time(6)
    r.broker.relieve()
    assert wire.reading


# -- what waits for sessions -------------------------------------------------------------------------------------------


def sleeping(r: Rig, name: str, topic: str) -> None:
    wire = r.client(name, clean=False)
    wire.feed(rig.subscribe((topic, 1)))
    r.commit()
    wire.drop()
    r.commit()


def test_the_queues_of_all_have_a_total_and_leave_room_for_the_next(caplog: pytest.LogCaptureFixture) -> None:
    cost = 9 + 1 + 1000 + budget.QUEUED
    r = Rig(Settings(queue_bytes_all=40 * cost))
    for topic in "abc":
        sleeping(r, topic, topic)
    device = r.client()
    for n, (topic, most) in enumerate((("a", 20), ("b", 10), ("c", 5)), 1):
        for pid in range(1, 31):
            device.feed(rig.publish(topic, b"x" * 1000, 1, pid))
        r.commit()
        assert r.broker.sessions[topic].queued == most
        assert r.broker.counters.dropped == 30 * n - (20, 30, 35)[n - 1]
    assert r.broker.queues.used == 35 * cost
    tallies.check(r.broker)
    assert "the queue of 'a' is full with 20 messages" in caplog.text
    assert caplog.text.count("the queue of 'a'") == 1
    wire = r.open(rig.connect("a", clean=False))
    wire.feed(b"".join(rig.puback(n) for n in range(1, 21)))
    r.commit()
    assert r.broker.queues.used == 15 * cost
    for name in "bc":
        Wire(r).feed(rig.connect(name, clean=True))
    r.commit()
    assert r.broker.queues.used == 0


def test_queues_are_counted_after_a_restart_and_a_failed_commit() -> None:
    r = Rig()
    sleeping(r, "a", "a")
    device = r.client()
    device.feed(rig.publish("a", b"x", 1, 1))
    r.commit()
    device.feed(rig.publish("a", b"y", 1, 2))
    r.commit_one(OSError("disk"))
    assert r.broker.queues.used == 9 + 2 + budget.QUEUED
    r.restart()
    assert r.broker.queues.used == 9 + 2 + budget.QUEUED
    tallies.check(r.broker)


def test_retained_messages_for_one_subscribe_are_bounded() -> None:
    r = Rig(Settings(queue_messages=3))
    device = r.client()
    device.feed(b"".join(rig.publish(f"t{n}", b"x", retain=True) for n in range(5)))
    r.commit()
    wire = r.client("sub")
    wire.feed(rig.subscribe(("#", 0)))
    r.commit()
    assert wire.take().count(b"x") == 3
    assert r.broker.counters.dropped == 2


# -- subscriptions, wills, QoS 2 ---------------------------------------------------------------------------------------


def test_subscriptions_have_a_total() -> None:
    cost = budget.subscription("t/1")
    r = Rig(Settings(subscription_bytes=8 * cost))
    wires = {name: v5_client(r, name) for name in "abc"}
    for name, granted in (("a", 4), ("b", 2), ("c", 1)):
        wires[name].feed(v5.subscribe(*[(f"t/{n}", 0) for n in range(6)]))
        r.commit()
        assert wires[name].take()[5:] == bytes(granted) + b"\x97" * (6 - granted)
    assert r.broker.counters.over_quota == 11
    assert r.broker.filters.used == 7 * cost
    wires["a"].feed(v5.unsubscribe("t/0", "t/1"))
    wires["a"].feed(v5.subscribe(("t/2", 1)))  # replaces
    r.commit()
    assert r.broker.filters.used == 5 * cost
    for wire in wires.values():
        wire.drop()
    r.commit()
    assert r.broker.filters.used == 0


def test_wills_have_a_total() -> None:
    cost = budget.will(b"w", b"x" * 1000, b"")
    r = Rig(Settings(will_bytes=2 * cost))
    will = ("w", b"x" * 1000, 0, False)
    first, second = r.open(rig.connect("1", will=will)), r.open(rig.connect("2", will=will))
    assert r.open(rig.connect("3", will=will)).take() == b"\x20\x02\x00\x03"
    assert r.open(v5.connect("4", will=(*will, b""))).take() == b"\x20\x03\x00\x97\x00"
    assert r.open(rig.connect("5")).take() == rig.ACCEPTED
    assert r.broker.counters.over_quota == 2
    assert r.broker.wills.used == 2 * cost
    first.feed(rig.DISCONNECT)
    assert r.broker.wills.used == cost
    second.drop()
    r.commit()
    assert r.stored == [b"x" * 1000]
    assert r.broker.wills.used == 0


@pytest.mark.parametrize("how", ["time", "return", "end", "clean", "shutdown"])
def test_a_delayed_will_counts_until_it_is_settled(how: str) -> None:
    r = Rig()
    wire = v5_client(r, "dev", v5.expiry(50), will=("w", b"x", 0, False, v5.delay(10)))
    wire.drop()
    assert r.broker.wills.used
    tallies.check(r.broker)
    if how in ("time", "end"):
        r.pass_time(11 if how == "time" else 60)
        r.broker.sweep()
    elif how == "shutdown":
        r.broker.last_wills()
    else:
        v5_client(r, "dev", v5.expiry(50), clean=how == "clean")
    r.commit()
    assert r.broker.wills.used == 0
    tallies.check(r.broker)


@pytest.mark.parametrize("limit", ["max_held", "max_held_all"])
def test_qos_2_ids_are_bounded(limit: str) -> None:
    r = Rig(Settings(max_held=3) if limit == "max_held" else Settings(max_held_all=6))
    wire = v5_client(r)
    wire.feed(b"".join(v5.publish("a", b"%d" % n, 2, n) for n in range(1, 5)))
    r.commit()
    assert wire.take() == b"".join(map(rig.pubrec, (1, 2, 3))) + v5.ack(0x50, 4, 0x97)
    assert r.stored == [b"1", b"2", b"3"]
    assert r.broker.counters.over_quota == 1
    wire.feed(rig.pubrel(1) + v5.publish("a", b"4", 2, 4))
    r.commit()
    assert wire.take().endswith(rig.pubrec(4))
    old = r.client("old")
    for n in range(1, 4):
        old.feed(rig.publish("a", b"old", 2, n))
    assert old.shut_down == (limit == "max_held_all")  # 2 are left, and nobody may have more than that
    old.feed(rig.publish("a", b"old", 2, 4))
    assert old.shut_down
    r.commit()
    assert r.broker.held.used == 3
    wire.drop()
    assert r.broker.held.used == 0


def test_held_ids_are_given_back_when_the_commit_fails() -> None:
    r = Rig()
    wire = r.client(clean=False)
    wire.feed(rig.publish("a", b"x", 2, 1) + rig.publish("a", b"y", 2, 2) + rig.pubrel(2))
    r.commit_one(OSError("disk"))
    assert r.broker.held.used == 0
    tallies.check(r.broker)


# -- memory of connections ---------------------------------------------------------------------------------------------


def test_unfinished_packets_have_a_total() -> None:
    r = Rig(Settings(buffer_bytes_all=100 * KIB))
    first, second, third = (v5_client(r, name) for name in "abc")
    part = rig.packet(0x30, rig.text("t") + b"\0" + b"x" * 200_000)
    first.feed(part[: 50 * KIB])
    assert not first.shut_down
    second.feed(part[: 25 * KIB])
    second.feed(part[:KIB])
    assert ended(second, 0x97)
    assert r.broker.counters.crowded == 1
    third.feed(v5.publish("t", b"x" * 4000)[:4000])  # little things are not counted
    assert third.weight == 0
    tallies.check(r.broker, [first, second, third])
    first.drop()
    assert r.broker.buffers.used == 0


def test_first_packets_are_in_that_total() -> None:
    r = Rig(Settings(buffer_bytes_all=10 * KIB))
    wire = Wire(r)
    wire.feed(rig.packet(0x10, b"x" * 100_000)[: 5 * KIB])
    assert not wire.shut_down
    wire.feed(b"x" * KIB)
    assert wire.shut_down


def test_beyond_what_all_may_have_uncommitted_nobody_is_read() -> None:
    r = Rig(Settings(uncommitted_bytes_all=10_000))
    busy, idle = r.client("busy"), r.client("idle")
    busy.feed(rig.publish("a", b"x" * 11_000))
    assert not busy.reading
    assert not idle.reading
    late = Wire(r)
    late.feed(rig.connect("late"))
    assert late.take() == rig.ACCEPTED
    assert not late.reading
    r.commit()
    assert busy.reading
    assert idle.reading
    assert late.reading


def test_small_messages_count_with_what_they_cost() -> None:
    r = Rig(Settings(uncommitted_bytes=10 * budget.PUBLISH))
    wire = r.client()
    wire.feed(rig.publish("a", b"") * 9)
    assert wire.reading
    wire.feed(rig.publish("a", b""))
    assert not wire.reading


def test_packets_after_the_limit_wait_too() -> None:
    """A flood of SUBSCRIBE is looked at as the commits come, not all at once."""
    r = Rig(Settings(uncommitted_bytes=1000))
    wire = r.client()
    wire.feed(b"".join(rig.subscribe((f"t{n}", 0), pid=n) for n in range(1, 101)) + rig.PING)
    assert len(r.broker.sessions["dev"].subscriptions) < 10
    while r.broker.pending.woken:
        r.commit_one()
    said = wire.take()
    assert said.count(b"\x90\x03") == 100
    assert said.count(rig.PONG) == 1
    assert wire.reading


def test_routes_are_bounded() -> None:
    cost = budget.ROUTE + 2
    r = Rig(Settings(route_bytes=10 * cost))
    wire = r.client()
    for n in range(10, 20):
        wire.feed(rig.publish(str(n)))
    assert len(r.broker.routes) == 10
    wire.feed(rig.publish("20"))
    assert list(r.broker.routes) == [b"20"]
    tallies.check(r.broker)


def test_topics_that_were_asked_for_are_bounded() -> None:
    asked: list[str] = []

    def allow(_: Client, topic: str) -> bool:
        asked.append(topic)
        return True

    wire = Rig(hooks=Hooks(authorize_publish=allow)).client()
    most = budget.ASKED_BYTES // (budget.ASKED + 3)
    names = [f"{n:03}" for n in range(most)]
    for name in (*names, names[0], "last", names[0]):
        wire.feed(rig.publish(name))
    assert asked == [*names, "last", names[0]]


def test_the_resend_memory_has_a_total() -> None:
    r = Rig(Settings(memory_entries_all=100))
    first, second = r.client("1"), r.client("2")
    for n in range(1, 201):
        for wire in (first, second):
            wire.feed(rig.publish("a", b"%d" % n, 1, n))
        r.commit()
    memories = [r.broker.sessions[name].connection.memory for name in "12"]  # type: ignore[union-attr]
    assert all(budget.SHARE <= len(each) <= 50 for each in memories if each is not None)
    tallies.check(r.broker)
    second.feed(rig.publish("a", b"200", 1, 200, dup=True))
    assert r.broker.counters.duplicates == 1  # the newest are remembered
    for wire in (first, second):
        wire.drop()
    tallies.check(r.broker)


def test_a_memory_that_is_forgotten_is_given_back() -> None:
    r = Rig(Settings(memory_clients=1))
    for name in "abc":
        wire = r.client(name)
        wire.feed(rig.publish("a", b"x", 1, 1))
        r.commit()
        wire.drop()
    assert r.broker.memories.shared.messages == 1
    tallies.check(r.broker)


# -- rate --------------------------------------------------------------------------------------------------------------


def test_a_client_publishes_at_its_rate_and_loses_nothing() -> None:
    r = Rig()
    wire = Wire(r, Limits(publish_rate=10))
    wire.feed(rig.connect())
    wire.feed(rig.publish("a", b"x") * 10)
    r.commit()
    assert wire.reading  # what it may publish in a second, at once
    wire.feed(rig.publish("a", b"x") * 6)
    r.commit()
    assert not wire.reading
    assert r.broker.counters.throttled == 1
    r.pass_time(0.59)
    r.broker.relieve()
    assert not wire.reading
    assert not wire.overdue(r.broker.mono_ns)
    r.pass_time(0.02)
    r.broker.relieve()
    assert wire.reading
    assert len(r.stored) == 16
    r.pass_time(100)
    wire.feed(rig.publish("a", b"x") * 11)
    assert not wire.reading  # a long rest saves up no more than a second


def test_the_listeners_keep_alive_is_told() -> None:
    r = Rig()
    wire = Wire(r, Limits(max_keepalive=30))
    wire.feed(v5.connect())
    assert b"\x13\x00\x1e" in wire.take()


# -- subscriptions of a session that goes on ---------------------------------------------------------------------------


def test_what_a_client_may_no_longer_have_is_taken_from_its_session(caplog: pytest.LogCaptureFixture) -> None:
    denied: set[str] = set()

    def allow(_: Client, pattern: str) -> bool:
        return pattern not in denied

    r = Rig(hooks=Hooks(authorize_subscribe=allow))
    wire = r.client("sub", clean=False)
    wire.feed(rig.subscribe(("secret/#", 1), ("open/#", 1), ("+/both", 1)))
    r.commit()
    wire.take()
    device = r.client()
    device.feed(rig.publish("secret/1", b"flight", 1, 1))
    r.commit()
    wire.drop()
    device.feed(rig.publish("secret/2", b"w", 1, 2) + rig.publish("open/1", b"o", 1, 3))
    device.feed(rig.publish("secret/both", b"b", 1, 4))
    r.commit()
    device.feed(rig.publish("secret/3", b"uncommitted", 1, 5))
    denied.add("secret/#")
    wire = Wire(r)
    wire.feed(rig.connect("sub", clean=False))
    assert wire.take() == b""  # not before that is durable
    r.commit()
    said = wire.take()
    assert said.startswith(rig.PRESENT)
    assert b"flight" not in said
    assert b"secret/2" not in said
    assert b"uncommitted" not in said
    assert b"open/1" in said
    assert b"secret/both" in said
    assert r.broker.counters.removed == 1 + 3
    assert "may no longer subscribe to ['secret/#']" in caplog.text
    tallies.check(r.broker)
    device.feed(rig.publish("secret/4", b"n", 1, 6))
    r.commit()
    assert wire.take() == b""
    wire.feed(rig.puback(3) + rig.puback(4))
    r.commit()
    wire.drop()
    r.restart()
    assert set(r.broker.sessions["sub"].subscriptions) == {"open/#", "+/both"}
    assert r.broker.sessions["sub"].queued == 0


def test_what_waited_for_a_subscription_that_is_gone_is_asked_for_by_its_topic() -> None:
    """Another user under the same client id must not get what was queued for the first one."""
    user = "alice"

    def allow(_: Client, pattern: str) -> bool:
        return pattern.startswith(f"v/{user}/")

    r = Rig(hooks=Hooks(authorize_subscribe=allow))
    wire = r.client("X", clean=False)
    wire.feed(rig.subscribe(("v/alice/#", 1)))
    r.commit()
    r.client()(rig.publish("v/alice/1", b"flight", 1, 1))
    r.commit()
    wire.feed(rig.unsubscribe("v/alice/#"))
    r.commit()
    wire.drop()
    r.commit()
    user = "bob"
    wire = r.client("X", clean=False)
    r.commit()
    assert b"flight" not in wire.take()
    assert r.broker.sessions["X"].queued == 0
    tallies.check(r.broker)
    r.restart()
    assert r.broker.sessions["X"].queued == 0


@pytest.mark.parametrize("topic", ["a", "no"])
def test_a_rate_counts_copies_and_what_is_denied(topic: str) -> None:
    r = Rig(hooks=Hooks(authorize_publish=lambda _, name: name != "no"))
    wire = Wire(r, Limits(publish_rate=10))
    wire.feed(v5.connect("dev"))
    wire.feed(v5.publish("a", b"x", 1, 7))
    r.commit()
    assert wire.reading
    wire.feed(v5.publish(topic, b"x", 1, 7, dup=topic == "a") * 15)
    assert not wire.reading
    assert len(r.stored) == 1


def test_a_share_name_counts_for_the_length_of_a_filter() -> None:
    for size in (91, 92):
        r = Rig(Settings(max_topic=100))
        wire = v5_client(r)
        wire.feed(v5.subscribe((f"$share/{'g' * size}/t", 0)))
        assert wire.shut_down == (size == 92)


def test_notices_are_one_a_second_of_a_kind(caplog: pytest.LogCaptureFixture) -> None:
    r = Rig()
    for _ in range(5):
        r.broker.notices.warn(r.broker.mono_ns, "a %d", 1)
        r.broker.notices.warn(r.broker.mono_ns, "b")
        r.pass_time(0.3)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["a 1", "b", "a 1 (and 3 more lately)", "b (and 3 more lately)"]


# -- costs -------------------------------------------------------------------------------------------------------------

COUNT = 400


def _queue(r: Rig, n: int) -> int:
    r.broker.publish(f"q/{n:04}", b"x" * 100, 1, retain=False, after=lambda _: None)
    return budget.QUEUED + 9 + 6 + 100


def _subscribe(r: Rig, n: int) -> int:
    pattern = "/".join([f"{n:04}"] + ["l"] * 20)
    r.broker._subscribe(r.broker.sessions["dev"], pattern, (1, 0))
    return budget.subscription(pattern)


def _route(r: Rig, n: int) -> int:
    r.broker.resolve(b"r/%04d" % n)
    return budget.ROUTE + 6


def _route_to(r: Rig, n: int) -> int:
    r.broker.resolve(b"q/%04d" % n)
    return budget.ROUTE + budget.TARGET + 6


def _hold(r: Rig, n: int) -> int:
    r.broker.hold(r.broker.sessions["dev"], n.to_bytes(2, "big"))
    r.commit()
    return budget.HELD


def _remember(r: Rig, n: int) -> int:
    memory = r.broker.memories.enter("away")
    memory.add([(b"a", b"%d" % n, 2, n.to_bytes(2, "big"), 0, 9, b"")], 1, 9, Commit())
    memory.freeze()
    r.broker.memories.leave("away", memory)
    return budget.ENTRY


def _retain(r: Rig, n: int) -> int:
    r.broker._retain(b"t/%04d" % n, b"x" * 100, 1, properties.EMPTY, 0)
    r.broker.pending.undo.clear()
    r.broker.pending.batch.changes.clear()
    return budget.RETAINED + 2 * (6 + 100)


def _arrive(r: Rig, n: int) -> int:
    connection = r.broker.sessions["dev"].connection
    assert connection is not None
    packet = rig.publish("a/b", b"%04d" % n, 1, n + 1)
    connection.feed(packet)  # type: ignore[attr-defined] # a Wire
    connection.memory.clear()  # type: ignore[union-attr]
    return 2 * len(packet) + budget.PUBLISH + 2 * 600  # a read of its own: arrival, chunk, ticket


@pytest.mark.parametrize("act", [_queue, _subscribe, _route, _route_to, _hold, _remember, _retain, _arrive])
def test_nothing_costs_more_than_is_counted(act: Callable[[Rig, int], int]) -> None:
    r = Rig()
    r.sink.commit = _forget  # type: ignore[assignment] # what the store keeps is not meant
    sleeping(r, "asleep", "q/#")
    r.client("dev", clean=False)
    act(r, 9_000)  # what is made once
    r.commit()
    tracemalloc.start()
    try:
        counted = sum(act(r, n) for n in range(COUNT))
        if act is not _arrive:
            r.commit()
        gc.collect()
        there, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert there <= counted
    assert there > counted / 20  # and the measurement sees something


async def _forget(_: object) -> None:
    """A store that keeps nothing."""

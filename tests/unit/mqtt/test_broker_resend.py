"""The broker with the resend memory (O1-O3) and with commits that fail (O2)."""

from __future__ import annotations

import pytest

from tests.unit.mqtt import rig
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt.settings import Hooks, Settings
from waybill.mqtt.state import ResendFrozen

FAULT = OSError("disk")


def first(n: int, qos: int = 1) -> bytes:
    return rig.publish("a", b"m%d" % n, qos, n)


def again(n: int, qos: int = 1) -> bytes:
    return rig.publish("a", b"m%d" % n, qos, n, dup=True)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("restart", [True, False])
def test_o1_a_resend_after_a_lost_puback_is_stored_once(clean: bool, restart: bool) -> None:  # noqa: FBT001
    r = Rig()
    wire = r.client(clean=clean)
    wire.tcp = 4  # CONNACK
    wire(first(1), first(2))
    r.commit()
    assert wire.take() == rig.puback(1) + rig.puback(2)
    if restart:
        r.restart()
    else:
        wire.drop()
    wire = r.client(clean=clean)
    wire(again(1), again(2), first(3))
    r.commit()
    assert wire.take() == rig.puback(1) + rig.puback(2) + rig.puback(3)
    assert r.stored == [b"m1", b"m2", b"m3"]
    assert r.broker.counters.duplicates == 2


@pytest.mark.parametrize("restart", [True, False])
def test_o1_a_resend_after_a_proven_puback_is_stored(restart: bool) -> None:  # noqa: FBT001
    r = Rig()
    wire = r.client()
    wire(first(1))
    r.commit()
    wire.all_acknowledged()
    wire.drop()
    r.commit()
    if restart:
        r.restart()
    wire = r.client()
    wire(again(1))
    r.commit()
    assert r.stored == [b"m1", b"m1"]


def test_o1_unknown_counts_as_not_acknowledged() -> None:
    r = Rig()
    wire = r.client()
    wire.tcp = None
    wire(first(1))
    r.commit()
    wire.drop()
    wire = r.client()
    wire(again(1))
    r.commit()
    assert r.stored == [b"m1"]


def test_o1_a_disconnect_is_proof() -> None:
    r = Rig()
    wire = r.client()
    wire.tcp = None
    wire(first(1))
    r.commit()
    wire(rig.DISCONNECT)
    r.commit()
    r.restart()
    r.client()(again(1))
    r.commit()
    assert r.stored == [b"m1", b"m1"]


def test_o1_copies_are_cut_out_of_the_run() -> None:
    r = Rig()
    wire = r.client()
    wire(first(1), first(2))
    r.commit()
    wire.drop()
    wire = r.client()
    wire(first(3), again(1), first(4), first(5), again(2))
    r.commit()
    assert wire.take() == b"".join(map(rig.puback, (3, 1, 4, 5, 2)))
    assert [each.raw for each in r.sink.arrivals] == [first(1) + first(2), first(3), first(4) + first(5)]


def test_o1_a_copy_within_one_read() -> None:
    r = Rig()
    wire = r.client()
    wire(first(1), again(1))
    r.commit()
    assert wire.take() == rig.puback(1) * 2
    assert r.stored == [b"m1"]


def test_o1_survives_take_over() -> None:
    r = Rig()
    old = r.client()
    old(first(1))
    r.commit()
    new = r.client()
    new(again(1))
    r.commit()
    assert r.stored == [b"m1"]


def test_o3_qos_2_without_session_state_goes_by_o1() -> None:
    r = Rig()
    wire = r.client()
    wire(first(1, 2))
    r.commit()
    wire.drop()
    wire = r.client()
    wire(again(1, 2))
    r.commit()
    assert wire.take() == rig.pubrec(1)
    assert r.stored == [b"m1"]
    wire(rig.pubrel(1))
    r.commit()
    assert wire.take() == rig.pubcomp(1)


def test_o3_qos_2_is_not_over_before_pubcomp_arrived() -> None:
    """A client without a session publishes QoS 2 again although its PUBREC has come (paho with clean sessions)."""
    r = Rig()
    wire = r.client()
    wire(first(1, 2))
    r.commit()
    wire.all_acknowledged()
    wire(rig.pubrel(1), first(2, 2))
    r.commit()
    wire.drop()
    wire = r.client()
    wire(again(1, 2), again(2, 2))
    r.commit()
    assert r.stored == [b"m1", b"m2"]
    wire(rig.pubrel(1))
    r.commit()
    wire.all_acknowledged()
    wire.drop()
    wire = r.client()
    wire(again(1, 2), again(2, 2))
    r.commit()
    assert r.stored == [b"m1", b"m2", b"m1"]


def test_qos_2_chunks_leave_the_memory_with_their_last_pubcomp() -> None:
    r = Rig()
    wire = r.client()
    wire(first(1, 2), first(2, 2), first(3))
    r.commit()
    wire.all_acknowledged()
    wire(rig.pubrel(1))
    r.commit()
    wire.all_acknowledged()
    wire(first(4))
    wire(rig.pubrel(2))
    r.commit()
    wire.all_acknowledged()
    wire(first(5))
    r.commit()
    assert [each.keep for each in r.sink.arrivals] == [0, 3, 0]


def test_keep_counts_what_was_not_proven() -> None:
    r = Rig()
    wire = r.client()
    wire.tcp = 4
    for n in range(1, 4):
        wire(first(n), rig.publish("a", b"qos 0"))
        r.commit()
    wire.tcp = 8
    wire(first(4))
    wire.all_acknowledged()
    wire(first(5))
    r.commit()
    assert [each.keep for each in r.sink.arrivals] == [0, 1, 2, 2, 1]


def test_o3_the_store_rebuilds_exactly_what_was_remembered() -> None:
    r = Rig()
    wire = r.client()
    wire.tcp = 4
    for n in range(1, 5):
        wire(first(n))
        r.commit()
    wire.tcp = 12
    wire(first(5))
    r.commit()
    r.restart()
    wire = r.client()
    wire.tcp = 4
    wire(*[again(n) for n in range(1, 6)])
    r.commit()
    assert r.stored == [b"m1", b"m2", b"m3", b"m4", b"m5", b"m1", b"m2"]


def test_o3_what_a_restart_brought_back_outlives_the_next_arrivals_and_restart() -> None:
    r = Rig()
    r.client()(first(1))
    r.commit()
    r.restart()
    wire = r.client()
    wire(first(2))
    r.commit()
    wire.all_acknowledged()
    wire(first(3))
    r.commit()
    r.restart()
    r.client()(again(1), again(2), again(3))
    r.commit()
    assert r.stored == [b"m1", b"m2", b"m3", b"m2"]


def test_o3_an_acknowledged_copy_is_forgotten() -> None:
    r = Rig()
    r.client()(first(1))
    r.commit()
    wire = r.client()
    wire(again(1))
    r.commit()
    wire.all_acknowledged()
    wire.drop()
    r.commit()
    assert r.sink.changes[-1] == ResendFrozen("dev", (), 0)
    r.restart()
    r.client()(again(1))
    r.commit()
    assert r.stored == [b"m1", b"m1"]


def test_a_frozen_memory_stands_before_later_arrivals_of_the_same_batch() -> None:
    r = Rig()
    wire = r.client()
    wire.tcp = 4
    wire(first(1))
    wire.drop()
    wire = r.client()
    wire.tcp = 4
    wire(first(2))
    r.commit()
    (frozen,) = [each for each in r.sink.changes if isinstance(each, ResendFrozen)]
    assert (frozen.at, len(frozen.entries)) == (1, 1)
    r.restart()
    r.client()(again(1), again(2))
    r.commit()
    assert r.stored == [b"m1", b"m2"]


def test_clients_forgotten_for_others_are_forgotten_in_the_store_too() -> None:
    r = Rig(Settings(memory_clients=1))
    for name in ("one", "two"):
        wire = r.client(name)
        wire(first(1))
        r.commit()
        wire.drop()
    r.commit()
    r.restart()
    for name in ("one", "two"):
        r.client(name)(again(1))
    r.commit()
    assert [client for client, _, _ in r.sink.messages] == ["one", "two", "one"]


# -- O2: commits that fail -------------------------------------------------------------------------------------------


def test_o2_the_copy_of_what_is_being_committed_waits_with_it() -> None:
    r = Rig()
    wire = r.client()
    wire(first(1))
    pending = r.broker.cut()
    wire.drop()
    wire = r.client()
    assert wire(again(1)) == b""
    r.broker.committed(pending)
    r.commit()
    assert wire.take() == rig.puback(1)
    assert [each.raw for each in pending.batch.arrivals] == [first(1)]
    assert r.stored == []  # the second batch held no arrival


def test_o2_a_copy_is_not_acked_when_that_commit_fails() -> None:
    r = Rig()
    wire = r.client()
    wire(first(1))
    pending = r.broker.cut()
    wire.drop()
    wire = r.client()
    wire(again(1))
    r.broker.failed(pending, FAULT)
    r.commit()
    assert wire.take() == b""
    assert wire.shut_down
    wire = r.client()
    wire(again(1))
    r.commit()
    assert wire.take() == rig.puback(1)
    assert r.stored == [b"m1"]


def test_o2_a_memory_written_down_in_a_failed_commit_is_not_written_again() -> None:
    r = Rig()
    wire, other = r.client(), r.client("other")
    wire(first(1))
    wire.drop()
    r.commit_one(FAULT)
    other(first(2))
    r.commit()
    r.restart()
    r.client()(again(1))
    r.commit()
    assert r.stored == [b"m2", b"m1"]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("qos", [1, 2])
def test_o2_a_failed_commit_acks_nothing_and_its_messages_are_new_again(clean: bool, qos: int) -> None:  # noqa: FBT001
    errors: list[Exception] = []
    r = Rig(hooks=Hooks(on_commit_failed=errors.append))
    other = r.client("other")
    wire = r.client(clean=clean)
    wire(first(1, qos))
    r.commit(FAULT)
    assert wire.take() == b""
    assert wire.shut_down
    assert not other.shut_down
    assert errors == [FAULT]
    assert r.broker.uncommitted == 0
    wire = r.client(clean=clean)
    wire(again(1, qos))
    r.commit()
    assert r.stored == [b"m1"]
    r.restart()
    wire = r.client(clean=clean)
    wire(again(1, qos))
    r.commit()
    assert r.stored == [b"m1"]


def test_o2_what_else_the_connection_sent_meanwhile_is_stored_and_remembered() -> None:
    r = Rig()
    wire = r.client()
    wire(first(1))
    pending = r.broker.cut()
    wire(first(2))
    r.broker.failed(pending, FAULT)
    assert wire.shut_down
    r.commit()
    assert r.stored == [b"m2"]
    r.restart()
    wire = r.client()
    wire(again(1), again(2))
    r.commit()
    assert r.stored == [b"m2", b"m1"]


def test_a_failed_commit_takes_back_copies_and_retained_messages() -> None:
    r = Rig()
    sub = r.client("sub", clean=False)
    sub(rig.subscribe(("a", 1)))
    r.commit()
    sub.take()
    r.client("pub")(rig.publish("a", b"kept", 1, 1, retain=True))
    r.commit()
    r.client("pub")(rig.publish("a", b"lost", 1, 1, retain=True))
    r.commit(FAULT)
    assert sub.take() == rig.publish("a", b"kept", 1, 1)
    kept = r.broker.retained.get(b"a")
    assert kept is not None
    assert kept.payload == b"kept"
    assert r.broker.sessions["sub"].queued == 1
    r.client("pub")(rig.publish("a", b"next", 1, 1))
    r.commit()
    assert sub.take() == rig.publish("a", b"next", 1, 3)


def test_facts_of_a_failed_batch_go_into_the_next() -> None:
    r = Rig()
    sub = r.client("sub", clean=False)
    sub(rig.subscribe(("a", 1)))
    pub = r.client("pub")
    r.commit()
    pub(rig.publish("a", b"x", 1, 1))
    r.commit()
    sub.take()
    sub(rig.puback(1))
    sub(rig.unsubscribe("a"))
    r.commit(FAULT)
    assert sub.shut_down
    r.restart()
    session = r.broker.sessions["sub"]
    assert session.queued == 0
    assert session.subscriptions == {}


def test_a_new_session_whose_commit_failed_is_opened_by_the_next() -> None:
    r = Rig()
    wire = Wire(r)
    wire(rig.connect(clean=False))
    r.commit(FAULT)
    assert wire.take() == b""
    assert wire.shut_down
    r.restart()
    assert r.open(rig.connect(clean=False)).take() == rig.PRESENT

"""MQTT 5: how long sessions live, wills that wait, and what of it a restart keeps."""

from __future__ import annotations

import pytest

from tests.unit.mqtt import rig, v5
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt.state import SessionDeleted, SessionLeft, SessionOpened

NEVER = 0xFFFFFFFF


def present(r: Rig, seconds: int = 0, *, clean: bool = False) -> bool:
    """Connect again: whether there is a session."""
    wire = r.open(v5.connect("dev", v5.expiry(seconds), clean=clean))
    return v5.take(wire)[0].present


def test_a_session_without_expiry_ends_with_its_connection() -> None:
    r = Rig()
    v5.subscriber(r, ("a", 1), name="dev", clean=False).drop()
    r.commit()
    assert not r.broker.sessions
    assert not r.sink.changes
    assert not present(r)


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize(("waited", "there"), [(59, True), (61, False)])
def test_a_session_lives_as_long_as_it_said(waited: int, there: bool, restart: bool) -> None:  # noqa: FBT001
    """[MQTT-3.1.2-23] [MQTT-4.1.0-2]."""
    r = Rig()
    wire = v5.subscriber(r, ("a", 1), name="dev", properties=v5.expiry(60), clean=False)
    r.pass_time(1_000)  # counts from the end of the connection
    r.broker.sweep()
    wire.drop()
    r.commit()
    assert r.sink.changes[-1] == SessionLeft("dev", 60, r.broker.wall_ms + 60_000)
    r.pass_time(waited)
    if restart:
        r.restart()
    r.broker.sweep()
    r.commit()
    assert (SessionDeleted("dev") in r.sink.changes) is not there
    assert present(r, 60) is there


def test_a_session_that_never_expires() -> None:
    r = Rig()
    v5.client(r, "dev", v5.expiry(NEVER)).drop()
    r.commit()
    assert r.sink.changes == [SessionOpened("dev", 5)]
    r.pass_time(10**9)
    r.broker.sweep()
    r.restart()
    r.broker.sweep()
    assert present(r, NEVER)


def test_a_disconnect_that_makes_a_session_last_for_ever_outlives_a_restart() -> None:
    r = Rig()
    v5.client(r, "dev", v5.expiry(10), clean=False).feed(v5.disconnect(0, v5.expiry(NEVER)))
    r.commit()
    r.restart()
    r.pass_time(100)
    r.broker.sweep()
    assert present(r, NEVER)


def test_restarts_do_not_put_off_the_end_of_a_session() -> None:
    """What had a connection when the server was killed counts from the first start after it, not from the last."""
    r = Rig()
    v5.client(r, "dev", v5.expiry(10), clean=False)
    for _ in range(3):
        r.restart()
        r.commit()
        r.pass_time(4)
    r.broker.sweep()
    r.commit()
    assert SessionDeleted("dev") in r.sink.changes
    assert not present(r, 10)


def test_after_a_crash_the_time_of_those_who_were_connected_begins_anew() -> None:
    r = Rig()
    v5.client(r, "dev", v5.expiry(60))
    r.pass_time(1_000)
    r.restart()
    r.pass_time(59)
    r.broker.sweep()
    assert "dev" in r.broker.sessions
    r.pass_time(2)
    r.broker.sweep()
    assert "dev" not in r.broker.sessions


def test_who_came_back_in_time_is_not_held_to_the_old_deadline() -> None:
    r = Rig()
    v5.client(r, "dev", v5.expiry(60)).drop()
    r.commit()
    r.pass_time(50)
    wire = Wire(r)
    assert wire(v5.connect("dev", v5.expiry(60), clean=False)) == b""  # not before the store knows
    r.commit()
    assert v5.take(wire)[0].present
    r.pass_time(50)
    r.broker.sweep()
    assert not wire.shut_down
    r.restart()
    r.broker.sweep()
    assert "dev" in r.broker.sessions


def test_a_clock_that_was_set_back_does_not_keep_sessions_for_longer_than_they_said() -> None:
    r = Rig()
    v5.client(r, "dev", v5.expiry(60)).drop()
    r.commit()
    r.broker.wall_ms -= 10**9
    r.restart()
    r.pass_time(61)
    r.broker.sweep()
    assert not r.broker.sessions


@pytest.mark.parametrize(("said", "waited", "there"), [(0, 0, False), (10, 11, False), (100, 90, True)])
def test_disconnect_may_change_the_expiry(said: int, waited: int, there: bool) -> None:  # noqa: FBT001
    r = Rig()
    wire = v5.client(r, "dev", v5.expiry(60))
    wire.feed(v5.disconnect(0, v5.expiry(said)))
    r.commit()
    r.pass_time(waited)
    r.restart()
    r.broker.sweep()
    r.commit()
    assert present(r, 60) is there


def test_what_is_over_is_over_before_anybody_sweeps() -> None:
    r = Rig()
    mourner(r, seconds=60, wait=10).drop()
    r.pass_time(11)
    v5.client(r, "dev", v5.expiry(60), clean=False).drop()
    assert r.stored == [b"gone"]
    r.pass_time(61)
    assert not present(r, 60)


def test_clean_start_wipes_and_then_keeps() -> None:
    """[MQTT-3.1.2-4] [MQTT-3.2.2-2]."""
    r = Rig()
    v5.subscriber(r, ("a", 1), name="dev", properties=v5.expiry(60), clean=False).drop()
    wire = v5.client(r, "dev", v5.expiry(60), clean=True)
    wire.drop()
    v5.client(r, "pub").feed(v5.publish("a", b"x", 1, 1))
    r.commit()
    again = r.open(v5.connect("dev", v5.expiry(60), clean=False))
    (answer,) = v5.take(again)  # the session is there, its old subscription is not
    assert answer.present


def test_a_session_resumed_without_expiry_ends_then_even_by_a_crash() -> None:
    r = Rig()
    v5.client(r, "dev", v5.expiry(60)).drop()
    wire = r.open(v5.connect("dev", clean=False))
    assert v5.take(wire)[0].present
    r.restart()
    r.broker.sweep()
    r.commit()
    assert not r.broker.sessions
    assert r.sink.changes[-1] == SessionDeleted("dev")


def test_a_session_goes_on_under_another_version() -> None:
    r = Rig()
    sub = r.client("dev", clean=False)
    sub.feed(rig.subscribe(("a", 1)))
    r.commit()
    sub.drop()
    v5.client(r, "pub").feed(v5.publish("a", b"x", 1, 1, v5.CONTENT))
    r.commit()
    sub = r.open(v5.connect("dev", v5.expiry(9), clean=False))
    answer, message = v5.take(sub)
    assert (answer.present, message.values(3)) == (True, [b"text/plain"])
    sub.drop()
    sub = r.open(rig.connect("dev", clean=False))
    assert sub.take() == rig.PRESENT + rig.publish("a", b"x", 1, 1, dup=True)
    sub.drop()
    r.pass_time(100)
    r.broker.sweep()
    assert "dev" in r.broker.sessions  # version 3 knows no expiry


# -- wills -----------------------------------------------------------------------------------------------------------


def mourner(r: Rig, seconds: int = 60, wait: int = 10) -> Wire:
    said = v5.expires(9) + v5.CONTENT + v5.user("a", "1") + (v5.delay(wait) if wait else b"")
    wire = r.open(v5.connect("dev", v5.expiry(seconds), will=("w", b"gone", 1, False, said)))
    wire.take()
    return wire


def test_a_will_has_its_properties() -> None:
    """[MQTT-3.1.3-10]."""
    r = Rig()
    sub = v5.subscriber(r, ("w", 1))
    mourner(r, wait=0).drop()
    r.commit()
    kept = v5.expires(9) + v5.CONTENT + v5.user("a", "1")
    assert r.sink.arrivals[0].raw == v5.publish("w", b"gone", 1, 0, kept)
    (message,) = v5.take(sub)
    assert (message.number(2), message.values(3), message.values(0x26)) == (9, [b"text/plain"], [b"a=1"])


def test_a_will_waits_as_it_said() -> None:
    """[MQTT-3.1.2-8]."""
    r = Rig()
    mourner(r).drop()
    r.commit()
    r.pass_time(9.9)
    r.broker.sweep()
    r.commit()
    assert r.stored == []
    r.pass_time(0.2)
    r.broker.sweep()
    r.broker.sweep()
    r.commit()
    assert r.stored == [b"gone"]
    assert r.sink.arrivals[0].raw == v5.publish("w", b"gone", 1, 0, v5.expires(9) + v5.CONTENT + v5.user("a", "1"))


def test_who_comes_back_in_time_has_not_died() -> None:
    """[MQTT-3.1.3-9]."""
    r = Rig()
    mourner(r).drop()
    r.pass_time(5)
    v5.client(r, "dev", v5.expiry(60), clean=False)
    r.pass_time(20)
    r.broker.sweep()
    r.commit()
    assert r.stored == []


@pytest.mark.parametrize("how", ["clean start", "expired", "no expiry", "take-over"])
def test_a_will_does_not_wait_longer_than_the_session(how: str) -> None:
    """[MQTT-3.1.2-8]."""
    r = Rig()
    wire = mourner(r, seconds={"no expiry": 0, "expired": 5}.get(how, 60))
    if how != "take-over":
        wire.drop()
    if how in ("clean start", "take-over"):
        v5.client(r, "dev", clean=True)
    if how == "expired":
        r.pass_time(6)
        r.broker.sweep()
    r.commit()
    assert r.stored == [b"gone"]


def test_a_will_that_waits_comes_when_the_server_ends() -> None:
    r = Rig()
    mourner(r).drop()
    r.broker.last_wills()
    r.commit()
    assert r.stored == [b"gone"]

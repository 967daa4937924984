"""Which body the next frame gets, from what the forwarder waited for."""

from __future__ import annotations

import pytest

from edge_agent.forward.bodies import Bodies, Body


def frames(bodies: Bodies, count: int, *, waited: float, worked: float = 0.02) -> list[bool]:
    """Send ``count`` frames of 1,000 messages, each after a wait; return which were in columns."""
    chosen = []
    for _ in range(count):
        bodies.waited(waited)
        chosen.append(bodies.columns)
        bodies.encoded(1000, worked if bodies.columns else None)
    return chosen


def fast() -> Bodies:
    """Return one that has found its link to be fast."""
    bodies = Bodies("auto")
    frames(bodies, 40, waited=0.0)
    return bodies


def test_a_new_link_is_taken_for_a_slow_one_until_nobody_waited_for_a_while() -> None:
    chosen = frames(Bodies("auto"), 100, waited=0.0)
    assert all(chosen[:5])
    assert not any(chosen[30:])


def test_a_link_that_waits_for_longer_than_the_work_takes_gets_columns_at_once_and_keeps_them() -> None:
    assert frames(fast(), 100, waited=0.3) == [False] + [True] * 99
    assert all(frames(Bodies("auto"), 100, waited=0.1))


def test_who_waits_for_messages_gets_columns_while_they_are_a_small_part_of_its_time() -> None:
    for seconds, columns in ((0.01, False), (0.3, True)):
        bodies = fast()
        for _ in range(40):
            bodies.idled(seconds)
            bodies.encoded(1000, 0.02 if bodies.columns else None)
        assert bodies.columns == columns


def test_waits_in_one_of_four_frames_are_enough() -> None:
    bodies = Bodies("auto")
    frames(bodies, 4, waited=0.3)
    for _ in range(20):
        assert all(frames(bodies, 3, waited=0.0))
        assert all(frames(bodies, 1, waited=0.04))


def test_columns_end_when_they_are_what_limits() -> None:
    bodies = Bodies("auto")
    frames(bodies, 4, waited=0.3)
    assert not frames(bodies, 40, waited=0.0)[-1]


def test_a_slow_machine_needs_longer_waits() -> None:
    bodies = Bodies("auto")
    frames(bodies, 20, waited=1.0, worked=0.5)
    frames(bodies, 60, waited=0.0, worked=0.5)
    assert not any(frames(bodies, 20, waited=0.1, worked=0.5))
    assert frames(bodies, 20, waited=0.9, worked=0.5)[-1]


def test_a_link_that_hung_is_forgotten_soon() -> None:
    bodies = Bodies("auto")
    frames(bodies, 1, waited=3600.0)
    assert not frames(bodies, 60, waited=0.0)[-1]


def test_what_the_event_loop_takes_is_no_wait() -> None:
    bodies = fast()
    for _ in range(100):
        bodies.waited(0.004)
        bodies.encoded(10)
        assert not bodies.columns


@pytest.mark.parametrize(("wanted", "chosen"), [("plain", False), ("columns", True)])
def test_what_is_configured_holds_whatever_the_link_does(wanted: Body, chosen: bool) -> None:  # noqa: FBT001 - an example
    bodies = Bodies(wanted)
    assert set(frames(bodies, 20, waited=0.0) + frames(bodies, 20, waited=1.0)) == {chosen}


@pytest.mark.parametrize("wanted", ["auto", "columns"])
def test_u4_after_a_refusal_there_are_none_until_the_next_connection(wanted: Body) -> None:
    bodies = Bodies(wanted)
    frames(bodies, 2, waited=1.0)
    assert bodies.columns
    bodies.refused()
    assert not any(frames(bodies, 20, waited=1.0))
    bodies.connected()
    assert frames(bodies, 20, waited=1.0)[-1]


def test_a_metered_link_gets_columns_always_but_where_they_are_refused_or_not_wanted() -> None:
    bodies = fast()
    assert not bodies.columns
    assert not bodies.fewest
    bodies.connected(metered=True)
    assert all(frames(bodies, 100, waited=0.0))
    assert bodies.fewest
    bodies.refused()
    assert not bodies.columns
    bodies.connected()
    assert not all(frames(bodies, 100, waited=0.0))
    plain = Bodies("plain")
    plain.connected(metered=True)
    assert not plain.columns

"""The window: what goes next, what again, and when (U2, U3, U4)."""

from __future__ import annotations

import itertools

import pytest

from edge_agent.buffer.port import Position
from edge_agent.forward.window import FIRST_TIMEOUT, MAX_TIMEOUT, RETRY_PAUSE, Flight, Settled, Window
from waybill.wire import Ack, RefusedSpan, Span

EPOCH = 77


def frame(first: int, count: int = 10, *, lane: str = "telemetry", size: int = 100, epoch: int = EPOCH) -> Flight:
    return Flight(lane, epoch, Position(1 if epoch == EPOCH else 2, first), count, 0, 0, count * 8, b"x" * size)


def window(limit: int = 10_000, credit: int | None = 10_000) -> Window:
    made = Window(["control", "telemetry"], limit)
    made.credit = credit
    return made


def ack(w: Window, first: int, last: int, now: float = 0.0, lane: str = "telemetry") -> Settled:
    return w.on_ack(Ack(journaled=(Span(EPOCH, lane, first, last),)), now)


def send(w: Window, now: float = 0.0) -> Flight:
    """Hand out what is next, and let its last byte leave the socket's queue."""
    flight = w.next(now)
    assert flight is not None
    w.left(flight, now)
    return flight


def test_u3_one_frame_before_the_first_credit() -> None:
    w = window(credit=None)
    w.add(frame(1))
    assert w.next(0.0) is not None
    assert not w.room("telemetry")
    w.add(frame(11))
    assert w.next(0.0) is None
    w.on_ack(Ack(credit=1000), 0.0)
    assert w.next(0.0) is not None


def test_u3_credit_is_absolute_and_the_last_one_wins() -> None:
    w = window(credit=None)
    for first in (1, 11, 21, 31):
        w.add(frame(first))
    w.on_ack(Ack(credit=300), 0.0)
    w.on_ack(Ack(credit=200), 0.0)
    assert [w.next(0.0) is not None for _ in range(3)] == [True, True, False]
    assert w.in_flight == 200
    w.on_ack(Ack(credit=300), 0.0)
    assert w.next(0.0) is not None
    assert w.next(0.0) is None


@pytest.mark.parametrize("credit", [0, 1, 50])
def test_u3_never_below_one_frame(credit: int) -> None:
    w = window(credit=credit)
    w.add(frame(1))
    w.add(frame(11))
    assert send(w).first == 1
    assert w.next(0.0) is None
    ack(w, 1, 10)
    assert send(w).first == 11


def test_u3_credit_begins_anew_with_each_link() -> None:
    w = window()
    w.reset()
    w.add(frame(1))
    w.add(frame(11))
    assert w.next(0.0) is not None
    assert w.next(0.0) is None


def test_bytes_kept_for_resends_are_bounded_but_each_lane_may_hold_one_frame() -> None:
    w = window(limit=250)
    for first in (1, 11, 21):
        assert w.room("telemetry")
        w.add(frame(first))
        send(w)
    assert w.held == 300
    assert not w.room("telemetry")
    assert w.room("control")


def test_nothing_is_encoded_ahead_of_what_may_go() -> None:
    w = window(credit=100)
    w.add(frame(1))
    assert not w.room("telemetry")
    send(w)
    assert not w.room("telemetry")
    assert not w.room("control")


def test_u2_lanes_keep_their_priorities_and_a_less_urgent_lane_takes_nothing_from_one_that_waits() -> None:
    w = window(credit=250)
    w.add(frame(1))
    w.add(frame(11))
    w.add(frame(1, lane="control", size=200))
    assert send(w).lane == "control"
    assert w.next(0.0) is None  # telemetry has to wait until 100 bytes fit
    w.on_ack(Ack(journaled=(Span(EPOCH, "control", 1, 10),)), 0.0)
    assert send(w).first == 1
    w.add(frame(11, lane="control", size=200))
    assert w.next(0.0) is None  # control waits for credit; telemetry's second frame would fit but must not pass


def test_u2_with_its_connection_a_frame_is_forgotten_and_what_is_cut_anew_goes_first() -> None:
    w = window()
    for first in (1, 11, 21):
        w.add(frame(first))
        send(w)
    ack(w, 11, 20)
    w.reset()
    assert w.wake_at() is None
    assert not w.held
    assert w.resent == 2
    w.credit = 10_000
    for first in (21, 1, 6):
        w.add(frame(first, 5))
    assert [send(w).first for _ in range(3)] == [1, 6, 21]
    assert w.next(0.0) is None


def test_u2_older_epochs_go_first() -> None:
    w = window()
    w.add(frame(1, epoch=78))
    w.add(frame(500))
    assert [send(w).epoch, send(w).epoch] == [EPOCH, 78]


def test_u2_the_timer_starts_when_the_last_byte_has_left_the_sockets_queue() -> None:
    w = window()
    w.add(frame(1))
    flight = w.next(0.0)
    assert flight is not None
    assert w.wake_at() is None
    assert w.next(1000.0) is None
    w.left(flight, 1000.0)
    assert w.wake_at() == 1000.0 + FIRST_TIMEOUT
    assert w.next(1000.0 + FIRST_TIMEOUT - 0.01) is None
    assert w.next(1000.0 + FIRST_TIMEOUT) is flight


def test_u2_the_timer_doubles_up_to_sixty_seconds() -> None:
    w = window()
    w.add(frame(1))
    send(w)
    now, waits = 0.0, []
    for _ in range(6):
        due = w.wake_at()
        assert due is not None
        waits.append(due - now)
        now = due
        send(w, now)
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    assert waits[-1] == MAX_TIMEOUT
    assert w.resent == 6


def test_u2_only_the_oldest_frame_is_probed_and_the_rest_follow_its_ack() -> None:
    w = window()
    for first in (1, 11, 21):
        w.add(frame(first))
        send(w)
    assert send(w, 5.0).first == 1
    assert w.next(6.0) is None  # the others are as late, and are not sent
    ack(w, 1, 10, 6.0)
    assert send(w, 6.0).first == 11
    ack(w, 21, 30, 6.0)  # and whatever is acked before its turn is not sent again
    assert w.next(6.0) is None


def test_u2_what_was_sent_after_the_probe_is_not_sent_again_with_its_ack() -> None:
    w = window()
    w.add(frame(1))
    send(w)
    send(w, 5.0)
    w.add(frame(11))
    send(w, 5.5)
    ack(w, 1, 10, 6.0)
    assert w.next(6.0) is None


def test_u2_an_ack_while_the_probe_is_still_queued_is_for_the_first_sending() -> None:
    w = window()
    for first in (1, 11):
        w.add(frame(first))
        send(w)
    assert w.next(5.0) is not None
    ack(w, 1, 10, 5.0)
    assert w.next(5.0) is None


def test_u2_each_ack_gives_the_rest_its_time_anew() -> None:
    w = window()
    for first in (1, 11):
        w.add(frame(first))
        send(w)
    ack(w, 1, 10, 4.0)
    assert w.wake_at() == 4.0 + 2 * 4.0  # and a slow journal is given twice the time it takes


def test_u2_a_probed_frames_ack_does_not_shorten_the_time_out() -> None:
    w = window()
    w.add(frame(1))
    send(w)
    send(w, 5.0)
    ack(w, 1, 10, 6.0)
    w.add(frame(11))
    send(w, 6.0)
    assert w.wake_at() == 16.0
    ack(w, 11, 20, 6.5)
    w.add(frame(21))
    send(w, 7.0)
    assert w.wake_at() == 7.0 + FIRST_TIMEOUT


def test_u2_probes_go_although_the_credit_is_used_up_by_what_was_lost() -> None:
    w = window(credit=100)
    w.add(frame(1))
    send(w)
    w.add(frame(1, lane="control"))
    assert w.next(0.0) is None
    assert send(w, 5.0).lane == "telemetry"


def test_spans_may_cover_frames_partly_or_several() -> None:
    w = window()
    for first in (1, 11, 21):
        w.add(frame(first))
        send(w)
    assert ack(w, 5, 25).spans == [Span(EPOCH, "telemetry", 5, 25)]
    assert [f.first for f in w.frames("telemetry")] == [1, 21]
    ack(w, 1, 2)
    ack(w, 3, 4)
    assert [f.first for f in w.frames("telemetry")] == [21]
    ack(w, 26, 30)
    assert not w.frames("telemetry")
    assert w.held == 0


def test_spans_unknown_here_go_to_the_buffer_and_impossible_ones_do_not() -> None:
    w = window()
    w.add(frame(1))
    known = Span(99, "telemetry", 1, 10)
    elsewhere = Span(EPOCH, "bulk", 1, 10)
    settled = w.on_ack(Ack(journaled=(known, elsewhere, Span(EPOCH, "telemetry", 10, 1))), 0.0)
    assert settled.spans == [known, elsewhere]
    assert len(w.frames("telemetry")) == 1


def test_u4_a_refused_frame_is_handed_over_once_and_waits_for_its_pieces() -> None:
    w = window()
    w.add(frame(1))
    w.add(frame(11))
    first = send(w)
    refused = Ack(refused=(RefusedSpan(EPOCH, "telemetry", 1, 10, "bad body"),))
    assert w.on_ack(refused, 0.0).refused == [first]
    assert w.on_ack(refused, 0.0).refused == []
    assert first.reason == "bad body"
    assert send(w).first == 11
    w.replace(first, [frame(6, 5), frame(1, 5)])
    assert [send(w).first, send(w).first] == [1, 6]
    w.replace(first, [frame(1)])  # it is not there any more
    assert [f.first for f in w.frames("telemetry")] == [1, 6, 11]


def test_u4_retry_lets_the_lane_rest_and_the_rest_follows_its_oldest_frame() -> None:
    w = window()
    for first in (1, 11, 21):
        w.add(frame(first))
        send(w)
    again = Ack(retry=(Span(EPOCH, "telemetry", 1, 10), Span(EPOCH, "telemetry", 11, 20)))
    w.on_ack(again, 0.0)
    w.add(frame(1, lane="control"))
    assert send(w).lane == "control"  # another lane goes on
    assert w.next(0.0) is None
    assert w.wake_at() == RETRY_PAUSE
    assert send(w, RETRY_PAUSE).first == 1
    assert w.next(RETRY_PAUSE) is None
    w.on_ack(Ack(retry=(Span(EPOCH, "telemetry", 1, 10),)), 1.0)
    assert w.wake_at() == 1.0 + 2 * RETRY_PAUSE
    assert send(w, 3.0).first == 1
    ack(w, 1, 10, 3.0)
    assert send(w, 3.0).first == 11


def test_u4_messages_refused_for_good_leave_one_a_pause_which_doubles_until_something_is_journaled() -> None:
    w = window()
    now, left = 0.0, list[float]()
    for first in range(1, 20):
        w.add(frame(first, 1))
    while len(left) < 9:
        while flight := w.next(now):
            w.left(flight, now)
            refusal = RefusedSpan(EPOCH, "telemetry", flight.first, flight.first, "no")
            for refused in w.on_ack(Ack(refused=(refusal,)), now).refused:
                if not w.rests(refused, now):
                    w.replace(refused, ())
                    left.append(now)
        due = w.wake_at()
        assert due is not None
        now = max(due, now)
    assert [after - before for before, after in itertools.pairwise(left)] == [1, 2, 4, 8, 16, 32, 60, 60]
    tried = send(w, now)
    ack(w, tried.first, tried.first, now)
    assert w.next(now) is not None  # and the next to be refused leaves at once
    assert not w.rests(w.frames("telemetry")[0], now)


def test_u4_a_message_of_the_control_lane_is_kept_however_often_it_is_refused() -> None:
    w = window()
    w.add(frame(1, 1, lane="control"))
    now, tries = 0.0, list[float]()
    while len(tries) < 9:
        flight = send(w, now)
        tries.append(now)
        (refused,) = w.on_ack(Ack(refused=(RefusedSpan(EPOCH, "control", 1, 1, "no"),)), now).refused
        assert w.rests(refused, now)
        assert w.frames("control") == [flight]
        now = w.wake_at() or now
    assert [after - before for before, after in itertools.pairwise(tries)] == [1, 2, 4, 8, 16, 32, 60, 60]
    w.add(frame(1))
    assert send(w, tries[-1]).lane == "telemetry"  # other lanes go on


def test_u4_an_unknown_version_keeps_the_frames_and_is_probed_every_minute() -> None:
    w = window()
    w.add(frame(1))
    w.add(frame(11))
    send(w)
    w.on_ack(Ack(versions=(2, 3)), 0.0)
    assert w.unspoken == (2, 3)
    assert w.next(1.0) is None
    assert not w.room("telemetry")
    assert w.wake_at() == MAX_TIMEOUT
    assert send(w, MAX_TIMEOUT).first == 1
    ack(w, 1, 10, MAX_TIMEOUT)
    assert not w.unspoken
    assert send(w, MAX_TIMEOUT).first == 11


def test_an_answer_that_names_our_own_version_changes_nothing() -> None:
    w = window()
    w.on_ack(Ack(versions=(1, 2)), 0.0)
    assert w.unspoken == ()


def test_a_frame_that_left_after_its_link_was_lost_has_no_timer() -> None:
    w = window()
    w.add(frame(1))
    flight = w.next(0.0)
    assert flight is not None
    w.reset()
    w.left(flight, 1.0)
    assert w.wake_at() is None
    assert not w.in_flight


def test_nothing_of_a_lane_that_is_shut_goes_not_even_again() -> None:
    w = window()
    w.add(frame(1))
    w.add(frame(11))
    send(w)
    w.shut(["telemetry"])
    assert w.next(0.0) is None
    assert w.next(FIRST_TIMEOUT * 10) is None
    w.shut(())
    assert send(w, FIRST_TIMEOUT * 10).first == 1
    assert send(w, FIRST_TIMEOUT * 10).first == 11


def test_u2_what_a_lane_that_is_shut_lost_is_forgotten_in_its_time_and_holds_up_nobody() -> None:
    w = window(credit=150)
    w.add(frame(1))
    send(w, 1.0)
    w.shut(["telemetry"])
    w.add(frame(1, lane="control"))
    assert w.next(1.0) is None  # its ack may come yet
    assert w.wake_at() == 1.0 + FIRST_TIMEOUT
    assert w.forget_lost(FIRST_TIMEOUT) == []
    assert w.next(FIRST_TIMEOUT) is None
    assert w.forget_lost(1.0 + FIRST_TIMEOUT) == ["telemetry"]
    assert not w.frames("telemetry")
    assert send(w, 6.0).lane == "control"
    assert ack(w, 1, 10).spans  # late: for the buffer


def test_u2_what_has_not_left_is_not_forgotten_because_its_lane_is_shut() -> None:
    w = window()
    w.add(frame(1))
    w.add(frame(11))
    send(w)
    last = w.next(0.0)
    assert last is not None
    w.shut(["telemetry"])
    assert w.forget_lost(100.0) == []
    w.left(last, 100.0)
    assert w.wake_at() == 100.0 + FIRST_TIMEOUT
    ack(w, 1, 10, 101.0)
    assert w.forget_lost(101.0 + FIRST_TIMEOUT) == []  # an ack: the rest has its time anew, and longer
    assert w.wake_at() is not None


def test_u2_a_journal_that_is_away_for_an_hour_costs_a_frame_a_minute_and_then_all_goes_at_once() -> None:
    w = window(limit=1 << 30, credit=1 << 30)
    for first in range(1, 1001, 10):
        w.add(frame(first))
    now, sent = 0.0, 0
    while now < 3600:
        while flight := w.next(now):
            sent += 1
            w.left(flight, now)
            w.on_ack(Ack(retry=(Span(EPOCH, "telemetry", flight.first, flight.last),)), now)
        now = max(now + 0.001, w.wake_at() or now)
    assert 60 <= sent <= 70
    before, began = w.resent, now
    while w.frames("telemetry"):
        while flight := w.next(now):
            w.left(flight, now)
            ack(w, flight.first, flight.last, now)
        now = max(now + 0.01, w.wake_at() or now)
    assert now - began <= MAX_TIMEOUT + 1
    assert w.resent - before <= 2

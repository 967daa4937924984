"""The window against a link that loses, delays, refuses and breaks, and a cloud that acks in any cut."""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_agent.buffer.port import Position
from edge_agent.forward.window import MAX_TIMEOUT, Flight, Stage, Window
from waybill.wire import Ack, RefusedSpan, Span

LANES = ("control", "bulk")
EPOCH = 5
LIMIT = 1000
LONG = bool(os.environ.get("WAYBILL_LONG"))


class WindowMachine(RuleBasedStateMachine):
    """What the window does, watched from outside: the socket's queue, the wire, and the cloud's journal."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(LANES, LIMIT)
        self.now = 0.0
        self.next_seq = dict.fromkeys(LANES, 1)
        self.queue: list[Flight] = []  # handed out, not yet left
        self.wire: list[tuple[str, int, int]] = []  # left, not yet arrived
        self.journal: dict[str, set[int]] = {lane: set() for lane in LANES}
        self.acked: dict[str, set[int]] = {lane: set() for lane in LANES}
        self.gone: dict[str, set[int]] = {lane: set() for lane in LANES}
        self.fresh = dict.fromkeys(LANES, True)  # nothing of the lane was handed out on this link

    @initialize(credit=st.none() | st.integers(0, 2000))
    def first_credit(self, credit: int | None) -> None:
        self.window.credit = credit

    @rule(lane=st.sampled_from(LANES), count=st.integers(1, 9), size=st.integers(1, 400))
    def read(self, lane: str, count: int, size: int) -> None:
        if not self.window.room(lane):
            return
        first = self.next_seq[lane]
        self.next_seq[lane] += count
        self.window.add(Flight(lane, EPOCH, Position(1, first), count, 0, 0, count, b"x" * size))

    @rule()
    def send(self) -> None:
        before, credit = self.window.in_flight, self.window.credit
        flight = self.window.next(self.now)
        if flight is None:
            return
        assert flight.stage is Stage.QUEUED
        assert not set(range(flight.first, flight.last + 1)) <= self.acked[flight.lane]
        if flight.times == 1 and before:
            assert credit is not None
            assert before + len(flight.data) <= credit
        if self.fresh[flight.lane]:
            assert flight is self.window.frames(flight.lane)[0]
            self.fresh[flight.lane] = False
        self.queue.append(flight)

    @precondition(lambda self: self.queue)
    @rule(lost=st.booleans())
    def leave(self, *, lost: bool) -> None:
        flight = self.queue.pop(0)
        self.window.left(flight, self.now)
        if not lost:
            self.wire.append((flight.lane, flight.first, flight.last))

    @precondition(lambda self: self.wire)
    @rule()
    def arrive(self) -> None:
        lane, first, last = self.wire.pop(0)
        self.journal[lane].update(range(first, last + 1))

    @rule(lane=st.sampled_from(LANES), data=st.data(), credit=st.none() | st.integers(0, 2000))
    def ack(self, lane: str, data: st.DataObject, credit: int | None) -> None:
        known = sorted(self.journal[lane])
        spans: list[list[int]] = []
        if known:
            chosen = sorted(data.draw(st.sets(st.sampled_from(known), max_size=12)))
            for seq in chosen:
                if spans and spans[-1][1] == seq - 1:
                    spans[-1][1] = seq
                else:
                    spans.append([seq, seq])
            self.acked[lane].update(chosen)
        made = tuple(Span(EPOCH, lane, low, high) for low, high in spans)
        assert list(self.window.on_ack(Ack(made, credit), self.now).spans) == list(made)
        if credit is not None:
            assert self.window.credit == credit

    @precondition(lambda self: self.wire)
    @rule(last=st.booleans())
    def retry(self, *, last: bool) -> None:
        lane, first, end = self.wire.pop(-1 if last else 0)
        self.window.on_ack(Ack(retry=(Span(EPOCH, lane, first, end),)), self.now)

    @precondition(lambda self: self.wire)
    @rule(last=st.booleans())
    def refuse(self, *, last: bool) -> None:
        lane, first, end = self.wire.pop(-1 if last else 0)
        answer = Ack(refused=(RefusedSpan(EPOCH, lane, first, end, "no"),))
        for flight in self.window.on_ack(answer, self.now).refused:
            if flight.count == 1:
                self.window.replace(flight, ())
                self.gone[lane].add(flight.first)
                continue
            half = flight.count // 2
            counts = ((flight.first, half), (flight.first + half, flight.count - half))
            pieces = [Flight(lane, EPOCH, Position(1, at), count, 0, 0, count, b"x" * 9) for at, count in counts]
            self.window.replace(flight, pieces)

    @rule()
    def lose_the_link(self) -> None:
        self.queue.clear()
        self.wire.clear()
        unacked = [(f.lane, low, high) for lane in LANES for f in self.window.frames(lane) for low, high in f.open]
        self.window.reset()
        assert not any(self.window.frames(lane) for lane in LANES)
        for lane, low, high in unacked:  # read again, and cut for the next link
            count = high - low + 1
            self.window.add(Flight(lane, EPOCH, Position(1, low), count, 0, 0, count, b"x" * count))
        self.fresh = dict.fromkeys(LANES, True)

    @rule(seconds=st.floats(0.1, 70))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def every_message_is_kept_until_it_is_acked(self) -> None:
        for lane in LANES:
            kept = {seq for f in self.window.frames(lane) for low, high in f.open for seq in range(low, high + 1)}
            everything = set(range(1, self.next_seq[lane]))
            assert kept | self.acked[lane] | self.gone[lane] == everything
            for flight in self.window.frames(lane):
                assert not set(range(flight.first, flight.last + 1)) <= self.acked[lane]

    @invariant()
    def bytes_are_bounded(self) -> None:
        assert self.window.held <= LIMIT + 400 * len(LANES)

    def teardown(self) -> None:
        """On a link that loses nothing, everything arrives, whatever happened before."""
        for _ in range(500):
            flight = self.window.next(self.now)
            if flight is not None:
                self.window.left(flight, self.now)
                self.journal[flight.lane].update(range(flight.first, flight.last + 1))
                self.window.on_ack(Ack((Span(EPOCH, flight.lane, flight.first, flight.last),)), self.now)
            elif self.queue:
                lost = self.queue.pop(0)
                self.window.left(lost, self.now)
            else:
                due = self.window.wake_at()
                if due is None:
                    break
                assert due <= self.now + MAX_TIMEOUT
                self.now = max(self.now, due)
        assert not any(self.window.frames(lane) for lane in LANES)


TestWindow = WindowMachine.TestCase
TestWindow.settings = settings(max_examples=2000 if LONG else 150, stateful_step_count=60, deadline=None)

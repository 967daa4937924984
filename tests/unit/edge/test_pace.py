"""The pace on links of all kinds, in simulated time: how busy they are kept, and what is urgent."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from edge_agent.buffer.port import Position
from edge_agent.forward.pace import BASE_AGE, Pace
from edge_agent.forward.window import Flight, Window
from waybill.wire import Ack, Span

EPOCH = 5
LARGEST = 100_000
MESSAGE = 500
"""Bytes of a message that is not urgent."""


@dataclass
class Link:
    """A window that always has something to send, over a link with one queue, to a cloud that acks at once.

    ``rate``: bytes a second, ``rtt``: seconds; either may be changed. ``overhead``: seconds that encoding takes.
    ``burst``: bytes that go at once after the link was idle for long enough. ``keepalive``: seconds without an ack
    after which the connection is given up, and another one made.
    """

    rate: float
    rtt: float
    overhead: float = 0.005
    now: float = 0.0
    busy: float = 0.0
    burst: float = 0.0
    keepalive: float = float("inf")
    connections: int = 1
    acked: int = 0
    """The seq of the last message that is not urgent and was acknowledged."""
    urgent: list[float] = field(default_factory=list)
    """How long urgent frames took until their acks."""

    def __post_init__(self) -> None:
        self.window = Window(["control", "telemetry"], 1 << 30)
        self.window.credit = 1 << 30
        self.free_at = 0.0
        self.next_seq = {"control": 1, "telemetry": 1}
        self.queue: deque[Flight] = deque()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.sent = 0
        self.tokens, self.idle_since, self.heard = self.burst, 0.0, 0.0
        self.since: dict[int, float] = {}

    @property
    def pace(self) -> Pace:
        return self.window.pace

    def add(self, lane: str, size: int) -> None:
        seq, count = self.next_seq[lane], max(1, size // MESSAGE)
        self.next_seq[lane] += count
        self.window.add(Flight(lane, EPOCH, Position(1, seq), count, 0, 0, size, b"x" * size))

    def add_urgent(self) -> None:
        self.since[self.next_seq["control"]] = self.now
        self.add("control", 200)

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.sent += 1
        heapq.heappush(self.events, (when, self.sent, what))

    def run(self, seconds: float, urgent_every: float = 0.0) -> float:
        """Go on for some time, and return which share of it the link was busy."""
        end, busy, began = self.now + seconds, self.busy, self.now
        self.end = end
        if urgent_every:
            for number in range(1, int(seconds / urgent_every)):
                self.at(began + number * urgent_every, self.add_urgent)
        self.at(end, lambda: None)
        self.at(self.now, lambda: None)
        while self.events and self.events[0][0] <= end:
            when, _, what = heapq.heappop(self.events)
            if (self.queue or self.window.in_flight) and when > self.heard + self.keepalive:
                self.now = max(self.now, self.heard + self.keepalive)
                self.reconnect()
                continue
            self.now = when
            what()
            self.pump()
        return (self.busy - busy) / seconds

    def pump(self) -> None:
        if self.window.room("telemetry"):
            self.add("telemetry", min(self.pace.frame, LARGEST))
        while flight := self.window.next(self.now):
            self.queue.append(flight)
            if len(self.queue) == 1:
                self.transmit()
            if self.window.room("telemetry"):
                self.at(self.now + self.overhead, lambda: None)
                break

    def transmit(self) -> None:
        self.tokens = min(self.burst, self.tokens + (self.now - self.idle_since) * self.rate)
        size = len(self.queue[0].data)
        at_once = min(self.tokens, size)
        self.tokens -= at_once
        seconds = (size - at_once) / self.rate
        self.at(self.now + seconds, lambda: self.gone(seconds))

    def gone(self, seconds: float) -> None:
        flight = self.queue.popleft()
        self.busy += seconds
        self.idle_since = self.now
        self.window.left(flight, self.now)
        self.at(self.now + self.rtt, lambda: self.ack(flight))
        if self.queue:
            self.transmit()

    def reconnect(self) -> None:
        """The connection is dead: nothing of it arrives any more, and the next one begins with what is not acked."""
        self.connections += 1
        self.queue.clear()
        self.events = [event for event in self.events if event[0] == self.end]
        self.window.reset()
        self.window.credit = 1 << 30
        self.next_seq["telemetry"] = self.acked + 1
        self.heard = self.idle_since = self.now
        self.pump()

    def ack(self, flight: Flight) -> None:
        self.heard = self.now
        if flight.lane == "telemetry":
            self.acked = flight.last
        if flight.lane == "control":
            self.urgent.append(self.now - self.since[flight.first])
        self.window.on_ack(Ack((Span(EPOCH, flight.lane, flight.first, flight.last),)), self.now)


@pytest.mark.parametrize("rate", [4000, 125_000, 6_250_000])
@pytest.mark.parametrize("rtt", [0.02, 0.1, 0.6, 2.0])
def test_the_link_is_kept_busy_and_what_is_urgent_waits_for_two_round_trips_and_a_second(
    rate: float, rtt: float
) -> None:
    link = Link(rate, rtt)
    link.run(40)
    assert link.run(100, urgent_every=3.3) > (0.95 if rtt < 0.5 else 0.75)
    assert len(link.urgent) >= 28
    assert max(link.urgent) < 2 * rtt + 1.1


def test_the_first_seconds_are_used_too() -> None:
    link = Link(125_000, 0.1)
    assert link.run(8) > 0.95


def test_a_very_slow_link_has_a_few_small_frames_under_way() -> None:
    link = Link(1200, 0.6)
    assert link.run(120) > 0.95
    assert link.window.in_flight <= 8 * 1024


@pytest.mark.parametrize("rtt", [0.1, 2.0])
def test_a_rate_that_falls_wastes_nothing_and_is_soon_known(rtt: float) -> None:
    link = Link(125_000, rtt)
    link.run(60)
    under_way = link.window.in_flight
    link.rate = 4000
    assert link.run(under_way / 4000 + 60) > 0.9
    assert link.window.resent == 0
    link.urgent.clear()
    link.run(120, urgent_every=9)
    assert max(link.urgent) < 2 * rtt + 2.0
    link.rate = 125_000
    link.run(40)
    assert link.run(60) > 0.8


def test_a_round_trip_that_becomes_longer_is_filled_again() -> None:
    link = Link(125_000, 0.05)
    link.run(60)
    link.rtt = 2.0
    link.run(40)
    assert link.run(60) > 0.9
    link.rtt = 0.05
    link.run(3 * BASE_AGE)
    link.urgent.clear()
    link.run(60, urgent_every=5)
    assert max(link.urgent) < 1.5


def test_a_cloud_that_was_away_for_an_hour_is_filled_soon_after() -> None:
    link = Link(125_000, 2.0)
    link.run(60)
    rtt, link.rtt = link.rtt, 3600.0
    link.run(3700)
    link.rtt = rtt
    link.run(60)
    assert link.run(60) > 0.7


def test_what_trickles_says_nothing_of_the_rate() -> None:
    pace = Pace()
    now = 0.0
    for _ in range(100):
        mark = pace.sent(300, 0, now)
        pace.starve(300)
        now += 0.1
        pace.acked(300, mark, 0, now)
        now += 0.9
    assert not pace.filled
    assert pace.base == pytest.approx(0.1)
    assert pace.frame >= 2048


def test_u2_a_link_that_becomes_250_times_slower_costs_one_connection_and_goes_on() -> None:
    link = Link(1e6, 0.05, keepalive=10)
    link.run(30)
    assert link.pace.frame > 20 * 4000  # it will take longer than the keepalive
    link.rate = 4000
    link.run(15)
    before = link.acked
    link.run(100)
    assert link.connections == 2
    assert (link.acked - before) * MESSAGE > 0.9 * 100 * 4000


@pytest.mark.parametrize("burst", [5_000, 20_000, 100_000])
def test_a_burst_that_goes_at_once_does_not_make_a_frame_that_takes_longer_than_the_keepalive(burst: int) -> None:
    link = Link(4000, 0.02, burst=burst, keepalive=10)
    link.run(120)
    assert link.connections == 1
    assert link.acked * MESSAGE > 0.9 * 120 * 4000


def test_a_rate_that_falls_just_when_a_frame_is_alone_is_not_taken_for_a_longer_round_trip() -> None:
    pace, now = Pace(), 0.0
    for _ in range(40):
        first, second = pace.sent(20_000, 0, now), pace.sent(20_000, 20_000, now)
        pace.acked(20_000, first, 20_000, now + 0.25)
        pace.acked(20_000, second, 0, now + 0.4)
        now += 0.4
    mark = pace.sent(80_000, 0, now)
    pace.acked(80_000, mark, 0, now + 20)
    assert pace.base < 0.3
    assert pace.window < 10_000

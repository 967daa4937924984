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


@dataclass
class Link:
    """A window that always has something to send, over a link with one queue, to a cloud that acks at once.

    ``rate``: bytes a second, ``rtt``: seconds; either may be changed. ``overhead``: seconds that encoding takes.
    """

    rate: float
    rtt: float
    overhead: float = 0.005
    now: float = 0.0
    busy: float = 0.0
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
        self.since: dict[int, float] = {}

    @property
    def pace(self) -> Pace:
        return self.window.pace

    def add(self, lane: str, size: int) -> None:
        seq = self.next_seq[lane]
        self.next_seq[lane] += 1
        self.window.add(Flight(lane, EPOCH, Position(1, seq), 1, 0, 0, size, b"x" * size))

    def add_urgent(self) -> None:
        self.since[self.next_seq["control"]] = self.now
        self.add("control", 200)

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.sent += 1
        heapq.heappush(self.events, (when, self.sent, what))

    def run(self, seconds: float, urgent_every: float = 0.0) -> float:
        """Go on for some time, and return which share of it the link was busy."""
        end, busy, began = self.now + seconds, self.busy, self.now
        if urgent_every:
            for number in range(1, int(seconds / urgent_every)):
                self.at(began + number * urgent_every, self.add_urgent)
        self.at(end, lambda: None)
        self.at(self.now, lambda: None)
        while self.events and self.events[0][0] <= end:
            self.now, _, what = heapq.heappop(self.events)
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
        seconds = len(self.queue[0].data) / self.rate
        self.at(self.now + seconds, lambda: self.gone(seconds))

    def gone(self, seconds: float) -> None:
        flight = self.queue.popleft()
        self.busy += seconds
        self.window.left(flight, self.now)
        self.at(self.now + self.rtt, lambda: self.ack(flight))
        if self.queue:
            self.transmit()

    def ack(self, flight: Flight) -> None:
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

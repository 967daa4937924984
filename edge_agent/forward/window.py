"""The window: which frame goes next, which again, and which are done (guarantees U2, U3, U4). Pure: time comes in.

A frame lives here from the moment it is encoded until its last message is acknowledged::

                 add()             next()             left()
    (buffer) ──────────▶ UNSENT ──────────▶ QUEUED ──────────▶ LEFT ──┐ due: next() hands it out again (a probe)
       ▲                   ▲                  │                 │ ◀───┘
       │                   └── the rest after a probe's ack ────┤
       └── reset(): the link is gone                            │
                                       refused: REFUSED ◀───────┘──▶ acknowledged: gone

**Order.** Lanes by priority and share (``turns``); within a lane by epoch and seq.

**Reconnect.** With its connection a frame is forgotten here: what is unacked is in the buffer still, and each lane
begins with it, cut for the new link. A frame that was right for a fast link may take a slow one longer than its
keepalive, and would never get through, however often it is sent.

**Timers** (U2). A frame's time begins when its last byte left the socket's queue: a slow link is no loss. Only a
lane's oldest unacked frame is probed. When the ack of a probe comes, the frames that had been sent before the probe
and are still unacked are sent again, one behind the other, and whatever is acked before its turn is not. The lane's
time-out doubles with each probe, up to 60 s, and is set anew only by the ack of a frame that was sent once: the ack of
a frame sent twice does not say which of the two it is for (Karn and Partridge, 1987).

**Credit** (U3) bounds the bytes handed out and unacked: absolute, the last one wins, one frame at least, one frame
before the first. So does what the link can take (``pace``), but that the most urgent lane may go over it
by a part of a frame: it must not wait for acks. ``limit`` bounds the encoded bytes kept here, for resends; each lane
may always hold one frame.

**Shut.** Of a lane that is shut nothing goes, not even a probe. What went before and gets no ack in its time is
forgotten, as with a reconnect (``forget_lost``): else one lost ack would hold up the others for as long as it is shut.

**Retry.** A lane whose frame could not be journaled rests: its oldest frame is tried after a pause, which doubles, and
everything else of it waits for that one's ack. So does a lane of which a message was refused for good (``rests``): a
cloud that refuses everything costs a message a pause, and the control lane, whose receipts it would refuse, too, none.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from edge_agent.buffer.port import Position
from edge_agent.forward.pace import Mark, Pace
from edge_agent.forward.turns import Turns
from waybill.frames.header import VERSION
from waybill.wire import CONTROL_LANE, Ack, RefusedSpan, Span

FIRST_TIMEOUT: Final = 5.0
"""Seconds until a frame is probed for the first time."""

MAX_TIMEOUT: Final = 60.0
"""Seconds between two probes at most (U2)."""

RETRY_PAUSE: Final = 1.0
"""Seconds until the first attempt after the listener asked to try again; doubles like the time-out."""


class Stage(enum.Enum):
    """Where a frame is; see the module."""

    UNSENT = 0
    QUEUED = 1
    LEFT = 2
    REFUSED = 3


@dataclass(slots=True, eq=False)
class Flight:
    """One encoded frame under way.

    ``at``: the position of its first message (for another lease of the same messages). ``prev_epoch``, ``prev_last``:
    as its header says (E2). ``size``: payload bytes of its messages. ``anew``: it was already encoded anew after a
    refusal (U4).
    """

    lane: str
    epoch: int
    at: Position
    count: int
    prev_epoch: int
    prev_last: int
    size: int
    data: bytes
    anew: bool = False
    # the window's own
    stage: Stage = Stage.UNSENT
    open: list[tuple[int, int]] = field(default_factory=list)
    times: int = 0
    left_at: float = 0.0
    order: int = 0
    reason: str = ""
    mark: Mark | None = None

    @property
    def first(self) -> int:
        """The seq of the first message."""
        return self.at.seq

    @property
    def last(self) -> int:
        """The seq of the last message."""
        return self.at.seq + self.count - 1


@dataclass(slots=True)
class _Lane:
    name: str
    flights: list[Flight] = field(default_factory=list)  # by epoch and seq; few, so a list
    timeout: float = FIRST_TIMEOUT
    restarted: float = 0.0  # the oldest frame's time does not begin before the last progress
    resting: bool = False  # the listener could not journal, or never will: only the oldest is tried
    retry_at: float = 0.0
    pause: float = RETRY_PAUSE

    def held(self) -> int:
        return sum(len(flight.data) for flight in self.flights)

    def rest(self, now: float) -> None:
        self.resting = True
        self.retry_at = now + self.pause
        self.pause = min(self.pause * 2, MAX_TIMEOUT)

    def awake(self) -> None:
        self.resting, self.retry_at, self.pause = False, 0.0, RETRY_PAUSE


@dataclass(frozen=True, slots=True)
class Settled:
    """What an ack meant.

    ``spans``: to be settled in the buffer. ``refused``: frames to be cut anew (:meth:`Window.replace`).
    """

    spans: Sequence[Span]
    refused: Sequence[Flight]


class Window:
    """All frames in flight of one agent.

    ``lanes``: names, the most urgent first; ``limit``: bytes kept for resends; ``shares``: see
    :class:`edge_agent.forward.turns.Turns`.
    """

    def __init__(self, lanes: Iterable[str], limit: int, shares: Mapping[str, int] | None = None) -> None:
        self._lanes = {name: _Lane(name) for name in lanes}
        self._turns = Turns(self._lanes, shares or {})
        self._limit = limit
        self._sent = 0  # places of frames in the order they were handed out
        self._shut: frozenset[str] = frozenset()
        self._urgent = next(iter(self._lanes), "")
        self.pace = Pace()
        self.credit: int | None = None
        self.unspoken: tuple[int, ...] = ()
        """Versions that the cloud speaks, where ours is not among them: nothing but a probe goes until that changes."""
        self.acks, self.waited = 0, 0.0
        """Frames since the start that were sent once and acknowledged, and the seconds that they took in all."""
        self.resent = 0
        """Frames since the start that were handed out again, or that a connection left without an ack."""

    @property
    def held(self) -> int:
        """Encoded bytes kept here."""
        return sum(lane.held() for lane in self._lanes.values())

    @property
    def in_flight(self) -> int:
        """Bytes handed out on this connection and not acknowledged."""
        return sum(
            len(flight.data)
            for lane in self._lanes.values()
            for flight in lane.flights
            if flight.stage in (Stage.QUEUED, Stage.LEFT)
        )

    def frames(self, lane: str) -> Sequence[Flight]:
        """Return the lane's frames, oldest first."""
        return self._lanes[lane].flights

    def room(self, lane: str) -> bool:
        """Tell whether a new frame of ``lane`` may be encoded: the cloud would take it, and its bytes may be kept.

        The link need not be ready for it: it is encoded while the one before it is sent.
        """
        flights = self._lanes[lane].flights
        waiting = any(flight.stage in (Stage.UNSENT, Stage.REFUSED) for flight in flights)
        return not waiting and (not flights or self.held < self._limit) and self._has_credit(0)

    def add(self, flight: Flight) -> None:
        """Take a new frame."""
        flight.open = [(flight.first, flight.last)]
        flight.stage = Stage.UNSENT
        flights = self._lanes[flight.lane].flights
        flights.append(flight)
        flights.sort(key=_place)

    def shut(self, lanes: Collection[str]) -> None:
        """Hand out nothing of ``lanes``, resends included, in place of those that were shut before; none opens all."""
        self._shut = frozenset(lanes)

    def forget_lost(self, now: float) -> Sequence[str]:
        """Return the lanes that are shut and whose frames got no ack in their time: to be read again when they open."""
        lost = [lane for name in self._shut if (lane := self._lanes.get(name)) and _at_most(_lost_at(lane), now)]
        for lane in lost:
            self._forget(lane)
        return [lane.name for lane in lost]

    def drop(self, lanes: Iterable[str]) -> None:
        """Forget all frames of ``lanes``: they are to be read again."""
        for name in lanes:
            self._forget(self._lanes[name])

    def next(self, now: float) -> Flight | None:
        """Return the frame to hand to the uplink now, or None. It counts as in flight from here on.

        Call :meth:`left` when its last byte has left the socket's queue. ``now``: seconds, monotonic, as everywhere.
        """
        for lane in self._lanes.values():
            if lane.name not in self._shut and _at_most(self._due(lane), now):
                lane.timeout = min(lane.timeout * 2, MAX_TIMEOUT)
                return self._hand_out(lane.flights[0], now)
        waiting = self._waiting()
        if not waiting:
            return None
        sizes = {lane: len(flight.data) for lane, flight in waiting.items()}
        name = self._turns.next(sizes)
        if not self._allows(name, sizes[name]):
            return None  # and no other lane may use up what it waits for
        self._turns.sent(name, sizes[name], sizes)
        return self._hand_out(waiting[name], now)

    def upcoming(self) -> str | None:
        """Return the lane whose turn it is, of those that have a frame to send here."""
        sizes = {lane: len(flight.data) for lane, flight in self._waiting().items()}
        return self._turns.next(sizes) if sizes else None

    def _waiting(self) -> dict[str, Flight]:
        """Return the next frame of each lane that has one to send."""
        found: dict[str, Flight] = {}
        for lane in self._lanes.values():
            if not lane.resting and lane.name not in self._shut:
                flight = next((flight for flight in lane.flights if flight.stage is Stage.UNSENT), None)
                if flight is not None:
                    found[lane.name] = flight
        return found

    def left(self, flight: Flight, now: float) -> None:
        """The last byte of ``flight`` has left the socket's queue: its time begins (U2)."""
        if flight.stage is Stage.QUEUED:
            flight.stage = Stage.LEFT
            flight.left_at = now

    def wake_at(self) -> float | None:
        """Return when :meth:`next` will have a probe, or :meth:`forget_lost` something to forget, or None."""
        times = [_lost_at(lane) if lane.name in self._shut else self._due(lane) for lane in self._lanes.values()]
        return min((time for time in times if time is not None), default=None)

    def reset(self) -> None:
        """The link is gone: everything unacked is to be read and cut again for the next one; credit begins anew."""
        self.credit = None
        self.unspoken = ()
        self.pace.reset()
        for lane in self._lanes.values():
            lane.timeout = FIRST_TIMEOUT
            lane.awake()
            self._forget(lane)

    def on_ack(self, ack: Ack, now: float) -> Settled:
        """Take an ack of the cloud. Spans that are unknown here are passed on: the buffer may know them."""
        if ack.credit is not None:
            self.credit = ack.credit
        if ack.versions and VERSION not in ack.versions:
            self.unspoken = ack.versions
            for lane in self._lanes.values():
                lane.timeout = MAX_TIMEOUT
        spans = [span for span in ack.journaled if 1 <= span.first <= span.last]
        if spans:
            self.unspoken = ()
        for span in spans:
            self._journaled(span, now)
        refused = [flight for span in ack.refused for flight in self._hit(span) if self._refuse(flight, span.reason)]
        for again in ack.retry:
            self._rest(again, now)
        return Settled(spans, refused)

    def rests(self, flight: Flight, now: float) -> bool:
        """A single message was refused for good: let its lane rest, and tell whether the message stays, too.

        It does where a receipt would not help, on the control lane, or where the lane's last one was less than a pause
        ago. A pause doubles up to 60 s, and begins anew with each ack of a frame that was journaled.
        """
        lane = self._lanes[flight.lane]
        control, soon = flight.lane == CONTROL_LANE, now < lane.retry_at
        if control or soon:
            flight.stage = Stage.UNSENT
        if not soon:
            lane.rest(now)
        return control or soon

    def replace(self, flight: Flight, pieces: Sequence[Flight]) -> None:
        """Put ``pieces`` (none, where its messages were given up or are settled) in the place of ``flight``."""
        flights = self._lanes[flight.lane].flights
        if flight in flights:
            flights.remove(flight)
            for piece in pieces:
                self.add(piece)

    # --- within ---

    def _allows(self, lane: str, size: int) -> bool:
        """Whether a frame of ``size`` bytes may go now."""
        over = self.pace.frame // 4 if lane == self._urgent else 0
        return self._has_credit(size) and (not self.in_flight or self.in_flight + size <= self.pace.window + over)

    def _has_credit(self, size: int) -> bool:
        """Whether the cloud lets a frame of ``size`` bytes go; with 0: whether any."""
        in_flight = self.in_flight
        if in_flight == 0:
            return True
        return self.credit is not None and not self.unspoken and in_flight + max(size, 1) <= self.credit

    def _forget(self, lane: _Lane) -> None:
        self.resent += sum(flight.times > 0 for flight in lane.flights)
        lane.flights.clear()

    @staticmethod
    def _due(lane: _Lane) -> float | None:
        """When the lane's oldest frame is to be sent again without an ack having come."""
        if not lane.flights:
            return None
        oldest = lane.flights[0]
        if oldest.stage is Stage.UNSENT and lane.resting:
            return lane.retry_at
        if oldest.stage is Stage.LEFT:
            return max(oldest.left_at, lane.restarted) + lane.timeout
        return None

    def _hand_out(self, flight: Flight, now: float) -> Flight:
        self._sent += 1
        flight.order = self._sent
        flight.mark = self.pace.sent(len(flight.data), self.in_flight, now)
        flight.stage = Stage.QUEUED
        self.resent += flight.times > 0
        flight.times += 1
        return flight

    def _hit(self, span: Span | RefusedSpan) -> list[Flight]:
        """Return the frames here that ``span`` touches."""
        lane = self._lanes.get(span.lane)
        flights = lane.flights if lane is not None else ()
        return [f for f in flights if f.epoch == span.epoch and f.first <= span.last and span.first <= f.last]

    def _journaled(self, span: Span, now: float) -> None:
        done: list[Flight] = []
        for flight in self._hit(span):
            flight.open = _without(flight.open, span.first, span.last)
            if not flight.open:
                done.append(flight)
        if not done:
            return
        lane = self._lanes[span.lane]
        lane.flights = [flight for flight in lane.flights if flight.open]
        lane.restarted = now
        lane.awake()
        for flight in done:
            if flight.times == 1:
                if flight.mark is not None and flight.stage in (Stage.QUEUED, Stage.LEFT):
                    self.pace.acked(len(flight.data), flight.mark, self.in_flight, now)
                    self.acks += 1
                    self.waited += now - flight.mark.at
                took = now - flight.left_at if flight.stage is Stage.LEFT else 0.0
                lane.timeout = min(max(FIRST_TIMEOUT, 2 * took), MAX_TIMEOUT)
            elif flight.stage is Stage.LEFT:  # while it is queued, the ack is for an earlier sending of it
                for other in lane.flights:
                    if other.stage is Stage.LEFT and other.order < flight.order:
                        other.stage = Stage.UNSENT

    @staticmethod
    def _refuse(flight: Flight, reason: str) -> bool:
        if flight.stage is Stage.REFUSED:
            return False
        flight.stage, flight.reason = Stage.REFUSED, reason
        return True

    def _rest(self, span: Span, now: float) -> None:
        """Let the lane rest: these frames were not journaled; its oldest is tried again after a pause."""
        hit = [flight for flight in self._hit(span) if flight.stage in (Stage.QUEUED, Stage.LEFT)]
        for flight in hit:
            flight.stage = Stage.UNSENT
        lane = self._lanes.get(span.lane)
        if hit and lane is not None and (not lane.resting or hit[0] is lane.flights[0]):
            lane.rest(now)


def _lost_at(lane: _Lane) -> float | None:
    """When everything of the lane that was sent has had its time; None while some of it has not left yet."""
    if any(flight.stage is Stage.QUEUED for flight in lane.flights):
        return None
    left = [flight.left_at for flight in lane.flights if flight.stage is Stage.LEFT]
    return max(*left, lane.restarted) + lane.timeout if left else None


def _at_most(time: float | None, now: float) -> bool:
    return time is not None and time <= now


def _place(flight: Flight) -> tuple[int, int]:
    return flight.at.ordinal, flight.at.seq


def _without(ranges: Sequence[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """Return ``ranges`` without ``first..last``."""
    rest: list[tuple[int, int]] = []
    for low, high in ranges:
        if low < first:
            rest.append((low, min(high, first - 1)))
        if high > last:
            rest.append((max(low, last + 1), high))
    return rest

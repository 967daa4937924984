"""The forwarder: lease → frame → window → uplink; ack → settle.

::

    buffer.lease ──▶ frame() ──▶ Window ──▶ link.send            send_over(), one task a connection
    buffer.settle ◀───────────── Window ◀── ack                  on_ack()
    buffer.give_up ◀── a single message, refused for good (U4)

It reads ahead only what the window lets go: while the link is down, or the cloud gives no credit, everything stays in
the buffer. What a connection leaves unacked is read again, and is what the next one begins with, in frames that are
right for that (U2).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from edge_agent.buffer.port import Buffer, Lease, Position, Stored
from edge_agent.clock import Clock
from edge_agent.config import ForwardSettings
from edge_agent.forward.bodies import Bodies
from edge_agent.forward.dictionaries import Dictionaries
from edge_agent.forward.window import Flight, Window
from edge_agent.lanes import Lane
from waybill.errors import Unavailable
from waybill.frames import Row, encode_plain, in_columns, read_header
from waybill.frames.header import COLUMNS, VERSION
from waybill.wire import CONTROL_LANE, Ack, Receipt, Span

log = logging.getLogger(__name__)

MAX_FRAME: Final = 1 << 20
"""Largest encoded frame, bytes, unless it is a single message (B4: well below the topic's max.message.bytes)."""

LOOK: Final = 0.25
"""Seconds between two looks at whether frames have left the socket's queue."""

PAUSE: Final = 1.0
"""Seconds until a receipt that could not be written is tried again."""

GATHER: Final = 0.02
"""Seconds between two looks at what was appended: commits come by the hundred."""


QUIET: Final = 60.0
"""Seconds between two lines of the log about refusals of one kind in one lane; those between are details."""

FIRST_RATIO: Final = 2.0
"""Bytes of payload a byte of frame, before the first frame of a lane."""


class Sender(Protocol):
    """What the forwarder needs of a connection (:class:`edge_agent.uplink.link.Link`)."""

    async def send(self, frame: bytes) -> int:
        """Write a frame to the socket, and return its mark."""

    def has_left(self, mark: int) -> bool:
        """Tell whether the frame of this mark has left the socket's queue."""


@dataclass(slots=True)
class Counters:
    """Since the start.

    ``sent_*``: handed to the link, resends included. ``acked``: messages of the buffer that the cloud's acks
    settled, each once. ``given_up``: messages refused for good. ``recut``: frames encoded anew after a refusal.
    ``columns``: frames encoded in columns.
    """

    sent_frames: int = 0
    sent_bytes: int = 0
    acked: int = 0
    given_up: int = 0
    recut: int = 0
    columns: int = 0


@dataclass(slots=True)
class _Reader:
    """Where a lane is read. ``more``: there may be something; since ``since`` (monotonic), for the linger.

    ``ratio``: bytes of payload a byte of its last frame.
    """

    lane: Lane
    linger: float
    after: Position | None = None
    more: bool = True
    since: float = float("-inf")
    ratio: float = FIRST_RATIO


class Forwarder:
    """Empties the buffer's lanes into frames, and settles what the cloud has journaled."""

    def __init__(self, buffer: Buffer, lanes: Iterable[Lane], settings: ForwardSettings, clock: Clock) -> None:
        self._buffer = buffer
        self._settings = settings
        self._clock = clock
        ordered = sorted(lanes, key=lambda lane: lane.priority)
        # What the agent itself has to say is never much, and somebody waits for it: a command's result.
        linger = settings.linger_ms / 1000
        self._readers = [_Reader(lane, 0.0 if lane.name == CONTROL_LANE else linger) for lane in ordered]
        self._lanes = {lane.name: lane for lane in ordered}
        self._wake = asyncio.Event()
        self._shut: dict[str, frozenset[str]] = {}
        shares = {lane.name: lane.share for lane in ordered}
        self.window = Window((lane.name for lane in ordered), settings.window_bytes, shares)
        self._bodies = Bodies(settings.body)
        self.dictionaries = Dictionaries()
        self._useless = False  # frames with a dictionary: as far as is known this log does not have it
        self._link: Sender | None = None
        self._queued: deque[tuple[Flight, int, int]] = deque()  # handed over: its place in that order, its mark
        self._owed: list[Span] = []
        self._said: dict[str, float] = {}  # a few a lane
        self.counters = Counters()
        self.on_framed: Callable[[Sequence[Stored], int], None] = lambda *_: None
        """Told of messages that were put into frames, and of the bytes of these."""
        self.error = ""
        """What the cloud found wrong with our frames, or an empty string."""

    async def watch(self) -> None:
        """Notice what is appended to the buffer. A task of its own, for the life of the agent."""
        while True:
            await self._buffer.changed()
            now = self._clock.mono()
            for reader in self._readers:
                if not reader.more:
                    reader.more, reader.since = True, now
            self._wake.set()
            await asyncio.sleep(GATHER)

    def shut(self, reason: str, lanes: Collection[str]) -> None:
        """Send nothing more of ``lanes`` for ``reason``, in place of what was shut for it before; none opens them.

        Nothing is sent again either, what gets no ack goes back to the buffer.
        """
        self._shut[reason] = frozenset(lanes)
        self.window.shut(frozenset[str]().union(*self._shut.values()))
        self._wake.set()

    def why_shut(self, lane: str) -> Sequence[str]:
        """Return the reasons for which ``lane`` is not sent."""
        return [reason for reason, lanes in self._shut.items() if lane in lanes]

    def _has_turn(self, reader: _Reader) -> bool:
        return self.window.room(reader.lane.name) and not self.why_shut(reader.lane.name)

    async def send_over(self, link: Sender, *, metered: bool = False) -> None:
        """Send over one connection, until it raises or this is cancelled. ``metered``: bytes cost money."""
        self.error = ""
        self._link = link
        self._bodies.connected(metered=metered)
        self.dictionaries.connected()
        self._useless = False
        try:
            while True:
                self._look()
                self._drop_useless()
                now = self._clock.mono()
                self._read_again(self.window.forget_lost(now))
                if await self._read(now, self.window.upcoming()):
                    await asyncio.sleep(0)  # devices come first
                    continue
                flight = self.window.next(now)
                if flight is not None:
                    order = flight.order
                    self.counters.sent_frames += 1
                    self.counters.sent_bytes += len(flight.data)
                    self._queued.append((flight, order, await link.send(flight.data)))
                    self._bodies.waited(self._clock.mono() - now)
                else:
                    held_up = self._is_held_up()
                    if not held_up:
                        self.window.pace.starve(self.window.in_flight)
                    await self._sleep(self._until(now))
                    (self._bodies.waited if held_up else self._bodies.idled)(self._clock.mono() - now)
        finally:
            self._link = None
            self._queued.clear()
            self.window.reset()
            self._read_again(self._lanes)

    def _read_again(self, lanes: Collection[str]) -> None:
        """Read these lanes from their oldest unsettled message on: the window holds nothing of them any more."""
        for reader in self._readers:
            if reader.lane.name in lanes:
                reader.after, reader.more, reader.since = None, True, float("-inf")

    def _drop_useless(self) -> None:
        """Let the window hold nothing with a dictionary that this log may not have: it is read and encoded again.

        Not in ``on_ack``: the sender may be reading at that moment, and would go on behind what was dropped.
        """
        if not self._useless:
            return
        self._useless = False
        lanes = [name for name in self._lanes if any(read_header(f.data).dictionary for f in self.window.frames(name))]
        self.window.drop(lanes)
        self._read_again(lanes)

    def _look(self) -> None:
        """Tell the window which frames have left the socket's queue."""
        while self._queued and self._link is not None and self._link.has_left(self._queued[0][2]):
            flight, order, _ = self._queued.popleft()
            if flight.order == order:
                self.window.left(flight, self._clock.mono())

    async def on_ack(self, ack: Ack) -> None:
        """Take an ack: settle what is journaled, cut anew what was refused (U4)."""
        self._look()  # an ack of a frame that has not left is for an earlier sending of it
        before = self.window.unspoken
        settled = self.window.on_ack(ack, self._clock.mono())
        self._wake.set()
        self._note(before)
        self._owed += settled.spans
        self._useless = self.dictionaries.answered(ack) or self._useless
        self.dictionaries.settled(settled.spans)
        await self._settle()
        for flight in settled.refused:
            await self._cut_anew(flight)
            self._wake.set()

    async def _settle(self) -> None:
        # The end of a connection may cut this off; what is owed is then settled with the next ack.
        if owed := list(self._owed):
            count = await self._buffer.settle(owed)
            del self._owed[: len(owed)]
            self.counters.acked += count

    # --- reading the buffer ---

    async def _read(self, now: float, upcoming: str | None) -> bool:
        """Put one more frame into the window, of the most urgent lane that has one ready. False where there is none.

        ``upcoming``: the lane whose turn it is of those that have a frame in the window; of less urgent ones only those
        with a share are read then.
        """
        passed = False
        for reader in self._readers:
            passed = passed or reader.lane.name == upcoming
            if passed and not reader.lane.share:
                continue
            if not self._has_turn(reader) or not self._ready(reader, now):
                continue
            count, size = self._settings.frame_messages, self._size(reader)
            lease = await self._lease(reader, count, size)
            if lease is None:
                continue
            flights = self._frames(lease, lease.messages, lease.first)
            for flight in flights:
                await self._choose_body(flight)
                self.dictionaries.sent(flight.lane, flight.data, now)
            # Only now: what the end of a connection cut off before is read again.
            reader.after = lease.end
            self.on_framed(lease.messages, sum(len(flight.data) for flight in flights))
            payload = sum(flight.size for flight in flights)
            if len(lease.messages) < count and payload < size:
                reader.since = now  # most likely the end: what follows may gather again
            reader.ratio = max(1.0, payload / sum(len(flight.data) for flight in flights))
            for flight in flights:
                self.window.add(flight)
            return True
        return False

    async def _lease(self, reader: _Reader, count: int, size: int) -> Lease | None:
        """Read on in a lane. ``more`` is taken back before it is looked: what is appended meanwhile sets it again."""
        reader.more, found = False, True
        try:
            if reader.lane.order == "fresh-first":
                under_way = [(f.at.ordinal, f.first, f.last) for f in self.window.frames(reader.lane.name)]
                lease = await self._buffer.lease_newest(reader.lane.name, under_way, count, size)
            else:
                lease = await self._buffer.lease(reader.lane.name, reader.after, count, size)
            found = lease is not None
        finally:
            reader.more = reader.more or found
        return lease

    def _size(self, reader: _Reader) -> int:
        """Return the bytes of payload that the lane's next frame should have: what the link takes in half a second."""
        return min(self._settings.frame_bytes, int(self.window.pace.frame * reader.ratio))

    def _is_held_up(self) -> bool:
        """Tell whether there may be something to read that the window has no room for."""
        return any(
            reader.more and not self.window.room(reader.lane.name) and not self.why_shut(reader.lane.name)
            for reader in self._readers
        )

    async def _choose_body(self, flight: Flight) -> None:
        """Put a new frame in columns where that is worth the work, in a thread: devices come first."""
        if not self._bodies.columns:
            self._bodies.encoded(flight.count)
            return
        dictionary, before = self.dictionaries.usable(flight.lane), len(flight.data)
        fewest = self._bodies.fewest

        def work() -> tuple[bytes, float]:
            began = self._clock.processor()
            return in_columns(flight.data, dictionary, fewest=fewest), self._clock.processor() - began

        flight.data, seconds = await asyncio.to_thread(work)
        self._bodies.encoded(flight.count, seconds)
        self.counters.columns += len(flight.data) < before

    def _ready(self, reader: _Reader, now: float) -> bool:
        if not reader.more:
            return False
        return now >= reader.since + reader.linger or self._is_full(reader)

    def _is_full(self, reader: _Reader) -> bool:
        """Tell whether about a frame's worth of a lane is waiting outside of the window."""
        flights = self.window.frames(reader.lane.name)
        wanted = self._size(reader) if self.window.pace.filled else self._settings.frame_bytes
        for backlog in self._buffer.backlog():
            if backlog.lane == reader.lane.name:
                count = backlog.count - sum(flight.count for flight in flights)
                size = backlog.bytes - sum(flight.size for flight in flights)
                return count >= self._settings.frame_messages or size >= 2 * wanted
        return False

    def _until(self, now: float) -> float | None:
        """Return the seconds until there may be something to do; None: until something happens."""
        times = [LOOK] if self._queued else []
        if (probe := self.window.wake_at()) is not None:
            times.append(probe - now)
        times += [
            reader.since + reader.linger - now for reader in self._readers if reader.more and self._has_turn(reader)
        ]
        return max(0.001, min(times)) if times else None

    async def _sleep(self, seconds: float | None) -> None:
        if not self._wake.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
            except TimeoutError:
                return
        self._wake.clear()

    # --- frames ---

    def _frames(self, lease: Lease, messages: Sequence[Stored], first: int, *, anew: bool = False) -> list[Flight]:
        """Encode ``messages`` of ``lease`` as one frame, or as several where one would be too large (B4)."""
        data = self._encode(lease, messages, first, anew=anew)
        if len(data) > MAX_FRAME and len(messages) > 1:
            half = len(messages) // 2
            return [
                *self._frames(lease, messages[:half], first, anew=anew),
                *self._frames(lease, messages[half:], first + half, anew=anew),
            ]
        at = Position(lease.end.ordinal, first)
        size = sum(len(message.payload) for message in messages)
        return [
            Flight(lease.lane, lease.epoch, at, len(messages), lease.prev_epoch, lease.prev_last, size, data, anew=anew)
        ]

    def _encode(self, lease: Lease, messages: Sequence[Stored], first: int, *, anew: bool) -> bytes:
        lane = self._lanes[lease.lane]
        self.dictionaries.leased(lease, messages, first)
        messages, clock = self._clock.stamped(messages, lease.boot)
        base = messages[0].wall_ms
        sources: dict[tuple[str, str], int] = {}
        rows: list[Row] = [
            (sources.setdefault((m.topic, m.client), len(sources)), m.wall_ms - base, m.flags, m.payload, m.properties)
            for m in messages
        ]
        return encode_plain(
            epoch=lease.epoch,
            prev_epoch=lease.prev_epoch,
            prev_last=lease.prev_last,
            oldest_epoch=lease.oldest_epoch,
            lane=lease.lane,
            order=lane.order,
            durability=lane.durability,
            clock=clock,
            first=first,
            base_ms=base,
            sources=list(sources),
            rows=rows,
            dictionary=None if anew else self.dictionaries.usable(lease.lane),
        )

    # --- refused (U4) ---

    async def _cut_anew(self, flight: Flight) -> None:
        """Encode a refused frame anew; where it was already, in halves; a single message leaves with a receipt.

        Where :meth:`Window.rests` says so, it stays.
        """
        if flight.anew and flight.count == 1:
            if self.window.rests(flight, self._clock.mono()):
                log.log(
                    self._level(f"kept in {flight.lane}", logging.WARNING),
                    "the cloud refused message %s/%d of epoch %d: %s; it is kept and tried again",
                    flight.lane, flight.first, flight.epoch, flight.reason,
                )  # fmt: skip
                return
            log.log(
                self._level(f"given up in {flight.lane}", logging.ERROR),
                "the cloud refused message %s/%d of epoch %d for good: %s",
                flight.lane, flight.first, flight.epoch, flight.reason,
            )  # fmt: skip
            while True:
                try:
                    await self._buffer.give_up(_receipt(flight))
                    break
                except Unavailable:  # the buffer's fault says why
                    await asyncio.sleep(PAUSE)
            self.counters.given_up += 1
            self.window.replace(flight, ())
            return
        self.counters.recut += 1
        log.log(
            self._level(f"cut anew in {flight.lane}", logging.WARNING),
            "the cloud refused frame %s/%d..%d of epoch %d: %s; it is encoded anew",
            flight.lane, flight.first, flight.last, flight.epoch, flight.reason,
        )  # fmt: skip
        header = read_header(flight.data)
        if header.codec == COLUMNS:
            self._bodies.refused()
        if header.dictionary:
            self.dictionaries.refused()
        part = max(1, (flight.count + 1) // 2) if flight.anew else flight.count
        pieces = [piece async for piece in self._again(flight, part)]
        # What is not there any more was settled or declared meanwhile.
        self.window.replace(flight, pieces)

    def _level(self, what: str, level: int) -> int:
        """Return ``level`` for what was not logged with it in the last minute, else that of details."""
        now = self._clock.mono()
        if now < self._said.get(what, float("-inf")) + QUIET:
            return logging.DEBUG
        self._said[what] = now
        return level

    async def _again(self, flight: Flight, part: int) -> AsyncIterator[Flight]:
        """Read the messages of ``flight`` again, in frames of ``part`` messages, in the body that every cloud knows."""
        last, at = flight.last, Position(flight.at.ordinal, flight.first - 1)
        while at.seq < last:
            lease = await self._buffer.lease(flight.lane, at, min(part, last - at.seq), flight.size + 1)
            if lease is None or lease.epoch != flight.epoch or lease.first > last:
                return
            for piece in self._frames(lease, lease.messages, lease.first, anew=True):
                yield piece
            at = lease.end

    def _note(self, before: Sequence[int]) -> None:
        unspoken = self.window.unspoken
        if unspoken and unspoken != before:
            spoken = ", ".join(map(str, unspoken))
            self.error = f"the cloud speaks frame version {spoken}, this agent {VERSION}: frames are kept; update one"
            log.error("%s", self.error)
        elif before and not unspoken:
            self.error = ""


def _receipt(flight: Flight) -> Receipt:
    return Receipt(
        flight.epoch,
        flight.lane,
        flight.prev_epoch,
        flight.prev_last,
        flight.first,
        flight.last,
        flight.count,
        flight.size,
        f"refused: {flight.reason}",
    )

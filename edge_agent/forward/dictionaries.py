"""Dictionaries of this gateway's own traffic: when one is trained, whether it pays, when it is used (R10). Pure.

A frame of few messages is mostly what the frame before it said, too. A dictionary holds that::

    small frames, as they were sent ──▶ sample() ──▶ train(), in a thread ──▶ a message of the control lane
                                                     └─ does it pay? ─▶ else      │ leased()
    usable: frames are compressed with it ◀── settled(): the cloud has journaled it ◀┘

So the cloud has a dictionary in its journal before any frame that needs it. Which cloud, it says itself: it names its
log in an ack of each connection. The dictionary is used while that is a log that has it, and sent again to another: a
cloud that was wiped, or that of another uplink. To a log without a name it is sent again on each connection, but at
most once an hour. After a start the one of the last start is sent again, too.

Whether one pays is measured on frames that it was not trained with: what it saves of them, at the pace at which they
came, must be worth its own bytes within ``PAYS_WITHIN``, and a tenth of theirs. The same holds for the next one,
compared with the present: where the traffic has changed it pays, where it has not it does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from edge_agent.buffer.port import Lease, Stored
from waybill.errors import Corrupt
from waybill.frames import Dictionary, read_header, zstd
from waybill.frames.body import raw_body
from waybill.frames.plain import LEVEL
from waybill.wire import CONTROL_LANE, DICTIONARY_TOPIC, Ack, Span

SIZE: Final = 8 << 10
"""Bytes of a dictionary. Larger ones gain less than they cost: tried with frames of 1 to 10 messages."""

MAX_FRAME: Final = 8 << 10
"""Bytes of a frame that counts as small."""

MAX_FRAMES: Final = 1000
MAX_BYTES: Final = 512 << 10
"""Frames that are kept to train with, and their bytes: the newest."""

MAX_RAW: Final = 256 << 10
"""Bytes that one training looks at: a tenth of a second of one core. More gains nothing."""

FEWEST: Final = 64
"""Frames without which there is no training."""

LEAST_TIME: Final = 60.0
"""Seconds over which frames are taken to have come at least: a burst is no pace."""

FIRST_PAUSE: Final = 600.0
LONGEST_PAUSE: Final = 12 * 3600.0
"""Seconds between two trainings at least: it doubles from the one to the other."""

A_DAY: Final = 2
"""Dictionaries that are sent in a day at most; the cloud keeps the newest of about a week."""

DAY: Final = 86_400.0

PAYS_WITHIN: Final = 2 * DAY

GAIN: Final = 0.1
"""Part of the bytes of small bodies that a dictionary must save."""

OVERHEAD: Final = 400
"""Bytes that sending a dictionary costs besides its own: its frame, the ack, and what carries them."""

MAX_UNDER_WAY: Final = 8
"""Dictionaries in the control lane that are waited for; of more the oldest are forgotten."""

NAMELESS: Final = 0
"""The log of a cloud that does not name it."""

MAX_LOGS: Final = 8
"""Logs that are known to have the dictionary; of more the oldest are forgotten, and sent it again."""

AGAIN: Final = 60.0
SAME_AGAIN: Final = 3600.0
"""Seconds until a dictionary is sent again at the earliest: to another log; to the one it was sent to last."""


@dataclass(slots=True)
class Counters:
    """Since the start. ``known``: dictionaries that the cloud has; ``used``: frames that were compressed with one."""

    trained: int = 0
    sent: int = 0
    known: int = 0
    used: int = 0


class Sample(NamedTuple):
    """What a training needs. ``a_day``: how many such frames there would be. ``present``: what they are read with."""

    frames: Sequence[bytes]
    a_day: float
    present: Dictionary | None


class Dictionaries:
    """The dictionaries of one forwarder. All times are monotonic seconds."""

    def __init__(self) -> None:
        self.current: Dictionary | None = None
        """The newest that a cloud has, or had in the last start."""
        self._logs: dict[int, None] = {}  # which have it, in the order in which they got it
        self._log: int | None = None  # that of this connection; None: nothing is known yet
        self._sent_to: int | None = None
        self._last_at = float("-inf")
        self.counters = Counters()
        self._refused = False
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._count = 0
        self._since = 0.0  # the first of the ``_count`` frames
        self._next_at = float("-inf")
        self._pause = FIRST_PAUSE
        self._sent_at: deque[float] = deque(maxlen=A_DAY)
        self._under_way: dict[tuple[int, int], bytes] = {}

    def usable(self, lane: str) -> Dictionary | None:
        """Return what the next frame of ``lane`` is compressed with; the control lane brings them, and needs none."""
        return self.current if lane != CONTROL_LANE and not self._refused and self._log in self._logs else None

    def connected(self) -> None:
        """Another connection: perhaps to a receiver that knows dictionaries, perhaps to another log."""
        self._refused = False
        self._log = None
        self._logs.pop(NAMELESS, None)

    def answered(self, ack: Ack) -> bool:
        """Note to which log this connection leads; told before :meth:`settled`.

        Returns whether that is news, and the log does not have the dictionary: frames with it are of no use there.
        """
        if ack.log == self._log or (ack.log == NAMELESS and self._log is not None):
            return False
        self._log = ack.log
        return self._log not in self._logs

    def refused(self) -> None:
        """The cloud refused a frame with a dictionary: none is used until the next connection."""
        self._refused = True

    # --- on its way to the cloud ---

    def leased(self, lease: Lease, messages: Sequence[Stored], first: int) -> None:
        """Note which of ``messages`` of ``lease``, from seq ``first`` on and about to be sent, are dictionaries."""
        if lease.lane != CONTROL_LANE:
            return
        for seq, message in enumerate(messages, first):
            if message.topic == DICTIONARY_TOPIC:
                self._under_way[lease.epoch, seq] = message.payload
                if len(self._under_way) > MAX_UNDER_WAY:
                    del self._under_way[next(iter(self._under_way))]

    def settled(self, spans: Iterable[Span]) -> None:
        """Use the newest dictionary that is among these spans, which the cloud has journaled."""
        for span in spans:
            if span.lane != CONTROL_LANE or not self._under_way:
                continue
            for epoch, seq in list(self._under_way):
                if epoch == span.epoch and span.first <= seq <= span.last:
                    self._use(self._under_way.pop((epoch, seq)))

    def _use(self, content: bytes) -> None:
        try:
            found = Dictionary(content)
        except Corrupt:  # of another program's start: the cloud refuses it as well
            return
        if self.current is None or self.current.id != found.id:
            self._logs.clear()
        self.current = found
        if self._log is not None:
            self._logs[self._log] = None
            if len(self._logs) > MAX_LOGS:
                del self._logs[next(iter(self._logs))]
        self.counters.known += 1
        self._begin()  # what was sampled shows nothing of how this one does

    # --- training ---

    def sent(self, lane: str, frame: bytes, now: float) -> None:
        """Take a new frame as a sample, if it is small."""
        if lane == CONTROL_LANE or len(frame) > MAX_FRAME:
            return
        if not self._count:
            self._since = now
        self._count += 1
        self.counters.used += read_header(frame).dictionary != 0
        self._frames.append(frame)
        self._bytes += len(frame)
        while len(self._frames) > MAX_FRAMES or self._bytes > MAX_BYTES:
            self._bytes -= len(self._frames.popleft())

    def due(self, now: float) -> bool:
        """Tell whether to train now."""
        spent = len(self._sent_at) == A_DAY and now < self._sent_at[0] + DAY
        return len(self._frames) >= FEWEST and now >= self._next_at and not spent

    def sample(self, now: float) -> Sample:
        """Return what to train with, and put the next training off."""
        self._next_at = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self.counters.trained += 1
        taken = Sample(tuple(self._frames), self._count * DAY / max(now - self._since, LEAST_TIME), self.current)
        self._begin()
        return taken

    def announced(self, now: float) -> None:
        """A new one is put into the control lane. It is waited for before the next."""
        self._sent_at.append(now)
        self._sending(now)

    def again(self, now: float) -> Dictionary | None:
        """Return what is to be put into the control lane once more: the log of this connection does not have it."""
        if self.current is None or self._log is None or self._refused or self._log in self._logs:
            return None
        if now < self._last_at + (SAME_AGAIN if self._log == self._sent_to else AGAIN):
            return None
        self._sending(now)
        return self.current

    def _sending(self, now: float) -> None:
        self._sent_to, self._last_at = self._log, now
        self._next_at = max(self._next_at, now + FIRST_PAUSE)
        self.counters.sent += 1

    def _begin(self) -> None:
        self._frames.clear()
        self._bytes = self._count = 0


def train(sample: Sample) -> Dictionary | None:
    """Return a dictionary that pays for itself, or None. Takes up to a second on a small gateway."""
    bodies = _bodies(sample)
    held_out, rest = bodies[::4], [body for at, body in enumerate(bodies) if at % 4]
    try:
        made = zstd.train(rest, SIZE)
    except Corrupt:
        return None
    before = sum(len(zstd.compress(body, LEVEL, sample.present)[0]) for body in held_out)
    after = sum(len(zstd.compress(body, LEVEL, made)[0]) for body in held_out)
    cost = len(zstd.compress(made.content, LEVEL)[0]) + OVERHEAD
    saved = (before - after) / len(held_out) * sample.a_day * PAYS_WITHIN / DAY
    return made if before - after >= GAIN * before and saved >= cost else None


def _bodies(sample: Sample) -> list[bytes]:
    """Return the bodies of the frames, as they are before compression; the newest first, as many as are looked at."""
    found: list[bytes] = []
    left = MAX_RAW
    for frame in reversed(sample.frames):
        header = read_header(frame)
        if header.raw_size > zstd.SMALL:
            continue
        left -= header.raw_size
        if left < 0:
            break
        try:
            found.append(raw_body(frame, header, sample.present))
        except Corrupt:  # of a dictionary before the present one
            continue
    return found

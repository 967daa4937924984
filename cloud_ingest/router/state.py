"""What the router knows of one frames partition, and the plan of its next step. Pure."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields

from cloud_ingest.config import Topics
from cloud_ingest.journal.port import Step
from cloud_ingest.router.commands import Commands
from cloud_ingest.router.dictionaries import Dictionaries, DictionariesDraft
from cloud_ingest.router.intervals import Interval
from cloud_ingest.router.ledger import Draft, Ledger, Notice
from cloud_ingest.router.order import Held, HeldDraft, Lane
from cloud_ingest.router.routes import Routes
from waybill.wire import CommandStatus


@dataclass(frozen=True, slots=True)
class Limits:
    """The router's bounds.

    ``hold_ms``: how long a frame waits for what it follows (R7). ``hold_bytes``: memory of held frames of one
    partition.
    ``step_messages``, ``step_bytes``: a step ends with the frame that reaches either (bytes: bodies before
    compression).
    ``read_frames``: frames read at once.
    """

    hold_ms: int = 30_000
    hold_bytes: int = 64 << 20
    step_messages: int = 8_000
    step_bytes: int = 8 << 20
    read_frames: int = 32


@dataclass(slots=True)
class Counters:
    """What happened since the start, in messages where nothing else is said."""

    frames: int = 0
    routed: int = 0
    copies: int = 0
    dead: int = 0
    dropped: int = 0
    given_up: int = 0
    frames_held: int = 0
    frames_given_up: int = 0
    statuses: int = 0
    receipts: int = 0
    dictionaries: int = 0

    def add(self, other: Counters) -> None:
        """Add ``other`` to this."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(slots=True)
class Plan:
    """One step and the state after it. ``consumed``: how many of the records given are done with (routed or held).

    ``cut``: frames that a limit cut off: offset -> how many of their messages were planned so far.
    ``messages``: how many were planned, of the ``limit``. ``more``: whether there is more to plan without reading on.
    """

    step: Step
    ledger: Draft
    held: HeldDraft
    dictionaries: DictionariesDraft
    unfinished: dict[Lane, None]
    position: int
    newest_ms: int
    cut: dict[int, int]
    consumed: int = 0
    messages: int = 0
    more: bool = False
    statuses: list[CommandStatus] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)

    @property
    def notices(self) -> list[Notice]:
        """What a person should know."""
        return self.ledger.notices


class Partition:
    """What the router knows of one frames partition, as of the last commit."""

    def __init__(self, number: int, topics: Topics, routes: Routes, commands: Commands, limits: Limits) -> None:
        """Start with an empty ledger at offset 0; see ``resume``."""
        self.number = number
        self.topics = topics
        self.routes = routes
        self.commands = commands
        self.limits = limits
        self.counters = Counters()
        self.partitions = 0
        """How many frames partitions there are, where gateways may have moved to others; else 0."""
        self.refused: dict[str, str] = {}
        """Topics that the log refuses at present, and why: their records become dead letters (R5)."""
        self.cleared = sys.maxsize
        """From this offset on earlier frames of a gateway may be elsewhere: no gap is given up for its time (R7)."""
        self.resume(Ledger(), Dictionaries(), 0, 0)

    def resume(self, ledger: Ledger, dictionaries: Dictionaries, start: int, lost: int) -> None:
        """Begin at journal offset ``start`` with what is stored; ``lost`` frames before were deleted unrouted (R8)."""
        self.ledger = ledger
        self.dictionaries = dictionaries
        self.held = Held()
        self.unfinished: dict[Lane, None] = {}
        self.position = self.committed = start
        self.newest_ms = 0
        self.cut: dict[int, int] = {}
        self.lost: Interval | None = (start - lost + 1, start) if lost else None

    def is_overdue(self, log_ms: int) -> bool:
        """Tell whether by the log's clock, but not yet by ``cleared``, a gap is to be given up (R7)."""
        oldest = next(iter(self.held.frames.values()), None)
        if oldest is None or oldest.offset < self.cleared:
            return False
        return oldest.record.stamp_ms + self.limits.hold_ms <= log_ms

    def adopt(self, plan: Plan) -> None:
        """Make ``plan`` the truth: its commit has returned (R3)."""
        self.ledger.adopt(plan.ledger)
        self.held.adopt(plan.held)
        self.dictionaries.adopt(plan.dictionaries)
        self.unfinished = plan.unfinished
        self.cut = plan.cut
        self.position = plan.position
        self.committed = plan.step.next_offset
        self.newest_ms = plan.newest_ms
        self.lost = None
        self.counters.add(plan.counters)
        for status in plan.statuses:
            self.commands.note(status)

"""Everything that waits for one commit: the batch, and what is to be done when it has returned or failed. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from waybill.mqtt.resend import Commit
from waybill.mqtt.state import Batch, InboundHeld, Queued, ResendFrozen, RetainCleared, Retained

if TYPE_CHECKING:
    from collections.abc import Callable

    from waybill.mqtt.connection import Connection
    from waybill.mqtt.resend import Chunk, Entry
    from waybill.mqtt.session import Outgoing, Session
    from waybill.mqtt.settings import OnMessage
    from waybill.mqtt.state import Change

NOT_INHERITED = (Queued, InboundHeld, Retained, RetainCleared, ResendFrozen)
"""Changes that fall when their commit fails: what a publish made, and memories, which are written anew (``frozen``).

All others are facts and go into the next batch.
"""


class Route:
    """Who gets the messages of one topic: sessions with the QoS granted, and subscriptions of the program."""

    __slots__ = ("callbacks", "targets")

    def __init__(self, targets: tuple[tuple[Session, int], ...], callbacks: tuple[OnMessage, ...]) -> None:
        self.targets = targets
        self.callbacks = callbacks


QUIET = Route((), ())
"""Nobody."""


class Ticket:
    """What one connection is owed when a commit returns. ``out``: packets.

    ``size``: uncommitted bytes it stands for.
    """

    __slots__ = ("acks", "chunks", "connection", "copies", "out", "size")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.out: list[bytes] = []
        self.chunks: list[Chunk] = []
        self.copies: list[Entry] = []
        self.size = 0
        self.acks = 0


class Pending:
    """One batch in the making.

    ``mark``: its identity, for the resend memory. ``frozen``: clients whose memory is to be written, and the place
    among the arrivals.
    ``queued``: messages for persistent sessions. ``deliveries``: route, topic, payload, flags, client, for all others.
    ``after``: called with None when the commit returned, else with its error. ``undo``: called when it failed, last
    first.
    ``concerned``: connections to be closed then besides those with a ticket. ``clients``: whose messages it stores.
    ``sessions``: clients whose CONNACK must wait for it.
    """

    __slots__ = (
        "after",
        "batch",
        "clients",
        "concerned",
        "deliveries",
        "frozen",
        "mark",
        "queued",
        "sessions",
        "tickets",
        "undo",
        "woken",
    )

    def __init__(self) -> None:
        self.batch = Batch()
        self.mark = Commit()
        self.tickets: list[Ticket] = []
        self.frozen: dict[str, int] = {}
        self.queued: list[tuple[Session, Outgoing]] = []
        self.deliveries: list[tuple[Route, bytes, bytes, int, str]] = []
        self.after: list[Callable[[Exception | None], None]] = []
        self.undo: list[Callable[[], object]] = []
        self.concerned: set[Connection] = set()
        self.clients: set[str] = set()
        self.sessions: set[str] = set()
        self.woken = False

    def inherit(self, failed: Pending) -> None:
        """Take over the facts of a batch whose commit failed; they come first."""
        facts: list[Change] = [change for change in failed.batch.changes if not isinstance(change, NOT_INHERITED)]
        self.batch.changes[:0] = facts
        self.sessions |= failed.sessions
        self.frozen = dict.fromkeys(failed.frozen, 0) | self.frozen

"""Everything that waits for one commit: the batch, and what is to be done when it has returned or failed. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from waybill.mqtt.resend import Commit
from waybill.mqtt.state import Batch, InboundHeld, Queued, ResendFrozen, RetainCleared, Retained

if TYPE_CHECKING:
    from collections.abc import Callable

    from waybill.mqtt.connection import Connection
    from waybill.mqtt.groups import Grant, Group
    from waybill.mqtt.properties import Content
    from waybill.mqtt.resend import Chunk, Entry
    from waybill.mqtt.session import Outgoing, Session
    from waybill.mqtt.settings import OnMessage
    from waybill.mqtt.state import Change

Target: TypeAlias = "tuple[Session, Grant, Group | None]"
"""Who gets a message, under which grant, and the shared subscription that chose it."""

NOT_INHERITED = (Queued, InboundHeld, Retained, RetainCleared, ResendFrozen)
"""Changes that fall when their commit fails: what a publish made, and memories, which are written anew (``frozen``).

All others are facts and go into the next batch.
"""


Delivery: TypeAlias = "tuple[tuple[Target, ...], tuple[OnMessage, ...], bytes, bytes, int, Content, int, str]"
"""A message for those who get it, a plain tuple because one is made for every message.

Targets, callbacks, topic, payload, flags, properties, when it expires (on the broker's clock, 0: never), and the client
that published it.
"""


class Route:
    """Who gets the messages of one topic: sessions with what they were granted, and subscriptions of the program.

    ``groups``: of shared subscriptions, one member each. ``plain``: the targets are the same for every message.
    ``late``: and none of them keeps messages, so that all waits for the commit.
    """

    __slots__ = ("callbacks", "groups", "late", "plain", "targets")

    def __init__(
        self, targets: tuple[Target, ...], groups: tuple[Group, ...] = (), callbacks: tuple[OnMessage, ...] = ()
    ) -> None:
        self.targets = targets
        self.groups = groups
        self.callbacks = callbacks
        self.plain = not groups and all(grant.own is grant for _, grant, _ in targets)
        self.late = self.plain and not any(session.persistent for session, _, _ in targets)


QUIET = Route(())
"""Nobody."""


class Ticket:
    """What one connection is owed when a commit returns. ``out``: packets.

    ``proves``: of which remembered messages they are the last acks, None for none.
    ``size``: uncommitted bytes it stands for. ``quota``: how many messages of the client it ends (Receive Maximum).
    """

    __slots__ = ("acks", "connection", "out", "proves", "quota", "size")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.out: list[bytes] = []
        self.proves: list[Chunk | Entry] | None = None
        self.size = 0
        self.acks = 0
        self.quota = 0

    def prove(self, what: Chunk | Entry) -> None:
        """Note what the last of the packets so far is an ack of."""
        if self.proves is None:
            self.proves = [what]
        else:
            self.proves.append(what)


class Pending:
    """One batch in the making.

    ``mark``: its identity, for the resend memory. ``frozen``: clients whose memory is to be written, and the place
    among the arrivals.
    ``queued``: messages for persistent sessions. ``deliveries``: for all others.
    ``after``: called with None when the commit returned, else with its error. ``undo``: called when it failed, last
    first.
    ``concerned``: connections to be closed then besides those with a ticket. ``sessions``: clients whose CONNACK must
    wait for it.
    """

    __slots__ = (
        "after",
        "batch",
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
        self.deliveries: list[Delivery] = []
        self.after: list[Callable[[Exception | None], None]] = []
        self.undo: list[Callable[[], object]] = []
        self.concerned: set[Connection] = set()
        self.sessions: set[str] = set()
        self.woken = False

    def withdraw(self, session: Session, goes: Callable[[Outgoing], bool]) -> list[Outgoing]:
        """Take back what is to be queued for a session and ``goes``; return it. The changes stay as they are."""
        outs = [out for owner, out in self.queued if owner is session and goes(out)]
        if outs:
            gone = set(map(id, outs))
            self.queued = [each for each in self.queued if id(each[1]) not in gone]
            for out in outs:
                session.cancel(out)
        return outs

    def inherit(self, failed: Pending) -> None:
        """Take over the facts of a batch whose commit failed; they come first."""
        facts: list[Change] = [change for change in failed.batch.changes if not isinstance(change, NOT_INHERITED)]
        self.batch.changes[:0] = facts
        self.sessions |= failed.sessions
        self.frozen = dict.fromkeys(failed.frozen, 0) | self.frozen

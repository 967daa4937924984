"""The buffer's port: the only hand-off inside the agent (D1). Writers append; the forwarder leases and settles.

Everything that one call changes is one SQLite transaction, committed with ``synchronous=FULL`` before the call returns.
``seq`` counts from 1 without a gap within one epoch's lane and is assigned inside that transaction (B1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from waybill.mqtt.state import Change, SavedState
from waybill.wire import Envelope, Receipt, Span

LOCAL: Final = ""
"""The lane of a chunk that goes nowhere: its topics stay at the gateway."""


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Consecutive PUBLISH packets of one connection for one lane, as they came in (``raw``), to be stored whole.

    ``keep``: how many of this client's remembered earlier publishes were not proven acknowledged at this arrival (O1,
    O3).
    ``count``: packets in ``raw``. ``version``: MQTT protocol level of the packets (4 or 5).
    ``remembered``: how many of them the resend memory is about: QoS 1 or 2 with a packet id other than 0.
    ``lane`` LOCAL: the messages stay here; only the resend memory of their client is kept, with ``raw`` holding just
    what has a packet id.
    """

    lane: str
    client: str
    version: int
    wall_ms: int
    mono_ns: int
    keep: int
    count: int
    raw: bytes
    remembered: int = 0


@dataclass(frozen=True, slots=True)
class Own:
    """A message of the agent itself for the control lane."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A device's answer on ``cmd/{device}/{id}/res``. Ignored where the outbox has no such open command (C2)."""

    id: str
    device: str
    payload: bytes
    at_ms: int


@dataclass(slots=True)
class Commit:
    """One transaction of the writer.

    What devices published, what it did to sessions, answers to commands, own messages. ``at`` of a ResendFrozen among
    ``changes`` is an index of ``chunks`` here: in force just before that chunk.
    """

    chunks: list[Chunk] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    results: list[CommandResult] = field(default_factory=list)
    own: list[Own] = field(default_factory=list)


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A message as it is read back from the buffer. ``flags``: bits 0-1 QoS, 2 retain, 3 replayed (DUP was set).

    ``wall_ms``, ``mono_ns``: the stamp, as of :class:`Chunk`.
    """

    topic: str
    client: str
    wall_ms: int
    flags: int
    payload: bytes
    properties: bytes = b""
    mono_ns: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """Where a lane's reader stands: the epoch's ordinal and the last seq read.

    The ordinal is the epoch's place in this buffer: 1, 2, … in order of starts.
    """

    ordinal: int
    seq: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Messages ``first..first+len(messages)-1`` of one epoch's lane, with what the frame header says of them (E2, E4).

    ``end``: the position after the last message; pass it to the next lease.
    ``prev_epoch``, ``prev_last``: the previous epoch that assigned a seq in this lane and its last seq; 0, 0 if none.
    ``oldest_epoch``: the lane's oldest epoch that still has unsettled messages.
    ``boot``: the boot id that the stamps are of (:mod:`edge_agent.clock`).
    """

    lane: str
    epoch: int
    prev_epoch: int
    prev_last: int
    oldest_epoch: int
    first: int
    messages: Sequence[Stored]
    end: Position
    boot: str = ""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in a lane.

    ``oldest_ms``: wall time of its oldest message, None where it is empty. ``bytes``: as stored. ``dropped``,
    ``expired``: messages since the start that left with a receipt, for want of room or by their TTL.
    """

    lane: str
    count: int
    bytes: int
    oldest_ms: int | None
    dropped: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A command that its device has not answered yet."""

    id: str
    device: str
    name: str
    payload: bytes
    expires_ms: int


class Buffer(Protocol):
    """The durable buffer of one agent. One process a data directory (B3)."""

    @property
    def epoch(self) -> int:
        """The random epoch of this start (E1), 1..2**63-1."""

    async def restore(self) -> SavedState:
        """Return sessions, queues, retained messages and resend memories as of the last commit (O3)."""

    async def commit(self, commit: Commit) -> None:
        """Make everything in ``commit`` durable, then return.

        While the disk is full or failing this waits and tries again (``fault`` says why); nothing is acknowledged
        meanwhile. Raises Unavailable only when the buffer is closed while it waits.
        """

    async def lease(self, lane: str, after: Position | None, count: int, size: int) -> Lease | None:
        """Return the next messages after ``after`` (None: the oldest unsettled).

        At most ``count`` of them and about ``size`` payload bytes.

        At least one message where there is any; None where there is none. A block that fails its checksum is set
        aside and a receipt for it is written; reading goes on behind it. Changes nothing else.
        Waits while the file cannot be read; raises Unavailable once the buffer is closed.
        """

    async def lease_newest(
        self, lane: str, under_way: Sequence[tuple[int, int, int]], count: int, size: int
    ) -> Lease | None:
        """Return the newest unsettled messages that are not ``under_way``, in order of seq; else as :meth:`lease`.

        ``under_way``: ordinals of epochs, first and last seqs of what is on its way already. The run that is returned
        ends where the newest one ends, or, where its messages are larger than others of the lane, before that.
        """

    async def settle(self, spans: Sequence[Span]) -> int:
        """Forget messages that the cloud has journaled (or that a receipt declares): delete blocks wholly covered.

        The resend memory of their clients outlives them in the same transaction (O3). Unknown spans are ignored.
        Returns how many messages that were, at once, and they are not leased any more; the deletion is made durable
        with the next commit or a little later. A crash before that only sends them again, which the ledger tells.
        """

    async def give_up(self, receipt: Receipt) -> None:
        """Write ``receipt`` to the control lane and settle its span, in one transaction.

        This is how a message leaves that the cloud refused for good (U4). Raises Unavailable where that cannot be
        written now; nothing has changed then.
        """

    async def receive(self, envelope: Envelope, now_ms: int) -> bool:
        """Put a command into the outbox with its ``delivered`` status on the control lane, in one transaction (C2).

        Returns False, and changes nothing, where the id is known or the envelope has expired. Raises Unavailable
        where it cannot be written now, or the outbox is full: it does not wait, because acks come the same way.
        """

    async def outbox(self, now_ms: int) -> Sequence[OutboxEntry]:
        """Return the open commands that have not expired, oldest first.

        Forget ids whose expiry and margin have passed. Raises Unavailable where the file cannot be used now.
        """

    async def changed(self) -> None:
        """Wait until something was appended since the last call returned."""

    def backlog(self) -> Sequence[Backlog]:
        """Return the counts of every lane, from memory."""

    @property
    def refusing(self) -> frozenset[str]:
        """Names of the lanes that have no room now and are to take nothing.

        What comes nevertheless is stored, or waits, as far as the reserve of the buffer goes.
        """

    @property
    def fault(self) -> str:
        """Why commits do not get through at present (disk full, I/O error, cap), or an empty string."""

    async def close(self) -> None:
        """Checkpoint and close; waits for the commit under way."""

"""The cloud's log: one port over Apache Kafka and over the embedded log (one SQLite file). One contract suite for both.

The listener appends frames. The router owns frames partitions: for each it reads frames and commits steps. Everything
in one :class:`Step` becomes visible at once or not at all, together with the offset (a Kafka transaction; a SQLite
transaction).
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from waybill.fleet_state import Broker

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """A frame in the journal. ``stamp_ms``: when the log took it (the log's clock), milliseconds since 1970 UTC."""

    partition: int
    offset: int
    stamp_ms: int
    gateway: str
    frame: bytes


class OutRecord(NamedTuple):
    """A record to be written. ``key`` decides the partition (murmur2).

    Its Kafka timestamp is the time of writing (R6).
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(slots=True)
class Step:
    """What a router step writes, atomically.

    ``records``: data, dead letters and command statuses, in order. ``ledger``: key -> entry (None: forget), written
    to the ledger's partition of the same number as the frames partition (R4). ``next_offset``: the first journal
    offset that is not done. ``dictionaries``: likewise of the dictionaries topic (R10).
    """

    records: list[OutRecord] = field(default_factory=list)
    ledger: dict[bytes, bytes | None] = field(default_factory=dict)
    next_offset: int = 0
    dictionaries: dict[bytes, bytes | None] = field(default_factory=dict)


class TopicRecord(NamedTuple):
    """A record as read back. ``stamp_ms``: the record's timestamp."""

    topic: str
    partition: int
    offset: int
    stamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class CaughtUp(NamedTuple):
    """Said once by ``follow`` when everything that was there at its start has been yielded."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A frames partition as found by its new owner, after fencing (R2).

    ``start``: offset from which ``read`` goes on (the committed one, or the log's start where there is none).
    ``log_start``: the oldest offset that the journal still has; frames between the committed offset and it were deleted
    unrouted (R8) where ``lost`` > 0. ``ledger``, ``dictionaries``: key -> the newest value in these topics.
    ``partitions``: how many frames partitions there are now; frames of gateways that are another's by that are put into
    the journal again. 0: as many as ever, and all frames are this one's. ``cleared``: below this offset frames of its
    gateways have all before them in this partition; beyond, ``PartitionLog.cleared`` says.
    """

    ledger: Mapping[bytes, bytes]
    start: int
    log_start: int
    lost: int = 0
    dictionaries: Mapping[bytes, bytes] = field(default_factory=dict)
    partitions: int = 0
    cleared: int = sys.maxsize


class Cleared(NamedTuple):
    """Of frames below ``offset`` all that their gateways sent before them is in what was read of this partition.

    As far as it is in the journal at all. ``waits``: what has to happen before there is more to say, empty where only
    reading on has.
    """

    offset: int
    waits: str = ""


class TopicSeen(NamedTuple):
    """A topic as it is now. ``offsets``: of each partition its first offset and the next one, by its number."""

    replicas: int
    under_replicated: int
    offline: int
    offsets: tuple[tuple[int, int], ...]


class Described(NamedTuple):
    """What the log says of itself: brokers, where it has any, and those of the topics asked for that are there."""

    brokers: tuple[Broker, ...]
    topics: Mapping[str, TopicSeen]


class PartitionLog(Protocol):
    """One frames partition, owned and fenced by this process (R1, R2)."""

    @property
    def partition(self) -> int:
        """The number of the frames partition."""

    async def load(self) -> Loaded:
        """Fence whoever owned it, finish their transaction, then read what is stored of it. May be called again (R3).

        Raises Fenced, Unavailable.
        """

    async def read(self, count: int, wait: float) -> tuple[Sequence[JournalRecord], bool]:
        """Return the next frames, at most ``count``, waiting ``wait`` seconds at most, and whether the end was reached.

        Raises Fenced, Unavailable.
        """

    def rewind(self, offset: int) -> None:
        """Read again from ``offset``."""

    async def commit(self, step: Step) -> None:
        """Write ``step`` atomically.

        Raises RecordRefused (some record is refused for good; nothing was written; the partition's producer was made
        anew), TopicRefused (a whole topic is; nothing was written), Fenced (let go), Unavailable (outcome unknown:
        ``load`` again).
        """

    async def log_start(self) -> int:
        """Return the oldest offset that the journal still has (E4)."""

    def cleared(self) -> Cleared:
        """Say up to which offset gaps may be given up (R7).

        Where partitions were added, frames may be in the one that the gateway was in before. Asking makes it look
        there; it is to be asked again, and to be read on meanwhile, until the answer is far enough.
        """


class Log(Protocol):
    """The log of one deployment, opened once a process."""

    @property
    def partitions(self) -> int:
        """How many frames partitions (and ledger partitions) there are."""

    @property
    def log_id(self) -> int:
        """Which log this is: 1 … 2⁶³−1, the same for all nodes, another once it was wiped; 0 where that is not known.

        Gateways send their dictionary to each log that does not have it yet (R10).
        """

    @property
    def busy_s(self) -> float:
        """Seconds for which the writer's present work has been with this machine's disk; 0 while it has none."""

    async def start(self) -> None:
        """Connect; create the topics with the right settings, or check them. Raises ConfigError, Unavailable."""

    async def append_frame(self, gateway: str, frame: bytes, partition: int | None = None) -> None:
        """Journal a frame; durable on return. Raises Unavailable (say ``retry``), Refused (too large for the topic).

        ``partition``: where the gateway's own does not decide.
        """

    async def append(self, record: OutRecord) -> None:
        """Append one record to a topic; durable on return. Raises Unavailable, Refused."""

    def follow(
        self, topics: Sequence[str], *, only: int | None = None, end: bool = False
    ) -> AsyncIterator[TopicRecord | CaughtUp]:
        """Yield the records of ``topics`` from their start (committed ones only), then CaughtUp, then new ones.

        ``only``: a single partition. ``end``: stop after CaughtUp. Order holds within a partition.
        """

    def unrouted(self) -> AsyncGenerator[TopicRecord, None]:
        """Yield the frames in the journal that the routers are not done with, as of now, then end. Key: the gateway.

        What is routed meanwhile may be among them. Raises Unavailable, TopicRefused (no such topic).
        """

    async def describe(self, topics: Collection[str]) -> Described:
        """Say how brokers and ``topics`` are now. Raises Unavailable."""

    async def own_partitions(self, route: Callable[[PartitionLog], Awaitable[None]]) -> None:
        """Run ``route`` as a task for each partition that this process owns, until cancelled.

        A partition that is taken away has its task cancelled.
        """

    async def close(self) -> None:
        """Flush within a bounded time and close."""

"""A gateway's side of the journal: frames of numbered messages, and what a reader finds of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from cloud_ingest.config import Route, Topics
from cloud_ingest.journal.port import JournalRecord, OutRecord
from cloud_ingest.router.commands import Commands
from cloud_ingest.router.dictionaries import Dictionaries
from cloud_ingest.router.ledger import Ledger
from cloud_ingest.router.routes import Routes
from cloud_ingest.router.state import Limits, Partition, Plan
from cloud_ingest.router.step import plan
from waybill.frames import Dictionary, Durability, Order, Row, encode_plain, zstd
from waybill.wire import COMMAND_STATUS_TOPIC, CONTROL_LANE, RECEIPT_TOPIC, CommandStatus, Receipt

BASE_MS = 1_790_000_000_000
TOPICS = Topics(partitions=1)
ROUTES = Routes([Route(topic="fleet.telemetry")])


@dataclass(frozen=True, slots=True)
class Epoch:
    """One start of a gateway, in one lane. ``frame`` makes frames of it; a payload is ``{epoch}:{seq}``."""

    epoch: int
    prev: int = 0
    prev_last: int = 0
    oldest: int = 0
    lane: str = "telemetry"
    order: Order = "fifo"
    durability: Durability = "every-commit"
    topic: str = "vehicles/V7/telemetry"

    def frame(
        self,
        first: int,
        last: int,
        *,
        topics: Sequence[str] = (),
        payloads: Sequence[bytes] = (),
        dictionary: Dictionary | None = None,
    ) -> bytes:
        """Return messages ``first..last`` as a frame; ``topics`` in turn, else all of ``topic``."""
        names = topics or [self.topic]
        rows: list[Row] = [
            (seq % len(names), seq, 1, payloads[seq - first] if payloads else b"%d:%d" % (self.epoch, seq), b"")
            for seq in range(first, last + 1)
        ]
        return encode_plain(
            epoch=self.epoch,
            prev_epoch=self.prev,
            prev_last=self.prev_last,
            oldest_epoch=self.oldest or self.prev or self.epoch,
            lane=self.lane,
            order=self.order,
            durability=self.durability,
            clock="synced",
            first=first,
            base_ms=BASE_MS,
            sources=[(name, "V7") for name in names],
            rows=rows,
            dictionary=dictionary,
        )


def trained(seed: int = 0) -> Dictionary:
    """Return a dictionary for messages of such epochs; each seed's is another."""
    samples = [b"vehicles/V7/telemetry V7 %d:%d of kind %d" % (n % 7, n, seed) for n in range(200)]
    return zstd.train(samples, 1024)


def control(epoch: int, first: int, *messages: Receipt | CommandStatus | tuple[str, bytes]) -> bytes:
    """Return a frame of the control lane with ``messages``, the first with seq ``first``."""
    topics, payloads = [], []
    for message in messages:
        if isinstance(message, tuple):
            topics.append(message[0])
            payloads.append(message[1])
        else:
            topics.append(RECEIPT_TOPIC if isinstance(message, Receipt) else COMMAND_STATUS_TOPIC)
            payloads.append(msgspec.json.encode(message))
    return encode_plain(
        epoch=epoch,
        prev_epoch=0,
        prev_last=0,
        oldest_epoch=epoch,
        lane=CONTROL_LANE,
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=first,
        base_ms=BASE_MS,
        sources=[(topic, "agent") for topic in topics],
        rows=[(at, 0, 1, payload, b"") for at, payload in enumerate(payloads)],
    )


def receipt(epoch: Epoch, first: int, last: int, reason: str = "evicted") -> Receipt:
    """Return the receipt of ``first..last`` of ``epoch``."""
    count = last - first + 1
    return Receipt(epoch.epoch, epoch.lane, epoch.prev, epoch.prev_last, first, last, count, count * 10, reason)


class Bench:
    """A partition's state with a journal of its own and a clock that a test sets: plans, and adopts what it planned."""

    def __init__(
        self,
        *,
        routes: Routes = ROUTES,
        limits: Limits | None = None,
        commands: Commands | None = None,
        topics: Topics = TOPICS,
    ) -> None:
        """Start at offset 0 with an empty ledger."""
        self.commands = commands or Commands(lambda _: True)
        self.state = Partition(0, topics, routes, self.commands, limits or Limits())
        self.ledger: dict[bytes, bytes] = {}
        self.dictionaries: dict[bytes, bytes] = {}
        self.written: list[OutRecord] = []
        self.journal: list[JournalRecord] = []
        self.now = BASE_MS
        self.last: Plan | None = None

    def feed(self, *frames: bytes, gateway: str = "gw", at_end: bool = False) -> list[OutRecord]:
        """Journal ``frames`` now, route them, and return the records that this wrote."""
        for frame in frames:
            self.journal.append(JournalRecord(0, len(self.journal), self.now, gateway, frame))
        return self.step(at_end=at_end)

    def step(self, *, at_end: bool = False, limit: int | None = None, log_start: int | None = None) -> list[OutRecord]:
        """Route what was not read yet; return the records that this wrote."""
        before = len(self.written)
        while made := self.plan(at_end=at_end, limit=limit, log_start=log_start):
            self.commit(made)
            log_start = None
            if not made.more:
                break
        return self.written[before:]

    def plan(
        self, *, at_end: bool = False, limit: int | None = None, condemned: str = "", log_start: int | None = None
    ) -> Plan | None:
        """Plan the next step over what was not read yet."""
        rest = self.journal[self.state.position :]
        return plan(self.state, rest, self.now, at_end=at_end, limit=limit, condemned=condemned, log_start=log_start)

    def commit(self, made: Plan) -> None:
        """Do what a log does with a step, then adopt it."""
        self.written += made.step.records
        for key, value in made.step.ledger.items():
            if value is None:
                self.ledger.pop(key, None)
            else:
                self.ledger[key] = value
        for key, value in made.step.dictionaries.items():
            if value is None:
                self.dictionaries.pop(key, None)
            else:
                self.dictionaries[key] = value
        self.state.adopt(made)
        self.last = made

    def restart(self) -> None:
        """Start anew from what was committed."""
        self.state.resume(Ledger.load(self.ledger, 0), Dictionaries.load(self.dictionaries), self.state.committed, 0)

    @property
    def notices(self) -> list[str]:
        """The texts of the last plan's alarms."""
        return [notice.text for notice in self.last.notices if notice.alarm is not None] if self.last else []


def values(records: Iterable[OutRecord], topic: str = "fleet.telemetry") -> list[str]:
    """Return the values written to ``topic``, in order."""
    return [(record.value or b"").decode() for record in records if record.topic == topic]


def expected(epoch: int, first: int, last: int) -> list[str]:
    """Return the payloads of ``first..last``."""
    return [f"{epoch}:{seq}" for seq in range(first, last + 1)]


def header(record: OutRecord, name: str) -> bytes:
    """Return the only header ``name`` of ``record``."""
    (value,) = [value for key, value in record.headers if key == name]
    return value

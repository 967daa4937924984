"""One frames partition on Kafka, fenced (R1), loaded (R2), read and written in transactions (R3–R6, R8).

The transactional id is ``{deployment}.{partition}``: starting its producer fences whoever had it and finishes their
transaction. Frames are read by a group-less consumer of the partition's own, which exists only after :meth:`load`, so a
record of a partition that is not ready cannot be seen at all, and one partition's backlog never holds up another.

Each commit puts a token into the metadata of the group's offset. Where the producer must be made anew without a load
(after a refused record, R5), the token tells whether somebody else committed in between: a compare-and-swap, without
which a worker that was paused there would fence its successor and write from a memory that is no longer true.

Where a deployment was without transactions before (:mod:`cloud_ingest.journal.kafka_plain`), its offset is in the
ledger: it counts instead of the group's, and the first step takes it away.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, errors
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata

from cloud_ingest.journal.kafka_append import RENEW_AT
from cloud_ingest.journal.kafka_batches import Batch, Filling, Shape
from cloud_ingest.journal.kafka_client import (
    FAILURES,
    FENCED,
    REFUSED_RECORD,
    REFUSED_TOPIC,
    discard,
    forsake,
    reason,
    seen,
    started,
    translated,
)
from cloud_ingest.journal.kafka_config import KafkaConfig
from cloud_ingest.journal.kafka_growth import Count, count_key, count_of, handed_over
from cloud_ingest.journal.kafka_handover import Handover
from cloud_ingest.journal.kafka_stragglers import Stragglers
from cloud_ingest.journal.kafka_table import read_table
from cloud_ingest.journal.port import Cleared, JournalRecord, Loaded, Step, TopicRecord
from waybill.errors import Fenced, RecordRefused, TopicRefused, Unavailable

log = logging.getLogger(__name__)

FRESH: Final = 2.0
"""Seconds for which the broker's word about the partition's end is believed; it speaks twice a second at least."""

LOG_APPEND_TIME: Final = 1
"""A record's timestamp type where the broker stamped it (Kafka protocol, record batch, attributes bit 3)."""

ENDING: Final = 1.0
"""Seconds that a cancelled commit has to end, and that a failed one has to be taken back."""

LOG_START_AGE: Final = 30.0
"""Seconds for which the log's start is remembered. It only ever grows, so an old one errs on the safe side (E4)."""


def place_key(group: str, partition: int) -> bytes:
    """Return the ledger's key of the offset of ``group``, where Kafka itself does not keep it."""
    return f"#{group}/{partition}/next".encode()


class Cluster(Protocol):
    """What a partition needs of the log it belongs to."""

    config: KafkaConfig
    deployment: str
    group: str
    configured: int
    hands_over: bool
    frames: str
    ledger: str
    dictionaries: str

    def producer(self, **options: Any) -> AIOKafkaProducer: ...  # noqa: ANN401, D102
    def consumer(self, **options: Any) -> AIOKafkaConsumer: ...  # noqa: ANN401, D102
    async def bounds(self, place: TopicPartition) -> tuple[int, int]:
        """First offset and high watermark. Raises Unavailable."""

    async def committed(self, place: TopicPartition) -> tuple[int, str]:
        """Return the group's offset (-1: none) and its metadata. Raises Unavailable."""

    def grown(self, partitions: int) -> None:
        """Note how many frames partitions there are."""

    def unrouted(self, upto: Mapping[TopicPartition, int]) -> AsyncGenerator[TopicRecord, None]:
        """Yield the frames of ``upto`` below its offsets that are not routed. Raises Unavailable."""

    async def shape(self, topic: str, producer: AIOKafkaProducer) -> Shape:
        """Return partitions and limit of ``topic``. Raises TopicRefused, Unavailable."""


class KafkaPartition:
    """The PartitionLog port (see there) over Kafka."""

    def __init__(self, cluster: Cluster, partition: int) -> None:
        """Belong to ``cluster``; nothing is opened before ``load``."""
        self._cluster = cluster
        self._config = cluster.config
        self._partition = partition
        self._frames = TopicPartition(cluster.frames, partition)
        self._ledger = TopicPartition(cluster.ledger, partition)
        self._dictionaries = TopicPartition(cluster.dictionaries, partition)
        self._producer: AIOKafkaProducer | None = None
        self._reader: AIOKafkaConsumer | None = None
        self._name = secrets.token_hex(8)
        self._steps = 0
        self._since_ms = 0
        """When the broker says that it wrote the frame read last; surely passed, whatever this node's clock says."""
        self._token: str | None = None
        """What the group's offset bears if nobody else committed; None: load first."""
        self._count_key = count_key(partition)
        self._place = place_key(cluster.group, partition)
        self._handover = Handover(cluster, self._frames)
        self._stragglers = Stragglers(cluster, self._frames, Count(0))
        self.position = 0
        """How far was read."""
        self._placed = False
        """Whether the ledger holds the offset."""
        self._table_ends: dict[TopicPartition, int] = {}
        self._written: dict[tuple[str, int], int] = {}
        self._log_start: tuple[int, float] | None = None
        self._answered = 0.0
        self.fenced = False
        """Somebody else owns it by now; nothing but a new assignment brings it back (R3)."""

    @property
    def partition(self) -> int:
        """The number of the frames partition."""
        return self._partition

    def __repr__(self) -> str:
        return f"{self._cluster.frames}/{self._partition}"

    # --- load (R2) ---

    async def load(self) -> Loaded:
        """Fence, then read ledger, dictionaries and offset, then stand at the offset. Raises Fenced, Unavailable."""
        self._check()
        self._token = None
        await self._drop(abort=False)
        self._producer = await self._fence()
        # Only now: before the fence the old owner could still write.
        offset, token = await self._cluster.committed(self._frames)
        ledger = await self._table(self._ledger)
        placed = ledger.pop(self._place, None)
        self._placed = placed is not None
        if placed is not None:
            offset = int(placed)
        dictionaries = await self._table(self._dictionaries)
        count = count_of(ledger.get(self._count_key), self._partition, self._cluster.configured)
        if not count.partitions:
            raise Unavailable(f"{self!r}: it is new, and its gateways are not handed over yet")
        log_start, end = await self._cluster.bounds(self._frames)
        self._log_start = (log_start, time.monotonic())
        start, lost = offset, 0
        if offset < 0:
            start = log_start
        elif offset < log_start:
            start, lost = log_start, log_start - offset
            log.error("%r: %d frames were deleted before they were routed (R8); lengthen retention.ms", self, lost)
        elif offset > end:
            start = log_start
            log.error(
                "%r: the group's offset %d is past the end %d: the topic was made anew; read from its start",
                self,
                offset,
                end,
            )
        reader = self._cluster.consumer(
            isolation_level="read_committed", max_partition_fetch_bytes=2 << 20, fetch_max_wait_ms=250
        )
        reader.assign([self._frames])
        await started(reader, self._config.request, f"{self!r}: reading")
        reader.seek(self._frames, start)
        self._reader = reader
        self._answered = time.monotonic()
        self._token = token
        self.position = start
        if (made := await self._handover.due(count, self._producer.client, start, end)) is not None:
            await self._hand_over(count, made, {self._ledger.topic: ledger, self._dictionaries.topic: dictionaries})
            count = made
        self._cluster.grown(count.partitions)
        await self._stragglers.close()
        self._stragglers = Stragglers(self._cluster, self._frames, count)
        ledger.pop(self._count_key, None)
        cleared = 0 if count.ancestors else sys.maxsize
        return Loaded(ledger, start, log_start, lost, dictionaries, count.partitions, cleared)

    async def _hand_over(self, count: Count, made: Count, tables: Mapping[str, dict[bytes, bytes]]) -> None:
        """Write what is another's among ``made.partitions`` to them, and take it out of ``tables``, the ledger first.

        Raises Fenced, Unavailable.
        """
        written = handed_over(tables, self._partition, count.partitions, made)

        async def fill(producer: AIOKafkaProducer) -> list[Batch]:
            shapes = {table: await self._cluster.shape(table, producer) for table in tables}
            filling = Filling(shapes)
            for table, found in written.items():
                for target, entries in found.items():
                    filling.put(table, target, entries.items())
                    await asyncio.sleep(0)
            return filling.batches()

        await self._write(fill, made.offset)
        self._handover.partitions = made.partitions
        log.info("%r: its gateways are among %d partitions now, not %d", self, made.partitions, count.partitions)

    async def _fence(self) -> AIOKafkaProducer:
        producer = self._cluster.producer(
            transactional_id=f"{self._cluster.deployment}.{self._partition}",
            transaction_timeout_ms=int(self._config.transaction * 1000),
            compression_type=self._config.compression,
            # While the marks of the last one are written, the next one is put off (KAFKA-5477); 100 ms is long.
            retry_backoff_ms=20,
        )
        await started(producer, self._config.commit, f"{self!r}: fencing")
        self._written.clear()
        return producer

    async def _table(self, place: TopicPartition) -> dict[bytes, bytes]:
        first, end = await self._cluster.bounds(place)
        self._table_ends[place] = end

        def make() -> AIOKafkaConsumer:
            return self._cluster.consumer(isolation_level="read_committed")

        return await read_table(make, place, first, end, self._config)

    # --- read ---

    async def read(self, count: int, wait: float) -> tuple[Sequence[JournalRecord], bool]:
        """Return the next frames and whether that is all there is. Raises Fenced, Unavailable."""
        self._check()
        reader = self._reader
        if reader is None:
            raise Unavailable(f"{self!r}: load it first")
        try:
            with translated(f"{self!r}: reading"):
                got = await reader.getmany(self._frames, timeout_ms=int(wait * 1000), max_records=count)
                position = await reader.position(self._frames)
        except Unavailable as error:
            if isinstance(error.__cause__, errors.OffsetOutOfRangeError):
                raise Unavailable(f"{self!r}: frames were deleted while they waited; load again (R8)") from error
            raise
        found = got.get(self._frames, ())
        if found and found[-1].timestamp_type == LOG_APPEND_TIME:
            self._since_ms = found[-1].timestamp
        records = [_frame(record) for record in found]
        self.position = position
        await self._handover.look(reader, records, position)
        spoken = (reader.last_poll_timestamp(self._frames) or 0) / 1000
        silent = time.time() - spoken
        if records or silent < FRESH:
            self._answered = time.monotonic()
        elif time.monotonic() - self._answered > self._config.request:
            raise Unavailable(f"{self!r}: no broker has answered for {self._config.request:g} s")
        end = reader.highwater(self._frames)
        return records, end is not None and position >= end and silent < FRESH

    def rewind(self, offset: int) -> None:
        """Read again from ``offset``."""
        if self._reader is not None:
            self._reader.seek(self._frames, offset)
            self.position = offset

    async def log_start(self) -> int:
        """Return the journal's oldest offset, as of LOG_START_AGE ago at most. Raises Unavailable."""
        if self._log_start is None or time.monotonic() - self._log_start[1] > LOG_START_AGE:
            start, _ = await self._cluster.bounds(self._frames)
            self._log_start = (start, time.monotonic())
        return self._log_start[0]

    def cleared(self) -> Cleared:
        """Say up to which offset gaps may be given up: the port's."""
        return self._stragglers.cleared(self.position)

    # --- write (R3, R5) ---

    async def commit(self, step: Step) -> None:
        """Write ``step`` in one transaction. Raises RecordRefused, TopicRefused, Fenced, Unavailable (load again)."""

        async def fill(producer: AIOKafkaProducer) -> list[Batch]:
            return await self._fill(step, producer)

        await self._write(fill, step.next_offset)

    async def _write(self, fill: Callable[[AIOKafkaProducer], Awaitable[list[Batch]]], next_offset: int) -> None:
        self._check()
        if self._token is None:
            raise Unavailable(f"{self!r}: load it first")
        try:
            async with asyncio.timeout(self._config.commit):
                producer = self._producer or await self._again()
                batches = await fill(producer)
                await self._transact(producer, batches, next_offset)
        except (RecordRefused, TopicRefused):
            raise  # nothing was begun; or dropped already
        except FENCED as error:
            self.fenced = True
            await self._drop(abort=False)
            raise Fenced(f"{self!r}: another worker owns it by now") from error
        except FAILURES as error:
            await self._lose()
            # Its batches are handled below: what may be denied here is the offset of the frames that were read.
            text = "no answer in time" if isinstance(error, TimeoutError) else reason(error, "Read", self._frames.topic)
            raise Unavailable(f"{self!r}: the outcome of a step is unknown, load again: {text}") from error
        except BaseException:  # cancelled, or Unavailable from within
            await self._lose()
            raise
        self._placed = False
        self._handover.taken = True
        written = self._written
        for batch in batches:
            place = (batch.topic, batch.partition)
            written[place] = written.get(place, 0) + batch.size
        if any(count >= RENEW_AT for count in written.values()):
            await self._drop(abort=False)  # well before its sequence numbers break; the next commit makes it anew

    async def _again(self) -> AIOKafkaProducer:
        """Make the producer anew without a load, if nobody else committed since. Raises Fenced, Unavailable."""
        producer = self._producer = await self._fence()
        _, token = await self._cluster.committed(self._frames)
        if token != self._token:
            self._token = None
            raise Unavailable(f"{self!r}: another worker wrote meanwhile; load again")
        return producer

    async def _fill(self, step: Step, producer: AIOKafkaProducer) -> list[Batch]:
        """Turn the step into batches. Raises RecordRefused, TopicRefused, Unavailable."""
        cluster = self._cluster
        shapes: dict[str, Shape] = {}
        for topic in {record.topic for record in step.records}:
            shapes[topic] = await cluster.shape(topic, producer)
        tables = [(self._ledger.topic, self._entries(step)), (self._dictionaries.topic, step.dictionaries)]
        for topic, entries in tables:
            if entries:
                shapes[topic] = await cluster.shape(topic, producer)
        filling = Filling(shapes, turn=self._steps, transactional=self._config.exactly_once, since_ms=self._since_ms)
        for _ in filling.add(step.records):
            await asyncio.sleep(0)
        for topic, entries in tables:
            filling.put(topic, self._partition, entries.items())
        return filling.batches()

    def _entries(self, step: Step) -> Mapping[bytes, bytes | None]:
        """Return what is written to the ledger."""
        return {**step.ledger, self._place: None} if self._placed else step.ledger

    async def _transact(self, producer: AIOKafkaProducer, batches: list[Batch], next_offset: int) -> None:
        self._steps += 1
        token = f"{self._name}:{self._steps}"
        await producer.begin_transaction()
        # The offset travels beside the data, not after it: whichever fails, nothing of the transaction counts.
        offset = {self._frames: OffsetAndMetadata(next_offset, token)}
        await self._send(producer, batches, producer.send_offsets_to_transaction(offset, self._cluster.group))
        ending = asyncio.ensure_future(producer.commit_transaction())
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            # Left half committed it would hold back the topics' readers until a successor comes, or it times out.
            await asyncio.wait({ending}, timeout=ENDING)
            raise
        finally:
            ending.add_done_callback(seen)
            ending.cancel()
        self._token = token

    async def _send(
        self, producer: AIOKafkaProducer, batches: list[Batch], beside: Coroutine[Any, Any, None] | None = None
    ) -> list[int]:
        """Send ``batches`` and wait for all acks, and for ``beside``; return their offsets. Raises what commit does."""
        work: list[asyncio.Future[Any]] = [asyncio.ensure_future(beside)] if beside else []
        sent: list[tuple[str, asyncio.Future[Any]]] = []
        try:
            for batch in sorted(
                batches, key=lambda batch: batch.sync
            ):  # those that wait for each other hold up no other
                future = await producer.send_batch(batch.builder, batch.topic, partition=batch.partition)
                sent.append((batch.topic, future))
                work.append(future)
                if batch.sync:
                    await future
            await asyncio.gather(*work)
        except (*REFUSED_RECORD, *REFUSED_TOPIC) as error:
            topic = _culprit(error, sent)
            await self._drop(abort=True)
            if isinstance(error, REFUSED_TOPIC):
                raise TopicRefused(topic, reason(error, "Write", topic)) from error
            raise RecordRefused(f"{topic}: {reason(error, 'Write', topic)}") from error
        finally:
            for future in work:
                future.add_done_callback(seen)
                future.cancel()
        return [future.result().offset for _, future in sent]

    # --- letting go ---

    def _check(self) -> None:
        if self.fenced:
            raise Fenced(f"{self!r}: another worker owns it by now")

    async def _lose(self) -> None:
        """After an unknown outcome nothing in memory counts: the next thing must be a load (R3)."""
        self._token = None
        await self._drop(abort=True)

    async def _drop(self, *, abort: bool) -> None:
        """Discard producer and, where a load must follow, reader. ``abort``: try to end the transaction first.

        An open one would hold back everybody who reads the topics, until it times out.
        """
        producer, self._producer = self._producer, None
        if producer is not None:
            if abort and self._config.exactly_once:
                forsake(producer)  # before what bears the transaction's error is replaced by the abort
                try:
                    async with asyncio.timeout(ENDING):
                        await producer.abort_transaction()
                except FAILURES as error:
                    log.debug("%r: no abort: %s", self, error)
            await discard(producer)
        if self._token is None or self.fenced:
            reader, self._reader = self._reader, None
            if reader is not None:
                await discard(reader)

    async def close(self) -> None:
        """Let go of everything."""
        self._token = None
        await self._stragglers.close()
        await self._drop(abort=False)


def _frame(record: ConsumerRecord) -> JournalRecord:
    gateway = (record.key or b"").decode("utf-8", "replace")
    return JournalRecord(record.partition, record.offset, record.timestamp, gateway, record.value or b"")


def _culprit(error: Exception, sent: list[tuple[str, asyncio.Future[Any]]]) -> str:
    """Return the topic that ``error`` is about: aiokafka names it in one case, else it is that of the failed batch."""
    for topic, future in sent:
        if future.done() and not future.cancelled() and isinstance(future.exception(), type(error)):
            return topic
    named = error.args[0] if error.args else ""
    return str(min(named)) if isinstance(named, set | frozenset) else str(named)

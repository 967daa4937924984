"""The log on Apache Kafka: the Log port (see there) by aiokafka, on any Kafka since 2.5.

::

    listener ─▶ Appender ─▶ waybill.frames ─▶ KafkaPartition.read ─▶ router step ─▶ KafkaPartition.commit ─▶ topics,
                (acks=all)              (Owner: which are ours)                     (one transaction)        ledger
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.structs import ConsumerRecord

from cloud_ingest.config import Route, Topics
from cloud_ingest.following import following
from cloud_ingest.journal.kafka_admin import prepare, specs
from cloud_ingest.journal.kafka_append import Appender
from cloud_ingest.journal.kafka_batches import CODECS, DEFAULT_LIMIT, Shape
from cloud_ingest.journal.kafka_client import Client, discard, partitions_of, probe, quiet, reason, started, translated
from cloud_ingest.journal.kafka_config import parse
from cloud_ingest.journal.kafka_describe import described
from cloud_ingest.journal.kafka_growth import grow
from cloud_ingest.journal.kafka_owner import Owner
from cloud_ingest.journal.kafka_partitions import KafkaPartition, place_key
from cloud_ingest.journal.kafka_plain import PlainPartition
from cloud_ingest.journal.kafka_topic_id import topic_number
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import CaughtUp, Described, OutRecord, PartitionLog, TopicRecord
from waybill.errors import ConfigError, TopicRefused, Unavailable

log = logging.getLogger(__name__)

_SOON: Final = 0.2

_Records: TypeAlias = dict[TopicPartition, list[ConsumerRecord]]


class KafkaLog:
    """The log of one deployment on Kafka. Implements Log, and Cluster for its partitions."""

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        deployment: str,
        topics: Topics,
        routes: Sequence[Route] = (),
        base: Path = Path(),
        where: str = "configuration",
        allow_unsafe: bool = False,
    ) -> None:
        """Check ``settings``, the keys of ``[log]`` but ``kind``; ``routes`` say how records go. Raises ConfigError.

        ``base``: the directory that relative paths are relative to. ``where``: origin, for errors. ``allow_unsafe``:
        the topics may have settings that make the promise untrue.
        """
        self.config = parse(settings, base, where)
        self.deployment = deployment
        self.group = f"{deployment}.router"
        self.configured = self._count = topics.partitions
        self.hands_over = True
        """Whether its partitions hand gateways over when the topics have grown."""
        self.frames = topics.frames
        self.ledger = topics.ledger
        self.dictionaries = topics.dictionaries
        self._topics = topics
        self._allow_unsafe = allow_unsafe
        self._routes = {route.topic: route for route in routes}
        self._shapes: dict[str, Shape] = {}
        self._log_id = 0
        self._admin: AIOKafkaAdminClient | None = None
        self._asker: AIOKafkaConsumer | None = None
        self._appender = Appender(self._appending, self.config.delivery)
        quiet()

    # --- clients ---

    def producer(self, **options: Any) -> AIOKafkaProducer:  # noqa: ANN401 - aiokafka's own
        """Make a producer, not started. Needs a running loop."""
        return AIOKafkaProducer(**self.config.connection, **options)

    def consumer(self, **options: Any) -> AIOKafkaConsumer:  # noqa: ANN401 - aiokafka's own
        """Make a consumer that commits nothing by itself and never resets (R8), not started. Needs a running loop."""
        return AIOKafkaConsumer(
            **{"enable_auto_commit": False, "auto_offset_reset": "none", **self.config.connection, **options}
        )

    async def _begin(self, client: Client) -> None:
        """Start ``client``; where that fails, say why. Raises Unavailable."""
        try:
            await started(client, self.config.request, "connecting to Kafka")
        except Unavailable:
            try:
                await probe(self.config)
            except ConfigError as error:  # it was right once: a password was changed there
                raise Unavailable(str(error)) from error
            raise

    async def _appending(self) -> AIOKafkaProducer:
        producer = self.producer(acks="all", enable_idempotence=True)
        await self._begin(producer)
        return producer

    @property
    def partitions(self) -> int:
        """How many frames partitions (and ledger partitions) there are."""
        return self._count

    def grown(self, partitions: int) -> None:
        """Note how many frames partitions there are: gateways go to theirs among so many from now on."""
        self._count = max(self._count, partitions)

    async def mark(self, partition: int, key: bytes, value: bytes) -> None:
        """Write an entry of the log's own to the ledger; durable on return. Raises Unavailable."""
        await self._appender.append(self.ledger, (key, value, []), partition, self._limit(self.ledger))

    async def grow(self, partitions: int, tell: Callable[[str], None]) -> None:
        """Grow to so many frames partitions and wait until all are ready. Raises ConfigError, Unavailable."""
        assert self._admin is not None  # noqa: S101 - started
        await grow(self, self._admin, partitions, tell)

    @property
    def busy_s(self) -> float:
        """0: nothing is on this machine's disk, and what Kafka takes has limits of its own."""
        return 0.0

    @property
    def log_id(self) -> int:
        """Which topic of dictionaries this is; 0 before the start, and where Kafka gives topics no id (before 2.8)."""
        return self._log_id

    async def start(self) -> None:
        """Connect; create the topics with the right settings, or check them. Raises ConfigError, Unavailable."""
        await probe(self.config)
        admin = AIOKafkaAdminClient(**self.config.connection)
        await self._begin(admin)
        try:
            wanted = specs(self._topics, list(self._routes), self.config.frames_retention_ms)
            async with asyncio.timeout(60):
                self._shapes = await prepare(admin, self.config, wanted, self._topics, allow_unsafe=self._allow_unsafe)
                self._log_id = await topic_number(admin, self.dictionaries)
            # read_uncommitted, so that its end is the high watermark
            asker = self.consumer(isolation_level="read_uncommitted")
            await self._begin(asker)
        except TimeoutError as error:
            await discard(admin)
            raise Unavailable("the topics could not be checked in time") from error
        except BaseException:
            await discard(admin)
            raise
        self._admin, self._asker = admin, asker
        self._count = self._shapes[self.frames].partitions

    async def close(self) -> None:
        """Flush within a bounded time and close."""
        await self._appender.close()
        for client in (self._admin, self._asker):
            if client is not None:
                await discard(client)
        self._admin = self._asker = None

    # --- append ---

    async def append_frame(self, gateway: str, frame: bytes, partition: int | None = None) -> None:
        """Journal a frame; durable on return. Raises Unavailable (say ``retry``), Refused (too large for the topic)."""
        key = gateway.encode()
        if partition is None:
            partition = partition_of(key, self.partitions)
        try:
            await self._appender.append(self.frames, (key, frame, []), partition, self._limit(self.frames))
        except TopicRefused as error:
            # The topic's fault, which a person can mend: a gateway would take it for the frame's and give that up.
            raise Unavailable(str(error)) from error

    async def append(self, record: OutRecord) -> None:
        """Append one record; durable on return. Raises Unavailable, Refused (TopicRefused: no such topic)."""
        count = await self._appender.partitions(record.topic)
        key = record.key
        partition = secrets.randbelow(count) if key is None else partition_of(key, count)
        await self._appender.append(record.topic, record[1:], partition, self._limit(record.topic))

    def _limit(self, topic: str) -> int:
        shape = self._shapes.get(topic)
        return shape.limit if shape else DEFAULT_LIMIT

    # --- own ---

    async def own_partitions(self, route: Callable[[PartitionLog], Awaitable[None]]) -> None:
        """Run ``route`` as a task for each partition that this process owns, until cancelled.

        A route that returns is not run again before the next assignment; one that raises is, after a pause.
        """

        def member() -> AIOKafkaConsumer:
            return self.consumer(
                group_id=self.group,
                session_timeout_ms=int(self.config.session * 1000),
                heartbeat_interval_ms=int(self.config.session * 1000 / 4),
                partition_assignment_strategy=(StickyPartitionAssignor,),
                auto_offset_reset="latest",  # of no effect: it reads nothing; "none" would raise
            )

        await Owner(member, self.frames, self.open_partition, route).run()

    def open_partition(self, number: int) -> KafkaPartition:
        """Return frames partition ``number``, not loaded. ``own_partitions`` says which ones to open."""
        return (KafkaPartition if self.config.exactly_once else PlainPartition)(self, number)

    async def bounds(self, place: TopicPartition) -> tuple[int, int]:
        """Return the first offset and the high watermark of ``place``. Raises Unavailable."""
        if self._asker is None:
            raise Unavailable("the log is not started")
        with translated(f"offsets of {place.topic}/{place.partition}"):
            async with asyncio.timeout(self.config.request):
                first = await self._asker.beginning_offsets([place])
                end = await self._asker.end_offsets([place])
        return first[place], end[place]

    async def committed(self, place: TopicPartition) -> tuple[int, str]:
        """Return the group's offset at ``place`` (-1: none) and its metadata. Raises Unavailable."""
        if self._admin is None:
            raise Unavailable("the log is not started")
        return (await self._offsets(self._admin, [place]))[place]

    async def _offsets(
        self, admin: AIOKafkaAdminClient, places: list[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, str]]:
        last: Exception | None = None
        until = time.monotonic() + self.config.request
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(self.config.request):
                    found = await admin.list_consumer_group_offsets(self.group, partitions=places)
                if all(place in found for place in places):
                    return {place: (found[place].offset, found[place].metadata or "") for place in places}
            except errors.GroupAuthorizationFailedError as error:
                raise Unavailable(reason(errors.GroupAuthorizationFailedError(self.group), "Read")) from error
            except (errors.KafkaError, TimeoutError) as error:
                last = error
            await asyncio.sleep(_SOON)  # the group's coordinator is being found, or loads
        raise Unavailable(f"the group {self.group} has no answer about its offset: {last}") from last

    async def describe(self, topics: Collection[str]) -> Described:
        """Say how brokers and ``topics`` are now. Raises Unavailable."""
        if self._admin is None or self._asker is None:
            raise Unavailable("the log is not started")
        return await described(self._admin, self._asker, topics, self.config.request)

    async def shape(self, topic: str, producer: AIOKafkaProducer) -> Shape:
        """Return what batches must know of ``topic``. Raises TopicRefused, Unavailable."""
        partitions, limit = await partitions_of(producer.client, topic), self._limit(topic)
        route = self._routes.get(topic)
        codec = (route and route.compression) or self.config.compression or "none"
        if route is None:
            return Shape(partitions, limit, CODECS[codec])
        return Shape(partitions, limit, CODECS[codec], route.batch_bytes, sync=route.send == "sync")

    # --- read ---

    async def follow(
        self, topics: Sequence[str], *, only: int | None = None, end: bool = False
    ) -> AsyncIterator[TopicRecord | CaughtUp]:
        """Yield the committed records of ``topics`` from their start, then CaughtUp, then new ones.

        Raises TopicRefused (no such topic or partition), Unavailable (until CaughtUp; later, silence may be just that).
        """
        consumer = self.consumer(isolation_level="read_committed")
        await self._begin(consumer)
        try:
            async for item in self._follow(consumer, topics, only, end=end):
                yield item
        finally:
            await discard(consumer)

    async def _follow(
        self, consumer: AIOKafkaConsumer, topics: Sequence[str], only: int | None, *, end: bool
    ) -> AsyncIterator[TopicRecord | CaughtUp]:
        with translated(f"reading {', '.join(topics)}"):
            places = await self._places(consumer, topics, only)
            consumer.assign(places)
            async with asyncio.timeout(self.config.request):
                starts = await consumer.beginning_offsets(places)
                ends = await consumer.end_offsets(places)  # the last stable offsets: what is open now is not waited for
            for place in places:
                consumer.seek(place, starts[place])
        behind = {place for place in places if starts[place] < ends[place]}
        caught_up, moved = False, time.monotonic()
        while True:
            # Before it is said, too, that an empty topic was read: that may not be allowed.
            got = await self._some(consumer)
            for records in got.values():
                for record in records:
                    yield _record(record)
            with translated("reading"):
                reached = {place for place in behind if await consumer.position(place) >= ends[place]}
            behind -= reached
            if not behind and not caught_up:
                caught_up = True
                yield CaughtUp()
                if end:
                    return
            if got or reached:
                moved = time.monotonic()
            elif behind and time.monotonic() - moved > self.config.request:
                raise Unavailable(f"no broker has answered for {self.config.request:g} s")

    async def unrouted(self, upto: Mapping[TopicPartition, int] | None = None) -> AsyncGenerator[TopicRecord, None]:
        """Yield the frames that the routers are not done with, as of now. Raises TopicRefused, Unavailable.

        ``upto``: of these partitions alone, up to these offsets, also where a transaction there is to end first.
        """
        consumer = self.consumer(isolation_level="read_committed")
        admin = AIOKafkaAdminClient(**self.config.connection)
        try:
            await self._begin(consumer)
            await self._begin(admin)
            with translated(f"reading {self.frames}"):
                places = await self._places(consumer, [self.frames], None) if upto is None else list(upto)
                routed = {place: offset for place, (offset, _) in (await self._offsets(admin, places)).items()}
                routed |= await self._placed(places)
                consumer.assign(places)
                async with asyncio.timeout(self.config.request):
                    starts = await consumer.beginning_offsets(places)
                    ends = await consumer.end_offsets(places) if upto is None else upto
                for place in places:
                    consumer.seek(place, min(max(routed[place], starts[place]), ends[place]))
            moved = time.monotonic()
            while True:
                with translated("reading"):
                    behind = {place for place in places if await consumer.position(place) < ends[place]}
                if not behind:
                    return
                got = await self._some(consumer)
                for place, records in got.items():
                    for record in records:
                        if record.offset < ends[place]:
                            yield _record(record)
                if got:
                    moved = time.monotonic()
                elif time.monotonic() - moved > self.config.request:
                    raise Unavailable(f"no broker has answered for {self.config.request:g} s")
        finally:
            await discard(consumer)
            await discard(admin)

    async def _placed(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offsets that are in the ledger."""
        keys = {place_key(self.group, place.partition): place for place in places}
        found: dict[TopicPartition, int] = {}
        only = places[0].partition if len(places) == 1 else None
        async with following(self, (self.ledger,), only=only, end=True) as records:
            async for record in records:
                if not isinstance(record, CaughtUp) and record.key in keys:
                    if record.value is None:
                        found.pop(keys[record.key], None)
                    else:
                        found[keys[record.key]] = int(record.value)
        return found

    async def _some(self, consumer: AIOKafkaConsumer) -> _Records:
        try:
            with translated("reading"):
                got: _Records = await consumer.getmany(timeout_ms=200, max_records=2000)
                return got
        except Unavailable as error:
            if not isinstance(error.__cause__, errors.OffsetOutOfRangeError):
                raise
            for place in error.__cause__.args[0]:
                with translated("reading"):
                    first = (await consumer.beginning_offsets([place]))[place]
                log.warning("%s/%d: records were deleted before they were read here; going on at %d", *place, first)
                consumer.seek(place, first)
            return {}

    async def _places(
        self, consumer: AIOKafkaConsumer, topics: Sequence[str], only: int | None
    ) -> list[TopicPartition]:
        places: list[TopicPartition] = []
        there = await consumer.topics()  # asking for one that is missing would make a broker create it
        for topic in topics:
            if topic not in there:
                raise TopicRefused(topic, "no such topic, or not allowed to see it")
            count = await partitions_of(consumer._client, topic)  # noqa: SLF001 - no public way without a subscription
            if only is not None and not 0 <= only < count:
                raise TopicRefused(topic, f"has no partition {only}; it has {count}, from 0")
            places += [TopicPartition(topic, number) for number in range(count) if only in (None, number)]
        return places


def _record(record: ConsumerRecord) -> TopicRecord:
    return TopicRecord(
        record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, tuple(record.headers)
    )

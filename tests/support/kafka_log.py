"""The Kafka log in tests: opened with names of its own, and closed with nothing left running."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import MessageSizeTooLargeError

from cloud_ingest.config import Route, Topics
from cloud_ingest.journal.kafka import KafkaLog
from cloud_ingest.journal.kafka_partitions import KafkaPartition
from cloud_ingest.journal.port import JournalRecord, OutRecord, Step, TopicRecord

OpenLog = Callable[..., Awaitable[KafkaLog]]


def make_log(bootstrap: str, name: str, *, partitions: int = 2, **settings: Any) -> KafkaLog:
    """Make a log whose deployment and topics are named after ``name``; one routed topic, ``{name}.fleet``.

    ``settings``: those of ``[log]``, ``route`` in place of the default one, and ``allow_unsafe``.
    """
    route = settings.pop("route", Route(topic=f"{name}.fleet"))
    allow_unsafe = settings.pop("allow_unsafe", False)
    return KafkaLog(
        # One answer of a Kafka that has a core with others may take longer than one that is well needs.
        {
            "bootstrap.servers": bootstrap,
            "session.timeout.ms": 6000,
            "request.timeout.ms": 30_000,
            "delivery.timeout.ms": 30_000,
            **settings,
        },
        deployment=name,
        topics=Topics(prefix=f"{name}.", partitions=partitions),
        routes=[route],
        allow_unsafe=allow_unsafe,
    )


@pytest.fixture
async def open_log(kafka: str, unique: str) -> AsyncIterator[OpenLog]:
    """Give a function that opens a started log of this test's deployment; all are closed at the end."""
    async with AsyncExitStack() as stack:

        async def opened(**options: Any) -> KafkaLog:
            log = make_log(kafka, unique, **options)
            await log.start()
            stack.push_async_callback(log.close)
            return log

        yield opened


@pytest.fixture
async def admin(kafka: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Give an admin client of the shared Kafka."""
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    yield client
    await client.close()


@pytest.fixture
async def foreign(kafka: str, unique: str) -> AsyncIterator[AIOKafkaProducer]:
    """Give somebody else's transactional producer, started."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"{unique}.foreign")
    await producer.start()
    yield producer
    await producer.stop()


def fleet(name: str, value: bytes, key: bytes | None = b"V1") -> OutRecord:
    """Return a record for the routed topic of ``name``."""
    return OutRecord(f"{name}.fleet", key, value, [("ce_id", value)])


def step(name: str, *values: bytes, next_offset: int = 0) -> Step:
    """Return a step that writes ``values`` to the routed topic and remembers the last one in the ledger."""
    return Step([fleet(name, value) for value in values], {b"last": values[-1]}, next_offset)


async def values(log: KafkaLog, *topics: str) -> list[bytes | None]:
    """Return what a read_committed reader finds in ``topics`` now."""
    return [item.value async for item in log.follow(topics, end=True) if isinstance(item, TopicRecord)]


async def limit_records(admin: AIOKafkaAdminClient, bootstrap: str, topic: str, size: int) -> None:
    """Let ``topic`` take records up to ``size`` bytes; returns when its broker, which answers earlier, goes by that."""
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(size)})])
    async with asyncio.timeout(60):
        refused = False
        while not refused:
            probe = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=f"{topic}.probe")
            await probe.start()
            try:
                await probe.begin_transaction()
                await probe.send_and_wait(topic, bytes(2 * size))
            except MessageSizeTooLargeError:
                refused = True
            finally:
                await probe.abort_transaction()
                await probe.stop()


async def read_all(partition: KafkaPartition, count: int) -> list[JournalRecord]:
    """Read until ``count`` frames came; fails after many reads without them."""
    found: list[JournalRecord] = []
    for _ in range(100):
        records, _end = await partition.read(1000, 0.2)
        found += records
        if len(found) >= count:
            return found
    raise AssertionError(f"{len(found)} of {count} frames came")


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until ``condition()`` holds; fails after three minutes."""
    for _ in range(1800):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"never: {what}")

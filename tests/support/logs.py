"""Both logs behind their port, for the suites that run over either."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from cloud_ingest.config import Topics
from cloud_ingest.following import following
from cloud_ingest.journal.embedded import EmbeddedLog
from cloud_ingest.journal.port import Log, PartitionLog, TopicRecord
from tests.support.kafka_log import make_log

PARTITIONS = 2
MAX_RECORD = 1 << 20


def make(kind: str, name: str, directory: Path, bootstrap: str) -> Log:
    """Return a log, not started: deployment and topics named after ``name``, one routed topic ``{name}.fleet``."""
    if kind == "kafka":
        return make_log(bootstrap, name, partitions=PARTITIONS)
    if kind == "kafka-at-least-once":
        return make_log(bootstrap, name, partitions=PARTITIONS, delivery="at-least-once")
    return EmbeddedLog(directory / "log.db", Topics(prefix=f"{name}.", partitions=PARTITIONS), max_record=MAX_RECORD)


@contextlib.asynccontextmanager
async def owned(log: Log) -> AsyncIterator[dict[int, PartitionLog]]:
    """Own all partitions while the context is open."""
    found: dict[int, PartitionLog] = {}
    complete = asyncio.Event()

    async def route(partition: PartitionLog) -> None:
        found[partition.partition] = partition
        if len(found) == log.partitions:
            complete.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(log.own_partitions(route))
    try:
        async with asyncio.timeout(180):
            await complete.wait()
        yield found
    finally:
        task.cancel()
        await asyncio.wait({task})


async def read_to_end(log: Log, topics: Sequence[str], only: int | None = None) -> list[TopicRecord]:
    """Return all records of ``topics``."""
    async with asyncio.timeout(180), following(log, topics, only=only, end=True) as records:
        return [record async for record in records if isinstance(record, TopicRecord)]

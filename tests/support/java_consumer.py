"""Reading a topic back with a client that Waybill has nothing to do with: Kafka's own console consumer, in Java."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaProducer

from deploy.kafka.cluster import java

END: Final = "the end for those who read now"
"""The key of the records that mark it, which are left out."""

PATIENCE: Final = 240.0


@dataclass(frozen=True)
class JavaRecord:
    """One record as the console consumer prints it. ``headers``: by name."""

    partition: int
    offset: int
    timestamp: int
    headers: dict[str, str]
    key: str
    value: str


async def read_committed(bootstrap: str, topic: str) -> list[JavaRecord]:
    """Return all committed records of ``topic``, each partition in order.

    How long a machine takes for the next one cannot be known, so a record is written that marks the end of each
    partition, and read to there.
    """
    ends = await _mark(bootstrap, topic)
    shown = ["timestamp", "partition", "offset", "headers", "key", "value"]
    process = await asyncio.create_subprocess_exec(
        *java(tools=True),
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        *("--bootstrap-server", bootstrap, "--topic", topic, "--from-beginning"),
        *("--isolation-level", "read_committed"),
        *(part for what in shown for part in ("--formatter-property", f"print.{what}=true")),
        *("--formatter-property", "headers.separator=\x1f", "--formatter-property", "key.separator=\x1e"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=1 << 24,
    )
    records: list[JavaRecord] = []
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while ends:
                line = await process.stdout.readuntil(b"\n")
                if line.count(b"\x1e") != len(shown) - 1:
                    continue  # its log comes on the same stream
                record = _record(line.decode().removesuffix("\n"))
                if record.key == END:
                    ends.discard((record.partition, record.offset))
                else:
                    records.append(record)
    finally:
        process.kill()
        await process.wait()
    return records


async def _mark(bootstrap: str, topic: str) -> set[tuple[int, int]]:
    """Write a record to each partition of ``topic``; return the partitions and offsets where they are."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        found = [
            await producer.send_and_wait(topic, b"", key=END.encode(), partition=number)
            for number in await producer.partitions_for(topic)
        ]
    finally:
        await producer.stop()
    return {(record.partition, record.offset) for record in found}


def _record(line: str) -> JavaRecord:
    time, partition, offset, headers, key, value = line.split("\x1e")
    return JavaRecord(
        partition=int(partition.removeprefix("Partition:")),
        offset=int(offset.removeprefix("Offset:")),
        timestamp=int(time.rpartition(":")[2]),
        headers=dict(part.split(":", 1) for part in headers.split("\x1f")) if headers != "NO_HEADERS" else {},
        key=key,
        value=value,
    )

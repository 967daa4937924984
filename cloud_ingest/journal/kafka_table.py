"""A partition of a compacted topic as a table: the newest value of each key (R2, R4)."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiokafka import AIOKafkaConsumer, TopicPartition

from cloud_ingest.journal.kafka_client import discard, started, translated
from cloud_ingest.journal.kafka_config import KafkaConfig
from waybill.errors import Unavailable


async def read_table(
    make: Callable[[], AIOKafkaConsumer], place: TopicPartition, first: int, end: int, config: KafkaConfig
) -> dict[bytes, bytes]:
    """Read ``place`` from ``first`` up to ``end`` with a consumer that ``make()`` gives. Raises Unavailable.

    ``end`` is the high watermark taken after fencing, not the last stable offset: while somebody else's transaction (a
    re-route, R9) is open there, our own later entries are above the last stable offset, and would be missed.
    """
    found: dict[bytes, bytes] = {}
    if first == end:
        return found
    what = f"reading {place.topic}/{place.partition}"
    consumer = make()
    consumer.assign([place])
    await started(consumer, config.request, what)
    try:
        with translated(what):
            consumer.seek(place, first)
            await _replay(consumer, place, end, found, config.commit)
    finally:
        await discard(consumer)
    return found


async def _replay(
    consumer: AIOKafkaConsumer, place: TopicPartition, end: int, found: dict[bytes, bytes], patience: float
) -> None:
    at, moved = await consumer.position(place), time.monotonic()
    while at < end:
        for records in (await consumer.getmany(place, timeout_ms=100, max_records=5_000)).values():
            for record in records:
                if record.value is None:
                    found.pop(record.key, None)
                elif record.key is not None:
                    found[record.key] = record.value
        now = await consumer.position(place)
        if now > at:
            at, moved = now, time.monotonic()
        elif time.monotonic() - moved > patience:
            raise Unavailable(
                f"{place.topic}/{place.partition} cannot be read past offset {at} of {end}: "
                "a transaction of somebody else is open on it, or its broker is away"
            )

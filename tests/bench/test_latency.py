"""From a device to a reader of Kafka on an idle system: how long a message takes through agent, TLS, ingest and router.

All of them real processes; the reader takes committed records only.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from cloud_ingest.journal.keys import partition_of
from fleet_simulator.deployment import Deployment, Plan
from tests.unit.mqtt import rig

pytestmark = pytest.mark.bench

WARMING, MESSAGES = 20, 300
PAUSE = 0.1
"""Seconds between two messages, on average."""
DEVICE = "V1"


@contextlib.asynccontextmanager
async def reading(kafka: str, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
    """Read the one partition of DEVICE: of several, aiokafka would ask for one when it has an answer for the others."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        partitions = len(consumer.partitions_for_topic(topic) or ())
        consumer.unsubscribe()
        consumer.assign([TopicPartition(topic, partition_of(DEVICE.encode(), partitions))])
        yield consumer
    finally:
        await consumer.stop()


@pytest.mark.parametrize("linger_ms", [0, 200])
async def test_a_message_on_an_idle_system(kafka: str, tmp_path: Path, linger_ms: int) -> None:
    rng = random.Random(7)
    took: list[float] = []
    deployment = Deployment(tmp_path, Plan(gateways=("g1",), kafka=kafka, forward={"linger_ms": linger_ms}))
    async with deployment.running(), reading(kafka, deployment.topic) as consumer:
        broker = deployment.sites["g1"].broker
        reader, writer = await asyncio.open_connection(broker.host, broker.port)
        writer.write(rig.connect(DEVICE, keepalive=0))
        await reader.readexactly(4)
        for number in range(WARMING + MESSAGES):
            payload = b'{"n":%d,"speed":13.37,"lat":41.878112,"lon":-87.629801}' % number
            began = time.perf_counter()
            writer.write(rig.publish(f"vehicles/{DEVICE}/telemetry", payload, 1, 1 + number))
            async with asyncio.timeout(30):
                record = await consumer.getone()
            assert record.value == payload
            if number >= WARMING:
                took.append(1000 * (time.perf_counter() - began))
            await reader.readexactly(4)
            await asyncio.sleep(rng.uniform(0, 2 * PAUSE))
        writer.close()
    took.sort()
    middle, late = took[MESSAGES // 2], took[MESSAGES * 99 // 100]
    aims = ("aim 30", "aim 100") if not linger_ms else ("the linger and 30", "the linger and 100")
    print(f"\n\ndevice to a committed record, {MESSAGES} messages one by one, idle system, linger_ms = {linger_ms}:")
    print(f"  p50 {middle:.1f} ms ({aims[0]})   p99 {late:.1f} ms ({aims[1]})   most {took[-1]:.1f} ms")

"""Two mosquittos and Telegraf beside agent and ingest, from devices into Kafka: CPU a message, and one SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from fleet_simulator.deployment import Deployment, Plan
from fleet_simulator.processes import Process
from fleet_simulator.run.world import start
from tests.bench.test_router import cpu_seconds
from tests.bench.test_topics import CLIENTS, publish
from tests.support.peers import IN_MEMORY, Peers, make_topic

pytestmark = pytest.mark.bench

MESSAGES, TOPICS = 300_000, 1_000
PATIENCE = 600.0
QUIET = 5.0
"""Seconds without a record after which no more are expected."""


class Chain(NamedTuple):
    """What runs. ``edge``: the port for devices; ``last``: what writes to Kafka, and ``ready``: what says it serves."""

    processes: list[Process]
    last: Process
    ready: str
    edge: int
    topic: str


Start = Callable[[str, Path, str], AbstractAsyncContextManager[Chain]]


@contextlib.asynccontextmanager
async def theirs(kafka: str, directory: Path, topic: str) -> AsyncIterator[Chain]:
    """Both mosquittos in memory, no relay between them, and Telegraf."""
    peers = Peers(directory, kafka, topic, IN_MEMORY, collector="telegraf", relayed=False)
    await make_topic(kafka, topic)
    async with contextlib.AsyncExitStack() as stack:
        processes = {}
        for name, command, ready in peers.programs():
            processes[name] = process = Process(name, command, directory / f"{name}.log", ready="")
            stack.push_async_callback(process.stop)
            await start(process, ready)
        yield Chain([*processes.values()], processes["collector"], peers.ready, peers.edge, topic)


@contextlib.asynccontextmanager
async def ours(kafka: str, directory: Path, _: str) -> AsyncIterator[Chain]:
    """An agent and an ingest."""
    directory.mkdir()
    deployment = Deployment(directory, Plan(gateways=("g1",), kafka=kafka))
    async with deployment.running():
        site, ingest = deployment.sites["g1"], deployment.cloud
        yield Chain([site.agent, ingest], ingest, ingest.ready, site.broker.port, deployment.topic)


@contextlib.asynccontextmanager
async def length_of(kafka: str, topic: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Give a function that says how long the topic is; the marks of transactions count, one or two in a thousand."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka)
    await consumer.start()
    places = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]

    async def length() -> int:
        return sum((await consumer.end_offsets(places)).values())

    try:
        yield length
    finally:
        await consumer.stop()


async def until_longer(length: Callable[[], Awaitable[int]], least: int) -> None:
    """Wait until the topic is that long."""
    while await length() < least:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.02)


async def read(kafka: str, topic: str) -> tuple[int, int]:
    """Read until all messages have come and no more come; return how many records, and how many of them differ."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await consumer.start()
    count, found = 0, set[bytes | None]()
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                some = await consumer.getmany(timeout_ms=int(1000 * QUIET))
                values = [record.value for batch in some.values() for record in batch]
                if not values and len(found) >= MESSAGES:
                    return count, len(found)
                count += len(values)
                found.update(values)
    except TimeoutError:
        return count, len(found)
    finally:
        await consumer.stop()


async def all_published(port: int) -> None:
    """Publish everything, acknowledged."""
    await asyncio.gather(*(publish("127.0.0.1", port, number, TOPICS, MESSAGES) for number in range(CLIENTS)))


CHAINS = pytest.mark.parametrize("chain", [theirs, ours], ids=["Telegraf", "Waybill"])


@CHAINS
async def test_what_a_message_costs(kafka: str, unique: str, tmp_path: Path, chain: Start) -> None:
    async with chain(kafka, tmp_path / "chain", unique) as one, length_of(kafka, one.topic) as length:
        before = [cpu_seconds(process.pid) for process in one.processes]
        began = time.perf_counter()
        async with asyncio.timeout(PATIENCE):
            await all_published(one.edge)
            published = time.perf_counter() - began
            await until_longer(length, MESSAGES)
        seconds = time.perf_counter() - began
        spent = [cpu_seconds(process.pid) - spent for process, spent in zip(one.processes, before, strict=True)]
    each = ", ".join(
        f"{process.name} {1e6 * cpu / MESSAGES:.1f}" for process, cpu in zip(one.processes, spent, strict=True)
    )
    print(f"\n{MESSAGES:,} messages, acknowledged after {published:.1f} s, in Kafka after {seconds:.1f} s", end="")
    print(f" ({MESSAGES / seconds:,.0f}/s); CPU-s a million: {each}; in all {1e6 * sum(spent) / MESSAGES:.1f}")


@CHAINS
async def test_one_sigkill_half_way(kafka: str, unique: str, tmp_path: Path, chain: Start) -> None:
    async with chain(kafka, tmp_path / "chain", unique) as one, length_of(kafka, one.topic) as length:
        publishing = asyncio.create_task(all_published(one.edge))
        async with asyncio.timeout(PATIENCE):
            await until_longer(length, MESSAGES // 2)
            await one.last.kill()
            await start(one.last, one.ready)
            await publishing
        count, different = await read(kafka, one.topic)
    doubled, missing = count - different, MESSAGES - different
    print(f"\n{one.last.name} killed once: {MESSAGES:,} messages, {count:,} records, {missing:,} missing,", end="")
    print(f" {doubled:,} doubled ({100 * doubled / MESSAGES:.2f} %)")

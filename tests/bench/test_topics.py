"""A million MQTT topics beside a thousand: what a message costs agent and cloud, all the way into a real Kafka."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from fleet_simulator.deployment import Deployment, Plan
from fleet_simulator.processes import Process
from tests.bench.test_router import cpu_seconds, most_resident
from tests.unit.mqtt import rig

pytestmark = pytest.mark.bench

MESSAGES = 1_000_000
CLIENTS, WINDOW = 10, 500
PATIENCE = 600.0


class Figures(NamedTuple):
    """``cpu``: µs a message; ``memory``: the most that was resident, MB."""

    cpu: float
    memory: float


async def publish(host: str, port: int, number: int, topics: int, messages: int = MESSAGES) -> None:
    """Publish one client's part of ``messages`` with QoS 1, WINDOW in flight, its part of ``topics`` by turns."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(rig.connect(f"c{number}", keepalive=0))
    await reader.readexactly(4)
    for first in range(number, messages, CLIENTS * WINDOW):
        some = range(first, min(first + CLIENTS * WINDOW, messages), CLIENTS)
        packets = [
            rig.publish(
                f"vehicles/V{message % topics:07d}/telemetry",
                b'{"seq":%07d,"speed":13.37,"rpm":3686,"lat":41.878112,"lon":-87.629801,"soc":81.5}' % message,
                1,
                place + 1,
            )
            for place, message in enumerate(some)
        ]
        writer.write(b"".join(packets))
        await reader.readexactly(4 * len(packets))
    writer.close()


async def through(kafka: str, directory: Path, topics: int) -> tuple[float, Figures, Figures]:
    """Return messages/s from the first publish to the last record, and what agent and cloud took for it."""
    directory.mkdir()
    deployment = Deployment(directory, Plan(gateways=("g1",), kafka=kafka))
    async with deployment.running():
        agent, broker = deployment.sites["g1"].agent, deployment.sites["g1"].broker
        parts = (agent, deployment.cloud)
        before = [cpu_seconds(part.pid) for part in parts]
        began = time.perf_counter()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(publish(broker.host, broker.port, number, topics) for number in range(CLIENTS)))
            while await deployment.routed() < MESSAGES:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        seconds = time.perf_counter() - began

        def figures(part: Process, spent: float) -> Figures:
            return Figures(1e6 * (cpu_seconds(part.pid) - spent) / MESSAGES, most_resident(part.pid))

        mine, theirs = (figures(part, spent) for part, spent in zip(parts, before, strict=True))
        return MESSAGES / seconds, mine, theirs


async def test_a_million_topics(kafka: str, tmp_path: Path) -> None:
    few, many = [await through(kafka, tmp_path / f"{topics}", topics) for topics in (1_000, 1_000_000)]
    print(f"\n\n{MESSAGES:,} messages from devices to Kafka, CPU-µs a message and most memory:")
    for topics, (rate, agent, cloud) in (("1,000 topics", few), ("1,000,000 topics", many)):
        print(f"  {topics:>16} {rate:>8,.0f}/s   agent {agent.cpu:5.2f} µs {agent.memory:4.0f} MB", end="")
        print(f"   cloud {cloud.cpu:5.2f} µs {cloud.memory:4.0f} MB")
    for name, one, other in (("agent", few[1], many[1]), ("cloud", few[2], many[2])):
        print(f"  {name}: {other.cpu / one.cpu:.2f} × the CPU, {other.memory / one.memory:.2f} × the memory", end="")
        print("   aim 1.15 each")

"""The router into a real Kafka: messages/s and CPU-µs a message of ``waybill cloud run``.

From frames that wait in Kafka to committed records there, headers and transactions and all. A CPU-µs a message is a
CPU-second a million messages. Absolute figures say nothing about another machine.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from aiokafka import AIOKafkaProducer

from fleet_simulator.ports import free_port
from fleet_simulator.processes import Process, waybill
from tests.bench.test_frames import rows as ten_fields
from waybill import snapshot
from waybill.errors import Unavailable
from waybill.frames import Row, encode_plain, in_columns

pytestmark = pytest.mark.bench

FRAMES, FRAME = 75, 1000
"""Frames of a gateway, messages of a frame."""
GATEWAYS = [f"bench-{number}" for number in range(8)]
TOTAL = FRAMES * FRAME * len(GATEWAYS)
WARM = 20
"""The part of all messages that goes before the clock starts: 1/20."""


class Figures(NamedTuple):
    """``rate``: messages/s; ``cpu``: µs a message; ``memory``: the most that was resident, MB a process."""

    rate: float
    cpu: float
    memory: float

    def __str__(self) -> str:
        return f"{self.rate:>10,.0f} messages/s   {self.cpu:5.2f} CPU-µs a message   {self.memory:4.0f} MB"


def frame(first: int, sources: Sequence[tuple[str, str]], rows: Sequence[Row]) -> bytes:
    """Return a frame of epoch 1, plain."""
    return encode_plain(
        epoch=1,
        prev_epoch=0,
        prev_last=0,
        oldest_epoch=1,
        lane="telemetry",
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=first,
        base_ms=1_790_000_000_000,
        sources=sources,
        rows=rows,
    )


def telemetry(gateway: str, topics: int = 20, count: int = FRAMES) -> Iterator[bytes]:
    """Give the frames of a gateway, JSON of 100 bytes, whose messages go through ``topics`` topics again and again."""
    for first in range(1, count * FRAME + 1, FRAME):
        devices = {seq: f"{gateway}-{seq % topics:06d}" for seq in range(first, first + min(FRAME, topics))}
        rows = [
            (
                (seq - first) % len(devices),
                seq - first,
                1,
                b'{"vehicle":%d,"seq":%d,"ts":%d,"speed":13.37,"rpm":3686,"lat":41.878112,"lon":-87.629801,"soc":81.5}'
                % (seq % topics, seq, 1_790_000_000_000 + seq),
                b"",
            )
            for seq in range(first, first + FRAME)
        ]
        yield frame(first, [(f"vehicles/{device}/telemetry", device) for device in devices.values()], rows)


def columns(change: Callable[[bytes], bytes]) -> Callable[[str], Iterator[bytes]]:
    """Return what gives frames of ten fields, the same for each gateway, each as ``change`` makes it."""
    sources = [(f"vehicles/{number:04d}/telemetry", f"vehicle-{number:04d}") for number in range(20)]
    known = list(ten_fields())
    made = []
    for number in range(FRAMES):
        at = number * FRAME % len(known)
        some = known[at : at + FRAME]
        rows = [(row[0], row[1] - some[0][1], row[2], row[3], row[4]) for row in some]
        made.append(change(frame(number * FRAME + 1, sources, rows)))
    return lambda _: iter(made)


async def fill(kafka: str, topic: str, frames: Callable[[str], Iterator[bytes]], gateways: Sequence[str]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all", max_request_size=4 << 20)
    await producer.start()
    try:
        for each in zip(*[frames(gateway) for gateway in gateways], strict=True):
            for gateway, data in zip(gateways, each, strict=True):
                await producer.send(topic, data, key=gateway.encode())
        await producer.flush()
    finally:
        await producer.stop()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def most_resident(pid: int) -> float:
    """Return the most that was resident of a process, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


class Nodes:
    """The processes of one deployment."""

    def __init__(self, kafka: str, name: str, directory: Path, count: int, route: str, log: str) -> None:
        self._sockets = [directory / f"{name}-{number}" / "cloud.sock" for number in range(count)]
        self.all = []
        for number, control in enumerate(self._sockets):
            config = directory / f"{name}-{number}.toml"
            config.write_text(
                f'deployment = "{name}"\ndata = "{control.parent}"\n[listener]\naddress = "127.0.0.1:{free_port()}"\n'
                f'[log]\nkind = "kafka"\n"bootstrap.servers" = "{kafka}"\n{log}\n[topics]\nprefix = "{name}."\n'
                f'[[route]]\ntopic = "{name}.fleet.telemetry"\n{route}\n'
            )
            command = waybill("cloud", "run", "--config", str(config))
            self.all.append(Process(f"node {number}", command, directory / f"{name}-{number}.log"))
        self._positions: dict[int, int] = {}

    async def routed(self) -> tuple[int, bool]:
        """Return how many frames are done with, and whether each process has partitions of its own."""
        busy = 0
        for control in self._sockets:
            answer = await snapshot.request(control, "snapshot")
            busy += any(partition["state"] == "ready" for partition in answer["partitions"])
            for partition in answer["partitions"]:
                number = partition["partition"]
                self._positions[number] = max(self._positions.get(number, 0), partition["position"])
        return sum(self._positions.values()), busy == len(self._sockets)

    def cpu(self) -> float:
        return sum(cpu_seconds(node.pid) for node in self.all)


async def measured(
    kafka: str,
    name: str,
    directory: Path,
    frames: Callable[[str], Iterator[bytes]] = telemetry,
    *,
    total: int = TOTAL,
    gateways: Sequence[str] = GATEWAYS,
    route: str = "",
    log: str = "",
    nodes: int = 1,
) -> Figures:
    """Measure one deployment ``name``; ``route``, ``log``: more lines of theirs."""
    made = Nodes(kafka, name, directory, nodes, route, log)
    async with AsyncExitStack() as stack:
        await made.all[0].start()  # makes the topics
        await made.all[0].stop()
        await fill(kafka, f"{name}.waybill.frames", frames, gateways)
        for node in made.all:
            stack.push_async_callback(node.stop)
        await asyncio.gather(*(node.start() for node in made.all))
        began = None
        count = 0
        async with asyncio.timeout(300):
            while count < total:
                done, together = await made.routed()
                count = done * FRAME
                if began is None and together and count > total // WARM:
                    began = (time.perf_counter(), made.cpu(), count)
                await asyncio.sleep(0.05)
        ended = (time.perf_counter(), made.cpu(), count)
        if began is None:
            raise Unavailable("all was routed before each process had a part of it")
        seconds, cpu, messages = (after - before for before, after in zip(began, ended, strict=True))
        return Figures(messages / seconds, 1e6 * cpu / messages, max(most_resident(node.pid) for node in made.all))


WAYS = {
    "as it is (zstd, batches of 512 KiB)": ("", "", "   aim 5"),
    "compression none": ('compression = "none"', "", ""),
    "compression lz4": ('compression = "lz4"', "", ""),
    "batches of 64 KiB": ("batch_bytes = 65536", "", ""),
    "batches of 64 KiB, sync": ('batch_bytes = 65536\nsend = "sync"', "", ""),
    "linger 100 ms": ("linger_ms = 100", "", ""),
    "at-least-once": ("", 'delivery = "at-least-once"', ""),
}


async def test_router(kafka: str, unique: str, tmp_path: Path) -> None:
    print(f"\n\nrouter into a real Kafka on the same {os.cpu_count()} cores, frames of {FRAME}, all headers:")
    for number, (way, (route, log, aim)) in enumerate(WAYS.items()):
        print(f"  {await measured(kafka, f'{unique}.{number}', tmp_path, route=route, log=log)}   {way}{aim}")


async def test_router_from_columns(kafka: str, unique: str, tmp_path: Path) -> None:
    print("\n\nrouter, JSON of ten fields, 174 bytes each:")
    plain = await measured(kafka, f"{unique}.plain", tmp_path, columns(bytes))
    print(f"  {plain}   plain")
    print(f"  {await measured(kafka, f'{unique}.columns', tmp_path, columns(in_columns))}   columns   aim 9")


async def test_two_routers(kafka: str, unique: str, tmp_path: Path) -> None:
    def twice(gateway: str) -> Iterator[bytes]:
        return telemetry(gateway, count=2 * FRAMES)

    one, two = [
        await measured(kafka, f"{unique}.{nodes}", tmp_path, twice, total=2 * TOTAL, nodes=nodes) for nodes in (1, 2)
    ]
    print(f"\n\nrouters of one deployment, {2 * TOTAL:,} messages:")
    print(f"  {one}   one process\n  {two}   two, {two.cpu / one.cpu:.2f} × the CPU a message   aim 1.15")


async def test_a_million_topics(kafka: str, unique: str, tmp_path: Path) -> None:
    async def of(topics: int) -> Figures:
        def frames(gateway: str) -> Iterator[bytes]:
            return telemetry(gateway, topics, 1000)

        name = f"{unique}.{topics}"
        return await measured(kafka, name, tmp_path, frames, total=1000 * FRAME, gateways=GATEWAYS[:1])

    few, many = await of(1000), await of(1_000_000)
    print("\n\nrouter, each message of a frame of another topic:")
    rate, memory = many.cpu / few.cpu, many.memory / few.memory
    print(f"  {few}   1,000 topics\n  {many}   1,000,000", end="")
    print(f", {rate:.2f} × the CPU, {memory:.2f} × the memory   aim 1.15 each")

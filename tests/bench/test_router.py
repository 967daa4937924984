"""The router into a real Kafka: messages/s and CPU-µs a message of ``waybill cloud run``.

From frames that wait in Kafka to committed records there, headers and transactions and all. Absolute figures say
nothing about another machine.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from fleet_simulator.deployment import free_port
from fleet_simulator.processes import Process, waybill
from waybill import snapshot
from waybill.frames.plain import encode_plain

pytestmark = pytest.mark.bench

FRAMES, FRAME = 600, 1000
GATEWAYS = [f"bench-{number}" for number in range(8)]


def frames(gateway: str, count: int) -> list[bytes]:
    """Return ``count`` frames of JSON telemetry, one epoch, as an agent would send them."""
    epoch, now = secrets.randbits(62) + 1, time.time_ns() // 1_000_000
    sources = [(f"vehicles/{gateway}-{number}/telemetry", f"{gateway}-{number}") for number in range(20)]
    made = []
    for number in range(count):
        first = number * FRAME + 1
        rows = [
            (
                seq % 20,
                seq - first,
                1,
                b'{"vehicle":"%s-%d","seq":%d,"ts":%d,"speed":13.37,"rpm":3686,"lat":41.878112,"lon":-87.629801,"soc":81.5}'
                % (gateway.encode(), seq % 20, seq, now + seq),
                b"",
            )
            for seq in range(first, first + FRAME)
        ]
        frame = encode_plain(
            epoch=epoch,
            prev_epoch=0,
            prev_last=0,
            oldest_epoch=epoch,
            lane="telemetry",
            order="fifo",
            durability="every-commit",
            clock="synced",
            first=first,
            base_ms=now,
            sources=sources,
            rows=rows,
        )
        made.append(frame)
    return made


async def fill(kafka: str, topic: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all", max_request_size=4 << 20)
    await producer.start()
    try:
        for gateway in GATEWAYS:
            for frame in frames(gateway, FRAMES // len(GATEWAYS)):
                await producer.send(topic, frame, key=gateway.encode())
        await producer.flush()
    finally:
        await producer.stop()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measured(kafka: str, name: str, directory: Path, route: str = "", log: str = "") -> tuple[float, float]:
    """Return messages/s and CPU-µs a message of one deployment ``name``; ``route``, ``log``: more lines of theirs."""
    config, data = directory / f"{name}.toml", directory / name
    config.write_text(
        f'deployment = "{name}"\ndata = "{data}"\n[listener]\naddress = "127.0.0.1:{free_port()}"\n'
        f'[log]\nkind = "kafka"\n"bootstrap.servers" = "{kafka}"\n{log}\n[topics]\nprefix = "{name}."\n'
        f'[[route]]\ntopic = "{name}.fleet.telemetry"\n{route}\n'
    )
    cloud = Process("cloud", waybill("cloud", "run", "--config", str(config)), directory / f"{name}.log")
    total = FRAMES * FRAME

    async def routed() -> int:
        answer = await snapshot.request(data / "cloud.sock", "snapshot")
        return sum(partition["routed"] for partition in answer["partitions"])

    try:
        await cloud.start()  # makes the topics
        await cloud.stop()
        await fill(kafka, f"{name}.waybill.frames")
        await cloud.start()
        began = None
        async with asyncio.timeout(300):
            while (count := await routed()) < total:
                if began is None and count > total // 20:
                    began = (time.perf_counter(), cpu_seconds(cloud.pid), count)
                await asyncio.sleep(0.05)
        ended = (time.perf_counter(), cpu_seconds(cloud.pid), count)
    finally:
        await cloud.stop()
    assert count == total
    assert began is not None
    seconds, cpu, messages = (after - before for before, after in zip(began, ended, strict=True))
    return messages / seconds, 1e6 * cpu / messages


WAYS = {
    "as it is (zstd, batches of 512 KiB)": ("", ""),
    "compression none": ('compression = "none"', ""),
    "compression lz4": ('compression = "lz4"', ""),
    "batches of 64 KiB": ("batch_bytes = 65536", ""),
    "batches of 64 KiB, sync": ('batch_bytes = 65536\nsend = "sync"', ""),
    "linger 100 ms": ("linger_ms = 100", ""),
    "at-least-once": ("", 'delivery = "at-least-once"'),
}


async def test_router(kafka: str, unique: str, tmp_path: Path) -> None:
    print(f"\n\nrouter into a real Kafka on the same {os.cpu_count()} cores, frames of {FRAME}, all headers:")
    for number, (way, (route, log)) in enumerate(WAYS.items()):
        rate, cpu = await measured(kafka, f"{unique}.{number}", tmp_path, route, log)
        print(f"  {rate:>10,.0f} messages/s   {cpu:.2f} CPU-µs a message   {way}")

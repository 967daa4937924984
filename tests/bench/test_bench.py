"""``make bench``: rates and ratios of one run on one machine. Absolute figures say nothing about another machine.

Brokers: QoS 1 messages/s acknowledged, 50 connections, 100 unacknowledged each, 100 bytes. The agent's are acknowledged
after its commit reached the disk; amqtt's and mosquitto's when they are in memory. The same generator, a process of its
own, loads them in turns, so that a busy moment of the machine hits all alike.

Router: messages/s and CPU-µs a message of ``waybill cloud run``, from frames that wait in a real Kafka to committed
records there, headers and transactions and all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from fleet_simulator.deployment import free_port
from fleet_simulator.processes import Process, until, waybill
from waybill import snapshot
from waybill.frames.plain import encode_plain

pytestmark = pytest.mark.bench

LOAD = Path(__file__).parent / "load.py"
ROUNDS = 3
LIMIT = 0.7
"""Share of a core from which on the generator's own speed is what is measured."""
FRAMES, FRAME = 600, 1000
GATEWAYS = [f"bench-{number}" for number in range(8)]


def edge(directory: Path, port: int) -> Process:
    data = directory / "data"
    command = waybill("edge", "run", "--listen", f"127.0.0.1:{port}", "--data", str(data))
    return Process("waybill edge", command, directory / "edge.log")


def amqtt(directory: Path, port: int) -> Process:
    config = directory / "amqtt.yaml"
    config.write_text(
        f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{port}\n    max_connections: 1000\n"
        "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
    )
    command = [str(Path(sys.executable).parent / "amqtt"), "-c", str(config)]
    return Process("amqtt", command, directory / "amqtt.log", ready="")


def mosquitto(directory: Path, port: int) -> Process:
    config = directory / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 1000\nmax_queued_messages 0\n"
    )
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin") or "mosquitto"
    return Process("mosquitto", [program, "-c", str(config)], directory / "mosquitto.log", ready="")


BROKERS: dict[str, tuple[Callable[[Path, int], Process], int]] = {
    "waybill edge": (edge, 400_000),
    "mosquitto": (mosquitto, 400_000),
    "amqtt": (amqtt, 30_000),
}
"""How each is started, and a number of messages that keeps it busy for some seconds."""


@contextlib.asynccontextmanager
async def serving(name: str, directory: Path) -> AsyncIterator[int]:
    directory.mkdir()
    port = free_port()
    process = BROKERS[name][0](directory, port)
    try:
        await process.start()
        await until(f"{name} listens", lambda: listens(port) or not process.running, 30)
        yield port
    finally:
        await process.stop()


def listens(port: int) -> bool:
    import socket

    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


async def load(port: int, messages: int) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(LOAD), "--port", str(port), "--messages", str(messages), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    figures: dict[str, float] = json.loads(said)
    assert figures["messages"] == messages
    return figures


async def test_brokers(tmp_path: Path) -> None:
    here = [name for name in BROKERS if name != "mosquitto" or shutil.which("mosquitto", path="/usr/sbin:/usr/bin")]
    rates: dict[str, list[float]] = {name: [] for name in here}
    busy: dict[str, list[float]] = {name: [] for name in here}
    async with contextlib.AsyncExitStack() as stack:
        ports = {name: await stack.enter_async_context(serving(name, tmp_path / name.split()[0])) for name in here}
        for _ in range(ROUNDS):
            for name in here:
                figures = await load(ports[name], BROKERS[name][1])
                rates[name].append(figures["rate"])
                busy[name].append(figures["cpu"] / figures["seconds"])
        answer = await snapshot.request(tmp_path / "waybill" / "data" / "agent.sock", "snapshot")
    # A PUBACK counts only where the message is kept.
    assert sum(lane["count"] for lane in answer["lanes"]) == ROUNDS * BROKERS["waybill edge"][1]
    medians = {name: statistics.median(rates[name]) for name in here}
    print("\n\nQoS 1, 50 connections × 100 unacknowledged, 100 bytes: messages/s acknowledged, median of", ROUNDS)
    for name in here:
        ratio = medians["waybill edge"] / medians[name]
        share = statistics.median(busy[name])
        generator = f"generator busy {share:.0%}" + (
            ": it is the limit, the broker may be faster" if share > LIMIT else ""
        )
        print(f"  {name:13} {medians[name]:>10,.0f}   waybill edge is {ratio:5.2f} × that   ({generator})")
    if "mosquitto" not in here:
        print("  mosquitto     is not installed here")


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


async def test_router(kafka: str, unique: str, tmp_path: Path) -> None:
    config, data = tmp_path / "cloud.toml", tmp_path / "cloud"
    config.write_text(
        f'deployment = "{unique}"\ndata = "{data}"\n[listener]\naddress = "127.0.0.1:{free_port()}"\n'
        f'[log]\nkind = "kafka"\n"bootstrap.servers" = "{kafka}"\n[topics]\nprefix = "{unique}."\n'
        f'[[route]]\ntopic = "{unique}.fleet.telemetry"\n'
    )
    cloud = Process("cloud", waybill("cloud", "run", "--config", str(config)), tmp_path / "cloud.log")
    total = FRAMES * FRAME

    async def routed() -> int:
        answer = await snapshot.request(data / "cloud.sock", "snapshot")
        return sum(partition["routed"] for partition in answer["partitions"])

    try:
        await cloud.start()  # makes the topics
        await cloud.stop()
        await fill(kafka, f"{unique}.waybill.frames")
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
    print(f"\n\nrouter into a real Kafka on the same {os.cpu_count()} cores, frames of {FRAME}, all in transactions:")
    print(f"  {messages / seconds:>10,.0f} messages/s   {1e6 * cpu / messages:.2f} CPU-µs a message")

"""The agent's broker beside mosquitto and amqtt: rates as ratios of one run on one machine.

Each broker is started anew for each case and loaded in turns by the same generator (``load.c``, a process of its own),
so that a busy moment of the machine hits all alike. The agent acknowledges what its commit has brought to the disk;
mosquitto and amqtt what they have in memory. What the agent acknowledged is counted in its buffer afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fleet_simulator.ports import free_port
from fleet_simulator.processes import Process, until, waybill
from waybill import snapshot

pytestmark = pytest.mark.bench

ROUNDS = 3
LIMIT = 0.8
"""Share of a core from which on the generator's own speed is what is measured."""
IDLE = 10_000


class Case(NamedTuple):
    """What is published: ``messages`` in all, over ``clients`` connections with ``window`` unacknowledged each."""

    title: str
    clients: int
    window: int
    messages: int
    qos: int
    subscribers: int = 0


CASES = [
    Case("QoS 1, 50 clients × 100 in flight", 50, 100, 600_000, 1),
    Case("the same with one subscriber, QoS 1", 50, 100, 300_000, 1, 1),
    Case("QoS 1, 1,000 clients, one in flight each", 1000, 1, 150_000, 1),
    Case("QoS 2, 50 clients × 100 in flight", 50, 100, 200_000, 2),
    Case("QoS 0, 50 clients", 50, 100, 1_000_000, 0),
]
SIZE = 100
"""Bytes of payload."""


def edge(directory: Path, port: int, loop: str = "asyncio") -> Process:
    config = directory / "agent.toml"
    config.write_text(
        f'gateway = "bench"\ndata = "data"\nevent_loop = "{loop}"\n[[listener]]\nport = {port}\n'
        f"[limits]\nmax_connections = {IDLE + 100}\nmax_connections_per_address = {IDLE + 100}\n"
    )
    return Process("waybill edge", waybill("edge", "run", "--config", str(config)), directory / "edge.log")


def edge_on_uvloop(directory: Path, port: int) -> Process:
    return edge(directory, port, "uvloop")


def amqtt(directory: Path, port: int) -> Process:
    config = directory / "amqtt.yaml"
    config.write_text(
        f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{port}\n    max_connections: {IDLE + 100}\n"
        "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
    )
    command = [str(Path(sys.executable).parent / "amqtt"), "-c", str(config)]
    return Process("amqtt", command, directory / "amqtt.log", ready="")


def mosquitto(directory: Path, port: int) -> Process:
    config = directory / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 1000\nmax_queued_messages 0\n"
        "log_type error\n"
    )
    return Process("mosquitto", [program("mosquitto"), "-c", str(config)], directory / "mosquitto.log", ready="")


class Broker(NamedTuple):
    """How it is started, and the share of a case's messages that keeps it busy for some seconds."""

    start: Callable[[Path, int], Process]
    share: float = 1.0


BROKERS = {
    "waybill edge": Broker(edge),
    "waybill edge, uvloop": Broker(edge_on_uvloop),
    "mosquitto": Broker(mosquitto),
    "amqtt": Broker(amqtt, 0.05),
}


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, f"{name} is not installed: run make test-system once, or apt-get install -y {name}"
    return found


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generator, compiled."""
    import subprocess

    made = tmp_path_factory.mktemp("load") / "load"
    source = Path(__file__).parent / "load.c"
    subprocess.run([program("cc"), "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(made), str(source)], check=True)
    return made


@contextlib.asynccontextmanager
async def serving(name: str, directory: Path) -> AsyncIterator[tuple[int, int]]:
    """Run a broker of its own; yields its port and process id."""
    directory.mkdir()
    port = free_port()
    process = BROKERS[name].start(directory, port)
    try:
        await process.start()
        await until(f"{name} listens", lambda: listens(port) or not process.running, 30)
        yield port, process.pid
    finally:
        await process.stop()


def listens(port: int) -> bool:
    import socket

    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def rss(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def said(process: asyncio.subprocess.Process) -> dict[str, float]:
    assert process.stdout is not None
    figures: dict[str, float] = json.loads(await process.stdout.readline() or b"{}")
    return figures


async def publish(load: Path, port: int, case: Case, share: float) -> dict[str, float]:
    messages = int(case.messages * share) // case.clients * case.clients
    arguments = [port, "publish", case.clients, case.window, SIZE, messages, case.qos, case.subscribers]
    process = await asyncio.create_subprocess_exec(
        str(load), *map(str, arguments), stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    figures = await said(process)
    assert await process.wait() == 0
    assert figures["messages"] == messages
    assert figures["received"] == messages * case.subscribers
    return figures


async def stored(directory: Path) -> int:
    """Return how many messages wait in the agent's buffer."""
    answer = await snapshot.request(directory / "data" / "agent.sock", "snapshot")
    return sum(lane["count"] for lane in answer["lanes"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
async def test_messages(case: Case, load: Path, tmp_path: Path) -> None:
    rates: dict[str, list[float]] = {name: [] for name in BROKERS}
    busy: dict[str, list[float]] = {name: [] for name in BROKERS}
    for number in range(ROUNDS):
        for name, broker in BROKERS.items():
            directory = tmp_path / f"{number}-{name.replace(' ', '-')}"
            async with serving(name, directory) as (port, _):
                figures = await publish(load, port, case, broker.share)
                if name.startswith("waybill"):  # an ack counts only where the message is kept
                    assert await stored(directory) == figures["messages"]
            rates[name].append(figures["messages"] / figures["seconds"])
            busy[name].append(figures["cpu"] / figures["seconds"])
    print(f"\n\n{case.title}, {SIZE} bytes: messages/s, median of {ROUNDS}, and the ratio to mosquitto")
    base = statistics.median(rates["mosquitto"])
    for name in BROKERS:
        rate, share = statistics.median(rates[name]), statistics.median(busy[name])
        note = f"   (the generator was busy for {share:.0%}: it is the limit)" if share > LIMIT else ""
        print(f"  {name:22} {rate:>10,.0f}   {rate / base:6.2f} ×{note}")


async def test_connections(load: Path, tmp_path: Path) -> None:
    print(f"\n\n{IDLE:,} connections, idle after CONNECT: accepted a second, resident memory of each")
    for name in BROKERS:
        async with serving(name, tmp_path / name.replace(" ", "-")) as (port, pid):
            before = rss(pid)
            process = await asyncio.create_subprocess_exec(
                str(load),
                str(port),
                "connect",
                str(IDLE),
                stdout=asyncio.subprocess.PIPE,
                stdin=asyncio.subprocess.PIPE,
            )
            figures = await said(process)
            assert figures["connections"] == IDLE
            size = (rss(pid) - before) / IDLE
            print(f"  {name:22} {IDLE / figures['seconds']:>10,.0f}   {size / 1000:6.1f} kB")
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()

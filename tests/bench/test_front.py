"""Gateways in front of ``waybill cloud run``: what a connected one costs, how fast all return, and frames a second.

The embedded log where no other is said, so that nothing else runs on the machine. Gateways are bytes on sockets here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from cloud_ingest.status import CloudSnapshot
from fleet_simulator.ports import free_port
from fleet_simulator.processes import Process, waybill
from tests.bench.test_router import cpu_seconds
from tests.integration.cloud.gateway import Pki
from tests.unit.mqtt import rig
from waybill import snapshot, wire
from waybill.frames.plain import encode_plain
from waybill.lifecycle import allow_connections

pytestmark = pytest.mark.bench

FLEET = int(os.environ.get("WAYBILL_FLEET", "10000"))
FRAMES, SIZE, SENDERS, WINDOW = 6_000, 25_000, 8, 160
PATIENCE = 300.0


def node(directory: Path, made: Pki | None, kafka: str = "") -> tuple[Process, int, Path]:
    """Return a node, its port and its data directory; with ``made`` over TLS, with ``kafka`` into that one."""
    port, data = free_port(), directory / "data"
    files = (
        f'certificate = "{made.server.certificate}"\nkey = "{made.server.key}"\nca = "{made.server.ca}"\n'
        if made
        else ""
    )
    name = f"bench-{secrets.token_hex(4)}"
    log = f'[log]\nkind = "kafka"\n"bootstrap.servers" = "{kafka}"\n[topics]\nprefix = "{name}."\n' if kafka else ""
    config = directory / "cloud.toml"
    config.write_text(
        f'deployment = "{name}"\ndata = "{data}"\n[listener]\naddress = "127.0.0.1:{port}"\n{files}drain = 1.0\n'
        f"connections = {FLEET + 1000}\n{log}"
    )
    return Process("node", waybill("cloud", "run", "--config", str(config)), directory / "log"), port, data


def resident(pid: int) -> int:
    """Return the resident memory of a process, bytes."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


async def connect(
    name: str, port: int, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect a gateway that listens to its acks and commands."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, limit=1 << 20)
            topics = rig.subscribe((wire.ack_topic(name), 0), (wire.down_topic(name), 0))
            writer.write(rig.connect(name, keepalive=0) + topics)
            await reader.readexactly(4)
            return reader, writer
        except (OSError, asyncio.IncompleteReadError):  # taken over, in the queue for too long
            await asyncio.sleep(1)


async def all_of(count: int, work: Callable[[int], Awaitable[object]], at_once: int) -> None:
    """Do ``work(n)`` for all n, so many at once."""
    numbers = iter(range(count))

    async def one() -> None:
        for number in numbers:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one())


async def when(data: Path, so: Callable[[CloudSnapshot], bool]) -> None:
    """Wait until the node says that it is so."""
    async with asyncio.timeout(PATIENCE):
        while not so(await shot(data)):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


async def shot(data: Path) -> CloudSnapshot:
    """Ask the node how it is."""
    return msgspec.convert(await snapshot.request(data / "cloud.sock", "snapshot"), CloudSnapshot)


async def test_what_a_connected_gateway_costs(tmp_path: Path) -> None:
    allow_connections(FLEET + 100)
    process, port, data = node(tmp_path, None)
    await process.start()
    try:
        held: list[asyncio.StreamWriter] = []

        async def come(number: int) -> None:
            held.append((await connect(f"g{number}", port, None))[1])

        await all_of(100, come, 10)
        before = resident(process.pid)
        began = time.monotonic()
        await all_of(FLEET, lambda number: come(100 + number), 200)
        seconds = time.monotonic() - began
        await when(data, lambda node: node.connected == FLEET + 100)
        await asyncio.sleep(3)  # what is written of their presence is let go
        each = (resident(process.pid) - before) / FLEET
        print(f"\n{FLEET} gateways over TCP: {each / 1000:.1f} kB each; {FLEET / seconds:,.0f} a second")
        for writer in held:
            writer.transport.abort()
        assert each <= 20_000
    finally:
        await process.kill()


async def test_a_fleet_that_returns_at_once_over_tls(tmp_path: Path) -> None:
    allow_connections(FLEET)
    made = Pki(tmp_path / "pki")
    context = made.gateway("g1")
    process, port, data = node(tmp_path, made)
    await process.start()
    try:
        # one certificate, so one gateway: what counts is the handshake, and each takes over from the one before
        began = time.monotonic()

        async def come(_: int) -> None:
            writer = (await connect("g1", port, context))[1]
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        await all_of(FLEET, come, 500)
        seconds = time.monotonic() - began
        print(f"\n{FLEET} connections over TLS: {seconds:.0f} s, {FLEET / seconds:,.0f} a second")
        assert seconds <= 120
        assert (await shot(data)).state == "running"
    finally:
        await process.kill()


@pytest.mark.parametrize("log", ["the embedded log", "Kafka"])
async def test_frames_a_second_into_the_journal_over_tls(
    request: pytest.FixtureRequest, tmp_path: Path, log: str
) -> None:
    kafka: str = request.getfixturevalue("kafka") if log == "Kafka" else ""
    made = Pki(tmp_path / "pki")
    contexts = [made.gateway(f"g{number}") for number in range(SENDERS)]
    process, port, data = node(tmp_path, made, kafka)
    await process.start()
    try:
        sent = [_frames() for _ in range(SENDERS)]
        links = [await connect(f"g{number}", port, contexts[number]) for number in range(SENDERS)]
        await when(data, lambda node: all(each.state == "ready" for each in node.partitions))
        began, spent = time.monotonic(), cpu_seconds(process.pid)

        async def send(number: int) -> None:
            """Send what is this gateway's, at most WINDOW frames ahead of what is acknowledged."""
            reader, writer = links[number]
            topic = wire.up_topic(f"g{number}")
            ahead = 0
            for frame in sent[number]:
                writer.write(rig.publish(topic, frame, 0))
                ahead += 1
                while ahead == WINDOW:
                    ahead -= await _acked(reader)
            while ahead:
                ahead -= await _acked(reader)

        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(send(number) for number in range(SENDERS)))
        seconds, spent = time.monotonic() - began, cpu_seconds(process.pid) - spent
        size = sum(len(frame) for frame in sent[0]) / len(sent[0])
        print(
            f"\nframes of {size / 1000:.0f} kB over TLS into {log}: {FRAMES / seconds:,.0f} a second (aim 2,000), ",
            end="",
        )
        print(f"{1e6 * spent / FRAMES:.0f} CPU-µs each")
        for _, writer in links:
            writer.transport.abort()
    finally:
        await process.kill()


async def _acked(reader: asyncio.StreamReader) -> int:
    """Return how many frames, of a message each, the next packet acknowledges."""
    head = (await reader.readexactly(1))[0]
    size = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    body = await reader.readexactly(size)
    if head >> 4 != 3:  # no PUBLISH
        return 0
    ack = wire.decode_ack(body[2 + int.from_bytes(body[:2], "big") :])
    assert not ack.retry
    assert not ack.refused
    return sum(span.last - span.first + 1 for span in ack.journaled)


def _frames() -> list[bytes]:
    """Return the frames of one gateway, of content that does not compress."""
    epoch = secrets.randbits(62) + 1
    return [
        encode_plain(
            epoch=epoch,
            prev_epoch=0,
            prev_last=0,
            oldest_epoch=epoch,
            lane="telemetry",
            order="fifo",
            durability="every-commit",
            clock="synced",
            first=first,
            base_ms=0,
            sources=[("vehicles/V1/telemetry", "V1")],
            rows=[(0, 0, 1, secrets.token_bytes(SIZE), b"")],
        )
        for first in range(1, FRAMES // SENDERS + 1)
    ]

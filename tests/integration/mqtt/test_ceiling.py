"""All limits reached at once, in a process of its own: its memory stays below what Settings.ceiling says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.mqtt import limited
from tests.integration.mqtt.conftest import Raw
from tests.unit.mqtt import rig, v5

ROOT = Path(__file__).parents[3]
MORE = 3_500
"""Messages of 50 kB: 175 MB, more than the ceiling."""

PAYLOAD = b"x" * 50_000


@dataclass
class Server:
    process: Process
    port: int
    raws: list[Raw] = field(default_factory=list)

    async def connect(self, packet: bytes, answer: int = 4) -> Raw:
        raw = Raw(*await asyncio.open_connection("127.0.0.1", self.port))
        self.raws.append(raw)
        await raw.send(packet)
        if answer:
            await asyncio.wait_for(raw.reader.readexactly(answer), 60)
        return raw

    async def say(self, what: str) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n".encode())
        found: dict[str, int] = json.loads(await asyncio.wait_for(self.process.stdout.readline(), 60))
        return found

    async def until(self, condition: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        async with asyncio.timeout(60):
            while not condition(found := await self.say("stats")):  # noqa: ASYNC110 - a process is asked
                await asyncio.sleep(0.02)
        return found

    def memory(self, name: str) -> int:
        """VmRSS or VmHWM (the most it ever was), bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", text)
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", limited.__name__, stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    server = Server(process, int(await asyncio.wait_for(process.stdout.readline(), 60)))
    yield server
    for raw in server.raws:
        raw.writer.transport.abort()
    await asyncio.sleep(0)  # and closed
    process.stdin.close()
    await asyncio.wait_for(process.wait(), 60)


async def acknowledged(device: Raw, packets: list[bytes]) -> None:
    """Send QoS 1, with what TCP takes under way."""
    reading = asyncio.create_task(device.reader.readexactly(4 * len(packets)), name="acks")
    for packet in packets:
        await device.send(packet)
    await asyncio.wait_for(reading, 60)


async def unread(raw: Raw) -> None:
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined] # of the reading side


async def test_memory_stays_below_the_ceiling(server: Server) -> None:
    settings = limited.SETTINGS
    device = await server.connect(rig.connect("device"))
    await acknowledged(device, [rig.publish("a", PAYLOAD, 1, n) for n in range(1, 50)])
    before = server.memory("VmRSS")

    for n in range(20):  # queues, and the subscriptions of sleeping sessions
        sub = await server.connect(rig.connect(f"sleeps{n}", clean=False))
        await sub.send(rig.subscribe(("q/#", 1)))
        await sub.expect(rig.suback(1))
        sub.reset()
    await acknowledged(device, [rig.publish(f"q/{n}", PAYLOAD, 1, n) for n in range(1, MORE)])
    counts = await server.say("stats")
    assert counts["dropped"] > MORE

    await acknowledged(device, [rig.publish(f"kept/{n}", PAYLOAD, 1, n, retain=True) for n in range(1, MORE)])
    assert (await server.say("stats"))["unretained"] > MORE // 2

    for n in range(20):
        await server.connect(rig.connect(f"will{n}", will=("w", b"x" * 60_000, 1, False)))
    deep = "/".join("l" * 30)
    for n in range(5):
        greedy = await server.connect(rig.connect(f"greedy{n}"))
        for part in range(0, 1_000, 100):
            await greedy.send(rig.subscribe(*[(f"{n}/{part + each}/{deep}", 1) for each in range(100)]))
            await asyncio.wait_for(greedy.reader.readexactly(105 - 1), 60)
    for n in range(3):
        twice = await server.connect(v5.connect(f"twice{n}"), 0)
        await twice.send(*[v5.publish(f"t/{each}", b"x", 2, each) for each in range(1, 4_000)])
    await server.until(lambda counts: counts["received_2"] > 4_000)
    assert (await server.say("stats"))["over_quota"] > 3_000

    for n in range(15):  # who does not read
        deaf = await server.connect(rig.connect(f"deaf{n}"))
        await deaf.send(rig.subscribe(("flood", 0)))
        await deaf.expect(rig.suback(0))
        await unread(deaf)
    dropped = (await server.say("stats"))["dropped"]
    for _ in range(MORE):
        await device.send(rig.publish("flood", PAYLOAD))
    await device.send(rig.publish("a", b"", 1, 1))
    await device.expect(rig.puback(1))
    assert (await server.say("stats"))["dropped"] > dropped + 10 * MORE

    whole = rig.packet(0x30, rig.text("t") + b"x" * 200_000)
    for n in range(25):  # who does not end what it began
        slow = await server.connect(rig.connect(f"slow{n}"))
        await slow.send(whole[:-1])
    await server.until(lambda counts: counts["crowded"] > 0)

    await server.say("hold")  # a store that is stuck
    senders = [await server.connect(rig.connect(f"sender{n}"), 0) for n in range(10)]
    sending = [
        asyncio.create_task(each.send(*[rig.publish("a", PAYLOAD, 1, n) for n in range(1, 400)]), name="sender")
        for each in senders
    ]
    await server.until(lambda counts: counts["uncommitted"] > settings.uncommitted_bytes_all and counts["paused"] > 20)
    peak = server.memory("VmHWM")
    await server.say("go")
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(asyncio.gather(*sending), 60)
    grown = peak - before
    assert grown < settings.ceiling()
    assert grown > sum(  # they were full
        (settings.queue_bytes_all // 2, settings.retained_bytes // 2, settings.uncommitted_bytes_all)
    )

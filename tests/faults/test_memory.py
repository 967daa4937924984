"""The agent's memory after many connections, messages and abrupt ends is what it was: nothing is left of them.

Two rounds fill what is kept on purpose, up to its bounds; a third one of the same size must add nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path

from tests.integration.edge.agents import process
from tests.integration.edge.peer import GATEWAY, Cloud, listening, until
from tests.support.mqtt import Peer
from tests.unit.mqtt import rig
from waybill.mqtt.state import Batch

LONG = os.environ.get("WAYBILL_LONG") == "1"
CONNECTS = 10_000 if LONG else 500
RESETS = 10_000 if LONG else 500
MESSAGES = 1_000_000 if LONG else 30_000
AT_ONCE = 20
BURST = 250
ALLOWED = 1.1

CONFIG = """
gateway = "{gateway}"
data = "data"
[[listener]]
port = 0
[[uplink]]
url = "mqtt://{host}:{port}"
[forward]
linger_ms = 20
"""


class Forgetful(Cloud):
    """A cloud that acknowledges and counts, and keeps nothing."""

    count = 0

    async def commit(self, batch: Batch) -> None:
        await super().commit(batch)
        self.count += sum(header.count for header in self.headers if header.lane == "telemetry")
        self.headers.clear()
        self.journal.clear()
        self.states.clear()


class Load:
    """Clients of both versions against one agent, ``AT_ONCE`` at a time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.stored = 0

    async def all(self, count: int, one: Callable[[int], Coroutine[None, None, None]]) -> None:
        """Do ``one`` for each number."""
        numbers = iter(range(count))

        async def work() -> None:
            for n in numbers:
                await one(n)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())

    async def come_and_go(self, n: int) -> None:
        """Connect, subscribe, publish, disconnect; the sessions of version 5 stay behind until they come again."""
        peer = Peer(f"c{n}", 4 + n % 2, self.port, clean=n % 2 == 0)
        await peer.connect()
        await peer.subscribe(f"cmd/{n}/#", 1)
        await peer.send(peer.publish_packet(f"v/{n}", b"x" * 200, 1, 1, dup=False))
        assert (await peer.next()).kind == 0x40
        await peer.send(rig.DISCONNECT)
        await peer.close()
        self.stored += 1

    async def reset(self, n: int) -> None:
        """Go with RST in the middle of everything, with a will."""
        peer = Peer(f"r{n}", 4 + n % 2, self.port, clean=n % 3 == 0)
        await peer.connect(will=("v/will", b"gone", 1))
        await peer.subscribe(f"own/{n}", 2)
        await peer.send(
            peer.publish_packet(f"own/{n}", b"y" * 500, 1, 1, dup=False),
            peer.publish_packet(f"own/{n}", b"y" * 500, 2, 2, dup=False),
            peer.publish_packet(f"own/{n}", b"y" * 500, 1, 3, dup=False)[:-100],
        )
        await peer.next()
        await peer.close(reset=True)

    async def forget(self, n: int) -> None:
        """End the session that a reset left."""
        peer = Peer(f"r{n}", 4, self.port, clean=True)
        await peer.connect()
        await peer.send(rig.DISCONNECT)
        await peer.close()

    async def talk(self, n: int) -> None:
        """Publish ``BURST`` messages to a topic of many."""
        peer = Peer(f"t{n % 100}", 4 + n % 2, self.port, clean=True)
        await peer.connect()
        packets = [peer.publish_packet(f"t/{n % 100}/{k}", b"z" * 100, 1, k + 1, dup=False) for k in range(BURST)]
        await peer.send(*packets)
        for _ in range(BURST):
            assert (await peer.next()).kind == 0x40
        await peer.send(rig.DISCONNECT)
        await peer.close()
        self.stored += BURST

    async def round(self) -> None:
        await self.all(CONNECTS, self.come_and_go)
        await self.all(RESETS, self.reset)
        await self.all(RESETS, self.forget)
        await self.all(MESSAGES // BURST, self.talk)


def rss(pid: int) -> int:
    """Resident memory of a process, KiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


async def test_memory_is_what_it_was(tmp_path: Path) -> None:
    cloud = Forgetful()
    async with listening(cloud):
        config = tmp_path / "edge.toml"
        config.write_text(CONFIG.format(gateway=GATEWAY, host=cloud.address[0], port=cloud.address[1]))
        async with process("run", "--config", str(config)) as agent:
            await agent.ready()
            load = Load(agent.port)
            memory: list[int] = []
            for _ in range(3):
                await load.round()
                await until(lambda: cloud.count >= load.stored, 120)
                memory.append(rss(agent.process.pid))
            assert memory[2] <= memory[1] * ALLOWED, memory

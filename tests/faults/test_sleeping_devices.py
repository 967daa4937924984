"""Messages for a device that sleeps, while the whole agent is killed with SIGKILL again and again.

Publisher and sleeper go by the book: the publisher sends again what was not acknowledged, with DUP, and QoS 2 by packet
id. Then every message arrives, in order; of QoS 2 once; of QoS 1 a copy only with DUP.
"""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.integration.edge.agents import process
from tests.integration.edge.peer import until
from tests.support.mqtt import Peer
from tests.unit.mqtt import rig

LONG = os.environ.get("WAYBILL_LONG") == "1"
MESSAGES = 5_000 if LONG else 400
KILLS = 10 if LONG else 3
WINDOW = 20


class Publisher:
    """Publishes numbers, ``WINDOW`` at a time."""

    def __init__(self, peer: Peer, qos: int) -> None:
        self.peer = peer
        self.qos = qos
        self.next = 0
        self.done = 0
        self.open: dict[int, tuple[bytes, bool]] = {}  # by packet id: payload, and whether PUBREC has come

    def has(self, count: int) -> bool:
        """Say whether so many are acknowledged."""
        return self.done >= count

    async def run(self) -> None:
        while self.done < MESSAGES:
            try:
                await self._connection()
            except (OSError, asyncio.IncompleteReadError):
                await self.peer.close()
        await self.peer.close()

    def _packet(self, pid: int, payload: bytes, *, dup: bool) -> bytes:
        return self.peer.publish_packet("cmd/x", payload, self.qos, pid, dup=dup)

    async def _connection(self) -> None:
        present = await self.peer.connect()
        assert present or not self.next
        for pid, (payload, received) in self.open.items():
            await self.peer.send(rig.pubrel(pid) if received else self._packet(pid, payload, dup=True))
        while self.done < MESSAGES:
            while len(self.open) < WINDOW and self.next < MESSAGES:
                pid = self.next % 65_535 + 1
                self.open[pid] = (b"%d" % self.next, False)
                self.next += 1
                await self.peer.send(self._packet(pid, self.open[pid][0], dup=False))
            packet = await self.peer.next()
            if packet.kind == 0x50:
                self.open[packet.pid] = (self.open[packet.pid][0], True)
                await self.peer.send(rig.pubrel(packet.pid))
            else:
                assert packet.kind == (0x40 if self.qos == 1 else 0x70)
                del self.open[packet.pid]
                self.done += 1


class Sleeper:
    """Takes what comes. ``heard``: by packet semantics; ``first``: each payload where it came first."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.heard: list[bytes] = []
        self.held: dict[int, bytes] = {}

    async def take(self, until_heard: int) -> None:
        """Take and answer until so many different messages were heard."""
        while len(set(self.heard)) < until_heard:
            packet = await self.peer.next()
            dup = bool(packet.flags & 8)
            if packet.kind == 0x60:
                self.held.pop(packet.pid, None)
                await self.peer.send(rig.pubcomp(packet.pid))
            elif packet.qos == 1:
                assert dup or packet.body not in self.heard
                self.heard.append(packet.body)
                await self.peer.send(rig.puback(packet.pid))
            elif packet.pid in self.held:
                assert dup
                assert self.held[packet.pid] == packet.body
                await self.peer.send(rig.pubrec(packet.pid))
            else:
                assert packet.body not in self.heard
                self.held[packet.pid] = packet.body
                self.heard.append(packet.body)
                await self.peer.send(rig.pubrec(packet.pid))


@pytest.mark.parametrize("level", [4, 5])
@pytest.mark.parametrize("qos", [1, 2])
async def test_b1_what_waits_for_a_sleeping_device_survives_sigkill(
    tmp_path: Path, free_port: int, level: int, qos: int
) -> None:
    arguments = ("run", "--listen", f"127.0.0.1:{free_port}", "--data", str(tmp_path / "data"))
    sleeper = Sleeper(Peer("sleeper", level, free_port))
    publisher = Publisher(Peer("publisher", 9 - level, free_port), qos)
    async with asyncio.timeout(300), asyncio.TaskGroup() as group:
        async with process(*arguments) as agent:
            await agent.ready()
            assert not await sleeper.peer.connect()
            await sleeper.peer.subscribe("cmd/#", qos)
            await sleeper.peer.close(reset=True)
            publishing = group.create_task(publisher.run())
            await until(lambda: publisher.done > 10)
            await agent.end(signal.SIGKILL)
        for kill in range(1, KILLS):
            async with process(*arguments) as agent:
                await agent.ready()
                await until(partial(publisher.has, MESSAGES * kill // KILLS))
                await agent.end(signal.SIGKILL)
        async with process(*arguments) as agent:
            await agent.ready()
            await publishing
            assert await sleeper.peer.connect()
            await sleeper.take(MESSAGES // 4)
            await agent.end(signal.SIGKILL)
            await sleeper.peer.close()
        async with process(*arguments) as agent:
            await agent.ready()
            assert await sleeper.peer.connect()
            await sleeper.take(MESSAGES // 2)
            await sleeper.peer.close(reset=True)
            assert await sleeper.peer.connect()
            await sleeper.take(MESSAGES)
            await sleeper.peer.close()
            assert await agent.end(signal.SIGTERM) == 0
    assert list(dict.fromkeys(sleeper.heard)) == [b"%d" % n for n in range(MESSAGES)]
    if qos == 2:
        assert len(sleeper.heard) == MESSAGES

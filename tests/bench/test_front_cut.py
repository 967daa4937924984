"""A whole fleet that is cut off with frames in flight, and returns at once, by admission: nothing acked is missing.

Ten thousand gateways over TLS, each with a certificate of its own, in several processes and from several addresses. The
node is stopped while each sends, killed while it works through that, and started again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from pathlib import Path

import pytest

from cloud_ingest.journal.embedded_reader import open_reader
from cloud_ingest.journal.port import TopicRecord
from tests.bench.test_front import FLEET, node, when
from tests.integration.cloud.gateway import Pki
from tests.support.windowed import FRAME
from waybill import pki

pytestmark = pytest.mark.bench

CLIENTS = 4
PATIENCE = 600.0
PROGRAM = Path(__file__).with_name("front_gateways.py")


class Clients:
    """The processes that the gateways are in."""

    def __init__(self, processes: list[Process]) -> None:
        self.processes = processes

    async def say(self, word: str) -> None:
        """Wait until all have said it."""
        for process in self.processes:
            assert process.stdout is not None
            async with asyncio.timeout(PATIENCE):
                assert (await process.stdout.readline()).decode().strip() == word

    def order(self, word: str) -> None:
        """Give an order to all."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n".encode())

    async def end(self) -> tuple[int, dict[str, int], dict[str, int]]:
        """End them; return how often was connected, and of each gateway the acked frames and the messages made."""
        connections, acked, made = 0, {}, {}
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
            said, _ = await process.communicate()
            first, *lines = said.decode().split("\n")
            connections += int(first.removeprefix("connections "))
            for line in filter(None, lines):
                name, frames, messages = line.split()
                acked[name], made[name] = int(frames), int(messages)
        return connections, acked, made


async def _start(files: Path, port: int) -> Clients:
    each = FLEET // CLIENTS
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
    return Clients(
        [
            await asyncio.create_subprocess_exec(
                *(sys.executable, str(PROGRAM), str(files), str(port)),
                *(str(number * each), str(each), f"127.0.0.{number + 2}"),
                stdin=PIPE,
                stdout=PIPE,
                env=environment,
            )
            for number in range(CLIENTS)
        ]
    )


async def _found(data: Path, messages: int) -> Counter[str]:
    """Return how often each message is in the routed topic, once ``messages`` are there."""
    async with open_reader(data / "log.db", "waybill.frames") as reader, asyncio.timeout(PATIENCE):
        while True:
            found: Counter[str] = Counter()
            async for record in reader.follow(["fleet.telemetry"], end=True):
                if isinstance(record, TopicRecord):
                    found[dict(record.headers)["ce_id"].decode()] += 1
            if len(found) >= messages:
                return found
            await asyncio.sleep(1)


async def test_a_fleet_that_is_cut_off_with_frames_in_flight_returns_by_admission_and_loses_nothing(
    tmp_path: Path,
) -> None:
    made = Pki(tmp_path / "pki")
    for number in range(FLEET):
        pki.issue_gateway(made.directory / "ca", made.directory / f"g{number}", f"g{number}", now=made.now)
    process, port, data = node(tmp_path, made)
    await process.start()
    clients = await _start(made.directory, port)
    try:
        began = time.monotonic()
        await clients.say("connected")
        sys.stderr.write(f"\n{FLEET} gateways over TLS are there after {time.monotonic() - began:.0f} s\n")
        clients.order("send")
        await clients.say("sent")
        clients.order("told")
        await clients.say("idle")
        process.pause()
        clients.order("send")
        await clients.say("sent")  # each has a frame under way, and nobody has an answer
        before = process.pid
        process.resume()
        await asyncio.sleep(0.5)  # some of it is journaled, some of that is answered
        await process.kill()
        await process.start()
        assert process.pid != before
        began = time.monotonic()
        clients.order("told")
        await when(data, lambda shot: shot.connected == FLEET)
        back = time.monotonic() - began
        await clients.say("idle")
        sys.stderr.write(f"cut off: {back:.0f} s until all are back, {time.monotonic() - began:.0f} s until acked\n")
        connections, acked, messages = await clients.end()
        assert connections >= 2 * FLEET
        assert set(acked.values()) == {2}
        found = await _found(data, sum(messages.values()))
        expected = {f"{name}/1/telemetry/{seq}" for name in acked for seq in range(1, 2 * FRAME + 1)}
        missing = expected - found.keys()
        assert not missing
        assert len(found) == sum(found.values()) == len(expected)
        assert back <= 120
    finally:
        for client in clients.processes:
            if client.returncode is None:
                client.kill()
        await process.kill()

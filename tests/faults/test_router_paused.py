"""An ingest process that is paused past its session time-out, and goes on: each record once, in order (R1, R3).

Two real ingests share a deployment on a real Kafka, a partition each; under load one of them is stopped with SIGSTOP.
The other one takes over; when the first goes on it finds itself fenced, asks the group anew, and routes again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiomqtt

from cloud_ingest.journal.keys import partition_of
from fleet_simulator.ports import free_ports
from fleet_simulator.processes import Process, waybill
from tests.integration.cloud.gateway import EPOCH, Gateway
from tests.support.gateway import Epoch, expected
from tests.support.java_consumer import read_committed
from tests.support.kafka_log import make_log, values
from waybill import snapshot, wire

NAMES = [f"g{number}" for number in range(100)]
GATEWAYS = [name for number in (0, 1) for name in [n for n in NAMES if partition_of(n.encode(), 2) == number][:2]]
ONE = Epoch(EPOCH)
CONFIG = """
deployment = "{name}"
data = "data"
[listener]
address = "127.0.0.1:{port}"
[log]
kind = "kafka"
"bootstrap.servers" = "{bootstrap}"
"session.timeout.ms" = 6000
[topics]
prefix = "{name}."
partitions = 2
[[route]]
topic = "{name}.fleet"
key = "{{gateway}}"
"""


class Ingest:
    """A ``waybill cloud run`` of the deployment ``name``."""

    def __init__(self, directory: Path, bootstrap: str, name: str) -> None:
        directory.mkdir()
        [self.port] = free_ports(1)
        self._socket = directory / "data" / "cloud.sock"
        file = directory / "cloud.toml"
        file.write_text(CONFIG.format(name=name, port=self.port, bootstrap=bootstrap))
        self.process = Process(directory.name, [*waybill("cloud", "run"), "--config", str(file)], directory / "log")

    async def positions(self) -> dict[int, int]:
        """Return the partitions that it routes, and how far each is."""
        answer = await snapshot.request(self._socket, "snapshot")
        return {one["partition"]: one["position"] for one in answer["partitions"] if one["state"] == "ready"}

    async def routes(self, count: int) -> dict[int, int]:
        """Wait until it routes ``count`` partitions, and each goes on; return them as ``positions`` does."""
        async with asyncio.timeout(180):
            before: dict[int, int] = {}
            while True:
                found = await self.positions()
                if len(found) == count == len(before) and all(found[n] > before.get(n, found[n]) for n in found):
                    return found
                if before.keys() != found.keys():
                    before = found
                await asyncio.sleep(0.1)


async def publishing(ingest: Ingest, name: str, enough: asyncio.Event) -> int:
    """Send frames of ten as the gateway ``name``, the next when one is acked; return the last seq that was."""
    last = 0
    async with aiomqtt.Client("127.0.0.1", ingest.port, identifier=name, timeout=60) as client:
        gateway = Gateway(name, client)
        listening = asyncio.create_task(gateway.listen())
        await client.subscribe(wire.ack_topic(name))
        while not enough.is_set():
            await gateway.send(ONE.frame(last + 1, last + 10))
            await gateway.journaled(last + 1, last + 10)
            last += 10
            await asyncio.sleep(0.01)
        listening.cancel()
        await asyncio.wait({listening})
    return last


async def read(bootstrap: str, topic: str, count: int) -> dict[str, list[str]]:
    """Return the values in ``topic`` by key, once ``count`` are there, as a Java client finds them."""
    log = make_log(bootstrap, "reader")
    async with asyncio.timeout(180):
        while len(await values(log, topic)) < count:  # noqa: ASYNC110 - other processes' doing
            await asyncio.sleep(0.2)
    found: dict[str, list[str]] = {}
    for record in await read_committed(bootstrap, topic):
        found.setdefault(record.key, []).append(record.value)
    return found


async def test_r3_a_paused_ingest_recovers_and_each_record_is_there_once_and_in_order(
    kafka: str, unique: str, tmp_path: Path
) -> None:
    first, second = (Ingest(tmp_path / name, kafka, unique) for name in ("first", "second"))
    enough = asyncio.Event()
    try:
        await first.process.start()
        await second.process.start()
        # The gateways are the second one's: what is paused here is a router, not a listener.
        gateways = [asyncio.create_task(publishing(second, name, enough)) for name in GATEWAYS]
        mine, _ = await first.routes(1), await second.routes(1)
        first.process.pause()
        both = await second.routes(2)
        assert mine.keys() < both.keys()
        first.process.resume()
        await second.routes(1)
        await first.routes(1)
        enough.set()
        sent = {name: await task for name, task in zip(GATEWAYS, gateways, strict=True)}
        found = await read(kafka, f"{unique}.fleet", sum(sent.values()))
        assert found == {name: expected(EPOCH, 1, last) for name, last in sent.items()}
        assert [await one.process.stop() for one in (first, second)] == [0, 0]
        assert "Traceback" not in first.process.said() + second.process.said()
    finally:
        for one in (first, second):
            await one.process.kill()

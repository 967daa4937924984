"""A site to break: brokers, nodes behind a relay, gateways that publish through it all, and the judge of the outcome.

A ``waybill cloud run`` is a node (gateways connect to it) and a worker (it routes its share of the partitions). Those
that the relay knows are both; the others are workers alone. Everything is a real process and ends by a real signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloud_ingest.audit import audit
from cloud_ingest.config import Topics
from deploy.kafka.cluster import Cluster, java
from fleet_simulator.ports import free_ports
from fleet_simulator.processes import Process, waybill
from tests.support.java_consumer import read_committed
from tests.support.kafka_log import make_log, values
from tests.support.windowed import Gateway, Relay
from waybill import snapshot
from waybill.errors import Unavailable

LONG = os.environ.get("WAYBILL_LONG") == "1"
PARTITIONS = 6
SESSION = 3.0
"""Seconds after which a silent worker's partitions go to others."""

PATIENCE = 240.0
CONFIG = """
deployment = "{name}"
data = "data"
[listener]
address = "127.0.0.1:{port}"
drain = 2.0
[log]
kind = "kafka"
"bootstrap.servers" = "{bootstrap}"
"session.timeout.ms" = 3000
"request.timeout.ms" = 4000
"delivery.timeout.ms" = 4000
"transaction.timeout.ms" = 12000
"metadata.max.age.ms" = 5000
delivery = "{delivery}"
[topics]
prefix = "{name}."
partitions = {partitions}
[[route]]
topic = "{name}.fleet"
"""


@dataclass
class Faults:
    """What was done; a run that was not disturbed shows nothing."""

    kills: int = 0
    pauses: int = 0
    brokers: int = 0
    elections: int = 0
    epochs: int = 0


class Node:
    """One ``waybill cloud run``."""

    def __init__(self, directory: Path, bootstrap: str, name: str, delivery: str) -> None:
        directory.mkdir()
        [self.port] = free_ports(1)
        self._socket = directory / "data" / "cloud.sock"
        self.config = directory / "cloud.toml"
        self.config.write_text(
            CONFIG.format(name=name, port=self.port, bootstrap=bootstrap, delivery=delivery, partitions=PARTITIONS)
        )
        command = waybill("cloud", "run", "--config", str(self.config))
        self.process = Process(directory.name, command, directory / "log")
        self.kills = 0

    async def snapshot(self) -> dict[str, Any]:
        """Ask it how it is."""
        async with asyncio.timeout(180):
            answer: dict[str, Any] = await snapshot.request(self._socket, "snapshot")
            return answer

    async def routed(self) -> set[int]:
        """Return the partitions that it routes now."""
        found = (await self.snapshot())["partitions"]
        return {each["partition"] for each in found if each["state"] == "ready"}


@dataclass
class Site:
    """Everything that runs. ``nodes``: the relay knows those it was told of."""

    cluster: Cluster
    name: str
    nodes: list[Node]
    gateways: list[Gateway]
    relay: Relay
    faults: Faults = field(default_factory=Faults)
    _making: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def topic(self) -> str:
        """The routed one."""
        return f"{self.name}.fleet"

    def publish(self) -> None:
        """Let the devices begin."""
        self._making = [asyncio.create_task(gateway.making()) for gateway in self.gateways]

    async def end(self) -> None:
        """Let the devices end."""
        for task in self._making:
            task.cancel()
        await asyncio.gather(*self._making, return_exceptions=True)
        self._making = []

    async def until(self, what: str, so: Callable[[], Awaitable[bool]]) -> None:
        """Wait until it is so; a node that does not answer yet is not so."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    with contextlib.suppress(Unavailable, TimeoutError, OSError):
                        if await so():
                            return
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"never: {what}; faults: {self.faults}") from None

    async def acked(self) -> None:
        """Wait until everything that the devices published is acked."""

        async def so() -> bool:
            return all(gateway.idle for gateway in self.gateways)

        await self.until("all is acked", so)

    async def routed(self) -> None:
        """Wait until the ledger has everything, by the audit."""
        log = make_log(self.cluster.bootstrap, self.name, partitions=PARTITIONS)
        total = sum(gateway.messages for gateway in self.gateways)
        topics = Topics(prefix=f"{self.name}.", partitions=PARTITIONS)

        async def so() -> bool:
            report = await audit(log, topics)
            return sum(lane.delivered for lane in report.lanes) >= total or report.missing > 0

        try:
            await self.until("all is routed", so)
        finally:
            await log.close()

    async def judged(self) -> None:
        """Compare what others read with what was published: each once, in order by device; and the audit is clean."""
        made = {device: values for gateway in self.gateways for device, values in gateway.made.items()}
        command = waybill("cloud", "audit", "--json", "--config", str(self.nodes[0].config))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        said, _ = await process.communicate()
        report = json.loads(said)
        assert (process.returncode, report["missing"], report["lost"]) == (0, 0, [])
        lanes = report["lanes"]
        assert [lane for lane in lanes if lane["pending"] or lane["dropped"] or lane["dead"] or lane["alarms"]] == []
        assert sum(lane["delivered"] for lane in lanes) == sum(map(len, made.values()))
        assert await self.found() == made

    async def found(self) -> dict[str, list[str]]:
        """Return the values by device as a Java client reads them, committed ones only."""
        found: dict[str, list[str]] = {}
        for record in await read_committed(self.cluster.bootstrap, self.topic):
            found.setdefault(record.key, []).append(record.value)
        return found

    async def doubled(self) -> bool:
        """Whether some value is in the topic twice by now."""
        log = make_log(self.cluster.bootstrap, self.name, partitions=PARTITIONS)
        found = await values(log, self.topic)
        await log.close()
        return len(found) > len(set(found))

    async def settled(self, *nodes: Node) -> None:
        """Wait until ``nodes`` share all partitions evenly, and all gateways."""
        shares: list[set[int]] = []
        gateways: list[int] = []

        async def so() -> bool:
            nonlocal shares, gateways
            shares = [await node.routed() for node in nodes]
            gateways = [(await node.snapshot())["connected"] for node in nodes]
            return (
                sorted(number for share in shares for number in share) == list(range(PARTITIONS))
                and {len(share) for share in shares} == {PARTITIONS // len(nodes)}
                and sum(gateways) == len(self.gateways)
            )

        try:
            await self.until("partitions and gateways are shared", so)
        except AssertionError as error:
            raise AssertionError(f"{error}: partitions {shares}, gateways {gateways}") from None

    # --- faults ---

    async def kill(self, choice: random.Random) -> None:
        """SIGKILL the node that was killed least, and start it again."""
        fewest = min(node.kills for node in self.nodes)
        node = choice.choice([node for node in self.nodes if node.kills == fewest])
        await node.process.kill()
        node.kills += 1
        self.faults.kills += 1
        await asyncio.sleep(choice.uniform(0.1, 1.0))
        await node.process.start(PATIENCE)

    async def pause(self, choice: random.Random) -> None:
        """Stop a node for longer than its session, in the middle of what it does; then let it go on: a zombie."""
        node = choice.choice(self.nodes)
        node.process.pause()
        try:
            await asyncio.sleep(SESSION * 1.7)
        finally:
            node.process.resume()
        self.faults.pauses += 1

    async def lose_broker(self, choice: random.Random) -> None:
        """SIGKILL a broker, start it again, and give it back the partitions that it led."""
        number = choice.choice(list(self.cluster.nodes))
        self.cluster.kill(number)
        self.faults.brokers += 1
        await asyncio.sleep(choice.uniform(1.0, 3.0))
        self.cluster.up(number, wait=False)
        command = [
            *java(tools=True), "org.apache.kafka.tools.LeaderElectionCommand", "--all-topic-partitions",
            "--election-type", "PREFERRED", "--bootstrap-server", self.cluster.bootstrap,
        ]  # fmt: skip
        async with asyncio.timeout(PATIENCE):
            while True:  # until the broker has caught up, it may not lead
                process = await asyncio.create_subprocess_exec(
                    *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
                )
                said, _ = await process.communicate()
                if b"Successfully completed leader election" in said:
                    self.faults.elections += 1
                    return
                await asyncio.sleep(0.5)

    async def chaos(self, choice: random.Random, seconds: float) -> None:
        """Break things at random for so long; everything runs again at the end."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds

        async def break_nodes() -> None:
            while loop.time() < until:
                deck = [self.kill, self.kill, self.kill, self.pause]
                choice.shuffle(deck)
                for fault in deck:
                    await fault(choice)
                    await asyncio.sleep(choice.uniform(0.1, 1.0))
                choice.choice(self.gateways).restart()
                self.faults.epochs += 1

        async def break_brokers() -> None:
            while loop.time() < until:
                await self.lose_broker(choice)
                await asyncio.sleep(choice.uniform(1.0, 5.0))

        async with asyncio.TaskGroup() as group:
            group.create_task(break_nodes())
            group.create_task(break_brokers())


@contextlib.asynccontextmanager
async def site(
    cluster: Cluster,
    name: str,
    directory: Path,
    *,
    nodes: Sequence[str],
    gateways: int,
    pace: float,
    delivery: str = "exactly-once",
    running: int | None = None,
) -> AsyncIterator[Site]:
    """Run a site; the relay knows the nodes whose names begin with ``node``. ``running``: how many are started."""
    made = [Node(directory / each, cluster.bootstrap, name, delivery) for each in nodes]
    relay = Relay(node.port for node in made if node.config.parent.name.startswith("node"))
    await relay.start()
    fleet = [Gateway(f"g{number}", relay.port, pace) for number in range(gateways)]
    sending = [asyncio.create_task(gateway.run()) for gateway in fleet]
    found = Site(cluster, name, made, fleet, relay)
    try:
        await made[0].process.start(PATIENCE)  # alone: it makes the topics
        await asyncio.gather(*(node.process.start(PATIENCE) for node in made[1:running]))
        yield found
    except BaseException:
        for node in made:
            sys.stderr.write(f"--- {node.config.parent.name}\n{node.process.said()[-4000:]}\n")
        raise
    finally:
        await found.end()
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        await relay.close()
        for node in made:
            await node.process.kill()

"""An agent and its cloud with the loopback interface to themselves: what the plan counts, and what the kernel does.

Arguments: a directory, and what is counted (``uplink`` or ``interface:lo``). Prints JSON.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import sys
from pathlib import Path

from edge_agent.buffer.port import Chunk, Commit
from edge_agent.config import ForwardSettings
from edge_agent.plan.meter import counters_of
from edge_agent.plan.plan import PlanSettings
from edge_agent.uplink.config import UplinkSettings
from tests.integration.edge.agents import Running, running
from tests.integration.edge.peer import Cloud, listening, until
from waybill import pki
from waybill.mqtt.codec import publish

PINGS = 5
PACKETS = 3
"""Of a ping: the question, the answer, the acknowledgement of the answer."""


def packets() -> int:
    """Return how many the interface has sent, each of which it has received too."""
    return int(Path("/proc/self/net/dev").read_text().split("lo:")[1].split()[9])


def kernel() -> int:
    """Return their bytes: of this interface from IP upwards."""
    return (counters_of("lo") or (0, 0))[0]


def used(agent: Running) -> int:
    plan = agent.agent.status().plan
    assert plan is not None
    return plan.used


async def main(directory: Path, count: str) -> None:
    now = dt.datetime.now(dt.UTC)
    pki.ca_init(directory / "ca", now=now)
    server = pki.issue_server(directory / "ca", directory / "server", ["127.0.0.1"], now=now)
    mine = pki.issue_gateway(directory / "ca", directory / "gw1", "gw1", now=now)
    context = pki.server_context(server.certificate, server.key, server.ca)
    plan = PlanSettings(10**9, count=count)
    before = counters_of("lo") or (0, 0)
    start = kernel()
    async with listening(Cloud(), context) as cloud:
        link = f"mqtts://127.0.0.1:{cloud.address[1]}"
        uplink = UplinkSettings(link, ca=mine.ca, certificate=mine.certificate, key=mine.key, keepalive=2, metered=True)
        async with running(directory / "data", uplink, ForwardSettings(linger_ms=5), plan=plan) as agent:
            await until(lambda: cloud.subscribed)
            for _ in range(300):
                raw = b"".join(publish(b"vehicles/V7/t", os.urandom(100), 0) for _ in range(10))
                await agent.agent._buffer.commit(Commit([Chunk("telemetry", "V7", 4, 1000, 0, 0, 10, raw)]))
            await until(lambda: len(cloud.payloads) == 3000 and not agent.waiting())
            agent.agent._meter.look()  # type: ignore[union-attr]
            counted, seen = used(agent), kernel() - start
            after = counters_of("lo") or (0, 0)
            idle, number = kernel(), packets()  # pings are all there is from here on
            await until(lambda: packets() >= number + PINGS * PACKETS)
            ping = (kernel() - idle) / (packets() - number) * PACKETS
    grown = sum(after) - sum(before)
    sys.stdout.write(json.dumps({"counted": counted, "kernel": seen, "interface": grown, "ping": ping}))


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))

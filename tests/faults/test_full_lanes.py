"""Lanes that overflow while the cloud is away, end to end: receipts add up exactly to what is missing in the topics."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import aiomqtt

from fleet_simulator.deployment import Deployment, Plan, Site
from tests.support.tools import ended

PLAN = Plan(
    gateways=("depot-1",),
    forward={"linger_ms": 20},
    lanes=(
        {"name": "fresh", "filters": ["fresh/#"], "max_bytes": 65_536, "when_full": "drop-oldest", "priority": 20},
        {"name": "early", "filters": ["early/#"], "max_bytes": 65_536, "when_full": "drop-newest", "priority": 30},
        {"name": "mortal", "filters": ["mortal/#"], "ttl_s": 5, "priority": 40},
    ),
)
LANES = ("fresh", "early", "mortal", "telemetry")
COUNT = 120


async def publish(site: Site, topic: str, first: int, count: int) -> None:
    async with aiomqtt.Client("127.0.0.1", site.broker.port, identifier=topic, timeout=60) as client:
        for number in range(first, first + count):
            await client.publish(f"{topic}/V7", f"{topic}-{number:04d}-{'x' * 2000}", qos=1)


async def tool(deployment: Deployment, *arguments: str) -> str:
    _, out, _ = await ended(*deployment.tool(*arguments))
    return out


async def audited(deployment: Deployment) -> dict[str, Counter[str]]:
    """Return per lane what the ledger says of all its epochs."""
    found: dict[str, Counter[str]] = {lane: Counter() for lane in LANES}
    for one in json.loads(await tool(deployment, "cloud", "audit", "--json"))["lanes"]:
        if one["lane"] in found:
            names = ("last", "delivered", "dropped", "pending", "missing_count")
            found[one["lane"]].update({name: one[name] for name in names})
            found[one["lane"]].update(one["reasons"])
            assert one["alarms"] == []
    return found


async def snapshots(site: Site) -> dict[str, dict[str, Any]]:
    return {lane["lane"]: lane for lane in (await site.snapshot())["lanes"]}


async def test_b5_e5_receipts_add_up_to_what_is_missing_over_an_outage_and_a_kill(tmp_path: Path) -> None:
    async with Deployment(tmp_path, PLAN).running() as deployment:
        site = deployment.sites["depot-1"]
        async with asyncio.timeout(180):
            while await site.link_state() != "online":  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        for lane in LANES:
            await publish(site, lane, 0, 5)
        async with asyncio.timeout(180):
            while await site.backlog():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        await site.link.cut()
        for lane in LANES:
            await publish(site, lane, 5, COUNT - 5)
        shown = await snapshots(site)
        assert shown["fresh"]["dropped"] > 50
        assert shown["early"]["dropped"] > 50
        assert shown["fresh"]["bytes"] <= 65_536
        assert shown["telemetry"]["dropped"] == 0
        async with asyncio.timeout(180):
            while (await snapshots(site))["mortal"]["expired"] < COUNT - 5:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        await site.agent.kill()
        await site.agent.start()
        for lane in LANES:
            await publish(site, lane, COUNT, 10)
        await site.link.restore()
        async with asyncio.timeout(180):
            while any(  # noqa: ASYNC110 - other processes
                each["delivered"] + each["dropped"] < COUNT + 10 for each in (await audited(deployment)).values()
            ):
                await asyncio.sleep(0.5)
        books = await audited(deployment)
        lines = (await tool(deployment, "cloud", "tail", deployment.topic, "--json", "--end")).splitlines()
        values = [json.loads(line)["value"] for line in lines]
        for lane in LANES:
            book, found = books[lane], [int(value.split("-")[1]) for value in values if value.startswith(f"{lane}-")]
            assert found == sorted(set(found))  # in order, once
            assert (book["last"], book["pending"], book["missing_count"]) == (COUNT + 10, 0, 0)
            assert book["delivered"] == len(found)
            assert book["dropped"] == COUNT + 10 - len(found)
            kept = {
                "fresh": list(range(COUNT + 10))[-len(found) + 5 :],
                "early": list(range(5, len(found) - 10)),
                "mortal": list(range(5)),
                "telemetry": list(range(COUNT + 10)),
            }[lane]
            assert set(kept) <= set(found)
        assert books["fresh"]["evicted: full"] == books["fresh"]["dropped"] > 0
        assert books["early"]["dropped: full"] == books["early"]["dropped"] > 0
        assert books["mortal"]["expired: ttl"] == books["mortal"]["dropped"] >= COUNT - 5
        assert books["telemetry"]["dropped"] == 0

"""E1 to E3, end to end: a cloned card, a backup or an old file put back: delivered once, and somebody is told."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiomqtt

from fleet_simulator.deployment import Deployment, Plan, Site
from fleet_simulator.processes import until
from tests.support.tools import ended

PLAN = Plan(gateways=("depot-1",), forward={"linger_ms": 20})


async def publish(site: Site, *payloads: str) -> None:
    async with aiomqtt.Client("127.0.0.1", site.broker.port, identifier="V7", timeout=60) as client:
        for payload in payloads:
            await client.publish("vehicles/V7/telemetry", payload, qos=1)


async def sent(site: Site) -> None:
    """Wait until the cloud has all that the agent has."""
    async with asyncio.timeout(180):
        while await site.backlog():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def tool(deployment: Deployment, *arguments: str) -> str:
    _, out, _ = await ended(*deployment.tool(*arguments))
    return out


async def records(deployment: Deployment, count: int) -> Counter[str]:
    """Return the payloads that are records, once there are ``count`` at least."""
    found: Counter[str] = Counter()
    async with asyncio.timeout(180):
        while found.total() < count:
            lines = (await tool(deployment, "cloud", "tail", deployment.topic, "--json", "--end")).splitlines()
            found = Counter(json.loads(line)["value"] for line in lines)
    return found


async def audit(deployment: Deployment, lane: str = "telemetry") -> list[dict[str, Any]]:
    """Return what the ledger knows of a lane, one entry an epoch."""
    found = json.loads(await tool(deployment, "cloud", "audit", "--json"))
    return [one for one in found["lanes"] if one["lane"] == lane]


async def alarms(deployment: Deployment) -> list[str]:
    shot = json.loads(await tool(deployment, "cloud", "status", "--json"))
    return [alarm["text"] for alarm in shot["alarms"]]


def once(*payloads: Iterable[str]) -> Counter[str]:
    return Counter(payload for each in payloads for payload in each)


def numbered(letter: str, count: int = 30) -> list[str]:
    return [f"{letter}{number}" for number in range(count)]


async def test_e3_a_cloned_card_and_its_origin_are_both_delivered_once_with_an_alarm(tmp_path: Path) -> None:
    """The same is a backup that is restored: what it still had was sent meanwhile, and is sent again."""
    a, b, c = numbered("a"), numbered("b"), numbered("c")
    async with Deployment(tmp_path, PLAN).running() as deployment:
        site = deployment.sites["depot-1"]
        await site.link.cut()
        await publish(site, *a)
        await site.agent.stop()
        shutil.copytree(site.data, tmp_path / "clone")
        await site.link.restore()

        await site.agent.start()
        await publish(site, *b)
        await sent(site)
        await site.agent.stop()
        assert await alarms(deployment) == []

        site.data.rename(tmp_path / "origin")
        (tmp_path / "clone").rename(site.data)
        await site.agent.start()
        await publish(site, *c)
        await sent(site)
        assert await records(deployment, 90) == once(a, b, c)
        lanes = await audit(deployment)
        assert sorted(lane["delivered"] for lane in lanes) == [30, 30, 30]
        assert [lane["missing_count"] for lane in lanes] == [0, 0, 0]
        assert sorted(alarm for lane in lanes for alarm in lane["alarms"]) == ["fork"]
        (alarm,) = await alarms(deployment)
        assert "both follow it: a cloned card or a restored backup" in alarm
        assert alarm in deployment.cloud.said()


async def test_b6_an_old_file_put_back_is_told_at_the_gateway_and_costs_nothing_that_was_delivered(
    tmp_path: Path,
) -> None:
    a, b, c = numbered("a"), numbered("b"), numbered("c")
    async with Deployment(tmp_path, PLAN).running() as deployment:
        site = deployment.sites["depot-1"]
        await publish(site, *a)
        await sent(site)
        await site.agent.stop()
        shutil.copy(site.data / "buffer.db", tmp_path / "old.db")
        await site.agent.start()
        await publish(site, *b)
        await sent(site)
        await site.link.cut()
        await publish(site, "lost 1", "lost 2")
        await site.agent.stop()
        shutil.copy(tmp_path / "old.db", site.data / "buffer.db")
        await site.link.restore()
        await site.agent.start()
        assert "is older than it was" in (await site.snapshot())["alarm"]
        assert "is older than it was" in site.agent.said()
        await publish(site, *c)
        await sent(site)
        assert await records(deployment, 90) == once(a, b, c)
        lanes = await audit(deployment)
        assert sorted((lane["delivered"], lane["dropped"]) for lane in lanes) == [(30, 0), (30, 0), (30, 2)]
        assert [lane["missing_count"] for lane in lanes] == [0, 0, 0]
        assert await alarms(deployment) == []


async def test_e1_a_backup_restored_after_all_of_it_was_sent_is_told_by_the_next_message(tmp_path: Path) -> None:
    a, b, c = numbered("a", 5), numbered("b", 5), numbered("c", 5)
    async with Deployment(tmp_path, PLAN).running() as deployment:
        site = deployment.sites["depot-1"]
        await publish(site, *a)
        await sent(site)
        await site.agent.stop()
        shutil.copytree(site.data, tmp_path / "backup")
        await site.agent.start()
        await publish(site, *b)
        await sent(site)
        await site.agent.stop()
        shutil.rmtree(site.data)
        (tmp_path / "backup").rename(site.data)
        await site.agent.start()
        await publish(site, *c)
        await sent(site)
        assert await records(deployment, 15) == once(a, b, c)
        await until("an alarm", lambda: "cloned card or a restored backup" in deployment.cloud.said(), 60)

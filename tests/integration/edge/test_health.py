"""What the agent says of itself, on its socket and to the cloud."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.health.settings import HealthSettings
from edge_agent.plan.plan import PlanSettings
from edge_agent.status import SOCKET
from tests.integration.edge.agents import publish, running
from tests.integration.edge.conftest import ACCEPTED, Dial
from tests.integration.edge.peer import Cloud, listening, until, url
from tests.unit.mqtt import rig
from waybill import pki, snapshot
from waybill.fleet_state import GatewayDetail, Health, LogState
from waybill.health import unpack
from waybill.pki import server_context

SOON = HealthSettings(1)


async def detail(data: Path) -> GatewayDetail:
    return msgspec.convert(await snapshot.request(data / SOCKET, "gateway"), GatewayDetail)


def told(cloud: Cloud) -> list[Health]:
    return [unpack(payload) for payload in cloud.by_seq("control").values()]


async def test_it_tells_the_cloud_while_the_link_is_up_and_says_all_on_its_socket(
    tmp_path: Path, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with listening(Cloud()) as cloud, running(tmp_path, url(cloud.address), health=SOON) as agent:
        raw = await dial(agent.port, rig.connect("V8"))
        await raw.expect(ACCEPTED)
        await publish(agent.port, [b"x" * 100] * 50)
        await until(lambda: told(cloud) and cloud.payloads.total() == 50 and not agent.waiting())
        first = told(cloud)[0]
        assert (first.version, first.fault) == (agent.agent._version, "")
        assert [link.state for link in first.links] == ["online"]
        assert {lane.lane for lane in first.lanes} == {"control", "telemetry"}

        found = await detail(tmp_path)
        async with asyncio.timeout(60):  # until V7 is known to have gone, and its last frame is counted
            while found.row.devices != 1 or not found.health or found.health.talkers.topics_by_bytes[0].count < 50:
                found = await detail(tmp_path)
        assert found.row.gateway == "gw1"
        assert (found.row.state, found.row.devices) == ("online", 1)
        health = found.health
        assert health is not None
        assert [device.device for device in health.devices] == ["V8"]
        topic = health.talkers.topics_by_bytes[0]
        assert (topic.name, topic.count, topic.bytes) == ("vehicles/V7/telemetry", 50, 50 * 121)
        assert (health.talkers.devices_by_count[0].name, health.talkers.devices_by_count[0].count) == ("V7", 50)
        assert 0 < health.talkers.wire < health.talkers.bytes
        assert health.disk.total > health.disk.free > 0
        assert health.disk.buffer > 0
        log = msgspec.convert(await snapshot.request(tmp_path / SOCKET, "log"), LogState)
        assert any("online at" in line.text for line in log.lines)
        again = msgspec.convert(await snapshot.request(tmp_path / SOCKET, "log", since=log.since), LogState)
        assert not any("online at" in line.text for line in again.lines)


async def test_while_the_link_is_down_nothing_is_buffered_and_the_loss_is_on_the_timeline(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as cloud_there:
        cloud = await cloud_there.enter_async_context(listening(Cloud()))
        async with running(tmp_path, url(cloud.address), health=SOON) as agent:
            await until(lambda: told(cloud))
            await cloud_there.aclose()
            await until(lambda: agent.agent.status().link.state == "offline")
            found = await detail(tmp_path)
            assert (found.row.state, bool(found.row.reason)) == ("offline", True)
            assert found.health is not None
            assert [link.state for link in found.health.links] == ["online", "offline"]
            records = agent.agent._watch.records
            since = agent.agent._clock.mono()
            await until(lambda: agent.agent._clock.mono() > since + 3)
            assert agent.agent._watch.records == records


async def test_when_its_certificate_ends_is_told(tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    ca = pki.ca_init(tmp_path / "ca", now=now)
    server = pki.issue_server(tmp_path / "ca", tmp_path / "server", ["localhost", "127.0.0.1"], now=now)
    mine = pki.issue_gateway(tmp_path / "ca", tmp_path / "gw1", "gw1", now=now, days=30)
    context = server_context(server.certificate, server.key, ca.certificate)
    async with listening(Cloud(), context) as cloud:
        more: dict[str, Any] = {"ca": ca.certificate, "certificate": mine.certificate, "key": mine.key}
        uplink = msgspec.structs.replace(url(cloud.address, "mqtts"), **more)
        async with running(tmp_path / "data", uplink, health=SOON):
            await until(lambda: told(cloud))
            (use,) = told(cloud)[0].uplinks
            days = (use.certificate_ms - now.timestamp() * 1000) / 86_400_000
            assert 29 < days <= 31


async def test_where_the_data_plan_is_used_up_only_changes_are_told(tmp_path: Path) -> None:
    async with listening(Cloud()) as cloud:
        uplink = msgspec.structs.replace(url(cloud.address), metered=True)
        async with running(tmp_path, uplink, health=SOON, plan=PlanSettings(100_000)) as agent:
            watch = agent.agent._watch
            await until(lambda: watch.records >= 2)  # one after the other while there is budget
            while not (plan := agent.agent.status().plan) or not plan.used_up:
                await publish(agent.port, [os.urandom(3_000)])
            await until(lambda: any(health.plan is not None and health.plan.used_up for health in told(cloud)))
            records, since = watch.records, agent.agent._clock.mono()
            await until(lambda: agent.agent._clock.mono() > since + 4)
            assert watch.records == records

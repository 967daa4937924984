"""A lane that is full, at a real agent with real clients: who publishes to it suffers, and nobody else."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.lanes import Lane
from edge_agent.listener_config import LimitSettings
from edge_agent.status import LaneState
from fleet_simulator.link import Link as Relay
from tests.integration.edge.agents import Running, publish, running
from tests.integration.edge.peer import Cloud, listening, until, url
from tests.support.device import Device

SMALL = Lane("small", 5, ("small/#",), max_bytes=64 << 10)
LARGE = b"x" * 20_000


def state(agent: Running, lane: str = "small") -> LaneState:
    return next(each for each in agent.agent.status().lanes if each.lane == lane)


def numbered(count: int) -> list[bytes]:
    return [b"%03d" % number + LARGE for number in range(count)]


async def test_mqtt_5_is_refused_with_0x97_while_others_go_on(tmp_path: Path) -> None:
    codes: list[ReasonCode] = []
    async with running(tmp_path, None, lanes=(SMALL,)) as agent, Device(agent.port, "five", v5=True) as device:
        device.client.on_publish = lambda _client, _data, _mid, code, _properties: codes.append(code)
        for number, payload in enumerate(numbered(8), 1):
            device.client.publish("small/1", payload, 1)
            await until(lambda number=number: len(codes) == number)  # type: ignore[misc]
        assert [code.value for code in codes] == [0] * 4 + [0x97] * 4
        device.client.publish("other", b"1", 1)
        await until(lambda: len(codes) == 9)
        assert codes[-1].value == 0
        device.client.publish("small/1", b"QoS 0")
        await until(lambda: state(agent).refused == 5)
        shown = state(agent)
        assert (shown.count, shown.cap, shown.full, shown.dropped) == (4, 64 << 10, True, 0)
        assert agent.waiting() == 1
        assert agent.agent.status().fault == ""


async def test_mqtt_3_1_1_waits_and_everything_arrives_when_there_is_room(tmp_path: Path) -> None:
    sent = numbered(30)
    async with (
        listening(Cloud()) as cloud,
        Relay(cloud.address) as relay,
        running(tmp_path, url(relay.address), lanes=(SMALL,)) as agent,
    ):
        await relay.cut()
        async with Device(agent.port, "three") as device:
            for payload in sent[:5]:  # read at once, perhaps: stored, above the cap
                device.client.publish("small/1", payload, 1)
            await until(lambda: state(agent).full)
            for payload in sent[5:]:
                device.client.publish("small/1", payload, 1)
            await until(lambda: state(agent).refused > 0)
            await publish(agent.port, [b"1", b"2"])  # another device, another lane
            assert agent.waiting() == 2
            assert state(agent).count in {4, 5}
            await relay.restore()
            await until(lambda: agent.waiting("small") == 0 and len(cloud.by_seq("small")) == len(sent))
        found = cloud.by_seq("small")
        assert [found[key] for key in sorted(found)] == sent
        assert agent.agent.status().counters["mqtt_timed_out"] == 0


async def test_mqtt_3_1_1_is_closed_where_there_is_no_room_for_too_long(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = LimitSettings(full_timeout=0.2)
    with caplog.at_level(logging.WARNING):
        async with running(tmp_path, None, lanes=(SMALL,), limits=limits) as agent, Device(agent.port, "t") as device:
            for payload in numbered(4):
                device.client.publish("small/1", payload, 1)
            await until(lambda: state(agent).full)
            device.client.publish("small/1", b"1", 1)
            assert await asyncio.to_thread(device.gone.wait, 60)
            await publish(agent.port, [b"1"])
            assert agent.waiting() == 1
            assert agent.waiting("small") == 4
    assert "device 't' is cut off: no room for small/1" in caplog.text

"""A data plan at a running agent: lanes wait in stages, then all but control, until the next cycle."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import ClassVar

import aiomqtt
import msgspec
import pytest

from edge_agent import app
from edge_agent.clock import Clock
from edge_agent.config import ForwardSettings
from edge_agent.lanes import Lane
from edge_agent.plan.meter import FILE, SAVE_BYTES, load
from edge_agent.plan.plan import PlanSettings, PlanState, Shed
from edge_agent.status import EdgeStatus
from tests.integration.edge.agents import Running, process, publish, running
from tests.integration.edge.peer import Cloud, listening, until, url
from waybill import snapshot
from waybill.frames import decode
from waybill.wire import COMMAND_STATUS_TOPIC, CommandStatus, Envelope

BUDGET = 300_000
MONTH_MS = 32 * 86_400_000
LANES = (Lane("bulk", 20, ("bulk/#",)),)
PLAN = PlanSettings(BUDGET, shed=(Shed(0.5, ("bulk",)),))


class Calendar(Clock):
    """A clock that is called synchronised, and set ahead by a test."""

    ahead_ms: ClassVar[int] = 0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, synced=lambda: True)

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ms


def plan_of(agent: Running) -> PlanState:
    """Return what the agent says of its plan."""
    plan = agent.agent.status().plan
    assert plan is not None
    return plan


async def spend(agent: Running, topic: str, most: int = 0) -> list[bytes]:
    """Publish what cannot be compressed until the lane of ``topic`` waits, or so often; return the payloads."""
    sent: list[bytes] = []
    lane = "bulk" if topic.startswith("bulk") else "telemetry"
    while lane not in plan_of(agent).held if not most else len(sent) < most:
        sent.append(os.urandom(3000))
        await publish(agent.port, sent[-1:], topic)
        if not most:
            await until(lambda: not agent.waiting(lane) or lane in plan_of(agent).held)
    return sent


async def test_lanes_wait_in_stages_then_all_but_control_until_the_next_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "Clock", Calendar)
    monkeypatch.setattr(Calendar, "ahead_ms", 0)
    expires = int(time.time() * 1000) + 60_000
    async with listening(Cloud()) as cloud:
        uplink = msgspec.structs.replace(url(cloud.address), metered=True)
        async with running(tmp_path, uplink, ForwardSettings(linger_ms=0), lanes=LANES, plan=PLAN) as agent:
            sent = await spend(agent, "bulk/1")
            assert plan_of(agent).held == ("bulk",)
            assert BUDGET / 2 <= plan_of(agent).used < BUDGET * 0.6
            sent += await spend(agent, "bulk/1", 3)
            assert next(lane.held for lane in agent.agent.status().lanes if lane.lane == "bulk") == ("plan",)

            sent += await spend(agent, "vehicles/V7/t")
            assert plan_of(agent).used_up
            assert BUDGET <= plan_of(agent).used < BUDGET * 1.05
            assert agent.waiting("bulk") >= 3
            waiting = await spend(agent, "vehicles/V7/t", 3)

            async with aiomqtt.Client("127.0.0.1", agent.port, identifier="V7", timeout=60) as device:
                await device.subscribe("cmd/V7/+/req", qos=1)
                cloud.command(Envelope("c1", "command", "V7", "lock", b"", expires))
                await anext(device.messages)
                await device.publish("cmd/V7/c1/res", b"locked", qos=1)
                await until(lambda: ("c1", "done") in states(cloud))
            assert agent.waiting("telemetry") >= 3
            assert plan_of(agent).used < BUDGET * 1.1
            assert not set(cloud.payloads) & set(waiting)

            await until(lambda: plan_of(agent).cycle_ms)  # before that the clock is not believed
            monkeypatch.setattr(Calendar, "ahead_ms", MONTH_MS)
            await until(lambda: not agent.waiting("telemetry") and not agent.waiting("bulk"))
            state = plan_of(agent)
            assert (state.held, state.used_up) == ((), False)
            assert state.last_used is not None
            assert state.last_used >= BUDGET
        arrived = [row[3] for frame in map(decode, cloud.journal) for row in frame.rows if len(row[3]) == 3000]
        assert sorted(arrived) == sorted(sent + waiting)
        assert {decode(frame).header.codec for frame in cloud.journal if len(decode(frame).rows) > 1} <= {1, 2}
    for said in ("these lanes wait: bulk", "the budget is used up", "a new cycle began", "no lane waits"):
        assert caplog.text.count(said) == 1, said


def states(cloud: Cloud) -> list[tuple[str, str]]:
    """Return ids and states of what the control lane brought of commands."""
    rows = [
        row[3]
        for frame in map(decode, cloud.journal)
        for row in frame.rows
        if frame.sources[row[0]][0] == COMMAND_STATUS_TOPIC
    ]
    return [(said.id, said.state) for said in (msgspec.json.decode(row, type=CommandStatus) for row in rows)]


async def test_what_an_unmetered_uplink_carries_costs_nothing(tmp_path: Path) -> None:
    async with listening(Cloud()) as cloud:
        settings = {"lanes": LANES, "plan": PlanSettings(1)}
        async with running(tmp_path, url(cloud.address), ForwardSettings(linger_ms=0), **settings) as agent:
            await publish(agent.port, [b"1"])
            await until(lambda: cloud.payloads)
            assert plan_of(agent).used == 0


async def asked(data: Path) -> EdgeStatus:
    """Ask an agent that is a process."""
    answer = await snapshot.request(data / "agent.sock", "snapshot")
    return msgspec.convert(answer, EdgeStatus)


async def used(data: Path) -> int:
    """Return what it says is used."""
    status = await asked(data)
    assert status.plan is not None
    return status.plan.used


def saved(data: Path) -> int:
    """Return what is used by the file that outlives a kill, which is written in a thread."""
    return load(data / FILE).used


async def test_sigkill_makes_it_forget_no_more_than_what_was_not_saved_yet(tmp_path: Path) -> None:
    async with listening(Cloud()) as cloud:
        config = tmp_path / "edge.toml"
        config.write_text(
            f'gateway = "gw1"\ndata = "{tmp_path}/data"\n[[listener]]\nport = 0\n[forward]\nlinger_ms = 0\n'
            f'[[uplink]]\nurl = "mqtt://127.0.0.1:{cloud.address[1]}"\nmetered = true\n'
            f"[plan]\nbudget_bytes = {BUDGET}\n"
        )
        before = 0
        for _ in range(3):
            async with process("run", "--config", str(config)) as agent:
                await agent.ready()
                start = await used(tmp_path / "data")
                assert start >= before - SAVE_BYTES - 5000
                while await used(tmp_path / "data") < min(start + 70_000, BUDGET):
                    await publish(agent.port, [os.urandom(3000)])
                before = await used(tmp_path / "data")
                await until(lambda: saved(tmp_path / "data") >= before - SAVE_BYTES - 5000)  # noqa: B023 - called at once
                await agent.end(signal.SIGKILL)
        async with process("run", "--config", str(config)) as agent:
            await agent.ready()
            while await used(tmp_path / "data") < BUDGET:
                await publish(agent.port, [os.urandom(3000)])
            await agent.end(signal.SIGTERM)
        async with process("run", "--config", str(config)) as agent:  # it waits, from the start on
            await agent.ready()
            frames = len(cloud.headers)
            await publish(agent.port, [b"late"])
            status = await asked(tmp_path / "data")
            assert status.plan is not None
            assert status.plan.used_up
            await agent.end(signal.SIGTERM)
        assert b"late" not in cloud.payloads
        assert frames <= len(cloud.headers)

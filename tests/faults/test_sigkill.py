"""Agent and ingest are killed with SIGKILL under load, again and again; what was acknowledged is there once, in order.

The control: an agent whose acks leave before the commit loses messages under the same kills, and the verdict says so.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from fleet_simulator.deployment import Deployment, Plan
from fleet_simulator.fleet import Fleet
from fleet_simulator.processes import Process, until
from fleet_simulator.verdict import Verdict

LONG = os.environ.get("WAYBILL_LONG") == "1"
KILLS = 20 if LONG else 4
VEHICLES = 8
EACH = 100
"""Messages that are acknowledged between two kills, and more."""


async def killed_again_and_again(victim: Process, fleet: Fleet, seed: int, kills: int) -> None:
    moments = random.Random(seed)
    for _ in range(kills):
        await until("all vehicles connected", lambda: fleet.connected == VEHICLES, 60)
        before = fleet.acked
        await until("something acknowledged", lambda: fleet.acked > before + EACH, 60)  # noqa: B023 - called at once
        await asyncio.sleep(moments.uniform(0, 1))
        await victim.kill()
        await asyncio.sleep(moments.uniform(0, 0.3))
        await victim.start()
    await until("all vehicles connected", lambda: fleet.connected == VEHICLES, 60)


async def run(directory: Path, plan: Plan, victim: str, *, kills: int, patience: float, seed: int) -> Verdict:
    async with Deployment(directory, plan).running() as deployment:
        site = deployment.sites["depot-1"]
        fleet = Fleet({f"V{n}": site.broker for n in range(VEHICLES)}, seed=seed, interval=0.005)
        async with fleet.driving():
            process = site.agent if victim == "agent" else deployment.cloud
            await killed_again_and_again(process, fleet, seed, kills)
            fleet.halt()
            await fleet.settled(180)
            verdict = await deployment.compared(fleet.into, patience)
        assert process.starts == kills + 1
        if victim == "agent":
            assert all(device.connects == kills + 1 for device in fleet.devices.values())
        return verdict


PLAN = Plan(gateways=("depot-1",), forward={"linger_ms": 20})


@pytest.mark.parametrize("victim", ["agent", "ingest"])
async def test_b1_what_was_acknowledged_survives_sigkill_once_and_in_order(tmp_path: Path, victim: str) -> None:
    verdict = await run(tmp_path, PLAN, victim, kills=KILLS, patience=180, seed=11)
    assert verdict.passed, (verdict, verdict.examples)
    assert verdict.acked > EACH * KILLS


async def test_ingest_into_kafka_survives_sigkill_once_and_in_order(tmp_path: Path, kafka: str) -> None:
    """R1 to R3: a transaction cut off anywhere is finished or forgotten by the next owner, never done twice."""
    plan = Plan(gateways=("depot-1",), kafka=kafka, forward={"linger_ms": 20})
    verdict = await run(tmp_path, plan, "ingest", kills=KILLS, patience=180, seed=12)
    assert verdict.passed, (verdict, verdict.examples)
    assert verdict.acked > EACH * KILLS


async def test_b1_the_control_that_acks_before_the_commit_fails(tmp_path: Path) -> None:
    broken = [sys.executable, str(Path(__file__).with_name("agent_acks_early.py"))]
    plan = Plan(gateways=("depot-1",), forward={"linger_ms": 20}, agent_command=broken)
    verdict = await run(tmp_path, plan, "agent", kills=3, patience=5, seed=11)
    assert verdict.lost > 0
    assert not verdict.passed

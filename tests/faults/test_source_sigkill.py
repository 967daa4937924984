"""The agent is killed under load while it reads a broker that is already there.

What that broker acknowledged to devices is there once, and in order.
"""

import asyncio
import os
import random
from pathlib import Path

import pytest

from fleet_simulator.devices import Broker
from fleet_simulator.fleet import Fleet
from fleet_simulator.ports import free_port
from fleet_simulator.processes import Process, until, waybill
from tests.support.source import GATEWAY, WithSource

KILLS = 20 if os.environ.get("WAYBILL_LONG") == "1" else 4
EACH = 100
"""Messages that are acknowledged between two kills, and more."""


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_o1_what_a_source_sends_again_after_sigkill_is_stored_once(tmp_path: Path, version: str) -> None:
    broker = Broker("127.0.0.1", free_port())
    command = waybill("edge", "run", "--listen", f"127.0.0.1:{broker.port}", "--data", str(tmp_path / "broker"))
    there = Process("broker", command, tmp_path / "broker.log")
    moments = random.Random(7)
    await there.start()
    try:
        async with WithSource(tmp_path, broker, f'version = "{version}"').running() as deployment:
            agent = deployment.sites[GATEWAY].agent
            await deployment.subscribed()
            fleet = Fleet({f"V{n}": broker for n in range(4)}, seed=7, interval=0.005)
            async with fleet.driving():
                for _ in range(KILLS):
                    before = fleet.acked
                    await until("something acknowledged", lambda: fleet.acked > before + EACH, 60)  # noqa: B023 - at once
                    await asyncio.sleep(moments.uniform(0, 0.5))
                    await agent.kill()
                    await asyncio.sleep(moments.uniform(0, 0.5))
                    await agent.start()
                fleet.halt()
                await fleet.settled(180)
                verdict = await deployment.compared(fleet.into, 180)
            assert agent.starts == KILLS + 1
    finally:
        await there.stop()
    assert verdict.passed, (verdict, verdict.examples)
    assert verdict.acked > EACH * KILLS

"""mosquitto as the broker that is already there, with a SIGKILL of the agent and a restart of mosquitto under load."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from fleet_simulator.devices import Broker
from fleet_simulator.fleet import Fleet
from fleet_simulator.ports import free_port
from fleet_simulator.processes import Process, until
from tests.support.source import GATEWAY, WithSource

pytestmark = pytest.mark.system

ROUNDS = 10 if os.environ.get("WAYBILL_LONG") == "1" else 3
EACH = 100
"""Messages that are acknowledged between two kills, and more."""

CONFIG = """
user root
listener {port} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {directory}/
max_queued_messages 0
log_dest stderr
"""


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_b1_what_mosquitto_acknowledged_is_there_once_and_in_order(tmp_path: Path, version: str) -> None:
    broker = Broker("127.0.0.1", free_port())
    config = tmp_path / "mosquitto.conf"
    config.write_text(CONFIG.format(port=broker.port, directory=tmp_path))
    mosquitto = Process("mosquitto", ["mosquitto", "-c", str(config)], tmp_path / "mosquitto.log", ready=" running")
    moments = random.Random(9)
    await mosquitto.start()
    try:
        async with WithSource(tmp_path, broker, f'version = "{version}"').running() as deployment:
            await deployment.subscribed()
            agent = deployment.sites[GATEWAY].agent
            fleet = Fleet({f"V{n}": broker for n in range(4)}, seed=9, interval=0.005)
            async with fleet.driving():
                for _ in range(ROUNDS):
                    before = fleet.acked
                    await until("something acknowledged", lambda: fleet.acked > before + EACH, 60)  # noqa: B023 - at once
                    await asyncio.sleep(moments.uniform(0, 0.5))
                    await agent.kill()
                    await asyncio.sleep(moments.uniform(0, 1))
                    await agent.start()
                    await deployment.subscribed()
                    # A PUBACK lost at mosquitto's end makes a vehicle repeat, and to mosquitto that is a new message.
                    fleet.hold()
                    await fleet.settled(60)
                    # At its proper end mosquitto writes all that it has to deliver to its disk.
                    await mosquitto.stop()
                    await mosquitto.start()
                    fleet.go_on()
                fleet.halt()
                await fleet.settled(180)
                verdict = await deployment.compared(fleet.into, 180)
            state = (await deployment.sites[GATEWAY].snapshot())["sources"][0]
    finally:
        await mosquitto.stop()
    assert verdict.passed, (verdict, verdict.examples)
    assert verdict.acked > EACH * ROUNDS
    assert (state["forgotten"], state["dropped"]) == (0, 0)

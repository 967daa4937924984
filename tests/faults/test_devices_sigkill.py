"""Devices without a gateway over SIGKILL of their node: what got its PUBACK is a record, whatever was repeated."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from fleet_simulator.ports import free_ports
from fleet_simulator.processes import Process, waybill
from tests.integration.cloud.gateway import until
from tests.integration.edge.conftest import written

COUNT = 600

CONFIG = """
data = "{data}"
[listener]
address = "127.0.0.1:{gateways}"
[devices]
address = "127.0.0.1:{devices}"
passwords = "{users}"
[[acl]]
user = "*"
publish = ["vehicles/%u/#"]
"""


async def test_what_a_device_saw_acknowledged_is_a_record_over_sigkill_of_its_node(tmp_path: Path) -> None:
    gateways, devices = free_ports(2)
    config, data = tmp_path / "cloud.toml", tmp_path / "data"
    users = written(tmp_path / "users", V7="seven")
    config.write_text(CONFIG.format(data=data, gateways=gateways, devices=devices, users=users))
    node = Process("node", waybill("cloud", "run", "--config", str(config)), tmp_path / "log", ready="(devices)")
    acknowledged: list[int] = []
    numbers: dict[int, int] = {}
    device = paho.Client(CallbackAPIVersion.VERSION2, client_id="V7", clean_session=False)
    device.username_pw_set("V7", "seven")
    device.reconnect_delay_set(1, 1)
    device.on_publish = lambda _c, _u, mid, _r, _p: acknowledged.append(mid)
    await node.start()
    try:
        device.connect("127.0.0.1", devices)
        device.loop_start()
        for n in range(COUNT):
            numbers[device.publish("vehicles/V7/t", json.dumps({"n": n}), qos=1).mid] = n
            if n % 200 == 100:
                await until(lambda: len(acknowledged) > n // 2)  # noqa: B023 - called at once
                await node.kill()
                await node.start()
            elif n % 10 == 0:
                await asyncio.sleep(0.001)
        await until(lambda: {numbers[mid] for mid in acknowledged} == set(range(COUNT)), 60)
        async with asyncio.timeout(180):
            while set(await found(data)) != set(range(COUNT)):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
    finally:
        device.disconnect()
        device.loop_stop()
        if node.running:
            await node.stop()
    audit = await asyncio.create_subprocess_exec(*waybill("cloud", "audit", "--data", str(data)))
    assert await audit.wait() == 0, "the holes of a node that was killed are no loss"


async def found(data: Path) -> list[int]:
    """Return the numbers that are records by now."""
    tail = waybill("cloud", "tail", "fleet.telemetry", "--data", str(data), "--from-beginning", "--end", "--json")
    process = await asyncio.create_subprocess_exec(*tail, stdout=PIPE, stderr=DEVNULL)
    out, _ = await process.communicate()
    return [json.loads(json.loads(line)["value"])["n"] for line in out.splitlines()]

"""Devices and fleet against the real MQTT server: TLS, broken connections, failing commits, commands for sleepers."""

import asyncio
import contextlib
import datetime as dt
import functools
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fleet_simulator.devices import Broker, Device
from fleet_simulator.fleet import Fleet
from fleet_simulator.processes import until
from fleet_simulator.verdict import Comparison, Verdict
from waybill import pki
from waybill.errors import Unavailable
from waybill.mqtt.server import MqttServer
from waybill.mqtt.testing import MemorySink


@pytest.fixture
async def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
async def server(sink: MemorySink) -> AsyncIterator[MqttServer]:
    one = MqttServer(sink)
    await one.start()
    yield one
    await one.close()


def judged(fleet: Fleet, sink: MemorySink) -> Verdict:
    comparison = Comparison()
    fleet.into(comparison)
    for number, (client, _, payload) in enumerate(sink.messages, 1):
        said = msgspec.json.decode(payload)
        ce_id = f"gw/1/telemetry/{number}"
        comparison.read(said["vehicle"], "telemetry", said["seq"], key=client, place=("t", 0), ce_id=ce_id)
    return comparison.verdict()


def connected_again(fleet: Fleet, times: int) -> bool:
    return all(device.connected and device.connects > times for device in fleet.devices.values())


async def test_connections_that_break_again_and_again(server: MqttServer, sink: MemorySink) -> None:
    # Broken at the server, not by a relay: a relay's TCP acknowledges PUBACKs that no device ever saw, and then a copy
    # cannot be told from a new message (O1).
    sink.delay = 0.005
    address = await server.listen("127.0.0.1", 0)
    fleet = Fleet({f"V{n}": Broker(*address) for n in range(50)}, interval=0.02)
    async with fleet.driving():
        for time in range(5):
            again = functools.partial(connected_again, fleet, time)
            await until("all connected again", again, 60)
            await asyncio.sleep(0.3)
            for wire in list(server.wires):
                wire._transport.abort()
        fleet.halt()
        await fleet.settled(30)
    verdict = judged(fleet, sink)
    assert verdict.passed, (verdict, verdict.examples)
    assert all(device.connects >= 5 for device in fleet.devices.values())
    assert verdict.acked > 1000


async def test_a_commit_that_fails_is_never_taken_for_an_acknowledgement(server: MqttServer, sink: MemorySink) -> None:
    address = await server.listen("127.0.0.1", 0)
    fleet = Fleet({f"V{n}": Broker(*address) for n in range(5)}, interval=0.01)
    async with fleet.driving():
        await until("some acknowledged", lambda: fleet.acked > 50, 60)
        sink.failures += [Unavailable("disk full"), Unavailable("disk full")]
        await until("all failures happened", lambda: not sink.failures, 60)
        await asyncio.sleep(0.3)
        fleet.halt()
        await fleet.settled(30)
    verdict = judged(fleet, sink)
    assert verdict.passed, (verdict, verdict.examples)


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <(ssl|socket):pytest.PytestUnraisableExceptionWarning")
async def test_tls_and_who_is_not_believed(server: MqttServer, sink: MemorySink, tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    pki.ca_init(tmp_path / "ca", now=now)
    node = pki.issue_server(tmp_path / "ca", tmp_path / "node", ["127.0.0.1"], now=now)
    pki.ca_init(tmp_path / "other", now=now)
    host, port = await server.listen("127.0.0.1", 0, pki.server_context(node.certificate, node.key))
    believed = Device("V1", Broker.parse(f"mqtts://{host}:{port}", node.ca))
    wary = Device("V2", Broker.parse(f"mqtts://{host}:{port}", tmp_path / "other" / "ca.pem"))
    tasks = [asyncio.create_task(one.run()) for one in (believed, wary)]
    try:
        for number in range(1, 301):
            await believed.publish("vehicles/V1/telemetry", b"x" * 2000, number)
        await until("acknowledged", lambda: list(believed.acked) == [(1, 300)], 60)
        await until("not believed", lambda: "certificate verify failed" in wary.error.lower(), 60)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    gc.collect()
    assert wary.connects == 0
    assert len(sink.messages) == 300


async def test_a_command_reaches_a_device_that_slept(server: MqttServer, sink: MemorySink) -> None:
    address = await server.listen("127.0.0.1", 0)
    device = Device("V1", Broker(*address))

    @contextlib.asynccontextmanager
    async def awake() -> AsyncIterator[None]:
        task = asyncio.create_task(device.run())
        await until("connected", lambda: device.connected, 60)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    def answers() -> list[str]:
        return [topic.decode() for _, topic, _ in sink.messages if topic.endswith(b"/res")]

    async with awake():
        await until("subscribed", lambda: sink.changes, 60)
    await server.publish("cmd/V1/c1/req", b"{}", 1)
    assert device.effects.arrived == {}
    async with awake():
        await until("answered", answers, 60)
    assert answers() == ["cmd/V1/c1/res"]
    assert device.effects.acted == {"c1": 1}

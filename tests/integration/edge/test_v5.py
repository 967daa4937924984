"""MQTT 5 through the agent: sessions over SIGKILL, properties into the frames, the resend memory on disk."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from edge_agent.buffer.sqlite import SqliteBuffer
from edge_agent.intake import Intake
from edge_agent.status import SOCKET
from tests.integration.edge.agents import process, running
from tests.integration.edge.conftest import one
from tests.integration.edge.peer import Cloud, listening, until, url
from tests.integration.mqtt.conftest import Raw
from tests.support.buffer import drain
from tests.unit.mqtt import rig, v5
from waybill import snapshot
from waybill.frames import decode
from waybill.mqtt.server import MqttServer

TOPIC = "vehicles/V7/telemetry"
PROPERTIES = v5.CONTENT + v5.user("unit", "km/h")


Dial = Callable[[int, bytes], Awaitable[tuple[Raw, v5.Packet]]]


@pytest.fixture
async def connected() -> AsyncIterator[Dial]:
    """Connect to a port with a CONNECT: the client, and its CONNACK."""
    raws: list[Raw] = []

    async def dial(port: int, packet: bytes) -> tuple[Raw, v5.Packet]:
        raw = Raw(*await asyncio.open_connection("127.0.0.1", port))
        raws.append(raw)
        await raw.send(packet)
        return raw, v5.packets(await one(raw))[0]

    yield dial
    for raw in raws:
        raw.writer.close()
        with contextlib.suppress(ConnectionError):
            await raw.writer.wait_closed()


async def connections(data: Path) -> int:
    """Return how many an agent has."""
    return int((await snapshot.request(data / SOCKET, "snapshot"))["counters"]["mqtt_connections"])


def gone(server: MqttServer) -> bool:
    return not server.wires


async def test_a_session_and_what_waits_for_it_survive_sigkill(tmp_path: Path, connected: Dial) -> None:
    arguments = ("run", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "data"))
    sleeper = v5.connect("sleeper", v5.expiry(600), clean=False)
    async with process(*arguments) as agent:
        await agent.ready()
        sub, _ = await connected(agent.port, sleeper)
        await sub.send(v5.subscribe(("cmd/#", 1 | 8), properties=v5.identifier(77)))
        assert await one(sub) == v5.suback(1)
        short, _ = await connected(agent.port, v5.connect("short", v5.expiry(1), clean=False))
        short.close()
        sub.close()
        async with asyncio.timeout(60):
            while await connections(tmp_path / "data"):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        pub, _ = await connected(agent.port, v5.connect("pub"))
        said = PROPERTIES + v5.expires(500)
        await pub.send(v5.publish("cmd/x", b"1", 1, 1, said, retain=True) + v5.publish("cmd/x", b"2", 1, 2, said))
        await pub.expect(rig.puback(1) + rig.puback(2))
        await agent.end(signal.SIGKILL)
        pub.close()
    await asyncio.sleep(1)
    async with process(*arguments) as agent:
        await agent.ready()
        sub, answer = await connected(agent.port, sleeper)
        assert answer.present
        for payload, retain in ((b"1", 1), (b"2", 0)):
            (message,) = v5.packets(await one(sub))
            assert (message.body, message.qos, message.flags & 1) == (payload, 1, retain)
            assert (message.number(0x0B), message.values(0x26)) == (77, [b"unit=km/h"])
            assert 400 < (message.number(2) or 0) < 500
        _, answer = await connected(agent.port, v5.connect("short", v5.expiry(1), clean=False))
        assert not answer.present  # its second was over
        assert await agent.end(signal.SIGTERM) == 0


async def test_properties_go_up_with_their_messages(tmp_path: Path, connected: Dial) -> None:
    async with listening(Cloud()) as cloud, running(tmp_path / "data", url(cloud.address)) as agent:
        device, _ = await connected(agent.port, v5.connect("V7"))
        await device.send(
            v5.publish(TOPIC, b"1", 1, 1, PROPERTIES + v5.alias(1))
            + v5.publish("", b"2", 1, 2, v5.alias(1))
            + v5.publish(TOPIC, b"3", 1, 3, PROPERTIES)
        )
        await device.expect(rig.puback(1) + rig.puback(2) + rig.puback(3))
        await until(lambda: len(cloud.by_seq("telemetry")) == 3)
        device.close()
    rows = [row for frame in map(decode, cloud.journal) if frame.header.lane == "telemetry" for row in frame.rows]
    assert [(row[3], row[4]) for row in rows] == [(b"1", PROPERTIES), (b"2", b""), (b"3", PROPERTIES)]


async def test_o3_resends_after_a_crash_are_told_from_what_is_on_disk(tmp_path: Path, connected: Dial) -> None:
    """The memory comes back from blocks of version 5, and from what outlived them."""
    packet = v5.publish(TOPIC, b"x", 1, 7, PROPERTIES)
    again = v5.publish(TOPIC, b"x", 1, 7, PROPERTIES, dup=True)
    hello = v5.connect("V7", v5.expiry(600), clean=False)
    for settle in (False, True):
        path = tmp_path / str(settle)
        for life in range(3):
            buffer = await SqliteBuffer.open(path, gateway="g", boot="b")
            server = MqttServer(Intake(buffer))
            await server.start()
            _, port = await server.listen("127.0.0.1", 0)
            device, answer = await connected(port, hello)
            assert answer.present is (life > 0)
            for wire in server.wires:
                assert wire._socket is not None
                wire._socket.detach()
                wire._socket = None  # what TCP knows does not count: the acks are lost
            await device.send(packet if life == 0 else again)
            assert await one(device) == rig.puback(7)
            assert server.counters.duplicates == (0 if life == 0 else 1)
            if settle and life == 0:
                await drain(buffer, settle=True)
            for wire in list(server.wires):
                wire.abort()
            await until(partial(gone, server))
            await server.close()
            await buffer.close()

"""The ingest as a client of a broker that it does not run; here that is this project's MQTT server, alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import msgspec
import pytest

from cloud_ingest.app import Ingest
from cloud_ingest.journal.port import OutRecord
from cloud_ingest.status import PlainSnapshot
from fleet_simulator.ports import free_port
from tests.integration.cloud.gateway import frame, records, running, span, status_frame, until
from tests.support.external import V5, behind, external, gateway, settings
from waybill import wire
from waybill.errors import Unavailable
from waybill.mqtt.server import MqttServer
from waybill.mqtt.settings import Client, Hooks, Settings
from waybill.mqtt.testing import MemorySink
from waybill.wire import Ack, CommandStatus


class Front:
    """A broker. ``denied``: a filter that nobody may have."""

    def __init__(self) -> None:
        self.denied = ""
        self.server = MqttServer(MemorySink(), hooks=Hooks(authorize_subscribe=self._may))
        self.port = free_port()  # which it gets again after a restart

    def _may(self, _: Client, pattern: str) -> bool:
        return pattern != self.denied

    async def start(self) -> None:
        await self.server.start()
        _, self.port = await self.server.listen("127.0.0.1", self.port)


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    one = Front()
    await one.start()
    yield one
    await one.server.close()


async def values(ingest: Ingest, count: int) -> list[bytes | None]:
    return [one.value for one in await records(ingest, "fleet.telemetry", count)]


async def test_a_frame_is_journaled_acked_and_routed(front: Front, tmp_path: Path) -> None:
    async with behind(settings(tmp_path, front.port)) as ingest, gateway(front.port) as one:
        await one.send(frame(1, 3), qos=1)
        async with asyncio.timeout(60):
            assert (await one.acks.get()).credit == 4 << 20
        assert (await one.ack()).journaled == (span(1, 3),)
        assert await values(ingest, 3) == [b'{"n":%d}' % n for n in (1, 2, 3)]
        (shown,) = ingest.snapshot().gateways
        assert (shown.gateway, shown.state, shown.version) == ("g1", "online", "9")
        await one.send(b"nonsense", qos=1)
        assert "not a frame" in (await one.ack()).refused[0].reason
    async with behind(settings(tmp_path, front.port)) as ingest:
        await until(lambda: not ingest.listener.connected)


async def test_nodes_share_the_frames_and_each_message_is_a_record_once(front: Front, tmp_path: Path) -> None:
    """Two nodes with logs of their own: what each journaled adds up."""
    async with (
        behind(settings(tmp_path / "1", front.port)) as first,
        behind(settings(tmp_path / "2", front.port, client_id="node-2")) as second,
        gateway(front.port) as one,
    ):
        for n in range(1, 21):
            await one.send(frame(n), qos=1)
        await one.journaled(1, 20)
        shares = [each.listener.intake.counters.journaled for each in (first, second)]
        assert sum(shares) == 20
        assert all(shares)


async def test_a_frame_that_cannot_be_journaled_is_answered_retry(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with behind(settings(tmp_path, front.port)) as ingest, gateway(front.port) as one:

        async def append_frame(*_: object) -> None:
            raise Unavailable("away")

        with monkeypatch.context() as patch:
            patch.setattr(ingest.log, "append_frame", append_frame)
            await one.send(frame(), qos=1)
            assert (await one.ack()).retry == (span(1, 1),)
        await one.send(frame(), qos=1)
        await one.journaled(1, 1)


async def test_c1_a_command_goes_through_the_broker_and_its_states_come_back(front: Front, tmp_path: Path) -> None:
    async with behind(settings(tmp_path, front.port)) as ingest:
        expires = time.time_ns() // 1_000_000 + 60_000
        value = {"id": "c1", "gateway": "g1", "device": "V1", "name": "lock", "expires_at": expires}
        await ingest.log.append(OutRecord("waybill.commands", b"g1", json.dumps(value).encode(), []))
        await until(lambda: ingest.dispatcher.open == 1)
        async with gateway(front.port) as one:
            assert (await one.envelope()).id == "c1"
            await one.send(status_frame(1, CommandStatus("c1", "g1", "V1", "delivered", 5)), qos=1)
            (state,) = await records(ingest, "waybill.command-status", 1)
            assert msgspec.json.decode(state.value or b"", type=CommandStatus).state == "delivered"


async def test_plain_topics_become_records_and_are_acked_when_they_are_journaled(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is cut off before has not acknowledged: the broker keeps the message for it."""
    asked = settings(tmp_path, front.port, plain=["vehicles/#"])
    async with aiomqtt.Client("127.0.0.1", front.port, identifier="V7", protocol=V5, timeout=60) as device:
        async with behind(asked) as ingest:
            for n, qos in enumerate((0, 1, 2)):
                await device.publish("vehicles/V7/t", b"%d" % n, qos=qos)
            assert sorted(await values(ingest, 3)) == [b"0", b"1", b"2"]  # type: ignore[type-var]
            found = await records(ingest, "fleet.telemetry", 3)
            assert {one.key for one in found} == {b"V7"}
            assert dict(found[0].headers)["ce_source"] == b"/devices/V7"
            assert ingest.snapshot().plain == PlainSnapshot(3, 0, 0, 0, "")
        async with behind(asked) as ingest:

            async def append_frame(*_: object) -> None:
                raise Unavailable("away")

            monkeypatch.setattr(ingest.log, "append_frame", append_frame)
            await device.publish("vehicles/V7/t", b"kept", qos=1)
            await until(lambda: ingest.frames.counters.retried)
            monkeypatch.undo()
            external(ingest)._frames.end()
        await device.publish("vehicles/V7/t", b"while away", qos=1)
        async with behind(asked) as ingest:
            assert set(await values(ingest, 5)) == {b"0", b"1", b"2", b"kept", b"while away"}


async def test_a_plain_message_that_no_journal_takes_is_left_out_and_holds_up_no_other(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_ingest.external.MAX_PLAIN", 1000)
    asked = settings(tmp_path, front.port, plain=["vehicles/#"])
    async with behind(asked) as ingest, aiomqtt.Client("127.0.0.1", front.port) as device:
        await device.publish("vehicles/V7/t", bytes(1000), qos=1)
        await device.publish("vehicles/V7/t", b"next", qos=1)
        assert await values(ingest, 1) == [b"next"]
        await until(lambda: ingest.snapshot().plain == PlainSnapshot(1, 0, 0, 1, ""))


async def test_a_command_that_the_broker_would_not_take_is_not_sent_and_ends_no_connection(tmp_path: Path) -> None:
    server = MqttServer(MemorySink(), Settings(max_packet=10_000))
    await server.start()
    _, port = await server.listen("127.0.0.1", 0)
    async with behind(settings(tmp_path, port)) as ingest, gateway(port) as one:
        expires = time.time_ns() // 1_000_000 + 60_000
        for name, size in (("c1", 20_000), ("c2", 10)):
            value = {"id": name, "gateway": "g1", "device": "V1", "name": "x", "expires_at": expires}
            value["payload"] = "x" * size
            await ingest.log.append(OutRecord("waybill.commands", b"g1", json.dumps(value).encode(), []))
        assert (await one.envelope()).id == "c2"
        assert external(ingest).client.connects == 1
    await server.close()


async def test_no_more_is_under_way_than_the_broker_takes(tmp_path: Path) -> None:
    server = MqttServer(MemorySink(), Settings(receive_maximum=1))
    await server.start()
    _, port = await server.listen("127.0.0.1", 0)
    async with behind(settings(tmp_path, port)) as ingest, gateway(port) as one:
        client = external(ingest).client
        for n in range(200):
            client.publish(wire.ack_topic("g1"), wire.encode(Ack(credit=n)))
        async with asyncio.timeout(20):
            while (await one.acks.get()).credit != 199:
                pass
        assert client.connects == 1
    await server.close()


async def test_a_broker_that_is_away_or_refuses_is_said_and_asked_again(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_ingest.broker_client.ASK_AGAIN", 0.0)
    front.denied = wire.up_topic("+")
    async with running(settings(tmp_path, front.port)) as ingest:
        await until(lambda: "refuses the subscription" in ingest.listener.fault)
        assert "wb/v1/+/up" in ingest.snapshot().fault
        front.denied = ""
        await until(lambda: not ingest.listener.fault)
        await front.server.close()
        await until(lambda: ingest.listener.fault)
        front.server = MqttServer(MemorySink())
        await front.start()
        await until(lambda: not ingest.listener.fault)
        async with gateway(front.port) as one:
            await one.send(frame(), qos=1)
            await one.journaled(1, 1)


async def test_what_cannot_be_read_of_the_broker_makes_no_node_deaf(tmp_path: Path) -> None:
    """A PUBLISH whose topic is no UTF-8, then one that is in order."""
    acked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes.fromhex("20 03 00 00 00"))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                kind, size = await reader.readexactly(2)
                if size > 127:
                    size += ((await reader.readexactly(1))[0] - 1) * 128
                body = await reader.readexactly(size)
                if kind == 0x82:
                    at, codes = 3 + body[2], b""
                    while at < size:
                        at, codes = at + 3 + int.from_bytes(body[at : at + 2]), codes + b"\1"
                    writer.write(bytes([0x90, 3 + len(codes)]) + body[:2] + b"\0" + codes)
                    if b"vehicles/#" in body:
                        for number, topic in ((1, b"vehicles/\xff"), (2, b"vehicles/a")):
                            packet = len(topic).to_bytes(2) + topic + number.to_bytes(2) + b"\0" + b"there"
                            writer.write(bytes([0x32, len(packet)]) + packet)
                elif kind == 0x40 and body[:2] == b"\0\2":
                    acked.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    async with running(settings(tmp_path, port, plain=["vehicles/#"])), asyncio.timeout(60):
        await acked.wait()
    server.close()


async def test_topics_that_name_no_gateway_are_counted(front: Front, tmp_path: Path) -> None:
    async with behind(settings(tmp_path, front.port)) as ingest:
        async with aiomqtt.Client("127.0.0.1", front.port, timeout=60) as client:
            for topic in ("wb/v1/node:x/up", "wb/v1/a b/up", "wb/v1//up"):
                await client.publish(topic, frame(), qos=1)
        await until(lambda: external(ingest).own.nameless == 3)
        assert ingest.listener.intake.counters.journaled == 0

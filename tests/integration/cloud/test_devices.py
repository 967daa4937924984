"""Devices without a gateway: real clients at the cloud's own listener, from PUBLISH to record; commands back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from cloud_ingest import config
from cloud_ingest.app import Ingest
from cloud_ingest.audit import audit
from cloud_ingest.device_config import Devices
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import OutRecord, TopicRecord
from tests.integration.cloud.gateway import Pki, connected, frame, records, running, until
from tests.integration.edge.conftest import written
from waybill import pki
from waybill.acl import AclRule
from waybill.errors import Unavailable
from waybill.frames import decode
from waybill.wire import CommandStatus, Envelope

RULES = (AclRule(user="*", publish=("vehicles/%u/#", "cmd/%u/+/res"), subscribe=("cmd/%u/+/req", "vehicles/#")),)


def settings(data: Path, **more: Any) -> config.Settings:
    data.mkdir(parents=True, exist_ok=True)
    users = written(data / "users", V7="seven", V8="eight")
    devices = Devices("127.0.0.1:0", **{"passwords": users, **more})
    listener = config.Listener("127.0.0.1:0")
    return config.check(config.CloudConfig(str(data), listener=listener, devices=devices, acl=RULES), data, "test")


@pytest.fixture
async def ingest(tmp_path: Path) -> AsyncIterator[Ingest]:
    async with running(settings(tmp_path / "data")) as one:
        yield one


def port(ingest: Ingest) -> int:
    assert ingest.devices is not None
    return int(ingest.devices.address.rpartition(":")[2])


def client(ingest: Ingest, name: str = "V7", password: str | None = "seven", **options: Any) -> aiomqtt.Client:
    asked = {"identifier": name, "username": name, "password": password, "timeout": 60, **options}
    return aiomqtt.Client("127.0.0.1", port(ingest), **asked)


def header(record: TopicRecord, name: str) -> bytes:
    return dict(record.headers)[name]


@pytest.mark.parametrize("version", [paho.MQTTv311, paho.MQTTv5])
async def test_what_devices_publish_becomes_records(ingest: Ingest, version: Any) -> None:
    options: dict[str, Any] = {"protocol": aiomqtt.ProtocolVersion(version)}
    async with client(ingest, **options) as one, client(ingest, "V8", "eight", **options) as other:
        for n, qos in enumerate((0, 1, 2, 1)):
            await one.publish("vehicles/V7/telemetry", b'{"n":%d}' % n, qos=qos, retain=n == 3)
        await other.publish("vehicles/V8/telemetry", b"eight", qos=1)
    found = await records(ingest, "fleet.telemetry", 5)
    seven = [one for one in found if one.key == b"V7"]
    assert [one.value for one in seven] == [b'{"n":%d}' % n for n in range(4)]
    assert [header(one, "mqtt_qos") for one in seven] == [b"0", b"1", b"2", b"1"]
    assert [header(one, "mqtt_retained") for one in seven] == [b"false"] * 3 + [b"true"]
    assert header(seven[0], "ce_source") == b"/devices/V7"
    lane = f"devices.{partition_of(b'V7', ingest.log.partitions)}"
    name, _, told, seq = header(seven[0], "ce_id").decode().split("/")
    assert (name, told, seq) == (ingest.frames.name, lane, "1")
    report = await audit(ingest.log, ingest._settings.config.topics)
    assert (report.missing, sum(each.delivered for each in report.lanes)) == (0, 5)


async def test_an_acknowledged_message_is_in_the_journal(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the log is away devices wait; when it is back they get their PUBACKs, and nothing is lost or twice."""
    away = threading.Event()
    away.set()
    append = ingest.log.append_frame

    async def append_frame(gateway: str, data: bytes, partition: int | None = None) -> None:
        if away.is_set():
            raise Unavailable("the disk is full")
        await append(gateway, data, partition)

    monkeypatch.setattr(ingest.log, "append_frame", append_frame)
    async with client(ingest) as one:
        publish = asyncio.create_task(one.publish("vehicles/V7/t", b"1", qos=1, timeout=60))
        await until(lambda: ingest.frames.counters.retried)
        assert not publish.done()
        shot = ingest.snapshot().devices
        assert shot is not None
        assert shot.fault == "the disk is full"
        away.clear()
        await publish
    assert [one.value for one in await records(ingest, "fleet.telemetry", 1)] == [b"1"]


async def test_a_node_that_ends_acknowledges_nothing_that_is_not_journaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    losses: list[int] = []
    device = paho.Client(CallbackAPIVersion.VERSION2, client_id="V7")
    device.username_pw_set("V7", "seven")
    device.on_publish = lambda *_: done.set()
    device.on_disconnect = lambda *_: losses.append(1)

    async def append_frame(*_: object) -> None:
        raise Unavailable("away")

    try:
        async with running(settings(tmp_path / "data")) as ingest:
            monkeypatch.setattr(ingest.log, "append_frame", append_frame)
            monkeypatch.setattr("waybill.mqtt.settings.Settings.close_timeout", 0.5)
            device.connect("127.0.0.1", port(ingest))
            device.loop_start()
            device.publish("vehicles/V7/t", b"1", qos=1)
            await until(lambda: ingest.frames.counters.retried)
        await until(lambda: losses)
        assert not done.is_set()
    finally:
        device.disconnect()
        device.loop_stop()


async def test_large_batches_are_cut_into_frames(ingest: Ingest) -> None:
    async with client(ingest, max_inflight_messages=100) as one:
        await asyncio.gather(*(one.publish("vehicles/V7/t", bytes(100_000), qos=1, timeout=60) for _ in range(20)))
    found = await records(ingest, "waybill.frames", 1)
    assert sum(decode(each.value or b"").header.count for each in found) == 20
    assert max(decode(each.value or b"").header.raw_size for each in found) < 300_000


async def test_sessions_end_with_their_connections(ingest: Ingest) -> None:
    for options in ({"clean_session": False}, {"protocol": aiomqtt.ProtocolVersion.V5, "clean_start": False}):
        for _ in range(2):
            async with client(ingest, **options) as one:
                await one.subscribe("cmd/V7/+/req", qos=1)
            assert ingest.devices is not None
            devices = ingest.devices
            await until(lambda: not devices.server.broker.sessions)  # noqa: B023 - called at once


async def test_a_devices_will_is_journaled(ingest: Ingest) -> None:
    will = aiomqtt.Will("vehicles/V7/gone", b"lost", 1)
    assert ingest.devices is not None
    devices = ingest.devices
    with contextlib.suppress(aiomqtt.MqttError):
        async with client(ingest, will=will):
            devices.server.disconnect("V7", "a test")
            await until(lambda: not devices.server.wires)
    (found,) = await records(ingest, "fleet.telemetry", 1)
    assert (found.value, header(found, "mqtt_topic")) == (b"lost", b"vehicles/V7/gone")


async def test_passwords_client_ids_and_rules_hold(ingest: Ingest) -> None:
    for name, user, word in (("V7", "V7", "wrong"), ("V7", None, None), ("V8", "V7", "seven"), ("g1", None, None)):
        with pytest.raises(aiomqtt.MqttError):
            async with client(ingest, name, username=user, password=word):
                pass
    for topic in ("vehicles/V8/t", "$waybill/receipt", "cmd/V7/c1/req", "wb/v1/g1/up"):
        with pytest.raises(aiomqtt.MqttError):
            async with client(ingest, timeout=1) as one:
                await one.publish(topic, b"x", qos=1)
    async with client(ingest) as one:
        for pattern in ("#", "cmd/+/+/req", "cmd/V8/+/req", "vehicles/V7/t", "cmd/V7/#"):
            assert [getattr(code, "value", code) for code in await one.subscribe(pattern, qos=1)] == [0x80], pattern
        assert [getattr(code, "value", code) for code in await one.subscribe("cmd/V7/+/req", qos=1)] == [1]
    assert ingest.frames.counters.messages == 0


async def test_a_device_cannot_be_a_gateway_nor_end_its_connection(ingest: Ingest) -> None:
    async with connected(ingest, "V7", None) as gateway, client(ingest) as one:
        await one.publish("vehicles/V7/t", b"1", qos=1)
        await gateway.send(frame())
        await gateway.journaled(1, 1)
        assert not gateway.closed.is_set()


async def command(ingest: Ingest, id_: str, device: str, seconds: float = 60) -> None:
    expires = time.time_ns() // 1_000_000 + int(seconds * 1000)
    value = {"id": id_, "device": device, "name": "lock", "payload": [1], "expires_at": expires}
    await ingest.log.append(OutRecord("waybill.commands", device.encode(), json.dumps(value).encode(), []))


async def states(ingest: Ingest, count: int) -> list[CommandStatus]:
    found = await records(ingest, "waybill.command-status", count)
    return [msgspec.json.decode(one.value or b"", type=CommandStatus) for one in found]


async def test_c1_a_command_reaches_a_device_without_a_gateway_and_its_states_come_back(ingest: Ingest) -> None:
    await command(ingest, "early", "V7")
    async with client(ingest) as one:
        await one.subscribe("cmd/V7/+/req", qos=1)
        async with asyncio.timeout(60):
            message = await anext(aiter(one.messages))
        assert (str(message.topic), message.payload) == ("cmd/V7/early/req", b"[1]")
        assert [(each.id, each.state) for each in await states(ingest, 1)] == [("early", "delivered")]
        await one.publish("cmd/V7/early/res", b"ok", qos=1)
        delivered, done = await states(ingest, 2)
        assert (delivered.gateway, delivered.device) == ("", "V7")
        assert (done.state, done.result) == ("done", b"ok")
        await until(lambda: ingest.dispatcher.open == 0)
    assert await records(ingest, "fleet.telemetry", 0) == []


async def test_c1_a_device_that_subscribes_with_qos_0_is_warned_of_and_its_answer_counts(
    ingest: Ingest, caplog: pytest.LogCaptureFixture
) -> None:
    async with client(ingest) as one:
        await one.subscribe("cmd/V7/+/req", qos=0)
        await until(lambda: "use QoS 1" in caplog.text)
        await command(ingest, "c1", "V7")
        async with asyncio.timeout(60):
            message = await anext(aiter(one.messages))
        assert (str(message.topic), message.qos) == ("cmd/V7/c1/req", 0)
        await one.publish("cmd/V7/c1/res", b"ok", qos=1)
    assert [one.state for one in await states(ingest, 1)] == ["done"]


async def test_c1_a_command_for_a_device_that_never_comes_expires(ingest: Ingest) -> None:
    await command(ingest, "late", "V8", 0.5)
    (only,) = await states(ingest, 1)
    assert (only.id, only.gateway, only.device, only.state) == ("late", "", "V8", "expired")


async def test_c1_a_device_cannot_answer_for_another(ingest: Ingest) -> None:
    await command(ingest, "c1", "V8")
    await until(lambda: ingest.dispatcher.open == 1)
    async with client(ingest) as one:
        await one.publish("cmd/V7/c1/res", b"mine", qos=1)
    if partition_of(b"V7", 4) == partition_of(b"V8", 4):  # else another partition's, which knows no such command
        (letter,) = await records(ingest, "waybill.dlq", 1)
        assert b"another device" in header(letter, "waybill_error")
    async with client(ingest, "V8", "eight") as other:
        await other.subscribe("cmd/V8/+/req", qos=1)
        async with asyncio.timeout(60):
            assert str((await anext(aiter(other.messages))).topic) == "cmd/V8/c1/req"


async def test_c2_a_command_that_was_taken_is_not_sent_again(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_ingest.commands.FIRST_PAUSE", 0.0)
    assert ingest.devices is not None
    devices = ingest.devices
    async with client(ingest) as one:
        await one.subscribe("cmd/V7/+/req", qos=1)
        await command(ingest, "c1", "V7")
        await until(lambda: ingest.dispatcher.counters.sent_again >= 2 or ingest.dispatcher.open == 0)
        assert [(each.id, each.state) for each in await states(ingest, 1)] == [("c1", "delivered")]
        # as a dispatcher does that has not read the state yet
        devices.send(Envelope("c1", "command", "V7", "lock", b"", time.time_ns() // 1_000_000 + 60_000))
        assert devices.commands == 1
        for _ in range(2):  # the second one while the first is on its way
            devices.send(Envelope("c2", "command", "V7", "lock", b"", time.time_ns() // 1_000_000 + 60_000))
        assert devices.commands == 2


async def test_certificates_of_devices(tmp_path: Path) -> None:
    made = Pki(tmp_path / "pki")
    server = made.server
    more = {"certificate": server.certificate, "key": server.key, "client_ca": server.ca, "passwords": None}
    async with running(settings(tmp_path / "data", **more, client_ids="any")) as ingest:
        async with client(ingest, "any", None, username=None, tls_context=made.gateway("V7")) as one:
            await one.publish("vehicles/V7/t", b"1", qos=1)
        with pytest.raises((aiomqtt.MqttError, OSError)):
            async with client(ingest, "V7", tls_context=pki.client_context(server.ca), timeout=1):
                pass
        assert ingest.frames.counters.messages == 1

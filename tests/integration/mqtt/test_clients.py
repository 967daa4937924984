"""The server with clients that others wrote: paho-mqtt and aiomqtt; TLS with client certificates."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import threading
from pathlib import Path
from typing import Literal

import aiomqtt
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.integration.mqtt.conftest import Site, Start
from tests.unit.mqtt import rig
from waybill import pki
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.settings import ConnectInfo, Hooks


class Device:
    """paho with its own thread; what it hears goes into lists."""

    def __init__(
        self, site: Site, name: str, *, clean: bool = True, transport: Literal["tcp", "websockets", "unix"] = "tcp"
    ) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, name, clean_session=clean, transport=transport)
        self.connected = threading.Event()
        self.subscribed = threading.Event()
        self.heard: list[tuple[str, bytes, int, bool]] = []
        self.present: list[bool] = []
        self.site = site
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = lambda _, __, m: self.heard.append((m.topic, bytes(m.payload), m.qos, m.retain))

    def _on_connect(self, *arguments: object) -> None:
        flags = arguments[2]
        assert isinstance(flags, paho.ConnectFlags)
        self.present.append(flags.session_present)
        self.connected.set()

    async def start(self) -> Device:
        self.connected.clear()
        await asyncio.to_thread(self.client.connect, self.site.host, self.site.port, 30)
        self.client.loop_start()
        await self.wait(self.connected)
        return self

    async def subscribe(self, *filters: tuple[str, int]) -> None:
        self.subscribed.clear()
        self.client.subscribe(list(filters))
        await self.wait(self.subscribed)

    async def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False) -> None:
        info = self.client.publish(topic, payload, qos, retain)
        await asyncio.to_thread(info.wait_for_publish, 60)
        assert info.is_published()

    async def stop(self) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)
        self.client._reset_sockets()  # else they wait for the garbage collector

    @staticmethod
    async def wait(event: threading.Event) -> None:
        assert await asyncio.to_thread(event.wait, 60)


@pytest.mark.parametrize("clean", [True, False])
async def test_paho_every_qos_both_ways(site: Site, clean: bool) -> None:  # noqa: FBT001
    device = await Device(site, "p", clean=clean).start()
    await device.subscribe(("a/#", 2), ("b/+", 1))
    expected = []
    for qos in (0, 1, 2):
        for size in (0, 1, 127, 128, 20_000):
            await device.publish(f"a/{qos}", b"x" * size, qos)
            expected.append((f"a/{qos}", b"x" * size, qos, False))
    await device.publish("b/c", b"y", 2)
    expected.append(("b/c", b"y", 1, False))
    await site.until(lambda: len(device.heard) == len(expected))
    assert device.heard == expected
    assert len(site.stored) == len(expected)
    await device.stop()
    await site.until(lambda: site.server.counters.connections == 0)


async def test_paho_sleeping_session_and_retained(site: Site) -> None:
    sleeper = await Device(site, "sleeper", clean=False).start()
    await sleeper.subscribe(("a", 2))
    await sleeper.stop()
    pub = await Device(site, "pub").start()
    for n in range(50):
        await pub.publish("a", b"%d" % n, n % 3)
    await pub.publish("kept", b"state", 1, retain=True)
    sleeper = await Device(site, "sleeper", clean=False).start()
    await site.until(lambda: len(sleeper.heard) == 33)
    for wanted in (1, 2):  # paho hands QoS 2 on at PUBREL: order is kept within a QoS
        heard = [int(payload) for _, payload, qos, _ in sleeper.heard if qos == wanted]
        assert heard == [n for n in range(50) if n % 3 == wanted]
    assert sleeper.present == [True]
    await sleeper.subscribe(("kept", 1))
    await site.until(lambda: sleeper.heard[-1] == ("kept", b"state", 1, True))
    await sleeper.stop()
    await pub.stop()


async def test_paho_resends_after_lost_pubacks_are_stored_once(site: Site) -> None:
    """D7: connections are cut again and again while commits are under way; paho sends again with DUP."""
    site.sink.delay = 0.02
    device = Device(site, "dev")
    device.client.reconnect_delay_set(0.05, 0.1)  # type: ignore[arg-type] # seconds, and fractions do
    await device.start()
    acked: list[int] = []
    device.client.on_publish = lambda *arguments: acked.append(arguments[2])
    for n in range(400):
        device.client.publish("a", b"m%d" % n, 1)
        if n % 80 == 40:
            await site.until(lambda: site.sink.waiting)
            for wire in list(site.server.wires):
                wire.abort()
        await asyncio.sleep(0.001)
    await site.until(lambda: len(acked) == 400)
    assert sorted(site.stored, key=lambda payload: int(payload[1:])) == [b"m%d" % n for n in range(400)]
    assert site.server.counters.duplicates > 0
    await device.stop()


async def test_aiomqtt_every_qos_both_ways(site: Site) -> None:
    async with aiomqtt.Client(site.host, site.port, identifier="a", timeout=60) as client:
        await client.subscribe("x/+", qos=2)
        for qos in (0, 1, 2):
            await client.publish("x/y", b"%d" % qos, qos=qos)
        heard: list[tuple[int, object]] = []
        async with asyncio.timeout(60):
            async for message in client.messages:
                heard.append((message.qos, message.payload))
                if len(heard) == 3:
                    break
        await client.unsubscribe("x/+")
    assert heard == [(qos, b"%d" % qos) for qos in (0, 1, 2)]
    assert site.stored == [b"0", b"1", b"2"]


async def test_aiomqtt_will(site: Site) -> None:
    async with aiomqtt.Client(site.host, site.port, identifier="watcher", timeout=60) as watcher:
        await watcher.subscribe("state/#", qos=1)
        will = aiomqtt.Will("state/dev", b"offline", qos=1, retain=True)
        client = aiomqtt.Client(site.host, site.port, identifier="dev", will=will, timeout=60)

        async def live() -> None:
            async with client:
                assert site.server.disconnect("dev")
                async for _ in client.messages:
                    pass

        with pytest.raises(aiomqtt.MqttError):
            await live()
        async with asyncio.timeout(60):
            message = await anext(aiter(watcher.messages))
    assert (str(message.topic), message.payload) == ("state/dev", b"offline")
    assert site.server.broker.retained.get(b"state/dev") is not None


async def test_tls_with_client_certificates(start: Start, tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    pki.ca_init(tmp_path / "ca", now=now)
    server_files = pki.issue_server(tmp_path / "ca", tmp_path / "server", ["localhost", "127.0.0.1"], now=now)
    files = pki.issue_gateway(tmp_path / "ca", tmp_path / "gw", "gw-7", now=now)

    def authorize(info: ConnectInfo) -> ConnackCode | str:
        if info.peer_certificate is None:
            return ConnackCode.NOT_AUTHORIZED
        gateway = pki.gateway_of(info.peer_certificate)
        return gateway if info.client_id == gateway else ConnackCode.NOT_AUTHORIZED

    site = await start(hooks=Hooks(authorize_connect=authorize))
    _, port = await site.server.listen(
        "127.0.0.1", 0, pki.server_context(server_files.certificate, server_files.key, server_files.ca)
    )
    mine = pki.client_context(files.ca, files.certificate, files.key)
    async with aiomqtt.Client("127.0.0.1", port, identifier="gw-7", tls_context=mine, timeout=60) as client:
        await client.subscribe("a", qos=1)
        await client.publish("a", b"x" * 100_000, qos=1)
        async with asyncio.timeout(60):
            message = await anext(aiter(client.messages))
        assert message.payload == b"x" * 100_000
    assert site.sink.arrivals[0].user == "gw-7"
    with pytest.raises(aiomqtt.MqttError):
        async with aiomqtt.Client("127.0.0.1", port, identifier="other", tls_context=mine, timeout=60):
            pass
    nobody = pki.client_context(files.ca)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=nobody)
    writer.write(rig.connect("gw-7"))
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(4)
    writer.close()
    plain, plain_writer = await asyncio.open_connection("127.0.0.1", port)
    plain_writer.write(rig.connect("gw-7"))
    assert b"\x20\x02" not in await plain.read()
    plain_writer.close()

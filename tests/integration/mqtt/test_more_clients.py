"""MQTT 3.1.1 with paho-mqtt: what the well-known suites of others ask of a server, seen from a client."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable

import pytest
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from tests.integration.mqtt.conftest import Site, Start
from tests.integration.mqtt.test_clients import Device
from waybill.mqtt.settings import Hooks

Join = Callable[..., Device]


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """Make clients; all are stopped at the end."""
    devices: list[Device] = []

    def make(site: Site, name: str, *, clean: bool = True) -> Device:
        devices.append(Device(site, name, clean=clean))
        return devices[-1]

    yield make
    for device in devices:
        await device.stop()


async def test_retained_messages_of_each_qos(site: Site, join: Join) -> None:
    pub, sub = await join(site, "pub").start(), await join(site, "sub").start()
    for qos in (0, 1, 2):
        await pub.publish(f"kept/{qos}", b"%d" % qos, qos, retain=True)
    await pub.publish("kept/gone", b"x", 1, retain=True)
    await pub.publish("kept/gone", b"", 1, retain=True)
    await sub.subscribe(("kept/+", 2))
    await site.until(lambda: len(sub.heard) == 3)
    assert sorted(sub.heard) == [(f"kept/{qos}", b"%d" % qos, qos, True) for qos in (0, 1, 2)]
    await pub.publish("kept/1", b"live", 1, retain=True)
    await site.until(lambda: sub.heard[-1] == ("kept/1", b"live", 1, False))


@pytest.mark.parametrize("protocol", [MQTTProtocolVersion.MQTTv31, MQTTProtocolVersion.MQTTv311])
async def test_both_older_versions(site: Site, join: Join, protocol: MQTTProtocolVersion) -> None:
    device = join(site, "d", clean=False)
    device.client._protocol = protocol
    await device.start()
    await device.subscribe(("a", 2))
    for qos in (0, 1, 2):
        await device.publish("a", b"x", qos)
    await site.until(lambda: [each[2] for each in device.heard] == [0, 1, 2])
    assert {each.version for each in site.sink.arrivals} == {protocol.value}


async def test_an_empty_client_id(site: Site, join: Join) -> None:
    await join(site, "").start()
    (name,) = site.server.broker.sessions
    assert name
    refused = join(site, "x", clean=False)
    refused.client._client_id = b""
    await refused.start()  # paho, refused, comes again with an id that it has made
    assert site.server.counters.refused == 1
    assert refused.client._client_id.decode() in site.server.broker.sessions


async def test_overlapping_subscriptions_and_dollar_topics(site: Site, join: Join) -> None:
    device = await join(site, "d").start()
    await device.subscribe(("a/#", 2), ("a/+", 1), ("#", 0), ("+/b", 0))
    await device.publish("$own/b", b"not for wildcards", 1)
    await device.publish("a/b", b"1", 2)
    await device.publish("b", b"2", 2)
    await site.until(lambda: len(device.heard) == 2)
    assert device.heard == [("a/b", b"1", 2, False), ("b", b"2", 0, False)]


async def test_unsubscribe_and_subscribe_failure(start: Start, join: Join) -> None:
    site = await start(hooks=Hooks(authorize_subscribe=lambda _, pattern: pattern != "no"))
    device = await join(site, "d").start()
    codes: queue.Queue[list[ReasonCode]] = queue.Queue()
    ended: queue.Queue[int] = queue.Queue()
    device.client.on_subscribe = lambda *arguments: codes.put(arguments[3])
    device.client.on_unsubscribe = lambda *arguments: ended.put(arguments[2])
    device.client.subscribe([("a", 2), ("no", 1), ("b", 1)])
    assert [each.value for each in await asyncio.to_thread(codes.get, True, 60)] == [2, 0x80, 1]
    device.client.unsubscribe(["a", "never"])
    await asyncio.to_thread(ended.get, True, 60)
    await device.publish("a", b"unheard", 1)
    await device.publish("b", b"heard", 1)
    await site.until(lambda: device.heard)
    assert device.heard == [("b", b"heard", 1, False)]


async def test_keepalive_expiry_publishes_the_will(site: Site, join: Join) -> None:
    """A client that says nothing any more; paho itself would ping."""
    watcher, silent = await join(site, "watcher").start(), join(site, "silent")
    await watcher.subscribe(("gone", 2))
    silent.client.will_set("gone", b"bye", 2)
    await asyncio.to_thread(silent.client.connect, site.host, site.port, 1)
    for _ in range(20):
        if silent.client.is_connected():
            break
        await asyncio.to_thread(silent.client.loop, 0.5)
    assert silent.client.is_connected()
    await site.until(lambda: watcher.heard)  # loop() is called no more
    assert watcher.heard == [("gone", b"bye", 2, False)]
    assert site.server.counters.timed_out == 1


@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_not_acknowledged_comes_again_in_order(site: Site, join: Join, qos: int) -> None:
    sub, pub = join(site, "sub", clean=False), await join(site, "pub").start()
    sub.client.manual_ack_set(True)
    sub.client.reconnect_delay_set(60, 60)
    await sub.start()
    await sub.subscribe(("a", qos))
    for n in range(10):
        await pub.publish("a", b"%d" % n, qos)
    await site.until(lambda: len(sub.heard) == 10)
    for wire in list(site.server.wires):
        if wire.session is site.server.broker.sessions["sub"]:
            wire.abort()
    await site.until(lambda: site.server.counters.connections == 1)
    again = await join(site, "sub", clean=False).start()
    assert again.present == [True]
    await site.until(lambda: not site.server.broker.sessions["sub"].queued)
    if qos == 1:
        assert [each[1] for each in again.heard] == [b"%d" % n for n in range(10)]
    else:
        assert again.heard == []  # all had been received: PUBREL alone was sent again

"""MQTT 5 with paho-mqtt: what the well-known suites of others ask of a server, seen from a client."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.integration.mqtt.conftest import Site, Start
from tests.integration.mqtt.test_v5_clients import Device, of
from waybill.mqtt.settings import Settings

Join = Callable[[Site, str], Device]


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """Make clients; all are stopped at the end."""
    devices: list[Device] = []

    def make(site: Site, name: str) -> Device:
        devices.append(Device(site, name))
        return devices[-1]

    yield make
    for device in devices:
        await device.stop()


def nothing(waiting: queue.Queue[paho.MQTTMessage]) -> None:
    with contextlib.suppress(queue.Empty):
        raise AssertionError(waiting.get_nowait())


async def test_an_assigned_client_id_is_told_and_is_the_clients_own(site: Site, join: Join) -> None:
    names = set()
    for _ in range(2):
        device = join(site, "")
        _, reason, said = await device.start()
        assert reason.value == 0
        names.add(of(said).AssignedClientIdentifier)
    assert len(names) == 2
    assert names <= site.server.broker.sessions.keys()


async def test_the_servers_keepalive_is_told_and_counts(start: Start, join: Join) -> None:
    site = await start(Settings(max_keepalive=7))
    device = join(site, "d")
    _, _, said = await device.start()
    assert of(said).ServerKeepAlive == 7
    (wire,) = site.server.wires
    assert wire.keepalive_ns == 7_000_000_000


async def test_flow_control_to_the_client(site: Site, join: Join) -> None:
    """No more than its Receive Maximum is out; each ack makes room for one."""
    sub, pub = join(site, "sub"), join(site, "pub")
    sub.client.manual_ack_set(True)
    await sub.start(ReceiveMaximum=2)
    await sub.subscribe(("a", SubscribeOptions(2)))
    await pub.start()
    for n in range(6):
        await pub.publish("a", b"%d" % n, 1)
    for n in range(6):
        message = await sub.next(sub.heard)
        assert message.payload == b"%d" % n
        session = site.server.broker.sessions["sub"]
        assert len(session.flight) <= 2
        sub.client.ack(message.mid, message.qos)
    await site.until(lambda: not site.server.broker.sessions["sub"].queued)


async def test_flow_control_to_the_server(start: Start, join: Join) -> None:
    """Who keeps exactly to the server's Receive Maximum is never refused."""
    site = await start(Settings(receive_maximum=3))
    site.sink.delay = 0.005
    device = join(site, "d")
    device.client.max_inflight_messages_set(3)  # paho does not do that by itself
    _, _, said = await device.start()
    assert of(said).ReceiveMaximum == 3
    infos = [device.client.publish("a", b"%d" % n, 1 + n % 2) for n in range(60)]
    for info in infos:
        await asyncio.to_thread(info.wait_for_publish, 60)
        assert info.is_published()
    assert site.stored == [b"%d" % n for n in range(60)]
    assert site.server.counters.malformed == 0


async def test_maximum_packet_size_both_ways(start: Start, join: Join) -> None:
    site = await start(Settings(max_packet=1_000))
    small, pub = join(site, "small"), join(site, "pub")
    _, _, said = await small.start(MaximumPacketSize=100)
    assert of(said).MaximumPacketSize == 1_000
    await small.subscribe(("a", SubscribeOptions(1)))
    await pub.start()
    pub.client.reconnect_delay_set(60, 60)
    await pub.publish("a", b"x" * 200, 1)  # more than the subscriber takes
    await pub.publish("a", b"y", 1)
    assert (await small.next(small.heard)).payload == b"y"
    pub.client.publish("a", b"z" * 2_000, 1)
    assert (await pub.next(pub.ends)).value == 0x95


async def test_publications_expire(site: Site, join: Join) -> None:
    sleeper, pub = join(site, "sleeper"), join(site, "pub")
    await sleeper.start(clean=False, SessionExpiryInterval=600)
    await sleeper.subscribe(("a", SubscribeOptions(2)))
    await sleeper.stop()
    await pub.start()
    await pub.publish("a", b"short", 1, MessageExpiryInterval=1)
    await pub.publish("a", b"long", 2, MessageExpiryInterval=500)
    await pub.publish("a", b"ever", 1)
    await pub.publish("kept", b"short", 1, retain=True, MessageExpiryInterval=1)
    await site.until(lambda: site.server.broker.retained.get(b"kept") is None)
    again = join(site, "sleeper")
    assert (await again.start(clean=False, SessionExpiryInterval=600))[0]
    heard = {message.payload: message for message in [await again.next(again.heard) for _ in range(2)]}
    assert heard.keys() == {b"long", b"ever"}
    assert 490 <= of(heard[b"long"].properties).MessageExpiryInterval < 500
    await again.subscribe(("kept", SubscribeOptions(1)), ("end", SubscribeOptions(1)))
    await pub.publish("end", b"end", 1)
    assert (await again.next(again.heard)).payload == b"end"


async def test_sessions_expire(site: Site, join: Join) -> None:
    for seconds, there in ((0, False), (600, True)):
        device = join(site, "d")
        assert not (await device.start(clean=False, SessionExpiryInterval=seconds))[0]
        await device.stop()
        again = join(site, "d")
        assert (await again.start(clean=False, SessionExpiryInterval=1))[0] is there
        await again.stop()
        await site.until(lambda: "d" not in site.server.broker.sessions)


@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_not_acknowledged_comes_again_in_order(site: Site, join: Join, qos: int) -> None:
    sub, pub = join(site, "sub"), join(site, "pub")
    sub.client.manual_ack_set(True)
    sub.client.reconnect_delay_set(60, 60)
    await sub.start(clean=False, SessionExpiryInterval=600, ReceiveMaximum=5)
    await sub.subscribe(("a", SubscribeOptions(qos)))
    await pub.start()
    for n in range(10):
        await pub.publish("a", b"%d" % n, qos)
    first = [await sub.next(sub.heard) for _ in range(5)]
    assert [(each.payload, each.dup) for each in first] == [(b"%d" % n, False) for n in range(5)]
    sub.client.ack(first[0].mid, qos)
    assert (await sub.next(sub.heard)).payload == b"5"
    for wire in list(site.server.wires):
        if wire.session is site.server.broker.sessions["sub"]:
            wire.abort()
    await sub.next(sub.ends)
    again = join(site, "sub")
    assert (await again.start(clean=False, SessionExpiryInterval=600))[0]
    heard = [
        await again.next(again.heard) for _ in range(9 if qos == 1 else 4)
    ]  # of QoS 2 what PUBREL was not sent for
    assert [each.payload for each in heard] == [b"%d" % n for n in range(10 - len(heard), 10)]
    assert [each.dup for each in heard] == [True] * (len(heard) - 4) + [False] * 4
    await site.until(lambda: not site.server.broker.sessions["sub"].queued)


async def test_overlapping_subscriptions_identifiers_and_dollar_topics(site: Site, join: Join) -> None:
    device = join(site, "d")
    await device.start()
    assert await device.subscribe(("a/#", SubscribeOptions(2)), identifier=1) == [2]
    assert await device.subscribe(("a/+", SubscribeOptions(1)), identifier=2) == [1]
    assert await device.subscribe(("#", SubscribeOptions(0)), ("+/x", SubscribeOptions(2)), identifier=3) == [0, 2]
    await device.publish("$own/x", b"not for wildcards", 1)
    await device.publish("a/b", b"1", 2)
    message = await device.next(device.heard)
    assert (message.topic, message.qos, sorted(of(message.properties).SubscriptionIdentifier)) == ("a/b", 2, [1, 2, 3])
    await device.publish("b", b"2", 2, PayloadFormatIndicator=1)
    message = await device.next(device.heard)
    assert (message.topic, message.qos, of(message.properties).SubscriptionIdentifier) == ("b", 0, [3])
    assert of(message.properties).PayloadFormatIndicator == 1
    nothing(device.heard)  # one copy of each


async def test_request_and_response(site: Site, join: Join) -> None:
    asks, knows = join(site, "asks"), join(site, "knows")
    await asks.start(RequestResponseInformation=1)
    await knows.start()
    await knows.subscribe(("questions", SubscribeOptions(2)))
    await asks.subscribe(("answers", SubscribeOptions(2)))
    await asks.publish("questions", b"?", 2, ResponseTopic="answers", CorrelationData=b"334")
    question = of((await knows.next(knows.heard)).properties)
    await knows.publish(question.ResponseTopic, b"!", 2, CorrelationData=question.CorrelationData)
    answer = await asks.next(asks.heard)
    assert (answer.payload, of(answer.properties).CorrelationData) == (b"!", b"334")


async def test_unsubscribe(site: Site, join: Join) -> None:
    device = join(site, "d")
    ended: queue.Queue[list[int]] = queue.Queue()
    device.client.on_unsubscribe = lambda *a: ended.put([each.value for each in a[3]])
    await device.start()
    await device.subscribe(("a", SubscribeOptions(1)), ("b", SubscribeOptions(1)))
    code, _ = device.client.unsubscribe(["a", "never"])
    assert code == MQTTErrorCode.MQTT_ERR_SUCCESS
    assert await device.next(ended) == [0, 0x11]
    await device.publish("a", b"unheard", 1)
    await device.publish("b", b"heard", 1)
    assert (await device.next(device.heard)).payload == b"heard"

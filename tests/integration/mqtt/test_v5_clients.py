"""MQTT 5 with clients that others wrote: paho-mqtt and aiomqtt."""

from __future__ import annotations

import asyncio
import queue
from typing import Any, TypeVar

import aiomqtt
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.integration.mqtt.conftest import Site, Start
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.settings import Hooks, Settings

T = TypeVar("T")


def properties(kind: int, **values: object) -> Properties:
    made = Properties(kind)  # type: ignore[no-untyped-call] # paho's
    for name, value in values.items():
        setattr(made, name, value)
    return made


def of(said: Properties | None) -> Any:
    """The properties by name; paho makes the attributes as they come."""
    assert said is not None
    return said


class Device:
    """paho with its own thread; what it hears goes into queues."""

    def __init__(self, site: Site, name: str) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
        self.site = site
        self.connacks: queue.Queue[tuple[bool, ReasonCode, Properties]] = queue.Queue()
        self.subacks: queue.Queue[list[ReasonCode]] = queue.Queue()
        self.ends: queue.Queue[ReasonCode] = queue.Queue()
        self.heard: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.published: queue.Queue[ReasonCode] = queue.Queue()
        self.client.on_connect = lambda *a: self.connacks.put((a[2].session_present, a[3], a[4]))
        self.client.on_subscribe = lambda *a: self.subacks.put(a[3])
        self.client.on_disconnect = lambda *a: self.ends.put(a[3])
        self.client.on_message = lambda _, __, message: self.heard.put(message)
        self.client.on_publish = lambda *a: self.published.put(a[3])

    async def start(self, *, clean: bool = True, **said: object) -> tuple[bool, ReasonCode, Properties]:
        connect = properties(PacketTypes.CONNECT, **said)
        await asyncio.to_thread(
            self.client.connect, self.site.host, self.site.port, 30, clean_start=clean, properties=connect
        )
        self.client.loop_start()
        return await self.next(self.connacks)

    async def subscribe(self, *filters: tuple[str, SubscribeOptions], identifier: int = 0) -> list[int]:
        said = properties(PacketTypes.SUBSCRIBE, **({"SubscriptionIdentifier": identifier} if identifier else {}))
        self.client.subscribe(list(filters), properties=said)
        return [code.value for code in await self.next(self.subacks)]

    async def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False, **said: object) -> int:
        info = self.client.publish(topic, payload, qos, retain, properties(PacketTypes.PUBLISH, **said))
        await asyncio.to_thread(info.wait_for_publish, 60)
        return (await self.next(self.published)).value

    @staticmethod
    async def next(waiting: queue.Queue[T]) -> T:
        return await asyncio.to_thread(waiting.get, True, 60)

    async def stop(self) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)
        self.client._reset_sockets()  # else they wait for the garbage collector


async def test_paho_every_qos_with_every_property(site: Site) -> None:
    device = Device(site, "p")
    present, reason, said = await device.start(ReceiveMaximum=10, TopicAliasMaximum=5, MaximumPacketSize=30_000)
    assert (present, reason.value) == (False, 0)
    assert (of(said).ReceiveMaximum, of(said).TopicAliasMaximum) == (4096, 32)
    assert await device.subscribe(("a/#", SubscribeOptions(2)), identifier=7) == [2]
    for qos in (0, 1, 2):
        for size in (0, 1, 127, 128, 20_000):
            assert (
                await device.publish(
                    f"a/{qos}",
                    b"x" * size,
                    qos,
                    PayloadFormatIndicator=1,
                    ContentType="text/plain",
                    ResponseTopic="answers",
                    CorrelationData=b"\0\1",
                    MessageExpiryInterval=30,
                    UserProperty=[("b", "1"), ("a", "2")],
                )
                == 0
            )
    for qos in (0, 1, 2):
        for size in (0, 1, 127, 128, 20_000):
            message = await device.next(device.heard)
            got = of(message.properties)
            assert (message.topic, message.payload, message.qos) == (f"a/{qos}", b"x" * size, qos)
            assert (got.PayloadFormatIndicator, got.ContentType, got.ResponseTopic) == (1, "text/plain", "answers")
            assert (got.CorrelationData, got.UserProperty) == (b"\0\1", [("b", "1"), ("a", "2")])
            assert 28 <= got.MessageExpiryInterval <= 30
            assert got.SubscriptionIdentifier == [7]
    await device.stop()
    await site.until(lambda: site.server.counters.connections == 0)


async def test_paho_sends_by_alias(site: Site) -> None:
    device = Device(site, "p")
    await device.start()
    await device.publish("long/topic/name", b"1", 1, TopicAlias=3)
    await device.publish("", b"2", 1, TopicAlias=3)
    assert [(message[1], message[2]) for message in site.sink.messages] == [
        (b"long/topic/name", b"1"),
        (b"long/topic/name", b"2"),
    ]
    await device.stop()


async def test_paho_a_session_that_sleeps_and_options(site: Site) -> None:
    sleeper = Device(site, "sleeper")
    await sleeper.start(clean=False, SessionExpiryInterval=600)
    kept = SubscribeOptions(1, retainAsPublished=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
    assert await sleeper.subscribe(("a", kept), ("b", SubscribeOptions(1, noLocal=True))) == [1, 1]
    await sleeper.publish("b", b"not for myself", 1)
    await sleeper.stop()
    pub = Device(site, "pub")
    await pub.start()
    for n in range(20):
        await pub.publish("a", b"%d" % n, 1, retain=n % 2 == 0, ContentType=f"text/{n}")
    sleeper = Device(site, "sleeper")
    present, _, _ = await sleeper.start(clean=False, SessionExpiryInterval=600)
    assert present
    for n in range(20):
        message = await sleeper.next(sleeper.heard)
        assert (message.payload, message.retain, of(message.properties).ContentType) == (
            b"%d" % n,
            n % 2 == 0,
            f"text/{n}",
        )
    await sleeper.stop()
    await pub.stop()


async def test_paho_shared_subscriptions(site: Site) -> None:
    workers = [Device(site, f"w{n}") for n in range(3)]
    for worker in workers:
        await worker.start()
        assert await worker.subscribe(("$share/g/jobs/#", SubscribeOptions(1))) == [1]
    pub = Device(site, "pub")
    await pub.start()
    for n in range(30):
        await pub.publish(f"jobs/{n % 4}", b"%d" % n, 1)
    await site.until(lambda: sum(worker.heard.qsize() for worker in workers) == 30)
    assert [worker.heard.qsize() for worker in workers] == [10, 10, 10]
    for each in (*workers, pub):
        await each.stop()


async def test_paho_is_told_why_it_ends(site: Site) -> None:
    old, new = Device(site, "same"), Device(site, "same")
    await old.start()
    old.client.reconnect_delay_set(60, 60)
    await new.start()
    assert (await old.next(old.ends)).value == 0x8E
    await asyncio.to_thread(old.client.loop_stop)
    new.client.reconnect_delay_set(60, 60)
    assert site.server.disconnect("same")
    assert (await new.next(new.ends)).value == 0x98
    await asyncio.to_thread(new.client.loop_stop)
    last = Device(site, "last")
    await last.start()
    last.client.reconnect_delay_set(60, 60)
    await site.server.close()
    assert (await last.next(last.ends)).value == 0x8B
    await asyncio.to_thread(last.client.loop_stop)


async def test_paho_is_refused_in_words_of_version_5(start: Start) -> None:
    hooks = Hooks(
        authorize_connect=lambda info: ConnackCode.BAD_CREDENTIALS if info.user == "bad" else None,
        authorize_publish=lambda _, topic: topic != "no",
        authorize_subscribe=lambda _, pattern: pattern != "no",
    )
    site = await start(Settings(), hooks)
    device = Device(site, "d")
    device.client.username_pw_set("bad", "x")
    _, reason, _ = await device.start()
    assert reason.value == 0x86
    await device.stop()
    device = Device(site, "d")
    await device.start()
    assert await device.publish("no", b"", 1) == 0x87
    assert await device.publish("no", b"", 2) == 0x92  # paho sends PUBREL even for a PUBREC that says no
    assert await device.publish("yes", b"1", 2) == 0
    assert await device.subscribe(("no", SubscribeOptions(1)), ("yes", SubscribeOptions(2))) == [0x87, 2]
    assert site.stored == [b"1"]
    await device.stop()


async def test_paho_resends_in_its_session_are_stored_once(site: Site) -> None:
    """D7: connections are cut again and again while commits are under way; paho sends again with DUP."""
    site.sink.delay = 0.02
    device = Device(site, "dev")
    device.client.reconnect_delay_set(0.05, 0.1)  # type: ignore[arg-type] # seconds, and fractions do
    await device.start(clean=False, SessionExpiryInterval=600)
    acked: list[int] = []
    device.client.on_publish = lambda *arguments: acked.append(arguments[2])
    for n in range(300):
        device.client.publish("a", b"m%d" % n, 1, properties=properties(PacketTypes.PUBLISH, ContentType="t"))
        if n % 80 == 40:
            await site.until(lambda: site.sink.waiting)
            for wire in list(site.server.wires):
                wire.abort()
        await asyncio.sleep(0.001)
    await site.until(lambda: len(acked) == 300)
    assert sorted(site.stored, key=lambda payload: int(payload[1:])) == [b"m%d" % n for n in range(300)]
    assert site.server.counters.duplicates > 0
    await device.stop()


async def test_aiomqtt_every_qos_both_ways(site: Site) -> None:
    said = properties(PacketTypes.CONNECT, TopicAliasMaximum=4)
    protocol = aiomqtt.ProtocolVersion.V5
    async with aiomqtt.Client(
        site.host, site.port, identifier="a", protocol=protocol, properties=said, timeout=60
    ) as client:
        await client.subscribe("x/+", qos=2)
        for qos in (0, 1, 2):
            sent = properties(PacketTypes.PUBLISH, UserProperty=("n", str(qos)))
            await client.publish("x/y", b"%d" % qos, qos=qos, properties=sent)
        heard: list[tuple[str, int, object, object]] = []
        async with asyncio.timeout(60):
            async for message in client.messages:
                heard.append((str(message.topic), message.qos, message.payload, of(message.properties).UserProperty))
                if len(heard) == 3:
                    break
        await client.unsubscribe("x/+")
    assert heard == [("x/y", qos, b"%d" % qos, [("n", str(qos))]) for qos in (0, 1, 2)]
    assert site.stored == [b"0", b"1", b"2"]


async def test_aiomqtt_a_will_that_waits(site: Site) -> None:
    protocol = aiomqtt.ProtocolVersion.V5
    async with aiomqtt.Client(site.host, site.port, identifier="watcher", protocol=protocol, timeout=60) as watcher:
        await watcher.subscribe("state/#", qos=1)
        said = properties(PacketTypes.WILLMESSAGE, WillDelayInterval=1, ContentType="text/plain")
        will = aiomqtt.Will("state/dev", b"offline", qos=1, retain=True, properties=said)
        kept = properties(PacketTypes.CONNECT, SessionExpiryInterval=60)
        client = aiomqtt.Client(
            site.host, site.port, identifier="dev", protocol=protocol, will=will, properties=kept, timeout=60
        )

        async def live() -> None:
            async with client:
                assert site.server.disconnect("dev")
                async for _ in client.messages:
                    pass

        with pytest.raises(aiomqtt.MqttError):
            await live()
        assert site.stored == []
        async with asyncio.timeout(60):
            message = await anext(aiter(watcher.messages))
    assert (str(message.topic), message.payload, of(message.properties).ContentType) == (
        "state/dev",
        b"offline",
        "text/plain",
    )

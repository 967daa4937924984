"""What devices hear from every engine; what amqtt cannot do is marked so (docs/amqtt.md)."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.integration.edge.peer import until
from tests.support.device import Device
from tests.support.engines import Site, Start, amqtt_fails
from tests.unit.mqtt import rig


async def test_two_subscribers_hear_everything_in_order(site: Site) -> None:
    async with Device(site.port, "p") as device, Device(site.port, "s1") as one, Device(site.port, "s2") as two:
        await one.subscribe(("t/#", 0))
        await two.subscribe(("t/+", 1))
        sent = [b"%d" % n for n in range(500)]
        for payload in sent:
            device.client.publish("t/x", payload, 1)
        await until(lambda: len(one.heard) >= 500 and len(two.heard) >= 500)
        assert one.payloads == two.payloads == sent


async def test_wildcards(site: Site) -> None:
    async with Device(site.port, "p") as device, Device(site.port, "s") as listener:
        await listener.subscribe(("a/+/c", 1), ("b/#", 1), ("last", 1))
        topics = ["a/b/c", "a//c", "b", "b/c", "b/c/d", "last"]
        for topic in ["a/b", "a/b/c/d", "c", "B/c", *topics]:
            await device.publish(topic, b"", 1)
        await until(lambda: len(listener.heard) >= len(topics))
        assert [one[0] for one in listener.heard] == topics


async def test_a_subscription_replaces_one_to_the_same_filter(site: Site) -> None:
    async with Device(site.port, "p") as device, Device(site.port, "s") as listener:
        await device.publish("t", b"kept", 1, retain=True)
        for qos in (0, 2):
            await listener.subscribe(("t", qos))
        await device.publish("t", b"x", 2)
        await until(lambda: b"x" in listener.payloads)
        assert listener.payloads == [b"kept", b"kept", b"x"]
        assert listener.heard[-1][2] == 2


@amqtt_fails("amqtt delivers with the QoS of the subscription, not with the lower one (3.8.4)")
async def test_the_lower_qos_counts(site: Site) -> None:
    async with Device(site.port, "p") as device, Device(site.port, "s") as listener:
        await listener.subscribe(("t", 2))
        for qos in (0, 1, 2):
            await device.publish("t", b"%d" % qos, qos)
        await until(lambda: len(listener.heard) == 3)
        assert [one[2] for one in listener.heard] == [0, 1, 2]


async def test_retained_messages_also_after_a_restart(site: Site, start: Start) -> None:
    async with Device(site.port, "p") as device:
        await device.publish("a/1", b"old", 1, retain=True)
        await device.publish("a/1", b"new", 1, retain=True)
        await device.publish("a/2", b"gone", 1, retain=True)
        await device.publish("a/2", b"", 1, retain=True)
        await device.publish("b", b"other", 1, retain=True)
    await site.engine.close()
    again = await start(site.sink)
    async with Device(again.port, "s") as listener:
        await listener.subscribe(("a/#", 1), ("end", 1))
        await listener.publish("end", b"", 0)
        await until(lambda: any(one[0] == "end" for one in listener.heard))
        assert [(one[0], one[1], one[3]) for one in listener.heard if one[0] != "end"] == [("a/1", b"new", True)]


async def test_a_new_connection_hears_only_what_it_subscribed_to(site: Site) -> None:
    async with Device(site.port, "p") as device, Device(site.port, "s") as listener:
        await device.publish("a/1", b"kept", 1, retain=True)
        await listener.subscribe(("#", 1))
        await until(lambda: listener.heard)
        async with Device(site.port, "new") as new:
            await new.subscribe(("b", 1))
            await device.publish("b", b"1", 1)
            await until(lambda: new.heard)
            assert new.payloads == [b"1"]


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_will_fires_when_the_connection_is_lost_and_is_stored(site: Site, qos: int) -> None:
    async with Device(site.port, "s") as listener:
        await listener.subscribe(("will", 2))
        _, writer = await site.accepted(rig.connect("a", will=("will", b"lost", qos, False)))
        writer.transport.abort()
        await until(lambda: listener.payloads == [b"lost"])
    assert site.sink.messages == [("a", b"will", b"lost")]


async def test_a_will_fires_when_the_keepalive_expires(site: Site) -> None:
    async with Device(site.port, "s") as listener:
        await listener.subscribe(("will", 1))
        began = time.monotonic()
        reader, _ = await site.accepted(rig.connect("a", keepalive=1, will=("will", b"lost", 1, False)))
        await until(lambda: listener.payloads == [b"lost"])
        assert time.monotonic() - began >= 1.4
        assert await reader.read() == b""
    assert site.stored == [b"lost"]


async def test_no_will_after_a_disconnect(site: Site) -> None:
    reader, _ = await site.accepted(rig.connect("a", will=("will", b"lost", 1, False)), rig.DISCONNECT)
    assert await asyncio.wait_for(reader.read(), 60) == b""
    await until(lambda: site.gone)
    assert site.gone == ["a: "]
    assert not site.stored


@pytest.mark.parametrize("clean", [True, False])
async def test_a_second_connection_of_a_client_takes_over(site: Site, clean: bool) -> None:  # noqa: FBT001
    old, _ = await site.accepted(rig.connect("a", clean=clean), rig.subscribe(("t", 1)))
    assert await old.readexactly(5) == rig.suback(1)
    async with Device(site.port, "a", clean=clean) as new, Device(site.port, "p") as device:
        assert await asyncio.wait_for(old.read(), 60) == b""
        assert new.present is not clean
        await new.subscribe(("t", 1))
        await device.publish("t", b"x", 1)
        await until(lambda: new.heard)
        assert new.payloads == [b"x"]
    assert site.engine.counters.taken_over == 1


async def test_a_persistent_session_gets_what_came_while_it_was_away(site: Site) -> None:
    async with Device(site.port, "s", clean=False) as listener:
        await listener.subscribe(("t", 1))
    await until(lambda: site.gone)
    async with Device(site.port, "p") as device:
        for n in range(50):
            await device.publish("t", b"%d" % n, 1)
        await device.publish("t", b"0", 2)
    async with Device(site.port, "s", clean=False) as listener:
        assert listener.present
        await until(lambda: len(listener.heard) >= 51)
        assert listener.payloads == [*(b"%d" % n for n in range(50)), b"0"]
        assert not any(one[3] for one in listener.heard)
    async with Device(site.port, "s", clean=True) as listener:
        assert not listener.present


@amqtt_fails("amqtt keeps sessions in memory; https://github.com/Yakifo/amqtt/issues/255")
async def test_a_persistent_session_survives_a_restart(site: Site, start: Start) -> None:
    async with Device(site.port, "s", clean=False) as listener:
        await listener.subscribe(("t", 1))
    async with Device(site.port, "p") as device:
        await device.publish("t", b"x", 1)
    await site.engine.close()
    again = await start(site.sink)
    async with Device(again.port, "s", clean=False) as listener:
        assert listener.present
        await until(lambda: listener.payloads == [b"x"])


async def in_flight_again(site: Site) -> tuple[Device, Device]:
    """Return a device that acknowledges nothing, and the same after it lost its connection."""
    async with Device(site.port, "s", clean=False, manual=True) as listener, Device(site.port, "p") as device:
        await listener.subscribe(("t", 1))
        for n in range(3):
            await device.publish("t", b"%d" % n, 1)
        await until(lambda: len(listener.heard) == 3)
        await listener.drop()
        await until(lambda: any(one.startswith("s:") for one in site.gone))
        async with Device(site.port, "s", clean=False) as again:
            await until(lambda: len(again.heard) >= 3)
            return listener, again


async def test_what_was_not_acknowledged_comes_again(site: Site) -> None:
    listener, again = await in_flight_again(site)
    assert again.payloads == listener.payloads == [b"0", b"1", b"2"]


@amqtt_fails("amqtt forgets what was in flight; https://github.com/Yakifo/amqtt/issues/401")
async def test_it_comes_again_under_its_packet_id_with_dup(site: Site) -> None:
    listener, again = await in_flight_again(site)
    assert again.ids == listener.ids
    assert all(one[4] for one in again.heard)


async def test_the_program_itself_publishes_and_hears_of_subscriptions(site: Site) -> None:
    async with Device(site.port, "V7") as device:
        await device.subscribe(("cmd/V7/+/req", 1))
        assert site.subscribed == ["cmd/V7/+/req"]
        await site.engine.publish("cmd/V7/c1/req", b"lock", 1)
        await until(lambda: device.heard)
        assert device.heard[0][:3] == ("cmd/V7/c1/req", b"lock", 1)
    assert not site.stored


@amqtt_fails("amqtt 0.12 speaks MQTT 3.1.1 only; https://github.com/Yakifo/amqtt/issues/174")
async def test_a_client_of_mqtt_5(site: Site) -> None:
    async with Device(site.port, "five", v5=True) as device:
        assert device.code == 0
        await device.publish("t", b"x", 1)
    assert site.stored == [b"x"]

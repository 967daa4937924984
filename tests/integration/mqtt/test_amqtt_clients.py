"""The server with amqtt's client, which others wrote (MQTT 3.1.1)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from amqtt.client import MQTTClient

from tests.integration.mqtt.conftest import Site

Join = Callable[..., Awaitable[MQTTClient]]
NOT_AGAIN = {"auto_reconnect": False}


@pytest.fixture
async def join(site: Site) -> AsyncIterator[Join]:
    """Connect clients; all are disconnected at the end."""
    clients: list[MQTTClient] = []

    async def connect(name: str, *, clean: bool = True, **config: object) -> MQTTClient:
        client = MQTTClient(client_id=name, config=NOT_AGAIN | config)
        await client.connect(f"mqtt://{site.host}:{site.port}/", cleansession=clean)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        await client.disconnect()


async def take(client: MQTTClient, count: int) -> list[tuple[str, bytes, int]]:
    heard = []
    for _ in range(count):
        message = await client.deliver_message(timeout_duration=10)
        assert message is not None
        heard.append((message.topic, bytes(message.data), message.qos))
    return heard


async def test_amqtt_every_qos_both_ways(site: Site, join: Join) -> None:
    client = await join("a")
    assert await client.subscribe([("x/+", 2), ("y", 1)]) == [2, 1]
    expected = []
    for qos in (0, 1, 2):
        for size in (0, 1, 127, 128, 20_000):
            await client.publish(f"x/{qos}", b"p" * size, qos=qos)
            expected.append((f"x/{qos}", b"p" * size, qos))
    await client.publish("y", b"lower", qos=2)
    expected.append(("y", b"lower", 1))
    assert await take(client, len(expected)) == expected
    assert site.stored == [payload for _, payload, _ in expected]
    await client.unsubscribe(["x/+", "y"])
    await client.publish("y", b"unheard", qos=1)
    assert site.server.broker.sessions["a"].subscriptions == {}


async def test_amqtt_sleeping_session_and_retained(join: Join) -> None:
    sleeper = await join("sleeper", clean=False)
    await sleeper.subscribe([("a/#", 2)])
    await sleeper.disconnect()
    pub = await join("pub")
    for n in range(20):
        await pub.publish("a/b", b"%d" % n, qos=1 + n % 2)
    await pub.publish("kept", b"state", qos=1, retain=True)
    sleeper = await join("sleeper", clean=False)
    heard = await take(sleeper, 20)
    for qos in (1, 2):  # QoS 2 is handed on when it is released
        assert [payload for _, payload, each in heard if each == qos] == [
            b"%d" % n for n in range(20) if 1 + n % 2 == qos
        ]
    await sleeper.subscribe([("kept", 1)])
    assert await take(sleeper, 1) == [("kept", b"state", 1)]


async def test_amqtt_will(site: Site, join: Join) -> None:
    watcher = await join("watcher")
    await watcher.subscribe([("gone", 1)])
    await join("dev", will={"topic": "gone", "message": "bye", "qos": 1, "retain": False})
    assert site.server.disconnect("dev")
    assert await take(watcher, 1) == [("gone", b"bye", 1)]

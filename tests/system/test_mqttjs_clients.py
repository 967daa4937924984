"""The server and the agent with MQTT.js, which others wrote: both versions, over TCP and WebSocket, and SIGKILL."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.edge.agents import process
from tests.integration.edge.peer import until
from tests.system.mqttjs import Heard, MqttJs, node
from waybill.mqtt.server import MqttServer
from waybill.mqtt.settings import Hooks, Settings
from waybill.mqtt.testing import MemorySink

pytestmark = pytest.mark.system

NEVER = 0xFFFFFFFF
LEVELS = pytest.mark.parametrize("level", [4, 5])


@dataclass
class Site:
    """A server, and MQTT.js."""

    server: MqttServer
    sink: MemorySink
    url: str
    js: MqttJs

    @property
    def stored(self) -> list[bytes]:
        return [payload for _, _, payload in self.sink.messages]


@pytest.fixture(params=["mqtt", "ws"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    hooks = Hooks(
        authorize_publish=lambda _, topic: not topic.startswith("no/"),
        authorize_subscribe=lambda _, pattern: not pattern.startswith("no/"),
    )
    sink = MemorySink()
    server = MqttServer(sink, Settings(topic_aliases=3), hooks)
    await server.start()
    host, port = await server.listen("127.0.0.1", 0, websocket=request.param == "ws")
    async with node() as js:
        yield Site(server, sink, f"{request.param}://{host}:{port}", js)
    await server.close()


def session(level: int, *, clean: bool, seconds: int = NEVER) -> dict[str, object]:
    """The options of a session that stays, or that goes with its connection."""
    options: dict[str, object] = {"protocolVersion": level, "clean": clean}
    if level == 5 and not clean:
        options["properties"] = {"sessionExpiryInterval": seconds}
    return options


@LEVELS
async def test_mqttjs_every_qos_both_ways(site: Site, level: int) -> None:
    js = site.js
    await js.connect("a", site.url, **session(level, clean=True))
    assert await js.subscribe("a", "a/#", qos=2) == [2]
    expected = []
    for qos in (0, 1, 2):
        for size in (0, 1, 127, 128, 20_000):
            await js.publish("a", f"a/{qos}", b"x" * size, qos=qos)
            expected.append((f"a/{qos}", b"x" * size, qos))
    await until(lambda: len(js.heard["a"]) == len(expected))
    assert [(each.topic, each.payload, each.qos) for each in js.heard["a"]] == expected
    assert site.stored == [payload for _, payload, _ in expected]
    await js.call("a", "unsubscribe", topics=["a/#"])
    await js.publish("a", "a/1", b"unheard", qos=1)
    await js.end("a")
    await until(lambda: site.server.counters.connections == 0)
    assert len(js.heard["a"]) == len(expected)
    assert js.events["a"] == []


@LEVELS
async def test_mqttjs_sleeping_session_retained_and_will(site: Site, level: int) -> None:
    js = site.js
    assert not (await js.connect("s", site.url, **session(level, clean=False)))["sessionPresent"]
    await js.subscribe("s", "a/#", "w", qos=2)
    await js.end("s")
    will = {"topic": "w", "payload": "gone", "qos": 1, "retain": True}
    await js.connect("p", site.url, **session(level, clean=True), will=will)
    for n in range(60):
        await js.publish("p", "a/b", b"%d" % n, qos=1 + n % 2)
    await js.end("p", force=True)
    await until(lambda: site.stored[-1] == b"gone")
    js.heard["s"].clear()
    assert (await js.connect("s", site.url, **session(level, clean=False)))["sessionPresent"]
    await until(lambda: len(js.heard["s"]) == 61)
    for qos in (1, 2):
        heard = [each.payload for each in js.heard["s"] if each.qos == qos and each.topic == "a/b"]
        assert heard == [b"%d" % n for n in range(60) if 1 + n % 2 == qos]
    js.heard["s"].clear()
    await js.subscribe("s", "w", qos=1)
    await until(lambda: js.heard["s"] == [Heard("w", b"gone", 1, retain=True, dup=False, properties={})])


async def test_mqttjs_properties_aliases_and_answers(site: Site) -> None:
    """Request and response, user properties, topic aliases both ways, a Receive Maximum.

    No QoS 2 by alias: MQTT.js forgets the topic of such a message until it is released.
    """
    js = site.js
    wants = {"topicAliasMaximum": 5, "receiveMaximum": 3}
    said = await js.connect("asks", site.url, protocolVersion=5, properties=wants, autoAssignTopicAlias=True)
    assert (said["properties"]["receiveMaximum"], said["properties"]["topicAliasMaximum"]) == (4096, 3)
    await js.connect("knows", site.url, protocolVersion=5, properties=wants, autoUseTopicAlias=True)
    await js.subscribe("knows", "questions/#", qos=2)
    await js.subscribe("asks", "answers/7", qos=1, properties={"subscriptionIdentifier": 300})
    many = [js.publish("asks", f"questions/{n % 4}", b"%d" % n, qos=n % 2, properties={
        "responseTopic": "answers/7", "correlationData": {"type": "Buffer", "data": [0, n]},
        "userProperties": {"n": str(n)}, "messageExpiryInterval": 100,
    }) for n in range(40)]  # fmt: skip
    await asyncio.gather(*many)
    await until(lambda: len(js.heard["knows"]) == 40)
    for question in js.heard["knows"]:
        assert question.topic == f"questions/{int(question.payload) % 4}"
        assert question.properties["userProperties"] == {"n": question.payload.decode()}
        assert question.properties["responseTopic"] == "answers/7"
        assert question.properties["messageExpiryInterval"] in (99, 100)
        await js.publish("knows", question.properties["responseTopic"], question.payload, qos=1)
    await until(lambda: len(js.heard["asks"]) == 40)
    assert {each.properties["subscriptionIdentifier"] for each in js.heard["asks"]} == {300}


async def test_mqttjs_is_told_why_not(site: Site) -> None:
    js = site.js
    await js.connect("a", site.url, protocolVersion=5, reconnectPeriod=0)
    with pytest.raises(Exception, match="Not authorized"):
        await js.publish("a", "no/entry", b"x", qos=1)
    assert await js.subscribe("a", "yes") == [0]
    with pytest.raises(Exception, match="Not authorized"):
        await js.subscribe("a", "no/entry")
    await js.connect("a2", site.url, protocolVersion=5, clientId="a", reconnectPeriod=0)
    await until(lambda: js.events["a"])
    assert js.events["a"][0]["reasonCode"] == 0x8E


@LEVELS
@pytest.mark.parametrize("qos", [1, 2])
async def test_b1_mqttjs_over_sigkill_of_the_agent(tmp_path: Path, free_port: int, level: int, qos: int) -> None:
    """It comes again by itself and sends again what was not acknowledged."""
    arguments = ("run", "--listen", f"127.0.0.1:{free_port}", "--data", str(tmp_path / "data"))
    url = f"mqtt://127.0.0.1:{free_port}"
    numbers = [b"%d" % n for n in range(301)]  # the last one when the agent is there again
    async with node() as js:
        async with process(*arguments) as agent:
            await agent.ready()
            await js.connect("sub", url, **session(level, clean=False))
            await js.subscribe("sub", "a", qos=qos)
            await js.connect("pub", url, **session(level, clean=False))
            sending = [asyncio.create_task(js.publish("pub", "a", each, qos=qos)) for each in numbers[:-1]]
            await until(lambda: any(each.done() for each in sending))
            await agent.end(signal.SIGKILL)
        async with process(*arguments) as agent:
            await agent.ready()
            await asyncio.gather(*sending, js.publish("pub", "a", numbers[-1], qos=qos))
            await until(lambda: {each.payload for each in js.heard["sub"]} == set(numbers))
            heard = js.heard["sub"]
            assert list(dict.fromkeys(each.payload for each in heard)) == numbers
            assert len([each for each in heard if not each.dup]) <= len(numbers)
            if qos == 2:
                assert len(heard) == len(numbers)
            await js.end("sub")
            await js.end("pub")
            assert await agent.end(signal.SIGTERM) == 0

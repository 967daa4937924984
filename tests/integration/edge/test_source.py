"""A broker that is already there: its messages go up once and in order, and it hears of it after the commit (B1)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import aiomqtt
import msgspec
import pytest

from edge_agent.source.config import SourceSettings, completed
from edge_agent.source.sessions import Sessions
from edge_agent.source.source import UNCOMMITTED, Source
from fleet_simulator.ports import free_port
from tests.integration.edge.agents import Running, publish, running
from tests.integration.edge.peer import GATEWAY, Cloud, listening, until, url
from tests.support.device import Device
from waybill.frames import decode
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.server import MqttServer
from waybill.mqtt.settings import Hooks
from waybill.mqtt.state import Batch
from waybill.mqtt.testing import MemorySink
from waybill.wire import Envelope

NAME = "plant"

Version = Literal["3.1.1", "5"]
both = pytest.mark.parametrize("version", ["3.1.1", "5"])


class Broker:
    """The broker that is already there; what it has to remember is in ``sink``, and outlives a restart."""

    def __init__(self, hooks: Hooks | None = None) -> None:
        self.sink = MemorySink()
        self.hooks = hooks
        self.port = free_port()  # which it gets again after a restart
        self.server: MqttServer

    async def start(self) -> None:
        self.server = MqttServer(self.sink, hooks=self.hooks)
        await self.server.start()
        _, self.port = await self.server.listen("127.0.0.1", self.port)

    async def restart(self, *, forgetful: bool = False) -> None:
        await self.server.close()
        if forgetful:
            self.sink = MemorySink()
        await self.start()

    def source(self, version: Version = "3.1.1", *topics: str, **more: object) -> SourceSettings:
        settings = SourceSettings(f"mqtt://127.0.0.1:{self.port}", topics or ("plant/#",), NAME, version=version)
        return completed(msgspec.structs.replace(settings, **more), GATEWAY)


@contextlib.asynccontextmanager
async def standing(hooks: Hooks | None = None) -> AsyncIterator[Broker]:
    broker = Broker(hooks)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.server.close()


def numbered(start: int, count: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def in_order(cloud: Cloud) -> list[bytes]:
    found = cloud.by_seq("telemetry")
    epochs = list(dict.fromkeys(epoch for epoch, _ in found))
    return [found[key] for key in sorted(found, key=lambda key: (epochs.index(key[0]), key[1]))]


def has(cloud: Cloud, count: int) -> bool:
    return len(in_order(cloud)) == count


@contextlib.asynccontextmanager
async def reading(data: Path, cloud: Cloud, *sources: SourceSettings) -> AsyncIterator[Running]:
    """Run an agent that has no listener, only sources."""
    async with running(data, url(cloud.address), listeners=(), sources=sources) as agent:
        await until(lambda: agent.said)
        await until(lambda: all(one.link.state == "online" for one in agent.agent.status().sources))
        yield agent


@both
async def test_b1_what_a_broker_has_goes_up_once_and_in_order(tmp_path: Path, version: Version) -> None:
    async with standing() as broker, listening(Cloud()) as cloud:
        async with reading(tmp_path, cloud, broker.source(version)):
            await publish(broker.port, numbered(0, 500), "plant/press/1")
            await until(lambda: len(cloud.payloads) == 500)
        await publish(broker.port, numbered(500, 500), "plant/press/1")  # nobody is there to hear it
        async with reading(tmp_path, cloud, broker.source(version)) as agent:
            await until(lambda: len(cloud.payloads) == 1000)
            state = agent.agent.status().sources[0]
            assert (state.name, state.received, state.forgotten, state.dropped) == (NAME, 500, 0, 0)
            # the broker has the acks of all of them
            await until(lambda: not broker.server.broker.sessions[f"waybill-{GATEWAY}"].queued)
        assert in_order(cloud) == numbered(0, 1000)
        sources = {source for frame in cloud.journal for source in decode(frame).sources}
        assert sources == {("plant/press/1", NAME)}


@both
async def test_a_broker_that_restarts_is_found_again(tmp_path: Path, version: Version) -> None:
    async with standing() as broker, listening(Cloud()) as cloud, reading(tmp_path, cloud, broker.source(version)) as a:
        await publish(broker.port, numbered(0, 100), "plant/x")
        await broker.restart()
        await publish(broker.port, numbered(100, 100), "plant/x")
        await until(lambda: len(cloud.payloads) == 200)
        state = a.agent.status().sources[0]
        assert (state.forgotten, a.agent.status().counters["source_connects"]) == (0, 2)
    assert in_order(cloud) == numbered(0, 200)


@both
async def test_a_broker_that_forgets_the_session_is_subscribed_to_again_and_that_is_said(
    tmp_path: Path, version: Version, caplog: pytest.LogCaptureFixture
) -> None:
    async with standing() as broker, listening(Cloud()) as cloud:
        async with reading(tmp_path, cloud, broker.source(version)):
            assert "forgotten" not in caplog.text  # the first time there is nothing to forget
        await broker.restart(forgetful=True)
        async with reading(tmp_path, cloud, broker.source(version)) as agent:
            await publish(broker.port, [b"after"], "plant/x")
            await until(lambda: cloud.payloads)
            assert agent.agent.status().sources[0].forgotten == 1
    assert "source plant: the broker has forgotten this session" in caplog.text


@both
async def test_retained_messages_come_with_the_first_subscription_alone(tmp_path: Path, version: Version) -> None:
    async with standing() as broker, listening(Cloud()) as cloud:
        async with aiomqtt.Client("127.0.0.1", broker.port, timeout=60) as device:
            await device.publish("plant/state", b"on", qos=1, retain=True)
        for turn in range(3):
            async with reading(tmp_path, cloud, broker.source(version)):
                await publish(broker.port, numbered(turn, 1), "plant/x")
                await until(partial(has, cloud, turn + 2))
    assert in_order(cloud) == [b"on", b"0", b"1", b"2"]
    flags = [row[2] for row in decode(cloud.journal[0]).rows]
    assert flags[0] == 1 | 4  # QoS 1, retain


@both
async def test_topics_that_are_configured_no_more_are_heard_no_more(tmp_path: Path, version: Version) -> None:
    async with standing() as broker, listening(Cloud()) as cloud:
        async with reading(tmp_path, cloud, broker.source(version, "plant/a", "plant/b")):
            pass
        async with reading(tmp_path, cloud, broker.source(version, "plant/b", "plant/c")):
            for topic in ("plant/a", "plant/b", "plant/c"):
                await publish(broker.port, [topic.encode()], topic)
            await until(lambda: len(cloud.payloads) == 2)
    assert in_order(cloud) == [b"plant/b", b"plant/c"]


@both
async def test_a_command_reaches_a_device_at_that_broker_and_its_answer_comes_back(
    tmp_path: Path, version: Version
) -> None:
    expires = int(time.time() * 1000) + 60_000
    async with standing() as broker, listening(Cloud()) as cloud:
        async with reading(tmp_path, cloud, broker.source(version)), Device(broker.port, "press") as device:
            device.client.subscribe("cmd/press/+/req", 1)
            assert await asyncio.to_thread(device.subscribed.wait, 60)
            cloud.command(Envelope("c1", "command", "press", "stop", b"now", expires))
            await until(lambda: device.heard)
            assert device.heard[0][:2] == ("cmd/press/c1/req", b"now")
            # Its answer comes while the agent is away, and the next command while the broker is.
        await publish(broker.port, [b"stopped"], "cmd/press/c1/res")
        async with reading(tmp_path, cloud, broker.source(version)):
            await until(lambda: sum(b'"done"' in payload for payload in cloud.by_seq("control").values()) == 1)
            async with Device(broker.port, "press", clean=False) as device:
                device.client.subscribe("cmd/press/+/req", 1)
                assert await asyncio.to_thread(device.subscribed.wait, 60)
            await broker.server.close()
            cloud.command(Envelope("c2", "command", "press", "go", b"", expires))
            await until(lambda: any(b'"c2"' in payload for payload in cloud.by_seq("control").values()))
            await broker.start()
            async with Device(broker.port, "press", clean=False) as device:
                await until(lambda: "cmd/press/c2/req" in [heard[0] for heard in device.heard])


async def committing_to(
    directory: Path, settings: SourceSettings, commit: Callable[[Batch], Awaitable[None]]
) -> tuple[Source, asyncio.Task[None]]:
    async def no_commands() -> Sequence[tuple[str, bytes]]:
        return ()

    source = Source(settings, commit, (), Sessions(directory))
    return source, asyncio.create_task(source.run(no_commands))


@both
async def test_b1_nothing_is_acknowledged_before_its_commit_and_reading_stops_meanwhile(
    tmp_path: Path, version: Version
) -> None:
    may_commit = asyncio.Event()
    committed: list[bytes] = []

    async def commit(batch: Batch) -> None:
        await may_commit.wait()
        committed.extend(publish[1][:4] for arrival in batch.arrivals for publish in arrival.publishes)

    count, payload = 600, b"x" * 20_000
    async with standing() as broker:
        source, task = await committing_to(tmp_path, broker.source(version), commit)
        try:
            await until(lambda: source.state.link.state == "online")
            session = broker.server.broker.sessions[f"waybill-{GATEWAY}"]
            await publish(broker.port, [b"%04d" % number + payload for number in range(count)], "plant/x")
            await until(lambda: not source._room.is_set())
            assert source.counters.received * len(payload) < 2 * UNCOMMITTED < count * len(payload)
            assert session.queued == count
            may_commit.set()
            await until(lambda: not session.queued)
            assert committed == [b"%04d" % number for number in range(count)]
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@both
async def test_a_lane_without_room_holds_messages_at_the_broker(tmp_path: Path, version: Version) -> None:
    committed: list[bytes] = []

    async def commit(batch: Batch) -> None:
        committed.extend(publish[1] for arrival in batch.arrivals for publish in arrival.publishes)

    async with standing() as broker:
        source, task = await committing_to(tmp_path, broker.source(version), commit)
        try:
            await until(lambda: source.state.link.state == "online")
            session = broker.server.broker.sessions[f"waybill-{GATEWAY}"]
            source.refuse(lambda topic: topic == b"plant/bulk")
            await publish(broker.port, [b"0"], "plant/x")
            await until(lambda: committed == [b"0"])
            await publish(broker.port, [b"1"], "plant/bulk")
            await until(lambda: source.counters.received == 2)
            await publish(broker.port, [b"2"], "plant/x")  # order counts more than speed
            await until(lambda: source.counters.received == 3)
            assert (committed, session.queued) == ([b"0"], 2)
            source.refuse(None)
            await until(lambda: not session.queued)
            assert committed == numbered(0, 3)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_clean_end_leaves_nothing_unacknowledged_that_was_read(tmp_path: Path) -> None:
    committed: list[Batch] = []

    async def commit(batch: Batch) -> None:
        await asyncio.sleep(0)
        committed.append(batch)

    async with standing() as broker:
        source, task = await committing_to(tmp_path, broker.source(), commit)
        await until(lambda: source.state.link.state == "online")
        session = broker.server.broker.sessions[f"waybill-{GATEWAY}"]
        await publish(broker.port, numbered(0, 500), "plant/x")
        await source.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        stored = sum(len(arrival.publishes) for batch in committed for arrival in batch.arrivals)
        await until(lambda: session.queued == 500 - stored)


@pytest.mark.parametrize("size", [(512 << 10) + 1, 512 << 10])
async def test_a_message_that_no_frame_could_hold_is_dropped_and_holds_nobody_up(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    topic = "plant/x"
    async with standing() as broker, listening(Cloud()) as cloud, reading(tmp_path, cloud, broker.source()) as agent:
        broker.server.send(topic, b"x" * (size - len(topic)))
        await publish(broker.port, [b"next"], topic)
        await until(lambda: b"next" in cloud.payloads)
        dropped = agent.agent.status().sources[0].dropped
        assert dropped == (size > 512 << 10)
        assert len(cloud.payloads) == 2 - dropped
    assert ("source plant: dropped a message of" in caplog.text) == bool(dropped)


async def test_why_a_source_is_not_online_is_said_with_the_mend(tmp_path: Path) -> None:
    async def refuse(_: object) -> ConnackCode:
        return ConnackCode.BAD_CREDENTIALS

    async def error(settings: SourceSettings) -> str:
        async def never(_: Batch) -> None:
            raise AssertionError

        source, task = await committing_to(tmp_path, settings, never)
        try:
            await until(lambda: source.state.link.state == "offline")
            return source.state.link.error
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async with standing() as broker:
        port = broker.port
    mute = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with mute:
        silent = mute.sockets[0].getsockname()[1]
        settings = broker.source()
        assert await error(settings) == f"127.0.0.1:{port} refuses the connection: no broker listens there"
        nowhere = msgspec.structs.replace(settings, url="mqtt://nowhere.invalid")
        assert (await error(nowhere)).startswith("the name 'nowhere.invalid' is not known: ")
        assert await error(msgspec.structs.replace(settings, url=f"mqtt://127.0.0.1:{silent}")) == "connection lost"
    async with standing(Hooks(authorize_connect=refuse)) as broker:
        assert "check username and password_file" in await error(broker.source())
    async with standing(Hooks(authorize_subscribe=lambda _client, pattern: pattern != "b/#")) as broker:
        expected = f"the broker refuses 'b/#' to 'waybill-{GATEWAY}'; look at its rules"
        assert await error(broker.source("5", "a/#", "b/#")) == expected


async def test_no_device_may_have_the_name_of_a_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with standing() as broker, running(tmp_path, None, sources=(broker.source(),)) as agent:
        async with aiomqtt.Client("127.0.0.1", agent.port, identifier="other", timeout=60):
            pass
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client("127.0.0.1", agent.port, identifier=NAME, timeout=60):
                pass
    assert "a client that calls itself 'plant' is refused: a [[source]] is called so" in caplog.text

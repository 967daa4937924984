"""The whole agent: devices at one end, a cloud at the other."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import aiomqtt
import msgspec
import pytest

from edge_agent.config import EdgeConfig, ForwardSettings
from edge_agent.listener_config import LimitSettings
from edge_agent.status import SOCKET, EdgeStatus
from fleet_simulator.link import Link as Relay
from fleet_simulator.network.profiles import Model
from tests.integration.edge.agents import ANY, Running, publish, running
from tests.integration.edge.peer import GATEWAY, Cloud, journal_it, listening, refuse_it, span, until, url
from waybill import snapshot
from waybill.errors import Locked
from waybill.frames import FrameHeader, decode
from waybill.frames.header import COLUMNS, PLAIN
from waybill.mqtt.server import MqttServer
from waybill.wire import Ack, CommandStatus, Envelope, Receipt


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % n for n in range(start, start + count)]


class Holding(Cloud):
    """A cloud that keeps what it says to itself until it is let go."""

    def __init__(self, credit: int) -> None:
        super().__init__(credit=credit)
        self.held: list[Ack] | None = []

    def say(self, answer: Ack) -> None:
        if self.held is None:
            super().say(answer)
        else:
            self.held.append(answer)

    def let_go(self) -> None:
        held, self.held = self.held or [], None
        for answer in held:
            self.say(answer)


def seqs(cloud: Cloud) -> list[int]:
    return [seq for header in cloud.headers for seq in range(header.first, header.last + 1)]


def statuses(cloud: Cloud) -> list[CommandStatus]:
    return [msgspec.json.decode(payload, type=CommandStatus) for payload in cloud.by_seq("control").values()]


async def test_messages_arrive_in_order_and_leave_the_buffer_when_the_cloud_has_them(tmp_path: Path) -> None:
    async with listening(Cloud()) as cloud, running(tmp_path, url(cloud.address)) as agent:
        await publish(agent.port, numbered(300))
        await until(lambda: agent.waiting() == 0)
    found = cloud.by_seq("telemetry")
    assert [found[key] for key in sorted(found)] == numbered(300)
    assert {epoch for epoch, _ in found} == {cloud.headers[0].epoch}
    frame = decode(cloud.journal[0])
    assert frame.sources == [("vehicles/V7/telemetry", "V7")]
    assert abs(frame.header.base_ms - time.time() * 1000) < 600_000
    assert [row[1] for row in frame.rows] == sorted(row[1] for row in frame.rows)
    assert cloud.states[-1].reason == "stopped"


async def test_without_a_link_everything_waits_and_with_it_everything_goes(tmp_path: Path) -> None:
    async with (
        listening(Cloud()) as cloud,
        Relay(cloud.address) as relay,
        running(tmp_path, url(relay.address)) as agent,
    ):
        await publish(agent.port, numbered(50))
        await relay.cut()
        await until(lambda: agent.agent.status().link.state == "offline")
        arrived = len(cloud.by_seq("telemetry"))
        await publish(agent.port, numbered(1200, 50))
        assert agent.waiting() >= 1200
        assert len(cloud.by_seq("telemetry")) == arrived
        await relay.restore()
        await until(lambda: agent.waiting() == 0)
    found = cloud.by_seq("telemetry")
    assert [found[key] for key in sorted(found)] == numbered(1250)


async def test_where_each_frame_waits_for_the_link_they_go_in_columns(tmp_path: Path) -> None:
    said = [b'{"ts":%d,"speed":%.2f}' % (1_790_000_000_000 + 50 * n, n / 7) for n in range(3000)]
    cloud = Holding(credit=1)  # one frame at a time
    async with (
        listening(cloud),
        Relay(cloud.address, network=Model(delay_ms=20)) as relay,
        running(tmp_path, url(relay.address), ForwardSettings(frame_messages=100, linger_ms=0)) as agent,
    ):
        await publish(agent.port, said)  # behind the first frame, so that the others are whole ones
        cloud.let_go()
        await until(lambda: agent.waiting() == 0)
        columns = agent.agent.status().counters["forwarder_columns"]
    found = cloud.by_seq("telemetry")
    assert [found[key] for key in sorted(found)] == said
    codecs = Counter({header.first: header.codec for header in cloud.headers if header.lane == "telemetry"}.values())
    assert codecs[COLUMNS] == columns > codecs[PLAIN]


async def test_u2_on_a_reconnect_a_lane_begins_with_what_was_not_acknowledged(tmp_path: Path) -> None:
    deaf = True

    def judge(header: FrameHeader) -> Ack | None:
        return None if deaf else journal_it(header)

    async with (
        listening(Cloud(judge)) as cloud,
        Relay(cloud.address) as relay,
        running(tmp_path, url(relay.address), ForwardSettings(frame_messages=10, linger_ms=0)) as agent,
    ):
        await publish(agent.port, numbered(40))
        await until(lambda: set(seqs(cloud)) == set(range(1, 41)))
        before = len({header.first for header in cloud.headers})
        probed = agent.agent.status().counters["forwarder_resent"]  # on a machine that takes its time
        await relay.cut()
        deaf = False
        cloud.headers.clear()
        await publish(agent.port, numbered(10, 40))
        await relay.restore()
        await until(lambda: agent.waiting() == 0)
        assert seqs(cloud) == list(range(1, 51))
        assert agent.agent.status().counters["forwarder_resent"] - probed == before
    assert cloud.payloads == Counter(numbered(50))


async def test_u2_a_frame_without_an_answer_is_probed_alone(tmp_path: Path) -> None:
    lost: list[int] = []

    def judge(header: FrameHeader) -> Ack | None:
        if len(lost) < 3:
            lost.append(header.first)
            return None
        return journal_it(header)

    async with (
        listening(Cloud(judge)) as cloud,
        running(tmp_path, url(cloud.address), ForwardSettings(frame_messages=10, linger_ms=0)) as agent,
    ):
        for start in (0, 10, 20):
            await publish(agent.port, numbered(10, start))
        await until(lambda: agent.waiting() == 0)
        arrived = [header.first for header in cloud.headers]
        resent = agent.agent.status().counters["forwarder_resent"]
    assert [first for place, first in enumerate(arrived) if first in arrived[:place]] == lost
    assert resent == 3  # nothing of what had been acknowledged
    assert cloud.payloads == Counter(numbered(30))


async def test_u3_nothing_but_one_frame_goes_without_credit(tmp_path: Path) -> None:
    async with (
        listening(Cloud(lambda _: None, credit=None)) as cloud,
        running(tmp_path, url(cloud.address), ForwardSettings(frame_messages=5, linger_ms=0)) as agent,
    ):
        await publish(agent.port, numbered(100))
        await until(lambda: cloud.headers)
        first = cloud.headers[0]
        assert {header.first for header in cloud.headers} == {first.first}  # probed, perhaps
        cloud.judge = journal_it
        cloud.headers.clear()
        cloud.say(Ack((span(first),), credit=1 << 20))
        await until(lambda: agent.waiting() == 0)
    assert next(header.first for header in cloud.headers if header.first > first.first) == first.last + 1


async def test_u4_a_message_refused_for_good_leaves_with_a_receipt_and_the_rest_arrives(tmp_path: Path) -> None:
    poison = 37

    def judge(header: FrameHeader) -> Ack | None:
        if header.lane == "telemetry" and header.first <= poison <= header.last:
            return refuse_it(header, "cannot be decoded")
        return journal_it(header)

    async with listening(Cloud(judge)) as cloud, running(tmp_path, url(cloud.address)) as agent:
        await publish(agent.port, numbered(100))
        await until(lambda: agent.waiting() == 0 and agent.waiting("control") == 0)
        assert agent.agent.status().counters["forwarder_given_up"] == 1
    assert cloud.payloads == Counter(numbered(poison - 1) + numbered(100 - poison, poison))
    (said,) = cloud.by_seq("control").values()
    receipt = msgspec.json.decode(said, type=Receipt)
    assert (receipt.lane, receipt.first, receipt.last, receipt.count) == ("telemetry", poison, poison, 1)
    assert receipt.epoch == cloud.headers[0].epoch
    assert receipt.bytes == len(b"36")
    assert receipt.reason == "refused: cannot be decoded"


async def test_u4_what_could_not_be_journaled_is_tried_again(tmp_path: Path) -> None:
    refusals = 2

    def judge(header: FrameHeader) -> Ack | None:
        return Ack(retry=(span(header),)) if len(cloud.headers) <= refusals else journal_it(header)

    async with listening(Cloud(judge)) as cloud, running(tmp_path, url(cloud.address)) as agent:
        await publish(agent.port, numbered(20))
        await until(lambda: agent.waiting() == 0)
    assert cloud.payloads == Counter(numbered(20))


async def test_u4_frames_of_a_version_the_cloud_does_not_speak_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = Cloud(lambda _: Ack(versions=(2, 3)))
    async with listening(cloud), Relay(cloud.address) as relay, running(tmp_path, url(relay.address)) as agent:
        await publish(agent.port, numbered(20))
        await until(lambda: agent.agent.status().error)
        assert "speaks frame version 2, 3, this agent 1" in agent.agent.status().error
        assert agent.waiting() == 20
        cloud.judge = journal_it  # the cloud was updated, and started anew
        await relay.cut()
        await relay.restore()
        await until(lambda: agent.waiting() == 0)
        assert not agent.agent.status().error
    assert "speaks frame version 2, 3" in caplog.text


async def test_large_messages_and_long_topics_stay_below_the_largest_frame(tmp_path: Path) -> None:
    limits = LimitSettings(max_topic=65_535)
    async with listening(Cloud()) as cloud, running(tmp_path, url(cloud.address), limits=limits) as agent:
        async with aiomqtt.Client("127.0.0.1", agent.port, identifier="big", timeout=60) as client:
            for n in range(3_000):
                # Incompressible, without payload: the frame is all topics.
                await client.publish("".join(chr(0x4E00 + (n * 7919 + i * i) % 20000) for i in range(341)), qos=0)
            await client.publish("vehicles/V7/blob", bytes(200_000), qos=1)
        await until(lambda: agent.waiting() == 0)
    assert max(map(len, cloud.journal)) <= 1 << 20
    assert len(cloud.by_seq("telemetry")) == 3_001


async def test_topics_that_stay_do_not_go_up_but_reach_other_devices(tmp_path: Path) -> None:
    forward = ForwardSettings(filters=("vehicles/#",), exclude=("vehicles/+/private",), linger_ms=0)
    async with listening(Cloud()) as cloud, running(tmp_path, url(cloud.address), forward) as agent:
        async with aiomqtt.Client("127.0.0.1", agent.port, identifier="other", timeout=60) as other:
            await other.subscribe("#", qos=1)
            for topic in ("vehicles/V7/private", "home/lamp", "vehicles/V7/telemetry"):
                await publish(agent.port, [topic.encode()], topic)
            heard = [(await anext(other.messages)).payload for _ in range(3)]
        await until(lambda: agent.waiting() == 0)
    assert heard == [b"vehicles/V7/private", b"home/lamp", b"vehicles/V7/telemetry"]
    assert list(cloud.by_seq("telemetry").values()) == [b"vehicles/V7/telemetry"]


async def test_a_command_reaches_the_device_once_and_its_answer_the_cloud(tmp_path: Path) -> None:
    expires = int(time.time() * 1000) + 60_000
    async with listening(Cloud()) as cloud, running(tmp_path, url(cloud.address)) as agent:
        async with aiomqtt.Client("127.0.0.1", agent.port, identifier="V7", timeout=60) as device:
            await device.subscribe("cmd/V7/+/req", qos=1)
            await until(lambda: cloud.subscribed)
            # When this one is published, the outbox has been looked at for the subscription, and c1 comes by itself.
            cloud.command(Envelope("c0", "command", "V0", "lock", b"", expires))
            await until(lambda: agent.agent.status().counters["commands_published"] == 1)
            for _ in range(3):  # the cloud sends until it hears `delivered`
                cloud.command(Envelope("c1", "command", "V7", "lock", b'{"doors":"all"}', expires))
            cloud.command(Envelope("c2", "command", "V7", "lock", b"", expires - 120_000))  # expired
            message = await anext(device.messages)
            assert (message.topic.value, message.payload) == ("cmd/V7/c1/req", b'{"doors":"all"}')
            await device.publish("cmd/V7/c1/res", b"locked", qos=1)
            await until(lambda: len(statuses(cloud)) == 3)
            assert not len(device.messages)
        assert agent.agent.status().counters["commands_known"] == 3
    assert [(s.id, s.state, s.device, s.gateway, s.result) for s in statuses(cloud)] == [
        ("c0", "delivered", "V0", GATEWAY, None),
        ("c1", "delivered", "V7", GATEWAY, None),
        ("c1", "done", "V7", GATEWAY, b"locked"),
    ]


async def test_an_open_command_is_published_again_when_its_device_subscribes_and_after_a_restart(
    tmp_path: Path,
) -> None:
    expires = int(time.time() * 1000) + 60_000
    async with listening(Cloud()) as cloud:
        async with running(tmp_path, url(cloud.address)) as agent:
            await until(lambda: cloud.subscribed)
            cloud.command(Envelope("c1", "command", "V7", "lock", b"1", expires))
            await until(lambda: [status.state for status in statuses(cloud)] == ["delivered"])
            async with aiomqtt.Client("127.0.0.1", agent.port, identifier="V7", timeout=60) as device:
                await device.subscribe("cmd/V7/+/req", qos=1)
                assert (await anext(device.messages)).topic.value == "cmd/V7/c1/req"
        async with running(tmp_path, url(cloud.address)) as agent:
            async with aiomqtt.Client("127.0.0.1", agent.port, identifier="V7", timeout=60) as device:
                await device.subscribe("cmd/V7/+/req", qos=1)
                assert (await anext(device.messages)).topic.value == "cmd/V7/c1/req"
                await device.publish("cmd/V7/c1/res", b"done", qos=1)
            await until(lambda: [status.state for status in statuses(cloud)] == ["delivered", "done"])
        async with (
            running(tmp_path, url(cloud.address)) as agent,
            aiomqtt.Client("127.0.0.1", agent.port, identifier="V7", timeout=60) as device,
        ):
            await device.subscribe("cmd/V7/+/req", qos=1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(device.messages), 0.3)


async def test_b3_a_second_agent_on_the_same_data_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, None):
        with pytest.raises(Locked, match="in use"):
            async with running(tmp_path, None):
                pass


async def test_the_snapshot_tells_link_backlog_rates_and_counters(tmp_path: Path) -> None:
    async with listening(Cloud(lambda _: None)) as cloud, running(tmp_path, url(cloud.address)) as agent:
        await publish(agent.port, numbered(30))
        await until(lambda: cloud.headers)
        answer = await snapshot.request(tmp_path / SOCKET, "snapshot")
    status = msgspec.convert(answer, EdgeStatus)
    assert (status.gateway, status.link.state, status.epoch) == (GATEWAY, "online", cloud.headers[0].epoch)
    assert status.credit == 1 << 20
    assert status.in_flight > 0
    (lane,) = [one for one in status.lanes if one.lane == "telemetry"]
    assert (lane.count, lane.oldest_ms is not None) == (30, True)
    assert status.counters["mqtt_received_1"] == 30
    assert status.counters["uplink_connects"] == 1


async def test_an_agent_whose_server_has_died_does_not_live_on(tmp_path: Path) -> None:
    agent = Running(EdgeConfig(GATEWAY, tmp_path, (ANY,)))
    await until(lambda: agent.said)

    def broken() -> None:
        raise RuntimeError("a bug")

    assert isinstance(agent.agent._server, MqttServer)
    broker = agent.agent._server.broker  # what no device and no store can cause
    broker.cut = broken  # type: ignore[method-assign,assignment]
    broker.touch()
    assert await asyncio.wait_for(agent.task, 60) == 1

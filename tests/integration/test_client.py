"""The fleet's own MQTT client against the real server and a scripted one: its account, and its order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator

import msgspec
import pytest

from fleet_simulator.client import Client
from fleet_simulator.devices import Broker
from fleet_simulator.processes import until
from tests.unit.sim.peer import CONNECT, PUBACK, PUBLISH, Peer
from waybill.errors import Unavailable
from waybill.mqtt.server import MqttServer
from waybill.mqtt.testing import MemorySink

VERSIONS = ["3.1.1", "5"]


@pytest.fixture
async def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
async def server(sink: MemorySink) -> AsyncIterator[MqttServer]:
    one = MqttServer(sink)
    await one.start()
    yield one
    await one.close()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    one = Peer()
    await one.start()
    yield one
    await one.stop()


class Publisher:
    """Offers numbers for as long as it is asked to, over one connection after the other."""

    def __init__(
        self, name: str, broker: Broker, version: str = "3.1.1", *, window: int = 100, queue: int = 1000
    ) -> None:
        self.acked: list[int] = []
        self.offered = 0
        self.client = Client(name, broker, self._on_acked, version=version, window=window, queue=queue)

    def _on_acked(self, stream: str, first: int, last: int) -> None:
        assert stream == "telemetry"
        self.acked += range(first, last + 1)

    def offer(self, count: int) -> None:
        for _ in range(count):
            self.offered += 1
            payload = msgspec.json.encode({"vehicle": self.client.name, "seq": self.offered})
            self.client.offer(f"v/{self.client.name}/t".encode(), payload, "telemetry", self.offered)
        self.client.flush()

    async def stay(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                await self.client.connect()
                self.client.flush()
                await self.client.closed.wait()
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def staying(*those: Publisher) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one.stay()) for one in those]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.gather(*(one.client.disconnect() for one in those))


def more_than(those: list[Publisher], count: int) -> bool:
    return sum(len(one.acked) for one in those) > count


def stored(sink: MemorySink, name: str) -> list[int]:
    return [msgspec.json.decode(payload)["seq"] for client, _, payload in sink.messages if client == name]


@pytest.mark.parametrize("version", VERSIONS)
async def test_connections_that_break_lose_nothing_and_double_nothing(
    server: MqttServer, sink: MemorySink, version: str
) -> None:
    sink.delay = 0.005
    broker = Broker(*await server.listen("127.0.0.1", 0))
    those = [Publisher(f"V{n}", broker, version, window=20) for n in range(30)]
    async with staying(*those):
        for number in range(1, 6):
            await until("connected", lambda: all(one.client.connected for one in those), 60)
            for one in those:
                one.offer(100)
            await until("some are acknowledged", functools.partial(more_than, those, 300 * number), 60)
            for wire in list(server.wires):
                wire._transport.abort()
        await until("all are acknowledged", lambda: not any(one.client.waiting for one in those), 60)
    for one in those:
        assert one.acked == list(range(1, 501))
        assert stored(sink, one.client.name) == one.acked
        assert one.client.connects > 1
    assert sum(one.client.resent for one in those) > 0


@pytest.mark.parametrize("version", VERSIONS)
async def test_out_of_reach_and_back_doubles_nothing(server: MqttServer, sink: MemorySink, version: str) -> None:
    sink.delay = 0.01
    one = Publisher("V1", Broker(*await server.listen("127.0.0.1", 0)), version)
    async with staying(one):
        for _ in range(5):
            await until("connected", lambda: one.client.connected, 60)
            one.offer(50)
            await one.client.leave()
            assert not one.client.connected
        await until("all are acknowledged", lambda: not one.client.waiting, 60)
    assert stored(sink, "V1") == list(range(1, 251)) == one.acked


async def test_a_commit_that_fails_is_no_acknowledgement(server: MqttServer, sink: MemorySink) -> None:
    one = Publisher("V1", Broker(*await server.listen("127.0.0.1", 0)))
    async with staying(one):
        await until("connected", lambda: one.client.connected, 60)
        sink.failures += [Unavailable("disk full"), Unavailable("disk full")]
        one.offer(100)
        await until("all are acknowledged", lambda: not one.client.waiting, 60)
    assert not sink.failures
    assert stored(sink, "V1") == list(range(1, 101)) == one.acked


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_command_is_answered(server: MqttServer, sink: MemorySink, version: str) -> None:
    orders: list[tuple[str, bytes]] = []

    def on_order(command: str, payload: bytes) -> bytes:
        orders.append((command, payload))
        return b"done"

    broker = Broker(*await server.listen("127.0.0.1", 0))
    vehicle = Client("V1", broker, lambda *_: None, on_order=on_order, version=version)
    other = Client("ops", broker, lambda *_: None)
    await vehicle.connect()
    await other.connect()
    other.offer(b"cmd/V1/c-7/req", b'{"command":"horn"}', "", 0)
    other.flush()
    await until("answered", lambda: ("V1", b"cmd/V1/c-7/res", b"done") in sink.messages, 60)
    assert orders == [("c-7", b'{"command":"horn"}')]
    await until("nothing waits", lambda: not (vehicle.waiting or other.waiting), 60)
    await asyncio.gather(vehicle.disconnect(), other.disconnect())


async def test_no_more_than_the_window_is_under_way_and_what_waits_is_bounded(peer: Peer) -> None:
    peer.acks = False
    one = Publisher("V1", Broker(*peer.address[:2]), window=3, queue=5)
    async with staying(one):
        await until("connected", lambda: one.client.connected, 60)
        one.offer(5)
        assert not one.client.has_room
        await peer.until(PUBLISH, 3)
        peer.send(b"\x40\x02" + peer.publishes()[0].pid)
        await peer.until(PUBLISH, 4)
        assert one.acked == [1]
        assert one.client.has_room
        assert len(peer.publishes()) == 4


async def test_what_is_not_acknowledged_comes_again_with_dup_and_before_what_is_new(peer: Peer) -> None:
    peer.acks = False
    one = Publisher("V1", Broker(*peer.address[:2]))
    async with staying(one):
        await until("connected", lambda: one.client.connected, 60)
        one.offer(3)
        await peer.until(PUBLISH, 3)
        peer.drop()
        await until("connected again", lambda: one.client.connects == 2, 60)
        one.offer(1)
        await peer.until(PUBLISH, 7)
        again = peer.publishes(2)
        assert [packet.dup for packet in again] == [True, True, True, False]
        assert [packet.pid for packet in again[:3]] == [packet.pid for packet in peer.publishes(1)]
        assert [msgspec.json.decode(packet.payload)["seq"] for packet in again] == [1, 2, 3, 4]
        assert one.client.resent == 3


async def test_pubacks_that_lie_unread_when_a_write_fails_are_counted(peer: Peer) -> None:
    """The broker's TCP knows that they arrived, so the broker must not be sent these messages again."""
    one = Publisher("V1", Broker(*peer.address[:2]))
    task = asyncio.create_task(one.stay())
    await until("connected", lambda: one.client.connected, 60)
    peer.acks = False
    one.offer(2)
    await peer.until(PUBLISH, 2)
    # From here on nothing else runs in this loop: the kernel has PUBACKs and the end of the connection before we look.
    for packet in peer.publishes():
        peer.send(b"\x40\x02" + packet.pid)
    peer._writers[-1].transport.abort()
    assert one.client._transport is not None
    one.client._transport.write(b"\xc0\x00")
    one.client._transport.abort()
    await until("connected again", lambda: one.client.connects == 2, 60)
    assert one.acked == [1, 2]
    assert not one.client.resent
    task.cancel()
    await asyncio.wait({task})
    await one.client.disconnect()


async def test_a_session_that_mqtt_5_has_lost_gets_new_messages_not_copies() -> None:
    class Five(Peer):
        def _answer(self, packet: object, writer: asyncio.StreamWriter) -> None:
            if packet.kind == CONNECT:  # type: ignore[attr-defined]
                # not present; Receive Maximum 2, Retain Available 0, a user property, Server Keep Alive 7
                said = b"\x21\x00\x02\x25\x00\x26\x00\x01a\x00\x01b\x13\x00\x07"
                writer.write(bytes((0x20, 3 + len(said), 0, 0, len(said))) + said)

    peer = Five()
    await peer.start()
    one = Publisher("V1", Broker(*peer.address[:2]), "5")
    async with staying(one):
        await until("connected", lambda: one.client.connected, 60)
        assert one.client.keepalive == 7
        one.offer(5)
        await peer.until(PUBLISH, 2)
        peer.drop()
        await peer.until(PUBLISH, 4)
        assert [packet.dup for packet in peer.publishes()] == [False] * 4
    await peer.stop()


async def test_what_mqtt_5_refuses_is_offered_again_in_order() -> None:
    class Five(Peer):
        refusing = True

        def _answer(self, packet: object, writer: asyncio.StreamWriter) -> None:
            if packet.kind == CONNECT:  # type: ignore[attr-defined]
                writer.write(b"\x20\x03\x00\x00\x00")
            elif packet.kind == PUBLISH:  # type: ignore[attr-defined]
                pid = packet.pid  # type: ignore[attr-defined]
                writer.write(b"\x40\x03" + pid + b"\x97" if self.refusing else b"\x40\x02" + pid)

    five = Five()
    await five.start()
    one = Publisher("V1", Broker(*five.address[:2]), "5")
    async with staying(one):
        await until("connected", lambda: one.client.connected, 60)
        one.offer(3)
        await until("refused", lambda: one.client.refused == 3, 60)
        assert one.client.waiting == 3
        five.refusing = False
        one.offer(1)
        await until("acknowledged", lambda: one.acked == [1, 2, 3, 4], 60)
        again = five.publishes()[3:]
        assert [packet.dup for packet in again] == [False] * 4
    await five.stop()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"\x20\x02\x00\x05", "code 0x05"),
        (b"\x20\xff\xff\xff\xff\x01", "not MQTT"),
        (b"\x20\x01\x00", "not MQTT"),
        (b"", "closed"),
    ],
)
async def test_a_server_that_does_not_let_it_in_is_told(said: bytes, error: str) -> None:
    class Odd(Peer):
        def _answer(self, _packet: object, writer: asyncio.StreamWriter) -> None:
            writer.write(said)
            writer.close()

    odd = Odd()
    await odd.start()
    client = Client("V1", Broker(*odd.address[:2]), lambda *_: None)
    with pytest.raises(ConnectionError, match=error):
        await client.connect()
    await odd.stop()


async def test_a_server_that_is_mute_is_left(peer: Peer) -> None:
    peer.pongs = peer.acks = False
    client = Client("V1", Broker(*peer.address[:2]), lambda *_: None, keepalive=2)
    await client.connect()
    now = asyncio.get_running_loop().time()
    client.ping(now + 1.1)
    await peer.until(12, 1)
    client.ping(now + 3.5)
    await until("left", client.closed.is_set, 60)
    assert "keep alive" in client.error
    assert not [packet for packet in peer.packets if packet.kind == PUBACK]

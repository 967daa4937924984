"""Devices against a scripted broker: once into the client's hands, resent by it alone, in order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from fleet_simulator.devices import Broker, Device, Effects
from fleet_simulator.processes import until
from tests.unit.sim.peer import CONNECT, DISCONNECT, PINGREQ, PUBLISH, SUBSCRIBE, Peer
from waybill.errors import ConfigError


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    one = Peer()
    await one.start()
    yield one
    await one.stop()


@contextlib.asynccontextmanager
async def running(device: Device) -> AsyncIterator[None]:
    task = asyncio.create_task(device.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def acked(device: Device, count: int) -> None:
    await until("acknowledged", lambda: device.acked.count >= count, 60)


def make(peer: Peer, *, window: int = 100, keepalive: int = 30) -> Device:
    return Device("V1", Broker(*peer.address[:2]), window=window, keepalive=keepalive)


async def test_acked_is_what_the_broker_acknowledged_and_nothing_else(peer: Peer) -> None:
    peer.acks = False
    journal: list[tuple[str, int]] = []
    device = Device("V1", Broker(*peer.address[:2]), on_acked=lambda name, number: journal.append((name, number)))
    async with running(device):
        for number in (1, 2, 3):
            await device.publish("t", b"x", number)
        await peer.until(PUBLISH, 3)
        assert (device.acked.count, device.waiting) == (0, 3)
        peer.send(b"\x40\x02" + peer.publishes()[1].pid)
        await acked(device, 1)
        assert list(device.acked) == [(2, 2)]
        assert journal == [("V1", 2)]


async def test_what_was_not_acknowledged_is_resent_with_dup_in_order_and_new_ones_come_after(peer: Peer) -> None:
    peer.acks = False
    device = make(peer)
    async with running(device):
        for number in range(1, 6):
            await device.publish("t", b"%d" % number, number)
        await peer.until(PUBLISH, 5)
        peer.connack = None
        peer.drop()
        await peer.until(CONNECT, 2)
        # The TCP connection stands and CONNACK is outstanding: a publish now must not overtake the repeats.
        late = asyncio.create_task(device.publish("t", b"6", 6))
        await asyncio.sleep(0.1)
        assert peer.publishes(2) == []
        peer.acks, peer.connack = True, 0
        peer.send(b"\x20\x02\x00\x00")
        await late
        await acked(device, 6)
    first, second = peer.publishes(1), peer.publishes(2)
    assert [p.payload for p in second] == [b"1", b"2", b"3", b"4", b"5", b"6"]
    assert [p.dup for p in second] == [True] * 5 + [False]
    assert [p.pid for p in second[:5]] == [p.pid for p in first]
    assert list(device.acked) == [(1, 6)]


async def test_it_reads_before_it_writes(peer: Peer) -> None:
    peer.acks = False
    device = make(peer)
    async with running(device):
        await device.publish("t", b"1", 1)
        await peer.until(PUBLISH, 1)
        peer.send(b"\x40\x02" + peer.publishes()[0].pid)
        # The loop does not turn in between: the PUBACK is in the kernel, and nobody was told.
        await device.publish("t", b"2", 2)
        assert list(device.acked) == [(1, 1)]


async def test_the_window_holds_and_moves_on(peer: Peer) -> None:
    peer.acks = False
    device = make(peer, window=2)
    async with running(device):
        await device.publish("t", b"1", 1)
        await device.publish("t", b"2", 2)
        third = asyncio.create_task(device.publish("t", b"3", 3))
        await peer.until(PUBLISH, 2)
        await asyncio.sleep(0.05)
        assert not third.done()
        peer.acks = True
        peer.send(b"\x40\x02" + peer.publishes()[0].pid)
        await third
        await peer.until(PUBLISH, 3)
        await acked(device, 2)


async def test_comes_back_after_refusals_and_says_why(free_port: int) -> None:
    device = Device("V1", Broker("127.0.0.1", free_port))
    async with running(device):
        await until("refused", lambda: "refused" in device.error.lower(), 60)
    peer = Peer()
    peer.connack = 5
    await peer.start()
    device = make(peer)
    async with running(device):
        await peer.until(CONNECT, 2)
        assert "Not authorized" in device.error
        peer.connack = 0
        await device.publish("t", b"1", 1)
        await acked(device, 1)
        assert device.error == ""
    await peer.stop()


async def test_a_silent_broker_is_noticed_by_keepalive(peer: Peer) -> None:
    device = make(peer, keepalive=1)
    async with running(device):
        await peer.until(PINGREQ, 2)
        assert device.connects == 1, "answered, it stays"
        peer.pongs = False
        await peer.until(CONNECT, 2)


async def test_says_goodbye(peer: Peer) -> None:
    device = make(peer)
    async with running(device):
        await device.publish("t", b"1", 1)
        await acked(device, 1)
    await peer.until(DISCONNECT, 1)


async def test_a_command_has_its_effect_once_and_is_answered_each_time(peer: Peer) -> None:
    device = make(peer)
    async with running(device):
        await peer.until(SUBSCRIBE, 1)
        topic = b"cmd/V1/c9/req"
        for pid in (1, 2):
            body = len(topic).to_bytes(2, "big") + topic + pid.to_bytes(2, "big") + b"wake up"
            peer.send(bytes([0x32, len(body)]) + body)
        await peer.until(PUBLISH, 2)
        assert (device.effects.arrived, device.effects.acted) == ({"c9": 2}, {"c9": 1})
        assert device.effects.payloads == {"c9": b"wake up"}
    for reply in peer.publishes():
        assert reply.topic == "cmd/V1/c9/res"
        assert msgspec.json.decode(reply.payload) == {"ok": True, "vehicle": "V1", "times": 1}
    assert device.acked.count == 0, "answers are not telemetry"


def test_the_memory_for_commands_is_bounded() -> None:
    effects = Effects()
    for number in range(1500):
        effects.take(str(number), b"")
    assert len(effects.arrived) == len(effects.acted) == len(effects.payloads) == 1000
    assert effects.take("1499", b"") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("127.0.0.1:1884", Broker("127.0.0.1", 1884)),
        ("[::1]:1884", Broker("::1", 1884)),
        ("mqtt://host", Broker("host", 1883)),
        ("mqtts://me:p%40ss@host", Broker("host", 8883, tls=True, user="me", password="p@ss")),
    ],
)
def test_addresses(text: str, said: Broker) -> None:
    assert Broker.parse(text) == said


@pytest.mark.parametrize("text", ["host", "http://host", "mqtt://", "mqtt://host:99999", "mqtt://host/path"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="broker"):
        Broker.parse(text)

"""MQTT over WebSockets (RFC 6455; OASIS, section 6): a client of others, the handshake, frames by hand, bounds."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.integration.mqtt.conftest import Raw, Site, Start
from tests.integration.mqtt.test_clients import Device
from tests.unit.mqtt import rig
from waybill.mqtt.limits import Limits
from waybill.mqtt.settings import Settings
from waybill.mqtt.websocket import MESSAGE_ROOM, REQUEST_LIMIT

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def request(*more: str, protocol: str = "mqtt", drop: str = "") -> bytes:
    lines = [
        "GET /mqtt HTTP/1.1",
        "Host: gateway",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Protocol: {protocol}",
        *more,
    ]
    return "".join(f"{line}\r\n" for line in lines if not drop or drop not in line).encode() + b"\r\n"


def frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes = b"\1\2\3\4") -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes([0x80 * fin | opcode, 0x80 | size])
    elif size < 1 << 16:
        head = bytes([0x80 * fin | opcode, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x80 * fin | opcode, 0x80 | 127]) + size.to_bytes(8, "big")
    return head + mask + bytes(byte ^ key for byte, key in zip(payload, itertools.cycle(mask), strict=False))


def answer(opcode: int, payload: bytes) -> bytes:
    """A frame of the server, whose payload is short: not masked."""
    return bytes([0x80 | opcode, len(payload)]) + payload


async def serve(start: Start, settings: Settings | None = None, limits: Limits | None = None) -> Site:
    site = await start(settings)
    site.host, site.port = await site.server.listen("127.0.0.1", 0, websocket=True, name="web", limits=limits)
    return site


@pytest.fixture
async def web(start: Start) -> Site:
    return await serve(start)


async def upgraded(site: Site, *frames: bytes) -> Raw:
    raw = await site.raw(request())
    head = await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), 60)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: " + ACCEPT in head
    assert b"Sec-WebSocket-Protocol: mqtt\r\n" in head
    assert b"Extensions" not in head
    if frames:
        await raw.send(*frames)
    return raw


async def device(site: Site, name: str = "dev") -> Raw:
    raw = await upgraded(site, frame(BINARY, rig.connect(name)))
    await raw.expect(answer(BINARY, rig.ACCEPTED))
    return raw


async def test_paho_every_qos_both_ways(web: Site) -> None:
    client = Device(web, "p", transport="websockets")
    await client.start()
    await client.subscribe(("a/#", 2))
    expected = []
    for qos in (0, 1, 2):
        for size in (0, 1, 125, 126, 20_000, 100_000):
            await client.publish(f"a/{qos}", b"x" * size, qos)
            expected.append((f"a/{qos}", b"x" * size, qos, False))
    await web.until(lambda: len(client.heard) == len(expected))
    assert client.heard == expected
    await client.stop()
    await web.until(lambda: not web.server.counters.connections)


async def test_packets_need_not_align_with_frames(web: Site) -> None:
    stream = rig.connect() + rig.publish("a", b"x" * 300, 1, 1) + rig.publish("a", b"y", 1, 2) + rig.PING
    raw = await upgraded(web)
    for at in range(0, len(stream), 7):
        part = stream[at : at + 7]
        await raw.send(frame(BINARY, part[:3], fin=False), frame(PING, b"still?"), frame(CONT, part[3:]))
    pings = -(-len(stream) // 7)
    packets = b""
    while pings or packets.count(b"\x40\x02") < 2:
        opcode, size = await asyncio.wait_for(raw.reader.readexactly(2), 60)
        payload = await raw.reader.readexactly(size)
        if opcode == 0x80 | PONG:
            assert payload == b"still?"
            pings -= 1
        else:
            assert opcode == 0x80 | BINARY
            packets += payload
    assert web.stored == [b"x" * 300, b"y"]


async def test_several_packets_in_one_frame(web: Site) -> None:
    raw = await upgraded(web, frame(BINARY, rig.connect() + rig.publish("a", b"x", 1, 1)))
    await raw.expect(answer(BINARY, rig.ACCEPTED) + answer(BINARY, rig.puback(1)))


async def test_a_text_frame_closes_with_1003(web: Site) -> None:
    raw = await device(web)
    await raw.send(frame(BINARY, rig.publish("a", b"x")), frame(TEXT, rig.PING))
    assert (await raw.expect_end())[:4] == bytes([0x88, 2 + len(b"MQTT comes in binary frames"), 0x03, 0xEB])
    await web.until(lambda: web.stored == [b"x"])
    assert web.server.counters.malformed == 1


async def test_close_is_answered_and_fires_the_will(web: Site) -> None:
    raw = await upgraded(web, frame(BINARY, rig.connect(will=("w", b"gone", 0, False))))
    await raw.expect(answer(BINARY, rig.ACCEPTED))
    await raw.send(frame(CLOSE, b"\x03\xe8"))
    assert await raw.expect_end() == answer(CLOSE, b"\x03\xe8")
    await web.until(lambda: web.stored == [b"gone"])


async def test_disconnect_is_followed_by_close(web: Site) -> None:
    raw = await device(web)
    await raw.send(frame(BINARY, rig.DISCONNECT))
    assert await raw.expect_end() == answer(CLOSE, b"\x03\xe8")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n", 426),
        (request(protocol="chat"), 400),
        (request(drop="Protocol"), 400),
        (request(drop="Key"), 400),
        (request(drop="Version"), 400),
        (b"POST / HTTP/1.1\r\n\r\n", 400),
        (rig.connect() + b"\r\n\r\n", 400),
        (request() + frame(CLOSE, b""), 400),
        (request(f"Cookie: {'x' * 8000}", f"More: {'x' * 8000}", f"Still: {'x' * 8000}")[:-2], 431),
    ],
    ids=["plain GET", "subprotocol", "no subprotocol", "no key", "no version", "POST", "MQTT", "early", "large"],
)
async def test_what_is_no_handshake_is_told_so(web: Site, sent: bytes, status: int) -> None:
    raw = await web.raw(sent)
    said = await raw.expect_end()
    assert said.startswith(b"HTTP/1.1 %d " % status)
    assert said.endswith(b".\n")
    await web.until(lambda: not web.server.counters.connections)
    assert web.server.counters.handshakes_failed == 1
    assert len(sent) > REQUEST_LIMIT or status != 431


async def test_a_handshake_has_to_come_in_time(start: Start) -> None:
    site = await serve(start, Settings(connect_timeout=3.0))
    slow = await site.raw(request()[:20])
    silent = await upgraded(site)
    assert await slow.expect_end() == b""
    assert await silent.expect_end() == answer(CLOSE, b"\x03\xe8")
    assert site.server.counters.timed_out == 2


async def test_messages_are_bounded(start: Start) -> None:
    limit = 300_000 + MESSAGE_ROOM
    site = await serve(start, limits=Limits(max_packet=300_000))
    for size, closes in ((limit, False), (limit + 1, True)):
        raw = await device(site)
        await raw.send(frame(BINARY, b"", fin=False), frame(CONT, b"", fin=False))
        await raw.send(frame(CONT, (rig.PING * limit)[:size])[: None if not closes else 14])
        said = await raw.reader.readexactly(4)
        assert (said[2:] == b"\x03\xf1") == closes  # 1009
        raw.reset()


async def test_a_frame_that_does_not_end_is_given_up(start: Start) -> None:
    site = await serve(start, Settings(stall_timeout=0.2))
    raw = await device(site)
    await raw.send(frame(BINARY, b"x" * 100)[:50])
    await raw.expect_end()
    assert site.server.counters.timed_out == 1


async def test_who_does_not_read_the_pongs_is_not_read(start: Start) -> None:
    site = await serve(start, Settings(output_bytes=10_000))
    flood = await device(site, "flood")
    other = await device(site, "other")
    flood.writer.transport.pause_reading()  # type: ignore[attr-defined] # of the reading side
    sending = asyncio.create_task(flood.send(*[frame(PING, b"x" * 125)] * 200_000), name="flood")
    await site.until(lambda: site.server.broker.paused)
    (wire,) = site.server.broker.paused
    assert wire.buffered() < 1_000_000
    await other.send(frame(BINARY, rig.PING))
    await other.expect(answer(BINARY, rig.PONG))
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    flood.reset()


async def test_o1_tcp_says_what_of_a_websocket_has_arrived(web: Site) -> None:
    """Frames' heads, the handshake and pongs count too: a repetition whose first ack has arrived is new."""
    raw = await device(web)
    for _ in range(2):
        await raw.send(frame(PING, b"p"), frame(BINARY, rig.publish("a", b"x", 1, 7, dup=True)))
        await raw.expect(answer(PONG, b"p"))
        await raw.expect(answer(BINARY, rig.puback(7)))
    assert len(web.sink.messages) == 2
    (wire,) = web.server.wires
    assert wire.acknowledged() == wire.written

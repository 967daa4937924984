"""Clients that are slow, silent, half-open or too many: each is bounded, and costs the others nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from tests.integration.mqtt.conftest import Raw, Site, Start
from tests.integration.mqtt.test_websocket import request
from tests.unit.mqtt import rig
from waybill.mqtt.limits import KIB, Limits
from waybill.mqtt.settings import Settings
from waybill.mqtt.transport import KEEPALIVE


async def drip(raw: Raw, stream: bytes) -> int:
    """Send byte by byte until the server ends it; returns how many bytes went out."""
    ended = asyncio.create_task(raw.expect_end(), name="end")
    sent = 0
    async with asyncio.timeout(60):
        while not ended.done() and sent < len(stream):
            with contextlib.suppress(ConnectionError):
                await raw.send(stream[sent : sent + 1])
            sent += 1
            await asyncio.wait({ended}, timeout=0.05)
        await ended
    return sent


async def serves(device: Raw, n: int) -> None:
    await device.send(rig.publish("a", b"%d" % n, 1, n))
    await device.expect(rig.puback(n))


async def test_a_connect_byte_by_byte(start: Start) -> None:
    site = await start(Settings(connect_timeout=0.5))
    web = (await site.server.listen("127.0.0.1", 0, websocket=True))[1]
    raws = [await site.raw() for _ in range(20)]
    site.port = web
    raws += [await site.raw() for _ in range(20)]
    streams = [rig.connect("x" * 1000)] * 20 + [request("Cookie: " + "x" * 1000)] * 20
    sent = await asyncio.gather(*map(drip, raws, streams))
    assert max(sent) < 1000
    assert site.server.counters.timed_out == 40
    await site.until(lambda: not site.server.counters.connections)


async def test_a_packet_byte_by_byte(start: Start) -> None:
    site = await start(Settings(stall_timeout=0.5))
    other = await site.device("other")
    raw = await site.device("slow")
    await drip(raw, rig.publish("a", b"x" * 2000))
    assert site.server.counters.timed_out == 1
    assert not site.stored
    await serves(other, 1)


async def test_a_flood_of_connections(start: Start) -> None:
    site = await start(Settings(max_connections=30))
    counters = site.server.counters
    device = await site.device()
    for n in range(1, 4):
        silent = await asyncio.gather(*(site.raw() for _ in range(100)))
        await serves(device, n)
        await site.until(lambda: counters.over_limit == n * (100 - 29))  # noqa: B023 - called at once
        assert counters.connections == 30
        for raw in silent:
            raw.close()
        await site.until(lambda: counters.connections == 1)
    assert len(site.server.wires) == 1


async def test_one_address_leaves_room_for_others(start: Start) -> None:
    site = await start()
    host, site.port = await site.server.listen("127.0.0.1", 0, limits=Limits(max_connections_per_address=5))
    await asyncio.gather(*(site.raw() for _ in range(50)))
    await site.until(lambda: site.server.counters.over_limit == 45)
    other = Raw(*await asyncio.open_connection(host, site.port, local_addr=("127.0.0.3", 0)))
    site.raws.append(other)
    await other.send(rig.connect())
    await other.expect(rig.ACCEPTED)


async def test_tcp_looks_for_peers_that_vanished(site: Site) -> None:
    await site.device()
    (wire,) = site.server.wires
    sock = wire._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    assert tuple(sock.getsockopt(socket.IPPROTO_TCP, option) for option in options) == KEEPALIVE


async def test_a_half_closed_connection_is_closed(site: Site) -> None:
    raw = await site.device()
    raw.writer.write_eof()
    assert await raw.expect_end() == b""
    await site.until(lambda: not site.server.counters.connections)


async def test_many_that_read_nothing_cost_the_others_nothing(start: Start) -> None:
    """Each has less waiting than ``output_bytes``; together they have more than there is."""
    site = await start(Settings(output_bytes=4096 * KIB, buffer_bytes_all=8192 * KIB))
    quick, pub = await site.device("quick"), await site.device("pub")
    deaf = [await site.device(f"deaf{n}") for n in range(20)]
    for raw in (quick, *deaf):
        await raw.send(rig.subscribe(("a", 0)))
        await raw.expect(rig.suback(0))
    for raw in deaf:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined] # of the reading side
    payload = b"x" * 100_000
    for n in range(1, 81):
        await pub.send(rig.publish("a", payload, 1, n))
        await pub.expect(rig.puback(n))
        await quick.expect(rig.publish("a", payload))
        assert site.server.broker.buffers.used <= 8192 * KIB + len(payload) * len(deaf)
    assert site.server.counters.crowded > 5
    assert site.server.counters.connections >= 2
    assert sum(wire.buffered() for wire in site.server.wires) < 10_000 * KIB


async def test_a_client_over_its_rate_waits_and_loses_nothing(start: Start) -> None:
    site = await start()
    _, site.port = await site.server.listen("127.0.0.1", 0, limits=Limits(publish_rate=100))
    device = await site.device()
    await device.send(*[rig.publish("a", b"%d" % n, 1, n) for n in range(1, 401)])
    await site.until(lambda: len(site.stored) == 400)
    assert site.server.broker.paused
    await device.send(rig.PING)
    await device.expect(b"".join(rig.puback(n) for n in range(1, 401)))
    await device.expect(rig.PONG)  # when it may go on
    assert site.server.counters.throttled == 1

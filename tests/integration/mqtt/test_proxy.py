"""Connections through a load balancer: the client's address counts, TLS goes through, health checks leave no trace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cloud.gateway import Pki, until
from tests.unit.mqtt import rig
from waybill import pki
from waybill.mqtt import proxy
from waybill.mqtt.limits import Limits
from waybill.mqtt.server import MqttServer
from waybill.mqtt.settings import Client, ConnectInfo, Hooks, Settings
from waybill.mqtt.testing import MemorySink

TRUSTED = proxy.networks(["127.0.0.1"], "proxies")
LOCAL = proxy.SIGNATURE + b"\x20\0\0\0"


def one(host: str, port: int = 5000) -> bytes:
    return f"PROXY TCP4 {host} 10.0.0.1 {port} 8883\r\n".encode()


def two(host: str, port: int = 5000) -> bytes:
    addresses = socket.inet_aton(host) + bytes(4) + struct.pack(">HH", port, 8883) + b"\x04\0\1x"
    return proxy.SIGNATURE + b"\x21\x11" + struct.pack(">H", len(addresses)) + addresses


class Site:
    def __init__(self) -> None:
        self.asked: list[ConnectInfo] = []
        self.connected: list[Client] = []
        self.turned_away: list[tuple[str, str]] = []
        hooks = Hooks(
            authorize_connect=self.asked.append,
            on_connected=self.connected.append,
            on_turned_away=lambda *why: self.turned_away.append(why),
        )
        self.server = MqttServer(MemorySink(), Settings(), hooks)
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def dial(self, *data: bytes, address: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
        self.writers.append(writer)
        for each in data:
            writer.write(each)
            await writer.drain()
        return reader, writer


@pytest.fixture
async def site() -> AsyncIterator[Callable[..., object]]:
    sites: list[Site] = []

    async def start(tls: ssl.SSLContext | None = None, limits: Limits | None = None) -> Site:
        made = Site()
        sites.append(made)
        await made.server.start()
        _, made.port = await made.server.listen("127.0.0.1", 0, tls, limits=limits, proxies=TRUSTED)
        return made

    yield start
    for each in sites:
        await each.server.close()
        for writer in each.writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def closed(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(60):
            return await reader.read()
    return b""


@pytest.mark.parametrize("header", [one, two])
async def test_the_client_is_who_the_header_says(site: Callable[..., Any], header: Callable[[str], bytes]) -> None:
    here = await site()
    reader, writer = await here.dial(header("203.0.113.9"), rig.connect("dev"))
    assert await reader.readexactly(4) == b"\x20\x02\0\0"
    assert [info.address for info in here.asked] == ["203.0.113.9:5000"]
    assert [client.address for client in here.connected] == ["203.0.113.9:5000"]
    writer.close()
    await until(lambda: not here.server.counters.connections)


async def test_a_header_byte_by_byte_with_the_rest_behind_it_in_one_piece(site: Callable[..., Any]) -> None:
    here = await site()
    for header in (one("203.0.113.9"), two("203.0.113.9")):
        reader, writer = await here.dial(*(header[at : at + 1] for at in range(len(header) - 1)))
        writer.write(header[-1:] + rig.connect("dev"))
        assert await reader.readexactly(4) == b"\x20\x02\0\0"
        writer.close()


async def test_limits_by_address_see_the_clients(site: Callable[..., Any]) -> None:
    here = await site(limits=Limits(max_connections_per_address=1))
    first, kept = await here.dial(one("203.0.113.9"), rig.connect("a"))
    assert await first.readexactly(4) == b"\x20\x02\0\0"
    again, _ = await here.dial(two("203.0.113.9", 5001), rig.connect("b"))
    assert await closed(again) == b""
    assert here.turned_away == [("203.0.113.9:5001", "too many connections from 203.0.113.9")]
    other, _ = await here.dial(one("203.0.113.10"), rig.connect("c"))
    assert await other.readexactly(4) == b"\x20\x02\0\0"
    kept.close()
    await until(lambda: here.server.counters.connections == 1)
    back, _ = await here.dial(one("203.0.113.9"), rig.connect("d"))
    assert await back.readexactly(4) == b"\x20\x02\0\0"


async def test_from_elsewhere_a_header_is_not_believed_and_none_is_needed(site: Callable[..., Any]) -> None:
    """It ends the connection at once, whether more of it comes or not."""
    here = await site(limits=Limits(connect_timeout=3600))
    for data in (one("203.0.113.9"), two("203.0.113.9"), b"P"):
        liar, _ = await here.dial(data, address="127.0.0.2")
        assert await closed(liar) == b""
    assert here.asked == []
    direct, _ = await here.dial(rig.connect("dev"), address="127.0.0.2")
    assert await direct.readexactly(4) == b"\x20\x02\0\0"
    assert here.asked[0].address.startswith("127.0.0.2:")


@pytest.mark.parametrize(
    "data",
    [
        rig.connect("dev"),
        b"PROXY TCP4 " + b"x" * 200,
        proxy.SIGNATURE + b"\x21\x11\xff\xff",
        proxy.SIGNATURE + b"\x21\x11\0\4xxxx",
        b"P\r\n",
        b"\x16\3\1",
    ],
)
async def test_from_a_proxy_the_header_must_come(site: Callable[..., Any], data: bytes) -> None:
    here = await site(limits=Limits(connect_timeout=3600))
    reader, _ = await here.dial(data)
    assert await closed(reader) == b""
    assert here.asked == []
    assert (here.server.counters.handshakes_failed, len(here.turned_away)) == (1, 1)


async def test_a_header_that_does_not_come_is_not_waited_for_long(site: Callable[..., Any]) -> None:
    here = await site(limits=Limits(connect_timeout=0.2))
    reader, _ = await here.dial(b"PROXY TCP4 ")
    assert await closed(reader) == b""
    assert "in time" in here.turned_away[0][1]


async def test_tls_goes_through_and_health_checks_are_not_logged(
    site: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = Pki(tmp_path)
    server = made.server
    here = await site(pki.server_context(server.certificate, server.key, server.ca))
    _, writer = await here.dial(two("203.0.113.9"))
    context = made.gateway("g1")
    await writer.start_tls(context, server_hostname="127.0.0.1")
    writer.write(rig.connect("g1"))
    await until(lambda: here.connected)
    assert here.asked[0].address == "203.0.113.9:5000"
    assert pki.gateway_of(here.asked[0].peer_certificate or b"") == "g1"
    for data in (b"", LOCAL, two("203.0.113.10"), one("203.0.113.10")):
        for address in ("127.0.0.1", "127.0.0.2") if not data else ("127.0.0.1",):
            before = here.server.counters.probes
            _, probe = await here.dial(data, address=address)
            probe.close()
            await until(lambda: here.server.counters.probes == before + 1)  # noqa: B023 - called at once
    assert here.turned_away == []
    assert here.server.counters.handshakes_failed == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    writer.close()
    await until(lambda: not here.server.counters.connections)

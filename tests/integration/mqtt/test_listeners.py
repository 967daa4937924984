"""Several listeners at once: TLS, Unix sockets, limits of each; handshakes; answers to CONNECT that take their time."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import uvloop

from tests.integration.mqtt.conftest import Raw, Site, Start
from tests.integration.mqtt.test_clients import Device
from tests.integration.mqtt.test_websocket import BINARY, answer, frame, request
from tests.unit.mqtt import rig, v5
from waybill import pki
from waybill.errors import Unavailable
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.limits import Limits
from waybill.mqtt.server import MqttServer
from waybill.mqtt.settings import Answer, ConnectInfo, Hooks, Settings
from waybill.mqtt.testing import MemorySink
from waybill.mqtt.transport import counted


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's context and a client's, without a certificate of its own."""
    now = dt.datetime.now(dt.UTC)
    ca = pki.ca_init(tmp_path / "ca", now=now)
    files = pki.issue_server(tmp_path / "ca", tmp_path / "server", ["localhost", "127.0.0.1"], now=now)
    return pki.server_context(files.certificate, files.key), pki.client_context(ca.certificate)


async def unix(site: Site, path: Path, *packets: bytes) -> Raw:
    raw = Raw(*await asyncio.open_unix_connection(str(path)))
    site.raws.append(raw)
    await raw.send(*packets)
    return raw


async def test_o1_what_a_unix_socket_took_has_arrived(start: Start, tmp_path: Path) -> None:
    site = await start()
    path = tmp_path / "mqtt.sock"
    await site.server.listen_unix(path)
    raw = await unix(site, path, rig.connect("a"))
    await raw.expect(rig.ACCEPTED)
    for _ in range(2):
        await raw.send(rig.publish("a", b"x", 1, 7, dup=True))
        await raw.expect(rig.puback(7))
    assert len(site.sink.messages) == 2


async def test_each_listener_has_its_name_and_its_limits(
    start: Start, tmp_path: Path, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    seen: list[tuple[str, str]] = []

    def authorize(info: ConnectInfo) -> None:
        seen.append((info.listener, info.address.partition(":")[0]))

    site = await start(hooks=Hooks(authorize_connect=authorize))
    path = tmp_path / "mqtt.sock"
    _, secure = await site.server.listen("127.0.0.1", 0, tls[0], name="tls", limits=Limits(max_packet=2_000))
    await site.server.listen_unix(path, name="local", limits=Limits(max_packet=3_000))
    at_tls = Raw(*await asyncio.open_connection("127.0.0.1", secure, ssl=tls[1]))
    site.raws.append(at_tls)
    await at_tls.send(v5.connect("a"))
    at_unix = await unix(site, path, v5.connect("b"))
    at_tcp = await site.raw(v5.connect("c"))
    for raw, size in ((at_tls, 2_000), (at_unix, 3_000), (at_tcp, 1 << 20)):
        said = await asyncio.wait_for(raw.reader.readexactly(4), 60)
        said += await raw.reader.readexactly(said[1] - 2)
        assert b"\x27" + size.to_bytes(4, "big") in said
    assert sorted(seen) == [("", "127.0.0.1"), ("local", "unix"), ("tls", "127.0.0.1")]
    await at_tls.send(rig.packet(0x30, rig.text("t") + b"\0" + b"x" * 1_993), rig.PING)
    await at_tls.expect(rig.PONG)
    await at_tls.send(rig.packet(0x30, rig.text("t") + b"\0" + b"x" * 1_994))
    assert (await at_tls.expect_end())[2] == 0x95
    await at_unix.send(rig.packet(0x30, rig.text("t") + b"\0" + b"x" * 2_000), rig.PING)
    await at_unix.expect(rig.PONG)


async def test_paho_over_tls_and_websocket_and_unix(
    start: Start, tmp_path: Path, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    site = await start()
    path = tmp_path / "mqtt.sock"
    await site.server.listen_unix(path)
    _, secure = await site.server.listen("127.0.0.1", 0, tls[0])
    _, web = await site.server.listen("127.0.0.1", 0, tls[0], websocket=True)
    ways: list[tuple[Literal["tcp", "websockets", "unix"], str, int]] = [
        ("tcp", "127.0.0.1", secure),
        ("websockets", "127.0.0.1", web),
        ("unix", str(path), 1),
    ]
    for n, (transport, host, port) in enumerate(ways):
        site.host, site.port = host, port
        device = Device(site, f"d{n}", transport=transport)
        if transport != "unix":
            device.client.tls_set_context(tls[1])
        await device.start()
        await device.subscribe((f"echo/{n}", 2))
        for size in (0, 100, 200_000):
            await device.publish(f"echo/{n}", b"x" * size, 2)
        await site.until(lambda heard=device.heard: len(heard) == 3)  # type: ignore[misc]
        await device.stop()
    await site.until(lambda: not site.server.counters.connections)
    assert all(not listener.addresses for listener in site.server.listeners)


async def test_a_unix_sockets_file(start: Start, tmp_path: Path) -> None:
    site = await start()
    path = tmp_path / "mqtt.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # a server that died leaves this behind
    await site.server.listen_unix(path, mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    raw = await unix(site, path, rig.connect())
    await raw.expect(rig.ACCEPTED)
    with pytest.raises(Unavailable, match="something listens there already"):
        await site.server.listen_unix(path)
    await site.server.close()
    assert not path.exists()


async def test_a_file_that_is_no_socket_stays(start: Start, tmp_path: Path) -> None:
    site = await start()
    path = tmp_path / "mqtt.sock"
    path.write_text("mine")
    with pytest.raises(Unavailable, match="no socket; move it"):
        await site.server.listen_unix(path)
    with pytest.raises(Unavailable, match="No such file or directory"):
        await site.server.listen_unix(tmp_path / "nowhere" / "mqtt.sock")
    with pytest.raises(Unavailable, match="too long"):
        await site.server.listen_unix(tmp_path / ("x" * 200))
    assert path.read_text() == "mine"


async def test_a_replaced_socket_file_is_left_alone(start: Start, tmp_path: Path) -> None:
    site, path = await start(), tmp_path / "mqtt.sock"
    await site.server.listen_unix(path)
    path.unlink()
    path.write_text("somebody else's")
    await site.server.close()
    assert path.exists()


async def test_connections_of_a_listener_and_of_an_address_are_bounded(start: Start) -> None:
    site = await start()
    host, few = await site.server.listen("127.0.0.1", 0, limits=Limits(max_connections=2))
    _, one = await site.server.listen("127.0.0.1", 0, limits=Limits(max_connections_per_address=1))
    for port, most in ((few, 2), (one, 1)):
        site.port = port
        for n in range(most):
            await site.device(f"{port}-{n}")
        mine = ("127.0.0.2" if port == few else "127.0.0.1", 0)
        refused = Raw(*await asyncio.open_connection(host, port, local_addr=mine))
        site.raws.append(refused)
        assert await refused.expect_end() == b""
    other = Raw(*await asyncio.open_connection(host, one, local_addr=("127.0.0.2", 0)))
    site.raws.append(other)
    await other.send(rig.connect("other"))
    await other.expect(rig.ACCEPTED)
    assert site.server.counters.over_limit == 2
    assert site.server.counters.connections == 4
    site.raws[0].close()
    await site.until(lambda: site.server.counters.connections == 3)
    site.port = few
    await site.device("again")


async def test_tls_counts_and_is_bounded_before_its_handshake(
    start: Start, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    said: list[str] = []
    site = await start(Settings(connect_timeout=3.0), Hooks(on_turned_away=lambda _, reason: said.append(reason)))
    site.host, site.port = await site.server.listen("127.0.0.1", 0, tls[0], limits=Limits(2, 2, 0, 3.0))
    silent = [await site.raw() for _ in range(2)]
    await site.until(lambda: site.server.counters.connections == 2)
    third = await site.raw(b"\x16\x03\x01")
    assert await third.expect_end() == b""
    for raw in silent:
        assert await raw.expect_end() == b""
    wrong = await site.raw(rig.connect())
    await wrong.expect_end()
    await site.until(lambda: site.server.counters.handshakes_failed == 3)
    assert not site.server.counters.connections
    assert site.server.counters.over_limit == 1
    assert len(said) == 4
    assert sum("TLS handshake" in reason for reason in said) == 3
    gone = await site.raw(b"\x16\x03\x01")
    await site.until(lambda: site.server.counters.connections == 1)
    gone.reset()
    await site.until(lambda: not site.server.counters.connections)


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_tls_on_each_event_loop(
    make: Callable[[], asyncio.AbstractEventLoop], tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async def talk() -> None:
        server = MqttServer(MemorySink())
        await server.start()
        for websocket in (False, True):
            host, port = await server.listen("127.0.0.1", 0, tls[0], websocket=websocket)
            raws = [Raw(*await asyncio.open_connection(host, port, ssl=tls[1])) for _ in range(20)]
            for n, raw in enumerate(raws):
                if websocket:
                    await raw.send(request())
                    await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), 60)
                    await raw.send(frame(BINARY, rig.connect(f"w{n}")))
                    await raw.expect(answer(BINARY, rig.ACCEPTED))
                else:
                    await raw.send(rig.connect(f"t{n}"))
                    await raw.expect(rig.ACCEPTED)
            for raw in raws:
                raw.writer.transport.abort()
        await server.close()
        assert not server.counters.connections

    loop = make()
    try:
        loop.run_until_complete(talk())
    finally:
        loop.close()


async def test_close_ends_handshakes_under_way(start: Start, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    site = await start()
    site.host, site.port = await site.server.listen("127.0.0.1", 0, tls[0])
    silent = await site.raw()
    await site.until(lambda: site.server.handshakes)
    await site.server.close()
    assert await silent.expect_end() == b""
    assert not site.server.counters.connections


async def test_what_follows_a_handshake_at_once_is_not_lost(
    start: Start, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """The client's Finished and its CONNECT in one segment."""
    site = await start()
    site.host, site.port = await site.server.listen("127.0.0.1", 0, tls[0])
    read, write = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls[1].wrap_bio(read, write, server_hostname="127.0.0.1")
    raw = await site.raw()
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    await raw.send(write.read())
    while True:
        read.write(await asyncio.wait_for(raw.reader.read(65536), 60))
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            continue
    client.write(rig.connect() + rig.PING)
    await raw.send(write.read())
    said = b""
    while len(said) < 6:
        read.write(await asyncio.wait_for(raw.reader.read(65536), 60))
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                said += client.read(100)
    assert said == rig.ACCEPTED + rig.PONG


async def test_an_answer_that_is_awaited(start: Start) -> None:
    gate = asyncio.Event()

    async def authorize(info: ConnectInfo) -> Answer:
        await gate.wait()
        if info.client_id == "bug":
            raise RuntimeError("a bug")
        return None if info.client_id == "dev" else ConnackCode.BAD_CREDENTIALS

    site = await start(hooks=Hooks(authorize_connect=authorize))
    _, web = await site.server.listen("127.0.0.1", 0, websocket=True)
    dev = await site.raw(rig.connect("dev"), rig.publish("a", b"x", 1, 1))
    bad, bug = await site.raw(rig.connect("bad"), rig.publish("a", b"y", 1, 1)), await site.raw(rig.connect("bug"))
    site.port = web
    browser = await site.raw(request())
    head = await asyncio.wait_for(browser.reader.readuntil(b"\r\n\r\n"), 60)
    assert b" 101 " in head
    await browser.send(frame(BINARY, rig.connect("dev2")), frame(BINARY, rig.PING))
    await site.until(lambda: sum(wire.asking is not None for wire in site.server.wires) == 4)
    await dev.send(rig.PING)
    gate.set()
    await dev.expect(rig.ACCEPTED)
    assert sorted(await dev.reader.readexactly(6)) == sorted(rig.PONG + rig.puback(1))
    assert await bad.expect_end() == b"\x20\x02\x00\x04"
    assert await bug.expect_end() == b"\x20\x02\x00\x03"
    assert (await browser.expect_end()).startswith(answer(BINARY, b"\x20\x02\x00\x04"))
    assert site.stored == [b"x"]


async def test_an_answer_that_others_cancel_refuses(start: Start) -> None:
    waiting: list[asyncio.Future[Answer]] = []

    def authorize(_: ConnectInfo) -> asyncio.Future[Answer]:
        waiting.append(asyncio.get_running_loop().create_future())
        return waiting[-1]

    site = await start(hooks=Hooks(authorize_connect=authorize))
    raw = await site.raw(rig.connect())
    await site.until(lambda: waiting)
    waiting[0].cancel()
    assert await raw.expect_end() == b"\x20\x02\x00\x03"


@pytest.mark.parametrize(
    ("host", "what"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::1", "::/64"),
    ],
)
def test_what_an_address_counts_as(host: str, what: str) -> None:
    assert counted(host) == what


@pytest.mark.parametrize("how", ["time-out", "gone", "close"])
async def test_an_answer_nobody_waits_for_is_cancelled(start: Start, how: str) -> None:
    cancelled = asyncio.Event()

    async def authorize(_: ConnectInfo) -> Answer:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return None

    site = await start(Settings(connect_timeout=3.0 if how == "time-out" else 60.0), Hooks(authorize_connect=authorize))
    raw = await site.raw(rig.connect())
    await site.until(lambda: any(wire.asking for wire in site.server.wires))
    if how == "gone":
        (wire,) = site.server.wires
        wire.abort()
    elif how == "close":
        await site.server.close()
    await asyncio.wait_for(cancelled.wait(), 60)
    assert await raw.expect_end() == b""
    await site.until(lambda: not site.server.counters.connections)

"""The uplink over real sockets (U1)."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from edge_agent.uplink import uplinks as module
from edge_agent.uplink.config import UplinkSettings
from edge_agent.uplink.link import Link, explain
from edge_agent.uplink.uplinks import MAX_DELAY, Uplinks, backoff
from fleet_simulator.link import Link as Relay
from tests.integration.edge.peer import GATEWAY, Cloud, listening, until, url
from waybill.errors import ConfigError
from waybill.frames import encode_plain
from waybill.pki import ca_init, issue_gateway, issue_server, server_context
from waybill.wire import Ack, Envelope


def frame(first: int = 1, size: int = 10) -> bytes:
    return encode_plain(
        epoch=5, prev_epoch=0, prev_last=0, oldest_epoch=5, lane="telemetry", order="fifo", durability="every-commit",
        clock="unknown", first=first, base_ms=0, sources=[("t", "c")],
        rows=[(0, 0, 1, random.Random(first).randbytes(size), b"")],
    )  # fmt: skip


class Got:
    """What a connection brought, and the connection."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.links = 0
        self.messages: list[Ack | Envelope] = []

    async def serve(self, link: Link) -> None:
        self.link, self.links = link, self.links + 1
        async for message in link.received():
            self.messages.append(message)


@contextlib.asynccontextmanager
async def running(settings: UplinkSettings, serve: Callable[[Link], Awaitable[None]]) -> AsyncIterator[Uplinks]:
    uplink = Uplinks([settings], GATEWAY, "1.2.3", random.Random(1))
    task = asyncio.create_task(uplink.run(serve))
    try:
        yield uplink
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_it_says_online_and_offline_and_brings_what_the_cloud_sends() -> None:
    got = Got()
    async with listening(Cloud(credit=777)) as cloud:
        async with running(url(cloud.address), got.serve) as uplink:
            await until(lambda: got.messages and cloud.states)
            assert uplink.state.state == "online"
            assert got.messages == [Ack(credit=777)]  # sent on SUBACK, and not missed (U3)
            command = Envelope("1", "command", "V7", "lock", b"{}", 99)
            cloud.server.send(f"wb/v1/{GATEWAY}/ack", b"\xc1 not an ack")  # ignored, not fatal
            cloud.command(command)
            await until(lambda: len(got.messages) > 1)
            assert got.messages[1] == command
        await until(lambda: cloud.reasons)
    assert [(state.state, state.reason, state.version) for state in cloud.states] == [
        ("online", "", "1.2.3"),
        ("offline", "stopped", "1.2.3"),
    ]
    assert cloud.reasons == [""]  # it said goodbye, so no will


async def test_a_stop_at_any_moment_of_a_connection_ends_it() -> None:
    got = Got()
    async with listening(Cloud()) as cloud:
        for turns in range(60):  # of the event loop; so many are enough to be online
            task = asyncio.create_task(Uplinks([url(cloud.address)], GATEWAY, "0").run(got.serve))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            async with asyncio.timeout(60):
                await asyncio.wait([task])
    assert got.links


async def test_what_comes_in_one_piece_over_a_websocket_is_all_read() -> None:
    got = Got()
    commands = [Envelope(f"{number}", "command", "V7", "lock", bytes(number), 99) for number in range(200)]
    async with listening(Cloud()) as cloud:
        host, port = await cloud.server.listen("127.0.0.1", 0, websocket=True)
        async with running(UplinkSettings(f"ws://{host}:{port}/any/path?a=b", keepalive=60), got.serve):
            await until(lambda: got.messages)
            for command in commands:
                cloud.command(command)
            await until(lambda: len(got.messages) > len(commands))
            assert got.messages[1:] == commands


async def test_u1_what_the_client_library_had_queued_dies_with_its_connection() -> None:
    got = Got()
    async with (
        listening(Cloud()) as cloud,
        Relay(cloud.address) as relay,
        running(url(relay.address), got.serve) as uplink,
    ):
        await until(lambda: got.link)
        relay.black_hole()
        assert got.link is not None
        # More than the relay's kernel ever takes in while nobody reads (net.ipv4.tcp_rmem goes up to 32 MiB).
        sending = [asyncio.create_task(got.link.send(frame(n, 2_500_000))) for n in range(1, 20)]
        await asyncio.sleep(0.2)
        assert not all(task.done() for task in sending)
        await relay.cut()
        for task in sending:
            task.cancel()
        await asyncio.wait(sending)
        await relay.restore()
        await until(lambda: uplink.connects == 2 and cloud.subscribed == 2)
        await got.link.send(frame(99))
        await until(lambda: cloud.headers and cloud.headers[-1].first == 99)
    assert [header.first for header in cloud.headers] == [99]


async def test_a_cut_link_is_made_anew_and_the_cloud_hears_the_will() -> None:
    got = Got()
    async with (
        listening(Cloud()) as cloud,
        Relay(cloud.address) as relay,
        running(url(relay.address), got.serve) as uplink,
    ):
        for number in range(1, 4):
            await until(lambda n=number: uplink.connects == n)  # type: ignore[misc]
            await relay.cut()
            await until(lambda: uplink.state.state == "offline")
            await until(lambda n=number: len(cloud.reasons) == n)  # type: ignore[misc]
            await relay.restore()
        await until(lambda: uplink.connects == 4)
    assert ("offline", "connection lost") in [(state.state, state.reason) for state in cloud.states]
    assert got.links == 4


async def test_a_black_hole_is_noticed_by_the_keepalive() -> None:
    got = Got()
    async with (
        listening(Cloud()) as cloud,
        Relay(cloud.address) as relay,
        running(url(relay.address), got.serve) as uplink,
    ):
        await until(lambda: got.link)
        relay.black_hole()
        await until(lambda: uplink.state.state == "offline")
        assert "keepalive" in uplink.state.error
        await relay.restore()
        await until(lambda: uplink.state.state == "online")


async def test_a_link_that_hangs_does_not_hold_the_shutdown() -> None:
    got = Got()
    async with listening(Cloud()) as cloud, Relay(cloud.address) as relay:
        async with running(url(relay.address), got.serve):
            await until(lambda: got.link)
            relay.black_hole()
            assert got.link is not None
            sending = asyncio.create_task(got.link.send(frame(1, 20_000_000)))
            await asyncio.sleep(0.1)
            sending.cancel()
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 20  # a hang would last for ever
    assert "stopped" not in [state.reason for state in cloud.states]


async def test_u2_a_frame_has_left_when_the_peers_tcp_has_it_and_not_when_it_is_written() -> None:
    got = Got()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.setblocking(False)
        loop = asyncio.get_running_loop()
        settings = UplinkSettings(f"mqtt://127.0.0.1:{silent.getsockname()[1]}", keepalive=60)
        async with running(settings, got.serve):
            peer, _ = await loop.sock_accept(silent)
            with peer:
                await loop.sock_recv(peer, 4096)
                await loop.sock_sendall(peer, b"\x20\x02\x00\x00")  # CONNACK
                subscribe = await loop.sock_recv(peer, 4096)
                await loop.sock_sendall(peer, b"\x90\x04" + subscribe[2:4] + b"\x00\x00")  # SUBACK
                await until(lambda: got.link)
                assert got.link is not None
                mark = await got.link.send(frame(1, 40_000))  # the socket takes it at once, the peer does not read
                assert not got.link.has_left(mark)
                left = 40_000
                while left > 0:
                    left -= len(await loop.sock_recv(peer, 65536))
                await until(lambda: got.link and got.link.has_left(mark))


async def test_what_a_link_costs_on_the_wire_is_counted_over_all_its_connections() -> None:
    got = Got()
    async with (
        listening(Cloud()) as cloud,
        Relay(cloud.address) as relay,
        running(url(relay.address), got.serve) as uplink,
    ):
        await until(lambda: got.messages)
        assert got.link is not None
        first, begun = got.link, got.link.traffic()
        assert min(begun) > 100  # what it took to connect
        await first.send(frame(1, 100_000))
        await until(lambda: cloud.headers)
        assert 100_000 < first.traffic().sent - begun.sent < 110_000
        assert uplink.traffic() == {"[[uplink]] 1": first.traffic()}
        await relay.cut()
        await until(lambda: uplink.state.state == "offline")
        ended = first.traffic()
        assert ended.sent > 100_000  # still known
        await relay.restore()
        await until(lambda: got.links == 2)
        assert got.link is not first
        assert uplink.traffic()["[[uplink]] 1"] >= (ended.sent + 100, ended.received + 100)


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    now = dt.datetime.now(dt.UTC)
    for name in ("ca", "other"):
        ca_init(tmp_path / name, now=now)
    issue_server(tmp_path / "ca", tmp_path / "server", ["127.0.0.1", "localhost"], now=now)
    issue_gateway(tmp_path / "ca", tmp_path / "gw", GATEWAY, now=now)
    issue_gateway(tmp_path / "other", tmp_path / "stranger", GATEWAY, now=now)
    return tmp_path


def tls(cloud: Cloud, pki: Path, bundle: str, ca: str = "ca") -> UplinkSettings:
    return UplinkSettings(
        f"mqtts://localhost:{cloud.address[1]}",
        ca=pki / ca / "ca.pem",
        certificate=pki / bundle / "gateway.pem",
        key=pki / bundle / "gateway.key",
    )


async def test_tls_with_certificates_of_both_sides(pki: Path) -> None:
    context = server_context(pki / "server" / "server.pem", pki / "server" / "server.key", pki / "ca" / "ca.pem")
    got = Got()
    async with listening(Cloud(), context) as cloud, running(tls(cloud, pki, "gw"), got.serve):
        await until(lambda: got.link)
        assert got.link is not None
        mark = await got.link.send(frame(1, 200_000))
        await until(lambda: cloud.headers and got.link and got.link.has_left(mark))


async def test_wrong_certificates_are_said_in_one_line_and_tried_again(
    pki: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = server_context(pki / "server" / "server.pem", pki / "server" / "server.key", pki / "ca" / "ca.pem")
    got = Got()
    async with listening(Cloud(), context) as cloud:
        async with running(tls(cloud, pki, "stranger"), got.serve) as uplink:
            await until(lambda: uplink.state.state == "offline")
            assert uplink.state.error.startswith("certificate refused by the cloud, most likely: ")
        async with running(tls(cloud, pki, "gw", ca="other"), got.serve) as uplink:
            await until(lambda: uplink.state.state == "offline")
            assert uplink.state.error.startswith("the cloud's certificate is not trusted:")
    assert uplink.connects == 0
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(("years", "says"), [(-20, "certificate has expired"), (1, "certificate is not yet valid")])
async def test_a_certificate_of_another_time_names_the_clock(pki: Path, years: int, says: str) -> None:
    now = dt.datetime.now(dt.UTC)
    issue_server(pki / "ca", pki / "late", ["localhost"], now=now + dt.timedelta(days=365 * years), days=90)
    context = server_context(pki / "late" / "server.pem", pki / "late" / "server.key", pki / "ca" / "ca.pem")
    async with listening(Cloud(), context) as cloud, running(tls(cloud, pki, "gw"), Got().serve) as uplink:
        await until(lambda: uplink.state.state == "offline")
    error = uplink.state.error
    assert error.startswith(f"the cloud's certificate is not trusted: {says}; check this machine's clock, which says 2")
    assert f"{now:%Y-%m-%d}" in error or f"{dt.datetime.now(dt.UTC):%Y-%m-%d}" in error


async def test_a_refused_connection_and_an_unknown_name_are_said(
    free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    got = Got()
    async with running(UplinkSettings(f"mqtt://127.0.0.1:{free_port}"), got.serve) as uplink:
        await until(lambda: uplink.state.state == "offline")
        assert uplink.state.error == f"127.0.0.1:{free_port} refuses the connection"
    async with running(UplinkSettings("mqtt://nowhere.invalid"), got.serve) as uplink:
        await until(lambda: uplink.state.state == "offline")
        assert uplink.state.error.startswith("the name 'nowhere.invalid' is not known")
    assert "Traceback" not in caplog.text


async def test_a_cloud_that_closes_before_connack_is_not_connected() -> None:
    async def slam(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(slam, "127.0.0.1", 0)
    got = Got()
    async with server, running(url(server.sockets[0].getsockname()), got.serve) as uplink:
        await until(lambda: uplink.state.state == "offline")
        assert uplink.state.error in {"the connection was closed before it was accepted", "Connection reset by peer"}
        assert uplink.connects == 0


def test_a_tls_alert_names_its_cause() -> None:
    alert = "failed to receive on socket: [SSL: SSLV3_ALERT_EXPIRED] sslv3 alert certificate expired (_ssl.c:2580)"
    assert explain(alert) == (
        "certificate refused by the cloud: sslv3 alert certificate expired; check [[uplink]] certificate and key"
    )


def test_unusable_certificate_files_stop_the_agent_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        Uplinks([UplinkSettings("mqtts://localhost", ca=tmp_path / "ca.pem")], GATEWAY, "0")


@pytest.mark.parametrize(("stable", "tops"), [(60.0, [0.5, 1.0, 2.0]), (0.0, [0.5, 0.5, 0.5])])
async def test_delays_grow_until_a_connection_was_stable(
    monkeypatch: pytest.MonkeyPatch, stable: float, tops: list[float]
) -> None:
    class Impatient(random.Random):
        asked: list[float]

        def uniform(self, a: float, b: float) -> float:
            self.asked.append(b)
            return a

    monkeypatch.setattr(module, "STABLE", stable)
    rng, got = Impatient(), Got()
    rng.asked = []
    async with listening(Cloud()) as cloud:
        uplink = Uplinks([url(cloud.address)], GATEWAY, "0", rng)
        task = asyncio.create_task(uplink.run(got.serve))
        for number in range(1, 4):
            await until(lambda n=number: uplink.connects == n and uplink.state.state == "online")  # type: ignore[misc]
            cloud.server.disconnect(GATEWAY)
            await until(lambda n=number: len(rng.asked) == n)  # type: ignore[misc]
        task.cancel()
        await asyncio.wait([task])
    assert rng.asked == tops


def test_reconnects_have_full_jitter_up_to_a_minute() -> None:
    rng = random.Random(3)
    for attempt in range(40):
        delays = [backoff(attempt, rng) for _ in range(300)]
        top = min(MAX_DELAY, 0.5 * 2**attempt)
        assert 0 <= min(delays) < 0.1 * top
        assert 0.9 * top < max(delays) <= top

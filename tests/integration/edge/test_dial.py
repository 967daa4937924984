"""Each step of a connection that can fail, and what is said then; answers of proxies however they are cut."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.uplink import dial as module
from edge_agent.uplink.config import UplinkSettings
from edge_agent.uplink.dial import Dialer, LinkLost
from edge_agent.uplink.traffic import Traffic
from waybill import pki

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, **options: Any) -> AsyncIterator[int]:
    """Serve on a free port; yields it."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await handler(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(handle(reader, writer)))

    async with await asyncio.start_server(accepted, "127.0.0.1", 0, **options) as server:
        yield server.sockets[0].getsockname()[1]
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks)  # the client has closed


def answering(*answers: bytes, greedy: bool = False) -> Handler:
    """Make a server that gives one answer to each thing that it reads, byte by byte, and then stays silent."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for answer in answers:
            await reader.read(4096)
            for byte in [answer] if greedy else [bytes([each]) for each in answer]:
                writer.write(byte)
                await writer.drain()
        while await reader.read(4096):
            pass

    return handle


async def failing(settings: UplinkSettings, context: Any = None) -> str:
    """Return why a connection could not be made."""
    with pytest.raises(LinkLost) as caught:
        await Dialer(settings, context).dial(lambda _: None)
    return str(caught.value)


HTTP_OK = b"HTTP/1.1 200 Connection established\r\nProxy-Agent: x\r\n\r\n"
SOCKS_OK = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("http", [HTTP_OK + b"MQTT"]),
        ("http", [b"HTTP/1.0 200\r\n\r\nMQTT"]),
        ("socks5", [b"\x05\x00", SOCKS_OK + b"MQTT"]),
        ("socks5", [b"\x05\x00", b"\x05\x00\x00\x04" + bytes(18) + b"MQTT"]),
        ("socks5", [b"\x05\x00", b"\x05\x00\x00\x03\x03abc\x00\x50MQTT"]),
        ("socks5", [b"\x05\x02", b"\x01\x00", SOCKS_OK + b"MQTT"]),
    ],
)
@pytest.mark.parametrize("greedy", [False, True])
async def test_an_answer_is_read_to_its_end_and_no_further(kind: str, answers: list[bytes], greedy: bool) -> None:  # noqa: FBT001
    async with serving(answering(*answers, greedy=greedy)) as port:
        sock = await Dialer(UplinkSettings("mqtt://h", proxy=f"{kind}://u:p@127.0.0.1:{port}"), None).dial(print)
        assert isinstance(sock, socket.socket)
        with sock:
            sock.setblocking(True)
            assert await asyncio.to_thread(sock.recv, 4, socket.MSG_WAITALL) == b"MQTT"


@pytest.mark.parametrize(
    ("proxy", "answers", "said"),
    [
        ("http://127.0.0.1", [b"HTTP/1.1 407 Auth\r\n\r\n"],
         "the proxy refuses: HTTP 407 Auth; it wants a user and password: USER:PASSWORD@HOST; check [[uplink]] proxy"),
        ("http://u:p@127.0.0.1", [b"HTTP/1.1 407 Auth\r\n\r\n"],
         "the proxy refuses: HTTP 407 Auth; it wants another user or password; check [[uplink]] proxy"),
        ("http://127.0.0.1", [b"HTTP/1.1 403 Forbidden\r\n\r\n"],
         "the proxy refuses h:1883: HTTP 403 Forbidden; its rules must allow CONNECT to this host and port"),
        ("http://127.0.0.1", [b"HTTP/1.1 502 Bad Gateway\r\n\r\n"],
         "the proxy cannot reach h:1883: HTTP 502 Bad Gateway"),
        ("http://127.0.0.1", [b"\x15\x03\x01"], "the proxy speaks no HTTP: check its port, or write socks5://"),
        ("http://127.0.0.1", [b"HTTP/1.1 200 OK\r\n" + b"x" * 20_000],
         "the proxy's answer does not end: is it an HTTP proxy?"),
        ("http://127.0.0.1", [b"HTTP/1.1 \r\n\r\n"],
         "the proxy's answer has no status: is it an HTTP proxy? Check its port in [[uplink]] proxy"),
        ("http://127.0.0.1", [b"HTTP/1.1 OK\r\n\r\n"],
         "the proxy's answer has no status: is it an HTTP proxy? Check its port in [[uplink]] proxy"),
        ("http://127.0.0.1", [b""], "the proxy 127.0.0.1:PORT does not answer: the connection was closed"),
        ("socks5://127.0.0.1", [b"HT"], "the proxy speaks no SOCKS5: check its port, or write http://"),
        ("socks5://127.0.0.1", [b"\x05\xff"],
         "the proxy wants a user and password; write USER:PASSWORD@HOST in [[uplink]] proxy"),
        ("socks5://127.0.0.1", [b"\x05\x02"],
         "the proxy wants a user and password; write USER:PASSWORD@HOST in [[uplink]] proxy"),
        ("socks5://u:p@127.0.0.1", [b"\x05\x02", b"\x01\x01"],
         "the proxy refuses user or password; check [[uplink]] proxy"),
        ("socks5://127.0.0.1", [b"\x05\x00", b"\x05\x02"],
         "the proxy does not connect to h:1883: its rules do not allow it"),
        ("socks5://127.0.0.1", [b"\x05\x00", b"\x05\x63"], "the proxy does not connect to h:1883: reply 99"),
    ],
)  # fmt: skip
async def test_a_proxy_that_does_not_let_through_is_said_with_the_mend(
    proxy: str, answers: list[bytes], said: str
) -> None:
    handler = answering(*answers) if answers != [b""] else _slam
    async with serving(handler) as port:
        assert await failing(UplinkSettings("mqtt://h", proxy=f"{proxy}:{port}")) == said.replace("PORT", str(port))


async def _slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4096)
    writer.close()


async def test_what_a_failed_attempt_has_cost_is_counted() -> None:
    spent: list[Traffic] = []
    async with serving(answering(b"HTTP/1.1 407 Auth\r\n\r\n")) as port:
        with pytest.raises(LinkLost):
            await Dialer(UplinkSettings("mqtt://h", proxy=f"http://127.0.0.1:{port}"), None).dial(spent.append)
    (cost,) = spent
    assert cost.sent > 60 + 52 + len("CONNECT h:1883 HTTP/1.1")
    assert cost.received > 60 + len("HTTP/1.1 407 Auth")


async def test_an_unknown_or_dead_proxy_is_said(free_port: int) -> None:
    mend = "; check [[uplink]] proxy"
    proxy = f"http://127.0.0.1:{free_port}"
    assert await failing(UplinkSettings("mqtt://h", proxy=proxy)) == (
        f"the proxy 127.0.0.1:{free_port} refuses the connection{mend}"
    )
    said = await failing(UplinkSettings("mqtt://h", proxy="http://nowhere.invalid:3128"))
    assert said.startswith("the name 'nowhere.invalid' of the proxy is not known: ")
    assert said.endswith(mend)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
         "no WebSocket: HTTP 404 Not Found; check host, port and path of [[uplink]] url, and what stands before the"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "no WebSocket: HTTP 502 Bad Gateway; check"),
        (b"SSH-2.0-x\r\n\r\n", "no WebSocket: did not receive a valid HTTP response; is there a WebSocket listener"),
    ],
)  # fmt: skip
async def test_a_server_that_makes_no_websocket_is_said_with_its_status(answer: bytes, said: str) -> None:
    async with serving(answering(answer)) as port:
        assert (await failing(UplinkSettings(f"ws://127.0.0.1:{port}/x"))).startswith(said)


async def test_a_step_that_hangs_is_said_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 2.0)
    async with serving(answering(b"")) as port:
        context = pki.client_context(None)
        here = f"127.0.0.1:{port}"
        for settings, tls, said in (
            (UplinkSettings(f"mqtts://{here}"), context, f"{here} does not finish the TLS handshake within 2 s"),
            (UplinkSettings(f"ws://{here}"), None, f"{here} does not answer the WebSocket's request within 2 s"),
            (UplinkSettings("mqtt://h", proxy=f"http://{here}"), None, f"the proxy {here} does not answer within 2 s"),
        ):
            assert await failing(settings, tls) == said


async def test_a_certificate_that_is_not_trusted_and_a_port_without_tls_are_said(tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    for name in ("ca", "other"):
        pki.ca_init(tmp_path / name, now=now)
    server = pki.issue_server(tmp_path / "ca", tmp_path / "server", ["localhost"], now=now)
    trusting = pki.client_context(tmp_path / "ca" / "ca.pem")
    async with serving(_slam, ssl=pki.server_context(server.certificate, server.key)) as port:
        said = await failing(
            UplinkSettings(f"wss://localhost:{port}"), pki.client_context(tmp_path / "other" / "ca.pem")
        )
        assert said.startswith("the cloud's certificate is not trusted: ")
        assert said.endswith("; check [[uplink]] ca, and the host in url")
        said = await failing(UplinkSettings(f"mqtts://127.0.0.1:{port}"), trusting)
        assert "is not trusted: " in said
        assert "127.0.0.1" in said
    async with serving(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n", greedy=True)) as port:
        said = await failing(UplinkSettings(f"mqtts://127.0.0.1:{port}"), trusting)
        assert said.startswith(f"no TLS with 127.0.0.1:{port}: ")
        assert said.endswith("; check the port in [[uplink]] url")


async def test_an_interface_that_is_not_there_is_said() -> None:
    said = await failing(UplinkSettings("mqtt://127.0.0.1:9", interface="nowhere0"))
    assert said == (
        "the interface 'nowhere0' is not there or has no address: No such device; check [[uplink]] interface"
    )


async def test_a_kernel_that_lets_only_root_bind_to_a_device_gets_the_interfaces_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    class Old(socket.socket):
        """A socket of a kernel before Linux 5.7, for who is not root."""

        def setsockopt(self, level: int, option: int, *value: Any) -> None:
            if (level, option) == (socket.SOL_SOCKET, socket.SO_BINDTODEVICE):
                raise PermissionError(1, "Operation not permitted")
            super().setsockopt(level, option, *value)

    async with serving(answering()) as port:
        monkeypatch.setattr(socket, "socket", Old)
        dialer = Dialer(UplinkSettings(f"mqtt://127.0.0.1:{port}", name="x", interface="lo"), None)
        for _ in range(2):
            sock = await dialer.dial(lambda _: None)
            assert isinstance(sock, socket.socket)
            with sock:
                assert sock.getsockname()[0] == "127.0.0.1"
        said = await failing(UplinkSettings("mqtt://[::1]:9", interface="lo"))
    assert said.startswith("the interface 'lo' is not there or has no address: ")
    assert caplog.text.count("bound to 127.0.0.1, the address of lo: this kernel lets only root bind to a device") == 1


async def test_a_name_look_up_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    hang = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stuck(host: str, port: int) -> asyncio.Future[Any]:
        asked.append(f"{host}:{port}")
        return asyncio.ensure_future(hang.wait(), loop=loop)

    monkeypatch.setattr(module, "PATIENCE", 0.05)
    monkeypatch.setattr(module, "_look_up", stuck)
    dialer = Dialer(UplinkSettings("mqtt://far.example"), None)
    for _ in range(3):
        with pytest.raises(LinkLost, match="the name 'far.example' is not known: no name server answers within"):
            await dialer.dial(print)
    assert asked == ["far.example:1883"]  # one thread at a time
    hang.set()

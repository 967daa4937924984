"""HTTP as far as the API needs it, against servers that speak it well and badly."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.pictures import NOW, commands, fleet, gateway, row
from waybill import pki, snapshot
from waybill.errors import ConfigError, Unavailable
from waybill.fleet_state import FleetSnapshot, GatewayDetail
from waybill.monitor import client
from waybill.monitor.client import Answer, Client, token_of
from waybill.monitor.sources import CloudSource, SocketSource


class Server:
    """A server that answers each request with the next of ``answers``; after the last it ends the connection."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
                if not self.answers:
                    break
                answer = self.answers.pop(0)
                writer.write(answer)
                await writer.drain()
                if b"close" in answer or not answer.startswith(b"HTTP/1.1 2") or b"length" not in answer.lower():
                    break
        writer.close()


@contextlib.asynccontextmanager
async def serving(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


def ok(body: bytes, more: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


async def test_one_connection_serves_many_requests() -> None:
    server = Server(ok(b"one"), ok(b""), ok(b"three"))
    async with serving(server) as url:
        asking = Client(url, lambda: "secret")
        assert [await asking.get(path) for path in ("/a", "/b", "/c")] == [
            Answer(200, b"one"), Answer(200, b""), Answer(200, b"three")
        ]  # fmt: skip
        await asking.close()
    assert server.connections == 1
    assert server.asked[0].startswith("GET /a HTTP/1.1\r\n")
    assert "\r\nAuthorization: Bearer secret\r\n" in server.asked[0]


async def test_a_connection_that_was_let_go_of_is_made_again_without_a_word() -> None:
    server = Server(ok(b"one"), ok(b"two", "Connection: close\r\n"), ok(b"three"))
    async with serving(server) as url:
        asking = Client(url)
        for word in (b"one", b"two", b"three"):
            assert (await asking.get("/")).body == word
        server.answers = []  # the next request finds the connection ended, and so does the one after it
        with pytest.raises(Unavailable, match="it ended the connection"):
            await asking.get("/")
        await asking.close()
    assert server.connections == 3


async def test_bodies_in_chunks_and_to_the_end() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: 1\r\n\r\n"
    server = Server(chunked, b"HTTP/1.0 200 OK\r\n\r\nto the end")
    async with serving(server) as url:
        asking = Client(url)
        assert (await asking.get("/")).body == b"abcde"
        assert (await asking.get("/")).body == b"to the end"
        await asking.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "an answer of 99999999999 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "an answer of -1 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "invalid literal"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", "an answer of -5 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nab", "it ended the connection"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "limit"),
    ],
)
async def test_what_is_no_answer_is_said(answer: bytes, said: str) -> None:
    async with serving(Server(answer, answer)) as url:
        asking = Client(url)
        with pytest.raises(Unavailable, match=said):
            await asking.get("/")
        await asking.close()


async def test_nobody_there_and_nobody_who_answers(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="nobody listens there"):
        await Client(f"http://127.0.0.1:{free_port}").get("/")
    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    silent = asyncio.Event()

    async def on_connect(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    listening = await asyncio.start_server(on_connect, "127.0.0.1", 0)
    try:
        with pytest.raises(Unavailable, match="does not answer within"):
            await Client(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}").get("/")
    finally:
        silent.set()
        listening.close()


async def test_a_certificate_is_checked(tmp_path: Path) -> None:
    import datetime as dt

    now = dt.datetime.now(dt.UTC)
    pki.ca_init(tmp_path / "ca", now=now)
    other = pki.ca_init(tmp_path / "other", now=now).certificate
    made = pki.issue_server(tmp_path / "ca", tmp_path / "server", ["127.0.0.1"], now=now)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(made.certificate, made.key)
    async with serving(Server(ok(b"x")), tls) as url:
        with pytest.raises(Unavailable, match="its certificate is not trusted.*--ca"):
            await Client(url, ca=other).get("/")
        with pytest.raises(Unavailable, match="is it https://"):
            await Client(url.replace("https", "http")).get("/")
        trusting = Client(url, ca=made.ca)
        assert (await trusting.get("/")).body == b"x"
        await trusting.close()


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    server = Server(ok(b"x"))
    listening = await asyncio.start_unix_server(server.serve, str(tmp_path / "api"))
    try:
        asking = Client(f"unix:{tmp_path / 'api'}")
        assert (await asking.get("/")).body == b"x"
        assert not asking.in_clear
        await asking.close()
    finally:
        listening.close()


@pytest.mark.parametrize(
    "url",
    ["", "cloud:8080", "ftp://a", "http://", "http://a/path", "http://a?q", "http://u:p@a", "http://a:b", "unix:"],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="--cloud"):
        Client(url)


def test_a_token_that_can_be_read_on_the_way_is_noticed() -> None:
    assert Client("http://cloud.example:8080").in_clear
    assert not Client("http://127.0.0.1:8080").in_clear
    assert not Client("https://cloud.example").in_clear
    assert CloudSource(Client("http://cloud.example:8080")).notice


def test_token_files(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc-123\n")
    assert token_of(tmp_path / "token") == "abc-123"
    for wrong in (b"", b"two words", b"two\nlines", b"\xff"):
        (tmp_path / "wrong").write_bytes(wrong)
        with pytest.raises(ConfigError, match="--token-file"):
            token_of(tmp_path / "wrong")
    with pytest.raises(ConfigError, match="--token-file"):
        token_of(tmp_path / "none")


# --- sources over it ---


def told(picture: object) -> bytes:
    import msgspec

    return ok(msgspec.json.encode(picture))


async def test_of_the_fleet_only_what_changed_is_asked_for() -> None:
    changed = FleetSnapshot(NOW, "prod", "node-1", "1/2", False, (row(10),), gone=("depot-0001",), total=2)
    server = Server(told(fleet(3)), told(changed), told(commands()), told(gateway()))
    async with serving(server) as url:
        source = CloudSource(Client(url))
        first = await source.ask("fleet")
        second = await source.ask("fleet")
        await source.ask("commands")
        await source.ask("gateway", "depot/ä")
        await source.close()
    assert isinstance(first, FleetSnapshot)
    assert isinstance(second, FleetSnapshot)
    assert [each.gateway for each in second.gateways] == ["depot-0002", "depot-0003", "depot-0010"]
    paths = [asked.split()[1] for asked in server.asked]
    assert paths == ["/v1/fleet", "/v1/fleet?since=1-1", "/v1/commands", "/v1/gateways/depot%2F%C3%A4"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "does not take the token; .*--token-file"),
        (b'HTTP/1.1 404 No\r\nContent-Length: 18\r\n\r\n{"error":"no gw1"}', ": no gw1$"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "status 500; is it the API"),
        (ok(b"[]"), "answers something else"),
        (ok(b'{"at_ms":"soon"}'), "is it of the same version"),
        (ok(b"\xff"), "answers something else"),
    ],
)
async def test_an_answer_that_is_none_of_the_api(answer: bytes, said: str) -> None:
    async with serving(Server(answer)) as url:
        source = CloudSource(Client(url))
        with pytest.raises(Unavailable, match=said):
            await source.ask("commands")
        await source.close()


async def test_a_process_on_this_machine_is_asked_over_its_socket(tmp_path: Path) -> None:
    asked = []

    async def answer(request: dict[str, object]) -> GatewayDetail:
        asked.append(request)
        return gateway()

    async def other(_: dict[str, object]) -> list[int]:
        return [1]

    async with snapshot.serve(tmp_path / "agent.sock", commands, {"gateway": answer, "log": other}):
        source = SocketSource(tmp_path / "agent.sock", fleet=False)
        assert await source.ask("gateway") == gateway()
        with pytest.raises(Unavailable, match="answers something else"):
            await source.ask("log")
        with pytest.raises(Unavailable, match="unknown op 'kafka'"):
            await source.ask("kafka")
    assert source.kinds == ("gateway", "log")
    with pytest.raises(Unavailable, match="is the process running"):
        await source.ask("gateway")

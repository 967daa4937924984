"""The HTTP API's doors and bounds, over real sockets; and how long all of a large fleet takes."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cloud_ingest.config import Topics
from cloud_ingest.fleet import api as module
from cloud_ingest.fleet.api import HttpApi
from cloud_ingest.fleet.api_config import Api, check_api, read_token
from cloud_ingest.fleet.watcher import Watcher
from cloud_ingest.journal.embedded import EmbeddedLog
from cloud_ingest.journal.port import TopicRecord
from cloud_ingest.presence import Here
from tests.support.http import get
from tests.unit.cloud.test_fleet import HEALTH
from tests.unit.shared.test_health import NOW
from waybill.errors import ConfigError
from waybill.fleet_state import FleetSnapshot, GatewayDetail, KafkaState, NodeState

TOKEN = "0123456789abcdef"
TOPICS = Topics(partitions=2)


def watcher(log: EmbeddedLog, gateways: int = 1) -> Watcher:
    made = Watcher(
        log, TOPICS, ("fleet.telemetry",), deployment="fleet", node="node:1", kind="embedded",
        me=lambda: NodeState("node:1"),
    )  # fmt: skip
    for number in range(gateways):
        name = f"g{number}"
        made.presence(name, Here("online", NOW, name, "", "node:1", "c", "", "0.1.0", "10.0.0.1:1"), False)
        made._read(TopicRecord(TOPICS.health, 0, number, NOW, name.encode(), HEALTH, ()))
    return made


@contextlib.asynccontextmanager
async def serving(settings: Api, log: EmbeddedLog, gateways: int = 1) -> AsyncIterator[HttpApi]:
    made = HttpApi(settings, watcher(log, gateways))
    async with made.serving():
        yield made


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EmbeddedLog]:
    made = EmbeddedLog(tmp_path / "log.db", TOPICS)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return str(path)


async def test_only_who_has_the_token_is_answered(
    log: EmbeddedLog, token_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Api("127.0.0.1:0", token_file), log) as api:
        for given in ("", "x", TOKEN[:-1], f"{TOKEN}x", "\xe4" * 16):
            refused = await get(api.address, "/v1/fleet", token=given)
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        basic = await get(api.address, "/v1/fleet", headers={"Authorization": f"Basic {TOKEN}"})
        assert basic.status == 401
        assert (await get(api.address, "/v1/fleet", token=TOKEN)).of(FleetSnapshot).total == 1
        assert (await get(api.address, "/v1/gateways/g0", token=TOKEN)).of(GatewayDetail).row.gateway == "g0"
    assert "without the token from 127.0.0.1" in caplog.text
    assert TOKEN not in caplog.text


async def test_without_a_token_no_page_in_a_browser_can_ask(log: EmbeddedLog) -> None:
    async with serving(Api("127.0.0.1:0"), log) as api:
        assert (await get(api.address, "/v1/fleet")).status == 200
        for host in ("evil.example", "evil.example:8686", "127.0.0.1.evil.example", "[::2]"):
            assert (await get(api.address, "/v1/fleet", headers={"Host": host})).status == 403


async def test_it_only_reads(log: EmbeddedLog) -> None:
    async with serving(Api("127.0.0.1:0"), log) as api:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            answer = await get(api.address, "/v1/fleet", method=method)
            assert (answer.status, b"only reads" in answer.body) == (405, True)
        assert (await get(api.address, "/v1/fleet", method="HEAD")).body == b""
        for path in ("/", "/v1", "/v1/gateways/", "/v1/gateways/a/b", "/v1/gateways/none"):
            answer = await get(api.address, path)
            assert answer.status == 404
            assert "error" in msgspec.json.decode(answer.body)


async def test_what_has_not_changed_is_not_sent_again(log: EmbeddedLog) -> None:
    async with serving(Api("127.0.0.1:0"), log) as api:
        first = await get(api.address, "/v1/fleet")
        tag = first.headers["etag"]
        again = await get(api.address, "/v1/fleet", headers={"If-None-Match": tag})
        assert (again.status, again.body) == (304, b"")
        found = first.of(FleetSnapshot)
        assert (await get(api.address, f"/v1/fleet?since={found.revision}")).of(FleetSnapshot).gateways == ()


async def test_a_log_that_is_away_is_said(log: EmbeddedLog) -> None:
    await log.close()
    async with serving(Api("127.0.0.1:0"), log) as api:
        found = (await get(api.address, "/v1/kafka")).of(KafkaState)
    assert "cannot be read" in found.fault
    assert [part.state for part in found.partitions] == ["nobody", "nobody"]


async def test_a_unix_socket_is_the_owners_alone(log: EmbeddedLog, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with serving(Api(f"unix:{path}"), log):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"GET /v1/commands HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(60):
            assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()
    assert not path.exists()


async def test_connections_beyond_the_limit_are_closed(log: EmbeddedLog) -> None:
    async with serving(Api("127.0.0.1:0", connections=2), log) as api:
        host, _, port = api.address.rpartition(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionResetError):
                assert await idle[2][0].read() == b""
        idle[0][1].close()
        for _, writer in idle:
            writer.close()


@pytest.mark.parametrize("asks", [0, 1])
@pytest.mark.parametrize("sent", [b"", b"GET /v1/fleet HTTP/1.1\r\nHost: "])
async def test_a_head_that_does_not_end_is_not_waited_for(
    log: EmbeddedLog, sent: bytes, asks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 1)
    if not asks:
        monkeypatch.setattr(module, "HEAD_SECONDS", 0.2)
    async with serving(Api("127.0.0.1:0"), log) as api:
        host, _, port = api.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(60):
            for _ in range(asks):
                writer.write(b"GET /v1/commands HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200 OK" in await reader.readuntil(b"at_ms")
            monkeypatch.setattr(module, "HEAD_SECONDS", 0.2)
            writer.write(sent)
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
        writer.close()


async def test_a_head_has_a_size(log: EmbeddedLog) -> None:
    async with serving(Api("127.0.0.1:0"), log) as api:
        host, _, port = api.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /v1/fleet HTTP/1.1\r\nX: " + b"x" * (module.HEAD_BYTES + 1))
        async with asyncio.timeout(60):
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_a_head_has_a_size_where_it_comes_at_once_too(log: EmbeddedLog) -> None:
    async with serving(Api("127.0.0.1:0"), log) as api:
        host, _, port = api.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /v1/fleet HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (3 * module.HEAD_BYTES) + b"\r\n\r\n")
        async with asyncio.timeout(60):
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_all_of_a_large_fleet_is_answered_and_what_it_costs_is_bounded(log: EmbeddedLog) -> None:
    """5,000 rows: as many bytes as they have, and no row is read or made again for an answer."""
    async with serving(Api("127.0.0.1:0"), log, 5_000) as api:
        found = (await get(api.address, "/v1/fleet")).of(FleetSnapshot)
    assert (len(found.gateways), found.total) == (5_000, 5_000)


def test_the_configuration_says_who_may_ask(tmp_path: Path, token_file: str) -> None:
    def wrong(api: Api, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            check_api(api, tmp_path, "cloud.toml")

    wrong(Api("0.0.0.0:1"), "anybody could ask")
    wrong(Api("0.0.0.0:1", token_file), "anybody could ask")
    wrong(Api("nonsense"), "HOST:PORT")
    wrong(Api("unix:"), "unix:PATH")
    wrong(Api(certificate="a"), "go together")
    wrong(Api("unix:a", certificate="a", key="b"), "no TLS")
    wrong(Api(token_file="none"), "no such file")
    assert check_api(Api("unix:a"), tmp_path, "").path == tmp_path / "a"
    assert check_api(Api(token_file="token"), tmp_path, "").token_file == token_file
    for text in ("short", "a" * 513, "two words of some length", "\x07" * 20, "ä" * 20):
        Path(token_file).write_text(text)
        with pytest.raises(ConfigError, match="token_file"):
            read_token(Api(token_file=token_file))

"""The uplink through Debian's proxies, HTTP and SOCKS5, which want a password and fail in the middle."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.integration.cloud import gateway as cloud
from tests.integration.edge import agents
from tests.integration.edge.peer import until
from tests.integration.ways import ingest_at, through
from tests.support.proxies import USER, Proxy, microsocks, tinyproxy

pytestmark = pytest.mark.system


def proxy_of(kind: str, directory: Path) -> contextlib.AbstractAsyncContextManager[Proxy]:
    return tinyproxy(directory) if kind == "http" else microsocks()


@pytest.mark.parametrize("kind", ["http", "socks5"])
@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
async def test_a_proxy_that_is_killed_and_paused_in_the_middle_costs_no_message(
    tmp_path: Path, kind: str, scheme: str
) -> None:
    async with (
        proxy_of(kind, tmp_path) as proxy,
        ingest_at(tmp_path / "cloud", cloud.Pki(tmp_path / "pki")) as (ingest, make),
    ):
        await through(proxy, kind, make, ingest, tmp_path / "edge", scheme)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("http", "it wants another user or password; check [[uplink]] proxy"),
        ("socks5", "the proxy refuses user or password; check [[uplink]] proxy"),
    ],
)
async def test_a_wrong_password_is_said(tmp_path: Path, kind: str, said: str) -> None:
    async with (
        proxy_of(kind, tmp_path) as proxy,
        ingest_at(tmp_path / "cloud", cloud.Pki(tmp_path / "pki")) as (_, make),
        agents.running(tmp_path / "edge", make("wss", proxy=f"{kind}://{USER}:no@127.0.0.1:{proxy.port}")) as agent,
    ):
        await until(lambda: agent.agent.status().link.state == "offline")
        assert said in agent.agent.status().link.error

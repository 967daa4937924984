"""The agent's ways to a real ingest: TLS, WebSockets and a proxy of other people's, which fails in the middle."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.integration.cloud import gateway as cloud
from tests.integration.edge import agents
from tests.integration.edge.peer import GATEWAY, until
from tests.integration.ways import arrived, ingest_at, numbered, through
from tests.support.proxies import PASSWORD, USER, http_proxy


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> cloud.Pki:
    return cloud.Pki(tmp_path_factory.mktemp("pki"))


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
async def test_messages_of_any_size_arrive_once_and_in_order(
    tmp_path: Path, certificates: cloud.Pki, scheme: str
) -> None:
    async with (
        ingest_at(tmp_path / "cloud", certificates) as (ingest, make),
        agents.running(tmp_path / "edge", make(scheme)) as agent,
    ):
        await agents.publish(agent.port, numbered(1, 300))
        await agents.publish(agent.port, numbered(301, 330, 200_000))
        assert await arrived(ingest, 330) == list(range(1, 331))
        (seen,) = ingest.snapshot().gateways
        assert (seen.gateway, seen.state) == (GATEWAY, "online")
        (uplink,) = agent.agent.status().uplinks
        assert uplink.state == "online"
        assert uplink.sent > 330 * 10


async def test_on_a_websocket_too_a_gateway_is_who_its_certificate_says(
    tmp_path: Path, certificates: cloud.Pki
) -> None:
    certificates.gateway("another")
    bundle = certificates.directory / "another"
    async with ingest_at(tmp_path / "cloud", certificates) as (ingest, make):
        for uplink, said in (
            (
                make("wss", certificate=bundle / "gateway.pem", key=bundle / "gateway.key"),
                "its certificate names another",
            ),
            (make("wss", certificate=None, key=None), "certificate refused by the cloud, most likely"),
        ):
            async with agents.running(tmp_path / "edge", uplink) as agent:
                await until(lambda: agent.agent.status().link.state == "offline")
                assert said in agent.agent.status().link.error
        assert not ingest.listener.connected


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
async def test_a_proxy_that_is_killed_and_paused_in_the_middle_costs_no_message(
    tmp_path: Path, certificates: cloud.Pki, scheme: str
) -> None:
    async with http_proxy(tmp_path) as proxy, ingest_at(tmp_path / "cloud", certificates) as (ingest, make):
        await through(proxy, "http", make, ingest, tmp_path / "edge", scheme)


async def test_a_proxys_password_may_be_in_a_file_is_checked_and_shown_nowhere(
    tmp_path: Path, certificates: cloud.Pki, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    secret = tmp_path / "proxy-password"
    secret.write_text("wrong\n")
    async with http_proxy(tmp_path) as proxy, ingest_at(tmp_path / "cloud", certificates) as (_, make):
        uplink = make("wss", proxy=f"http://{USER}@127.0.0.1:{proxy.port}", proxy_password_file=secret)
        async with agents.running(tmp_path / "edge", uplink) as agent:
            await until(lambda: agent.agent.status().link.state == "offline")
            assert agent.agent.status().link.error == (
                "the proxy refuses: HTTP 407 Proxy Authentication Required; it wants another user or password; "
                "check [[uplink]] proxy"
            )
            secret.write_text(PASSWORD + "\n")  # no restart
            await until(lambda: agent.agent.status().link.state == "online")
            said = msgspec.json.encode(agent.agent.status()).decode()
            assert f"through http://127.0.0.1:{proxy.port}" in said
            assert PASSWORD not in said + caplog.text
            assert USER not in said + caplog.text

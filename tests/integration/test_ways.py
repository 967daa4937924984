"""The agent's ways to a real ingest: TLS, WebSockets and a proxy of other people's, which fails in the middle."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import pytest

from cloud_ingest import config
from cloud_ingest.app import Ingest
from edge_agent.config import ForwardSettings
from edge_agent.uplink_config import UplinkSettings
from tests.integration.cloud import gateway as cloud
from tests.integration.edge import agents
from tests.integration.edge.peer import GATEWAY, until
from tests.support.proxies import PASSWORD, USER, Proxy, http_proxy
from waybill.config import address

AUTH: Final = f"{USER}:{quote(PASSWORD, safe='')}"

Make = Callable[..., UplinkSettings]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> cloud.Pki:
    made = cloud.Pki(tmp_path_factory.mktemp("pki"))
    made.gateway(GATEWAY)
    return made


@contextlib.asynccontextmanager
async def ingest_at(data: Path, certificates: cloud.Pki) -> AsyncIterator[tuple[Ingest, Make]]:
    """Run an ingest with both listeners; yields it, and what makes an uplink to it."""
    settings = config.CloudConfig(
        data=str(data), listener=certificates.listener(), websocket=config.WebSocket("127.0.0.1:0")
    )
    bundle = certificates.directory / GATEWAY
    async with cloud.running(config.check(settings, data, "test")) as ingest:

        def make(scheme: str, **more: Any) -> UplinkSettings:
            listener = ingest.listener
            port = address(listener.websocket_address if scheme == "wss" else listener.address)[1]
            files = {"ca": bundle / "ca.pem", "certificate": bundle / "gateway.pem", "key": bundle / "gateway.key"}
            return UplinkSettings(f"{scheme}://127.0.0.1:{port}", **{"keepalive": 2, **files, **more})

        yield ingest, make


async def arrived(ingest: Ingest, count: int) -> list[int]:
    """Return the numbers that the messages are, in the order of their topic, once there are ``count``."""
    return [
        int((record.value or b"").split(b" ")[0]) for record in await cloud.records(ingest, "fleet.telemetry", count)
    ]


def numbered(first: int, last: int, size: int = 0) -> list[bytes]:
    return [b"%d " % number + bytes(size) for number in range(first, last + 1)]


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
        uplink = make("wss", certificate=bundle / "gateway.pem", key=bundle / "gateway.key")
        async with agents.running(tmp_path / "edge", uplink) as agent:
            await until(lambda: agent.agent.status().link.state == "offline")
        assert not ingest.listener.connected


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
async def test_a_proxy_that_is_killed_and_paused_in_the_middle_costs_no_message(
    tmp_path: Path, certificates: cloud.Pki, scheme: str
) -> None:
    forward = ForwardSettings(frame_messages=5, linger_ms=0)

    async def through(ingest: Ingest, proxy: Proxy, agent: agents.Running) -> None:
        state = agent.agent.status
        await agents.publish(agent.port, numbered(1, 100))
        await until(lambda: ingest.listener.intake.counters.journaled > 0)
        await proxy.kill()
        await agents.publish(agent.port, numbered(101, 200, 2000))
        refused = f"the proxy 127.0.0.1:{proxy.port} refuses the connection; check [[uplink]] proxy"
        await until(lambda: state().link.error == refused)
        await proxy.start()
        await until(lambda: state().link.state == "online")
        proxy.pause()
        await agents.publish(agent.port, numbered(201, 300, 2000))
        # A proxy that has stopped still acknowledges bytes: only MQTT's own ping finds out.
        await until(lambda: state().link.state == "offline")
        assert state().link.error == "no answer from the cloud within the keepalive"
        proxy.resume()
        await until(lambda: state().link.state == "online")
        await agents.publish(agent.port, numbered(301, 320))
        assert await arrived(ingest, 320) == list(range(1, 321))

    async with http_proxy(tmp_path) as proxy, ingest_at(tmp_path / "cloud", certificates) as (ingest, make):
        uplink = make(scheme, proxy=f"http://{AUTH}@127.0.0.1:{proxy.port}")
        async with agents.running(tmp_path / "edge", uplink, forward) as agent:
            await through(ingest, proxy, agent)


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

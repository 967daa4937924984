"""An agent in this process, a real ingest with both of its listeners, and what is between them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from cloud_ingest import config
from cloud_ingest.app import Ingest
from edge_agent.config import ForwardSettings
from edge_agent.uplink.config import UplinkSettings
from tests.integration.cloud import gateway as cloud
from tests.integration.edge import agents
from tests.integration.edge.peer import GATEWAY, until
from tests.support.proxies import Proxy
from waybill.config import address

Make = Callable[..., UplinkSettings]


@contextlib.asynccontextmanager
async def ingest_at(data: Path, certificates: cloud.Pki) -> AsyncIterator[tuple[Ingest, Make]]:
    """Run an ingest with both listeners; yields it, and what makes an uplink to it."""
    settings = config.CloudConfig(
        data=str(data), listener=certificates.listener(), websocket=config.WebSocket("127.0.0.1:0")
    )
    certificates.gateway(GATEWAY)
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
    """Return messages that are their number, and ``size`` bytes more."""
    return [b"%d " % number + bytes(size) for number in range(first, last + 1)]


async def through(proxy: Proxy, kind: str, make: Make, ingest: Ingest, data: Path, scheme: str) -> None:
    """Send through a proxy that is killed and paused in the middle: every message arrives once, and in order."""
    uplink = make(scheme, proxy=f"{kind}://{proxy.user}@127.0.0.1:{proxy.port}")
    async with agents.running(data, uplink, ForwardSettings(frame_messages=5, linger_ms=0)) as agent:
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

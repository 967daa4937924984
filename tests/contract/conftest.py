"""The logs and the engines that the suites run over."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloud_ingest.config import Topics
from cloud_ingest.journal.port import Log
from edge_agent.amqtt_engine import AmqttEngine
from edge_agent.config import AmqttSettings
from tests.support.engines import ENGINES, Site, Start
from tests.support.logs import PARTITIONS, make
from waybill.mqtt.server import MqttServer
from waybill.mqtt.settings import Hooks, Settings
from waybill.mqtt.testing import MemorySink


@pytest.fixture(params=["embedded", "kafka", "kafka-at-least-once"])
async def log(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> AsyncIterator[Log]:
    bootstrap = "" if request.param == "embedded" else request.getfixturevalue("kafka")
    made = make(request.param, unique, tmp_path, bootstrap)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def fleet(unique: str) -> str:
    return f"{unique}.fleet"


@pytest.fixture
def topics(unique: str) -> Topics:
    return Topics(prefix=f"{unique}.", partitions=PARTITIONS)


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def start(kind: str) -> AsyncIterator[Start]:
    """Start engines; all are closed at the end."""
    sites: list[Site] = []

    async def make(sink: MemorySink | None = None, settings: Settings | None = None, **deciding: Any) -> Site:
        sink, settings = sink or MemorySink(), settings or Settings()
        site = Site(None, sink, 0)  # type: ignore[arg-type] # it comes below
        hooks = Hooks(
            on_subscribed=lambda _client, pattern, _qos: site.subscribed.append(pattern),
            on_connected=lambda client: site.came.append(client.client_id),
            on_disconnected=lambda client, why: site.gone.append(f"{client.client_id}: {why}"),
            **deciding,
        )
        if kind == "amqtt":
            site.engine = AmqttEngine(AmqttSettings(), sink, settings, hooks)
        else:
            site.engine = MqttServer(sink, settings, hooks)
        await site.engine.start()
        _, site.port = await site.engine.listen("127.0.0.1", 0)
        sites.append(site)
        return site

    yield make
    for site in sites:
        site.sink.gate.set()
        await site.engine.close()
        for writer in site.writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.fixture
async def site(start: Start) -> Site:
    return await start()

"""An ingest behind an MQTT broker that it does not run, and what gateways and devices do there: any broker's test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiomqtt

from cloud_ingest import config
from cloud_ingest.app import Ingest
from cloud_ingest.external import External
from cloud_ingest.external_config import Broker
from tests.integration.cloud.gateway import Gateway, running, until
from waybill import wire

V5 = aiomqtt.ProtocolVersion.V5


def settings(data: Path, port: int, *, plain: Sequence[str] = (), **broker: Any) -> config.Settings:
    """Return the configuration of a node behind the broker on ``port`` of this machine."""
    front = Broker(f"mqtt://127.0.0.1:{port}", **{"client_id": "node-1", **broker})
    listener = config.Listener(mode="external", plain=tuple(plain), broker=front)
    return config.check(config.CloudConfig(str(data), listener=listener), data, "test")


@contextlib.asynccontextmanager
async def behind(asked: config.Settings) -> AsyncIterator[Ingest]:
    """Run such a node; it is subscribed."""
    async with running(asked) as ingest:
        await until(lambda: not ingest.listener.fault)
        yield ingest


def external(ingest: Ingest) -> External:
    """Return its front."""
    assert isinstance(ingest.listener, External)
    return ingest.listener


@contextlib.asynccontextmanager
async def gateway(port: int, name: str = "g1") -> AsyncIterator[Gateway]:
    """Connect a gateway to the broker, as the contract says for brokers of others: QoS 1 throughout (U1)."""
    will = aiomqtt.Will(wire.state_topic(name), b'{"state":"offline","reason":"connection lost"}', 1, retain=True)
    async with aiomqtt.Client("127.0.0.1", port, identifier=name, will=will, timeout=60) as client:
        one = Gateway(name, client)
        task = asyncio.create_task(one.listen())
        try:
            await client.subscribe(wire.ack_topic(name), qos=1)
            await client.subscribe(wire.down_topic(name), qos=1)
            await client.publish(wire.state_topic(name), b'{"state":"online","version":"9"}', qos=1, retain=True)
            yield one
        finally:
            await client.publish(wire.state_topic(name), b'{"state":"offline"}', qos=1, retain=True)
            task.cancel()
            await asyncio.wait({task})

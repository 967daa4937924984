"""C3 with real connections: what the presence topic says of gateways and devices, and what nodes make of each other."""

from __future__ import annotations

from pathlib import Path

import aiomqtt
import msgspec

from cloud_ingest import config
from cloud_ingest.app import Ingest
from cloud_ingest.following import following
from cloud_ingest.journal.port import CaughtUp
from cloud_ingest.presence import LEASE, Here
from cloud_ingest.presence_keeper import Keeper
from tests.integration.cloud.gateway import connected, running, until
from tests.integration.cloud.test_devices import client, settings
from tests.support.gateway import Epoch
from waybill import wire
from waybill.frames import encode_plain
from waybill.wire import DevicePresence


async def told(ingest: Ingest) -> dict[str, Here]:
    """What the compacted topic says."""
    found: dict[str, Here] = {}
    async with following(ingest.log, ["waybill.presence"], end=True) as records:
        async for record in records:
            if isinstance(record, CaughtUp):
                continue
            assert record.key is not None
            if record.value is None:
                found.pop(record.key.decode(), None)
            else:
                found[record.key.decode()] = msgspec.json.decode(record.value, type=Here)
    return found


async def waits(ingest: Ingest, key: str, state: str) -> Here:
    """Wait until the topic says ``state`` of ``key``."""
    while True:
        here = (await told(ingest)).get(key)
        if here is not None and here.state == state:
            return here


async def test_c3_gateways_come_and_go_with_their_reasons(tmp_path: Path) -> None:
    async with running(config.first_look("127.0.0.1:0", tmp_path / "data")) as ingest:
        async with connected(ingest, "g1", None) as gateway:
            here = await waits(ingest, "g1", "online")
            assert (here.gateway, here.node, bool(here.connection)) == ("g1", ingest.frames.name, True)
            assert here.address.startswith("127.0.0.1:")
            await gateway.client.publish(wire.state_topic("g1"), b'{"state":"online","version":"9"}', qos=1)
            await until(lambda: ingest.listener.connected["g1"].state)
            await gateway.client.publish(
                wire.state_topic("g1"), b'{"state":"offline","reason":"the agent stops"}', qos=1
            )
        gone = await waits(ingest, "g1", "offline")
        assert (gone.connection, gone.reason, gone.version) == (here.connection, "the agent stops", "9")
        async with connected(ingest, "g1", None):
            again = await waits(ingest, "g1", "online")
            assert again.connection != here.connection
            ingest.listener.end("g1", "a test")
            assert (await waits(ingest, "g1", "offline")).reason == "a test"


async def test_c3_devices_without_a_gateway(tmp_path: Path) -> None:
    async with running(settings(tmp_path / "data")) as ingest:
        async with client(ingest):
            assert (await waits(ingest, "/V7", "online")).device == "V7"
        assert (await waits(ingest, "/V7", "offline")).reason == ""


async def test_c3_devices_behind_a_gateway(tmp_path: Path) -> None:
    """As the gateway reports them, in the order of its control lane."""
    said = [
        DevicePresence("V7", "online", 5),
        DevicePresence("V7", "offline", 6, "keepalive"),
        DevicePresence("", "online", 7),
    ]
    data = encode_plain(
        epoch=1,
        prev_epoch=0,
        prev_last=0,
        oldest_epoch=1,
        lane="control",
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=1,
        base_ms=1,
        sources=[(wire.PRESENCE_TOPIC, "")],
        rows=[(0, 0, 1, msgspec.json.encode(each), b"") for each in said],
    )
    async with running(config.first_look("127.0.0.1:0", tmp_path / "data")) as ingest:
        async with connected(ingest, "g1", None) as gateway:
            await gateway.send(data, Epoch(2).frame(1, 1))
            here = await waits(ingest, "g1/V7", "offline")
        assert (here.gateway, here.device, here.at_ms, here.reason) == ("g1", "V7", 6, "keepalive")


async def test_c3_a_gateway_that_connects_to_another_node_loses_its_first_connection(tmp_path: Path) -> None:
    async with running(config.first_look("127.0.0.1:0", tmp_path / "data")) as ingest:
        other = Keeper(ingest.log, "waybill.presence", "node:other")
        async with connected(ingest, "g1", None) as gateway:
            await waits(ingest, "g1", "online")
            other.came(gateway="g1")
            await other._write()
            await until(gateway.closed.is_set)
            await until(lambda: not ingest.listener.connected)
        here = (await told(ingest))["g1"]
        assert (here.state, here.node) == ("online", "node:other")


async def test_c3_a_node_that_vanished_is_noticed(tmp_path: Path) -> None:
    async with running(config.first_look("127.0.0.1:0", tmp_path / "data")) as ingest:
        gone = Keeper(ingest.log, "waybill.presence", "node:zz")
        gone.came(gateway="g7", version="9")
        gone._core.renew(1)
        await gone._write()
        core = ingest.presence._core
        await until(lambda: "node:zz" in core._leases)
        core._leases["node:zz"] -= LEASE + 1
        here = await waits(ingest, "g7", "offline")
        assert (here.node, here.reason) == ("node:zz", "its node is gone")
        await until(lambda: "node:zz" not in core._leases)


async def test_an_orderly_end_says_who_has_gone_and_gives_the_lease_up(tmp_path: Path) -> None:
    asked = config.first_look("127.0.0.1:0", tmp_path / "data")
    host = aiomqtt.Client
    async with running(asked) as ingest:
        name = ingest.frames.name
        _, _, port = ingest.listener.address.rpartition(":")
        async with host("127.0.0.1", int(port), identifier="g1", timeout=60):
            await waits(ingest, "g1", "online")
            await waits(ingest, name, "online")
    async with running(asked) as ingest:
        found = await told(ingest)
        assert found["g1"].state == "offline"
        assert name not in found

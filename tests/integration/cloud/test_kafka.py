"""The ingest on a real Kafka: the same path, and a Kafka that is away."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import msgspec
import pytest

from cloud_ingest import config
from cloud_ingest.app import Ingest
from cloud_ingest.journal.port import OutRecord
from cloud_ingest.presence import Here
from deploy.kafka.cluster import Cluster
from tests.integration.cloud.gateway import Gateway, Pki, connected, frame, records, running, span, status_frame, until
from waybill.wire import CONTROL_LANE, CommandStatus


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def settings_of(bootstrap: str, name: str, data: Path, certificates: Pki) -> config.Settings:
    table = {
        "kind": "kafka",
        "bootstrap.servers": bootstrap,
        "session.timeout.ms": 6000,
        "request.timeout.ms": 3000,
        "delivery.timeout.ms": 3000,
    }
    return config.check(
        config.CloudConfig(
            data=str(data),
            deployment=name,
            listener=certificates.listener(),
            log=table,
            topics=config.Topics(prefix=f"{name}.", partitions=2),
            route=(config.Route(topic=f"{name}.fleet"),),
        ),
        data,
        "test",
    )


async def resent(gateway: Gateway, seq: int) -> None:
    """Send a frame as often as it is answered ``retry``, as a gateway does."""
    async with asyncio.timeout(180):
        while True:
            await gateway.send(frame(seq))
            ack = await gateway.ack()
            if ack.journaled == (span(seq, seq),):
                return
            assert ack.retry == (span(seq, seq),)
            await asyncio.sleep(0.5)


async def test_frames_and_commands_through_kafka(kafka: str, unique: str, tmp_path: Path, certificates: Pki) -> None:
    async with running(settings_of(kafka, unique, tmp_path, certificates)) as ingest:
        await until(lambda: ingest.snapshot().state == "running", 120)
        async with connected(ingest, "g1", certificates.gateway("g1")) as gateway:
            for first in range(1, 100, 10):
                await gateway.send(frame(first, 10), frame(first, 10))
            await gateway.journaled(1, 100)
            found = await records(ingest, f"{unique}.fleet", 100)
            assert [one.value for one in found] == [b'{"n":%d}' % n for n in range(1, 101)]

            expires_ms = time.time_ns() // 1_000_000 + 60_000
            fields = {"id": "c1", "gateway": "g1", "device": "V1", "name": "lock", "expires_at": expires_ms}
            await ingest.log.append(OutRecord(f"{unique}.waybill.commands", b"g1", json.dumps(fields).encode(), []))
            assert (await gateway.envelope()).id == "c1"
            await gateway.send(status_frame(1, CommandStatus("c1", "g1", "V1", "delivered", 1)))
            await gateway.journaled(1, 1, CONTROL_LANE)
            (status,) = await records(ingest, f"{unique}.waybill.command-status", 1)
            assert status.key == b"c1"
            await until(lambda: ingest.dispatcher.open == 0)


async def test_kafka_away_at_the_start_and_later_is_retried_and_then_journaled(
    tmp_path: Path, certificates: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    """U4: gateways can connect and get ``retry``; when Kafka is there the same frame is journaled, once."""
    cluster = await asyncio.to_thread(Cluster.start, tmp_path / "kafka", bound=True)
    try:
        cluster.kill(1)
        async with running(settings_of(cluster.bootstrap, "away", tmp_path / "data", certificates)) as ingest:
            shot = ingest.snapshot()
            assert shot.state == "waiting"
            assert cluster.bootstrap.split(",")[0] in shot.fault
            async with connected(ingest, "g1", certificates.gateway("g1")) as gateway:
                await gateway.send(frame())
                assert (await gateway.ack()).retry == (span(1, 1),)
                await asyncio.to_thread(cluster.up)
                await until(lambda: ingest.snapshot().state == "running", 120)
                await resent(gateway, 1)
                assert len(await records(ingest, "away.fleet", 1)) == 1

                cluster.kill(1)
                await gateway.send(frame(2))
                assert (await gateway.ack()).retry == (span(2, 2),)
                await asyncio.to_thread(cluster.up)
                await resent(gateway, 2)
                assert len(await records(ingest, "away.fleet", 2)) == 2
        assert "Traceback" not in caplog.text
    finally:
        await asyncio.to_thread(cluster.stop, seconds=0)


async def test_c3_two_nodes_on_one_kafka_and_a_gateway_that_moves(
    kafka: str, unique: str, tmp_path: Path, certificates: Pki
) -> None:
    """The second node's connection is the current one, although the first node still holds an older one."""
    context = certificates.gateway("g1")
    async with (
        running(settings_of(kafka, unique, tmp_path / "1", certificates)) as first,
        running(settings_of(kafka, unique, tmp_path / "2", certificates)) as second,
    ):
        for each in (first, second):
            await until(lambda: each.snapshot().state == "running", 120)  # noqa: B023 - called at once
        async with connected(first, "g1", context) as old:
            await at(first, "g1", first.frames.name)
            async with connected(second, "g1", context) as new:
                async with asyncio.timeout(180):
                    await old.closed.wait()
                await new.send(frame())
                await new.journaled(1, 1)
                assert (await at(first, "g1", second.frames.name)).state == "online"
                assert list(second.listener.connected) == ["g1"]


async def at(ingest: Ingest, key: str, node: str) -> Here:
    """Wait until the topic's newest record of ``key`` is of ``node``, and return it."""
    async with asyncio.timeout(180):
        while True:
            found = await records(ingest, ingest._settings.config.topics.presence, 1)
            mine = [each.value for each in found if each.key == key.encode() and each.value]
            if mine and (here := msgspec.json.decode(mine[-1], type=Here)).node == node:
                return here
            await asyncio.sleep(0.05)

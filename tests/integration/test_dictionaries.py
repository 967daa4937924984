"""R10 end to end: an agent and an ingest, both started anew, go on with one dictionary, every message once."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from cloud_ingest import config
from cloud_ingest.app import Ingest
from cloud_ingest.journal.embedded import EmbeddedLog
from cloud_ingest.router import worker
from cloud_ingest.router.state import Limits
from edge_agent.config import ForwardSettings
from edge_agent.forward import dictionaries, training
from edge_agent.uplink.config import UplinkSettings
from tests.integration.cloud import gateway as cloud
from tests.integration.edge.agents import publish, running
from tests.integration.edge.peer import until
from waybill.frames import read_header


def payloads(first: int, count: int) -> list[bytes]:
    return [
        b'{"ts":%d,"vin":"WVWZZZ1JZ00000001","speed":%.2f,"door":"closed"}' % (1_790_000_000_000 + n, n / 7)
        for n in range(first, first + count)
    ]


def uplink(ingest: Ingest) -> UplinkSettings:
    return UplinkSettings(f"mqtt://{ingest.listener.address}")


async def test_r10_one_dictionary_over_restarts_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "FEWEST", 20)
    monkeypatch.setattr(training, "LOOK", 0.02)
    forward = ForwardSettings(linger_ms=0, frame_messages=3)
    settings, sent, ids = config.first_look("127.0.0.1:0", tmp_path / "cloud"), 0, set[int]()
    for _ in range(2):
        async with cloud.running(settings) as ingest:
            for _ in range(2):
                async with running(tmp_path / "edge", uplink(ingest), forward) as agent:
                    known = agent.agent._forwarder.dictionaries
                    async with asyncio.timeout(60):
                        while known.counters.used < 10:
                            await publish(agent.port, payloads(sent, 20))
                            sent += 20
                    assert known.current is not None
                    ids.add(known.current.id)
                    await until(lambda: agent.waiting() == 0)
            found = await cloud.records(ingest, "fleet.telemetry", sent)
            assert [record.value for record in found] == payloads(0, sent)
            stored = await cloud.records(ingest, "waybill.dictionaries", 1)
            assert [record.key for record in stored] == [f"gw1/{number}".encode() for number in ids]


@pytest.mark.parametrize("named", [True, False])
async def test_r10_a_cloud_that_was_wiped_loses_nothing_of_an_agent_that_stays(
    named: bool,  # noqa: FBT001
    free_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dictionaries, "FEWEST", 20)
    monkeypatch.setattr(dictionaries, "AGAIN", 0.0)
    monkeypatch.setattr(training, "LOOK", 0.02)
    monkeypatch.setattr(worker, "Limits", lambda: Limits(hold_ms=200))
    if not named:
        monkeypatch.setattr(EmbeddedLog, "log_id", 0)
    forward = ForwardSettings(linger_ms=0, frame_messages=3)
    sent = 0
    address = f"127.0.0.1:{free_port}"
    async with cloud.running(config.first_look(address, tmp_path / "cloud")) as ingest:
        stack = contextlib.AsyncExitStack()
        agent = await stack.enter_async_context(running(tmp_path / "edge", uplink(ingest), forward))
        known = agent.agent._forwarder.dictionaries
        async with asyncio.timeout(60):
            while known.counters.used < 10:
                await publish(agent.port, payloads(sent, 20))
                sent += 20
        await until(lambda: agent.waiting() == 0)
        # What is in the window from here on was encoded for a cloud that goes away.
        ingest.listener.intake._closed = lambda: "about to be wiped"
        await publish(agent.port, payloads(sent, 20))
        window = agent.agent._forwarder.window
        await until(lambda: any(read_header(each.data).dictionary for each in window.frames("telemetry")))
    async with stack, cloud.running(config.first_look(address, tmp_path / "wiped")) as ingest:
        await publish(agent.port, payloads(sent + 20, 40))
        await until(lambda: agent.waiting() == 0)
        if named:
            used = known.counters.used
            await until(lambda: known.usable("telemetry") is not None)
            await publish(agent.port, payloads(sent + 60, 20))
            await until(lambda: agent.waiting() == 0)
            assert known.counters.used > used
        count = 60 + 20 * named
        found = await cloud.records(ingest, "fleet.telemetry", count)
        assert [record.value for record in found] == payloads(sent, count)
        assert await cloud.records(ingest, "waybill.dlq", 0) == []

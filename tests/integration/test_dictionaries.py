"""R10 end to end: an agent and an ingest, both started anew, go on with one dictionary, every message once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_ingest import config
from cloud_ingest.app import Ingest
from edge_agent.config import ForwardSettings
from edge_agent.forward import dictionaries, training
from edge_agent.uplink.config import UplinkSettings
from tests.integration.cloud import gateway as cloud
from tests.integration.edge.agents import publish, running
from tests.integration.edge.peer import until


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
                    while known.counters.used < 10:
                        assert sent < 5_000
                        await publish(agent.port, payloads(sent, 20))
                        sent += 20
                    assert known.current is not None
                    ids.add(known.current.id)
                    await until(lambda: agent.waiting() == 0)
            found = await cloud.records(ingest, "fleet.telemetry", sent)
            assert [record.value for record in found] == payloads(0, sent)
            stored = await cloud.records(ingest, "waybill.dictionaries", 1)
            assert [record.key for record in stored] == [f"gw1/{number}".encode() for number in ids]

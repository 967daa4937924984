"""C1 end to end on the embedded log: a record on waybill.commands reaches its gateway, and its states come back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_ingest import config
from cloud_ingest.app import Ingest
from cloud_ingest.journal.port import OutRecord
from tests.integration.cloud.gateway import Gateway, connected, records, running, status_frame, until
from waybill.wire import CONTROL_LANE, CommandStatus, Envelope


@pytest.fixture
async def ingest(tmp_path: Path) -> AsyncIterator[Ingest]:
    async with running(config.first_look("127.0.0.1:0", tmp_path / "data")) as one:
        yield one


async def write(ingest: Ingest, id_: str, *, seconds: float = 60.0, **changes: Any) -> int:
    """Write a command; return its expiry."""
    expires_ms = time.time_ns() // 1_000_000 + int(seconds * 1000)
    fields = {"id": id_, "gateway": "g1", "device": "V1", "name": "lock", "payload": [1], "expires_at": expires_ms}
    value = json.dumps(fields | changes).encode()
    await ingest.log.append(OutRecord("waybill.commands", b"g1", value, []))
    return expires_ms


async def report(gateway: Gateway, first: int, id_: str, state: Any, result: bytes | None = None) -> None:
    """Report a state as the gateway does, and wait for the ack."""
    await gateway.send(status_frame(first, CommandStatus(id_, "g1", "V1", state, 5, result)))
    await gateway.journaled(first, first, CONTROL_LANE)


async def states(ingest: Ingest, count: int) -> list[tuple[str, str]]:
    found = await records(ingest, "waybill.command-status", count)
    decoded = [msgspec.json.decode(one.value or b"", type=CommandStatus) for one in found]
    assert [one.key for one in found] == [one.id.encode() for one in decoded]
    return [(one.id, one.state) for one in decoded]


async def test_c1_a_command_reaches_its_gateway_and_its_states_come_back(ingest: Ingest) -> None:
    async with connected(ingest, "g1", None) as gateway:
        expires_ms = await write(ingest, "c1")
        assert await gateway.envelope() == Envelope("c1", "command", "V1", "lock", b"[1]", expires_ms)
        await report(gateway, 1, "c1", "delivered")
        await report(gateway, 2, "c1", "done", b'{"ok":true}')
        assert await states(ingest, 2) == [("c1", "delivered"), ("c1", "done")]
        await until(lambda: ingest.dispatcher.open == 0)


async def test_c1_what_was_written_before_the_gateway_came_is_sent_when_it_listens(ingest: Ingest) -> None:
    await write(ingest, "c1")
    await write(ingest, "c2", gateway="g2")
    await write(ingest, "c3")
    await until(lambda: ingest.dispatcher.open == 3)
    async with connected(ingest, "g1", None) as gateway:
        assert [(await gateway.envelope()).id for _ in range(2)] == ["c1", "c3"]


async def test_c1_sent_again_until_delivered_was_read(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_ingest.commands.FIRST_PAUSE", 0.1)
    async with connected(ingest, "g1", None) as gateway:
        await write(ingest, "c1")
        assert [(await gateway.envelope()).id for _ in range(3)] == ["c1", "c1", "c1"]
        await report(gateway, 1, "c1", "delivered")
        await until(lambda: ingest.dispatcher.open == 0)
        sent = ingest.dispatcher.counters.sent
        await asyncio.sleep(1.5)
        assert ingest.dispatcher.counters.sent == sent


async def test_c1_a_restarted_node_knows_what_was_delivered(tmp_path: Path) -> None:
    settings = config.first_look("127.0.0.1:0", tmp_path / "data")
    async with running(settings) as ingest, connected(ingest, "g1", None) as gateway:
        await write(ingest, "c1")
        await write(ingest, "c2")
        assert {(await gateway.envelope()).id for _ in range(2)} == {"c1", "c2"}
        await report(gateway, 1, "c1", "delivered")
        await states(ingest, 1)
    async with running(settings) as ingest, connected(ingest, "g1", None) as gateway:
        assert (await gateway.envelope()).id == "c2"
        assert gateway.envelopes.empty()


async def test_c1_a_command_that_nobody_took_expires_and_a_malformed_one_is_rejected(ingest: Ingest) -> None:
    await write(ingest, "late", seconds=0.5)
    await write(ingest, "bad", name="")
    assert sorted(await states(ingest, 2)) == [("bad", "rejected"), ("late", "expired")]
    async with connected(ingest, "g1", None) as gateway:
        await write(ingest, "c1")
        assert (await gateway.envelope()).id == "c1"

"""What ``waybill edge plan`` says of disk and card, held against a real disk: within 40 %."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_agent.buffer.port import Commit
from edge_agent.flash import Flash
from edge_agent.setup.sizing import Given, Message, sizing
from tests.support.buffer import SMALL, chunk, open_sqlite
from tests.support.loop_disk import loop_disk

pytestmark = pytest.mark.system

MESSAGES = 2000


@pytest.mark.parametrize(("together", "size"), [(1, 100), (1, 1000), (10, 200), (100, 200)])
async def test_stored_and_written(tmp_path: Path, together: int, size: int) -> None:
    payloads = [os.urandom(size) for _ in range(MESSAGES)]
    with loop_disk(tmp_path, 96) as disk:
        buffer = await open_sqlite(disk.path / "data", SMALL)
        flash, (before, _) = Flash(0.0), await buffer.space()
        for at in range(0, MESSAGES, together):
            await buffer.commit(Commit([chunk(*payloads[at : at + together])]))
        stored = ((await buffer.space())[0] - before) / MESSAGES
        state = flash.state(1.0, MESSAGES)
        await buffer.close()
    assert state is not None
    assert state.per_message is not None
    given = Given(
        rate=1.0, devices=1, gather_ms=(together - 1) * 1000, max_bytes=1 << 30, frame_messages=1, linger_ms=200,
        ping_s=14, outage_s=1.0, tbw=1.0,
    )  # fmt: skip
    said = sizing(given, [Message("vehicles/V7/telemetry", payload) for payload in payloads[:10]])
    assert said.stored_message == pytest.approx(stored, rel=0.4)
    assert said.written_message / 1.1 == pytest.approx(state.per_message, rel=0.4)

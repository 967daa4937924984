"""Rows whose columns are not what they were, in a file that SQLite finds nothing wrong with."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from edge_agent.buffer.connection import checkpoint
from edge_agent.buffer.port import Commit
from edge_agent.buffer.sqlite import SqliteBuffer
from tests.support.buffer import chunk, commit, drain, messages, open_sqlite, payloads, span_of
from waybill.wire import CONTROL_LANE, TELEMETRY_LANE, Receipt, Span

SENT = [b"%d.%d" % (block, number) for block in range(6) for number in range(3)]
"""Six blocks of three messages, seqs 1..18."""


async def filled(path: Path, *settled: tuple[int, int]) -> int:
    """Leave a closed buffer with SENT, parts of it settled; return its epoch."""
    buffer = await open_sqlite(path)
    for at in range(0, len(SENT), 3):
        await buffer.commit(commit(*SENT[at : at + 3]))
    await buffer.settle([Span(buffer.epoch, TELEMETRY_LANE, *each) for each in settled])
    await buffer.close()
    return buffer.epoch


def change(path: Path, what: str, first: int) -> None:
    """Change the row of the block that begins with seq ``first``."""
    with closing(sqlite3.connect(path / "buffer.db")) as db, db:
        assert db.execute(f"UPDATE blocks SET {what} WHERE first = ?", (first,)).rowcount == 1


async def declared(buffer: SqliteBuffer) -> set[int]:
    found = [each for each in messages(await drain(buffer, CONTROL_LANE)) if each.topic == "$waybill/receipt"]
    receipts = [msgspec.json.decode(each.payload, type=Receipt) for each in found]
    return {seq for each in receipts if each.lane == TELEMETRY_LANE for seq in range(each.first, each.last + 1)}


@pytest.mark.parametrize("column", ["ordinal", "first", "count", "bytes", "wall_ms"])
async def test_b6_a_number_that_is_none_is_found_at_the_start_and_the_rest_is_saved(
    tmp_path: Path, column: str
) -> None:
    await filled(tmp_path)
    change(tmp_path, f"{column} = 'x'", 7)
    buffer = await open_sqlite(tmp_path)
    assert "buffer.db was damaged and is left as it is" in buffer.alarm
    assert await payloads(buffer) == SENT[:6] + SENT[9:]
    assert await declared(buffer) == {7, 8, 9}
    await buffer.close()


@pytest.mark.parametrize("what", ["lanes SET last = 'x'", "epochs SET boot = x'00'", "resend SET frozen = 1"])
async def test_b6_a_table_with_a_value_of_another_type_is_found_at_the_start(tmp_path: Path, what: str) -> None:
    buffer = await open_sqlite(tmp_path)
    await buffer.commit(Commit([chunk(*SENT, pid=1)]))
    await buffer.close()
    await (await open_sqlite(tmp_path)).close()
    with closing(sqlite3.connect(tmp_path / "buffer.db")) as db, db:
        assert db.execute(f"UPDATE {what}").rowcount
    buffer = await open_sqlite(tmp_path)
    assert "buffer.db was damaged and is left as it is" in buffer.alarm
    assert await payloads(buffer) == SENT
    await buffer.close()


async def test_b6_head_and_body_that_became_texts_are_read_as_they_are(tmp_path: Path) -> None:
    await filled(tmp_path)
    change(tmp_path, "head = CAST(head AS TEXT), body = CAST(body AS TEXT)", 7)
    buffer = await open_sqlite(tmp_path)
    assert await payloads(buffer) == SENT
    await drain(buffer, settle=True)
    await buffer.close()


@pytest.mark.parametrize(
    "what", ["crc = 'x'", "head = 'x'", "body = CAST(x'fffe' AS TEXT)", "lane = CAST(x'ff' AS TEXT)"]
)
async def test_b6_a_row_that_is_not_what_it_was_costs_its_own_messages_alone(tmp_path: Path, what: str) -> None:
    await filled(tmp_path)
    change(tmp_path, what, 7)
    buffer = await open_sqlite(tmp_path)
    await buffer.restore()
    assert await payloads(buffer) == SENT[:6] + SENT[9:]
    assert await declared(buffer) == {7, 8, 9}
    await buffer.close()


@pytest.mark.parametrize("what", ["count = 2", "count = 1", "count = 67", "first = 8", "first = 5"])
async def test_b6_what_a_block_held_whose_place_is_damaged_is_known_from_its_neighbours(
    tmp_path: Path, what: str
) -> None:
    await filled(tmp_path)
    change(tmp_path, what, 7)
    buffer = await open_sqlite(tmp_path)
    there = await drain(buffer)
    lost = await declared(buffer)
    assert {message.payload for message in messages(there)} == set(SENT[:6] + SENT[9:])
    assert {7, 8, 9} <= lost
    assert not lost & {seq for each in there for seq in range(each.first, span_of(each).last + 1)} - {4, 5, 6}
    await buffer.close()


async def test_b6_beside_a_block_whose_count_is_damaged_what_was_settled_is_not_lost_as_far_as_is_known(
    tmp_path: Path,
) -> None:
    await filled(tmp_path, (1, 6), (13, 15))
    change(tmp_path, "count = 2", 7)
    buffer = await open_sqlite(tmp_path)
    assert await payloads(buffer) == [*SENT[9:12], *SENT[15:]]
    assert await declared(buffer) == {7, 8, 9}
    await buffer.close()


async def test_b5_what_a_damaged_receipt_declared_is_declared_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    epoch = await filled(tmp_path, (1, 3))
    buffer = await open_sqlite(tmp_path)
    await buffer.give_up(Receipt(epoch, TELEMETRY_LANE, 0, 0, 7, 9, 3, 9, "evicted: full"))
    await buffer.close()
    with closing(sqlite3.connect(tmp_path / "buffer.db")) as db, db:
        assert db.execute("UPDATE blocks SET body = zeroblob(length(body)) WHERE lane = 'control'").rowcount == 1
    buffer = await open_sqlite(tmp_path)
    assert buffer.alarm == ""
    assert await declared(buffer) == {7, 8, 9}
    assert await payloads(buffer) == SENT[3:6] + SENT[9:]
    assert "up to 1 messages that were acknowledged to devices are lost and declared" in buffer.alarm
    assert "messages 1 to 1 of lane control, damaged: checksum" in caplog.text
    await buffer.close()


async def test_b5_losses_of_a_file_that_is_removed_from_a_running_agent_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = await open_sqlite(tmp_path)
    await buffer.commit(commit(*SENT))
    await buffer.settle([Span(buffer.epoch, TELEMETRY_LANE, 1, 2)])
    await buffer.give_up(Receipt(buffer.epoch, TELEMETRY_LANE, 0, 0, 5, 6, 2, 9, "evicted: full"))
    await buffer._engine.read(lambda db: checkpoint(db, "TRUNCATE"))
    buffer.path.unlink()
    await buffer.commit(commit(b"later"))
    assert await payloads(buffer) == [b"later"]
    assert await declared(buffer) == set(range(3, 19))  # 5 and 6 again, since their receipt went, too
    assert "since the start up to 15 messages that were acknowledged to devices are lost and declared" in buffer.alarm
    assert (
        "the buffer's file was damaged: up to 15 messages that were acknowledged to devices are lost and declared"
        in caplog.text
    )
    await buffer.close()

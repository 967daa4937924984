"""What only the buffer on SQLite has: its pragmas, transactions, blocks, log, epochs table, counters of memory."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge_agent.buffer import reader, sqlite, vacuum
from edge_agent.buffer.blocks import BLOCK_BYTES, parse
from edge_agent.buffer.index import Tail
from edge_agent.buffer.port import Commit
from edge_agent.buffer.settings import BufferSettings
from edge_agent.buffer.sqlite import SqliteBuffer
from tests.support.buffer import chunk, commit, drain, messages, open_sqlite, payloads, span_of, until
from waybill.mqtt.resend import entries_of
from waybill.mqtt.state import ResendFrozen
from waybill.wire import TELEMETRY_LANE, Receipt, Span


@pytest.fixture
async def buffer(tmp_path: Path) -> AsyncIterator[SqliteBuffer]:
    opened = await open_sqlite(tmp_path)
    yield opened
    await opened.close()


async def asked(buffer: SqliteBuffer, sql: str) -> list[Any]:
    return await buffer._engine.read(lambda db: db.execute(sql).fetchall())


async def test_b1_the_log_is_synced_at_every_commit_and_nobody_else_gets_in(
    buffer: SqliteBuffer, tmp_path: Path
) -> None:
    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,
        "locking_mode": "exclusive",
        "wal_autocheckpoint": 0,
        "auto_vacuum": 2,
        "secure_delete": 0,
    }
    found = {name: (await asked(buffer, f"PRAGMA {name}"))[0][0] for name in wanted}
    assert found == wanted
    with closing(sqlite3.connect(tmp_path / "buffer.db", timeout=0)) as other, pytest.raises(sqlite3.OperationalError):
        other.execute("SELECT * FROM blocks").fetchall()


async def test_d1_a_commit_is_one_transaction_and_one_block_a_lane(buffer: SqliteBuffer) -> None:
    before = buffer.counters.transactions
    await buffer.commit(Commit([chunk(b"1"), chunk(b"x", lane="other"), chunk(b"2", client="d"), chunk(b"3")]))
    assert buffer.counters.transactions == before + 1
    assert await asked(buffer, "SELECT lane, first, count FROM blocks ORDER BY id") == [
        (TELEMETRY_LANE, 1, 3),
        ("other", 1, 1),
    ]
    assert [(each.client, each.payload) for each in messages(await drain(buffer))] == [
        ("c", b"1"),
        ("d", b"2"),
        ("c", b"3"),
    ]


async def test_d1_a_very_large_commit_is_several_blocks(buffer: SqliteBuffer) -> None:
    chunks = [chunk(b"%d" % at + b"x" * 100_000) for at in range(30)]
    await buffer.commit(Commit(chunks))
    sizes = await asked(buffer, "SELECT length(body) FROM blocks")
    assert len(sizes) == 3
    assert all(size <= BLOCK_BYTES for (size,) in sizes)
    assert len(await payloads(buffer)) == 30


async def test_settling_goes_with_the_next_commit(buffer: SqliteBuffer) -> None:
    await buffer.commit(commit(b"1"))
    await buffer.commit(commit(b"2"))
    before = buffer.counters.transactions
    await buffer.settle([Span(buffer.epoch, TELEMETRY_LANE, 1, 1)])
    await buffer.settle([Span(buffer.epoch, TELEMETRY_LANE, 2, 2)])
    await buffer.commit(commit(b"3"))
    assert buffer.counters.transactions == before + 1
    assert await asked(buffer, "SELECT first FROM blocks") == [(3,)]
    assert buffer._engine.leaving == []


async def test_settling_is_not_delayed_long(buffer: SqliteBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "SETTLE_DELAY", 0.01)
    await buffer.commit(commit(b"1"))
    for number in range(2, 5):
        await buffer.commit(commit(b"%d" % number))
        await buffer.settle([Span(buffer.epoch, TELEMETRY_LANE, 1, number)])
        await until(lambda number=number: buffer.counters.blocks_deleted == number)  # type: ignore[misc]
    assert await asked(buffer, "SELECT count(*) FROM blocks") == [(0,)]


async def test_u4_giving_up_is_one_transaction(buffer: SqliteBuffer) -> None:
    await buffer.commit(commit(b"1"))
    before = buffer.counters.transactions
    await buffer.give_up(Receipt(buffer.epoch, TELEMETRY_LANE, 0, 0, 1, 1, 1, 1, "refused"))
    assert buffer.counters.transactions == before + 1
    assert await asked(buffer, "SELECT lane FROM blocks") == [("control",)]


async def test_what_was_settled_is_deleted_at_the_close(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path)
    await buffer.commit(commit(b"1"))
    await drain(buffer, settle=True)
    await buffer.close()
    assert not (tmp_path / "buffer.db-wal").exists()
    with closing(sqlite3.connect(tmp_path / "buffer.db")) as db:
        assert db.execute("SELECT count(*) FROM blocks").fetchone() == (0,)


async def test_a_block_settled_in_pieces_and_out_of_order_goes_with_its_last_piece(buffer: SqliteBuffer) -> None:
    for first in (1, 6, 11):
        await buffer.commit(commit(*[b"%d" % each for each in range(first, first + 5)]))
    for first, last, left in ((8, 12, 3), (1, 2, 3), (7, 7, 3), (4, 6, 2), (13, 15, 1), (3, 3, 0)):
        await buffer.settle([Span(buffer.epoch, TELEMETRY_LANE, first, last)])
        await buffer.commit(Commit())
        assert await asked(buffer, "SELECT count(*) FROM blocks") == [(left,)]
    assert await payloads(buffer) == []


async def test_the_log_is_moved_into_the_database_before_it_grows(
    buffer: SqliteBuffer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffer._engine._upkeep, "_log_bytes", 200_000)
    for number in range(60):
        await buffer.commit(commit(b"%d" % number + b"x" * 20_000))
    assert (tmp_path / "buffer.db-wal").stat().st_size < 600_000
    assert len(await payloads(buffer)) == 60


async def test_space_goes_back_to_the_file_system_while_the_agent_runs(
    buffer: SqliteBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacuum, "KEEP", 400_000)
    monkeypatch.setattr(vacuum, "SLICE", 50)
    monkeypatch.setattr(sqlite, "SETTLE_DELAY", 0.01)
    for number in range(200):
        await buffer.commit(commit(b"%d" % number + b"x" * 20_000))
    log = buffer.path.with_name("buffer.db-wal")
    assert buffer.path.stat().st_size + log.stat().st_size > 4_000_000
    leases = await drain(buffer, count=1)
    await buffer.settle([span_of(lease) for lease in leases[:-5]])
    await until(lambda: log.stat().st_size == 0)  # the last thing that it does
    kept = sum(len(message.payload) for message in messages(leases[-5:]))
    assert buffer.path.stat().st_size < kept + 400_000
    assert await asked(buffer, "PRAGMA freelist_count") > [(20,)]  # some stay for what comes
    assert await payloads(buffer) == [message.payload for message in messages(leases[-5:])]


async def test_draining_parses_each_chunk_once(buffer: SqliteBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        await buffer.commit(Commit([chunk(*[b"%d.%d" % (number, each)] * 50) for each in range(40)]))
    parsed: list[int] = []
    fetched: list[int] = []
    load = reader.Reader._load

    def counted(*args: Any) -> Any:
        parsed.append(args[0].count)
        return parse(*args)

    def loaded(*args: Any) -> Any:
        fetched.append(args[2][1])
        return load(*args)

    monkeypatch.setattr("edge_agent.buffer.reader.parse", counted)
    monkeypatch.setattr(reader.Reader, "_load", loaded)
    assert len(messages(await drain(buffer, count=30))) == 8000
    assert len(parsed) == 160
    assert len(fetched) == 4


async def test_a_lease_behind_an_earlier_one_reads_again(buffer: SqliteBuffer) -> None:
    for number in range(3):
        await buffer.commit(commit(b"%d" % number, b"%d'" % number))
    leases = await drain(buffer, count=1)
    again = await buffer.lease(TELEMETRY_LANE, leases[0].end, 3, 1000)
    assert again is not None
    assert [message.payload for message in again.messages] == [b"0'", b"1", b"1'"]


async def test_stamps_of_another_boot_are_told(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path, boot="boot-1")
    await buffer.commit(commit(b"1"))
    await buffer.close()
    buffer = await open_sqlite(tmp_path, boot="boot-2")
    await buffer.commit(commit(b"2"))
    await buffer.close()
    buffer = await open_sqlite(tmp_path, boot="boot-2")
    assert [lease.boot for lease in await drain(buffer)] == ["boot-1", "boot-2"]
    await buffer.close()


async def test_e1_a_clone_never_shares_an_epoch_with_its_origin(tmp_path: Path) -> None:
    epochs = {(await started(tmp_path / "origin"))}
    shutil.copytree(tmp_path / "origin", tmp_path / "clone")
    for name in ("origin", "clone", "fresh"):
        epochs.add(await started(tmp_path / name))
    assert len(epochs) == 4


async def started(data: Path) -> int:
    buffer = await open_sqlite(data)
    await buffer.close()
    return buffer.epoch


async def test_e2_epochs_that_nothing_names_any_more_are_pruned(tmp_path: Path) -> None:
    for number in range(8):
        buffer = await open_sqlite(tmp_path)
        if number % 2:
            await buffer.commit(commit(b"%d" % number))
            await drain(buffer, settle=True)
        await buffer.close()
    buffer = await open_sqlite(tmp_path)
    assert await asked(buffer, "SELECT count(*) FROM lanes WHERE lane <> ''") == [(1,)]
    assert await asked(buffer, "SELECT count(*) FROM epochs") == [(2,)]
    await buffer.close()


async def test_o3_clients_with_nothing_to_remember_cost_nothing(buffer: SqliteBuffer) -> None:
    for number in range(20):
        client = f"client-{number}"
        one = chunk(b"1", client=client, pid=1)
        await buffer.commit(Commit([one], [ResendFrozen(client, entries_of(one.raw), 1)]))
        await buffer.commit(Commit([], [ResendFrozen(client, (), 0)]))
    leases = await drain(buffer)
    await buffer.settle([span_of(lease) for lease in leases])
    await buffer.commit(Commit())
    assert buffer._index.tails == {}
    for table in ("resend", "resend_tail"):
        assert await asked(buffer, f"SELECT count(*) FROM {table}") == [(0,)]


async def test_o3_only_what_is_not_proven_is_written_when_blocks_go(buffer: SqliteBuffer) -> None:
    for number in range(10):
        await buffer.commit(Commit([chunk(b"%d" % number, pid=number + 1, keep=2)]))
    await drain(buffer, settle=True)
    await buffer.commit(Commit())
    assert await asked(buffer, "SELECT client, first, count FROM resend_tail") == [
        ("c", 7, 1),
        ("c", 8, 1),
        ("c", 9, 1),
    ]
    assert buffer._index.tails == {"c": Tail(10, 7)}


async def test_o3_what_is_kept_of_a_client_is_bounded_on_disk_too(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path, BufferSettings(ballast_bytes=0, min_free_bytes=0, dup_window=50))
    for number in range(20):
        await buffer.commit(Commit([chunk(*[b"x"] * 20, pid=1 + 20 * number, keep=20 * number)]))
        await drain(buffer, settle=True)
        await buffer.commit(Commit())
    ((kept,),) = await asked(buffer, "SELECT sum(count) FROM resend_tail")
    assert 50 <= kept < 50 + 20
    await buffer.close()

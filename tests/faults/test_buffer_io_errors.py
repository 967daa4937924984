"""B2: I/O errors on a commit, on the checkpoint after it, on reads; and what of it a caller sees."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from edge_agent.buffer import sqlite
from edge_agent.buffer.port import Commit
from edge_agent.buffer.sqlite import SqliteBuffer
from tests.support.buffer import chunk, commit, drain, messages, open_sqlite, payloads, span_of, until
from tests.support.faulty_disk import Disk, Fault, disk
from waybill.errors import Unavailable
from waybill.mqtt.state import Queued, SavedMessage, SessionOpened
from waybill.wire import CONTROL_LANE, TELEMETRY_LANE, Envelope, Receipt, Span

__all__ = ["disk"]

COMMIT, CHECKPOINT = "COMMIT", "PRAGMA wal_checkpoint(TRUNCATE)"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PAUSES", (0.01, 0.02))


@pytest.fixture
async def buffer(disk: Disk, tmp_path: Path) -> AsyncIterator[SqliteBuffer]:
    opened = await open_sqlite(tmp_path / "data")
    await opened.commit(commit(b"1"))
    yield opened
    disk.faults.clear()
    await opened.close()


async def receipts(buffer: SqliteBuffer) -> list[Receipt]:
    found = messages(await drain(buffer, CONTROL_LANE))
    return [msgspec.json.decode(each.payload, type=Receipt) for each in found if each.topic == "$waybill/receipt"]


@pytest.mark.parametrize("after", [False, True], ids=["not written", "written"])
async def test_b2_a_commit_that_failed_is_there_once(
    buffer: SqliteBuffer, disk: Disk, tmp_path: Path, *, after: bool
) -> None:
    disk.faults.append(Fault(COMMIT, after=after))
    queued = Queued("s", 1, 1, retain=False, topic=b"t", payload=b"q")
    await buffer.commit(Commit([chunk(b"2", b"3", client="d", pid=1)], [SessionOpened("s", 4), queued]))
    await buffer.commit(commit(b"4"))
    assert disk.failed == 1
    assert await payloads(buffer) == [b"1", b"2", b"3", b"4"]
    assert [(lease.first, len(lease.messages)) for lease in await drain(buffer)] == [(1, 4)]
    assert buffer.fault == ""
    await buffer.close()
    buffer = await open_sqlite(tmp_path / "data")
    assert await payloads(buffer) == [b"1", b"2", b"3", b"4"]
    state = await buffer.restore()
    assert list(state.sessions["s"].queue) == [SavedMessage(1, 1, retain=False, topic=b"t", payload=b"q")]
    assert len(state.memories["d"]) == 2
    assert buffer.path.name == "buffer.db"
    await buffer.close()


@pytest.mark.parametrize("after", [False, True], ids=["not written", "written"])
async def test_b2_nothing_is_acknowledged_before_a_checkpoint_has_succeeded(
    buffer: SqliteBuffer, disk: Disk, *, after: bool
) -> None:
    disk.log.clear()
    disk.faults.append(Fault(COMMIT, after=after))
    await buffer.commit(commit(b"2"))
    begin = ["BEGIN IMMEDIATE", "COMMIT"]
    again = [] if after else begin
    rolled_back = [] if after else ["ROLLBACK"]
    assert disk.log == [*begin, "failed", *rolled_back, "open", CHECKPOINT, *again]


@pytest.mark.parametrize("after", [False, True], ids=["not written", "written"])
async def test_b2_where_the_checkpoint_fails_the_agent_goes_on_in_a_new_file(
    buffer: SqliteBuffer, disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, after: bool
) -> None:
    await buffer.commit(Commit([chunk(b"2", client="d", pid=9)], [SessionOpened("s", 4)]))
    epoch = buffer.epoch
    disk.faults += [Fault(COMMIT, after=after), Fault(CHECKPOINT, times=1000, file="/buffer.db")]
    await buffer.commit(commit(b"3"))
    await buffer.commit(commit(b"4"))
    assert buffer.path == tmp_path / "data" / "buffer.2.db"
    assert "going on in" in caplog.text
    (lease,) = await drain(buffer)
    assert (lease.epoch, lease.first) == (epoch, 1)
    assert [message.payload for message in lease.messages] == [b"1", b"2", b"3", b"4"]
    assert await receipts(buffer) == []
    await buffer.close()
    assert (tmp_path / "data" / "buffer.db").exists()
    buffer = await open_sqlite(tmp_path / "data")
    assert await payloads(buffer) == [b"1", b"2", b"3", b"4"]
    state = await buffer.restore()
    assert set(state.sessions) == {"s"}
    assert set(state.memories) == {"d"}
    assert buffer.path.name == "buffer.2.db"
    await buffer.close()


async def test_b2_what_lies_above_the_last_commit_that_returned_is_deleted(buffer: SqliteBuffer, disk: Disk) -> None:
    """Where not even the count of transactions can be read, the failed commit's blocks go and are written again."""
    disk.faults += [
        Fault(COMMIT, after=True),
        Fault(CHECKPOINT, times=1000, file="/buffer.db"),
        Fault("SELECT last FROM lanes", sqlite3.SQLITE_IOERR_READ, times=1000, file="mode=ro"),
    ]
    await buffer.commit(commit(b"2", b"3"))
    await buffer.commit(commit(b"4"))
    assert buffer.path.name == "buffer.2.db"
    assert await payloads(buffer) == [b"1", b"2", b"3", b"4"]
    assert await receipts(buffer) == []


async def test_b2_a_commit_waits_while_neither_file_can_be_written(
    buffer: SqliteBuffer, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.faults += [Fault(COMMIT), Fault("open", times=1000)]
    waiting = asyncio.ensure_future(buffer.commit(commit(b"2")))
    await until(lambda: disk.failed >= 20)
    assert not waiting.done()
    assert "made-up error" in buffer.fault
    with pytest.raises(Unavailable, match="made-up error"):
        await buffer.receive(Envelope("id", "command", "V1", "x", b"", 10), 0)
    assert len([r for r in caplog.records if "nothing is acknowledged" in r.message]) <= 2
    disk.faults.clear()
    caplog.set_level(logging.INFO)
    await waiting
    assert buffer.fault == ""
    assert "writing again" in caplog.text
    assert await payloads(buffer) == [b"1", b"2"]
    assert await payloads(buffer, CONTROL_LANE) == []


async def test_b2_a_commit_in_doubt_is_found_by_whoever_comes_next(buffer: SqliteBuffer, disk: Disk) -> None:
    """The repair finds the commit in the file, even where another call makes the repair."""
    disk.faults += [Fault(COMMIT, after=True), Fault("open", times=2)]  # the file, and a new one
    waiting = asyncio.ensure_future(buffer.commit(commit(b"2")))
    await until(lambda: disk.failed == 3)
    assert not waiting.done()
    assert await payloads(buffer) == [b"1", b"2"]
    await waiting
    assert await payloads(buffer) == [b"1", b"2"]


async def test_b2_a_command_whose_commit_failed_but_is_there_was_received(buffer: SqliteBuffer, disk: Disk) -> None:
    disk.faults.append(Fault(COMMIT, after=True))
    assert await buffer.receive(Envelope("id", "command", "V1", "x", b"", 10), 0)
    assert len(await payloads(buffer, CONTROL_LANE)) == 1


async def test_b2_commits_that_the_disk_lost_after_they_returned_are_declared(
    buffer: SqliteBuffer, disk: Disk, tmp_path: Path
) -> None:
    file = tmp_path / "data" / "buffer.db"
    await buffer.commit(commit(b"2"))
    engine, held = buffer._engine, buffer._engine._file
    await engine.read(lambda db: db.execute(CHECKPOINT).fetchone())
    shutil.copy(file, tmp_path / "older.db")
    await buffer.commit(commit(b"3", b"4"))
    shut = held.close

    async def lose() -> None:
        await shut()
        shutil.copy(tmp_path / "older.db", file)

    held.close = lose  # type: ignore[method-assign]
    disk.faults.append(Fault(COMMIT))
    await buffer.commit(commit(b"5"))
    held.close = shut  # type: ignore[method-assign]
    rows = await engine.read(
        lambda db: db.execute("SELECT lane, last FROM lanes WHERE lane <> '' ORDER BY 1").fetchall()
    )
    assert rows == [(CONTROL_LANE, 1), (TELEMETRY_LANE, 5)]  # the receipt is there before anybody reads
    leases = await drain(buffer)
    assert [(lease.first, [m.payload for m in lease.messages]) for lease in leases] == [(1, [b"1", b"2"]), (5, [b"5"])]
    (receipt,) = await receipts(buffer)
    assert (receipt.epoch, receipt.lane, receipt.first, receipt.last, receipt.count) == (
        buffer.epoch,
        TELEMETRY_LANE,
        3,
        4,
        2,
    )
    (backlog,) = [each for each in buffer.backlog() if each.lane == TELEMETRY_LANE]
    assert backlog.count == 3


async def test_b2_blocks_that_cannot_be_read_any_more_are_declared_and_the_rest_goes_on(
    buffer: SqliteBuffer, disk: Disk, tmp_path: Path
) -> None:
    for each in (b"payload-2", b"3", b"4"):
        await buffer.commit(commit(each))
    # block 2 is on a bad sector: every read that passes it fails, in the old file
    log = tmp_path / "data" / "buffer.db-wal"
    log.write_bytes(log.read_bytes().replace(b"payload-2", b"payload-x"))
    read = Fault("SELECT id, first, count, bytes, crc", sqlite3.SQLITE_IOERR_READ, times=1000, file="/buffer.db")
    disk.faults.append(read)
    leases = await drain(buffer)
    assert buffer.path.name == "buffer.2.db"
    assert [(lease.first, [m.payload for m in lease.messages]) for lease in leases] == [
        (1, [b"1"]),
        (3, [b"3", b"4"]),
    ]
    (receipt,) = await receipts(buffer)
    assert (receipt.first, receipt.last, receipt.reason) == (2, 2, "lost: the buffer's file was damaged")


async def test_b2_a_file_that_is_found_damaged_by_a_commit_is_left_for_a_new_one(
    buffer: SqliteBuffer, disk: Disk, tmp_path: Path
) -> None:
    disk.faults.append(Fault("INSERT INTO blocks", sqlite3.SQLITE_CORRUPT, times=1000, file="/buffer.db"))
    await buffer.commit(commit(b"2"))
    assert buffer.path == tmp_path / "data" / "buffer.2.db"
    assert await payloads(buffer) == [b"1", b"2"]
    assert await receipts(buffer) == []


async def test_a_damaged_block_is_set_aside_with_a_receipt(buffer: SqliteBuffer, tmp_path: Path) -> None:
    await buffer.commit(commit(b"payload-2"))
    await buffer.commit(commit(b"payload-3"))
    await buffer.close()
    file = tmp_path / "data" / "buffer.db"
    data = file.read_bytes()
    assert data.count(b"payload-2") == 1
    file.write_bytes(data.replace(b"payload-2", b"payload-X"))
    before = buffer.epoch
    buffer = await open_sqlite(tmp_path / "data")
    leases = await drain(buffer)
    assert [(lease.first, [m.payload for m in lease.messages]) for lease in leases] == [
        (1, [b"1"]),
        (3, [b"payload-3"]),
    ]
    (receipt,) = await receipts(buffer)
    assert (receipt.epoch, receipt.first, receipt.last, receipt.count, receipt.reason) == (
        before,
        2,
        2,
        1,
        "damaged: checksum",
    )
    assert receipt.bytes > 0
    await buffer.settle([span_of(lease) for lease in leases])
    (backlog,) = [each for each in buffer.backlog() if each.lane == TELEMETRY_LANE]
    assert (backlog.count, backlog.bytes) == (0, 0)
    await buffer.close()
    with closing(sqlite3.connect(file)) as db:
        ((body,),) = db.execute("SELECT body FROM damaged").fetchall()
        assert b"payload-X" in body


async def test_b2_setting_a_block_aside_takes_no_other_where_the_file_is_left_meanwhile(
    buffer: SqliteBuffer, disk: Disk, tmp_path: Path
) -> None:
    """In the new file the blocks have other ids."""
    for each in (b"2", b"payload-3", b"4", b"5"):
        await buffer.commit(commit(each))
    await buffer.settle([Span(buffer.epoch, TELEMETRY_LANE, 1, 1)])
    await buffer.close()
    file = tmp_path / "data" / "buffer.db"
    file.write_bytes(file.read_bytes().replace(b"payload-3", b"payload-X"))
    buffer = await open_sqlite(tmp_path / "data")
    disk.faults.append(Fault("INSERT INTO damaged", sqlite3.SQLITE_CORRUPT, times=1000, file="/buffer.db"))
    assert await payloads(buffer) == [b"2", b"4", b"5"]
    assert buffer.path.name == "buffer.2.db"
    await buffer.close()
    buffer = await open_sqlite(tmp_path / "data")
    assert await payloads(buffer) == [b"2", b"4", b"5"]
    await buffer.close()


async def test_a_caller_that_is_cancelled_leaves_file_and_index_together(buffer: SqliteBuffer, tmp_path: Path) -> None:
    for at in range(50):
        task = asyncio.ensure_future(buffer.commit(commit(b"c%d" % at)))
        for _ in range(at % 7):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await buffer.commit(commit(b"last"))
    live = await payloads(buffer)
    assert (live[0], live[-1]) == (b"1", b"last")
    assert len(live) == len(set(live))
    await buffer.close()
    buffer = await open_sqlite(tmp_path / "data")
    assert await payloads(buffer) == live
    await buffer.close()


async def test_a_mistake_of_our_own_is_raised_and_changes_nothing(buffer: SqliteBuffer) -> None:
    class Unknown(Queued, frozen=True):
        pass

    with pytest.raises(KeyError):
        await buffer.commit(Commit([chunk(b"2")], [Unknown("c", 1, 1, retain=False, topic=b"", payload=b"")]))
    await buffer.commit(commit(b"3"))
    assert await payloads(buffer) == [b"1", b"3"]


@pytest.mark.parametrize(
    ("removed", "lost"),
    [(("buffer.db",), 0), (("buffer.db", "buffer.db-wal"), 1)],
    ids=["file", "file and log"],
)
async def test_b1_nothing_is_acknowledged_into_a_file_that_was_removed(
    buffer: SqliteBuffer, tmp_path: Path, removed: tuple[str, ...], lost: int
) -> None:
    for name in removed:
        (tmp_path / "data" / name).unlink()
    await buffer.commit(commit(b"2"))
    declared = [(each.epoch, each.lane, each.first, each.last) for each in await receipts(buffer)]
    assert declared == [(buffer.epoch, TELEMETRY_LANE, 1, 1)][:lost]
    assert await payloads(buffer) == [b"1", b"2"][lost:]
    await buffer.commit(commit(b"3"))
    assert buffer.counters.repairs == 1
    shutil.copytree(tmp_path / "data", tmp_path / "killed")
    again = await open_sqlite(tmp_path / "killed")
    assert await payloads(again) == [b"1", b"2", b"3"][lost:]
    await again.close()


async def test_a_directory_that_is_gone_is_said_once_however_often_it_is_tried(
    buffer: SqliteBuffer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").rename(tmp_path / "away")
    waiting = asyncio.create_task(buffer.commit(commit(b"2")))
    await until(lambda: buffer.counters.repairs > 5)
    (tmp_path / "away").rename(tmp_path / "data")
    await waiting
    assert await payloads(buffer) == [b"1", b"2"]
    said = [message for message in caplog.messages if "cannot" in message or "nothing is acknowledged" in message]
    assert len(said) == len(set(said)) <= 3

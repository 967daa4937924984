"""Lanes in the buffer: what gives way and in which order, what is declared, what expires, what may be lost."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.buffer import keeper as keeping
from edge_agent.buffer import repair, sqlite
from edge_agent.buffer.index import Index
from edge_agent.buffer.keeper import Keeper
from edge_agent.buffer.losses import MAX_LOSSES, MAX_UNSAID, Losses, declare, due
from edge_agent.buffer.port import Commit
from edge_agent.buffer.relief import Policy
from edge_agent.buffer.settings import MIB, BufferSettings
from edge_agent.buffer.sqlite import SqliteBuffer
from edge_agent.lanes import Lane, complete
from tests.support.buffer import SMALL, chunk, commit, drain, payloads, span_of
from tests.support.faulty_disk import Disk, Fault, disk
from waybill.mqtt.state import SessionOpened
from waybill.wire import CONTROL_LANE, RECEIPT_TOPIC, Receipt, Span

__all__ = ["disk"]

KIB = 1024
OLDEST = Lane("oldest", 20, ("o",), max_bytes=64 * KIB, when_full="drop-oldest")
NEWEST = Lane("newest", 30, ("n",), max_bytes=64 * KIB, when_full="drop-newest")
FIRM = Lane("firm", 5, ("f",), max_bytes=64 * KIB)


@pytest.fixture(autouse=True)
def _at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests do the housekeeping themselves."""
    monkeypatch.setattr(keeping, "EVERY", 3600.0)
    monkeypatch.setattr(sqlite, "PAUSES", (0.01, 0.02))


async def opened(
    path: Path, *lanes: Lane, settings: BufferSettings = SMALL, boot: str = "b", **more: Any
) -> SqliteBuffer:
    return await SqliteBuffer.open(path, settings, gateway="g", boot=boot, lanes=complete(lanes), **more)


def numbered(number: int, size: int = 10_000) -> bytes:
    return b"%04d" % number + b"x" * size


async def fill(buffer: SqliteBuffer, lane: str, first: int, count: int) -> None:
    for number in range(first, first + count):
        await buffer.commit(commit(numbered(number), lane=lane))


async def numbers(buffer: SqliteBuffer, lane: str) -> list[int]:
    return [int(payload[:4]) for payload in await payloads(buffer, lane)]


async def said(buffer: SqliteBuffer) -> list[Receipt]:
    found = [message for lease in await drain(buffer, CONTROL_LANE) for message in lease.messages]
    return [msgspec.json.decode(each.payload, type=Receipt) for each in found if each.topic == RECEIPT_TOPIC]


def owed(buffer: SqliteBuffer) -> list[Receipt]:
    return list(buffer._index.losses.values())


async def look(buffer: SqliteBuffer, *, expire: bool = False, age: Any = lambda *_: None) -> None:
    await Keeper(buffer._engine, age)._look(expire=expire)


async def test_e5_the_oldest_go_and_are_one_receipt_however_many_they_are(tmp_path: Path) -> None:
    buffer = await opened(tmp_path, OLDEST)
    before = buffer.counters.transactions
    await fill(buffer, "oldest", 1, 300)
    assert buffer.counters.transactions == before + 300  # each declaration is in the commit that needed the room
    assert await numbers(buffer, "oldest") == list(range(295, 301))
    (loss,) = owed(buffer)
    assert (loss.epoch, loss.lane, loss.prev_epoch, loss.prev_last) == (buffer.epoch, "oldest", 0, 0)
    assert (loss.first, loss.last, loss.count, loss.reason) == (1, 294, 294, "evicted: full")
    assert 294 * 10_000 < loss.bytes < 294 * 10_200
    await look(buffer)
    assert await said(buffer) == [loss]
    assert owed(buffer) == []
    (backlog,) = [each for each in buffer.backlog() if each.lane == "oldest"]
    assert (backlog.count, backlog.dropped, backlog.expired) == (6, 294, 0)
    await buffer.close()


async def test_the_newest_are_dropped_and_declared_when_there_is_room_no_more(tmp_path: Path) -> None:
    buffer = await opened(tmp_path, NEWEST)
    await fill(buffer, "newest", 1, 10)
    await buffer.commit(Commit([chunk(numbered(11, 100), lane="newest"), chunk(numbered(12), lane="newest")]))
    assert await numbers(buffer, "newest") == [1, 2, 3, 4, 5, 6, 11]
    assert [(loss.first, loss.last, loss.reason) for loss in owed(buffer)] == [
        (7, 10, "dropped: full"), (12, 12, "dropped: full"),
    ]  # fmt: skip
    await buffer.close()


async def test_a_commit_larger_than_its_lane_keeps_its_newest_part(tmp_path: Path) -> None:
    buffer = await opened(tmp_path, OLDEST)
    await buffer.commit(Commit([chunk(numbered(number), lane="oldest") for number in range(1, 11)]))
    assert await numbers(buffer, "oldest") == [5, 6, 7, 8, 9, 10]
    assert [(loss.first, loss.last) for loss in owed(buffer)] == [(1, 4)]
    await buffer.close()


async def test_b5_what_was_sent_and_is_not_acknowledged_goes_last(tmp_path: Path) -> None:
    buffer = await opened(tmp_path, OLDEST)
    await fill(buffer, "oldest", 1, 6)
    first = await buffer.lease("oldest", None, 2, MIB)
    assert first is not None
    await fill(buffer, "oldest", 7, 3)
    assert await numbers(buffer, "oldest") == [1, 2, 6, 7, 8, 9]
    assert [(loss.first, loss.last) for loss in owed(buffer)] == [(3, 5)]
    await fill(buffer, "oldest", 10, 1)  # by now all of it was sent
    assert await numbers(buffer, "oldest") == [2, 6, 7, 8, 9, 10]
    await buffer.settle([span_of(first)])  # the ack meets the receipt: both are true of 1, 2 is delivered
    assert sum(loss.count for loss in owed(buffer)) == 4
    await fill(buffer, "oldest", 11, 3)
    declared = {seq for loss in owed(buffer) for seq in range(loss.first, loss.last + 1)}
    assert 2 not in declared  # settled: nothing to declare
    await buffer.close()


async def test_b5_of_a_block_that_goes_only_what_was_not_delivered_is_declared(tmp_path: Path) -> None:
    buffer = await opened(tmp_path, OLDEST)
    await buffer.commit(commit(*[numbered(number) for number in range(1, 6)], lane="oldest"))
    await buffer.settle([Span(buffer.epoch, "oldest", 2, 3)])
    await fill(buffer, "oldest", 6, 6)
    assert [(loss.first, loss.last) for loss in owed(buffer)] == [(1, 1), (4, 5)]
    assert [loss.bytes // 10_000 for loss in owed(buffer)] == [1, 2]
    await buffer.close()


async def test_e5_what_is_evicted_while_a_lease_waits_is_declared_once(tmp_path: Path) -> None:
    buffer = await opened(tmp_path, OLDEST)
    await fill(buffer, "oldest", 1, 6)
    _, lease = await asyncio.gather(fill(buffer, "oldest", 7, 1), buffer.lease("oldest", None, 1, MIB))
    assert lease is not None
    (loss,) = owed(buffer)
    assert (loss.first, loss.reason) == (1, "evicted: full")
    assert lease.first == loss.last + 1
    assert await said(buffer) == []
    await buffer.close()


async def test_at_the_limit_of_the_buffer_the_least_urgent_lane_gives_first(tmp_path: Path) -> None:
    some = Lane("some", 20, ("s",), when_full="drop-oldest")
    bulk = Lane("bulk", 90, ("b",), when_full="drop-oldest")
    limits = BufferSettings(max_bytes=MIB, ballast_bytes=0, min_free_bytes=0)
    buffer = await opened(tmp_path, some, bulk, settings=limits)
    await fill(buffer, "some", 1, 20)
    await fill(buffer, "bulk", 1, 40)
    assert owed(buffer) == []
    await fill(buffer, "telemetry", 1, 20)  # refuses nothing as long as others have something to give
    assert await numbers(buffer, "telemetry") == list(range(1, 21))
    assert {loss.lane for loss in owed(buffer)} == {"bulk"}
    assert "telemetry" not in buffer.refusing
    await fill(buffer, "some", 21, 40)
    assert {loss.lane for loss in owed(buffer)} == {"bulk", "some"}
    assert await numbers(buffer, "bulk") == []
    assert buffer.fault == ""
    await fill(buffer, "bulk", 41, 1)  # nothing is left that is less urgent than what comes
    assert await numbers(buffer, "bulk") == []
    assert buffer.refusing == frozenset()  # for telemetry, the other one gives way
    await buffer.close()


async def test_a_lane_that_refuses_says_so_and_still_stores_what_was_read_already(tmp_path: Path) -> None:
    told: list[frozenset[str]] = []
    buffer = await opened(tmp_path, FIRM)
    buffer.on_refusing(told.append)
    await fill(buffer, "firm", 1, 6)
    assert told == [frozenset()]
    await fill(buffer, "firm", 7, 3)
    assert told[1:] == [{"firm"}]
    assert await numbers(buffer, "firm") == list(range(1, 10))
    assert owed(buffer) == []
    leases = await drain(buffer, "firm", 5, settle=True)
    assert len(leases) == 2
    await buffer.commit(commit(b"1"))
    assert told[2:] == [frozenset()]
    await buffer.close()


async def test_a_full_buffer_refuses_and_keeps_a_reserve_for_what_was_read(tmp_path: Path) -> None:
    limits = BufferSettings(max_bytes=2 * MIB, ballast_bytes=0, min_free_bytes=0)
    buffer = await opened(tmp_path, settings=limits)
    number = 0
    while not buffer.refusing:
        number += 1
        await fill(buffer, "telemetry", number, 1)
    assert buffer.refusing == {"telemetry"}
    await buffer.commit(Commit([chunk(numbered(number + each)) for each in range(1, 21)]))  # 200 KB of the reserve
    assert buffer.fault == ""
    await buffer.close()
    buffer = await opened(tmp_path, settings=limits)
    assert buffer.refusing == {"telemetry"}  # from the start on
    await drain(buffer, settle=True)
    await buffer.commit(commit(b"1"))
    assert buffer.refusing == frozenset()
    await buffer.close()


async def test_below_what_is_stored_a_lane_that_drops_does_not_wait(tmp_path: Path) -> None:
    limits = BufferSettings(max_bytes=2 * MIB, ballast_bytes=0, min_free_bytes=0)
    buffer = await opened(tmp_path, NEWEST, settings=limits)
    await fill(buffer, "telemetry", 1, 120)
    await buffer.close()
    buffer = await opened(tmp_path, NEWEST, settings=msgspec.structs.replace(limits, max_bytes=MIB))
    assert buffer.refusing == {"telemetry"}
    await fill(buffer, "newest", 1, 2)
    assert buffer.fault == ""
    assert [(loss.first, loss.last, loss.reason) for loss in owed(buffer)] == [(1, 2, "dropped: full")]
    await buffer.close()


async def test_what_is_declared_and_not_said_survives_a_restart_with_its_own_epoch(tmp_path: Path) -> None:
    buffer = await opened(tmp_path, OLDEST)
    await fill(buffer, "oldest", 1, 10)
    first, before = buffer.epoch, owed(buffer)
    await buffer.close()
    buffer = await opened(tmp_path, OLDEST)
    assert owed(buffer) == before
    await fill(buffer, "oldest", 11, 10)
    assert [(loss.epoch, loss.prev_epoch, loss.prev_last, loss.first, loss.last) for loss in owed(buffer)] == [
        (first, 0, 0, 1, 10),
        (buffer.epoch, first, 10, 1, 4),
    ]
    await look(buffer)
    assert [loss.count for loss in await said(buffer)] == [10, 4]
    await buffer.close()


async def test_what_is_declared_survives_a_move_to_a_new_file(disk: Disk, tmp_path: Path) -> None:
    buffer = await opened(tmp_path, OLDEST)
    await fill(buffer, "oldest", 1, 10)
    before = owed(buffer)
    disk.faults += [Fault("COMMIT"), Fault("PRAGMA wal_checkpoint(TRUNCATE)")]
    await fill(buffer, "oldest", 11, 1)
    assert buffer.path.name == "buffer.2.db"
    assert [(loss.first, loss.last) for loss in owed(buffer)] == [(1, before[0].last + 1)]
    await buffer.close()
    buffer = await opened(tmp_path, OLDEST)
    assert [(loss.first, loss.last) for loss in owed(buffer)] == [(1, before[0].last + 1)]
    assert await said(buffer) == []  # nothing else was lost
    await buffer.close()


async def test_a_file_that_is_mended_says_again_what_is_declared(tmp_path: Path) -> None:
    buffer = await opened(tmp_path, OLDEST)
    await fill(buffer, "oldest", 1, 10)

    def mend(db: sqlite3.Connection) -> list[Any]:
        db.execute("DELETE FROM losses")
        repair.align(db, buffer._index)
        return db.execute("SELECT lane, first, last FROM losses").fetchall()

    assert await buffer._engine.read(mend) == [("oldest", 1, 4)]
    await buffer.close()


async def test_on_a_full_disk_a_lane_that_drops_makes_the_room_that_its_commits_need(
    disk: Disk, tmp_path: Path
) -> None:
    anything = Lane("oldest", 20, ("o",), when_full="drop-oldest")
    buffer = await opened(tmp_path, anything)
    await fill(buffer, "oldest", 1, 30)
    disk.faults.append(Fault("INSERT INTO blocks", sqlite3.SQLITE_FULL, times=1))
    await fill(buffer, "oldest", 31, 1)
    assert buffer.fault == ""
    (loss,) = owed(buffer)
    assert loss.first == 1
    assert loss.last < 12  # as much as one commit needs, and what it touches beside it
    assert await numbers(buffer, "oldest") == list(range(loss.last + 1, 32))
    await buffer.close()


async def test_only_what_is_surely_too_old_and_not_in_flight_expires(tmp_path: Path) -> None:
    mortal = Lane("mortal", 20, ("m",), ttl_s=10)
    now_s = 100

    def age(_wall_ms: int, mono_ns: int, boot: str) -> int | None:
        return now_s * 1000 - mono_ns // 1_000_000 if boot == "b" else None

    async def put(number: int) -> None:
        made = msgspec.structs.replace(chunk(numbered(number), lane="mortal"), mono_ns=now_s * 10**9, wall_ms=0)
        await buffer.commit(Commit([made]))

    buffer = await opened(tmp_path, mortal, boot="another")
    await put(1)
    await buffer.close()
    buffer = await opened(tmp_path, mortal)
    for number in range(2, 7):
        await put(number)
        now_s += 1
    lease = await buffer.lease("mortal", None, 2, MIB)  # 1, and of the next epoch the first
    assert lease is not None
    lease = await buffer.lease("mortal", lease.end, 1, MIB)
    assert lease is not None
    now_s = 113  # 2, 3 and 4 are older than ten seconds; of 1 nobody knows
    await look(buffer, expire=True, age=age)
    assert await numbers(buffer, "mortal") == [1, 2, 5, 6]
    assert [(loss.first, loss.last, loss.reason) for loss in owed(buffer)] == [(2, 3, "expired: ttl")]
    (backlog,) = [each for each in buffer.backlog() if each.lane == "mortal"]
    assert (backlog.dropped, backlog.expired) == (0, 2)
    now_s = -(10**6)  # a clock that went astray
    await look(buffer, expire=True, age=age)
    assert await numbers(buffer, "mortal") == [1, 2, 5, 6]
    await buffer.close()


async def test_a_large_backlog_expires_slice_by_slice(tmp_path: Path) -> None:
    mortal = Lane("mortal", 20, ("m",), ttl_s=10)
    buffer = await opened(tmp_path, mortal)
    for _ in range(40):
        await buffer.commit(commit(numbered(1, 100_000), lane="mortal"))
    before = buffer.counters.transactions
    await look(buffer, expire=True, age=lambda *_: 60_000)
    assert await numbers(buffer, "mortal") == []
    assert 4 <= buffer.counters.transactions - before <= 6
    assert sum(loss.count for loss in owed(buffer)) == 40
    await buffer.close()


async def test_a_relaxed_lane_alone_is_committed_without_a_sync(tmp_path: Path) -> None:
    relaxed = Lane("relaxed", 20, ("r",), durability="relaxed")
    buffer = await opened(tmp_path, relaxed)

    async def synchronous() -> int:
        level: int = await buffer._engine.read(lambda db: db.execute("PRAGMA synchronous").fetchone()[0])
        return level

    await buffer.commit(commit(b"1"))
    assert await synchronous() == 2
    await buffer.commit(commit(b"2", lane="relaxed"))
    assert await synchronous() == 1
    await buffer.commit(Commit([chunk(b"3", lane="relaxed"), chunk(b"3")]))
    assert await synchronous() == 2
    await buffer.commit(Commit([chunk(b"4", lane="relaxed")], changes=[SessionOpened("c", 4)]))
    assert await synchronous() == 2
    await buffer.commit(commit(b"5", lane="relaxed"))
    await buffer.settle([Span(buffer.epoch, "relaxed", 1, 1)])
    assert await synchronous() == 1
    await buffer.commit(commit(b"6"))  # makes all before it durable, too
    assert await synchronous() == 2
    await buffer.close()


async def test_a_lane_that_is_not_configured_any_more_keeps_draining(tmp_path: Path) -> None:
    buffer = await opened(tmp_path, OLDEST)
    await fill(buffer, "oldest", 1, 3)
    await buffer.close()
    buffer = await opened(tmp_path)
    assert [each.lane for each in buffer.backlog()] == [CONTROL_LANE, "telemetry", "oldest"]
    assert await numbers(buffer, "oldest") == [1, 2, 3]
    await buffer.close()


def loss(first: int, last: int, reason: str = "r", lane: str = "l", epoch: int = 1) -> Receipt:
    return Receipt(epoch, lane, 0, 0, first, last, last - first + 1, 10 * (last - first + 1), reason)


def test_losses_grow_where_they_touch_and_are_of_one_kind() -> None:
    losses: Losses = {}
    for each in (
        loss(1, 2),
        loss(3, 5),
        loss(7, 7),
        loss(6, 6, "other"),
        loss(8, 9),
        loss(8, 9, lane="m"),
        loss(1, 1, epoch=2),
    ):
        key, row = declare(losses, each)
        losses[key] = row
    assert list(losses.values()) == [
        loss(1, 5), loss(7, 9), loss(6, 6, "other"), loss(8, 9, lane="m"), loss(1, 1, epoch=2),
    ]  # fmt: skip


def test_losses_wait_while_the_control_lane_is_not_read() -> None:
    few = {(1, "l", 1): loss(1, 1)}
    many = {(1, "l", n): loss(n, n) for n in range(MAX_LOSSES)}
    assert not due({}, 0)
    assert due(few, 0)
    assert due(few, MAX_UNSAID - 1)
    assert not due(few, MAX_UNSAID)
    assert due(many, MAX_UNSAID)


async def test_an_overflow_of_days_does_not_fill_the_control_lane(tmp_path: Path) -> None:
    buffer = await opened(tmp_path, OLDEST)
    await fill(buffer, "oldest", 1, 6)
    for number in range(7, 207):
        await fill(buffer, "oldest", number, 1)
        await look(buffer)
    assert len(await said(buffer)) == MAX_UNSAID
    (rest,) = owed(buffer)
    assert (rest.first, rest.last) == (MAX_UNSAID + 1, 200)
    await buffer.close()


def test_who_refuses_is_decided_by_urgency() -> None:
    lanes = complete([FIRM, Lane("late", 200, ("l",)), Lane("bulk", 100, ("b",), when_full="drop-oldest")])
    policy = Policy({lane.name: lane for lane in lanes})
    index = Index(1, 1, "b", [lane.name for lane in lanes])
    assert policy.refusing(index, 100, tight=0) == frozenset()
    assert policy.refusing(index, 100, tight=1) == {"firm", "late", "telemetry"}
    index.lanes["bulk"].bytes = 102
    assert policy.refusing(index, 100, tight=1) == {"late"}  # it may not push out what is more urgent
    assert policy.refusing(index, 100, tight=2) == {"firm", "late", "telemetry"}  # that is too little
    index.lanes["firm"].bytes = FIRM.max_bytes
    assert policy.refusing(index, 100, tight=0) == {"firm"}

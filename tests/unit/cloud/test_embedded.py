"""The embedded log's own: one owner, cap, retention, schema, readers in other processes, a kill (B3, R1, R8, D4)."""

import asyncio
import contextlib
import itertools
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_ingest.config import Topics
from cloud_ingest.following import following
from cloud_ingest.journal import embedded, embedded_retention
from cloud_ingest.journal.embedded import EmbeddedLog
from cloud_ingest.journal.embedded_partition import EmbeddedPartition
from cloud_ingest.journal.embedded_reader import open_reader
from cloud_ingest.journal.embedded_retention import KEEP_FRAMES_MS, Retention
from cloud_ingest.journal.port import CaughtUp, OutRecord, Step, TopicRecord
from tests.support.logs import read_to_end
from waybill.errors import ConfigError, Fenced, Locked, Unavailable

TOPICS = Topics(partitions=1)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextlib.asynccontextmanager
async def opened(
    path: Path,
    *,
    max_bytes: int = 1 << 30,
    retention: Retention | None = None,
    clock_ms: Callable[[], int] = now_ms,
) -> AsyncIterator[EmbeddedLog]:
    log = EmbeddedLog(path, TOPICS, max_bytes=max_bytes, retention=retention, clock_ms=clock_ms)
    await log.start()
    try:
        yield log
    finally:
        await log.close()


async def fill(log: EmbeddedLog, frames: int = 20) -> None:
    for _ in range(frames):
        await log.append_frame("gw", bytes(100_000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "log.db"


async def test_everything_is_there_after_a_restart(path: Path) -> None:
    async with opened(path) as log:
        await log.append_frame("gw", b"one")
        partition = EmbeddedPartition(log, 0)
        await partition.load()
        await partition.commit(Step([OutRecord("t", b"k", b"v", [])], {b"l": b"1"}, 1))
    async with opened(path) as log:
        partition = EmbeddedPartition(log, 0)
        loaded = await partition.load()
        assert (dict(loaded.ledger), loaded.start, loaded.lost) == ({b"l": b"1"}, 1, 0)
        await log.append_frame("gw", b"two")
        records, end = await partition.read(10, 1)
        assert ([record.frame for record in records], end) == ([b"two"], True)
        assert [record.value for record in await read_to_end(log, ["t"])] == [b"v"]


async def test_b3_a_second_process_is_refused_with_the_number_of_the_first(path: Path) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from cloud_ingest.config import Topics\n"
        "from cloud_ingest.journal.embedded import EmbeddedLog\n"
        "asyncio.run(EmbeddedLog(pathlib.Path(sys.argv[1]), Topics(partitions=1)).start())\n"
    )
    async with opened(path):
        other = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
        )
        assert "Locked" in other.stderr
        with pytest.raises(Locked, match=r"in use by process \d+"):
            await EmbeddedLog(path, TOPICS).start()
    async with opened(path):
        pass


async def test_r1_the_newest_owner_of_a_partition_fences_the_one_before(path: Path) -> None:
    async with opened(path) as log:
        old, new = EmbeddedPartition(log, 0), EmbeddedPartition(log, 0)
        await old.load()
        await new.load()
        with pytest.raises(Fenced):
            await old.commit(Step([OutRecord("t", b"k", b"v", [])], {}, 1))
        with pytest.raises(Fenced):
            await old.read(1, 0)
        assert await read_to_end(log, ["t"]) == []


async def test_r1_a_commit_that_was_under_way_is_in_what_the_next_owner_loads_or_fenced(path: Path) -> None:
    async with opened(path) as log:
        for turn in range(20):
            old, new = EmbeddedPartition(log, 0), EmbeddedPartition(log, 0)
            await old.load()
            commit = asyncio.create_task(old.commit(Step([], {b"turn": b"%d" % turn}, turn)))
            for _ in range(turn % 4):
                await asyncio.sleep(0)
            loaded = await new.load()
            try:
                await commit
                assert loaded.ledger[b"turn"] == b"%d" % turn
            except Fenced:
                assert loaded.ledger.get(b"turn") != b"%d" % turn


async def test_r8_at_its_cap_nothing_is_written_and_the_error_says_what_to_do(path: Path) -> None:
    async with opened(path, max_bytes=1 << 20) as log:
        with pytest.raises(Unavailable, match=r"raise \[log\] max_bytes"):
            await fill(log)
        assert log.fault
        kept = len(await read_to_end(log, [TOPICS.frames]))
    async with opened(path, max_bytes=1 << 30) as log:
        assert len(await read_to_end(log, [TOPICS.frames])) == kept
        await log.append_frame("gw", bytes(100_000))
        assert log.fault == ""


async def test_r8_frames_that_fill_the_log_before_they_are_routed_are_routed_and_make_room(path: Path) -> None:
    async with opened(path, max_bytes=24 << 20, retention=Retention(size=16 << 20)) as log:
        with pytest.raises(Unavailable, match="left to routing"):
            await fill(log, 1_000)
        frames = log.head(TOPICS.frames, 0)
        partition = EmbeddedPartition(log, 0)
        await partition.load()
        end = False
        while not end:
            got, end = await partition.read(10, 0)
            step = Step([OutRecord("fleet", b"V1", record.frame, []) for record in got], {}, got[-1].offset + 1)
            late = asyncio.create_task(log.append_frame("gw", b"late"))  # waits with the step
            await partition.commit(step)
            with contextlib.suppress(Unavailable):
                await late
        assert log.head("fleet", 0) >= frames
        await fill(log)
        assert log.fault == ""


async def test_r8_only_routed_frames_are_pruned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PRUNE_EVERY", 0.0)
    now = 1_000_000
    async with opened(path, clock_ms=lambda: now) as log:
        partition = EmbeddedPartition(log, 0)
        await partition.load()
        for n in range(6):
            await log.append_frame("gw", b"%d" % n)
        await partition.commit(Step([], {}, 4))
        assert await partition.log_start() == 0
        now += KEEP_FRAMES_MS + 1
        await log.append_frame("gw", b"new")

        await log.append_frame("gw", b"newer")  # the writer prunes between two writes
        assert await partition.log_start() == 4
        loaded = await partition.load()
        assert (loaded.start, loaded.log_start, loaded.lost) == (4, 4, 0)
        records, _ = await partition.read(10, 0)
        assert [record.frame for record in records] == [b"4", b"5", b"new", b"newer"]


async def test_frames_are_pruned_early_where_the_file_is_half_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PRUNE_EVERY", 0.0)
    async with opened(path, max_bytes=12 << 20) as log:
        partition = EmbeddedPartition(log, 0)
        await partition.load()
        for n in range(100):
            await log.append_frame("gw", bytes(500_000))
            await partition.commit(Step([], {}, n + 1))
        assert await partition.log_start() > 50


async def test_records_are_kept_for_their_time_and_frames_until_they_are_routed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PRUNE_EVERY", 0.0)
    now = 1_000_000
    async with opened(path, retention=Retention(age_ms=60_000), clock_ms=lambda: now) as log:
        await log.append(OutRecord(TOPICS.ledger, b"k", b"entry", []))
        for topic in ("fleet", "fleet.dlq", TOPICS.commands):
            await log.append(OutRecord(topic, b"V1", b"old", []))
        await log.append_frame("gw", b"not routed")
        now += 60_001
        for number in range(2):  # the writer prunes between two writes
            await log.append(OutRecord("fleet", b"V1", b"new %d" % number, []))
        kept = [TOPICS.ledger, TOPICS.commands, TOPICS.frames]
        assert [record.value for record in await read_to_end(log, kept)] == [b"entry", b"old", b"not routed"]
        found = await read_to_end(log, ["fleet", "fleet.dlq"])
        assert [(record.offset, record.value) for record in found] == [(1, b"new 0"), (2, b"new 1")]


async def test_above_its_size_the_oldest_records_go_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PRUNE_EVERY", 0.0)
    monkeypatch.setattr(embedded_retention, "AT_ONCE", 5)
    ticks = itertools.count(1_000_000)
    async with opened(path, retention=Retention(size=16 << 20), clock_ms=lambda: next(ticks)) as log:
        for number in range(80):
            await log.append(OutRecord("ab"[number % 2], b"V1", bytes(1_000_000), []))
        for topic in "ab":
            offsets = [record.offset for record in await read_to_end(log, [topic])]
            assert 1 <= len(offsets) <= 16
            assert offsets == [*range(40 - len(offsets), 40)]
        assert log.fault == ""


async def test_many_appends_share_a_transaction(path: Path) -> None:
    async with opened(path) as log:
        transactions = 0
        apply = log._apply

        def counted(*arguments: object) -> None:
            nonlocal transactions
            transactions += 1
            apply(*arguments)  # type: ignore[arg-type]

        log._apply = counted  # type: ignore[method-assign,assignment]
        async with asyncio.TaskGroup() as group:
            for n in range(200):
                group.create_task(log.append_frame(f"gw-{n}", b"x"))
        assert transactions < 20
        assert len(await read_to_end(log, [TOPICS.frames])) == 200


async def test_another_process_reads_what_was_there_and_what_comes(path: Path) -> None:
    async with opened(path) as log, open_reader(path, TOPICS.frames) as reader:
        await log.append(OutRecord("t", b"k", b"1", [("h", b"x")]))
        seen: list[TopicRecord | CaughtUp] = []
        async with asyncio.timeout(60), following(reader, ["t"]) as records:
            async for record in records:
                seen.append(record)
                if isinstance(record, CaughtUp):
                    await log.append(OutRecord("t", b"k", b"2", []))
                elif record.value == b"2":
                    break
        assert [None if isinstance(each, CaughtUp) else each.value for each in seen] == [b"1", None, b"2"]
        assert await reader.partitions() == 1


async def test_a_log_that_is_not_there_or_no_log_is_an_error_that_names_it(path: Path) -> None:
    with pytest.raises(ConfigError, match="no such log"):
        async with open_reader(path, TOPICS.frames):
            pass
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(ConfigError, match="log.db"):
        await EmbeddedLog(path, TOPICS).start()
    with pytest.raises(ConfigError, match="log.db"):
        async with open_reader(path, TOPICS.frames):
            pass
    assert path.read_bytes().startswith(b"not a database"), "what is not ours is not touched"


@pytest.mark.parametrize(
    ("statement", "text"), [("PRAGMA user_version = 99", "newer program"), ("CREATE TABLE mine (x)", "something else")]
)
async def test_a_file_of_a_newer_program_or_of_another_is_refused(path: Path, statement: str, text: str) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()
    with pytest.raises(ConfigError, match=text):
        await EmbeddedLog(path, TOPICS).start()


async def test_another_number_of_partitions_is_refused_with_the_mend(path: Path) -> None:
    async with opened(path):
        pass
    with pytest.raises(ConfigError, match=r"set \[topics\] partitions = 1"):
        await EmbeddedLog(path, Topics(partitions=3)).start()


async def test_after_close_nothing_hangs(path: Path) -> None:
    async with opened(path) as log:
        appends = [asyncio.create_task(log.append_frame("gw", b"x")) for _ in range(2_000)]
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        results = await asyncio.gather(*appends, return_exceptions=True)
    assert all(result is None or isinstance(result, Unavailable) for result in results)
    with pytest.raises(Unavailable, match="closed"):
        await log.append_frame("gw", b"x")


async def test_b2_after_an_error_of_the_disk_the_file_is_opened_anew_before_anything_is_acked(path: Path) -> None:
    async with opened(path) as log:
        await log.append_frame("gw", b"1")
        writer = log._writer
        apply = log._apply

        def failing(*_: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        log._apply = failing  # type: ignore[method-assign,assignment]
        with pytest.raises(Unavailable, match="disk I/O error"):
            await log.append_frame("gw", b"2")
        log._apply = apply  # type: ignore[method-assign]
        await log.append_frame("gw", b"3")
        assert log._writer is not writer
        found = await read_to_end(log, [TOPICS.frames])
        assert [(record.offset, record.value) for record in found] == [(0, b"1"), (1, b"3")]


async def test_a_transaction_that_fails_midway_leaves_nothing(path: Path) -> None:
    async with opened(path) as log:
        add = log._add

        def failing(*arguments: Any) -> tuple[int, int]:
            if arguments[1].value == b"bad":
                raise sqlite3.OperationalError("disk I/O error")
            return add(*arguments)

        log._add = failing  # type: ignore[method-assign,assignment]
        partition = EmbeddedPartition(log, 0)
        await partition.load()
        records = [OutRecord("t", b"k", value, []) for value in (b"good", b"bad")]
        with pytest.raises(Unavailable, match="disk I/O error"):
            await partition.commit(Step(records, {b"l": b"1"}, 3))
        assert (await partition.load()).ledger == {}
        assert await read_to_end(log, ["t"]) == []
        await partition.commit(Step(records[:1], {}, 1))
        assert [record.value for record in await read_to_end(log, ["t"])] == [b"good"]


async def test_what_was_acked_is_there_after_sigkill(path: Path) -> None:
    """A child appends frames and says which were acked; it is killed under load; all acked ones are there, in order."""
    program = (
        "import asyncio, sys, pathlib\n"
        "from cloud_ingest.config import Topics\n"
        "from cloud_ingest.journal.embedded import EmbeddedLog\n"
        "async def main():\n"
        "    log = EmbeddedLog(pathlib.Path(sys.argv[1]), Topics(partitions=1))\n"
        "    await log.start()\n"
        "    async def sender(name):\n"
        "        for n in range(100_000):\n"
        "            await log.append_frame(name, b'%d' % n)\n"
        "            print(name, n, flush=True)\n"
        "    await asyncio.gather(*(sender(f'gw-{n}') for n in range(8)))\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    lines = [await child.stdout.readline() for _ in range(300)]
    child.send_signal(signal.SIGKILL)
    rest = await child.stdout.read()
    await child.wait()
    complete = [*lines, *(line for line in rest.splitlines(keepends=True) if line.endswith(b"\n"))]
    acked = {(name, int(number)) for name, number in (line.decode().split() for line in complete)}
    wal, away = path.with_name("log.db-wal"), path.with_name("away")
    wal.rename(away)  # SQLite would begin a new one, and say nothing
    for opening in (opened(path), open_reader(path, TOPICS.frames)):
        with pytest.raises(ConfigError, match="put it back"):
            async with opening:
                pass
    away.rename(wal)
    async with opened(path) as log:
        found = await read_to_end(log, [TOPICS.frames])
    there = [((record.key or b"").decode(), int(record.value or b"")) for record in found]
    assert len(acked) >= 300
    assert acked <= set(there)
    for name in {name for name, _ in there}:
        numbers = [number for each, number in there if each == name]
        assert numbers == list(range(len(numbers)))


async def test_nothing_is_acknowledged_that_goes_into_a_file_which_was_removed(path: Path) -> None:
    away = path.with_name("away.db")
    async with opened(path) as log:
        await log.append_frame("gw", b"one")
        path.rename(away)
        with pytest.raises(Unavailable, match="removed or replaced while it is in use"):
            await log.append_frame("gw", b"two")
        path.write_bytes(b"")  # another one in its place
        with pytest.raises(Unavailable, match="removed or replaced while it is in use"):
            await log.append_frame("gw", b"two")
        assert "put it back" in log.fault
        away.rename(path)
        await log.append_frame("gw", b"three")
        assert log.fault == ""
    async with opened(path) as log:
        assert [record.value async for record in log.unrouted()] == [b"one", b"three"]


async def test_r6_a_clock_that_was_set_back_makes_no_routed_record_old_enough_to_be_deleted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PRUNE_EVERY", 0.0)
    right = now = 1_700_000_000_000

    def clock() -> int:
        return now

    for turn in range(2):  # within one run, and after a restart
        async with opened(path, retention=Retention(age_ms=60_000), clock_ms=clock) as log:
            partition = EmbeddedPartition(log, 0)
            await partition.load()
            now = right
            await partition.commit(Step([OutRecord("fleet", b"V1", b"right", [])], {}, 1))
            now = 1_000
            if turn:
                await partition.commit(Step([OutRecord("fleet", b"V1", b"in the same run", [])], {}, 1))
        async with opened(path, retention=Retention(age_ms=60_000), clock_ms=clock) as log:
            partition = EmbeddedPartition(log, 0)
            await partition.load()
            await partition.commit(Step([OutRecord("fleet", b"V1", b"after a restart", [])], {}, 1))
            now = right + 1
            for _ in range(2):
                await log.append_frame("gw", b"the writer prunes between two writes")
            found = await read_to_end(log, ["fleet"])
            assert len(found) == (5 if turn else 2)
            assert {record.stamp_ms for record in found} == {right}

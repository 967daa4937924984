"""A file that was damaged, cut off, put back or removed between two starts: what is missing is saved or declared."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from edge_agent.buffer import upkeep
from edge_agent.buffer.connection import checkpoint
from edge_agent.buffer.mark import MarkFile
from edge_agent.buffer.port import Commit
from edge_agent.buffer.sqlite import SqliteBuffer
from tests.support.buffer import chunk, commit, drain, messages, open_sqlite, payloads, until
from waybill.errors import ConfigError, Unavailable
from waybill.mqtt.state import Queued, Retained, SessionOpened
from waybill.wire import CONTROL_LANE, TELEMETRY_LANE, Envelope, Receipt, Span

DAMAGES = 400 if os.environ.get("WAYBILL_LONG") else 24


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "MARK_EVERY", 0.005)


@dataclass
class Written:
    """What was acknowledged: payloads by (epoch, seq) of the telemetry lane; what the cloud has of it."""

    acked: dict[tuple[int, int], bytes] = field(default_factory=dict)
    delivered: set[tuple[int, int]] = field(default_factory=set)

    async def add(self, buffer: SqliteBuffer, *sent: bytes) -> None:
        await buffer.commit(Commit([chunk(*sent, client=f"c{len(self.acked) % 3}", pid=1 + len(self.acked))]))
        at = max((seq for epoch, seq in self.acked if epoch == buffer.epoch), default=0)
        self.acked |= {(buffer.epoch, at + number): payload for number, payload in enumerate(sent, 1)}

    async def deliver(self, buffer: SqliteBuffer, first: int, last: int) -> None:
        await buffer.settle([Span(buffer.epoch, TELEMETRY_LANE, first, last)])
        self.delivered |= {(buffer.epoch, seq) for seq in range(first, last + 1)}


async def marked(buffer: SqliteBuffer) -> None:
    """Wait until the mark has all that was committed."""
    directory = buffer.path.parent
    await until(lambda: (mark := MarkFile.read(directory).last) is not None
                and mark.transactions == buffer._index.transactions)  # fmt: skip


async def killed(buffer: SqliteBuffer, where: Path) -> Path:
    """Leave a copy of the data directory as a SIGKILL would, and close the buffer."""
    await marked(buffer)
    shutil.copytree(buffer.path.parent, where)
    await buffer.close()
    return where


async def receipts(buffer: SqliteBuffer) -> list[Receipt]:
    found = messages(await drain(buffer, CONTROL_LANE))
    return [msgspec.json.decode(each.payload, type=Receipt) for each in found if each.topic == "$waybill/receipt"]


async def check(buffer: SqliteBuffer, written: Written) -> tuple[int, int]:
    """Nothing acknowledged is missing undeclared, and what is there is what was sent; return (there, declared)."""
    there = {
        (lease.epoch, lease.first + at): message.payload
        for lease in await drain(buffer)
        for at, message in enumerate(lease.messages)
    }
    unsaid = buffer._engine.index.losses.values()  # declared in the file, and to be said within a second
    declared = {
        (each.epoch, seq)
        for each in [*await receipts(buffer), *unsaid]
        if each.lane == TELEMETRY_LANE
        for seq in range(each.first, each.last + 1)
    }
    for place, payload in there.items():
        assert written.acked[place] == payload
    assert not there.keys() & declared
    assert not written.acked.keys() - there.keys() - declared - written.delivered
    return len(there), len(declared)


async def two_starts(data: Path, copy: Path) -> Written:
    """Two starts with commits, deliveries and a checkpoint between, the second killed."""
    written = Written()
    buffer = await open_sqlite(data)
    for number in range(30):
        if number % 3 == 0:
            kept = Queued(f"s{number % 6}", number, 1, retain=False, topic=b"t", payload=b"q" * 300)
            retained = Retained(b"t/%d" % number, 1, b"r" * 100)
            await buffer.commit(Commit([], [SessionOpened(kept.client, 4), kept, retained]))
            await buffer.receive(Envelope(f"id-{number}", "command", "V1", "x", b"p" * 200, 1 << 40), 0)
        await written.add(buffer, *[b"a%d.%d " % (number, each) + b"x" * 700 * (number % 9) for each in range(5)])
    await written.deliver(buffer, 1, 42)
    await buffer.close()
    buffer = await open_sqlite(data)
    for number in range(40):
        await written.add(buffer, b"b%d " % number + b"y" * 5000 * (number % 3))
        if number == 15:
            await buffer._engine.read(lambda db: checkpoint(db, "PASSIVE"))
    await written.deliver(buffer, 1, 7)
    await killed(buffer, copy)
    return written


def remove_the_log(data: Path, _: random.Random) -> None:
    (data / "buffer.db-wal").unlink()


def cut_the_log(data: Path, rng: random.Random) -> None:
    log = data / "buffer.db-wal"
    os.truncate(log, rng.randrange(log.stat().st_size))


def flip_in(name: str) -> Callable[[Path, random.Random], None]:
    def flip(data: Path, rng: random.Random) -> None:
        content = bytearray((data / name).read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (data / name).write_bytes(content)

    flip.__name__ = f"flip_in_{name}"
    return flip


def overwrite(data: Path, rng: random.Random) -> None:
    """Some pages are anything, the first among them now and then."""
    content = bytearray((data / "buffer.db").read_bytes())
    pages = len(content) // 4096
    for page in {rng.randrange(pages) for _ in range(rng.randrange(1, 6))} | ({0} if rng.random() < 0.3 else set()):
        content[page * 4096 : (page + 1) * 4096] = rng.choice([bytes(4096), rng.randbytes(4096)])
    (data / "buffer.db").write_bytes(content)


def cut_the_file(data: Path, rng: random.Random) -> None:
    file = data / "buffer.db"
    os.truncate(file, rng.randrange(file.stat().st_size))


def zeros(data: Path, _: random.Random) -> None:
    file = data / "buffer.db"
    file.write_bytes(bytes(file.stat().st_size))


def remove_all(data: Path, _: random.Random) -> None:
    for each in data.glob("buffer.db*"):
        each.unlink()


@pytest.mark.parametrize(
    "damage",
    [remove_the_log, cut_the_log, flip_in("buffer.db-wal"), flip_in("buffer.db"), overwrite, cut_the_file, zeros,
     remove_all],
    ids=lambda damage: damage.__name__,
)  # fmt: skip
async def test_b6_whatever_happens_to_the_file_nothing_acknowledged_is_missing_undeclared(
    tmp_path: Path, damage: Callable[[Path, random.Random], None], caplog: pytest.LogCaptureFixture
) -> None:
    written = await two_starts(tmp_path / "data", tmp_path / "killed")
    rounds = DAMAGES if "flip" in damage.__name__ or damage is overwrite else max(3, DAMAGES // 4)
    for seed in range(rounds):
        data = tmp_path / f"{seed}"
        shutil.copytree(tmp_path / "killed", data)
        damage(data, random.Random(seed))
        caplog.clear()
        buffer = await open_sqlite(data)
        await buffer.restore()
        await buffer.outbox(0)
        _, lost = await check(buffer, written)
        assert not lost or buffer.alarm or buffer.counters.damaged
        await buffer.close()
        buffer = await open_sqlite(data)  # the second time nothing is new
        assert buffer.alarm == ""
        await check(buffer, written)
        await buffer.close()
        shutil.rmtree(data)


async def test_b6_of_a_log_with_one_changed_byte_all_but_one_block_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = await open_sqlite(tmp_path / "data")
    for number in range(150):
        await buffer.commit(commit(b"payload-%03d" % number))
    epoch = buffer.epoch
    data = await killed(buffer, tmp_path / "killed")
    log = data / "buffer.db-wal"
    damaged = log.read_bytes().replace(b"payload-002", b"payload-xxx")
    log.write_bytes(damaged)
    buffer = await open_sqlite(data)
    assert await payloads(buffer) == [b"payload-%03d" % number for number in range(150) if number != 2]
    (receipt,) = await receipts(buffer)
    assert receipt == Receipt(epoch, TELEMETRY_LANE, 0, 0, 3, 3, 1, 0, "lost: the buffer's file was behind its mark")
    assert "up to 1 messages that were acknowledged to devices are lost and declared" in buffer.alarm
    assert buffer.alarm in caplog.text
    assert (data / "buffer.db-wal.damaged-1").read_bytes() == damaged
    await buffer.close()


async def test_b6_an_older_copy_of_the_file_put_back_is_declared_from_there_on(tmp_path: Path) -> None:
    written = Written()
    buffer = await open_sqlite(tmp_path)
    await written.add(buffer, b"1", b"2")
    await buffer.close()
    shutil.copy(tmp_path / "buffer.db", tmp_path / "backup")
    buffer = await open_sqlite(tmp_path)
    await written.add(buffer, b"3", b"4", b"5")
    await written.deliver(buffer, 1, 1)
    await buffer.close()
    epoch = buffer.epoch
    shutil.copy(tmp_path / "backup", tmp_path / "buffer.db")
    buffer = await open_sqlite(tmp_path)
    assert await check(buffer, written) == (2, 2)
    (receipt,) = await receipts(buffer)
    assert (receipt.epoch, receipt.first, receipt.last) == (epoch, 2, 3)
    assert "buffer.db is older than it was" in buffer.alarm
    await written.add(buffer, b"6")
    (*_, lease) = await drain(buffer)
    assert (lease.prev_epoch, lease.prev_last) == (epoch, 3)  # E2: the epoch that is lost is not passed over
    await buffer.close()


async def test_b6_a_file_of_another_gateway_with_more_in_it_is_not_taken_for_the_own(tmp_path: Path) -> None:
    mine, other = Written(), Written()
    buffer = await open_sqlite(tmp_path / "mine")
    await mine.add(buffer, b"1", b"2", b"3")
    await mine.deliver(buffer, 1, 1)
    await buffer.close()
    buffer = await open_sqlite(tmp_path / "other")
    for number in range(20):
        await other.add(buffer, b"other %d" % number)
    await buffer.close()
    shutil.copy(tmp_path / "other" / "buffer.db", tmp_path / "mine" / "buffer.db")
    buffer = await open_sqlite(tmp_path / "mine")
    assert "buffer.db is another one than it was" in buffer.alarm
    mine.acked |= other.acked
    assert await check(buffer, mine) == (20, 2)
    await buffer.close()
    buffer = await open_sqlite(tmp_path / "mine")
    assert buffer.alarm == ""
    assert await check(buffer, mine) == (20, 2)
    await buffer.close()


@pytest.mark.parametrize("while_it_runs", [False, True])
async def test_b6_a_clone_that_ran_on_and_was_put_back_is_declared_from_where_it_left(
    tmp_path: Path, *, while_it_runs: bool
) -> None:
    mine, clone, data = Written(), Written(), tmp_path / "mine"
    buffer = await open_sqlite(data)
    await mine.add(buffer, b"1", b"2", b"3")
    if while_it_runs:
        await marked(buffer)
    else:
        await buffer.close()
    shutil.copytree(data, tmp_path / "clone")
    clone.acked |= mine.acked
    if not while_it_runs:
        buffer = await open_sqlite(data)
    await mine.add(buffer, b"4", b"5")
    await buffer.close()
    buffer = await open_sqlite(tmp_path / "clone")
    for number in range(20):
        await clone.add(buffer, b"clone %d" % number)
    await buffer.close()
    shutil.copy(tmp_path / "clone" / "buffer.db", data / "buffer.db")
    buffer = await open_sqlite(data)
    assert "buffer.db is another one than it was" in buffer.alarm
    clone.acked |= mine.acked
    assert await check(buffer, clone) == (23, 2)
    await buffer.close()


async def test_b6_what_a_start_took_away_of_what_had_been_dropped_is_no_loss_at_the_next(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path)
    await buffer.commit(commit(b"1", b"2"))
    epoch = buffer.epoch
    await buffer.give_up(Receipt(epoch, TELEMETRY_LANE, 0, 0, 1, 2, 2, 9, "evicted: full"))
    await buffer.close()
    buffer = await open_sqlite(tmp_path)
    await buffer.commit(commit(b"3"))
    await buffer.close()
    for number in range(3):
        copy = tmp_path / f"killed{number}"
        buffer = await open_sqlite(tmp_path)
        shutil.copytree(tmp_path, copy, ignore=shutil.ignore_patterns("killed*"))  # before the first mark that is due
        await buffer.close()
        buffer = await open_sqlite(copy)
        assert buffer.alarm == ""
        await buffer.close()


async def test_b6_a_damaged_file_is_left_as_it_is_and_sessions_are_saved_as_far_as_can_be(tmp_path: Path) -> None:
    written = Written()
    buffer = await open_sqlite(tmp_path)
    for number in range(50):
        await written.add(buffer, b"%d " % number + b"x" * 3000)
    await buffer.commit(Commit([], [SessionOpened("s", 4)]))
    await buffer.close()
    file = tmp_path / "buffer.db"
    with closing(sqlite3.connect(file)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'blocks_place'").fetchone()
    content = bytearray(file.read_bytes())
    content[(root - 1) * 4096 : root * 4096] = bytes(4096)
    file.write_bytes(content)
    buffer = await open_sqlite(tmp_path)
    assert buffer.path == tmp_path / "buffer.2.db"
    assert await check(buffer, written) == (50, 0)
    assert set((await buffer.restore()).sessions) == {"s"}
    assert file.read_bytes() == content
    assert buffer.left == [file]
    assert "buffer.db was damaged and is left as it is" in buffer.alarm
    await buffer.close()
    assert not list(tmp_path.glob("*.new*"))


async def test_b6_a_file_that_is_gone_is_declared_and_the_agent_goes_on(tmp_path: Path) -> None:
    written = Written()
    buffer = await open_sqlite(tmp_path)
    await written.add(buffer, b"1", b"2", b"3")
    await written.deliver(buffer, 1, 1)
    epoch = buffer.epoch
    await buffer.close()
    (tmp_path / "buffer.db").unlink()
    buffer = await open_sqlite(tmp_path)
    assert "buffer.db is gone" in buffer.alarm
    assert await check(buffer, written) == (0, 2)
    assert [(each.epoch, each.first, each.last) for each in await receipts(buffer)] == [(epoch, 2, 3)]
    await written.add(buffer, b"4")
    assert await payloads(buffer) == [b"4"]
    await buffer.close()


@pytest.mark.parametrize("with_mark", [True, False])
async def test_b6_of_a_file_that_is_gone_what_its_log_holds_is_saved(tmp_path: Path, *, with_mark: bool) -> None:
    written = Written()
    buffer = await open_sqlite(tmp_path / "data")
    for number in range(50):
        await written.add(buffer, b"%d " % number + b"x" * 3000)
    data = await killed(buffer, tmp_path / "killed")
    log = (data / "buffer.db-wal").read_bytes()
    (data / "buffer.db").unlink()
    if not with_mark:
        (data / "mark").unlink()
    buffer = await open_sqlite(data)
    assert await check(buffer, written) == (50, 0)
    assert "buffer.db is gone; going on with 50 blocks" in buffer.alarm
    assert (data / "buffer.db-wal.damaged-1").read_bytes() == log
    await buffer.close()
    buffer = await open_sqlite(data)
    assert buffer.alarm == ""
    assert await check(buffer, written) == (50, 0)
    await buffer.close()


async def test_b6_of_a_file_that_is_removed_from_a_running_agent_what_its_log_holds_is_saved(tmp_path: Path) -> None:
    written = Written()
    buffer = await open_sqlite(tmp_path)
    for number in range(20):
        await written.add(buffer, b"%d" % number)
    await buffer._engine.read(lambda db: checkpoint(db, "TRUNCATE"))
    for number in range(30):
        await written.add(buffer, b"log %d" % number)
    (tmp_path / "buffer.db").unlink()
    await written.add(buffer, b"later")
    there, lost = await check(buffer, written)
    assert there >= 31
    assert there + lost == 51
    assert "buffer.db is gone; going on in" in buffer.alarm
    assert buffer.path == tmp_path / "buffer.2.db"
    await buffer.close()


async def test_b6_a_start_that_was_killed_before_its_first_mark_is_no_loss(tmp_path: Path) -> None:
    """It drops what is settled from the file while the mark still names it."""
    for _ in range(3):
        buffer = await open_sqlite(tmp_path)
        await buffer.commit(commit(b"1"))
        await drain(buffer, settle=True)
        await buffer.close()
    mark = (tmp_path / "mark").read_bytes()
    for _ in range(3):
        await (await open_sqlite(tmp_path)).close()
        (tmp_path / "mark").write_bytes(mark)
    buffer = await open_sqlite(tmp_path)
    assert buffer.alarm == ""
    assert await receipts(buffer) == []
    await buffer.close()


async def test_b6_salvage_that_is_interrupted_begins_again(tmp_path: Path) -> None:
    written = await two_starts(tmp_path / "data", tmp_path / "killed")
    data = tmp_path / "killed"
    overwrite(data, random.Random(0))
    with limited_files(60_000), pytest.raises((Unavailable, OSError)):
        await open_sqlite(data)
    buffer = await open_sqlite(data)
    there, _ = await check(buffer, written)
    assert there > 100
    await buffer.close()
    assert not list(data.glob("*.new*"))


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_what_is_not_ours_is_refused_even_where_a_mark_is(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path)
    await buffer.commit(commit(b"1"))
    await buffer.close()
    file = tmp_path / "buffer.db"
    file.unlink()
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE theirs (x)")
    theirs = file.read_bytes()
    with pytest.raises(ConfigError, match="not a buffer of this program"):
        await open_sqlite(tmp_path)
    assert file.read_bytes() == theirs

"""No room: the cap, the floor of free space, a full disk, a limit on file sizes. Commits wait, settling does not."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from edge_agent.buffer import sqlite
from edge_agent.buffer.directory import Directory
from edge_agent.buffer.settings import MIB, BufferSettings
from edge_agent.buffer.sqlite import SqliteBuffer
from tests.support.buffer import SMALL, commit, drain, messages, open_sqlite, payloads, span_of, until
from tests.support.faulty_disk import Disk, Fault, disk
from waybill.errors import Unavailable
from waybill.wire import CONTROL_LANE, TELEMETRY_LANE, Envelope, Receipt

__all__ = ["disk"]

FULL = sqlite3.SQLITE_FULL


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(sqlite, "SETTLE_DELAY", 0.01)


async def fill(buffer: SqliteBuffer) -> tuple[int, asyncio.Task[None]]:
    """Commit until one is held; return how many were not, and the one that is."""
    for number in range(10_000):
        task = asyncio.ensure_future(buffer.commit(commit(b"%06d" % number + b"x" * 20_000)))
        await until(lambda task=task: task.done() or buffer.fault != "")  # type: ignore[misc]
        if not task.done():
            return number, task
    pytest.fail("nothing stopped it")


def used(data: Path) -> int:
    return sum(file.stat().st_size for file in data.iterdir())


async def test_at_the_cap_commits_wait_until_something_was_settled(tmp_path: Path) -> None:
    settings = BufferSettings(max_bytes=2 * MIB, ballast_bytes=MIB // 4, min_free_bytes=0)
    buffer = await open_sqlite(tmp_path, settings)
    held_at: list[int] = []
    for _ in range(3):  # pages freed are used again: the file does not grow from round to round
        acked, held = await fill(buffer)
        held_at.append(acked)
        assert buffer.fault == "the buffer is at its cap of 2 MiB (max_bytes)"
        assert used(tmp_path) <= 2 * MIB
        assert await buffer.receive(Envelope(f"id-{len(held_at)}", "command", "V1", "x", b"", 10), 0)  # goes through
        leases = await drain(buffer)
        assert len(messages(leases)) == acked + (len(held_at) > 1)
        assert not held.done()
        await buffer.settle([span_of(lease) for lease in leases])
        await asyncio.wait_for(held, 60)
        assert buffer.fault == ""
    assert held_at[0] > 20
    assert held_at[2] >= held_at[0] - 10
    await buffer.close()


async def test_below_the_floor_commits_wait_and_a_close_ends_the_wait(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path, BufferSettings(ballast_bytes=0, min_free_bytes=1 << 60))
    acked, held = await fill(buffer)
    assert acked == 0
    assert "free on the disk of" in buffer.fault
    assert await buffer.receive(Envelope("id", "command", "V1", "x", b"", 10), 0)  # small, and not asked
    assert "free on the disk of" in buffer.fault
    await buffer.close()
    with pytest.raises(Unavailable, match="closed"):
        await held


async def test_a_full_disk_holds_commits_and_spends_the_ballast_only_on_what_makes_room(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[bool] = []
    drop = Directory.drop_ballast

    def watched(directory: Directory) -> bool:
        dropped.append(drop(directory))
        return dropped[-1]

    monkeypatch.setattr(Directory, "drop_ballast", watched)
    buffer = await open_sqlite(tmp_path, BufferSettings(ballast_bytes=MIB, min_free_bytes=0))
    await buffer.commit(commit(b"1"))
    await buffer.commit(commit(b"2"))
    full = Fault("INSERT INTO blocks", FULL, times=1000)
    disk.faults.append(full)
    held = asyncio.ensure_future(buffer.commit(commit(b"3")))
    await until(lambda: disk.failed >= 6)
    assert buffer.fault.startswith("disk full")
    assert dropped == []
    assert caplog.text.count("nothing is acknowledged") == 1
    disk.faults.append(Fault("DELETE FROM blocks", FULL))
    (lease,) = await drain(buffer)
    await buffer.settle([span_of(lease)])
    await until(lambda: buffer.counters.blocks_deleted == 2)
    assert dropped == [True]
    full.times = 0
    await asyncio.wait_for(held, 60)
    assert buffer.fault == ""
    await buffer.commit(commit(b"4"))
    assert await payloads(buffer) == [b"3", b"4"]
    assert (tmp_path / "ballast").exists()  # made again
    assert buffer.path.name == "buffer.db"
    assert buffer.counters.repairs == 0
    await buffer.close()


async def test_what_the_uplink_waits_for_is_refused_and_not_held(disk: Disk, tmp_path: Path) -> None:
    """Held, it would keep the acks from being read that make room."""
    buffer = await open_sqlite(tmp_path)
    await buffer.commit(commit(b"1"))
    disk.faults.append(Fault("INSERT INTO blocks", FULL, times=4))
    with pytest.raises(Unavailable, match="disk full"):
        await buffer.receive(Envelope("id", "command", "V1", "x", b"", 10), 0)
    with pytest.raises(Unavailable, match="disk full"):
        await buffer.give_up(Receipt(buffer.epoch, TELEMETRY_LANE, 0, 0, 1, 1, 1, 1, "refused"))
    assert await payloads(buffer) == [b"1"]
    assert await payloads(buffer, CONTROL_LANE) == []
    assert await buffer.receive(Envelope("id", "command", "V1", "x", b"", 10), 0)
    await buffer.close()


async def test_the_outbox_is_bounded(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path, BufferSettings(ballast_bytes=0, min_free_bytes=0, outbox_limit=2))
    for name in ("a", "b"):
        assert await buffer.receive(Envelope(name, "command", "V1", "x", b"", 10), 0)
    with pytest.raises(Unavailable, match="the outbox holds 2 commands"):
        await buffer.receive(Envelope("c", "command", "V1", "x", b"", 10), 0)
    assert len(await payloads(buffer, CONTROL_LANE)) == 2
    day = 24 * 3600 * 1000  # nobody asked for the open commands meanwhile, and there is room again
    assert await buffer.receive(Envelope("c", "command", "V1", "x", b"", 2 * day), 10 + day)
    await buffer.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from edge_agent.buffer import sqlite
from edge_agent.buffer.directory import Directory
from tests.support.buffer import commit, open_sqlite

async def main() -> None:
    buffer = await open_sqlite(Path(sys.argv[1]))
    for number in range(1000):
        await buffer.commit(commit(b"%06d" % number + b"x" * 20_000))
        print(number, flush=True)

asyncio.run(main())
"""


async def test_b1_what_was_acknowledged_is_there_when_files_may_not_grow(tmp_path: Path) -> None:
    """A real error of the operating system (EFBIG by RLIMIT_FSIZE), and SIGKILL while the commit is held."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))  # noqa: E731
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=limit,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    async with asyncio.timeout(180):
        said = await child.stderr.readuntil(b"\n")
        await asyncio.sleep(1)  # several attempts
        child.send_signal(signal.SIGKILL)
        out = await child.stdout.read()
        await child.wait()
    assert b"nothing is acknowledged" in said
    acked = len(out.split())
    assert acked > 10
    buffer = await open_sqlite(tmp_path, SMALL)
    found = [int(each[:6]) for each in await payloads(buffer)]
    assert found in (list(range(acked)), list(range(acked + 1)))  # the one in flight may be there
    await buffer.close()

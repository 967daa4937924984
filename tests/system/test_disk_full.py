"""A disk that is really full: a small file system filled to the last block by somebody else."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from edge_agent.buffer import sqlite
from edge_agent.buffer.connection import checkpoint
from edge_agent.buffer.directory import size
from edge_agent.buffer.settings import MIB, BufferSettings
from edge_agent.buffer.sqlite import SqliteBuffer
from edge_agent.lanes import Lane, complete
from tests.support.buffer import commit, drain, messages, open_sqlite, payloads, span_of, until
from tests.support.loop_disk import fill, loop_disk
from waybill.errors import Unavailable
from waybill.wire import CONTROL_LANE, Receipt

pytestmark = pytest.mark.system


def free(path: Path) -> int:
    """Return the bytes that may still be written there."""
    return os.statvfs(path).f_bavail * os.statvfs(path).f_frsize


async def test_a_lane_that_drops_goes_on_on_a_full_disk_and_declares_what_that_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PAUSES", (0.01, 0.05))
    settings = BufferSettings(ballast_bytes=2 * MIB, min_free_bytes=0)
    lanes = complete([Lane("fresh", 20, ("f",), when_full="drop-oldest")])
    with loop_disk(tmp_path, 32) as disk:
        data = disk.path / "data"
        buffer = await SqliteBuffer.open(data, settings, gateway="g", boot="b", lanes=lanes)
        sent = [b"%06d" % number + b"x" * 20_000 for number in range(600)]
        for payload in sent[:100]:
            await buffer.commit(commit(payload, lane="fresh"))
        fill(disk.path / "theirs")
        for payload in sent[100:]:
            await asyncio.wait_for(buffer.commit(commit(payload, lane="fresh")), 60)
        assert buffer.fault == ""
        kept = await payloads(buffer, "fresh")
        assert 50 < len(kept) < 500
        assert kept == sent[-len(kept) :]
        await until(lambda: not buffer._index.losses)  # said, on a disk as full as before
        losses = [msgspec.json.decode(payload, type=Receipt) for payload in await payloads(buffer, CONTROL_LANE)]
        assert [loss.first for loss in losses] == [1, *(loss.last + 1 for loss in losses[:-1])]
        assert losses[-1].last == len(sent) - len(kept)
        await buffer.close()

        buffer = await SqliteBuffer.open(data, settings, gateway="g", boot="b", lanes=lanes)
        assert await payloads(buffer, "fresh") == kept
        assert len(await payloads(buffer, CONTROL_LANE)) == len(losses)
        await buffer.close()


async def test_a_lane_that_drops_gives_way_on_a_full_disk_where_the_log_has_to_become_shorter_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PAUSES", (0.01, 0.05))
    settings = BufferSettings(ballast_bytes=2 * MIB, min_free_bytes=0)
    lanes = complete([Lane("fresh", 20, ("f",), when_full="drop-oldest")])
    with loop_disk(tmp_path, 48) as disk:
        data = disk.path / "data"
        buffer = await SqliteBuffer.open(data, settings, gateway="g", boot="b", lanes=lanes)
        number = 0

        async def send(count: int) -> None:
            nonlocal number
            batch = [b"%07d" % each + b"x" * 900 for each in range(number, number + count)]
            await asyncio.wait_for(buffer.commit(commit(*batch, lane="fresh")), 60)
            number += count

        while free(disk.path) > 12 * MIB:
            await send(50)
        await buffer._engine.tend(checkpoint, "TRUNCATE")
        theirs = disk.path / "theirs"
        fill(theirs)
        os.truncate(theirs, theirs.stat().st_size - MIB)
        for count in [1, 49, 78, 72, 78, 40] * 5 + [200] * 20:  # the log becomes shorter each time
            await send(count)
        assert buffer.fault == ""
        kept = [int(payload[:7]) for payload in await payloads(buffer, "fresh")]
        assert len(kept) > 10_000
        assert free(disk.path) + size(data / "ballast") + size(data / "buffer.db-wal") > 2 * MIB  # for the next ones
        assert kept == list(range(number - len(kept), number))
        await buffer.close()


async def test_a_full_disk_holds_commits_and_settling_makes_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PAUSES", (0.01, 0.05))
    settings = BufferSettings(ballast_bytes=2 * MIB, min_free_bytes=0)
    with loop_disk(tmp_path, 32) as disk:
        data = disk.path / "data"
        buffer = await open_sqlite(data, settings)
        acked: list[bytes] = []
        for number in range(100):
            acked.append(b"%06d" % number + b"x" * 20_000)
            await buffer.commit(commit(acked[-1]))
        fill(disk.path / "theirs")
        held = None
        for number in range(100, 1000):
            acked.append(b"%06d" % number + b"x" * 20_000)
            held = asyncio.ensure_future(buffer.commit(commit(acked[-1])))
            await until(lambda held=held: held.done() or buffer.fault != "")  # type: ignore[misc]
            if not held.done():
                break
        assert held is not None
        assert not held.done()
        assert buffer.fault.startswith("disk full")

        leases = await drain(buffer, count=20)
        assert [message.payload for message in messages(leases)] == acked[:-1]
        await buffer.settle([span_of(lease) for lease in leases[:3]])
        await asyncio.wait_for(held, 60)  # the disk is as full as before; the pages settled are used again
        for number in range(1000, 1010):
            acked.append(b"%06d" % number + b"x" * 20_000)
            await asyncio.wait_for(buffer.commit(commit(acked[-1])), 60)
        assert buffer.fault == ""
        assert buffer.path.name == "buffer.db"
        await buffer.close()

        buffer = await open_sqlite(data, settings)  # a start on a full disk
        assert await payloads(buffer) == acked[60:]
        await buffer.close()


async def test_a_small_disk_is_used_before_lanes_begin_to_refuse_and_it_is_said_why(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 32) as disk:
        data = disk.path / "data"
        buffer = await open_sqlite(data, BufferSettings(min_free_bytes=0))
        _, room = await buffer.space()
        assert room < 32 * MIB
        assert (buffer.refusing, buffer.full) == (frozenset(), "")
        count = 0
        while not buffer.refusing:
            await buffer.commit(commit(b"x" * 100_000))
            count += 1
        assert count > 80  # the rest is the log's, the ballast's and the reserve
        assert room > count * 100_000
        assert (await buffer.space())[1] < MIB
        assert buffer.full == f"disk full: {buffer.path}"
        for _ in range(10):  # what was read already
            await asyncio.wait_for(buffer.commit(commit(b"x" * 100_000)), 60)
        assert buffer.fault == ""
        await drain(buffer, settle=True)
        await buffer.commit(commit(b"1"))
        assert (buffer.refusing, buffer.full) == (frozenset(), "")
        await buffer.close()


async def test_b6_a_damaged_file_waits_untouched_for_room_to_save_what_is_in_it(tmp_path: Path) -> None:
    settings = BufferSettings(ballast_bytes=MIB, min_free_bytes=0)
    with loop_disk(tmp_path, 32) as disk:
        data = disk.path / "data"
        buffer = await open_sqlite(data, settings)
        acked = [b"%06d" % number + b"x" * 20_000 for number in range(300)]
        for payload in acked:
            await buffer.commit(commit(payload))
        await buffer.close()
        file = data / "buffer.db"
        with file.open("r+b") as damaged:  # the root of the sessions' table, say
            damaged.seek(4096)
            damaged.write(bytes(3 * 4096))
        before = file.read_bytes()
        fill(disk.path / "theirs")
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"no room for what can be saved of it: make room, up to 6 MiB"):
                await open_sqlite(data, settings)
            assert file.read_bytes() == before
            assert not list(data.glob("*.new*"))
        (disk.path / "theirs").unlink()
        buffer = await open_sqlite(data, settings)
        assert await payloads(buffer) == acked
        assert buffer.path.name == "buffer.2.db"
        await buffer.close()

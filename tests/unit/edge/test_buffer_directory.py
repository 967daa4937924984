"""The data directory: lock (B3), modes, files that are not ours, numbered files, ballast."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from edge_agent.buffer.directory import Directory
from edge_agent.buffer.settings import BufferSettings
from tests.support.buffer import commit, drain, open_sqlite, payloads
from waybill.errors import ConfigError, Locked
from waybill.wire import CONTROL_LANE


async def test_b3_a_second_agent_is_refused_by_the_number_of_the_first(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path / "data")
    with pytest.raises(Locked, match=f"process {os.getpid()}; stop it"):
        await open_sqlite(tmp_path / "data")
    script = f"import fcntl; fcntl.flock(open({str(tmp_path / 'data' / 'lock')!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    other = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "BlockingIOError" in other.stderr
    await buffer.close()
    await (await open_sqlite(tmp_path / "data")).close()


async def test_what_is_stored_is_for_the_owner_alone(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path / "data")
    await buffer.commit(commit(b"a"))
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    for name in ("lock", "buffer.db", "buffer.db-wal"):
        assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600, name
    await buffer.close()


async def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "buffer.db").write_bytes(b"x" * 5000)
    with pytest.raises(ConfigError, match=r"buffer\.db: not a readable .* nothing in it is of a buffer.* move it away"):
        await open_sqlite(tmp_path)
    assert (tmp_path / "buffer.db").read_bytes() == b"x" * 5000
    (tmp_path / "buffer.db").unlink()
    await (await open_sqlite(tmp_path)).close()  # the lock was let go


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "buffer.db")) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ConfigError, match="not a buffer of this program"):
        await open_sqlite(tmp_path)


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/data: cannot be used as data directory: Not a directory"):
        await open_sqlite(tmp_path / "file" / "data")


async def test_the_highest_number_is_the_current_file_and_unfinished_ones_go(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path)
    await buffer.commit(commit(b"old"))
    await buffer.close()
    (tmp_path / "buffer.db").rename(tmp_path / "buffer.10.db")
    (tmp_path / "buffer.9.db").write_bytes(b"set aside")
    for name in ("buffer.11.db.new", "buffer.11.db.new-wal"):
        (tmp_path / name).write_bytes(b"half")
    buffer = await open_sqlite(tmp_path)
    assert buffer.path == tmp_path / "buffer.10.db"
    assert await payloads(buffer) == [b"old"]
    await buffer.close()
    assert not list(tmp_path.glob("*.new*"))
    assert (tmp_path / "buffer.9.db").read_bytes() == b"set aside"


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000])
async def test_a_file_that_was_never_the_buffers_takes_nothing_from_the_one_that_is(
    tmp_path: Path, content: bytes
) -> None:
    buffer = await open_sqlite(tmp_path)
    await buffer.commit(commit(b"sent"))
    await drain(buffer, settle=True)
    await buffer.commit(commit(b"1"))
    await buffer.commit(commit(b"2"))
    await buffer.close()
    (tmp_path / "buffer.3.db").write_bytes(content)
    buffer = await open_sqlite(tmp_path)
    assert await payloads(buffer) == [b"1", b"2"]
    assert await payloads(buffer, CONTROL_LANE) == []
    assert buffer.path.name == ("buffer.4.db" if content else "buffer.db")
    await buffer.close()


async def test_a_data_directory_with_something_in_the_way_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "buffer.2.db.new").mkdir()
    with pytest.raises(ConfigError, match=r"buffer\.2\.db\.new: cannot be read, or removed: Is a directory"):
        await open_sqlite(tmp_path)
    (tmp_path / "buffer.2.db.new").rmdir()
    await (await open_sqlite(tmp_path)).close()  # the lock was let go


async def test_the_ballast_is_really_there_and_small_disks_get_none(tmp_path: Path) -> None:
    settings = BufferSettings(ballast_bytes=1 << 20, min_free_bytes=0)
    buffer = await open_sqlite(tmp_path / "a", settings)
    held = (tmp_path / "a" / "ballast").stat()
    assert held.st_size == 1 << 20
    assert held.st_blocks * 512 >= 1 << 20
    await buffer.close()
    directory = Directory(tmp_path / "b", 1 << 20)
    directory.take_ballast(1 << 60)
    assert directory.ballast() == 0
    directory.close()

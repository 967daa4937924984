"""Files of other schema versions: older ones are brought up to date whatever happens, newer ones left alone."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge_agent.buffer.blocks import checksum, pack
from edge_agent.buffer.connection import APPLICATION_ID
from edge_agent.buffer.sql import SCHEMA, SCHEMA_VERSION
from tests.support.buffer import chunk, drain, messages, open_sqlite
from waybill.errors import ConfigError
from waybill.wire import TELEMETRY_LANE

FIRST_SCHEMA = (Path(__file__).parents[2] / "support" / "buffer_v1.sql").read_text()
EPOCH = 4711


def write_v1(path: Path) -> None:
    """Write a buffer's file of schema version 1: two blocks in a lane, a session with a message."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(FIRST_SCHEMA)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO epochs VALUES (1, ?, 'boot-1')", (EPOCH,))
        db.execute("INSERT INTO lanes VALUES ('', 0, 5, 0, 0)")
        db.execute("INSERT INTO lanes VALUES (?, 1, 4, 0, 0)", (TELEMETRY_LANE,))
        for first in (1, 3):
            count, head, body = pack([(chunk(b"%d" % first, b"%d" % (first + 1)), 0)])
            crc = checksum(TELEMETRY_LANE, EPOCH, first, count, head, body)
            row = (TELEMETRY_LANE, first, count, len(head) + len(body), 1000, crc, head, body)
            db.execute("INSERT INTO blocks VALUES (NULL, ?, 1, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("INSERT INTO sessions VALUES ('s', 4, 4294967295, 0)")
        db.execute("INSERT INTO queue VALUES ('s', 1, 1, 0, 0, 0, x'74', x'71', x'')")


async def check_whole(data: Path) -> None:
    """Open the directory: all that version 1 had is there."""
    buffer = await open_sqlite(data)
    leases = await drain(buffer)
    assert [(lease.epoch, lease.first) for lease in leases] == [(EPOCH, 1)]
    assert [message.payload for message in messages(leases)] == [b"1", b"2", b"3", b"4"]
    assert len((await buffer.restore()).sessions["s"].queue) == 1
    assert buffer.alarm == ""
    await buffer.close()


def tables(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        rows: list[Any] = db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
        return {name: re.sub(r"\s+", " ", text) for name, text in rows}


async def test_a_file_of_version_1_becomes_what_a_new_one_is(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write_v1(tmp_path / "old" / "buffer.db")
    await check_whole(tmp_path / "old")
    await (await open_sqlite(tmp_path / "new")).close()
    assert tables(tmp_path / "old" / "buffer.db") == tables(tmp_path / "new" / "buffer.db")
    await check_whole(tmp_path / "old")


KILLED = """
import asyncio, os, signal, sqlite3, sys
from pathlib import Path
from tests.support.buffer import open_sqlite

connect, left = sqlite3.connect, int(sys.argv[2])

class Mortal(sqlite3.Connection):
    def execute(self, sql, *args):
        global left
        if sql.startswith(("BEGIN", "CREATE", "ALTER", "PRAGMA user_version =", "COMMIT", "PRAGMA wal_checkpoint")):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(sql, *args)

sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Mortal, **kwargs)
asyncio.run(open_sqlite(Path(sys.argv[1])))
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_migration_killed_before_any_of_its_statements_is_taken_up_again(tmp_path: Path) -> None:
    write_v1(tmp_path / "v1.db")
    versions = []
    for statement in range(6):
        data = tmp_path / str(statement)
        data.mkdir()
        shutil.copy(tmp_path / "v1.db", data / "buffer.db")
        command = [sys.executable, "-c", KILLED, str(data), str(statement)]
        ended = subprocess.run(  # noqa: ASYNC221 - nothing else runs
            command, check=False, timeout=60, cwd=Path(__file__).parents[3], capture_output=True
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        shutil.copytree(data, data / "look")
        with closing(sqlite3.connect(data / "look" / "buffer.db")) as db:
            versions.append(db.execute("PRAGMA user_version").fetchone()[0])
        await check_whole(data)
        assert tables(data / "buffer.db").keys() >= {"losses"}
    assert versions[0] == 1
    assert versions[-1] == SCHEMA_VERSION
    assert sorted(versions) == versions


async def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path)
    await buffer.close()
    file = tmp_path / "buffer.db"
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer = file.read_bytes()
    said = rf"buffer\.db: schema version {SCHEMA_VERSION + 1}; this program reads up to {SCHEMA_VERSION}: a newer one"
    with pytest.raises(ConfigError, match=said):
        await open_sqlite(tmp_path)
    assert file.read_bytes() == newer
    damaged = newer[:4096] + bytes(len(newer) - 4096)
    file.write_bytes(damaged)
    with pytest.raises(ConfigError, match=said):
        await open_sqlite(tmp_path)
    assert file.read_bytes() == damaged


def test_the_schema_says_its_version() -> None:
    assert f"schema version {SCHEMA_VERSION} " in SCHEMA

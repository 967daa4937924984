"""A disk that fails when told to, at the level of SQLite's statements: real files, made-up errors."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest


def io_error(code: int = sqlite3.SQLITE_IOERR_FSYNC) -> sqlite3.OperationalError:
    """Return what sqlite3 raises for ``code``."""
    kind = sqlite3.DatabaseError if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else None
    error = (kind or sqlite3.OperationalError)(f"made-up error {code}")
    error.sqlite_errorcode = code
    error.sqlite_errorname = f"code {code}"
    return error  # type: ignore[return-value]


@dataclass(slots=True)
class Fault:
    """Statements that begin with ``prefix`` fail, ``times`` of them after ``skip``.

    ``after``: the statement is done first, and fails then: an error that does not tell what happened.
    ``file``: only on the database whose path ends so. ``hangs``: no error, but no answer either until this is set.
    """

    prefix: str
    code: int = sqlite3.SQLITE_IOERR_FSYNC
    times: int = 1
    skip: int = 0
    after: bool = False
    file: str = ""
    hangs: threading.Event | None = None


@dataclass(slots=True)
class Disk:
    """The faults to come, and every statement that began or ended a transaction or a checkpoint."""

    faults: list[Fault] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    failed: int = 0

    def due(self, sql: str, path: str) -> Fault | None:
        for fault in self.faults:
            if sql.startswith(fault.prefix) and path.endswith(fault.file) and fault.times:
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                self.failed += 1
                return fault
        return None


@contextmanager
def faulty(made: Disk) -> Iterator[None]:
    """Put every database that is opened from now on, here and there, on the disk ``made``."""
    connect = sqlite3.connect

    class Faulty(sqlite3.Connection):
        path = ""

        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql.startswith(("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA wal_checkpoint")):
                made.log.append(sql)
            fault = made.due(sql, self.path)
            if fault is None:
                return super().execute(sql, *args)
            if fault.hangs is not None:
                fault.hangs.wait()
                return super().execute(sql, *args)
            if fault.after:
                super().execute(sql, *args)
            made.log.append("failed")
            raise io_error(fault.code)

    def connected(database: Any, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        made.log.append("open")
        for fault in made.faults:
            if fault.prefix == "open" and str(database).endswith(fault.file) and fault.times:
                fault.times -= 1
                made.failed += 1
                raise io_error(fault.code)
        opened = connect(database, *args, factory=Faulty, **kwargs)
        opened.path = str(database)
        return opened

    with patch.object(sqlite3, "connect", connected):
        yield


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Every database opened in this test is on this disk."""
    made = Disk()
    with faulty(made):
        yield made

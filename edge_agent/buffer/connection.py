"""The one connection to the database: writing, reading and checkpointing, each transaction in one hop to its thread.

One connection, because two that write or checkpoint can corrupt a WAL in SQLite 3.7.0 to 3.51.2 (the WAL-reset bug);
``locking_mode=EXCLUSIVE`` keeps everybody else's out. Checkpoints are asked for and never automatic: SQLite swallows
the errors of automatic ones.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, Final, Literal, ParamSpec, TypeVar, cast

import aiosqlite

from edge_agent.buffer.sql import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from waybill.errors import ConfigError, Corrupt

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

APPLICATION_ID: Final = 0x57425546
"""``WBUF``: tells the buffer's file from any other database."""

Trouble = Literal["full", "io", "corrupt"]

_FULL: Final = frozenset({sqlite3.SQLITE_FULL})
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_IO: Final = frozenset(
    {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
    }
)
_UNDECODABLE: Final = "Could not decode to UTF-8"


def trouble_of(error: BaseException) -> Trouble | None:
    """Return what an error says about the disk; None: nothing, it is a mistake of this program."""
    if isinstance(error, Corrupt):
        return "corrupt"
    if isinstance(error, sqlite3.Error):
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in _FULL:
            return "full"
        if code in _CORRUPT:
            return "corrupt"
        if code in _IO:
            return "io"
        if not code and _UNDECODABLE in str(error):  # a text that is none; Python's own error
            return "corrupt"
    return "io" if isinstance(error, OSError) else None


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that runs whole functions in its thread.

    The thread is a daemon: a disk that does not answer must not keep the process from ending.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, 64)
        self._thread.daemon = True
        self._began: float | None = None

    async def run(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``work(connection, …)`` in the connection's thread and return its result; its errors come through."""
        self._began = time.monotonic()
        try:
            return cast("T", await self._execute(work, self._conn, *args, **kwargs))  # type: ignore[no-untyped-call]
        finally:
            self._began = None

    @property
    def busy_s(self) -> float:
        """Seconds for which the work under way has taken; 0 while there is none."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def ended(self) -> None:
        """Wait for the thread of a connection that could not be opened; it is on its way out."""
        self._thread.join()


async def connect(path: Path, synchronous: str) -> Connection:
    """Open the database ``path``, making it where it is missing or empty, and make what its log holds durable.

    Raises ConfigError where the file is not the buffer's or newer than this program; sqlite3.Error otherwise.
    """
    connection = Connection(lambda: _open(path, synchronous))
    try:
        await connection
    except BaseException:
        connection.ended()
        raise
    return connection


def read_only(path: Path) -> sqlite3.Connection:
    """Open a file that nobody else has open, so that neither it nor its log is changed. Raises sqlite3.Error."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def _open(path: Path, synchronous: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, cached_statements=256, check_same_thread=False)
    try:
        _prepare(db, path, synchronous)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path, synchronous: str) -> None:
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables:
        _check_ours(db, path)  # before anything is written
    else:
        path.chmod(0o600)
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA temp_store = MEMORY")
    db.execute("PRAGMA cache_size = -4096")
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
    db.execute("PRAGMA secure_delete = OFF")  # some builds overwrite what is deleted: up to half again as many writes
    if not tables:
        with transaction(db):
            for statement in SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    else:
        _migrate(db, path)
    # What a killed agent's last transaction left in the log may be visible without being on the disk. It must be
    # before its messages count as stored, because a device's copy of them is acknowledged at once (O1).
    checkpoint(db, "TRUNCATE")


def _check_ours(db: sqlite3.Connection, path: Path) -> None:
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise ConfigError(f"{path}: a database, but not a buffer of this program; use another --data")
    check_version(path, db.execute("PRAGMA user_version").fetchone()[0])


def check_version(path: Path, version: int) -> None:
    """Raise ConfigError where a file is newer than this program."""
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: schema version {version}; this program reads up to {SCHEMA_VERSION}: a newer one has used this"
            " file; install that one again, or use another --data"
        )


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring a file of an older schema up to date, one version after the other.

    A step is one transaction with its number in it: killed at any moment, it is done or not begun. None of them copies
    messages, so a card that is nearly full has room for it.
    """
    for version in range(db.execute("PRAGMA user_version").fetchone()[0] + 1, SCHEMA_VERSION + 1):
        with transaction(db):
            for statement in MIGRATIONS[f"to_{version}"].split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {version}")
        log.info("buffer: %s: schema version %d now", path, version)


def checkpoint(db: sqlite3.Connection, mode: Literal["PASSIVE", "TRUNCATE"]) -> None:
    """Move the log into the database and sync both. Raises sqlite3.OperationalError where not all of it went."""
    busy, _, _ = db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    if busy:
        error = sqlite3.OperationalError("the checkpoint found the database busy")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error


class transaction:  # noqa: N801 - used as a statement
    """``with transaction(db):`` BEGIN IMMEDIATE … COMMIT, or ROLLBACK where the body or the COMMIT raises."""

    __slots__ = ("_db",)

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # SQLite may have done it already; the first error is what counts
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def say(error: BaseException) -> str:
    """Return an error of SQLite or of the operating system as a person reads it."""
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", None)
        return f"{error} ({name})" if name else str(error)
    return str(error)

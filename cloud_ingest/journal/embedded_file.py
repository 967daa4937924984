"""The file of the embedded log: SQLite, one function a thread hop, statements by name. Run by aiosqlite.

Durable means: WAL with ``synchronous=FULL``. One connection writes and checkpoints; all others only read.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import aiosqlite
import msgspec

from cloud_ingest.journal.port import TopicRecord
from waybill.errors import ConfigError, Locked

T = TypeVar("T")

VERSION: Final = 1
"""Schema version, in ``PRAGMA user_version``."""

WAL_BYTES: Final = 4 << 20
"""What the write-ahead log keeps of the disk after a checkpoint; it counts towards the cap."""

OFFSET_BITS: Final = 36
PARTITION_BITS: Final = 12
MAX_PARTITIONS: Final = 1 << PARTITION_BITS
_OFFSET_MASK: Final = (1 << OFFSET_BITS) - 1

TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SECTION = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_sections = _SECTION.split(files(__package__).joinpath("embedded.sql").read_text(encoding="utf-8"))
SQL: Final = dict(zip(_sections[1::2], _sections[2::2], strict=True))

pack_headers = msgspec.msgpack.Encoder().encode
NO_HEADERS: Final = pack_headers([])
_decode_headers = msgspec.msgpack.Decoder(tuple[tuple[str, bytes], ...]).decode


class Topic(NamedTuple):
    """A topic as the file knows it. ``compact``: only the newest record of each key is kept."""

    number: int
    name: str
    compact: bool


def inode(path: Path) -> tuple[int, int] | None:
    """Return which file this is, None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Connection(aiosqlite.Connection):
    """A connection in its thread that runs whole functions, so that a transaction costs one hop.

    ``began``: when the newest one that has not returned began, monotonic seconds.
    """

    began: float | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work(connection)`` in the thread."""
        self.began = time.monotonic()
        try:
            result: T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call] # aiosqlite's own hop
        finally:
            self.began = None
        return result

    def ended(self) -> None:
        """Wait for the thread of a connection that could not be opened; it is on its way out."""
        self._thread.join()


class Row(NamedTuple):
    """A record to be written. ``partition``: None to go by the key. ``headers``: as ``pack_headers`` makes them."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: bytes

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        return len(self.key or b"") + len(self.value or b"") + len(self.headers)


@dataclass(slots=True)
class Job:
    """What is written in one piece. ``fence``: raises Fenced where its partition is another's by now.

    ``routed``: a frames partition and its committed offset.
    """

    rows: list[Row]
    routed: tuple[int, int] | None = None
    fence: Callable[[], None] | None = None
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def size(self) -> int:
        """Bytes of its records."""
        return sum(row.size for row in self.rows)


def record_id(topic: int, partition: int, offset: int) -> int:
    """Return the id of a record."""
    return topic << (OFFSET_BITS + PARTITION_BITS) | partition << OFFSET_BITS | offset


def offset_of(number: int) -> int:
    """Return the offset within a record's id."""
    return number & _OFFSET_MASK


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let no other process in meanwhile (B3); ``path``: the lock's file. Raises Locked."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(handle, 32).decode(errors="replace").strip() or "another process"
            raise Locked(
                f"{path.with_suffix('')}: in use by process {owner}; stop it, or name another data directory"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, b"%d\n" % os.getpid())
        yield
    finally:
        os.close(handle)


def check_whole(path: Path) -> None:
    """Check that nobody took the write-ahead log away, where what was acknowledged last may be. Raises ConfigError.

    It and its index come and go together; opened without it, SQLite begins a new one and says nothing.
    """
    wal, index = wal_of(path), path.with_name(path.name + "-shm")
    if path.exists() and index.exists() and not wal.exists():
        raise ConfigError(
            f"{wal}: is missing, and with it what was acknowledged last; put it back, "
            f"or remove {index} too, to go on without that"
        )


async def _opened(connect: Callable[[], sqlite3.Connection]) -> Connection:
    connection = Connection(connect, 64)
    try:
        await connection
    except BaseException:
        # Its thread has a last word for this loop; a process that ends now must not be gone before that.
        connection.ended()
        raise
    return connection


async def open_to_write(path: Path) -> Connection:
    """Open the one connection that writes. The file is made where there is none. Raises sqlite3.Error."""

    def connect() -> sqlite3.Connection:
        made = sqlite3.connect(path, isolation_level=None)
        try:
            made.execute("PRAGMA journal_mode=WAL")
            made.execute("PRAGMA synchronous=FULL")
            made.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
        except sqlite3.Error:
            made.close()
            raise
        return made

    return await _opened(connect)


async def open_to_read(path: Path) -> Connection:
    """Open a connection that only reads. Raises sqlite3.Error."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)

    return await _opened(connect)


def check(db: sqlite3.Connection, path: Path) -> bool:
    """Tell whether the file has its tables already. Raises ConfigError where it is not ours, or a newer program's."""
    try:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{path}: cannot be read as an embedded log: {error}; move it away or name another path"
        ) from error
    if version > VERSION:
        raise ConfigError(
            f"{path}: made by a newer program (schema {version}, this one knows {VERSION}); update this one"
        )
    if not empty and version == 0:
        raise ConfigError(f"{path}: a database of something else; name another path")
    return version == VERSION


def create(db: sqlite3.Connection, partitions: int) -> None:
    """Make the tables."""
    db.executescript(f"BEGIN IMMEDIATE; {SQL['schema']} PRAGMA user_version = {VERSION};")
    db.execute(SQL["set_setting"], ("partitions", partitions))
    db.execute("COMMIT")


def partitions_of(db: sqlite3.Connection) -> int:
    """Return how many partitions every topic of the file has."""
    return int(db.execute(SQL["setting"], ("partitions",)).fetchone()[0])


def log_id_of(db: sqlite3.Connection) -> int:
    """Return the random number that tells this file from all others; drawn where there is none."""
    db.execute(SQL["keep_setting"], ("log_id", secrets.randbelow((1 << 63) - 1) + 1))
    return int(db.execute(SQL["setting"], ("log_id",)).fetchone()[0])


def used_bytes(db: sqlite3.Connection, path: Path) -> int:
    """Return what the log takes on the disk, without the pages that are free to be written again."""
    page, free, pages = pages_of(db)
    return (pages - free) * page + size_of(wal_of(path))


def pages_of(db: sqlite3.Connection) -> tuple[int, int, int]:
    """Return the size of a page in bytes, how many are free to be written again, and how many there are."""
    page, free, pages = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "freelist_count", "page_count")
    )
    return page, free, pages


def wal_of(path: Path) -> Path:
    """Return the write-ahead log of the file ``path``."""
    return path.with_name(path.name + "-wal")


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def topics_of(db: sqlite3.Connection) -> dict[str, Topic]:
    """Return all topics."""
    return {name: Topic(number, name, bool(compact)) for name, number, compact in db.execute(SQL["topics"])}


def heads_of(db: sqlite3.Connection) -> dict[tuple[int, int], int]:
    """Return the next offset of each (topic number, partition) that has had a record."""
    return {(topic, partition): head for topic, partition, head in db.execute(SQL["heads"])}


def newest_of(db: sqlite3.Connection, topics: Iterable[Topic], partitions: int) -> int:
    """Return the stamp of the newest record of ``topics``, as their partitions end; 0 where there is none."""
    ends = (
        db.execute(SQL["last"], (record_id(topic.number, number, 0), record_id(topic.number, number + 1, 0))).fetchone()
        for topic in topics
        for number in range(partitions)
    )
    return max((found[0] for found in ends if found), default=0)


def records_of(
    db: sqlite3.Connection, topic: Topic, partition: int, start: int, end: int, count: int
) -> tuple[list[TopicRecord], int]:
    """Return at most ``count`` records with ``start`` <= offset < ``end``, and the offset to go on from."""
    rows: list[tuple[int, int, bytes | None, bytes | None, bytes]]
    if topic.compact:
        rows = db.execute(SQL["compacted"], (topic.number, partition, start, end, count)).fetchall()
    else:
        low, high = record_id(topic.number, partition, start), record_id(topic.number, partition, end)
        rows = db.execute(SQL["records"], (low, high, count)).fetchall()
    records = [
        TopicRecord(topic.name, partition, offset_of(number), stamp, key, value, _decode_headers(headers))
        for number, stamp, key, value, headers in rows
    ]
    return records, records[-1].offset + 1 if len(records) == count else end

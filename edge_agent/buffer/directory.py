"""The data directory: one process at a time (B3), the current database file, the ballast, and how much room there is.

::

    DATA/lock          held with flock by the agent; its process id inside
    DATA/buffer.db     the database, with buffer.db-wal beside it
    DATA/buffer.2.db   its successor, where an I/O error made the agent go on in a new file (B2); the highest number is
                       that is not empty is current, the others are left for people to look at and never deleted
    DATA/mark          how far the lanes had come (edge_agent/buffer/mark.py)
    DATA/buffer.db-wal.damaged-1
                       the log as it was found, where it had lost what was acknowledged; never deleted either
    DATA/ballast       space that is given up when the disk is full
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path
from typing import Final

from waybill.ballast import Ballast
from waybill.errors import ConfigError, Locked

_FILE: Final = re.compile(r"buffer(?:\.(\d+))?\.db")
_UNFINISHED: Final = re.compile(r"buffer\.\d+\.db\.new(-wal|-journal|-shm)?")


class Directory:
    """A locked data directory. Raises Locked, or ConfigError where it cannot be used."""

    def __init__(self, path: Path, ballast_bytes: int) -> None:
        self.path = path
        self._ballast = Ballast(path / "ballast", ballast_bytes)
        self._in_use: tuple[Path, int, int] | None = None
        try:
            if not path.exists():
                path.mkdir(mode=0o700, parents=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be used as data directory: {error.strerror}; choose another") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise Locked(f"{path}: in use by another agent, process {holder}; stop it or use another --data") from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its number
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        try:
            for entry in path.iterdir():
                if _UNFINISHED.fullmatch(entry.name):  # a move into a new file that did not end; its source is current
                    entry.unlink()
        except OSError as error:
            os.close(self._lock)
            raise ConfigError(f"{error.filename}: cannot be read, or removed: {error.strerror}; mend that") from error

    def close(self) -> None:
        """Let another process in."""
        os.close(self._lock)

    def current(self) -> Path:
        """Return the database file to use, there or not: the newest that holds anything, or its log does."""
        found = self._numbers()
        return self._file(max((number for number, held in found if held), default=min(found, default=(1, 0))[0]))

    def _numbers(self) -> list[tuple[int, int]]:
        """Return number and bytes of each database file, and of each log."""
        names = ((_FILE.fullmatch(entry.name.removesuffix("-wal")), entry) for entry in self.path.iterdir())
        return [(int(found[1] or 1), size(entry)) for found, entry in names if found]

    def check(self, path: Path) -> None:
        """Raise OSError where the database file ``path`` is no longer the one that it was at the last call.

        SQLite goes on writing into a file that somebody has removed, and everything acknowledged goes with it.
        """
        known, self._in_use = self._in_use, None
        found = path.stat()
        if known is not None and known[0] == path and known[1:] != (found.st_dev, found.st_ino):
            raise OSError("the file was replaced by another one")
        self._in_use = (path, found.st_dev, found.st_ino)

    def before(self) -> list[Path]:
        """Return the database files before the current one, the newest first."""
        current = self.current()
        files = [self._file(number) for number in sorted({number for number, _ in self._numbers()}, reverse=True)]
        return files[files.index(current) + 1 :] if current in files else []

    def left(self) -> list[Path]:
        """Return what an I/O error or damage made the agent leave: files before the current one, copies of logs."""
        current = self.current()
        return sorted(
            entry
            for entry in self.path.iterdir()
            if ".damaged-" in entry.name or (_FILE.fullmatch(entry.name) and entry != current)
        )

    def successor(self) -> tuple[Path, Path]:
        """Return the name of the next file while it is written, and its name from then on."""
        path = self._file(max((number for number, _ in self._numbers()), default=1) + 1)
        return path.with_name(path.name + ".new"), path

    def promote(self, written: Path, path: Path) -> None:
        """Make the finished file ``written`` the current one, in one step."""
        written.rename(path)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _file(self, number: int) -> Path:
        return self.path / ("buffer.db" if number == 1 else f"buffer.{number}.db")

    def free(self) -> int:
        """Return the free bytes of the file system."""
        return self._ballast.free()

    def ballast(self) -> int:
        """Return the bytes that the ballast takes at present."""
        return self._ballast.held()

    def drop_ballast(self) -> bool:
        """Give the ballast up; False where there was none."""
        return self._ballast.drop()

    def take_ballast(self, floor: int) -> None:
        """Make the ballast where there is room for it twice above ``floor`` free bytes; otherwise do nothing."""
        self._ballast.take(floor)


def size(path: Path) -> int:
    """Return a file's size in bytes, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def log_of(path: Path) -> Path:
    """Return the write-ahead log of a database file."""
    return path.with_name(path.name + "-wal")

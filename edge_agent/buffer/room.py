"""How much room there is: the buffer's cap, and the floor of free space on the file system."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from edge_agent.buffer.directory import Directory, log_of, size
from edge_agent.buffer.settings import MIB, BufferSettings
from waybill.errors import Unavailable

RESERVE: Final = 64 * MIB
"""What is kept for messages that were already read when lanes begin to refuse; an eighth of a small buffer."""

LOG_BYTES: Final = 8 << 20
"""Bytes written to the log after which it is moved into the database; of a small cap an eighth is kept for it."""

_OVERHEAD: Final = 64 * 1024
"""Pages that a transaction touches beside its content, in database and log."""

_PRAGMAS: Final = ("page_size", "freelist_count", "page_count")


class NoRoom(Unavailable):
    """A limit of the settings is reached: commits wait until something was settled."""


class LongLog(NoRoom):
    """The log has to become shorter before anything else is tried."""


class Room:
    """The two limits. What makes room (settling, receipts) does not ask. Runs in the connection's thread."""

    def __init__(self, directory: Directory, settings: BufferSettings) -> None:
        self._directory = directory
        self._max = settings.max_bytes
        self._floor = settings.min_free_bytes
        self._log = min(LOG_BYTES, self._max // 8)
        self._least = max(self._floor, min(self._log, settings.ballast_bytes))
        self._reserve = min(RESERVE, self._max // 8)

    def reserve(self, path: Path) -> int:
        """Return the bytes kept for messages that were read already when lanes begin to refuse.

        An eighth of what the buffer may take, by its cap or by what the disk has left for it.
        """
        own = size(path) + size(log_of(path)) + self._directory.ballast()
        return min(self._reserve, (own + max(0, self._directory.free() - self._least)) // 8)

    def is_plenty(self, db: sqlite3.Connection, path: Path, need: int) -> bool:
        """Tell at once that ``need`` more bytes fit and leave the reserve; what is asked of every commit."""
        need += self._reserve + _OVERHEAD
        page, free, used = _pages(db)
        whole = max(used + free * page, used + need)
        log = max(size(log_of(path)), self._log, need)
        if whole + log + self._directory.ballast() > self._max:
            return False
        return self._directory.free() - max(0, whole - size(path)) - need >= self._floor

    def lacking(self, db: sqlite3.Connection, path: Path, need: int) -> tuple[int, str]:
        """Return how many bytes have to leave the file before ``need`` more fit, and which limit says so; 0: none.

        What is free within the file counts as room: it does not grow by that.
        """
        need += _OVERHEAD
        page, free, used = _pages(db)
        over = used + need + max(self._log, need) + self._directory.ballast() - self._max
        if over > 0:
            return over, f"the buffer is at its cap of {_mib(self._max)} (max_bytes)"
        grows = max(0, need - free * page)
        if grows:
            # what the log holds already has to fit into the database as well, or it could never be shortened again
            whole = used + free * page + grows
            left = self._directory.free() - max(0, whole - size(path)) - max(0, need - size(log_of(path)))
            if left < self._least:  # below that not even what makes room could be written any more
                floor = f"less than {_mib(self._floor)} free on the disk of {path.parent} (min_free_bytes)"
                return grows, floor if self._floor else f"disk full: {path}"
        return 0, ""

    def check_log(self, db: sqlite3.Connection, path: Path, need: int) -> None:
        """Raise LongLog where it is the log that has to become shorter first."""
        need += _OVERHEAD
        page, free, used = _pages(db)
        log = size(log_of(path))
        whole = max(used + free * page, used + need)
        if log > max(self._log, need) and whole + log > self._max:
            raise LongLog(f"the buffer is at its cap of {_mib(self._max)} (max_bytes)")
        if log and self._directory.free() < need + max(0, whole - size(path)):  # soon it could not any more
            raise LongLog(f"disk full: {path}")

    def space(self, db: sqlite3.Connection, path: Path) -> tuple[int, int]:
        """Return the bytes of the file that hold something, and how many more fit before just the reserve is left."""
        need = self.reserve(path) + _OVERHEAD
        page, free, used = _pages(db)
        left = self._max - used - need - max(self._log, need) - self._directory.ballast()
        log = max(0, need - size(log_of(path))) + max(0, used + free * page - size(path))
        left = min(left, self._directory.free() + free * page - need - log - self._least)
        return used, max(0, left)


def free_bytes(db: sqlite3.Connection) -> int:
    """Return how many bytes are free within the file, beside what a transaction touches anyway."""
    page, free, _ = _pages(db)
    return page * free - _OVERHEAD


def _pages(db: sqlite3.Connection) -> tuple[int, int, int]:
    """Return the size of a page, how many are free, and the bytes of all others."""
    page, free, count = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in _PRAGMAS)
    return page, free, (count - free) * page


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB" if size >= MIB else f"{size} bytes"

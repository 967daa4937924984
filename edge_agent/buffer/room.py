"""Whether there is room for a commit: the buffer's cap and the floor of free space on the file system."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from edge_agent.buffer.directory import Directory, log_of, size
from edge_agent.buffer.settings import MIB, BufferSettings
from waybill.errors import Unavailable

_OVERHEAD: Final = 64 * 1024
"""Pages that a transaction touches beside its content, in database and log."""


class NoRoom(Unavailable):
    """A limit of the settings is reached: commits wait until something was settled."""


class Room:
    """The two limits. What makes room (settling, receipts) does not ask."""

    def __init__(self, directory: Directory, settings: BufferSettings) -> None:
        self._directory = directory
        self._max = settings.max_bytes
        self._floor = settings.min_free_bytes

    def check(self, db: sqlite3.Connection, path: Path, need: int) -> None:
        """Raise NoRoom where ``need`` more bytes would break a limit. Runs in the connection's thread."""
        page = db.execute("PRAGMA page_size").fetchone()[0]
        used = db.execute("PRAGMA page_count").fetchone()[0] * page
        free = db.execute("PRAGMA freelist_count").fetchone()[0] * page
        grows = max(0, need + _OVERHEAD - free)
        log = size(log_of(path))
        if used + grows + max(log, need + _OVERHEAD) + self._directory.ballast() > self._max:
            raise NoRoom(f"the buffer is at its cap of {_mib(self._max)} (max_bytes)")
        if self._floor and self._directory.free() - grows - max(0, need + _OVERHEAD - log) < self._floor:
            raise NoRoom(f"less than {_mib(self._floor)} free on the disk of {path.parent} (min_free_bytes)")


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB" if size >= MIB else f"{size} bytes"

"""What room the embedded log has, below its cap and on the disk. Pruning and the router, which make room, need some.

- Below the cap some is left to router steps: else frames that fill the log could never be routed, nor go.
- Frames and other single records are refused before the disk is full, so that router steps still fit, and what is in
  the write-ahead log can still be moved into the file: else that would never become shorter again.
- Others fill disks, too: a ballast file is given up for pruning, and made again when there is room for it twice.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from cloud_ingest.journal import embedded_file as file
from waybill.ballast import Ballast
from waybill.errors import Unavailable

SPARE: Final = 16 << 20
"""Bytes left to router steps at most, on the disk and below the cap; an eighth of what the log may take, if less."""

_OVERHEAD: Final = 64 << 10
"""Pages that a transaction touches beside its content, bytes."""


class Room:
    """The room of the log in the file ``path``.

    ``short``: whether the last single record found too little on the disk. ``full``: whether the next one is to find
    too little below the cap.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # As much as the write-ahead log keeps, so that this can be moved into the file in its room.
        self.ballast = Ballast(path.with_name(path.name + ".ballast"), file.WAL_BYTES)
        self.short = False
        self.full = False

    @property
    def tight(self) -> bool:
        """Whether router steps find room and all else may not: then they are not to be written with it."""
        return self.short or self.full

    def check_cap(self, db: sqlite3.Connection, need: int, cap: int, *, steps: bool) -> None:
        """Raise Unavailable where the log takes ``cap`` bytes, or so many that the rest is left to router ``steps``.

        ``need``: bytes that are to be written; they may pass it.
        """
        used, left = file.used_bytes(db, self._path), min(SPARE, cap // 8)
        self.full = used + need >= cap - left
        if used >= (cap if steps else cap - left):
            raise Unavailable(
                f"at its cap, {used} of {cap} bytes, of which {left} are left to routing; raise [log] max_bytes"
            )

    def check_disk(self, db: sqlite3.Connection, need: int, *, steps: bool) -> None:
        """Raise Unavailable where ``need`` more bytes do not fit. ``steps``: they are a router's, which make room."""
        page, unused, pages = file.pages_of(db)
        wal, own, disk = file.size_of(file.wal_of(self._path)), file.size_of(self._path), self.ballast.free()
        need += _OVERHEAD
        left = disk - max(0, pages * page - own) - max(0, need - unused * page) - max(0, need - wal)
        spare = 0 if steps else min(SPARE, (own + wal + disk) // 8)
        if left < 0 or left + max(0, unused * page - need) < spare:
            self.short = True
            raise self.lack()
        self.short = self.short and steps

    def lack(self) -> Unavailable:
        """Return the error of a full disk."""
        return Unavailable("disk is full; make room on it")

    def relieve(self, db: sqlite3.Connection) -> None:
        """After pruning: shorten the write-ahead log where room is tight, and see to the ballast.

        It is given up where the file has room and only the write-ahead log has none, and made again when there is
        room. Raises sqlite3.Error, OSError.
        """
        if self.tight or not self.ballast.held():
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        page, unused, _ = file.pages_of(db)
        if self.short and unused * page >= file.WAL_BYTES:
            self.ballast.drop()
        else:
            self.ballast.take()


def is_full(error: Exception) -> bool:
    """Tell whether ``error`` is SQLite's that the disk is full."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL

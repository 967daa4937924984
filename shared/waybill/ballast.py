"""A file that holds room of a disk, given up when the disk is full: so what makes room can still be written."""

from __future__ import annotations

import os
from pathlib import Path


class Ballast:
    """The file at ``path``, of ``size`` bytes; 0: none. Every call may wait for the disk, a little."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size

    def held(self) -> int:
        """Return the bytes that it takes at present."""
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def free(self) -> int:
        """Return the free bytes of the file system. Raises OSError."""
        state = os.statvfs(self._path.parent)
        return state.f_bavail * state.f_frsize

    def drop(self) -> bool:
        """Give it up; False where there was none. Raises OSError."""
        if not self.held():
            return False
        self._path.unlink()
        return True

    def take(self, floor: int = 0) -> None:
        """Make it where there is room for it twice above ``floor`` free bytes; otherwise do nothing."""
        if self.held() >= self._size or self.free() < floor + 2 * self._size:
            return
        try:
            with self._path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self._size)
        except OSError:  # next time
            self._path.unlink(missing_ok=True)

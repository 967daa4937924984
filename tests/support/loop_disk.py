"""A small ext4 of its own on a loop device, whose power can be cut. Needs root."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SHUTDOWN: Final = 0x8004587D
"""EXT4_IOC_SHUTDOWN."""

NO_LOG_FLUSH: Final = 2
"""Everything that was not synced is lost, the journal's open transaction included: a power cut."""


class LoopDisk:
    """An ext4 in the file ``image``, mounted at ``path``."""

    def __init__(self, image: Path, path: Path) -> None:
        self.image = image
        self.path = path

    def replug(self) -> None:
        """Unmount it, and mount what is on it.

        A mount namespace that somebody made meanwhile (for a network namespace, say) still holds the old mount, whose
        power stays cut; the kernel would give us the same again, unless the image is another file.
        """
        self.unmount()
        copy = self.image.with_name(f"{self.image.name}.copy")
        subprocess.run(["cp", "--sparse=always", self.image, copy], check=True, timeout=60)
        self.image = copy
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.path], check=True, timeout=60)

    def unmount(self) -> None:
        subprocess.run(["umount", self.path], check=True, timeout=60)

    def cut_power(self) -> None:
        """From now on every write and every sync of this file system fails, and nothing unsynced will be there."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)


_MOUNT: Final = "waybill-disk-"
"""Before the number of the process that mounted it."""


def clear_mounts() -> None:
    """Unmount what tests left that were killed, whose process is gone: nobody could remove the directories else."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        point = Path(line.split()[1])
        owner = point.name.removeprefix(_MOUNT)
        if owner != point.name and not Path("/proc", owner).exists():
            subprocess.run(["umount", point], check=False, timeout=60)


@contextmanager
def loop_disk(where: Path, mebibytes: int) -> Iterator[LoopDisk]:
    """Make and mount a file system of ``mebibytes``, and unmount it at the end."""
    disk = LoopDisk(where / "disk.img", where / f"{_MOUNT}{os.getpid()}")
    disk.path.mkdir()
    with disk.image.open("wb") as image:
        image.truncate(mebibytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", disk.image], check=True, timeout=60)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


def fill(path: Path) -> None:
    """Write a file until nothing more fits."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                os.fsync(file.fileno())

"""TCP ports of 127.0.0.1 for processes that are still to be started, and that get them again after a kill.

Between the choice of a port and the moment when its process listens there a second may pass, or the minute of an
outage. So that nobody who asks here gets it meanwhile, in whatever process, each process gives ports out of blocks that
are its own: for each it holds a Unix socket in the abstract namespace (unix(7)), which is gone when the process is.
"""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from waybill.errors import Unavailable

BLOCK: Final = 64
"""Ports that a process takes at a time."""

_FLOOR: Final = 10_000
_MOST: Final = 65_536


class Ports:
    """The ports of one process."""

    def __init__(self) -> None:
        """Take none yet."""
        self._mine: dict[int, int] = {}
        self._rest: Iterator[int] = iter(())

    def take(self, count: int) -> list[int]:
        """Return ``count`` ports where nobody listens. Raises Unavailable."""
        found: list[int] = []
        for _ in range(_MOST):
            if len(found) == count:
                return found
            port = next(self._rest, 0)
            if not port:
                self._rest = iter(self._block())
            elif port not in found and _is_free(port):
                found.append(port)
        raise Unavailable(f"127.0.0.1 has no {count} free TCP ports")

    def _block(self) -> range:
        """Return a block that nobody has; once all are taken, one of this process again. Raises Unavailable."""
        blocks = range(_FLOOR, _ceiling() - BLOCK + 1, BLOCK)
        for first in random.sample(blocks, len(blocks)):
            if first not in self._mine and (held := _held(first)) is not None:
                self._mine[first] = held
                return range(first, first + BLOCK)
        if not self._mine:
            raise Unavailable(f"other processes have all TCP ports of 127.0.0.1 from {_FLOOR} to {blocks.stop}")
        first = next(iter(self._mine))
        self._mine[first] = self._mine.pop(first)  # the last one to be used again
        return range(first, first + BLOCK)


def _ceiling() -> int:
    """Return the end of the ports that the kernel gives to no outgoing connection; where they are few, of all ports."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except OSError:
        first = 32_768
    return first if first >= _FLOOR + BLOCK else _MOST


def _held(first: int) -> int | None:
    """Hold the block that begins at ``first``: return a file descriptor, None where another process has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as name:
        try:
            if sys.platform == "linux":  # no other kernel has that namespace
                name.bind(f"\0waybill-ports-{first}")
        except OSError:
            return None
        return name.detach()


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


_OURS: Final = Ports()


def free_ports(count: int) -> list[int]:
    """Return ``count`` ports that nobody uses and no other process is given that asks here. Raises Unavailable."""
    return _OURS.take(count)


def free_port() -> int:
    """Return one such port. Raises Unavailable."""
    (port,) = free_ports(1)
    return port

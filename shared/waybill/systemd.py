"""What the service manager is told (sd_notify(3)), and the watchdog that it keeps (sd_watchdog_enabled(3)).

One datagram to the Unix socket that ``NOTIFY_SOCKET`` names. Without that variable nobody listens, and nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

FEEDS: Final = 4
"""How often the watchdog is fed in the time after which it bites."""


def notify(*lines: str) -> None:
    """Send lines such as ``READY=1``. Never waits, never raises: who does not listen is not told."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    address = "\0" + name[1:] if name.startswith("@") else name  # @: Linux's abstract names
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto("\n".join(lines).encode(), address)


def watchdog_s() -> float | None:
    """Return the seconds of silence after which the service manager ends this process; None: never."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    with contextlib.suppress(ValueError):
        if (seconds := int(os.environ.get("WATCHDOG_USEC", "")) / 1e6) > 0:
            return seconds
    return None


async def keep_watchdog(busy_s: Callable[[], float]) -> None:
    """Feed the watchdog for as long as the disk answers; until cancelled, or at once where there is no watchdog.

    ``busy_s``: seconds for which the writer's present work has been with the disk; 0 while it has none. A writer that
    is stuck for half of the watchdog's time is said instead (``STATUS``), and the process will be started anew. What
    the disk refuses is no such case: it has answered, and starting anew would not help.
    """
    limit = watchdog_s()
    if limit is None:
        return
    while True:
        busy = busy_s()
        if busy < limit / 2:
            notify("WATCHDOG=1", "STATUS=")
        else:
            notify(f"STATUS=the disk has not answered the writer for {busy:.1f} s")
        await asyncio.sleep(limit / FEEDS)

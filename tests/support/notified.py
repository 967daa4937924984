"""A service manager's socket: what a process tells it (sd_notify(3))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


class Notified:
    """Hears the datagrams. ``environment``: what the process needs to have."""

    def __init__(self, path: Path, watchdog_s: float) -> None:
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    async def next(self) -> list[str]:
        """Return the lines of the next datagram."""
        return (await asyncio.get_running_loop().sock_recv(self.socket, 4096)).decode().splitlines()

    async def until(self, line: str) -> list[list[str]]:
        """Read until a datagram has a line that begins so, a minute at most; return what came before it."""
        before: list[list[str]] = []
        async with asyncio.timeout(60):
            while True:
                found = await self.next()
                if any(each.startswith(line) for each in found):
                    return before
                before.append(found)


@contextlib.contextmanager
def notified(directory: Path, watchdog_s: float = 0.4) -> Iterator[Notified]:
    """Listen, and have this process and its children say it there."""
    heard = Notified(directory / "notify", watchdog_s)
    before = {name: os.environ.get(name) for name in heard.environment}
    os.environ.update(heard.environment)
    try:
        yield heard
    finally:
        heard.socket.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

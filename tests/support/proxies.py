"""Proxies of other people's making, each a process group of its own on a free port of the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import quote

from fleet_simulator.ports import free_port

USER = "depot"
PASSWORD = "p:ss/w@rd %41"


class Proxy:
    """A running proxy. ``command``: how it is started; ``port``: where it listens."""

    def __init__(self, command: Sequence[str], port: int, password: str) -> None:
        self.port = port
        self.user = f"{USER}:{quote(password, safe='')}"
        """User and password as a URL has them."""
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        async with asyncio.timeout(60):
            while not _accepts(self.port):
                assert self._process.returncode is None, f"{self._command[0]} has ended"
                await asyncio.sleep(0.05)

    def pause(self) -> None:
        """Let nothing pass, and say so to nobody."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        self._signal(signal.SIGCONT)

    async def kill(self) -> None:
        """End it at once, with all its connections."""
        if self._process is not None and self._process.returncode is None:
            self._signal(signal.SIGKILL)
            await self._process.wait()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)


@contextlib.asynccontextmanager
async def running(command: Sequence[str], port: int, password: str = PASSWORD) -> AsyncIterator[Proxy]:
    """Run a proxy that ``command`` starts."""
    proxy = Proxy(command, port, password)
    try:
        await proxy.start()
        yield proxy
    finally:
        await proxy.kill()


@contextlib.asynccontextmanager
async def http_proxy(directory: Path) -> AsyncIterator[Proxy]:
    """Run an HTTP proxy that wants USER and PASSWORD."""
    port = free_port()
    command = [
        sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", str(port), "--num-workers", "1",
        "--num-acceptors", "1", "--basic-auth", f"{USER}:{PASSWORD}", "--data-dir", str(directory / "proxy"),
    ]  # fmt: skip
    async with running(command, port) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def tinyproxy(directory: Path) -> AsyncIterator[Proxy]:
    """Run Debian's tinyproxy, which speaks HTTP and wants USER and a password, of letters and digits alone."""
    port, password = free_port(), "s3cret"
    config = directory / "tinyproxy.conf"
    config.write_text(
        f"Port {port}\nListen 127.0.0.1\nTimeout 600\nAllow 127.0.0.1\nBasicAuth {USER} {password}\n",
        encoding="ascii",
    )
    async with running(["tinyproxy", "-d", "-c", str(config)], port, password) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def microsocks() -> AsyncIterator[Proxy]:
    """Run Debian's microsocks, which speaks SOCKS5 and wants USER and PASSWORD."""
    port = free_port()
    async with running(["microsocks", "-i", "127.0.0.1", "-p", str(port), "-u", USER, "-P", PASSWORD], port) as proxy:
        yield proxy


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

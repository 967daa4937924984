"""A link between two network namespaces, made by ``link_emulator.c``; needs root, a C compiler and iproute2.

::

    gateway's namespace (10.66.0.1) ◀── wb0 ── link_emulator ── wb0 ──▶ cloud's namespace (10.66.0.2)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Literal

GATEWAY: Final = "10.66.0.1"
CLOUD: Final = "10.66.0.2"

Side = Literal["gateway", "cloud"]
Direction = Literal["up", "down", "both"]
_numbers = itertools.count(1)

Counts = dict[str, dict[str, float]]
"""``up`` and ``down``, each with bytes, packets, lost, dropped and busy seconds; see ``link_emulator.c``."""


class EmulatedLink:
    """A running emulator. Made by :func:`emulated_link`."""

    def __init__(self, process: asyncio.subprocess.Process, spaces: dict[Side, str]) -> None:
        self._process = process
        self._spaces = spaces

    def within(self, side: Side, command: Sequence[str]) -> list[str]:
        """Return the command line that runs ``command`` in a side's namespace, as the same process."""
        return ["ip", "netns", "exec", self._spaces[side], *command]

    async def set(self, direction: Direction = "both", **values: float) -> None:
        """Change the link from now on: rate (bits/s), delay, jitter (seconds), loss, limit (bytes), hole (0, 1)."""
        await self._ask(f"set {direction} " + " ".join(f"{key}={value}" for key, value in values.items()))

    async def count(self) -> Counts:
        """Return what was on the link since the last reset."""
        return await self._ask("count")

    async def reset(self) -> None:
        """Begin to count anew."""
        await self._ask("reset")

    async def _ask(self, line: str) -> Counts:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()
        answer: Counts = json.loads(await self._process.stdout.readline() or b"{}")
        assert answer, "the link emulator ended"
        return answer


@contextlib.asynccontextmanager
async def emulated_link(**values: float) -> AsyncIterator[EmulatedLink]:
    """Make the namespaces and the link; both are gone at the end. ``values``: as in :meth:`EmulatedLink.set`."""
    number = next(_numbers)
    spaces: dict[Side, str] = {side: f"wb{os.getpid()}-{number}-{side}" for side in ("gateway", "cloud")}
    for space in spaces.values():
        clear_namespace(space)
        _ip("netns", "add", space)
    try:
        process = await asyncio.create_subprocess_exec(
            _program(), *spaces.values(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert await process.stdout.readline() == b"ready\n"
            for space, address in zip(spaces.values(), (GATEWAY, CLOUD), strict=True):
                _ip("-n", space, "address", "add", f"{address}/30", "dev", "wb0")
                _ip("-n", space, "link", "set", "wb0", "mtu", "1400", "addrgenmode", "none", "up")
                _ip("-n", space, "link", "set", "lo", "up")
            link = EmulatedLink(process, spaces)
            if values:
                await link.set("both", **values)
            yield link
        finally:
            process.stdin.close()
            await process.wait()
    finally:
        for space in spaces.values():
            _ip("netns", "delete", space)


def clear_namespace(space: str) -> None:
    """Remove the namespace that a test left which was killed, in a process that had the same number."""
    if Path("/run/netns", space).exists():
        _ip("netns", "delete", space)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@cache
def _program() -> str:
    made = Path(tempfile.mkdtemp(prefix="waybill-link-")) / "link_emulator"
    source = Path(__file__).with_name("link_emulator.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", made, source], check=True)
    return str(made)

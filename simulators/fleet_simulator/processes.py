"""Agents and ingest as real processes: started, watched until ready, killed, paused and stopped, by their pid alone.

Each process has a session of its own, so that Ctrl-C on a terminal reaches only whoever started it, who then stops them
in order; where that one is killed, the kernel kills them. Its output goes to a file, which never fills up and is there
to be read after a failure.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process as AsyncProcess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from waybill.errors import Unavailable

READY: Final = 120.0
"""Seconds that a process may take until it serves, on a machine with much to do; one that ends is noticed at once."""

GONE: Final = 60.0
"""Seconds that a process may take to end."""


async def until(what: str, said: Callable[[], object], patience: float, poll: float = 0.02) -> None:
    """Wait until ``said()`` is true. Raises Unavailable with ``what`` after ``patience`` seconds."""
    try:
        async with asyncio.timeout(patience):
            while not said():  # noqa: ASYNC110 - another process's doing: nothing here could set an event
                await asyncio.sleep(poll)
    except TimeoutError as error:
        raise Unavailable(f"{what}: not within {patience:.0f} s") from error


def waybill(*arguments: str) -> list[str]:
    """Return the command line of ``waybill ARGUMENTS`` in this Python."""
    return [sys.executable, "-m", "waybill", *arguments]


_BOUND: Final = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("whoever started this has ended")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""
"""PR_SET_PDEATHSIG, prctl(2): of the thread that starts a process, here always the main one. It outlives execve."""


def bound(command: Sequence[str]) -> list[str]:
    """Return ``command`` so that it is killed by SIGKILL where this process ends before it, in whatever way."""
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *command]


class Process:
    """One child process that is started again after a kill, under the same command line."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        output: Path,
        *,
        ready: str = "listening on ",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``output``: file that takes stdout and stderr, appended. ``ready``: text in a line that says it serves."""
        self.name = name
        self.command = list(command)
        self.output = output
        self.ready = ready
        self.starts = 0
        self._environment = environment
        self._process: AsyncProcess | None = None
        self._said_before = 0

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The process id. Raises Unavailable where it is not running."""
        if self._process is None or self._process.returncode is not None:
            raise Unavailable(f"{self.name} is not running")
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code (negative: the signal), None while it runs and before it was started."""
        return None if self._process is None else self._process.returncode

    def said(self) -> str:
        """Return what it wrote since its last start."""
        try:
            return self.output.read_bytes()[self._said_before :].decode(errors="replace")
        except FileNotFoundError:
            return ""

    async def start(self, patience: float = READY) -> None:
        """Start it and wait until it serves. Raises Unavailable with its last words where it does not."""
        if self.running:
            raise Unavailable(f"{self.name} is running already")
        with self.output.open("ab") as output:
            self._said_before = output.tell()
            self._process = await asyncio.create_subprocess_exec(
                *bound(self.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(self._environment or {})},
            )
        self.starts += 1
        try:
            await until(
                f"{self.name} says {self.ready!r}", lambda: self.ready in self.said() or not self.running, patience
            )
        except Unavailable as error:
            raise Unavailable(f"{error}; it said:\n{self._last_words()}") from error
        if not self.running:
            code = self._process.returncode
            raise Unavailable(f"{self.name} ended with {code} instead of serving; it said:\n{self._last_words()}")

    def pause(self) -> None:
        """SIGSTOP: it holds everything and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL, and wait for the end; nothing where it has ended already."""
        await self._end(signal.SIGKILL, GONE)

    async def stop(self, patience: float = GONE) -> int | None:
        """SIGTERM, wait; SIGKILL after ``patience`` seconds. Return its exit code (negative: the signal)."""
        await self._end(signal.SIGTERM, patience)
        if self.running:
            await self.kill()
        return None if self._process is None else self._process.returncode

    async def _end(self, number: signal.Signals, patience: float) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(number)
        try:
            await asyncio.wait_for(self._process.wait(), patience)
        except TimeoutError:
            return

    def _last_words(self) -> str:
        return "\n".join(self.said().splitlines()[-15:]) or "(nothing)"

"""Long-lived tasks: named, owned, guarded. If one dies, the process says so and stops in the order of its data."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Final

log = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

GARBAGE: Final = (50_000, 20, 50)
"""Thresholds of the garbage collector. A message is a handful of objects and no cycle, so Python's own 700 would look
through all that is in flight every few hundred messages (a fifth of the time, at either end)."""


OTHER_FILES: Final = 500
"""Files that a process has open besides its clients' connections: logs, databases, brokers, tools."""


def spare_garbage_collection() -> None:
    """Collect garbage seldom, and never what was imported so far; for a process that moves messages, at its start."""
    gc.freeze()
    gc.set_threshold(*GARBAGE)


def allow_connections(count: int) -> None:
    """Let this process have files for ``count`` connections, as far as the hard limit goes; a warning where not."""
    wanted = count + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning(
            "%d connections are allowed, but this process may have %d files open: raise the limit "
            "(LimitNOFILE= of the service, ulimit -Hn), or allow fewer",
            count,
            most,
        )


class Tasks:
    """The long-lived tasks of one process."""

    def __init__(self) -> None:
        """Start with none."""
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._stop = asyncio.Event()
        self.failure: BaseException | None = None

    def start(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``work`` as the task ``name``. It is meant to live as long as the process.

        Its end is reported, its failure stops all.
        """
        task = asyncio.create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task.get_name(), None)
        if task.cancelled():
            return
        if error := task.exception():
            log.error("task %s failed: %s", task.get_name(), error, exc_info=error)
            self.failure = self.failure or error
            self._stop.set()

    def stop(self) -> None:
        """Ask the process to stop; returns at once."""
        self._stop.set()

    def heed_signals(self) -> None:
        """Let SIGTERM and SIGINT do what ``stop()`` does; to be called before anybody hears that the process is up."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._stop.set)

    async def until_stopped(self) -> None:
        """Wait for SIGTERM, SIGINT, ``stop()`` or the failure of a task.

        A second signal ends the process by its default action.
        """
        self.heed_signals()
        try:
            await self._stop.wait()
        finally:
            for number in SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)

    async def cancel(self, name: str, patience: float = 5.0) -> None:
        """Cancel the task ``name`` and wait for its end, ``patience`` seconds at most.

        A task that will not end is reported.
        """
        task = self._tasks.get(name)
        if task is None:
            return
        task.cancel()
        _, pending = await asyncio.wait({task}, timeout=patience)
        if pending:
            log.error("task %s did not end within %.0f s", name, patience)


def say(line: str) -> None:
    """Print a line for which a person or a test may wait.

    Where it cannot be printed (a full disk, a closed pipe) the process goes on: not through ``print``, which would keep
    the line and fail again at the end.
    """
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), f"{line}\n".encode())

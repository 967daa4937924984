"""What the file needs now and then and nobody waits for: checkpoints, the mark, space given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from edge_agent.buffer import vacuum
from edge_agent.buffer.connection import checkpoint
from edge_agent.buffer.index import Index, Outcome
from edge_agent.buffer.mark import MarkFile, mark_of

MARK_EVERY: Final = 1.0
"""Seconds between two writings of the mark, at least."""

SLICE_PAUSE: Final = 0.02
"""Seconds between two slices of pages that go back to the file system."""

_PER_TRANSACTION: Final = 16 << 10
"""What a transaction writes to the log beside its content, about."""

_SLICES: Final = 64
"""Slices after which a checkpoint makes the file smaller indeed."""


class Host(Protocol):
    """The engine, as far as it is needed here."""

    index: Index
    closing: asyncio.Event

    @property
    def busy(self) -> bool:
        """Whether a transaction is under way."""

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> object:
        """Start a task that the close waits for."""

    async def tend(self, work: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 - what ``work`` returns
        """Run ``work(connection, …)`` on the file; None where that cannot be done now."""

    async def pause(self, seconds: float) -> None:
        """Sleep, but not past the close."""


class Upkeep:
    """Told what each transaction did, it starts what is due; each kind runs once at a time."""

    def __init__(self, host: Host, mark: MarkFile, log_bytes: int) -> None:
        """``log_bytes``: written to the log after which it is moved into the database."""
        self._host = host
        self._log_bytes = log_bytes
        self._mark = mark
        self._logged = 0
        self._freed = vacuum.KEEP  # what an earlier run left is looked at, too
        self._marking = self._shrinking = False

    def after(self, outcome: Outcome) -> None:
        """Take notice of a transaction that has returned."""
        self._logged += sum(outcome.added.values()) + _PER_TRANSACTION
        self._freed += sum(outcome.removed.values())

    def start(self) -> None:
        """Start what is due."""
        if self._logged >= self._log_bytes:
            self._logged = 0
            self._host.spawn("buffer: checkpoint", self._host.tend(checkpoint, "PASSIVE"))
        if not self._marking:
            self._marking = True
            self._host.spawn("buffer: mark", self._write_mark())
        if self._freed >= vacuum.KEEP // 2 and not self._shrinking:
            self._freed = 0
            self._shrinking = True
            self._host.spawn("buffer: vacuum", self._give_back())

    def close(self) -> None:
        """Write the last mark. The file is closed."""
        self._mark.write(mark_of(self._host.index), sync=True)

    async def _write_mark(self) -> None:
        """Write down how far the file has come, a little later: for many transactions once."""
        await self._host.pause(MARK_EVERY)
        self._marking = False
        await asyncio.to_thread(self._mark.write, mark_of(self._host.index))

    async def _give_back(self) -> None:
        """Make the file smaller, slice by slice, while no transaction is under way."""
        try:
            more, slices = await self._host.tend(vacuum.is_due), 0
            if not more:
                return
            while more and not self._host.closing.is_set():
                await self._host.pause(SLICE_PAUSE)
                if not self._host.busy:
                    more = await self._host.tend(vacuum.give_back)
                    slices += 1
                    if slices % _SLICES == 0:
                        await self._host.tend(checkpoint, "PASSIVE")
            await self._host.tend(checkpoint, "TRUNCATE")
        finally:
            self._shrinking = False

"""What the buffer does on its own: saying what was lost, letting expire what is too old, looking for room."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from edge_agent.buffer.engine import Engine, Job
from edge_agent.buffer.losses import due
from edge_agent.buffer.relief import Age
from edge_agent.lanes import Lane
from waybill.errors import Unavailable
from waybill.wire import CONTROL_LANE

EVERY: Final = 1.0
"""Seconds between two looks: how long a loss waits for others to be said with it."""

EXPIRE_EVERY: Final = 5.0
"""Seconds between two looks for what has expired."""


def within(boot: str) -> Age:
    """Return what knows the age of stamps of this ``boot``, whatever the wall clock did, and of no others."""
    return lambda _, mono_ns, its: (time.monotonic_ns() - mono_ns) // 1_000_000 if boot and its == boot else None


class Keeper:
    """The housekeeping of one buffer. ``run`` is one of the engine's tasks, and ends with it."""

    def __init__(self, engine: Engine, age_of: Age) -> None:
        self._engine = engine
        self._age = age_of
        self._mortal = [lane for lane in engine.policy.lanes.values() if lane.ttl_s]

    async def run(self) -> None:
        """Look around until the buffer is closed."""
        looks = 0
        while True:
            await self._engine.pause(EVERY)
            if self._engine.closing.is_set():
                return
            with contextlib.suppress(Unavailable):  # the engine says so, and its next job tries again
                await self._look(expire=looks % round(EXPIRE_EVERY / EVERY) == 0)
            looks += 1

    async def _look(self, *, expire: bool) -> None:
        index = self._engine.index
        if due(index.losses, index.waiting(CONTROL_LANE)):
            await self._engine.write(Job(lambda transaction: transaction.say_losses()))
        if self._engine.tight:
            await self._engine.look()
        if expire:
            for lane in self._mortal:
                await self._expire(lane)

    async def _expire(self, lane: Lane) -> None:
        """Let go what is too old, slice by slice, so that no commit waits long."""
        engine = self._engine
        parts = engine.parts()
        more = await engine.read(lambda db: engine.relief(db, parts).has_expired(lane, self._age))
        while more and not engine.closing.is_set():
            more = await engine.write(Job(lambda transaction: transaction.expire(lane, self._age)))

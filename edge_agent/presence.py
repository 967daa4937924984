"""Which devices come and go, told to the cloud on the control lane (C3), where ``presence = true``.

What comes while a commit is under way is in the next one. At most ``WAITING`` are kept while the buffer takes nothing;
beyond, the oldest are left out and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from edge_agent.buffer.port import Commit, Own
from edge_agent.clock import Clock
from waybill.errors import Unavailable
from waybill.wire import PRESENCE_TOPIC, DevicePresence

WAITING: Final = 10_000
BATCH: Final = 500
PAUSE: Final = 1.0
"""Seconds until what the buffer did not take is tried again."""

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Counters:
    """Since the start. ``left_out``: for want of room."""

    told: int = 0
    left_out: int = 0


class Presence:
    """Tells of devices. ``commit``: the buffer's."""

    def __init__(self, commit: Callable[[Commit], Awaitable[object]], clock: Clock) -> None:
        self._commit = commit
        self._clock = clock
        self._waiting: deque[DevicePresence] = deque()
        self._something = asyncio.Event()
        self._turn = asyncio.Lock()
        self.counters = Counters()

    def came(self, device: str) -> None:
        """A device has connected."""
        self._tell(DevicePresence(device, "online", self._clock.wall_ms()))

    def went(self, device: str, reason: str) -> None:
        """Its connection has ended; ``reason``: empty where it said good-bye."""
        self._tell(DevicePresence(device, "offline", self._clock.wall_ms(), reason))

    def _tell(self, said: DevicePresence) -> None:
        if len(self._waiting) >= WAITING:
            self._waiting.popleft()
            self.counters.left_out += 1
        self._waiting.append(said)
        self._something.set()

    async def report(self) -> None:
        """Write it down, for the life of the agent."""
        while True:
            await self._something.wait()
            self._something.clear()
            try:
                await self.flush()
            except Unavailable:
                self._something.set()
                await asyncio.sleep(PAUSE)

    async def flush(self) -> None:
        """Write down what waits. Raises Unavailable."""
        async with self._turn:
            while self._waiting:
                batch = [self._waiting[at] for at in range(min(BATCH, len(self._waiting)))]
                await self._commit(Commit(own=[Own(PRESENCE_TOPIC, _encode(said)) for said in batch]))
                for said in batch:
                    if self._waiting and self._waiting[0] is said:  # else it was left out meanwhile
                        self._waiting.popleft()
                self.counters.told += len(batch)

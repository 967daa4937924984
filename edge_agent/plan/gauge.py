"""Looks at the buffer every few seconds, to say how long it will last (:mod:`edge_agent.plan.outlook`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

from edge_agent.buffer.sqlite import SqliteBuffer
from edge_agent.clock import Clock
from edge_agent.forward.forwarder import Forwarder
from edge_agent.lanes import Lane
from edge_agent.plan.outlook import BEHIND, Arrived, Outlook, Space, Waiting
from waybill.errors import Unavailable

EVERY: Final = 5.0
"""Seconds between two looks."""


class Gauge:
    """One agent's outlook. ``lanes``: all; ``linger_ms``: of the forwarder; ``online``: whether an uplink is."""

    def __init__(
        self,
        buffer: SqliteBuffer,
        forwarder: Forwarder,
        lanes: Iterable[Lane],
        clock: Clock,
        *,
        linger_ms: int,
        online: Callable[[], bool],
    ) -> None:
        self.outlook = Outlook()
        self._buffer = buffer
        self._forwarder = forwarder
        self._caps = {lane.name: lane.max_bytes for lane in lanes}
        self._clock = clock
        self._late_ms = BEHIND * 1000 + linger_ms
        self._online = online

    async def run(self) -> None:
        """Look, again and again. A task of its own, for the life of the agent."""
        while True:
            with contextlib.suppress(Unavailable):  # the buffer's fault says why
                await self.look()
            await asyncio.sleep(EVERY)

    async def look(self) -> None:
        """Look once. Raises Unavailable where the file cannot be read now."""
        space = Space(*await self._buffer.space())
        counters = self._buffer.counters
        arrived = Arrived(counters.bytes, counters.blocks)
        self.outlook.sample(self._clock.mono(), space, arrived, self._waiting(), online=self._online())

    def _waiting(self) -> Iterable[Waiting]:
        now = self._clock.wall_ms()
        for one in self._buffer.backlog():
            behind = one.oldest_ms is not None and now - one.oldest_ms > self._late_ms
            shut = bool(self._forwarder.why_shut(one.lane))
            yield Waiting(one.lane, one.count, one.bytes, self._caps.get(one.lane, 0), behind=behind, shut=shut)

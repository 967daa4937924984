"""Frames of a partition's gateways that are elsewhere still, after the topic has grown (R7).

A node that does not know of it puts a gateway's frames into the partition that the gateway was in before, whose owner
moves them; the gateway's next ones, by a node that knows, may be here long before. So a gap in what was read here is
none to give up while that owner is behind. What the gateway sent before a frame that is here is durable elsewhere, or
was sent again to here; so it is enough to wait, when a gap is about to be given up,

1. for each partition that the gateways were in, the oldest first, since it moves frames into the younger ones: until
   no frame of ours is unrouted below the end that it has now;
2. then until this partition is read up to the end that it has then: what was moved is below.

Nothing of this runs while there is no such gap.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from aiokafka import TopicPartition

from cloud_ingest.journal.kafka_growth import Count, moves
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import Cleared
from waybill.errors import Unavailable

if TYPE_CHECKING:
    from cloud_ingest.journal.kafka_partitions import Cluster

LOOK: Final = 1.0
"""Seconds between looks at a partition that is behind."""


class Stragglers:
    """Those of one partition, as of a load."""

    def __init__(self, cluster: Cluster, frames: TopicPartition, count: Count) -> None:
        """Belong to the partition ``frames``, whose entries are as ``count`` says."""
        self._cluster = cluster
        self._frames = frames
        self._partitions = count.partitions
        self._former = [TopicPartition(frames.topic, each) for each in reversed(count.ancestors)]
        self._search: asyncio.Task[int] | None = None
        self._claim = 0
        """What is cleared when the search has ended."""
        self._cleared = 0
        self._waits = ""

    def cleared(self, position: int) -> Cleared:
        """Say up to which offset nothing is elsewhere, having read up to ``position``; if not so far, search.

        To be asked again until the answer is far enough.
        """
        if not self._former:
            return Cleared(position)
        if self._search is None:
            self._claim = position
            self._search = asyncio.create_task(self._run(), name=f"stragglers {self._frames}")
        elif self._search.done() and position >= self._search.result():
            self._search, self._cleared = None, self._claim
        return Cleared(self._cleared, self._waits)

    async def _run(self) -> int:
        """Wait for the former partitions, and return up to where to read here then."""
        end: int | None = None
        for place in (*self._former, self._frames):
            end = None
            while True:
                try:
                    if end is None:
                        _, end = await self._cluster.bounds(place)
                    if place == self._frames or not await self._has_ours(place, end):
                        break
                    self._waits = f"frames of its gateways are in partition {place.partition}, which is behind"
                except Unavailable as error:
                    self._waits = str(error)
                await asyncio.sleep(LOOK)
        self._waits = ""
        assert end is not None  # noqa: S101 - of the last place
        return end

    async def _has_ours(self, place: TopicPartition, end: int) -> bool:
        """Tell whether below ``end`` there is a frame of a gateway of this partition that is not routed."""
        routed, _ = await self._cluster.committed(place)
        if routed >= end:
            return False
        async with contextlib.aclosing(self._cluster.unrouted({place: end})) as frames:
            async for record in frames:
                gateway = record.key or b""
                if moves(gateway) and partition_of(gateway, self._partitions) == self._frames.partition:
                    return True
        return False

    async def close(self) -> None:
        """Stop searching."""
        search, self._search = self._search, None
        if search is not None:
            search.cancel()
            await asyncio.wait({search})

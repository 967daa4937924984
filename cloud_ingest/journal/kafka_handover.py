"""When a frames partition on Kafka hands over the gateways that are another's since the topic has grown (R4, R7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient

from cloud_ingest.journal.kafka_client import partitions_of, translated
from cloud_ingest.journal.kafka_growth import Count
from cloud_ingest.journal.port import JournalRecord
from waybill.errors import Unavailable

if TYPE_CHECKING:
    from cloud_ingest.journal.kafka_partitions import Cluster


class Handover:
    """One partition's: not before all is routed that was in it when it was seen that the topic has grown."""

    def __init__(self, cluster: Cluster, frames: TopicPartition) -> None:
        """Belong to the partition ``frames``."""
        self._cluster = cluster
        self._frames = frames
        self.partitions = 0
        """For how many frames partitions its entries are."""
        self.taken = True
        """Whether there was a commit since frames were returned: then whoever reads on has routed or held them all."""
        self._until: int | None = None
        """Where the frames ended when it was seen that there are more partitions: first these are routed here."""
        self._through = False
        """Whether they are: the next load hands over."""

    def __repr__(self) -> str:
        return f"{self._frames.topic}/{self._frames.partition}"

    async def due(self, count: Count, client: AIOKafkaClient, start: int, end: int) -> Count | None:
        """Return what ``count`` becomes where the gateways are to be handed over now, in a load; None: not now.

        ``start``, ``end``: of the frames that are not routed. While there are any, their gateways' next ones are
        elsewhere already, and wait. Raises Unavailable.
        """
        self.partitions, self.taken, self._until = count.partitions, True, None
        through, self._through = self._through, False
        with translated(f"{self!r}: partitions"):
            there = await partitions_of(client, self._frames.topic)
        if there <= count.partitions or not self._cluster.hands_over:
            return None
        if there % count.partitions or not self._cluster.config.exactly_once:
            raise Unavailable(
                f"{self!r}: the topic has {there} partitions instead of {count.partitions}; "
                "grow to a multiple, with transactions, by waybill cloud partitions"
            )
        if start < end and not through:
            self._until = end
            return None
        return Count(there, start, count.ancestors)

    async def look(self, reader: AIOKafkaConsumer, records: Sequence[JournalRecord], position: int) -> None:
        """See whether there are more partitions, and whether all is routed that was here then: Unavailable, load again.

        ``records`` were just read, up to ``position``. What comes later still, from nodes that do not know, goes into
        the journal again; so does what is held for order.
        """
        there = len(reader.partitions_for_topic(self._frames.topic) or ())
        if self._until is None and there > self.partitions and self._cluster.hands_over:
            _, self._until = await self._cluster.bounds(self._frames)
        if records and (self._until is None or records[0].offset < self._until):
            self.taken = False
        if self._until is not None and position >= self._until and self.taken:
            self._through = True
            raise Unavailable(f"{self!r}: the topic has more partitions by now; load again")

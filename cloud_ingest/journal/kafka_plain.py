"""One frames partition on a Kafka without transactions: each message at least once (``delivery = "at-least-once"``).

For services that refuse transactional producers. A step is written in two waves, each acknowledged before the next:

1. records, dead letters, states and dictionaries;
2. the ledger's entries, with the offset under a key of its own, in one partition and in this order.

So the ledger never says more than what was written, and a process that dies between the two writes the records of its
last step again, under the same ids. There is nothing that fences: the second wave is written only where the ledger ends
where this worker left it, so one that was paused finds what its successor wrote and loads anew. A worker that is paused
for longer than its session in the moment between that look and its write may still write older entries over newer ones;
then the audit shows messages as missing that are there, and copies of them would be taken for new ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiokafka import AIOKafkaProducer

from cloud_ingest.journal.kafka_batches import Batch
from cloud_ingest.journal.kafka_client import started
from cloud_ingest.journal.kafka_partitions import KafkaPartition
from cloud_ingest.journal.port import Step
from waybill.errors import Unavailable


class PlainPartition(KafkaPartition):
    """The PartitionLog port (see there) over Kafka, without transactions. Never raises Fenced.

    Where ``commit`` raises RecordRefused or TopicRefused, other records of that step may have been written.
    """

    async def _fence(self) -> AIOKafkaProducer:
        producer = self._cluster.producer(
            acks="all", enable_idempotence=True, compression_type=self._config.compression
        )
        await started(producer, self._config.commit, f"{self!r}: connecting")
        self._written.clear()
        return producer

    async def _again(self) -> AIOKafkaProducer:
        producer = self._producer = await self._fence()
        return producer

    def _entries(self, step: Step) -> Mapping[bytes, bytes | None]:
        return {**step.ledger, self._place: b"%d" % step.next_offset}

    async def _transact(self, producer: AIOKafkaProducer, batches: list[Batch], _next_offset: int) -> None:
        self._steps += 1
        ledger = [batch for batch in batches if batch.topic == self._ledger.topic]
        await self._send(producer, [batch for batch in batches if batch.topic != self._ledger.topic])
        _, end = await self._cluster.bounds(self._ledger)
        if end != self._table_ends[self._ledger]:
            raise Unavailable(f"{self!r}: another worker wrote the ledger meanwhile; load again")
        offsets = await self._send(producer, ledger)
        self._table_ends[self._ledger] = offsets[-1] + ledger[-1].size

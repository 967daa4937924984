"""A router step as record batches: which partition a key goes to, and batches that the broker will take.

This is the hot path of the cloud: one loop without awaits or objects of its own a record. aiokafka's per-message
``send`` costs five times as much as a batch filled here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from aiokafka.producer.message_accumulator import BatchBuilder

from cloud_ingest.journal.keys import hashes
from cloud_ingest.journal.port import OutRecord
from waybill.errors import RecordRefused

BATCH_BYTES: Final = 512 << 10
"""Uncompressed bytes at which a batch is closed: half of the default of ``max.message.bytes``."""

CODECS: Final = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
"""A batch's compression, as in its attributes (Kafka protocol, record batch, bits 0 to 2)."""

DEFAULT_LIMIT: Final = 1_048_588
"""Kafka's default of ``max.message.bytes``, for topics whose own cannot be read."""

SLICE: Final = 2_000
"""Records after which the caller may let others run: about 5 ms."""


class Batch(NamedTuple):
    """Records of one partition, in order. ``sync``: nothing of its topic goes before it is acknowledged."""

    topic: str
    partition: int
    builder: BatchBuilder
    size: int
    sync: bool = False


class Shape(NamedTuple):
    """What the filling must know of a topic. ``limit``: its ``max.message.bytes``.

    ``codec``: one of CODECS. ``batch_bytes``, ``sync``: as in its route.
    """

    partitions: int
    limit: int
    codec: int = 0
    batch_bytes: int = BATCH_BYTES
    sync: bool = False


class Filling:
    """Batches of one step, being filled."""

    def __init__(
        self, shapes: dict[str, Shape], *, turn: int = 0, transactional: bool = True, since_ms: int = 0
    ) -> None:
        """Fill for ``shapes``; ``turn`` is where records without a key go.

        ``transactional``: whether the batches are of a transaction. ``since_ms``: a time that has passed, milliseconds
        since 1970 UTC: no record is stamped with an earlier one, whatever the clock of this node says (R6).
        """
        self._since_ms = since_ms
        self._transactional = int(transactional)
        self._shapes = shapes
        self._turn = turn
        self._open: dict[str, dict[int, BatchBuilder]] = {}
        self._full: list[Batch] = []

    def add(self, records: Sequence[OutRecord]) -> Iterator[None]:
        """Add ``records``; yields between every SLICE of them. Stamped now: never with a device's time (R6).

        Raises RecordRefused: a record is larger than its topic takes (R5: known before it is sent).
        """
        name = ""
        partitions, turn = 0, 0
        open_: dict[int, BatchBuilder] = {}
        for at in range(0, len(records), SLICE):
            if at:
                yield
            some = records[at : at + SLICE]
            hashed = hashes(record.key for record in some if record.key is not None)
            now = self._now()
            for topic, key, value, headers in some:
                if topic != name:
                    name = topic
                    partitions = self._shapes[topic].partitions
                    turn = self._turn % partitions
                    open_ = self._open.setdefault(topic, {})
                partition = turn if key is None else hashed[key] % partitions
                builder = open_.get(partition)
                if builder is None or builder.append(timestamp=now, key=key, value=value, headers=headers) is None:
                    self._begin(topic, partition, key, value, headers, now)

    def put(self, topic: str, partition: int, records: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Add keyed ``records`` to that very partition. Raises RecordRefused."""
        open_ = self._open.setdefault(topic, {})
        now = self._now()
        for key, value in records:
            builder = open_.get(partition)
            if builder is None or builder.append(timestamp=now, key=key, value=value, headers=[]) is None:
                self._begin(topic, partition, key, value, [], now)

    def _now(self) -> int:
        return max(int(time.time() * 1000), self._since_ms)

    def _begin(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        now: int,
    ) -> None:
        """Begin a new batch with this record. A batch takes its first record at any size, so here it is checked."""
        open_ = self._open[topic]
        if full := open_.get(partition):
            self._full.append(Batch(topic, partition, full, full.record_count(), self._shapes[topic].sync))
        shape = self._shapes[topic]
        limit = shape.limit
        builder = BatchBuilder(min(shape.batch_bytes, limit), shape.codec, is_transactional=self._transactional)
        builder.append(timestamp=now, key=key, value=value, headers=headers)
        # Compressed it might fit, by luck: what is taken must not depend on that.
        if builder.size() > limit:
            raise RecordRefused(
                f"{topic}: a record of {builder.size()} bytes; the topic's max.message.bytes is {limit}"
            )
        open_[partition] = builder

    def batches(self) -> list[Batch]:
        """Return all batches; those of one partition in the order of their records."""
        last = [
            Batch(topic, partition, builder, builder.record_count(), self._shapes[topic].sync)
            for topic, open_ in self._open.items()
            for partition, builder in open_.items()
        ]
        return [*self._full, *last]

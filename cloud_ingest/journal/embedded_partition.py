"""One frames partition of the embedded log, as its router sees it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cloud_ingest.journal import embedded_file as file
from cloud_ingest.journal.port import Cleared, JournalRecord, Loaded, Step
from waybill.errors import Fenced, RecordRefused, TopicRefused

if TYPE_CHECKING:
    from cloud_ingest.journal.embedded import EmbeddedLog

READ_BYTES: Final = 16 << 20


class EmbeddedPartition:
    """The embedded log's :class:`~cloud_ingest.journal.port.PartitionLog`. The newest that was loaded owns it."""

    def __init__(self, log: EmbeddedLog, partition: int) -> None:
        """``load`` comes first."""
        self._log = log
        self._partition = partition
        self._generation = 0
        self._position = 0

    @property
    def partition(self) -> int:
        """The number of the frames partition."""
        return self._partition

    def _check(self) -> None:
        if self._log.generations[self._partition] != self._generation:
            raise Fenced(f"frames partition {self._partition} has a newer owner")

    async def load(self) -> Loaded:
        """Fence whoever owned it, wait for what they had written, read what is stored of it. Raises Unavailable."""
        log, number = self._log, self._partition
        log.generations[number] += 1
        self._generation = log.generations[number]
        await log.submit(file.Job([], fence=self._check))  # what was under way is finished when this is
        tables = log.topic(log.topics.ledger), log.topic(log.topics.dictionaries)

        def work(db: sqlite3.Connection) -> tuple[list[dict[bytes, bytes]], int | None]:
            found = db.execute(file.SQL["routed"], (number,)).fetchone()
            entries = [dict(db.execute(file.SQL["table"], (each.number, number))) if each else {} for each in tables]
            return entries, found[0] if found else None

        (ledger, dictionaries), routed = await log.read(work)
        log_start = await log.oldest(number)
        start = log_start if routed is None else routed
        lost = max(0, log_start - start)
        self._position = start + lost
        return Loaded(ledger, self._position, log_start, lost, dictionaries)

    async def read(self, count: int, wait: float) -> tuple[Sequence[JournalRecord], bool]:
        """Return the next frames and whether the end was reached. Raises Fenced, Unavailable."""
        self._check()
        log, number = self._log, self._partition
        changed = log.mark()
        if self._position >= log.head(log.topics.frames, number):
            await changed(wait)
            self._check()
        topic, head = log.topic(log.topics.frames), log.head(log.topics.frames, number)
        if topic is None or self._position >= head:
            return [], True
        low, high = (file.record_id(topic.number, number, offset) for offset in (self._position, head))

        def work(db: sqlite3.Connection) -> list[JournalRecord]:
            records: list[JournalRecord] = []
            size = 0
            for at, stamp, key, value, _ in db.execute(file.SQL["records"], (low, high, count)):
                records.append(JournalRecord(number, file.offset_of(at), stamp, key.decode(), value))
                size += len(value)
                if size >= READ_BYTES:
                    break
            return records

        records = await log.read(work)
        self._position = records[-1].offset + 1 if records else head
        return records, self._position >= head

    def rewind(self, offset: int) -> None:
        """Read again from ``offset``."""
        self._position = offset

    async def commit(self, step: Step) -> None:
        """Write ``step`` in one transaction. Raises RecordRefused, TopicRefused, Fenced, Unavailable."""
        self._check()
        pack = file.pack_headers
        rows = [file.Row(topic, None, key, value, pack(headers)) for topic, key, value, headers in step.records]
        largest = max((row.size for row in rows), default=0)
        if largest > self._log.max_record:
            raise RecordRefused(f"a record of {largest} bytes; the log takes {self._log.max_record}")
        for name in {row.topic for row in rows}:
            if not file.TOPIC.fullmatch(name):
                raise TopicRefused(name, "not a topic's name")
        topics = self._log.topics
        for name, table in ((topics.ledger, step.ledger), (topics.dictionaries, step.dictionaries)):
            rows += [file.Row(name, self._partition, key, value, file.NO_HEADERS) for key, value in table.items()]
        await self._log.submit(file.Job(rows, (self._partition, step.next_offset), self._check))

    async def log_start(self) -> int:
        """Return the offset of the oldest frame. Raises Unavailable."""
        return await self._log.oldest(self._partition)

    def cleared(self) -> Cleared:
        """Say that a gateway's frames are in one partition for ever."""
        return Cleared(self._position)

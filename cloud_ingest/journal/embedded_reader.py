"""Reading the embedded log: by the process that writes it, and read-only by others (``tail``, ``audit``)."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from cloud_ingest.journal import embedded_file as file
from cloud_ingest.journal.port import CaughtUp, TopicRecord
from waybill.errors import ConfigError, Unavailable

POLL: Final = 0.2
"""Seconds between looks at the file from another process."""

BATCH: Final = 500


class Reader:
    """``follow`` over one read-only connection."""

    def __init__(
        self,
        path: Path,
        connection: file.Connection,
        frames: str,
        mark: Callable[[], Callable[[], Awaitable[object]]],
    ) -> None:
        """``frames``: the journal's topic. ``mark()``, called before a look, returns what waits for another look."""
        self._path = path
        self._connection = connection
        self._frames = frames
        self._mark = mark

    async def partitions(self) -> int:
        """Return how many partitions every topic has."""
        return await self._run(file.partitions_of)

    async def follow(
        self, topics: Sequence[str], *, only: int | None = None, end: bool = False
    ) -> AsyncIterator[TopicRecord | CaughtUp]:
        """Yield records; see :meth:`cloud_ingest.journal.port.Log.follow`. Raises Unavailable."""
        positions: dict[tuple[str, int], int] = {}
        caught_up = False
        while True:
            changed = self._mark()
            known, heads = await self._run(lambda db: (file.topics_of(db), file.heads_of(db)))
            wanted = {known[name].number: known[name] for name in topics if name in known}
            for (number, partition), head in sorted(heads.items()):
                topic = wanted.get(number)
                if topic is None or (only is not None and partition != only):
                    continue
                start = positions.get((topic.name, partition), 0)
                while start < head:
                    records, start = await self._batch(topic, partition, start, head)
                    for record in records:
                        yield record
                positions[topic.name, partition] = start
            if not caught_up:
                caught_up = True
                yield CaughtUp()
                if end:
                    return
            await changed()

    async def unrouted(self) -> AsyncGenerator[TopicRecord, None]:
        """Yield frames; see :meth:`cloud_ingest.journal.port.Log.unrouted`. Raises Unavailable."""
        known, heads, routed = await self._run(
            lambda db: (file.topics_of(db), file.heads_of(db), dict(db.execute(file.SQL["all_routed"])))
        )
        if (topic := known.get(self._frames)) is None:
            return
        for (number, partition), head in sorted(heads.items()):
            start = routed.get(partition, 0) if number == topic.number else head
            while start < head:
                records, start = await self._batch(topic, partition, start, head)
                for record in records:
                    yield record

    async def _batch(self, topic: file.Topic, partition: int, start: int, head: int) -> tuple[list[TopicRecord], int]:
        return await self._run(lambda db: file.records_of(db, topic, partition, start, head, BATCH))

    async def _run(self, work: Callable[[sqlite3.Connection], file.T]) -> file.T:
        try:
            return await self._connection.run(work)
        except (sqlite3.Error, ValueError) as error:
            raise Unavailable(f"{self._path}: cannot be read: {error}") from error


@contextlib.asynccontextmanager
async def open_reader(path: Path, frames: str) -> AsyncIterator[Reader]:
    """Open the embedded log of another process, or of none, to be read. Raises ConfigError where it is none.

    ``frames``: the journal's topic.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such log; give the data directory of a cloud ingest with an embedded log")
    file.check_whole(path)
    try:
        connection = await file.open_to_read(path)
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: cannot be opened: {error}") from error
    try:
        if not await connection.run(lambda db: file.check(db, path)):
            raise ConfigError(f"{path}: an empty file, not a log")
        yield Reader(path, connection, frames, lambda: partial(asyncio.sleep, POLL))
    finally:
        await connection.close()

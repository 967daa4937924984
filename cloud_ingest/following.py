"""Reading a log with an end: what ``follow`` opened is closed when the reader is done, not when it is collected."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol

from cloud_ingest.journal.port import CaughtUp, TopicRecord


class Readable(Protocol):
    """The part of a :class:`~cloud_ingest.journal.port.Log` that readers need."""

    def follow(
        self, topics: Sequence[str], *, only: int | None = None, end: bool = False
    ) -> AsyncIterator[TopicRecord | CaughtUp]:
        """Yield records; as in the log's port."""


class Journal(Readable, Protocol):
    """The part of a log that the audit needs."""

    def unrouted(self) -> AsyncGenerator[TopicRecord, None]:
        """Yield frames; as in the log's port."""


@contextlib.asynccontextmanager
async def following(
    source: Readable, topics: Sequence[str], *, only: int | None = None, end: bool = False
) -> AsyncIterator[AsyncIterator[TopicRecord | CaughtUp]]:
    """Give the records of ``topics`` while the context is open, then let go of the connection or file behind them."""
    records = source.follow(topics, only=only, end=end)
    try:
        yield records
    finally:
        if isinstance(records, AsyncGenerator):
            await records.aclose()

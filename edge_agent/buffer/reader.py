"""Reading a lane: blocks fetched and parsed as far as a lease needs, the current one kept between leases."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edge_agent.buffer.blocks import ChunkHead, intact, parse, unpack_head
from edge_agent.buffer.index import Track
from edge_agent.buffer.port import Stored
from edge_agent.buffer.sql import SQL
from waybill.errors import Corrupt

_MAX_TOPICS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Run:
    """Messages ``first..first+len(messages)-1``."""

    first: int
    messages: Sequence[Stored]


@dataclass(frozen=True, slots=True)
class Damaged:
    """A block that fails its checksum: ``first`` and ``bytes`` as its row says.

    ``last``: what it may have held ends before the next block, or with the messages asked for; its ``count`` may be
    what is damaged.
    """

    first: int
    last: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Missing:
    """Messages that the lane should have and the file has not."""

    first: int
    last: int


@dataclass(slots=True)
class _Block:
    ordinal: int
    first: int
    count: int
    chunks: Sequence[ChunkHead]
    body: bytes
    parsed: list[Stored] = field(default_factory=list)
    next_chunk: int = 0
    offset: int = 0


class Reader:
    """The reader of one lane. Runs in the connection's thread."""

    def __init__(self, lane: str) -> None:
        self._lane = lane
        self._block: _Block | None = None
        self._topics: dict[bytes, str] = {}

    def read(
        self, db: sqlite3.Connection, track: Track, first: int, last: int, count: int, size: int
    ) -> Run | Damaged | Missing:
        """Read on from ``first``, to ``last`` at most: up to ``count`` messages, about ``size`` payload bytes.

        Raises sqlite3.Error.
        """
        messages: list[Stored] = []
        seq, room = first, size
        if (block := self._block) is not None and block.ordinal == track.ordinal:
            seq, room = self._take(block, messages, seq, min(last, first + count - 1), room)
        if seq > last or len(messages) >= count or (messages and room <= 0):
            return Run(first, messages)
        row = db.execute(SQL["last_block_before"], (self._lane, track.ordinal, seq)).fetchone()
        cursor = db.execute(SQL["blocks_from"], (self._lane, track.ordinal, row[0] if row else seq))
        try:
            for row in cursor:
                found = self._load(track, row)
                if isinstance(found, Damaged):
                    if messages or found.first > last:
                        return Run(first, messages) if messages else self._missing(db, track, first, last)
                    following = db.execute(SQL["next_block"], (self._lane, track.ordinal, found.first)).fetchone()
                    end = min(last, _seq(following[0]) - 1) if following else last
                    if end < seq:
                        continue
                    return Damaged(found.first, end, found.bytes)
                if found.first > seq:  # some are missing before it
                    break
                self._block = found
                seq, room = self._take(found, messages, seq, min(last, first + count - 1), room)
                if seq > last or len(messages) >= count or (messages and room <= 0):
                    break
        finally:
            cursor.close()
        return Run(first, messages) if messages else self._missing(db, track, first, last)

    def forget(self) -> None:
        """Let go of the block kept."""
        self._block = None

    def _missing(self, db: sqlite3.Connection, track: Track, first: int, last: int) -> Missing:
        row = db.execute(SQL["blocks_from"], (self._lane, track.ordinal, first)).fetchone()
        return Missing(first, min(last, row[1] - 1) if row else last)

    def _load(self, track: Track, row: tuple[Any, ...]) -> _Block | Damaged:
        _, found, count, size, crc, head, body = row
        first = _seq(found)
        damaged = Damaged(first, first, size if isinstance(size, int) else 0)
        if not intact(self._lane, track.epoch, first, count, crc, head, body):
            return damaged
        try:
            return _Block(track.ordinal, first, count, unpack_head(head), body)
        except Corrupt:
            return damaged

    def _take(self, block: _Block, messages: list[Stored], seq: int, last: int, room: int) -> tuple[int, int]:
        """Append the block's messages from ``seq`` on; return the next seq and the bytes left."""
        if not block.first <= seq < block.first + block.count:
            return seq, room
        while seq <= last and seq < block.first + block.count and (room > 0 or not messages):
            at = seq - block.first
            if at >= len(block.parsed):
                self._parse_chunk(block)
                continue
            message = block.parsed[at]
            messages.append(message)
            room -= len(message.payload)
            seq += 1
        return seq, room

    def _parse_chunk(self, block: _Block) -> None:
        if len(self._topics) > _MAX_TOPICS:
            self._topics.clear()
        chunk = block.chunks[block.next_chunk]
        end = block.offset + chunk.size
        block.parsed += parse(chunk, block.body[block.offset : end], self._topics)
        block.next_chunk += 1
        block.offset = end


def _seq(first: object) -> int:
    """Return a column that must be a number. Raises sqlite3.DatabaseError."""
    if isinstance(first, int):
        return first
    error = sqlite3.DatabaseError(f"blocks: a row is damaged: first is {first!r}")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    raise error

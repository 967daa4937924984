"""O3 on disk: what each client's resend memory was, computed again at a start.

Of what a client published in this epoch the messages are numbered (``start`` in the chunk heads). Of those the memory
holds the ones from ``low`` on, which rises by what each arrival proved (``keep``) and by the window. Their content is
in the blocks while these exist, in ``resend_tail`` afterwards. At each start everything remembered is written down as
frozen, as the MQTT server takes it, and numbering begins anew.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from edge_agent.buffer.blocks import ChunkHead, intact, sole_chunk, unpack_head
from edge_agent.buffer.sql import SQL
from waybill.errors import Corrupt
from waybill.mqtt.resend import entries_of
from waybill.mqtt.state import ResendEntry

_ENTRY: Final = struct.Struct(">H16s")


def pack_entries(entries: Sequence[ResendEntry]) -> bytes:
    """Encode remembered messages, 18 bytes each."""
    return b"".join([_ENTRY.pack(pid, digest) for pid, digest in entries])


def unpack_entries(data: bytes) -> list[ResendEntry]:
    """Decode what ``pack_entries`` made; of what a disk has cut, the whole entries."""
    return [(pid, digest) for pid, digest in _ENTRY.iter_unpack(data[: len(data) // _ENTRY.size * _ENTRY.size])]


@dataclass(slots=True)
class _Memory:
    low: int = 0
    total: int = 0
    frozen: list[ResendEntry] = field(default_factory=list)
    saved: dict[int, ResendEntry] = field(default_factory=dict)
    chunks: list[tuple[ChunkHead, int, int]] = field(default_factory=list)

    def take(self, chunk: ChunkHead, block: int, at: int, window: int) -> None:
        """Learn of a chunk, whose packets begin ``at`` bytes into the body of ``block``."""
        self.total = max(self.total, chunk.start + chunk.remembered)
        self.low = max(self.low, chunk.start - chunk.keep, self.total - window)
        if chunk.start + chunk.remembered > self.low:
            self.chunks.append((chunk, block, at))

    def entries(self, window: int) -> list[ResendEntry]:
        tail = [entry for number, entry in sorted(self.saved.items()) if number >= self.low]
        return (self.frozen + tail)[-window:]


def remembered(db: sqlite3.Connection, ordinal: int, epoch: int, window: int) -> dict[str, Sequence[ResendEntry]]:
    """Return every client's memory as the epoch ``ordinal``, the newest of the file, left it."""
    memories: dict[str, _Memory] = {}
    for client, low, frozen in db.execute(SQL["resend"]):
        memories[client] = _Memory(low, low, unpack_entries(frozen))
    for client, first, count, entries in db.execute(SQL["resend_tail"]):
        memory = memories.setdefault(client, _Memory())
        memory.saved.update(enumerate(unpack_entries(entries), first))
        memory.total = max(memory.total, first + count)
    lows: dict[bytes, int] = {}
    for block, head in db.execute(SQL["heads_of_epoch"], (ordinal,)):  # newest first: most of the rest is proven
        sole = sole_chunk(head)
        if sole is not None and sole[1] <= lows.get(sole[0], -1):
            continue
        at = 0
        for chunk in readable_heads(head):
            if chunk.remembered or chunk.start:
                memory = memories.setdefault(chunk.client, _Memory())
                memory.take(chunk, block, at, window)
                lows[chunk.client.encode()] = memory.low
            at += chunk.size
    _read_chunks(db, epoch, memories)
    found = {client: memory.entries(window) for client, memory in memories.items()}
    return {client: entries for client, entries in found.items() if entries}


def _read_chunks(db: sqlite3.Connection, epoch: int, memories: dict[str, _Memory]) -> None:
    """Take from the blocks what is remembered of them, each block read once."""
    wanted: dict[int, list[tuple[_Memory, ChunkHead, int]]] = {}
    for memory in memories.values():
        for chunk, block, at in memory.chunks:
            if chunk.start + chunk.remembered > memory.low:
                wanted.setdefault(block, []).append((memory, chunk, at))
    for block, chunks in sorted(wanted.items()):
        lane, first, count, crc, head, body = db.execute(SQL["block"], (block,)).fetchone()
        if intact(lane, epoch, first, count, crc, head, body):  # else the reader sets it aside
            for memory, chunk, at in chunks:
                memory.saved.update(enumerate(entries_of(body[at : at + chunk.size], chunk.version), chunk.start))


def readable_heads(head: bytes) -> list[ChunkHead]:
    """Return a block's chunk heads; none where they are damaged."""
    try:
        return unpack_head(head)
    except Corrupt:
        return []  # the reader sets such a block aside


def freeze_all(db: sqlite3.Connection, memories: dict[str, Sequence[ResendEntry]]) -> None:
    """Write ``memories`` down in place of all there was, within the transaction under way."""
    db.execute(SQL["forget_all_resend"])
    db.execute(SQL["forget_all_tails"])
    db.executemany(SQL["set_resend"], [(client, 0, pack_entries(entries)) for client, entries in memories.items()])

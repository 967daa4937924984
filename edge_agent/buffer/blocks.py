"""A block: what one commit brought to one lane, as bytes. Pure.

A row of the table ``blocks`` has two blobs. ``body`` is the chunks' PUBLISH packets one after the other, as they came
in. ``head`` describes the chunks, so that settling and restoring need not read bodies::

    head  = chunk head …
    chunk = fixed fields (struct "<HBqqIIQII", little endian), then the client id in UTF-8
            H client id's bytes, B version, q wall_ms, q mono_ns, I keep, I count,
            Q start, I remembered, I bytes of raw

``start`` numbers the messages that the resend memory is about (QoS 1 and 2 with a packet id, ``remembered`` of them
here) within their client's tail, from 0 at each start of the agent. ``checksum`` is the CRC-32 over the block's place
(lane, epoch, first, count), head and body: a block that was moved or changed by the disk does not pass for another.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from edge_agent.buffer.port import Chunk, Stored
from waybill.errors import Corrupt

BLOCK_BYTES: Final = 1 << 20
"""About how large a block gets: a larger commit is cut into several, between chunks."""

_CHUNK = struct.Struct("<HBqqIIQII")
_PLACE = struct.Struct("<qqq")
_MQTT_5: Final = 5
_FLAGS: Final = tuple((low >> 1 & 3) | (low & 1) << 2 | (low & 8) for low in range(16))
"""Low nibble of a PUBLISH's first byte to the flags of :class:`Stored`."""


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """A chunk without its packets; fields as in the module's table."""

    client: str
    version: int
    wall_ms: int
    mono_ns: int
    keep: int
    count: int
    start: int
    remembered: int
    size: int


def chunk_size(chunk: Chunk) -> int:
    """Return the bytes that a chunk takes in its block."""
    return _CHUNK.size + len(chunk.client.encode()) + len(chunk.raw)


def newest_stamp(head: bytes) -> tuple[int, int] | None:
    """Return wall time (ms) and monotonic time (ns) of a block's last chunk; None where its head is damaged."""
    try:
        last = unpack_head(head)[-1]
    except (Corrupt, IndexError):
        return None
    return last.wall_ms, last.mono_ns


def cut(chunks: Sequence[tuple[Chunk, int]], size: int = BLOCK_BYTES) -> Iterator[Sequence[tuple[Chunk, int]]]:
    """Cut (chunk, its ``start``) pairs into runs of about ``size`` bytes, at least one chunk each."""
    begin = used = 0
    for at, (chunk, _) in enumerate(chunks):
        if used and used + len(chunk.raw) > size:
            yield chunks[begin:at]
            begin, used = at, 0
        used += len(chunk.raw)
    if begin < len(chunks):
        yield chunks[begin:] if begin else chunks


def pack(chunks: Sequence[tuple[Chunk, int]]) -> tuple[int, bytes, bytes]:
    """Return count, head and body of one block."""
    heads: list[bytes] = []
    count = 0
    for chunk, start in chunks:
        client = chunk.client.encode()
        count += chunk.count
        heads.append(
            _CHUNK.pack(
                len(client),
                chunk.version,
                chunk.wall_ms,
                chunk.mono_ns,
                chunk.keep,
                chunk.count,
                start,
                chunk.remembered,
                len(chunk.raw),
            )
        )
        heads.append(client)
    return count, b"".join(heads), b"".join([chunk.raw for chunk, _ in chunks])


def checksum(lane: str, epoch: int, first: int, count: int, head: bytes, body: bytes) -> int:
    """Return the CRC-32 of a block."""
    return zlib.crc32(body, zlib.crc32(head, zlib.crc32(_PLACE.pack(epoch, first, count) + lane.encode())))


def intact(lane: str, epoch: int, first: object, count: object, crc: object, head: object, body: object) -> bool:
    """Tell whether a row's columns are what the schema says, which SQLite does not check, and its checksum holds."""
    return (
        isinstance(first, int)
        and isinstance(count, int)
        and isinstance(head, bytes)
        and isinstance(body, bytes)
        and checksum(lane, epoch, first, count, head, body) == crc
    )


def unpack_head(head: bytes) -> list[ChunkHead]:
    """Read the chunk heads of a block. Raises Corrupt."""
    chunks: list[ChunkHead] = []
    at = 0
    try:
        while at < len(head):
            length, version, wall_ms, mono_ns, keep, count, start, remembered, size = _CHUNK.unpack_from(head, at)
            at += _CHUNK.size
            client = head[at : at + length].decode()
            at += length
            chunks.append(ChunkHead(client, version, wall_ms, mono_ns, keep, count, start, remembered, size))
    except (struct.error, UnicodeDecodeError) as error:
        raise Corrupt(f"block head: {error}") from error
    if at != len(head):
        raise Corrupt("block head: it ends within a client id")
    return chunks


def sole_chunk(head: bytes) -> tuple[bytes, int] | None:
    """Return the client id and ``start + remembered`` of a block of one chunk; None where it has more, or is damaged.

    What a start needs of most blocks, and quicker than ``unpack_head``.
    """
    if len(head) < _CHUNK.size:
        return None
    length, _, _, _, _, _, start, remembered, _ = _CHUNK.unpack_from(head)
    return (head[_CHUNK.size :], start + remembered) if len(head) == _CHUNK.size + length else None


def parse(chunk: ChunkHead, raw: bytes, topics: dict[bytes, str]) -> list[Stored]:
    """Parse a chunk's PUBLISH packets (OASIS MQTT 3.1.1 and 5.0, section 3.3). ``topics``: decoded so far.

    Raises Corrupt where they are not ``chunk.count`` whole packets.
    """
    stored: list[Stored] = []
    append = stored.append
    client, wall_ms, mono_ns, has_properties = chunk.client, chunk.wall_ms, chunk.mono_ns, chunk.version == _MQTT_5
    at, size = 0, len(raw)
    properties = b""
    try:
        while at < size:
            first = raw[at]
            length = raw[at + 1]
            at += 2
            if length > 127:  # noqa: PLR2004 - the continuation bit
                length, at = _length(raw, at - 1)
            end = at + length
            name_end = at + 2 + (raw[at] << 8 | raw[at + 1])
            name = raw[at + 2 : name_end]
            topic = topics.get(name)
            if topic is None:
                topic = topics[name] = name.decode()
            at = name_end + 2 if first & 6 else name_end
            if has_properties:
                length, at = _length(raw, at)
                properties = raw[at : at + length]
                at += length
            if at > end or end > size:
                raise Corrupt("block: a packet is longer than its chunk")
            append(Stored(topic, client, wall_ms, _FLAGS[first & 15], raw[at:end], properties, mono_ns))
            at = end
    except (IndexError, UnicodeDecodeError) as error:
        raise Corrupt(f"block: not whole PUBLISH packets: {error}") from error
    if len(stored) != chunk.count:
        raise Corrupt(f"block: a chunk holds {len(stored)} messages, its head says {chunk.count}")
    return stored


def _length(raw: bytes, at: int) -> tuple[int, int]:
    """Read a variable byte integer; return it and where it ends."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:  # noqa: PLR2004 - the continuation bit
            return value, at
        shift += 7

"""The body ``plain``: MessagePack, compressed by zstd.

Before compression it is an array of two::

    [sources, rows]
    sources: [[topic: str, client: str], …]                                   each (topic, client) pair once
    rows:    [[source: int, offset: int, flags: int, payload: bin, properties: bin], …]    one a message

``offset`` is milliseconds relative to the header's base time, and may be negative. ``flags``: bits 0-1 QoS, bit 2
retain, bit 3 replayed (the device had set DUP). ``properties``: the MQTT 5 property block without its length (OASIS
MQTT 5.0, 2.2.2.2), empty where the device sent none (zstd makes that free).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Final

import cramjam
import msgspec

from waybill.errors import Corrupt
from waybill.frames.header import PLAIN, Clock, Durability, FrameHeader, Order, body_of, pack_header, read_header

MAX_RAW: Final = 64 << 20
"""Largest body that is decompressed, bytes; a frame that claims more is refused before any work is done."""

MAX_MESSAGE: Final = 4 << 20
"""Largest payload with its properties, bytes: with key and headers it still fits into a dead letter (R5)."""

MAX_NAME: Final = 65_535
"""Largest topic and client id, bytes of UTF-8 (OASIS MQTT 3.1.1, 1.5.3)."""

LEVEL: Final = 3

QOS: Final = 0x03
RETAIN: Final = 0x04
REPLAYED: Final = 0x08

Row = tuple[int, int, int, bytes, bytes]
"""``(source, offset_ms, flags, payload, properties)``: a plain tuple, for speed."""

_Index = Annotated[int, msgspec.Meta(ge=0)]
_Flags = Annotated[int, msgspec.Meta(ge=0, le=QOS | RETAIN | REPLAYED)]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[list[tuple[str, str]], list[tuple[_Index, int, _Flags, bytes, bytes]]]).decode
_source = itemgetter(0)


@dataclass(slots=True)
class Frame:
    """A decoded frame. ``sources``: (topic, client) pairs; ``rows``: a row a message, ``header.count`` of them."""

    header: FrameHeader
    sources: list[tuple[str, str]]
    rows: list[Row]


def encode_plain(  # noqa: PLR0913 - the header's fields, each named at the call
    *,
    epoch: int,
    prev_epoch: int,
    prev_last: int,
    oldest_epoch: int,
    lane: str,
    order: Order,
    durability: Durability,
    clock: Clock,
    first: int,
    base_ms: int,
    sources: Sequence[tuple[str, str]],
    rows: Sequence[Row],
) -> bytes:
    """Encode ``rows`` (at least one) as a frame. Raises ValueError on a header field out of its range."""
    raw = _encode((sources, rows))
    body = bytes(cramjam.zstd.compress(raw, LEVEL))
    header = FrameHeader(
        PLAIN,
        epoch,
        prev_epoch,
        prev_last,
        oldest_epoch,
        lane,
        order,
        durability,
        clock,
        first,
        len(rows),
        base_ms,
        len(raw),
        len(body),
    )
    return pack_header(header, body)


def decode(data: bytes, max_raw: int = MAX_RAW) -> Frame:
    """Decode a whole frame.

    Bounded: never more than the header's ``raw_size`` is decompressed, nor more than ``max_raw``.

    Raises UnknownVersion, or Corrupt for anything that is not a frame down to the last row.
    """
    header = read_header(data)
    if header.codec != PLAIN:
        msg = f"frame: body codec {header.codec} is not known to this program"
        raise Corrupt(msg)
    if header.dictionary:
        msg = f"frame: dictionary {header.dictionary} is not known to this program"
        raise Corrupt(msg)
    if header.raw_size > max_raw:
        msg = f"frame: a body of {header.raw_size} bytes is over the limit of {max_raw}"
        raise Corrupt(msg)
    raw = bytearray(header.raw_size)
    try:
        written = cramjam.zstd.decompress_into(body_of(data, header), raw)
    except cramjam.DecompressionError as error:
        msg = f"frame: zstd: {error}"
        raise Corrupt(msg) from error
    if written != header.raw_size:
        msg = f"frame: the body has {written} bytes, its header says {header.raw_size}"
        raise Corrupt(msg)
    try:
        sources, rows = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"frame: body: {error}"
        raise Corrupt(msg) from error
    if len(rows) != header.count:
        msg = f"frame: {len(rows)} messages, its header says {header.count}"
        raise Corrupt(msg)
    if max(map(_source, rows)) >= len(sources):
        msg = "frame: a row names a source that is not there"
        raise Corrupt(msg)
    _check_sizes(header.raw_size, sources, rows)
    return Frame(header, sources, rows)


def _check_sizes(raw_size: int, sources: Sequence[tuple[str, str]], rows: Sequence[Row]) -> None:
    """Refuse what would be no MQTT message; most bodies are too small to hold any. Raises Corrupt."""
    if raw_size > MAX_NAME:
        largest = max(len(name.encode()) for source in sources for name in source)
        if largest > MAX_NAME:
            msg = f"frame: a topic or client of {largest} bytes; MQTT allows {MAX_NAME}"
            raise Corrupt(msg)
    if raw_size > MAX_MESSAGE:
        largest = max(len(payload) + len(properties) for _, _, _, payload, properties in rows)
        if largest > MAX_MESSAGE:
            msg = f"frame: a message of {largest} bytes; the limit is {MAX_MESSAGE}"
            raise Corrupt(msg)

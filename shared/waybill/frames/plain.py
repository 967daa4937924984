"""The body ``plain``: MessagePack, compressed by zstd, with a dictionary where both sides have one.

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
from typing import Annotated, Final

import msgspec

from waybill.errors import Corrupt
from waybill.frames import zstd
from waybill.frames.header import PLAIN, Clock, Durability, FrameHeader, Order, pack_header
from waybill.frames.zstd import Dictionary

LEVEL: Final = 3

QOS: Final = 0x03
RETAIN: Final = 0x04
REPLAYED: Final = 0x08

Row = tuple[int, int, int, bytes, bytes]
"""``(source, offset_ms, flags, payload, properties)``: a plain tuple, for speed."""

Index = Annotated[int, msgspec.Meta(ge=0)]
Flags = Annotated[int, msgspec.Meta(ge=0, le=QOS | RETAIN | REPLAYED)]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[list[tuple[str, str]], list[tuple[Index, int, Flags, bytes, bytes]]]).decode


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
    dictionary: Dictionary | None = None,
) -> bytes:
    """Encode ``rows`` (at least one) as a frame. Raises ValueError on a header field out of its range.

    ``dictionary``: one that the receiver has; used where the body is small.
    """
    raw = _encode((sources, rows))
    body, used = zstd.compress(raw, LEVEL, dictionary)
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
        used,
    )
    return pack_header(header, body)


def unpack(raw: bytes | bytearray) -> tuple[list[tuple[str, str]], list[Row]]:
    """Return the sources and the rows of a body. Raises Corrupt."""
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"frame: body: {error}"
        raise Corrupt(msg) from error

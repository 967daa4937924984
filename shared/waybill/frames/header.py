"""The frame header, version 1: readable without decompressing the body. Few bytes: a message may travel alone.

====== ===== ==============================================================================================
offset bytes field
====== ===== ==============================================================================================
0      2     magic ``WB``
2      1     version, 1
3      1     codec of the body: 1 plain, 2 columns
4      4     checksum: CRC-32 (ISO 3309, as zlib computes it) over all bytes from offset 8 to the frame's end
8      1     size of the fields, bytes
9      n     the fields, a MessagePack array (fields added later stand at its end)
9 + n        the body, to the frame's end
====== ===== ==============================================================================================

The fields are integers but for the first::

    lane          its name, str, 1..64 bytes
    kind          order (0 fifo, 1 fresh-first, 2 arrival) + 4 * durability (0 every-commit, 1 relaxed)
                  + 8 * clock (0 unknown, 1 synced, 2 corrected)
    epoch         1..2**63-1
    oldest_epoch  the lane's oldest epoch with unsettled messages (E4), 0 where that is ``epoch``
    prev_epoch    the previous epoch that assigned a seq in this lane, 0 if none (E2)
    prev_last     the last seq of that epoch in this lane, 0 if none
    first         first seq, from 1
    count         of messages, from 1
    base_ms       base time, milliseconds since 1970 UTC, may be negative
    raw_size      size of the body before compression, bytes
    dictionary    id of the one that the body was compressed with, 0 for none
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from waybill.errors import Corrupt, UnknownVersion

Order = Literal["fifo", "fresh-first", "arrival"]
Durability = Literal["every-commit", "relaxed"]
Clock = Literal["unknown", "synced", "corrected"]

MAGIC: Final = b"WB"
VERSION: Final = 1
VERSIONS: Final = (VERSION,)
PLAIN: Final = 1
COLUMNS: Final = 2
MAX_EPOCH: Final = 2**63 - 1
MAX_LANE: Final = 64

ORDERS: Final[tuple[Order, ...]] = ("fifo", "fresh-first", "arrival")
DURABILITIES: Final[tuple[Durability, ...]] = ("every-commit", "relaxed")
CLOCKS: Final[tuple[Clock, ...]] = ("unknown", "synced", "corrected")

_PREFIX = struct.Struct(">2sBBIB")
_COVERED: Final = 8
"""Offset from which on the checksum covers everything."""

_Epoch = Annotated[int, msgspec.Meta(ge=1, le=MAX_EPOCH)]
_Maybe = Annotated[int, msgspec.Meta(ge=0, le=MAX_EPOCH)]
_Small = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class _Fields(msgspec.Struct, array_like=True, gc=False):
    lane: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_LANE)]
    kind: Annotated[int, msgspec.Meta(ge=0, le=31)]
    epoch: _Epoch
    oldest_epoch: _Maybe
    prev_epoch: _Maybe
    prev_last: _Maybe
    first: _Epoch
    count: Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]
    base_ms: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    raw_size: _Small
    dictionary: _Small


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Fields).decode


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The header of one frame: one epoch and one lane. Fields and units as in the module's text.

    ``body_size``: bytes of the body as it stands in the frame.
    """

    codec: int
    epoch: int
    prev_epoch: int
    prev_last: int
    oldest_epoch: int
    lane: str
    order: Order
    durability: Durability
    clock: Clock
    first: int
    count: int
    base_ms: int
    raw_size: int
    body_size: int
    dictionary: int = 0

    @property
    def last(self) -> int:
        """The seq of the frame's last message."""
        return self.first + self.count - 1


def pack_header(header: FrameHeader, body: bytes) -> bytes:
    """Return the whole frame.

    ``header`` and ``body`` with the checksum set. Raises ValueError on a field out of its range.
    """
    try:
        fields = _encode(
            _Fields(
                header.lane,
                ORDERS.index(header.order) + 4 * DURABILITIES.index(header.durability) + 8 * CLOCKS.index(header.clock),
                header.epoch,
                0 if header.oldest_epoch == header.epoch else header.oldest_epoch,
                header.prev_epoch,
                header.prev_last,
                header.first,
                header.count,
                header.base_ms,
                header.raw_size,
                header.dictionary,
            )
        )
        _check_lane(_decode(fields).lane)
    except (msgspec.MsgspecError, OverflowError, Corrupt) as error:
        raise ValueError(f"frame header: {error}") from error
    covered = b"".join((bytes((len(fields),)), fields, body))
    return _PREFIX.pack(MAGIC, VERSION, header.codec, zlib.crc32(covered), len(fields)) + covered[1:]


def read_header(data: bytes) -> FrameHeader:
    """Read and check the header of the frame in ``data``, its checksum over header and body included.

    Raises UnknownVersion for another version (nothing else of it was looked at), Corrupt for everything else.
    """
    if len(data) < _PREFIX.size or data[:2] != MAGIC:
        raise Corrupt("not a frame: it does not begin with 'WB'")
    _, version, codec, checksum, size = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise UnknownVersion("frame", version, VERSIONS)
    if zlib.crc32(memoryview(data)[_COVERED:]) != checksum:
        raise Corrupt("frame: the checksum does not match")
    end = _PREFIX.size + size
    try:
        fields = _decode(memoryview(data)[_PREFIX.size : end])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"frame: header: {error}") from error
    _check_lane(fields.lane)
    order, durability, clock = fields.kind & 3, fields.kind >> 2 & 1, fields.kind >> 3
    _check(end <= len(data), "its header is cut short")
    _check(order < len(ORDERS) and clock < len(CLOCKS), "order or clock is unknown")
    _check(
        (fields.prev_epoch == 0) == (fields.prev_last == 0) and fields.prev_epoch != fields.epoch,
        "the previous epoch and its last seq do not agree",
    )
    _check(fields.first + fields.count - 1 <= MAX_EPOCH, "first seq or count is out of range")
    return FrameHeader(
        codec,
        fields.epoch,
        fields.prev_epoch,
        fields.prev_last,
        fields.oldest_epoch or fields.epoch,
        fields.lane,
        ORDERS[order],
        DURABILITIES[durability],
        CLOCKS[clock],
        fields.first,
        fields.count,
        fields.base_ms,
        fields.raw_size,
        len(data) - end,
        fields.dictionary,
    )


def check_body(header: FrameHeader) -> None:
    """Raise Corrupt where the body is of a kind that this program does not know."""
    if header.codec not in (PLAIN, COLUMNS):
        msg = f"frame: body codec {header.codec} is not known to this program"
        raise Corrupt(msg)


def peek_span(data: bytes) -> tuple[int, str, int, int] | None:
    """Return the (epoch, lane, first, last) that ``data`` claims, with no checksum, or None where that cannot be read.

    For naming a frame that :func:`read_header` refused. Never to be believed otherwise.
    """
    if len(data) < _PREFIX.size or data[:2] != MAGIC or data[2] != VERSION:
        return None
    try:
        fields = _decode(data[_PREFIX.size : _PREFIX.size + data[_PREFIX.size - 1]])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return fields.epoch, fields.lane, fields.first, fields.first + fields.count - 1


def body_of(data: bytes, header: FrameHeader) -> memoryview:
    """Return the body of a frame whose header was read from ``data``."""
    return memoryview(data)[len(data) - header.body_size :]


def _check_lane(lane: str) -> None:
    _check(len(lane.encode()) <= MAX_LANE, f"lane {lane!r}: a lane's name has 1 to {MAX_LANE} bytes")


def _check(holds: bool, what: str) -> None:  # noqa: FBT001 - a guard reads best with its condition first
    if not holds:
        msg = f"frame: {what}"
        raise Corrupt(msg)

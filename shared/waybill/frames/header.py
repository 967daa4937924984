"""The frame header, version 1: fixed fields, big endian, readable without decompressing the body.

====== ===== ==============================================================================================
offset bytes field
====== ===== ==============================================================================================
0      2     magic ``WB``
2      1     version, 1
3      1     codec of the body: 1 plain, 2 columns
4      4     checksum: CRC-32 (ISO 3309, as zlib computes it) over all bytes from offset 8 to the frame's end
8      2     header length in bytes, from offset 0 to the body (fields added later stand before the body)
10     1     order: 0 fifo, 1 fresh-first, 2 arrival
11     1     durability: 0 every-commit, 1 relaxed
12     1     clock: 0 unknown, 1 synced, 2 corrected
13     1     length of the lane's name in bytes, 1..64
14     2     reserved, 0
16     8     epoch, 1..2**63-1
24     8     previous epoch that assigned a seq in this lane, 0 if none (E2)
32     8     the last seq of that epoch in this lane, 0 if none
40     8     the lane's oldest epoch with unsettled messages (E4)
48     8     first seq, from 1
56     8     base time, signed, milliseconds since 1970 UTC
64     4     count of messages, from 1
68     4     size of the body before compression, bytes
72     4     size of the body as it stands in the frame, bytes
76     4     dictionary that the body was compressed with, 0 for none
80     n     the lane's name, UTF-8
====== ===== ==============================================================================================
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final, Literal

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

_PREFIX = struct.Struct(">2sBBI")
_FIXED = struct.Struct(">HBBBBHQQQQQqIIII")
_START: Final = _PREFIX.size + _FIXED.size


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The header of one frame: one epoch and one lane. Fields and units as in the module's table."""

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
    lane = header.lane.encode()
    if not 1 <= len(lane) <= MAX_LANE:
        msg = f"lane {header.lane!r}: a lane's name has 1 to {MAX_LANE} bytes"
        raise ValueError(msg)
    try:
        fixed = _FIXED.pack(
            _START + len(lane),
            ORDERS.index(header.order),
            DURABILITIES.index(header.durability),
            CLOCKS.index(header.clock),
            len(lane),
            0,
            header.epoch,
            header.prev_epoch,
            header.prev_last,
            header.oldest_epoch,
            header.first,
            header.base_ms,
            header.count,
            header.raw_size,
            len(body),
            header.dictionary,
        )
    except struct.error as error:
        msg = f"frame header: {error}"
        raise ValueError(msg) from error
    covered = b"".join((fixed, lane, body))
    return _PREFIX.pack(MAGIC, VERSION, header.codec, zlib.crc32(covered)) + covered


def read_header(data: bytes) -> FrameHeader:
    """Read and check the header of the frame in ``data``, its checksum over header and body included.

    Raises UnknownVersion for another version (nothing else of it was looked at), Corrupt for everything else.
    """
    if len(data) < _PREFIX.size or data[:2] != MAGIC:
        msg = "not a frame: it does not begin with 'WB'"
        raise Corrupt(msg)
    _, version, codec, checksum = _PREFIX.unpack_from(data)
    if version != VERSION:
        what = "frame"
        raise UnknownVersion(what, version, VERSIONS)
    if len(data) < _START:
        msg = f"frame of {len(data)} bytes is shorter than its header"
        raise Corrupt(msg)
    if zlib.crc32(memoryview(data)[_PREFIX.size :]) != checksum:
        msg = "frame: the checksum does not match"
        raise Corrupt(msg)
    (
        length,
        order,
        durability,
        clock,
        lane_size,
        _,
        epoch,
        prev_epoch,
        prev_last,
        oldest_epoch,
        first,
        base_ms,
        count,
        raw_size,
        body_size,
        dictionary,
    ) = _FIXED.unpack_from(data, _PREFIX.size)
    _check(
        length == len(data) - body_size and length >= _START + lane_size and 1 <= lane_size <= MAX_LANE,
        "its lengths do not add up",
    )
    _check(
        order < len(ORDERS) and durability < len(DURABILITIES) and clock < len(CLOCKS),
        "order, durability or clock is unknown",
    )
    _check(
        1 <= epoch <= MAX_EPOCH and 1 <= oldest_epoch <= MAX_EPOCH and prev_epoch <= MAX_EPOCH,
        "an epoch is out of range",
    )
    _check(
        (prev_epoch == 0) == (prev_last == 0) and prev_epoch != epoch,
        "the previous epoch and its last seq do not agree",
    )
    _check(first >= 1 and count >= 1 and first + count - 1 <= MAX_EPOCH, "first seq or count is out of range")
    try:
        lane = data[_START : _START + lane_size].decode()
    except UnicodeDecodeError as error:
        msg = "frame: the lane's name is not UTF-8"
        raise Corrupt(msg) from error
    return FrameHeader(
        codec,
        epoch,
        prev_epoch,
        prev_last,
        oldest_epoch,
        lane,
        ORDERS[order],
        DURABILITIES[durability],
        CLOCKS[clock],
        first,
        count,
        base_ms,
        raw_size,
        body_size,
        dictionary,
    )


def check_body(header: FrameHeader) -> None:
    """Raise Corrupt where the body is of a kind that this program does not know."""
    if header.codec not in (PLAIN, COLUMNS):
        msg = f"frame: body codec {header.codec} is not known to this program"
        raise Corrupt(msg)


def peek_span(data: bytes) -> tuple[int, str, int, int] | None:
    """Return the (epoch, lane, first, last) that ``data`` claims, with nothing checked, or None where it is too short.

    For naming a frame that :func:`read_header` refused. Never to be believed otherwise.
    """
    if len(data) < _START or data[:2] != MAGIC or data[2] != VERSION:
        return None
    _, _, _, _, lane_size, _, epoch, _, _, _, first, _, count, *_ = _FIXED.unpack_from(data, _PREFIX.size)
    return epoch, data[_START : _START + lane_size].decode(errors="replace"), first, first + count - 1


def body_of(data: bytes, header: FrameHeader) -> memoryview:
    """Return the body of a frame whose header was read from ``data``."""
    return memoryview(data)[len(data) - header.body_size :]


def _check(holds: bool, what: str) -> None:  # noqa: FBT001 - a guard reads best with its condition first
    if not holds:
        msg = f"frame: {what}"
        raise Corrupt(msg)

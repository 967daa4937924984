"""A whole frame, whatever its body: decoding, and the change from one body to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter
from typing import Final

from waybill.errors import Corrupt, UnknownVersion
from waybill.frames import columns, plain, zstd
from waybill.frames.header import COLUMNS, PLAIN, FrameHeader, body_of, check_body, pack_header, read_header
from waybill.frames.plain import Row
from waybill.frames.zstd import Dictionary

MAX_RAW: Final = 64 << 20
"""Largest body, bytes, before compression and put together; a frame that claims more is refused before any work."""

MAX_MESSAGE: Final = 4 << 20
"""Largest payload with its properties, bytes: with key and headers it still fits into a dead letter (R5)."""

MAX_NAME: Final = 65_535
"""Largest topic and client id, bytes of UTF-8 (OASIS MQTT 3.1.1, 1.5.3)."""

LEVEL: Final = 14
"""Columns are so few bytes that zstd may take its time: 5 to 12 % fewer than at level 6, for a tenth more work."""

LARGE: Final = 128 << 10
LARGE_LEVEL: Final = 6
"""Columns of more bytes than this are mostly names, each of its own, and at ``LEVEL`` they would be half of all work.

Up to a fifth more bytes, on a link that is fast: frames are no larger than what it takes in half a second.
"""

WORTH: Final = 7 / 8
"""Columns that have more bytes than this of the plain body are not worth their decoder's work."""

_source = itemgetter(0)


@dataclass(slots=True)
class Frame:
    """A decoded frame.

    ``sources``: (topic, client) pairs; ``rows``: a row a message, ``header.count`` of them. ``size``: what they take
    at most, bytes, however small the body was.
    """

    header: FrameHeader
    sources: list[tuple[str, str]]
    rows: list[Row]
    size: int


def in_columns(frame: bytes, dictionary: Dictionary | None = None, *, fewest: bool = False) -> bytes:
    """Return a frame that holds the same with the body ``columns``, or ``frame`` itself where that gains too little.

    It is also returned where it is none that :func:`decode` takes. About ten times the work of the body ``plain``.
    ``dictionary``: one that the receiver has; used where the body is small, and the one of ``frame`` if it has one.
    ``fewest``: bytes, whatever work that is.
    """
    try:
        if read_header(frame).count < columns.MIN_ROWS:
            return frame
        known = decode(frame, dictionary=dictionary)
        raw = columns.pack(known.sources, known.rows, MAX_RAW)
    except (Corrupt, UnknownVersion, ValueError):
        return frame
    level = LEVEL if fewest or len(raw) <= LARGE else LARGE_LEVEL
    body, used = zstd.compress(raw, level, dictionary)
    if len(raw) > MAX_RAW or len(body) > WORTH * known.header.body_size:
        return frame
    return pack_header(replace(known.header, codec=COLUMNS, raw_size=len(raw), dictionary=used), body)


def raw_body(data: bytes, header: FrameHeader, dictionary: Dictionary | None = None, max_raw: int = MAX_RAW) -> bytes:
    """Return the body of a frame whose header was read, decompressed: never more than ``max_raw`` bytes.

    ``dictionary``: used only where the header names it. Raises Corrupt.
    """
    if header.raw_size > max_raw:
        raise Corrupt(f"frame: a body of {header.raw_size} bytes is over the limit of {max_raw}")
    if header.dictionary and (dictionary is None or dictionary.id != header.dictionary):
        raise Corrupt(f"frame: dictionary {header.dictionary} is not known")
    return zstd.decompress(body_of(data, header), header.raw_size, dictionary if header.dictionary else None)


def decode(data: bytes, max_raw: int = MAX_RAW, dictionary: Dictionary | None = None) -> Frame:
    """Decode a whole frame. ``dictionary``: used where the header names it.

    Bounded: never more than the header's ``raw_size`` is decompressed, nor more than ``max_raw``; and the body
    ``columns`` is not put together where that would take more than ``max_raw``.

    Raises UnknownVersion, or Corrupt for anything that is not a frame down to the last row.
    """
    header = read_header(data)
    check_body(header)
    raw = raw_body(data, header, dictionary, max_raw)
    if header.codec == PLAIN:
        (sources, rows), size = plain.unpack(raw), len(raw)
    else:
        sources, rows, size = columns.unpack(raw, header.count, max_raw)
    if len(rows) != header.count:
        msg = f"frame: {len(rows)} messages, its header says {header.count}"
        raise Corrupt(msg)
    if max(map(_source, rows)) >= len(sources):
        msg = "frame: a row names a source that is not there"
        raise Corrupt(msg)
    _check_sizes(max(size, len(raw)), sources, rows)
    return Frame(header, sources, rows, size)


def _check_sizes(size: int, sources: Sequence[tuple[str, str]], rows: Sequence[Row]) -> None:
    """Refuse what would be no MQTT message; most bodies are too small to hold any. Raises Corrupt."""
    if size > MAX_NAME:
        # a character is at most four bytes of UTF-8, and nearly all names are short
        long = [name for name in chain.from_iterable(sources) if len(name) > MAX_NAME // 4]
        largest = max((len(name.encode()) for name in long), default=0)
        if largest > MAX_NAME:
            msg = f"frame: a topic or client of {largest} bytes; MQTT allows {MAX_NAME}"
            raise Corrupt(msg)
    if size > MAX_MESSAGE:
        largest = max(len(payload) + len(properties) for _, _, _, payload, properties in rows)
        if largest > MAX_MESSAGE:
            msg = f"frame: a message of {largest} bytes; the limit is {MAX_MESSAGE}"
            raise Corrupt(msg)

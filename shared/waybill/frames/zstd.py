"""zstd (RFC 8878) within bounds, with or without a dictionary.

A dictionary is one in zstd's own format (RFC 8878, section 5), at most ``MAX_DICTIONARY`` bytes. Its id is the CRC-32
(as in zlib) of these bytes, so that two that differ are not mistaken for each other; one whose CRC-32 is 0 is none.
"""

from __future__ import annotations

import contextlib
import sys
import zlib
from collections.abc import Sequence
from typing import Final

from waybill.errors import Corrupt

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_DICTIONARY: Final = 16 << 10
"""Largest dictionary, bytes."""

MAX_WINDOW: Final = 26
"""Largest window of a zstd frame, as a power of two: memory that its header asks for before anything is known."""

SMALL: Final = 64 << 10
"""Largest body, bytes before compression, that a dictionary gains anything for that is worth the work."""

_TINY: Final = 16 << 10
_TINY_LEVEL: Final = 6
"""Bodies up to this size are compressed at this level with a dictionary: lower and higher ones make them larger."""

_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW}


class Dictionary:
    """A dictionary made ready for use. ``content``: its bytes; ``id``: their CRC-32, never 0."""

    __slots__ = ("_ready", "content", "id")

    def __init__(self, content: bytes) -> None:
        """Take ``content``. Raises Corrupt where it is no dictionary that zstd can use, or too large a one."""
        if len(content) > MAX_DICTIONARY:
            raise Corrupt(f"a dictionary of {len(content)} bytes is over the limit of {MAX_DICTIONARY}")
        self.content = content
        self.id = zlib.crc32(content)
        try:
            self._ready = zstd.ZstdDict(content)
            # Its tables are read at its first use only, by each side for itself.
            zstd.compress(b"", zstd_dict=self._ready)
            zstd.ZstdDecompressor(self._ready)
        except (ValueError, zstd.ZstdError) as error:
            raise Corrupt(f"not a zstd dictionary: {error}") from error
        if not self.id:
            raise Corrupt("a dictionary whose id would be 0")

    def compress(self, raw: bytes, level: int) -> bytes:
        """Return ``raw`` as one zstd frame, which does not name the dictionary: whoever sends it does."""
        options: dict[int, int] = {
            zstd.CompressionParameter.compression_level: level,
            zstd.CompressionParameter.dict_id_flag: 0,
        }
        return zstd.compress(raw, options=options, zstd_dict=self._ready.as_digested_dict)

    def decompress(self, body: bytes | memoryview, size: int) -> bytes:
        """Return what :meth:`compress` was given; as :func:`decompress` does."""
        return _decompress(zstd.ZstdDecompressor(self._ready, _OPTIONS), body, size)


def train(samples: Sequence[bytes], size: int) -> Dictionary:
    """Return a dictionary of at most ``size`` bytes, at most ``MAX_DICTIONARY``, for bodies like ``samples``.

    Takes about 0.1 s for half a megabyte. Raises Corrupt where these are too few, or have nothing in common.
    """
    try:
        return Dictionary(zstd.train_dict(samples, size).dict_content)
    except (ValueError, zstd.ZstdError) as error:
        raise Corrupt(f"no dictionary can be made of {len(samples)} samples: {error}") from error


def compress(raw: bytes, level: int, dictionary: Dictionary | None = None) -> tuple[bytes, int]:
    """Return ``raw`` as one zstd frame, and the id of the dictionary that was used for it: 0 for none."""
    if dictionary is not None and len(raw) <= SMALL:
        body = dictionary.compress(raw, _TINY_LEVEL if len(raw) <= _TINY else level)
        # Once a frame is acked nothing but it is left, and zstd has spoilt such bodies before, on 32-bit ARM.
        with contextlib.suppress(Corrupt):
            if dictionary.decompress(body, len(raw)) == raw:
                return body, dictionary.id
    return zstd.compress(raw, level), 0


def decompress(body: bytes | memoryview, size: int, dictionary: Dictionary | None = None) -> bytes:
    """Return the ``size`` bytes that ``body``, one zstd frame, holds; no more are ever made. Raises Corrupt."""
    if dictionary is not None:
        return dictionary.decompress(body, size)
    return _decompress(zstd.ZstdDecompressor(None, _OPTIONS), body, size)


def _decompress(decompressor: zstd.ZstdDecompressor, body: bytes | memoryview, size: int) -> bytes:
    try:
        raw = decompressor.decompress(body, size + 1)
    except (zstd.ZstdError, MemoryError) as error:
        raise Corrupt(f"frame: zstd: {error}") from error
    if not decompressor.eof or len(raw) != size:
        raise Corrupt(f"frame: the body has not the {size} bytes that its header says")
    if decompressor.unused_data:
        raise Corrupt("frame: something stands behind the body")
    return raw

"""Which partition a key belongs to: the same answer as Kafka's own producers give. Pure."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

_MIX: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
_WORD: Final = 0xFFFFFFFF
_POSITIVE: Final = 0x7FFFFFFF
_FEW: Final = 8
"""Fewer keys of one length are hashed one by one."""


def murmur2(data: bytes) -> int:
    """Return the 32-bit murmur2 hash of ``data`` (org.apache.kafka.common.utils.Utils.murmur2), unsigned."""
    mixed = _SEED ^ len(data)
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * _MIX & _WORD
        word = (word ^ word >> 24) * _MIX & _WORD
        mixed = mixed * _MIX & _WORD ^ word
    if rest := data[whole:]:
        mixed = (mixed ^ int.from_bytes(rest, "little")) * _MIX & _WORD
    mixed = (mixed ^ mixed >> 13) * _MIX & _WORD
    return mixed ^ mixed >> 15


def hashes(keys: Iterable[bytes]) -> dict[bytes, int]:
    """Return for each of ``keys`` what decides its partition: ``hashes(keys)[key] % partitions``.

    Many at once cost a tenth of the same one by one.
    """
    alike: defaultdict[int, list[bytes]] = defaultdict(list)
    for key in set(keys):
        alike[len(key)].append(key)
    found: dict[bytes, int] = {}
    for size, some in alike.items():
        mixed = map(murmur2, some) if len(some) < _FEW else _side_by_side(some, size)
        found.update(zip(some, [one & _POSITIVE for one in mixed], strict=True))
    return found


def _side_by_side(keys: Sequence[bytes], size: int) -> Sequence[int]:
    """Return ``murmur2`` of ``keys``, each of ``size`` bytes.

    One large integer holds a hash every 64 bits: 32 bits times 32 bits do not reach the next one.
    """
    ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * len(keys), "little")
    words = ones * _WORD
    joined = b"".join(keys)
    mixed = ones * (_SEED ^ size)
    for at in range(0, size, 4):
        wide = bytearray(8 * len(keys))
        for byte in range(min(4, size - at)):
            wide[byte::8] = joined[at + byte :: size]
        word = int.from_bytes(wide, "little")
        if at + 4 <= size:
            word = word * _MIX & words
            word = (word ^ word >> 24 & ones * (_WORD >> 24)) * _MIX & words
            mixed = mixed * _MIX & words ^ word
        else:
            mixed = (mixed ^ word) * _MIX & words
    mixed = (mixed ^ mixed >> 13 & ones * (_WORD >> 13)) * _MIX & words
    mixed ^= mixed >> 15 & ones * (_WORD >> 15)
    return struct.unpack(f"<{len(keys)}Q", mixed.to_bytes(8 * len(keys), "little"))


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of ``key`` among ``partitions``, as Kafka's default partitioner."""
    return (murmur2(key) & _POSITIVE) % partitions

"""Which partition a key belongs to: the same answer as Kafka's own producers give. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

_MIX: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
_WORD: Final = 0xFFFFFFFF
_POSITIVE: Final = 0x7FFFFFFF


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


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of ``key`` among ``partitions``, as Kafka's default partitioner."""
    return (murmur2(key) & _POSITIVE) % partitions

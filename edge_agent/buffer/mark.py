"""The high-water mark: how far each lane had come, in a small file beside the database. A lower bound.

A log that is cut off, deleted or changed in one byte makes SQLite take the database for older than it is: rows are
gone and ``integrity_check`` finds nothing wrong. So the agent writes down outside of it what it has committed, after
the commit returned; at the next start a database that is behind its mark has lost what a device saw acknowledged.

::

    file   = slot at 0, slot at SLOT, in turn: a write that the power cuts in two leaves the other one
    slot   = "WBMK", u32 length of the body, u32 CRC-32 of counter and body, u64 counter, body; little endian
    body   = MessagePack [transactions, [[lane, ordinal, epoch, prev_epoch, prev_last, last, delivered], …]]

The slot with the higher counter holds. It is written about once a second at most. It is synced at the start, which
takes away rows that it names, and at the close: in between, what the kernel has not written yet is lost with the power,
and the bound is a little lower. Newest epochs come first; what does not fit into a slot is left out.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.buffer.index import Index

log = logging.getLogger(__name__)

NAME: Final = "mark"

SLOT: Final = 16 << 10
"""Bytes from one slot to the next: some hundred epochs."""

_HEAD: Final = struct.Struct("<4sIIQ")
_MAGIC: Final = b"WBMK"


class Reached(msgspec.Struct, frozen=True, array_like=True):
    """How far one epoch had come in one lane; fields as of :class:`edge_agent.buffer.index.Track`.

    ``delivered``: 1..delivered were acknowledged by the cloud.
    """

    lane: str
    ordinal: int
    epoch: int
    prev_epoch: int
    prev_last: int
    last: int
    delivered: int


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What was committed at least: so many transactions, and the lanes' epochs so far, newest first."""

    transactions: int
    reached: tuple[Reached, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Mark).decode


def mark_of(index: Index) -> Mark:
    """Return the mark of what ``index`` has seen committed."""
    reached = [
        Reached(name, track.ordinal, track.epoch, track.prev_epoch, track.prev_last, track.last, track.delivered)
        for name, lane in index.lanes.items()
        for track in lane.tracks
    ]
    reached.sort(key=lambda one: -one.ordinal)
    return Mark(index.transactions, tuple(reached))


def pack(mark: Mark, counter: int) -> bytes:
    """Return the slot that holds ``mark``."""
    reached: Sequence[Reached] = mark.reached
    while len(body := _encode(Mark(mark.transactions, tuple(reached)))) > SLOT - _HEAD.size:
        reached = reached[: len(reached) * 3 // 4]
    return _HEAD.pack(_MAGIC, len(body), _crc(counter, body), counter) + body


def unpack(data: bytes) -> tuple[Mark | None, int]:
    """Return the newest mark of a file's content and its counter; None where there is no whole one."""
    found: tuple[Mark | None, int] = None, 0
    for at in (0, SLOT):
        try:
            magic, length, crc, counter = _HEAD.unpack_from(data, at)
            body = data[at + _HEAD.size : at + _HEAD.size + length]
            if magic == _MAGIC and len(body) == length and _crc(counter, body) == crc and counter > found[1]:
                found = _decode(body), counter
        except (struct.error, msgspec.MsgspecError):
            continue
    return found


def _crc(counter: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(counter.to_bytes(8, "little")))


@dataclass(slots=True)
class MarkFile:
    """The file in the data directory. ``last``: the mark that was found at the start, None where there is none."""

    path: Path
    last: Mark | None
    _counter: int

    @classmethod
    def read(cls, directory: Path) -> MarkFile:
        """Read the file of a data directory; one that cannot be read is as good as none."""
        path = directory / NAME
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        return cls(path, *unpack(data))

    def write(self, mark: Mark, *, sync: bool = False) -> None:
        """Write ``mark`` into the older slot. Where that fails the bound stays as it was, and the log says so."""
        self._counter += 1
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, 2 * SLOT)  # a disk that is full later must not stop it
                os.pwrite(descriptor, pack(mark, self._counter), SLOT * (self._counter % 2))
                if sync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("buffer: %s cannot be written: %s", self.path, error)

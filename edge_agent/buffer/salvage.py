"""Reading blocks out of a file that SQLite cannot read, or reads only in part: page by page, by their checksums.

SQLite reaches a row through a tree of pages; one damaged page takes away all that is behind it, and one changed byte
in the log all that was written after it. The rows themselves are still there. So every page, of the database and of
the log, is looked at for itself: where it is a leaf of a table, each of its cells that has the shape of a row of
``blocks`` is put together with its overflow pages, and counts if the block's checksum (:mod:`edge_agent.buffer.blocks`)
proves it. Rows of ``epochs`` are found the same way; a block proves them, because its checksum is about its epoch.

Pages that are free by now may hold blocks that were settled long ago. They are found, too: sent again they are copies.

The format is SQLite's own (https://www.sqlite.org/fileformat2.html: 1.5 cells, 1.6 records, 2.1 and 4.1 for the log).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from edge_agent.buffer.blocks import checksum
from edge_agent.buffer.connection import APPLICATION_ID
from edge_agent.buffer.directory import log_of

MAX_ROW: Final = 64 << 20
"""Bytes of a row: no block comes near it."""

_MAGIC: Final = b"SQLite format 3\0"
_LEAF: Final = 0x0D
_LOG_HEAD: Final = 32
_FRAME_HEAD: Final = struct.Struct(">IIII")
_DEFAULT_PAGE: Final = 4096
_INTEGERS: Final = (0, 1, 2, 3, 4, 6, 8)
"""Bytes of an integer by its serial type."""

_Value = int | bytes | None


class Row(NamedTuple):
    """A row of ``blocks`` without its id; ``add_block`` takes it."""

    lane: str
    ordinal: int
    first: int
    messages: int
    size: int
    wall_ms: int
    crc: int
    head: bytes
    body: bytes


@dataclass(slots=True)
class Source:
    """The files: the database and what its log holds of it. ``log_only``: only pages of the log are looked at."""

    path: Path
    log_only: bool = False
    page: int = _DEFAULT_PAGE
    _database: int = -1
    _log: int = -1
    _frames: list[tuple[int, int]] = field(default_factory=list)
    _newest: dict[int, int] = field(default_factory=dict)

    def rows(self, epochs: dict[int, int]) -> Iterator[Row]:
        """Yield each block that its checksum proves, once where the log is small, in no order.

        ``epochs``: by ordinal, as far as they are known; what is found of the table ``epochs`` is added. Pages that
        cannot be read are passed over.
        """
        with ExitStack() as stack:
            self._open(stack)
            candidates: dict[int, set[int]] = {ordinal: {epoch} for ordinal, epoch in epochs.items()}
            for page in self._pages():
                for ordinal, epoch in self._epochs(page):
                    candidates.setdefault(ordinal, set()).add(epoch)
            seen: set[tuple[str, int, int]] = set()
            for page in self._pages():
                for row in self._blocks(page, candidates, epochs, seen):
                    if self._frames:
                        seen.add(row[:3])
                    yield row

    def _open(self, stack: ExitStack) -> None:
        for name, path in (("_database", self.path), ("_log", log_of(self.path))):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            stack.callback(os.close, descriptor)
            setattr(self, name, descriptor)
        head = _read(self._database, 100, 0)
        size = int.from_bytes(head[16:18], "big") if head.startswith(_MAGIC) else 0
        log_head = _read(self._log, _LOG_HEAD, 0)
        if not _is_page_size(size):
            size = int.from_bytes(log_head[8:12], "big")
        self.page = size if _is_page_size(size) else _DEFAULT_PAGE
        self._find_frames(log_head[16:24])

    def _find_frames(self, salts: bytes) -> None:
        """List the log's frames of its present round: those with the salts of its head, or else of its first frame."""
        size = os.fstat(self._log).st_size if self._log >= 0 else 0
        step = _FRAME_HEAD.size + 8 + self.page
        heads = [_read(self._log, _FRAME_HEAD.size, at) for at in range(_LOG_HEAD, size, step)]
        if heads and not any(head[8:16] == salts for head in heads):
            salts = heads[0][8:16]
        for number, head in enumerate(heads):
            if len(head) == _FRAME_HEAD.size and head[8:16] == salts:
                at = _LOG_HEAD + number * step + _FRAME_HEAD.size + 8
                pgno = int.from_bytes(head[:4], "big")
                self._frames.append((pgno, at))
                self._newest[pgno] = at

    def _pages(self) -> Iterator[bytes]:
        """Yield every page, those of the log first and of these the newest first."""
        for _, at in reversed(self._frames):
            yield _read(self._log, self.page, at)
        if self._database >= 0 and not self.log_only:
            pages = os.fstat(self._database).st_size // self.page
            for number in range(pages):
                yield _read(self._database, self.page, number * self.page)

    def _page(self, pgno: int) -> bytes:
        at = self._newest.get(pgno)
        return (
            _read(self._database, self.page, (pgno - 1) * self.page) if at is None else _read(self._log, self.page, at)
        )

    def _cells(self, page: bytes) -> Iterator[tuple[int, int, int]]:
        """Yield rowid, bytes of payload and where it begins, of each cell of a leaf of a table."""
        start = 100 if page.startswith(_MAGIC) else 0
        if len(page) < self.page or page[start] != _LEAF:
            return
        for number in range(min(int.from_bytes(page[start + 3 : start + 5], "big"), self.page // 4)):
            pointer = start + 8 + 2 * number
            at = int.from_bytes(page[pointer : pointer + 2], "big")
            try:
                size, at = _varint(page, at)
                rowid, at = _varint(page, at)
            except IndexError:
                continue
            yield rowid, size, at

    def _epochs(self, page: bytes) -> Iterator[tuple[int, int]]:
        """Yield ordinal and epoch of each row that may be one of ``epochs``."""
        for rowid, size, at in self._cells(page):
            values = _record(page[at : at + size])
            if values is not None and len(values) == 3 and values[0] is None and isinstance(values[2], bytes):  # noqa: PLR2004
                epoch = values[1]
                if isinstance(epoch, int) and epoch > 0:
                    yield rowid, epoch

    def _blocks(
        self, page: bytes, candidates: dict[int, set[int]], proven: dict[int, int], seen: set[tuple[str, int, int]]
    ) -> Iterator[Row]:
        for _, size, at in self._cells(page):
            if size > MAX_ROW:
                continue
            local = self._local(size)
            values = _record(page[at : at + local], whole=size)
            row = None if values is None else _row(values)
            if row is None or row[:3] in seen:
                continue
            if size > local:
                data = self._whole(page, at, size, local)
                values = None if data is None else _record(data)
                row = None if values is None else _row(values)
            if row is None:
                continue
            lane, ordinal, first, count, _, _, crc, head, body = row
            for epoch in candidates.get(ordinal, ()):
                if checksum(lane, epoch, first, count, head, body) == crc:
                    proven[ordinal] = epoch
                    yield row
                    break

    def _local(self, size: int) -> int:
        """Return how many bytes of a payload are in its leaf."""
        usable = self.page
        if size <= usable - 35:
            return size
        least = (usable - 12) * 32 // 255 - 23
        local = least + (size - least) % (usable - 4)
        return local if local <= usable - 35 else least

    def _whole(self, page: bytes, at: int, size: int, local: int) -> bytes | None:
        """Return a payload with its overflow pages; None where one is missing."""
        parts = [page[at : at + local]]
        missing = size - local
        pgno = int.from_bytes(page[at + local : at + local + 4], "big")
        while missing > 0:
            overflow = self._page(pgno) if pgno else b""
            if len(overflow) < self.page:
                return None
            parts.append(overflow[4 : 4 + missing])
            missing -= len(parts[-1])
            pgno = int.from_bytes(overflow[:4], "big")
        return b"".join(parts)


def _row(values: list[_Value]) -> Row | None:
    """Return the block that a record's values are; None where they are none."""
    if len(values) != 1 + len(Row._fields) or values[0] is not None:
        return None
    lane, *numbers, head, body = values[1:]
    if not isinstance(lane, bytes) or not isinstance(head, bytes) or not isinstance(body, bytes):
        return None
    ordinal, first, count, size, wall_ms, crc = numbers
    if not (isinstance(ordinal, int) and isinstance(first, int) and isinstance(count, int) and isinstance(crc, int)):
        return None
    if not (isinstance(size, int) and isinstance(wall_ms, int)) or first < 1 or count < 1:
        return None
    return Row(lane.decode("utf-8", "replace"), ordinal, first, count, size, wall_ms, crc, head, body)


def _record(data: bytes, whole: int = 0) -> list[_Value] | None:
    """Return the values of a record; None where it is none. ``whole``: its size, where ``data`` is only its begin."""
    values: list[_Value] = []
    try:
        end, at = _varint(data, 0)
        body = end
        if not 0 < end <= max(len(data), whole):
            return None
        while at < end:
            kind, at = _varint(data, at)
            size = _INTEGERS[kind] if kind < len(_INTEGERS) else (kind - 12) // 2
            if kind < len(_INTEGERS):
                values.append(int.from_bytes(data[body : body + size], "big", signed=True) if kind else None)
            elif kind in (8, 9):
                size = 0
                values.append(kind - 8)
            elif kind >= 12:  # noqa: PLR2004 - texts and blobs
                values.append(data[body : body + size])
            else:
                return None
            body += size
    except IndexError:
        return None
    return values if body <= max(len(data), whole) else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of 1 to 9 bytes; return it and where it ends. Raises IndexError."""
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:  # noqa: PLR2004 - the last byte
            return value, at
    return value << 8 | data[at], at + 1


def _read(descriptor: int, size: int, at: int) -> bytes:
    """Read what is there; nothing where the disk refuses."""
    try:
        return os.pread(descriptor, size, at) if descriptor >= 0 else b""
    except OSError:
        return b""


def _is_page_size(size: int) -> bool:
    return 512 <= size <= 1 << 15 and size & (size - 1) == 0  # noqa: PLR2004 - what SQLite allows, but for 64 KiB


def identity(path: Path) -> tuple[int, int] | None:
    """Return application id and schema version as a file's head has them, readable or not; None: it has no such head.

    A file whose head is damaged is known by the text of its first table.
    """
    try:
        with path.open("rb") as file:
            page = file.read(_DEFAULT_PAGE)
    except OSError:
        return None
    if page.startswith(_MAGIC):
        return int.from_bytes(page[68:72], "big"), int.from_bytes(page[60:64], "big")
    return (APPLICATION_ID, 0) if b"CREATE TABLE epochs" in page else None


def rows(path: Path, epochs: dict[int, int], *, log_only: bool = False) -> Iterable[Row]:
    """Yield the blocks of a database and its log that their checksums prove. See :meth:`Source.rows`."""
    return Source(path, log_only).rows(epochs)

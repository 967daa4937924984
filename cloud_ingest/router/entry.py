"""What the ledger keeps of one gateway, epoch and lane, and how it is stored. Pure.

Key of the record: ``{gateway}/{epoch}/{lane}``, UTF-8. Value: a MessagePack array, version 1::

    [1, prev_epoch, prev_last, end, floor, flags, last_offset, alarms, covered,
     dropped, dropped_bytes, reasons, dead, dead_count]

``covered``, ``dropped``, ``dead``: intervals as ``[gap, length-1, gap, length-1, …]``, gaps from the end of the one
before.
``flags``: 1 known, 2 begins. Fields that a later program adds stand at the end and are ignored here.

Besides, each partition has one entry ``#{partition}`` for what has no seq: :class:`Offsets`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from cloud_ingest.router.intervals import Intervals
from waybill.errors import Corrupt, UnknownVersion

VERSION: Final = 1

MAX_INTERVALS: Final = 4096
"""Intervals of one entry at most (R4)."""

KEPT_DECLARED: Final = 512
"""Of declared losses the newest so many intervals are kept one by one, of older ones the count."""

MAX_REASONS: Final = 16

_KNOWN: Final = 1
_BEGINS: Final = 2


class Key(NamedTuple):
    """Whose messages an entry is about."""

    gateway: str
    epoch: int
    lane: str

    def at(self, epoch: int) -> Key:
        """Return the key of another epoch of this lane."""
        return Key(self.gateway, epoch, self.lane)

    def encode(self) -> bytes:
        """Return the key of the record in the ledger topic."""
        return f"{self.gateway}/{self.epoch}/{self.lane}".encode()


def decode_key(data: bytes) -> Key:
    """Read a record's key. Raises Corrupt."""
    try:
        gateway, epoch, lane = data.decode().split("/", 2)
        return Key(gateway, int(epoch), lane)
    except ValueError as error:
        msg = f"ledger: key {data!r} is not gateway/epoch/lane"
        raise Corrupt(msg) from error


def is_partition_key(data: bytes) -> bool:
    """Tell whether this is the key of a partition's own entry."""
    return data.startswith(b"#")


class Alarm(enum.IntFlag):
    """What is wrong with a lane."""

    FORK = 1  # two epochs follow this one (E3)
    PAST_END = 2  # a seq past the last that its successor named (E3)
    CONTRADICTION = 4  # one epoch, two predecessors: cannot be
    TOO_MANY = 8  # over MAX_INTERVALS (R4)


NOTE_SHIFT: Final = 8
"""An alarm that a ``relaxed`` lane only notes is kept so many bits higher."""


class _Stored(msgspec.Struct, array_like=True):
    version: int
    prev_epoch: int
    prev_last: int
    end: int
    floor: int
    flags: int
    last_offset: int
    alarms: int
    covered: list[int]
    dropped: list[int]
    dropped_bytes: int
    reasons: dict[str, int]
    dead: list[int]
    dead_count: int


class _Version(msgspec.Struct, array_like=True):
    version: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Stored).decode
_decode_version = msgspec.msgpack.Decoder(_Version).decode


def _check_version(data: bytes) -> None:
    try:
        version = _decode_version(data).version
    except msgspec.MsgspecError as error:
        msg = f"ledger entry: {error}"
        raise Corrupt(msg) from error
    if version != VERSION:
        what = "ledger entry"
        raise UnknownVersion(what, version, (VERSION,))


@dataclass(slots=True)
class Entry:
    """One epoch's lane.

    ``known``: a frame or receipt of this epoch itself was seen, so ``prev_epoch`` and ``prev_last`` (E2) are set;
    without it the epoch is known from its successor alone. ``end``: its last seq as a successor names it, 0 while
    unknown.
    ``begins``: all before this epoch is settled at the gateway, as far as this branch goes (E4).
    ``floor``: no gap at or below it is waited for (R7). ``last_offset``: of its newest frame in the journal.
    ``alarms``: bits of :class:`Alarm`, and of notes. ``covered``: all that has an entry: delivered, dropped, dead.
    ``dropped``, ``dead``: of these the declared ones, the newest ``KEPT_DECLARED`` intervals of each; ``reasons``
    (messages a reason) and ``dead_count`` count them all.
    """

    prev_epoch: int = 0
    prev_last: int = 0
    end: int = 0
    floor: int = 0
    known: bool = False
    begins: bool = False
    last_offset: int = -1
    alarms: int = 0
    covered: Intervals = field(default_factory=Intervals)
    dropped: Intervals = field(default_factory=Intervals)
    dropped_bytes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    dead: Intervals = field(default_factory=Intervals)
    dead_count: int = 0

    @property
    def intervals(self) -> int:
        """How many intervals the entry holds."""
        return len(self.covered) + len(self.dropped) + len(self.dead)

    @property
    def reach(self) -> int:
        """The last seq up to which nothing is waited for."""
        return self.covered.reach(self.floor)

    @property
    def dropped_count(self) -> int:
        """Messages that receipts declare lost."""
        return sum(self.reasons.values())

    @property
    def delivered_count(self) -> int:
        """Messages that became records."""
        return self.covered.count - self.dropped_count - self.dead_count

    def add_dead(self, first: int, last: int) -> None:
        """Note dead letters."""
        self.dead.add(first, last)
        self.dead.drop_oldest(KEPT_DECLARED)
        self.dead_count += last - first + 1

    def add_dropped(self, first: int, last: int, reason: str) -> None:
        """Note a declared loss. Reasons beyond ``MAX_REASONS`` are counted as ``other``."""
        self.dropped.add(first, last)
        self.dropped.drop_oldest(KEPT_DECLARED)
        if reason not in self.reasons and len(self.reasons) >= MAX_REASONS:
            reason = "other"
        self.reasons[reason] = self.reasons.get(reason, 0) + last - first + 1

    def copy(self) -> Entry:
        """Return an independent copy."""
        return Entry(
            self.prev_epoch,
            self.prev_last,
            self.end,
            self.floor,
            self.known,
            self.begins,
            self.last_offset,
            self.alarms,
            self.covered.copy(),
            self.dropped.copy(),
            self.dropped_bytes,
            self.reasons.copy(),
            self.dead.copy(),
            self.dead_count,
        )

    def encode(self) -> bytes:
        """Return the record's value."""
        return _encode(
            _Stored(
                VERSION,
                self.prev_epoch,
                self.prev_last,
                self.end,
                self.floor,
                _KNOWN * self.known | _BEGINS * self.begins,
                self.last_offset,
                self.alarms,
                self.covered.pack(),
                self.dropped.pack(),
                self.dropped_bytes,
                self.reasons,
                self.dead.pack(),
                self.dead_count,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Entry:
        """Read a record's value. Raises Corrupt, UnknownVersion."""
        _check_version(data)
        try:
            stored = _decode(data)
            return cls(
                stored.prev_epoch,
                stored.prev_last,
                stored.end,
                stored.floor,
                bool(stored.flags & _KNOWN),
                bool(stored.flags & _BEGINS),
                stored.last_offset,
                stored.alarms,
                Intervals.unpack(stored.covered),
                Intervals.unpack(stored.dropped),
                stored.dropped_bytes,
                stored.reasons,
                Intervals.unpack(stored.dead),
                stored.dead_count,
            )
        except (msgspec.MsgspecError, ValueError) as error:
            msg = f"ledger entry: {error}"
            raise Corrupt(msg) from error


class _StoredOffsets(msgspec.Struct, array_like=True):
    version: int
    lost: list[int]
    unreadable: list[int]


_decode_offsets = msgspec.msgpack.Decoder(_StoredOffsets).decode


@dataclass(slots=True)
class Offsets:
    """What a partition keeps of frames that have no seq, as journal offsets plus one (intervals count from 1).

    ``lost``: deleted by retention before they were routed (R8). ``unreadable``: dead letters already, at or above the
    committed offset, so that reading them again after a restart writes nothing.
    """

    lost: Intervals = field(default_factory=Intervals)
    unreadable: Intervals = field(default_factory=Intervals)

    @staticmethod
    def name(partition: int) -> bytes:
        """Return the record's key."""
        return f"#{partition}".encode()

    def copy(self) -> Offsets:
        """Return an independent copy."""
        return Offsets(self.lost.copy(), self.unreadable.copy())

    def encode(self) -> bytes:
        """Return the record's value."""
        return _encode(_StoredOffsets(VERSION, self.lost.pack(), self.unreadable.pack()))

    @classmethod
    def decode(cls, data: bytes) -> Offsets:
        """Read a record's value. Raises Corrupt, UnknownVersion."""
        _check_version(data)
        try:
            stored = _decode_offsets(data)
            return cls(Intervals.unpack(stored.lost), Intervals.unpack(stored.unreadable))
        except (msgspec.MsgspecError, ValueError) as error:
            msg = f"ledger entry: {error}"
            raise Corrupt(msg) from error

"""The dictionaries of gateways (R10): one record each in a compacted topic, in the frames partition's number. Pure.

A gateway sends a dictionary as a message of its control lane and compresses with it once that is acked. The record is
written in the transaction of the step that read the message, so whoever owns the partition next has it. Of each gateway
the newest ``KEPT`` stay: a gateway makes two a day at most, so these serve all frames of a week, read at any time.
A dictionary serves the gateway alone that sent it.

Key of the record: ``{gateway}/{id}``, UTF-8. Value: a MessagePack array, version 1: ``[1, place, size, content]``.
``place`` counts those of a gateway, oldest first; ``content`` is a zstd frame of ``size`` bytes. Fields that a later
program adds stand at the end and are ignored here. Changes are made on a :class:`DictionariesDraft` and adopted when
the commit has returned (R3).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from waybill.errors import Corrupt, UnknownVersion
from waybill.frames import Dictionary, zstd

VERSION: Final = 1

KEPT: Final = 16
"""Dictionaries of one gateway at most; the oldest go."""

READY: Final = 256
"""Dictionaries of a partition that are ready for use, at about 25 kB each; others are made ready when they are used."""

_LEVEL: Final = 19


class _Stored(msgspec.Struct, array_like=True):
    version: int
    place: int
    size: int
    content: bytes


class _Entry(NamedTuple):
    place: int
    size: int
    content: bytes


_Entries = dict[int, _Entry]
"""Of one gateway: id -> entry, oldest first."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Stored).decode


def _key(gateway: str, number: int) -> bytes:
    return f"{gateway}/{number}".encode()


class Dictionaries:
    """The dictionaries of a partition's gateways, as of the last commit."""

    def __init__(self) -> None:
        """Start with none."""
        self.entries: dict[str, _Entries] = {}
        self.ready: OrderedDict[tuple[str, int], Dictionary] = OrderedDict()

    @classmethod
    def load(cls, stored: Mapping[bytes, bytes]) -> Dictionaries:
        """Read what was stored. Raises Corrupt, UnknownVersion."""
        made = cls()
        found: list[tuple[str, int, _Entry]] = []
        for name, value in stored.items():
            try:
                gateway, key = name.decode().rsplit("/", 1)
                one = _decode(value)
                found.append((gateway, int(key), _Entry(one.place, one.size, one.content)))
            except (ValueError, msgspec.MsgspecError) as error:
                raise Corrupt(f"dictionaries: record {name!r}: {error}") from error
            if one.version != VERSION:
                raise UnknownVersion("dictionary", one.version, (VERSION,))
        for gateway, number, entry in sorted(found, key=lambda each: each[2].place):
            made.entries.setdefault(gateway, {})[number] = entry
        return made

    def adopt(self, draft: DictionariesDraft) -> None:
        """Make ``draft`` the truth."""
        self.entries.update(draft.touched)


class DictionariesDraft:
    """Changes to the dictionaries that nobody sees until they are adopted. ``values``: the topic's, to be written."""

    def __init__(self, known: Dictionaries) -> None:
        """Start with no changes to ``known``."""
        self._known = known
        self.touched: dict[str, _Entries] = {}
        self.values: dict[bytes, bytes | None] = {}

    def _entries(self, gateway: str) -> _Entries:
        return self.touched.get(gateway) or self._known.entries.get(gateway, {})

    def knows(self, gateway: str, number: int) -> bool:
        """Tell whether ``gateway`` has sent a dictionary of this id."""
        return number in self._entries(gateway)

    def get(self, gateway: str, number: int) -> Dictionary | None:
        """Return the dictionary of this id that ``gateway`` has sent, None where it has not. Raises Corrupt."""
        entry = self._entries(gateway).get(number)
        if entry is None:
            return None
        ready = self._known.ready
        found = ready.get((gateway, number))
        if found is None:
            found = ready[gateway, number] = Dictionary(zstd.decompress(entry.content, entry.size))
            if len(ready) > READY:
                ready.popitem(last=False)
        ready.move_to_end((gateway, number))
        return found

    def add(self, gateway: str, content: bytes) -> None:
        """Take in a dictionary; sent again, it is the newest. Raises Corrupt where it is none (:class:`Dictionary`)."""
        number = Dictionary(content).id
        packed, _ = zstd.compress(content, _LEVEL)
        entries = self._entries(gateway)
        newest = next(reversed(entries), None)
        last = entries[newest] if newest is not None else _Entry(0, 0, b"")
        if newest == number and last.content == packed:
            return
        entry = _Entry(last.place + 1, len(content), packed)
        mine = self.touched[gateway] = {each: old for each, old in entries.items() if each != number}
        mine[number] = entry
        self._known.ready.pop((gateway, number), None)  # of the same id, but perhaps not the same bytes
        self.values[_key(gateway, number)] = _encode(_Stored(VERSION, *entry))
        for old in [*mine][:-KEPT]:
            del mine[old]
            self.values[_key(gateway, old)] = None

"""The ledger: for each gateway, epoch and lane, which messages were routed, which are declared lost. Pure.

Kept as one entry a key in a compacted topic, in the partition with the number of the frames partition (R4), written
in the transaction that writes the records. So it is exactly as true as they are.

Rules that live here: B5 (the first entry of a seq wins), E2 (where an epoch ends), E3 (alarms), E4 (when to forget), E5
(receipts), R4 (bounds). Changes are made on a :class:`Draft` and adopted when the commit has returned (R3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cloud_ingest.router.entry import (
    MAX_INTERVALS,
    NOTE_SHIFT,
    Alarm,
    Entry,
    Key,
    Offsets,
    decode_key,
    is_partition_key,
)
from cloud_ingest.router.intervals import Interval
from waybill.frames.header import MAX_EPOCH
from waybill.wire import is_node

Children = tuple[int, ...]


class Notice(NamedTuple):
    """Something a person should know of one lane. ``alarm``: None for a mere note (E3: a ``relaxed`` lane)."""

    key: Key
    alarm: Alarm | None
    text: str


class Span(NamedTuple):
    """What a frame header and a receipt say alike (E5): a range of one epoch's lane, and the epoch before (E2)."""

    key: Key
    prev_epoch: int
    prev_last: int
    first: int
    last: int


class Ledger:
    """The entries of one partition, as of the last commit."""

    def __init__(self, offsets: Offsets | None = None) -> None:
        """Start empty."""
        self.entries: dict[Key, Entry] = {}
        self.children: dict[Key, Children] = {}
        self.offsets = offsets or Offsets()

    @classmethod
    def load(cls, stored: Mapping[bytes, bytes], partition: int) -> Ledger:
        """Read what was stored. Raises Corrupt, UnknownVersion."""
        ledger = cls()
        for name, value in stored.items():
            if is_partition_key(name):
                if name == Offsets.name(partition):
                    ledger.offsets = Offsets.decode(value)
                continue
            key = decode_key(name)
            entry = ledger.entries[key] = Entry.decode(value)
            if entry.prev_epoch:
                ledger.children[key.at(entry.prev_epoch)] = (
                    *ledger.children.get(key.at(entry.prev_epoch), ()),
                    key.epoch,
                )
        return ledger

    def adopt(self, draft: Draft) -> None:
        """Make ``draft`` the truth: its commit has returned."""
        for key, entry in draft.changed.items():
            if entry is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = entry
        self.children.update(draft.children)
        for key in draft.forgotten:
            self.children.pop(key, None)
        if draft.offsets is not None:
            self.offsets = draft.offsets


class Draft:
    """Changes to a ledger that nobody sees until they are adopted."""

    def __init__(self, ledger: Ledger) -> None:
        """Start with no changes to ``ledger``."""
        self._ledger = ledger
        self.changed: dict[Key, Entry | None] = {}
        self.children: dict[Key, Children] = {}
        self.forgotten: list[Key] = []
        self.offsets: Offsets | None = None
        self.notices: list[Notice] = []

    def get(self, key: Key) -> Entry | None:
        """Return the entry as it stands in this draft, to be read only."""
        if key in self.changed:
            return self.changed[key]
        return self._ledger.entries.get(key)

    def edit(self, key: Key) -> Entry:
        """Return the entry of ``key`` to be changed; made where there is none."""
        entry = self.changed.get(key)
        if entry is None:
            found = None if key in self.changed else self._ledger.entries.get(key)
            if found is None:
                entry = Entry(end=max((e.prev_last for e in self._successors(key)), default=0))
            else:
                entry = found.copy()
            self.changed[key] = entry
        return entry

    def edit_offsets(self) -> Offsets:
        """Return the partition's own entry to be changed."""
        if self.offsets is None:
            self.offsets = self._ledger.offsets.copy()
        return self.offsets

    def read_offsets(self) -> Offsets:
        """Return the partition's own entry, to be read only."""
        return self.offsets or self._ledger.offsets

    def values(self, partition: int) -> dict[bytes, bytes | None]:
        """Return the changes as keys and values of the ledger topic (None: forget)."""
        values = {key.encode(): entry.encode() if entry else None for key, entry in self.changed.items()}
        if self.offsets is not None:
            values[Offsets.name(partition)] = self.offsets.encode()
        return values

    # --- what frames and receipts say of epochs ---

    def admit(
        self, span: Span, offset: int, *, relaxed: bool = False, oldest: int = 0, elsewhere: bool = False
    ) -> None:
        """Learn what a frame's header or a receipt says of its epoch and of the one before (E2, E3, E5).

        ``offset``: of the frame in the journal. ``relaxed``: the lane may lose its end in a power cut, so E3 is only
        noted.
        ``oldest``: the lane's oldest unsettled epoch (E4), 0 in a receipt. Saying the same again changes nothing.
        ``elsewhere``: what is settled may be in the journal and still come to this partition: it is waited for (R7).
        """
        entry = self.edit(span.key)
        entry.last_offset = max(entry.last_offset, offset)
        if not entry.known:
            entry.known = True
            entry.prev_epoch, entry.prev_last = span.prev_epoch, span.prev_last
            if span.prev_epoch:
                self._succeed(span, relaxed=relaxed)
        elif (entry.prev_epoch, entry.prev_last) != (span.prev_epoch, span.prev_last):
            self._notice(span.key, Alarm.CONTRADICTION, "names another previous epoch than before", relaxed=relaxed)
        if entry.end and span.last > entry.end:
            text = f"seq {span.last} is past the epoch's declared last, {entry.end}"
            self._notice(span.key, Alarm.PAST_END, text, relaxed=relaxed)
        if oldest:
            self._settle(span.key.at(oldest), elsewhere=elsewhere)
        if entry.prev_epoch and not entry.begins:
            before = span.key.at(entry.prev_epoch)
            if self.get(before) is None:
                self.edit(before)  # its messages are still to come: known to the audit from now on

    def _succeed(self, span: Span, *, relaxed: bool) -> None:
        """Note that ``span``'s epoch follows ``prev_epoch``, whose last seq was ``prev_last``."""
        before = span.key.at(span.prev_epoch)
        others = self._children(before)
        self.children[before] = (*others, span.key.epoch)
        entry = self.get(before)
        if entry is None:
            return
        entry = self.edit(before)
        entry.end = max(entry.end, span.prev_last)
        if others:
            text = f"epochs {others[0]} and {span.key.epoch} both follow it: a cloned card or a restored backup"
            self._notice(before, Alarm.FORK, text, relaxed=relaxed)
        if entry.covered.last > span.prev_last:
            text = f"seq {entry.covered.last} is past the epoch's declared last, {span.prev_last}"
            self._notice(before, Alarm.PAST_END, text, relaxed=relaxed)

    def _settle(self, key: Key, *, elsewhere: bool) -> None:
        """Note that all before ``key`` is settled at the gateway: in the journal before this frame, or declared (E4).

        What is settled never holds a lane up, and may be forgotten once the journal is past it. Where it may be
        ``elsewhere`` in the journal, only what has an entry counts.
        """
        while True:
            entry = self.get(key)
            if entry is None or not entry.known or entry.begins:
                return
            before = key.at(entry.prev_epoch)
            found = self.get(before)
            if elsewhere and entry.prev_epoch and (found is None or found.reach < entry.prev_last):
                return
            self.edit(key).begins = True
            if not entry.prev_epoch or found is None:
                return
            earlier = self.edit(before)
            earlier.floor = max(earlier.floor, entry.prev_last)
            key = before

    def _children(self, key: Key) -> Children:
        return self.children.get(key) or self._ledger.children.get(key, ())

    def _successors(self, key: Key) -> Iterator[Entry]:
        for epoch in self._children(key):
            if entry := self.get(key.at(epoch)):
                yield entry

    def _notice(self, key: Key, alarm: Alarm, text: str, *, relaxed: bool = False) -> None:
        entry = self.get(key)
        bit = alarm << NOTE_SHIFT if relaxed else alarm
        if entry is None or not entry.alarms & bit:
            self.edit(key).alarms |= bit
            self.notices.append(Notice(key, None if relaxed else alarm, text))

    # --- what becomes of messages ---

    def news(self, key: Key, first: int, last: int) -> list[Interval]:
        """Return what of ``first..last`` has no entry yet, in order (R4: copies are told by seq)."""
        entry = self.get(key)
        return entry.covered.missing(first, last) if entry else [(first, last)]

    def has_room(self, key: Key, first: int, last: int) -> bool:
        """Tell whether ``first..last`` fits into the entry's bound (R4). If not, the lane has its alarm."""
        entry = self.get(key)
        if entry is None or entry.intervals < MAX_INTERVALS or entry.covered.touches(first, last):
            return True
        self._notice(key, Alarm.TOO_MANY, f"more than {MAX_INTERVALS} intervals: frames that add one are dead-lettered")
        return False

    def deliver(self, key: Key, first: int, last: int) -> None:
        """Note that ``first..last``, new ones all, became records."""
        self.edit(key).covered.add(first, last)

    def bury(self, key: Key, first: int, last: int) -> None:
        """Note that ``first..last``, new ones all, became dead letters."""
        entry = self.edit(key)
        entry.covered.add(first, last)
        entry.add_dead(first, last)

    def drop(self, key: Key, first: int, last: int, size: int, reason: str) -> None:
        """Note a receipt: what of ``first..last`` has no entry is declared lost (B5, E5). ``size``: bytes of all."""
        entry = self.edit(key)
        declared = entry.covered.missing(first, last)
        entry.covered.add(first, last)
        for gap in declared:
            entry.add_dropped(*gap, reason)
        if declared:
            entry.dropped_bytes = min(entry.dropped_bytes + size, MAX_EPOCH)  # what the entry can hold

    # --- order (R7) ---

    def waits(self, key: Key, first: int) -> bool:
        """Tell whether something before ``first`` may still come: in this epoch, or in the one before it."""
        entry = self.get(key)
        if entry is None:
            return first > 1
        if first > entry.reach + 1:
            return True
        if entry.begins or not entry.prev_epoch:
            return False
        before = self.get(key.at(entry.prev_epoch))
        return before is not None and before.reach < entry.prev_last

    def give_up(self, key: Key, first: int) -> int:
        """Stop waiting for all before ``first``, for ever (R7); return how many messages had no entry."""
        entry = self.edit(key)
        missing = sum(b - a + 1 for a, b in entry.covered.missing(entry.floor + 1, first - 1))
        entry.floor = max(entry.floor, first - 1)
        before = key.at(entry.prev_epoch)
        if entry.prev_epoch and not entry.begins and self.get(before) is not None:
            earlier = self.edit(before)
            missing += sum(b - a + 1 for a, b in earlier.covered.missing(earlier.floor + 1, entry.prev_last))
            earlier.floor = max(earlier.floor, entry.prev_last)
        return missing

    def forget(self, log_start: int) -> None:
        """Forget epochs older than the oldest unsettled one on each branch and wholly before ``log_start`` (E4).

        An epoch with an undeclared gap is kept: the audit must go on to say so. A node has one epoch and no gaps.
        """
        for key, entry in self._ledger.entries.items():
            if entry.last_offset >= log_start or key in self.changed:
                continue
            if is_node(key.gateway):  # what comes after so long is nobody's copy, and nobody waits for its holes
                self.changed[key] = None
                self.forgotten.append(key)
                continue
            successors = self._children(key)
            settled = all(e.begins for e in self._successors(key))
            if successors and settled and not entry.covered.missing(1, max(entry.end, entry.covered.last)):
                self.changed[key] = None
                self.forgotten.append(key)

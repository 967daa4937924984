"""The verdict: what the vehicles had acknowledged, compared with what was read back. Pure.

Sequence numbers are the vehicles' own, counted from 1 for each vehicle and stream and carried in the payload, so
nothing that carries the messages can make up for one that is missing, doubled or out of place.

Of each message three bytes are kept, whatever is missing and in whatever order they come: 100 million take 300 MB.

What makes it FAIL
    lost          acknowledged to the vehicle, not in the topic, and not declared
    duplicated    a number of a vehicle's stream is in the topic a second time
    out_of_order  a number lower than one of the same stream before it in the topic, or, by ``ce_id``, than one of the
                  same lane of its gateway before it in the partition
    misplaced     the key is not the vehicle, or the stream is in two partitions (where nothing orders it)
    unknown       a record of a message that no vehicle has published so (by a digest of 2 bytes), or of no vehicle
    reused        one ``ce_id`` on two different messages, or none
    disagreeing   what the cloud's own ledger says was routed, declared or is missing is not what is there

A message that was never acknowledged may be there or not: it is counted in ``unacked`` and in ``delivered``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from fleet_simulator.accounts import Account, Disagreement, LaneAudit, Name, Slot, compare, settle
from fleet_simulator.numbers import Bits, TooMany
from waybill.errors import Refused

EXAMPLES: Final = 20
"""How many findings are told in words; all are counted."""

MOST: Final = 1 << 31
"""Messages that a verdict takes: three bytes of memory each."""

_GAPS: Final = 100_000
"""Gaps whose neighbours are remembered; beyond that the declared losses are matched by their counts alone."""

_PUBLISHED: Final = 1
_ACKED: Final = 3
_PRESENT: Final = 4
_OR: Final = {bits: bytes(state | bits for state in range(256)) for bits in (_PUBLISHED, _ACKED)}
_UNREAD: Final = bytes(state & ~_PRESENT for state in range(256))
_LOST: Final = re.compile(rb"\x03+")


class StreamTally(msgspec.Struct, frozen=True):
    """What became of one vehicle's stream; counts of messages.

    ``delivered``: in the topic, each counted once; ``unacked`` of these were never acknowledged. ``declared``: missing,
    and declared lost by their gateway.
    """

    vehicle: str
    stream: str
    gateway: str
    published: int
    acked: int
    delivered: int
    unacked: int
    declared: int
    lost: int
    duplicated: int
    out_of_order: int
    misplaced: int

    @property
    def wrong(self) -> int:
        """How much of it is wrong."""
        return self.lost + self.duplicated + self.out_of_order + self.misplaced


class VerdictCounts(msgspec.Struct, frozen=True):
    """The verdict's numbers, all of messages; :class:`fleet_simulator.report.model.Counts` says what each means."""

    published: int
    acked: int
    delivered: int
    unacked: int
    declared: int
    lost: int
    duplicated: int
    out_of_order: int
    misplaced: int
    unknown: int
    reused: int
    disagreeing: int


class Verdict(VerdictCounts, frozen=True):
    """The outcome. ``findings``: the first ones of each kind, in words."""

    findings: dict[str, tuple[str, ...]] = {}
    streams: tuple[StreamTally, ...] = ()
    accounts: tuple[Account, ...] = ()

    @property
    def examples(self) -> tuple[str, ...]:
        """The first findings of all kinds."""
        return tuple(f"{kind}: {text}" for kind, texts in self.findings.items() for text in texts)[:EXAMPLES]

    @property
    def passed(self) -> bool:
        """Whether everything acknowledged is there once and in order; of nothing at all nothing is proven."""
        wrong = self.lost + self.duplicated + self.out_of_order + self.misplaced
        return wrong + self.unknown + self.reused + self.disagreeing == 0 and self.acked > 0

    def line(self, command: str | None = None) -> str:
        """Return the one line ``verdict: PASS delivered=N lost=0 duplicated=0 out_of_order=0 command=ok``.

        ``command``: ``ok`` or what went wrong with it; None leaves it out.
        """
        word = "PASS" if self.passed and command in (None, "ok") else "FAIL"
        return f"verdict: {word} {self.counts()}" + ("" if command is None else f" command={command}")

    def counts(self) -> str:
        """Return the counts of that line; what was declared lost stands in it where there is any."""
        declared = f" declared={self.declared}" if self.declared else ""
        return (
            f"delivered={self.delivered} lost={self.lost} duplicated={self.duplicated} "
            f"out_of_order={self.out_of_order}{declared}"
        )


class _Ids:
    """The numbers of one gateway's lane in one epoch that arrived, and the highest in each partition."""

    __slots__ = ("bits", "highest", "name")

    def __init__(self, name: Name) -> None:
        self.name = name
        self.bits = Bits()
        self.highest: dict[tuple[str, int], int] = {}


class _Stream:
    """One vehicle's stream. ``state``: a byte a number; ``gaps``: what was skipped, and between which ids.

    ``content``: two bytes a number, zero where nobody noted it.
    """

    __slots__ = (
        "at",
        "content",
        "duplicated",
        "gaps",
        "highest",
        "misplaced",
        "name",
        "number",
        "out_of_order",
        "place",
        "state",
        "vehicle",
    )

    def __init__(self, vehicle: str, name: str) -> None:
        self.vehicle = vehicle
        self.name = name
        self.state = bytearray(1)
        self.content = bytearray()
        self.begin()

    def begin(self) -> None:
        """Start with no record read."""
        self.state = self.state.translate(_UNREAD)
        self.place: tuple[str, int] | None = None
        self.highest = self.duplicated = self.out_of_order = self.misplaced = 0
        self.at: _Ids | None = None  # lane and number of the record with the highest number
        self.number = 0
        self.gaps: list[tuple[int, int, _Ids | None, int, _Ids | None, int]] = []

    def mark(self, first: int, last: int, bits: int) -> None:
        """Set ``bits`` of the numbers ``first`` to ``last``."""
        state = self.state
        if last >= len(state):
            state.extend(bytes(last + 1 - len(state)))
        if first == last:
            state[first] |= bits
        else:
            state[first : last + 1] = state[first : last + 1].translate(_OR[bits])


class Comparison:
    """Takes what was published and acknowledged, then what is read back, and judges at the end.

    Records of one partition must be given in the order of their offsets.
    """

    def __init__(self, *, waybill: bool = True, unordered: Collection[str] = ()) -> None:
        """Start with nothing seen.

        ``waybill``: records have the vehicle as their key and a ``ce_id``. ``unordered``: streams that nothing keeps in
        order (of a lane that is fresh-first).
        """
        self._waybill = waybill
        self._unordered = frozenset(unordered)
        self._streams: dict[tuple[str, str], _Stream] = {}
        self._gateways: dict[str, str] = {}
        self._ids: dict[str, _Ids] = {}
        self._messages = self._unknown = self._reused = self._gaps = 0
        self._findings: dict[str, list[str]] = {}

    # -- what is known of the vehicles --

    def published(self, vehicle: str, stream: str, first: int, last: int) -> None:
        """Note that ``vehicle`` gave its messages ``first`` to ``last`` of ``stream`` to its client. Raises Refused."""
        self._mark(vehicle, stream, first, last, _PUBLISHED)

    def acked(self, vehicle: str, stream: str, first: int, last: int) -> None:
        """Note that ``vehicle`` saw these messages acknowledged (so they were published, too). Raises Refused."""
        self._mark(vehicle, stream, first, last, _ACKED)

    def content(self, vehicle: str, stream: str, first: int, digests: bytes) -> None:
        """Note what was in messages that were published: their digests, from ``first`` on."""
        one = self._streams.get((vehicle, stream))
        if one is None or first < 1:
            return
        digests = digests[: max(0, 2 * (len(one.state) - first))]  # of those that were published, and no others
        more = 2 * first + len(digests) - len(one.content)
        if more > 0:
            one.content.extend(bytes(more))
        one.content[2 * first : 2 * first + len(digests)] = digests

    def behind(self, vehicle: str, gateway: str) -> None:
        """Note which gateway ``vehicle`` speaks to."""
        self._gateways[vehicle] = gateway

    def _mark(self, vehicle: str, stream: str, first: int, last: int, bits: int) -> None:
        one = self._streams.get((vehicle, stream))
        if one is None:
            one = self._streams[vehicle, stream] = _Stream(vehicle, stream)
        more = last + 1 - len(one.state)
        if more > 0:
            self._messages += more
            if self._messages > MOST:
                raise Refused(f"more than {MOST} messages: judge shorter runs, this one takes too much memory")
        one.mark(first, last, bits)

    # -- what is read back --

    def read(
        self,
        vehicle: str,
        stream: str,
        seq: int,
        *,
        key: str | None,
        place: tuple[str, int],
        ce_id: str,
        content: bytes = b"",
    ) -> None:
        """Note a record. ``place``: topic and partition. ``ce_id``: ``gateway/epoch/lane/seq``, or empty.

        ``content``: the digest of its value, which is compared where the vehicle's is known.
        """
        ids, number, new_id = self._numbered(ce_id) if self._waybill else (None, 0, True)
        one = self._streams.get((vehicle, stream))
        if one is None or not 0 < seq < len(one.state) or not one.state[seq]:
            self._unknown += 1
            self._tell("unknown", vehicle, stream, seq, ce_id, place, ": nobody published it")
            return
        noted = one.content[2 * seq : 2 * seq + 2]
        if content and noted not in (b"", b"\0\0", content):
            self._unknown += 1
            self._tell("unknown", vehicle, stream, seq, ce_id, place, ": its content is not what was published")
            return
        if one.place is None:
            one.place = place
        if place != one.place or (self._waybill and key != vehicle):
            one.misplaced += 1
            first = f"{one.place[0]} partition {one.place[1]}"
            self._tell("misplaced", vehicle, stream, seq, ce_id, place, f": key {key!r}, the stream began in {first}")
        if one.state[seq] & _PRESENT:
            one.duplicated += 1
            which = (
                "" if not self._waybill else ", another ce_id than before" if new_id else ", the same ce_id as before"
            )
            self._tell("duplicated", vehicle, stream, seq, ce_id, place, which)
            return
        one.state[seq] |= _PRESENT
        if not new_id:
            self._reused += 1
            self._tell("reused", vehicle, stream, seq, ce_id, place, ": another message has this ce_id")
        if seq > one.highest + 1:
            self._skipped(one, one.highest + 1, seq - 1, ids, number)
        after = self._before(one, seq, ids, number, place)
        if after and stream not in self._unordered:
            one.out_of_order += 1
            self._tell("out_of_order", vehicle, stream, seq, ce_id, place, after)
        if seq > one.highest:
            one.highest, one.at, one.number = seq, ids, number

    @staticmethod
    def _before(one: _Stream, seq: int, ids: _Ids | None, number: int, place: tuple[str, int]) -> str:
        """Return after what a record comes that should stand before it, "" where it is in order."""
        after = f" after seq {one.highest}" if seq < one.highest else ""
        if ids is not None:
            highest = ids.highest.get(place, 0)
            if number > highest:
                ids.highest[place] = number
            elif not after:
                after = f" after number {highest} of its lane"
        return after

    def unreadable(self, where: str) -> None:
        """Note a record from which no vehicle and number could be read."""
        self._unknown += 1
        self._add("unknown", f"unreadable: {where}")

    def _skipped(self, one: _Stream, first: int, last: int, ids: _Ids | None, number: int) -> None:
        if self._gaps < _GAPS and one.name not in self._unordered:
            self._gaps += 1
            one.gaps.append((first, last, one.at, one.number, ids, number))

    def _numbered(self, ce_id: str) -> tuple[_Ids | None, int, bool]:
        """Return the lane of an id, its number, and whether it is there for the first time."""
        lane, _, digits = ce_id.rpartition("/")
        ids = self._ids.get(lane)
        if ids is None or not digits.isdigit():
            parts = lane.split("/")
            if len(parts) != 3 or not parts[1].isdigit() or not digits.isdigit():  # noqa: PLR2004 - gateway/epoch/lane
                self._reused += 1
                self._add("reused", f"ce_id {ce_id!r} is not gateway/epoch/lane/seq")
                return None, 0, True
            ids = self._ids[lane] = _Ids((parts[0], int(parts[1]), parts[2]))
        number = int(digits)
        try:
            return ids, number, ids.bits.add(number)
        except TooMany:
            self._reused += 1
            self._add("reused", f"ce_id {ce_id!r}: nobody counts so")
            return None, 0, True

    # -- the end --

    def again(self) -> None:
        """Forget what was read back, to read it once more."""
        self._ids.clear()
        self._findings.clear()
        self._unknown = self._reused = self._gaps = 0
        for one in self._streams.values():
            one.begin()

    def verdict(self, audits: Sequence[LaneAudit] | None = None, *, whole: bool = True) -> Verdict:
        """Judge what was noted so far.

        ``audits``: what the cloud's own ledger says, None where there is none to ask. ``whole``: False where not all
        that was published may be known.
        """
        slots = [slot for one in self._streams.values() for slot in self._slots(one)]
        disagreements: list[Disagreement] = []
        accounts: list[Account] = []
        if audits is None:
            for slot in slots:
                slot.lost = slot.must
        else:
            accounts = settle(audits, slots)
            disagreements = list(compare(audits, {ids.name: ids.bits for ids in self._ids.values()}))
            disagreements += [
                Disagreement(one.gateway, one.for_nothing, f"{one.for_nothing} more are declared lost than are missing")
                for one in accounts
                if one.for_nothing and whole
            ]
        missing: dict[tuple[str, str], list[Slot]] = {}
        for slot in slots:
            missing.setdefault((slot.vehicle, slot.stream), []).append(slot)
        streams = tuple(self._tally(one, missing.get((one.vehicle, one.name), ())) for one in self._streams.values())
        losses = (text for slot in slots if slot.lost for text in self._losses(slot))
        told = {kind: tuple(texts) for kind, texts in self._findings.items()}
        told["lost"] = tuple(itertools.islice(losses, EXAMPLES))
        told["disagreeing"] = tuple(f"{one.lane}: {one.text}" for one in disagreements[:EXAMPLES])

        def total(name: str) -> int:
            return sum(getattr(one, name) for one in streams)

        return Verdict(
            published=total("published"),
            acked=total("acked"),
            delivered=total("delivered"),
            unacked=total("unacked"),
            declared=total("declared"),
            lost=total("lost"),
            duplicated=total("duplicated"),
            out_of_order=total("out_of_order"),
            misplaced=total("misplaced"),
            unknown=self._unknown if whole else 0,
            reused=self._reused,
            disagreeing=sum(one.count for one in disagreements),
            findings={kind: texts for kind, texts in told.items() if texts},
            streams=streams,
            accounts=tuple(accounts),
        )

    def _slots(self, one: _Stream) -> Iterator[Slot]:
        """Yield what is missing of a stream: by gap where the neighbours are known, else all that is left."""
        state = one.state
        must, may = state.count(_ACKED), state.count(_PUBLISHED)
        if not must + may:
            return
        gateway = self._gateways.get(one.vehicle, "") or (one.at.name[0] if one.at else "")
        # A gap with an end in another gateway's lane, or in another lane, says nothing of numbers.
        gaps = [*one.gaps, (one.highest + 1, len(state) - 1, one.at, one.number, None, 0)]
        for first, last, low, after, high, before in gaps if one.name not in self._unordered else ():
            there = [ids for ids in (low, high) if ids is not None]
            lanes = {(ids.name[0], ids.name[2]) for ids in there}
            acked, others = state.count(_ACKED, first, last + 1), state.count(_PUBLISHED, first, last + 1)
            if len(lanes) != 1 or not acked + others:
                continue
            ((owner, lane),) = lanes
            must, may = must - acked, may - others
            yield Slot(
                one.vehicle, one.name, owner, first, last, acked, others, lane,
                None if low is None else (low.name[1], after), None if high is None else (high.name[1], before),
            )  # fmt: skip
        if must + may:
            yield Slot(one.vehicle, one.name, gateway, 1, len(state) - 1, must, may)

    def _tally(self, one: _Stream, missing: Iterable[Slot]) -> StreamTally:
        state = one.state
        acked, gone, unacked = (state.count(value) for value in (_ACKED | _PRESENT, _ACKED, _PUBLISHED | _PRESENT))
        lost = sum(slot.lost for slot in missing)
        return StreamTally(
            vehicle=one.vehicle,
            stream=one.name,
            gateway=self._gateways.get(one.vehicle, "") or (one.at.name[0] if one.at else ""),
            published=len(state) - state.count(0),
            acked=acked + gone,
            delivered=acked + unacked,
            unacked=unacked,
            declared=gone - lost,
            lost=lost,
            duplicated=one.duplicated,
            out_of_order=one.out_of_order,
            misplaced=one.misplaced,
        )

    def _losses(self, slot: Slot) -> Iterator[str]:
        """Say which messages are lost; where some of the slot are declared, which of them are cannot be told."""
        state = self._streams[slot.vehicle, slot.stream].state
        which = f"{slot.lost} of " if slot.lost < slot.must else ""
        with memoryview(state)[slot.first : slot.last + 1] as part:
            for found in _LOST.finditer(part):
                first, last = slot.first + found.start(), slot.first + found.end() - 1
                yield f"{which}{slot.vehicle} {slot.stream} seq {first}" + (f" to {last}" if last > first else "")

    def _tell(
        self, what: str, vehicle: str, stream: str, seq: int, ce_id: str, place: tuple[str, int], more: str
    ) -> None:
        if len(self._findings.get(what, ())) < EXAMPLES:
            ids = f"ce_id {ce_id}, " if ce_id else ""
            self._add(what, f"{vehicle} {stream} seq {seq} ({ids}{place[0]} partition {place[1]}){more}")

    def _add(self, what: str, finding: str) -> None:
        told = self._findings.setdefault(what, [])
        if len(told) < EXAMPLES:
            told.append(finding)

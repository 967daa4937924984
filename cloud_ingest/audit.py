"""What became of every message, from ledger and journal: delivered, declared lost, pending, missing.

For each gateway, epoch and lane: delivered ∪ dropped ∪ dead-lettered ∪ pending ∪ missing = 1…last. ``missing`` are
undeclared gaps: not routed, not declared, and no longer to come, because the gateway settled them or the router gave
them up. ``pending`` will come, because the journal has it, or may come: the gateway has it, or it is on its way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cloud_ingest.config import Topics
from cloud_ingest.following import Journal, following
from cloud_ingest.journal.port import CaughtUp
from cloud_ingest.router.entry import Alarm, Entry, Key, Offsets, decode_key, is_partition_key
from cloud_ingest.router.intervals import Interval, Intervals
from waybill.errors import Corrupt, UnknownVersion
from waybill.frames import read_header
from waybill.wire import is_node

SHOWN_GAPS = 4
NAMED = 16
"""Columns of a terminal that name gateway and lane at least, however large the numbers are."""
NUMBERED = 74
"""What fits beside the rules of a table of 80 columns."""


class LaneAudit(msgspec.Struct, frozen=True):
    """One epoch's lane. Counts are messages. ``last``: the highest seq known of.

    ``open``: no later epoch has named the end of this one, so more may follow. ``reasons``: why messages were
    dropped, and how many.
    ``missing``: the undeclared gaps, first and last seq. ``pending``: gaps that may still be filled; ``journaled`` of
    these are in the journal and not routed yet.
    ``dropped_spans``, ``dead_spans``: the numbers of what was dropped and of dead letters, as far as the ledger keeps
    them: the newest 512 intervals of each.
    """

    gateway: str
    epoch: int
    lane: str
    last: int
    open: bool
    delivered: int
    dropped: int
    dropped_bytes: int
    reasons: dict[str, int]
    dead: int
    pending: int
    journaled: int
    missing_count: int
    missing: tuple[Interval, ...]
    alarms: tuple[str, ...]
    dropped_spans: tuple[Interval, ...] = ()
    dead_spans: tuple[Interval, ...] = ()


class LostFrames(msgspec.Struct, frozen=True):
    """Frames that retention deleted before they were routed (R8): a declared loss. Journal offsets."""

    partition: int
    first: int
    last: int


class AuditReport(msgspec.Struct, frozen=True):
    """The audit of a deployment, or of one gateway."""

    lanes: tuple[LaneAudit, ...]
    lost: tuple[LostFrames, ...] = ()

    @property
    def missing(self) -> int:
        """Messages in undeclared gaps; anything but 0 is what must never be."""
        return sum(lane.missing_count for lane in self.lanes)

    @property
    def complete(self) -> bool:
        """Whether every message is delivered, declared or pending."""
        return not self.missing


Journaled = dict[Key, Intervals]
"""Messages that are in the journal and not routed yet."""


async def audit(source: Journal, topics: Topics, gateway: str | None = None) -> AuditReport:
    """Read what is not routed yet, then the ledger in ``source`` to its end, and report, of ``gateway`` if given.

    Raises Unavailable, Corrupt, UnknownVersion.
    """
    journaled = await _unrouted(source)  # first: what is routed meanwhile is in the ledger then
    tables: dict[int, dict[bytes, bytes]] = {}  # by partition: where gateways moved, one forgets what another has
    async with following(source, (topics.ledger,), end=True) as records:
        async for record in records:
            if isinstance(record, CaughtUp) or record.key is None:
                continue
            values = tables.setdefault(record.partition, {})
            if record.value is None:
                values.pop(record.key, None)
            else:
                values[record.key] = record.value
    return report({key: value for values in tables.values() for key, value in values.items()}, gateway, journaled)


async def _unrouted(source: Journal) -> Journaled:
    found: Journaled = {}
    async with contextlib.aclosing(source.unrouted()) as frames:
        async for record in frames:
            try:
                header = read_header(record.value or b"")
            except (Corrupt, UnknownVersion):
                continue  # it has no numbers that could be believed, and becomes a dead letter
            key = Key((record.key or b"").decode(errors="replace"), header.epoch, header.lane)
            found.setdefault(key, Intervals()).add(header.first, header.last)
    return found


def report(
    values: Mapping[bytes, bytes], gateway: str | None = None, journaled: Mapping[Key, Intervals] | None = None
) -> AuditReport:
    """Report on the ledger's keys and values, and on what is ``journaled`` only. Raises Corrupt, UnknownVersion."""
    entries: dict[Key, Entry] = {}
    lost: list[LostFrames] = []
    for name, value in values.items():
        if is_partition_key(name):
            if not name[1:].isdigit():
                continue  # the log's own
            partition = int(name[1:])
            lost += [LostFrames(partition, first - 1, last - 1) for first, last in Offsets.decode(value).lost]
            continue
        key = decode_key(name)
        if gateway is None or key.gateway == gateway:
            entries[key] = Entry.decode(value)
    waiting = {key: seqs for key, seqs in (journaled or {}).items() if gateway in (None, key.gateway)}
    for key in waiting:
        entries.setdefault(key, Entry())
    return AuditReport(
        tuple(_lanes(entries, waiting)), tuple(sorted(lost, key=lambda each: (each.partition, each.first)))
    )


def _lanes(entries: Mapping[Key, Entry], waiting: Mapping[Key, Intervals]) -> Iterable[LaneAudit]:
    settled = {key.at(entry.prev_epoch) for key, entry in entries.items() if entry.begins and entry.prev_epoch}
    for key in sorted(entries, key=lambda key: (key.gateway, key.lane, entries[key].last_offset, key.epoch)):
        entry = entries[key]
        come = entry.covered.copy()  # with what is in the journal, which will be routed
        for first, last in waiting.get(key, ()):
            come.add(first, last)
        journaled = come.count - entry.covered.count
        last = max(entry.end, come.last)
        gaps = [] if is_node(key.gateway) else come.missing(1, last)  # a node's holes are no loss
        if key in settled:
            missing = gaps
        else:  # the gateway may still hold what was not given up
            missing = [(first, min(end, entry.floor)) for first, end in gaps if first <= entry.floor]
        count = _count(missing)
        yield LaneAudit(
            key.gateway,
            key.epoch,
            key.lane,
            last,
            not entry.end,
            entry.delivered_count,
            entry.dropped_count,
            entry.dropped_bytes,
            entry.reasons,
            entry.dead_count,
            _count(gaps) - count + journaled,
            journaled,
            count,
            tuple(missing),
            tuple(alarm.name.lower().replace("_", "-") for alarm in Alarm if entry.alarms & alarm and alarm.name),
            tuple(entry.dropped),
            tuple(entry.dead),
        )


def _count(intervals: Iterable[Interval]) -> int:
    return sum(last - first + 1 for first, last in intervals)


def as_json(found: AuditReport) -> str:
    """Return the report as JSON, with its total ``missing``."""
    return msgspec.json.encode({"missing": found.missing, **msgspec.to_builtins(found)}).decode()


def as_table(found: AuditReport) -> RenderableType:
    """Return the report for a terminal: it fits into 80 columns.

    ``epoch`` is written as in ``ce_id``. ``3 of 3+``: the epoch is the gateway's newest, more may follow.
    """
    rows = [
        (
            f" {lane.epoch}",
            f" {lane.delivered} of {lane.last}{'+' if lane.open else ''}",
            f" {lane.dropped + lane.dead}",
            f" {lane.pending}",
            f" {lane.missing_count}",
        )
        for lane in found.lanes
    ]
    wide = NAMED + sum(max(map(len, column)) for column in zip(*rows, strict=True)) > NUMBERED
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, collapse_padding=True)
    table.add_column("gateway, lane", overflow="fold", min_width=NAMED)
    table.add_column("epoch", no_wrap=True)
    for name in ("delivered", "declared", "pending", "missing"):  # very large numbers wrap
        table.add_column(name, justify="right", overflow="fold", max_width=len(name) + 1 if wide else None)
    remarks: list[Text] = []
    for lane, (*cells, missing) in zip(found.lanes, rows, strict=True):
        style = "bold red" if lane.missing else ""
        table.add_row(f"{lane.gateway} {lane.lane}", *cells, Text(missing, style=style))
        remarks += _remarks(lane)
    for lost in found.lost:
        text = f"partition {lost.partition}: frames {lost.first} to {lost.last} deleted before they were routed"
        remarks.append(Text(text, style="bold red"))
    return Group(table, *remarks)


def _remarks(lane: LaneAudit) -> list[Text]:
    name = f"{lane.gateway}/{lane.epoch}/{lane.lane}"
    said = [Text(f"{name}: {count} declared lost: {reason}") for reason, count in lane.reasons.items()]
    if lane.dead:
        said.append(Text(f"{name}: {lane.dead} dead letters"))
    if lane.missing:
        gaps = ", ".join(f"{first}-{last}" for first, last in lane.missing[:SHOWN_GAPS])
        more = ", …" if len(lane.missing) > SHOWN_GAPS else ""
        said.append(Text(f"{name}: missing {gaps}{more}", style="bold red"))
    return said + [Text(f"{name}: alarm {alarm}", style="red") for alarm in lane.alarms]

"""The health record on the wire: what an agent says of itself, in a few hundred bytes (docs/wire.md). Pure.

A MessagePack array, as are the arrays in it; fields added later stand at its end. Times are seconds before ``at_ms``:
a wrong clock of the gateway spoils none. Numbers are whole. What would make it long is cut off: texts, names,
and lists from their less important end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec

from waybill.errors import Corrupt
from waybill.fleet_state import (
    DiskInfo,
    Health,
    History,
    LaneInfo,
    Link,
    LinkChange,
    PlanInfo,
    Talker,
    Talkers,
    UplinkUse,
)

MAX_BYTES: Final = 4096
"""A receiver refuses more."""

ROOM: Final = 1200
"""Bytes above which :func:`pack` leaves things out."""

TEXT: Final = 160
NAME: Final = 64
"""Characters of a text, and of a name; what is longer ends with an ellipsis."""

LINKS: Final = 6
LANES: Final = 16
UPLINKS: Final = 8
POINTS: Final = 10
TALKERS: Final = 4
"""Of each list at most; of talkers, the largest by bytes and by count, so twice as many where they differ."""

_STATES: Final[tuple[Link, ...]] = ("unknown", "online", "connecting", "offline", "off")
_USES: Final = ("unused", "online", "connecting", "offline")
_METERED: Final = 4

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Many = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Text = Annotated[str, msgspec.Meta(max_length=TEXT)]
_Name = Annotated[str, msgspec.Meta(max_length=NAME)]


class _Array(msgspec.Struct, frozen=True, array_like=True):
    """What all have in common."""


class _Link(_Array, frozen=True):
    ago: int
    state: _Count
    uplink: _Name = ""
    reason: _Text = ""


class _Uplink(_Array, frozen=True):
    name: _Name
    use: _Count
    sent: _Many
    received: _Many
    certificate: int | None = None  # seconds from now until it ends
    error: _Text = ""


class _Lane(_Array, frozen=True):
    lane: _Name
    count: _Many
    bytes: _Many = 0
    oldest: int | None = None
    dropped: _Many = 0
    expired: _Many = 0
    refused: _Many = 0
    full: bool = False
    cap: _Many = 0
    held: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=8)] = ()


class _Point(_Array, frozen=True):
    came: _Many
    acked: _Many
    bytes: _Many
    latency: int | None = None


class _Talker(_Array, frozen=True):
    name: _Name
    count: _Many
    bytes: _Many


class _Talkers(_Array, frozen=True):
    span: _Many
    count: _Many
    bytes: _Many
    wire: _Many
    topics: Annotated[tuple[_Talker, ...], msgspec.Meta(max_length=2 * TALKERS)] = ()
    devices: Annotated[tuple[_Talker, ...], msgspec.Meta(max_length=2 * TALKERS)] = ()


class _Plan(_Array, frozen=True):
    budget: _Many
    used: _Many
    forecast: _Many | None = None
    ends: int | None = None  # seconds from now
    stage: _Count = 0
    used_up: bool = False


class _Disk(_Array, frozen=True):
    free: _Many = 0
    total: _Many = 0
    buffer: _Many = 0
    per_day: _Many | None = None


class _Record(_Array, frozen=True):
    at_ms: int
    version: _Name
    uptime: _Many
    epoch: _Count
    clock: _Text
    holds: _Many | None
    drained: _Many | None
    came: _Many  # a minute, as are the next two
    acked: _Many
    bytes: _Many
    connected: _Many
    links: Annotated[tuple[_Link, ...], msgspec.Meta(max_length=LINKS)]
    uplinks: Annotated[tuple[_Uplink, ...], msgspec.Meta(max_length=UPLINKS)]
    lanes: Annotated[tuple[_Lane, ...], msgspec.Meta(max_length=LANES)]
    disk: _Disk
    plan: _Plan | None
    faults: tuple[_Text, _Text, _Text, _Text]  # fault, error, alarm, full
    history: tuple[_Count, int, Annotated[tuple[_Point, ...], msgspec.Meta(max_length=POINTS)]]
    talkers: _Talkers | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


def pack(health: Health) -> bytes:
    """Return a record of at most ``MAX_BYTES``. Above ``ROOM`` it is without talkers, then history, then lists."""
    record = _record(health)
    found = _encode(record)
    for less in (
        {"talkers": None},
        {"history": (health.history.step_s, 0, ())},
        {"links": (), "lanes": ()},
        {"uplinks": ()},
    ):
        if len(found) <= ROOM:
            break
        record = msgspec.structs.replace(record, **less)
        found = _encode(record)
    return found


def unpack(data: bytes) -> Health:
    """Return what a record says, its times by the gateway's clock. Raises Corrupt."""
    if len(data) > MAX_BYTES:
        raise Corrupt(f"health: {len(data)} bytes, at most {MAX_BYTES}")
    try:
        return _health(_decode(data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"health: {error}") from error


def _record(health: Health) -> _Record:
    at_ms, history, talkers = health.at_ms, health.history, health.talkers
    plan = health.plan
    return _Record(
        at_ms,
        _cut(health.version, NAME),
        max(0, at_ms - health.started_ms) // 1000,
        health.epoch,
        _cut(health.clock, TEXT),
        _whole(health.holds_s),
        _whole(health.drained_s),
        round(health.rate_in * 60),
        round(health.rate_out * 60),
        round(health.bytes_per_min),
        health.connected,
        tuple(
            _Link((at_ms - one.at_ms) // 1000, _STATES.index(one.state), _cut(one.uplink, NAME), _cut(one.reason, TEXT))
            for one in health.links[-LINKS:]
        ),
        tuple(
            _Uplink(
                _cut(one.name, NAME),
                (_USES.index(one.state) if one.state in _USES else 0) | (_METERED if one.metered else 0),
                one.sent,
                one.received,
                (one.certificate_ms - at_ms) // 1000 if one.certificate_ms else None,
                _cut(one.error, TEXT),
            )
            for one in health.uplinks[:UPLINKS]
        ),
        tuple(_lane(one, at_ms) for one in health.lanes[:LANES]),
        _Disk(health.disk.free, health.disk.total, health.disk.buffer, _whole(health.disk.per_day)),
        None
        if plan is None
        else _Plan(
            plan.budget,
            plan.used,
            plan.forecast,
            (plan.ends_ms - at_ms) // 1000 if plan.ends_ms else None,
            plan.stage,
            plan.used_up,
        ),
        (
            _cut(health.fault, TEXT),
            _cut(health.error, TEXT),
            _cut(health.alarm, TEXT),
            _cut(health.full, TEXT),
        ),
        (history.step_s, (at_ms - history.until_ms) // 1000 if history.until_ms else 0, _points(history)),
        _Talkers(
            max(0, at_ms - talkers.since_ms) // 1000,
            talkers.count,
            talkers.bytes,
            talkers.wire,
            _largest(talkers.topics_by_bytes, talkers.topics_by_count),
            _largest(talkers.devices_by_bytes, talkers.devices_by_count),
        )
        if talkers.count
        else None,
    )


def _lane(one: LaneInfo, at_ms: int) -> _Lane:
    return _Lane(
        one.lane,
        one.count,
        one.bytes,
        (at_ms - one.oldest_ms) // 1000 if one.oldest_ms else None,
        one.dropped,
        one.expired,
        one.refused,
        one.full,
        one.cap,
        tuple(_cut(reason, NAME) for reason in one.held[:8]),
    )


def _points(history: History) -> tuple[_Point, ...]:
    rows = zip(history.rate_in, history.rate_out, history.bytes_per_min, history.latency_ms, strict=True)
    points = [
        _Point(round(came * 60), round(acked * 60), round(size), _whole(latency)) for came, acked, size, latency in rows
    ]
    return tuple(points[-POINTS:])


def _largest(by_bytes: Sequence[Talker], by_count: Sequence[Talker]) -> tuple[_Talker, ...]:
    names = {one.name: one for one in (*by_bytes[:TALKERS], *by_count[:TALKERS])}
    return tuple(
        _Talker(_cut(one.name, NAME), one.count - one.over_count, one.bytes - one.over_bytes) for one in names.values()
    )


def _health(record: _Record) -> Health:
    at_ms = record.at_ms
    step_s, until, points = record.history
    talkers, plan = record.talkers, record.plan
    return Health(
        at_ms=at_ms,
        version=record.version,
        started_ms=at_ms - 1000 * record.uptime,
        epoch=record.epoch,
        clock=record.clock,
        links=tuple(
            LinkChange(at_ms - 1000 * one.ago, _named(_STATES, one.state), one.uplink, one.reason)
            for one in record.links
        ),
        uplinks=tuple(
            UplinkUse(
                one.name,
                _USES[one.use % _METERED],
                bool(one.use & _METERED),
                one.sent,
                one.received,
                one.error,
                0 if one.certificate is None else at_ms + 1000 * one.certificate,
            )
            for one in record.uplinks
        ),
        lanes=tuple(
            LaneInfo(
                one.lane,
                one.count,
                one.bytes,
                0 if one.oldest is None else at_ms - 1000 * one.oldest,
                one.held,
                one.cap,
                one.dropped,
                one.expired,
                one.refused,
                one.full,
            )
            for one in record.lanes
        ),
        holds_s=record.holds,
        drained_s=record.drained,
        rate_in=round(record.came / 60, 2),
        rate_out=round(record.acked / 60, 2),
        bytes_per_min=record.bytes,
        connected=record.connected,
        history=History(
            step_s,
            at_ms - 1000 * until,
            tuple(round(one.came / 60, 2) for one in points),
            tuple(round(one.acked / 60, 2) for one in points),
            tuple(float(one.bytes) for one in points),
            tuple(one.latency for one in points),
        )
        if points
        else History(),
        talkers=Talkers()
        if talkers is None
        else Talkers(
            at_ms - 1000 * talkers.span,
            talkers.count,
            talkers.bytes,
            talkers.wire,
            _by_bytes(talkers.topics),
            _by_count(talkers.topics),
            _by_bytes(talkers.devices),
            _by_count(talkers.devices),
        ),
        disk=DiskInfo(record.disk.free, record.disk.total, record.disk.buffer, record.disk.per_day),
        plan=None
        if plan is None
        else PlanInfo(
            plan.budget,
            plan.used,
            plan.forecast,
            0 if plan.ends is None else at_ms + 1000 * plan.ends,
            plan.stage,
            plan.used_up,
        ),
        fault=record.faults[0],
        error=record.faults[1],
        alarm=record.faults[2],
        full=record.faults[3],
    )


def _by_bytes(found: Iterable[_Talker]) -> tuple[Talker, ...]:
    return tuple(Talker(one.name, one.count, one.bytes) for one in sorted(found, key=lambda one: -one.bytes))


def _by_count(found: Iterable[_Talker]) -> tuple[Talker, ...]:
    return tuple(Talker(one.name, one.count, one.bytes) for one in sorted(found, key=lambda one: -one.count))


def _named(names: Sequence[Link], number: int) -> Link:
    return names[number] if number < len(names) else "unknown"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _whole(number: float | None) -> int | None:
    return None if number is None else max(0, round(number))

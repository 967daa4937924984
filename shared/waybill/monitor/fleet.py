"""The screen *Fleet*: a row a gateway. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from waybill.fleet_state import FleetSnapshot, GatewayRow
from waybill.monitor.table import Column
from waybill.monitor.words import GLYPHS, NEVER, Bit, Line, Tone, bit, brief, count, moment, size, span

CERTIFICATE_SOON: Final = 14.0
"""Days before its end from which on a certificate is to be looked at."""

LAG: Final = 60_000
"""Milliseconds from which on messages that are not routed are to be looked at."""

_DAY_MS: Final = 86_400_000
_WORST: Final[dict[Tone, int]] = {"bad": 0, "look": 1, "quiet": 2}


class Gateway(NamedTuple):
    """A row with what it is seen by: the time, and how long messages of its partition wait to be routed."""

    row: GatewayRow
    at_ms: int
    lag_ms: int | None


def merged(known: FleetSnapshot | None, told: FleetSnapshot) -> FleetSnapshot:
    """Return all gateways: those that are known, with what was told of them since. In order of their names."""
    if told.full or known is None:
        rows = {row.gateway: row for row in told.gateways}
    else:
        rows = {row.gateway: row for row in known.gateways}
        if not told.gone and all(row.gateway in rows for row in told.gateways):
            rows.update((row.gateway, row) for row in told.gateways)
            return msgspec.structs.replace(told, gateways=tuple(rows.values()), full=True)
        rows.update((row.gateway, row) for row in told.gateways)
        for gateway in told.gone:
            rows.pop(gateway, None)
    return msgspec.structs.replace(told, gateways=tuple(rows[name] for name in sorted(rows)), full=True, gone=())


def rows(fleet: FleetSnapshot) -> list[Gateway]:
    """Return what the table's rows are made of."""
    lags = fleet.lag_ms
    return [
        Gateway(row, fleet.at_ms, None if row.partition is None else lags[row.partition])
        if row.partition is None or 0 <= row.partition < len(lags)
        else Gateway(row, fleet.at_ms, None)
        for row in fleet.gateways
    ]


def days_left(row: GatewayRow, at_ms: int) -> float | None:
    """Return for how many days its certificate holds, None where that is not known."""
    return (row.certificate_ms - at_ms) / _DAY_MS if row.certificate_ms else None


def grade(row: GatewayRow, at_ms: int) -> Tone:
    """Say how a gateway is: good, to be looked at, bad, or ``quiet`` where nothing is known."""
    days = days_left(row, at_ms)
    if row.state == "offline" or (days is not None and days <= 0):
        return "bad"
    if row.state in {"connecting", "off"} or row.trouble or row.dropped or (row.plan_used or 0.0) >= 1:
        return "look"
    if days is not None and days < CERTIFICATE_SOON:
        return "look"
    return "quiet" if row.state == "unknown" else "good"


def since(row: GatewayRow, at_ms: int) -> float | None:
    """Return for how many seconds its link is as it is."""
    return (at_ms - row.since_ms) / 1000 if row.since_ms else None


def _link(one: Gateway) -> Bit:
    tone = grade(one.row, one.at_ms)
    passed = since(one.row, one.at_ms)
    age = "" if passed is None else f" {brief(passed)}"
    return Bit(f"{GLYPHS[tone]} {one.row.state}{age}", tone)


def _age(at_ms: int, moment_ms: int) -> float | None:
    return (at_ms - moment_ms) / 1000 if moment_ms else None


def _oldest(one: Gateway) -> Bit:
    if one.row.backlog == 0 or (one.row.backlog is None and not one.row.oldest_ms):
        return Bit("" if one.row.backlog == 0 else NEVER, "quiet")
    return Bit(brief(_age(one.at_ms, one.row.oldest_ms)))


def _days(one: Gateway) -> Bit:
    days = days_left(one.row, one.at_ms)
    if days is None:
        return Bit(NEVER, "quiet")
    tone: Tone = "bad" if days <= 0 else "look" if days < CERTIFICATE_SOON else ""
    return Bit(f"{max(-999, min(9999, int(days)))}d" if days > 0 else "over", tone)


def _number(value: float | None, tone: Tone = "") -> Bit:
    return Bit(NEVER, "quiet") if value is None else Bit(count(value), tone)


def _lag(one: Gateway) -> Bit:
    if one.lag_ms is None:
        return Bit(NEVER, "quiet")
    return Bit(brief(one.lag_ms / 1000), "look" if one.lag_ms >= LAG else "")


def _trouble(one: Gateway) -> Bit:
    row = one.row
    return bit((row.reason if row.state != "online" else "") or row.trouble, grade(row, one.at_ms))


COLUMNS: Final[tuple[Column[Gateway], ...]] = (
    Column("gateway", 12, lambda one: bit(one.row.gateway), lambda one: one.row.gateway, grow=2),
    Column(
        "link",
        13,
        _link,
        lambda one: (_WORST.get(grade(one.row, one.at_ms), 3), -one.row.since_ms, one.row.gateway),
    ),
    Column(
        "backlog",
        7,
        lambda one: _number(one.row.backlog),
        lambda one: -1 if one.row.backlog is None else one.row.backlog,
        right=True,
        falls=True,
    ),
    Column(
        "oldest",
        6,
        _oldest,
        lambda one: (_age(one.at_ms, one.row.oldest_ms) or 0.0) if one.row.backlog != 0 else 0.0,
        right=True,
        falls=True,
        rank=1,
    ),
    Column(
        "left",
        5,
        lambda one: Bit(brief(one.row.holds_s), "" if one.row.holds_s is not None else "quiet"),
        lambda one: float("inf") if one.row.holds_s is None else one.row.holds_s,
        right=True,
        rank=2,
    ),
    Column(
        "B/min",
        6,
        lambda one: _number(one.row.bytes_per_min),
        lambda one: one.row.bytes_per_min or 0.0,
        right=True,
        falls=True,
        rank=3,
    ),
    Column(
        "drops",
        5,
        lambda one: _number(one.row.dropped, "look" if one.row.dropped else ""),
        lambda one: one.row.dropped or 0,
        right=True,
        falls=True,
        rank=4,
    ),
    Column("lag", 5, _lag, lambda one: one.lag_ms or 0, right=True, falls=True, rank=6),
    Column("cert", 5, _days, lambda one: one.row.certificate_ms or float("inf"), right=True, rank=5),
    Column("version", 7, lambda one: bit(one.row.version or NEVER), lambda one: one.row.version, rank=7),
    Column("devices", 8, lambda one: _number(one.row.devices), lambda one: one.row.devices or 0, True, 9, falls=True),
    Column("uplink", 8, lambda one: bit(_way(one.row.uplink) or NEVER), lambda one: one.row.uplink, rank=10),
    Column("node", 8, lambda one: bit(one.row.node or NEVER), lambda one: one.row.node, rank=11),
    Column("what to look at", 24, _trouble, None, rank=8, grow=3, prose=True),
)


def _way(uplink: str) -> str:
    """Return an uplink's name, short enough for its column where the configuration gives it none."""
    return uplink.replace("[[uplink]]", "uplink")


def words(one: Gateway) -> str:
    """Return what a filter looks at: of thousands of rows at each key, so no more than it is worth."""
    row = one.row
    told = f"{row.version}\n{row.trouble}\n{row.reason}"
    return f"{row.gateway}\n{row.state}\n{row.uplink}\n{row.node}\n{row.address}\n{told}"


def summary(fleet: FleetSnapshot) -> Line:
    """Say how the whole fleet is, in one line."""
    unknown = fleet.total - fleet.online - fleet.offline
    waits = sum(row.backlog or 0 for row in fleet.gateways)
    kept = sum(row.backlog_bytes or 0 for row in fleet.gateways)
    look = sum(grade(row, fleet.at_ms) == "look" for row in fleet.gateways)
    bits = [
        Bit(f"{GLYPHS['good']} {fleet.online:,} online ", "good"),
        Bit(f"{GLYPHS['bad']} {fleet.offline:,} offline ", "bad" if fleet.offline else "quiet"),
        Bit(f"{GLYPHS['look']} {look:,} to look at ", "look" if look else "quiet"),
    ]
    if unknown > 0:
        bits.append(Bit(f"{GLYPHS['quiet']} {unknown:,} unknown ", "quiet"))
    bits.append(Bit(f"of {fleet.total:,}; {count(waits)} wait" if waits else f"of {fleet.total:,}; no backlog"))
    bits.append(bit(f" ({size(kept)})  {fleet.deployment}" if waits else f"  {fleet.deployment}"))
    return tuple(bits)


def faults(fleet: FleetSnapshot) -> list[Line]:
    """Return what is wrong with the cloud itself, a line each."""
    lines: list[Line] = [(bit(f"{GLYPHS['look']} {fault}", "look"),) for fault in fleet.faults]
    if fleet.left_out:
        lines.append((Bit(f"{GLYPHS['look']} no room for {fleet.left_out:,} more gateways on this node", "look"),))
    return lines


def about(one: Gateway) -> Line:
    """Say in one line what a row has no room for."""
    row = one.row
    tone = grade(row, one.at_ms)
    begun = f" since {moment(row.since_ms)}" if row.since_ms else ""
    why = f": {row.reason}" if row.reason and row.state != "online" else ""
    where = f" at {row.node}" if row.node else ""
    report = "says nothing of itself"
    if row.reported_ms:
        report = f"reported {span(_age(one.at_ms, row.reported_ms))} ago"
    trouble = f"; {row.trouble}" if row.trouble else ""
    return (
        bit(f"{GLYPHS[tone]} {row.gateway} ", "head"),
        bit(f"{row.state}{begun}{where}{why}{trouble}; {report}", tone if tone != "good" else ""),
    )

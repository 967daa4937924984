"""A gateway's health in one row of the fleet. Pure."""

from __future__ import annotations

import msgspec

from waybill.fleet_state import GatewayRow, Health

TROUBLE: int = 200
"""Characters of ``trouble``."""


def row_of(row: GatewayRow, health: Health, reported_ms: int) -> GatewayRow:
    """Return ``row`` with what ``health`` says, which was told at ``reported_ms`` by the clock of who asks.

    Times move by what the gateway's clock is off; what the cloud knows of the link itself stays.
    """
    off = reported_ms - health.at_ms
    oldest = [lane.oldest_ms for lane in health.lanes if lane.oldest_ms]
    ends = [uplink.certificate_ms for uplink in health.uplinks if uplink.certificate_ms]
    plan = health.plan
    return msgspec.structs.replace(
        row,
        uplink=next((one.name for one in health.uplinks if one.state == "online"), row.uplink),
        version=health.version or row.version,
        reported_ms=reported_ms,
        backlog=sum(lane.count for lane in health.lanes),
        backlog_bytes=sum(lane.bytes for lane in health.lanes),
        oldest_ms=min(oldest) + off if oldest else 0,
        holds_s=health.holds_s,
        drained_s=health.drained_s,
        bytes_per_min=health.bytes_per_min,
        rate_in=health.rate_in,
        rate_out=health.rate_out,
        dropped=sum(lane.dropped + lane.expired + lane.refused for lane in health.lanes),
        devices=health.connected,
        certificate_ms=min(ends, default=0),
        plan_used=round(plan.used / plan.budget, 3) if plan is not None and plan.budget else None,
        trouble=_trouble(health),
    )


def _trouble(health: Health) -> str:
    used_up = "the data plan is used up" if health.plan is not None and health.plan.used_up else ""
    clock = f"clock: {health.clock}" if health.clock else ""
    texts = (health.fault, health.alarm, health.error, health.full, used_up, clock)
    return "; ".join(text for text in texts if text)[:TROUBLE]

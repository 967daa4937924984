"""The agent's snapshot as metrics (docs/metrics.md), and whether it can take messages. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import Metric

from edge_agent.status import EdgeStatus
from waybill.metrics import count, gauge, several

_NOW: Final = {"mqtt_connections", "mqtt_uncommitted"}
"""Counters of the snapshot that can fall."""


def trouble(status: EdgeStatus) -> str:
    """Return why devices get no acks at present, or an empty string. That the uplink is away is none."""
    return status.fault


def metrics(status: EdgeStatus) -> Iterator[Metric]:
    """Yield all metrics of ``status``; seconds and bytes, times as seconds since 1970 UTC."""
    yield several(
        "gauge", "waybill_edge_info", "Who this is.", {(status.gateway, status.version): 1.0}, "gateway", "version"
    )
    yield gauge("waybill_edge_start_time_seconds", "When the agent was started.", status.started_ms / 1000)
    yield gauge("waybill_edge_link_up", "1 while the uplink is online.", status.link.state == "online")
    yield gauge("waybill_edge_link_since_seconds", "Since when the uplink is as it is.", status.link.since_ms / 1000)
    yield gauge("waybill_edge_fault", "1 while devices get no acks: nothing is written.", bool(status.fault))
    yield gauge("waybill_edge_error", "1 while the cloud refuses frames of this gateway.", bool(status.error))
    yield gauge("waybill_edge_alarm", "1 where messages were lost or damaged, since the start.", bool(status.alarm))
    yield gauge("waybill_edge_clock_trusted", "1 while nothing is wrong with the clock.", not status.clock)
    yield gauge("waybill_edge_in_flight_bytes", "Frames sent and not acknowledged.", status.in_flight)
    yield gauge("waybill_edge_credit_bytes", "What the cloud allows to be in flight.", status.credit)
    yield gauge("waybill_edge_holds_seconds", "Until the buffer is full as it fills now.", status.holds_s)
    yield gauge("waybill_edge_outage_seconds", "Until the buffer is full, if nothing leaves it.", status.outage_s)
    yield gauge("waybill_edge_drained_seconds", "Until the backlog is gone.", status.drained_s)
    yield from _lanes(status)
    yield several(
        "counter", "waybill_edge_uplink_bytes", "Bytes on the wire.",
        {
            (one.name, way): float(size)
            for one in status.uplinks
            for way, size in (("sent", one.sent), ("received", one.received))
        },
        "uplink", "direction",
    )  # fmt: skip
    if status.flash is not None:
        yield count("waybill_edge_flash_written_bytes", "Bytes written to storage.", status.flash.written)
    if status.plan is not None:
        yield gauge("waybill_edge_plan_used_bytes", "Of the data plan, in this cycle.", status.plan.used)
        yield gauge("waybill_edge_plan_budget_bytes", "The data plan, of a cycle.", status.plan.budget)
    for name, value in status.counters.items():
        if name in _NOW:
            yield gauge(f"waybill_edge_{name}", "As of now; docs/metrics.md.", value)
        else:
            yield count(f"waybill_edge_{name}", "Since the start; docs/metrics.md.", value)


def _lanes(status: EdgeStatus) -> Iterator[Metric]:
    for name, text, kind, of in (
        ("backlog_messages", "Messages that wait.", "gauge", "count"),
        ("backlog_bytes", "Bytes that wait, as stored.", "gauge", "bytes"),
        ("full", "1 while the lane takes nothing.", "gauge", "full"),
        ("dropped", "Messages that left for want of room.", "counter", "dropped"),
        ("expired", "Messages that left by their TTL.", "counter", "expired"),
        ("refused", "Messages not taken for want of room.", "counter", "refused"),
    ):
        samples = {(lane.lane,): float(getattr(lane, of)) for lane in status.lanes}
        yield several(kind, f"waybill_edge_lane_{name}", text, samples, "lane")
    oldest = {(lane.lane,): lane.oldest_ms / 1000 for lane in status.lanes if lane.oldest_ms is not None}
    yield several("gauge", "waybill_edge_lane_oldest_seconds", "When the oldest that waits came.", oldest, "lane")

"""The ingest's snapshot as metrics (docs/metrics.md), and whether it can take frames. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from cloud_ingest.status import CloudSnapshot, PartitionSnapshot
from waybill.metrics import count, gauge, several


def trouble(shot: CloudSnapshot) -> str:
    """Return why gateways get no acks at present, or an empty string."""
    return shot.fault or shot.frames.fault


def metrics(shot: CloudSnapshot) -> Iterator[Metric]:
    """Yield all metrics of ``shot``; seconds and bytes, times as seconds since 1970 UTC."""
    yield several(
        "gauge", "waybill_cloud_info", "Who this is.",
        {(shot.deployment, shot.version, shot.log): 1.0}, "deployment", "version", "log",
    )  # fmt: skip
    yield gauge("waybill_cloud_start_time_seconds", "When the ingest was started.", shot.started_ms / 1000)
    yield gauge("waybill_cloud_fault", "1 while gateways get no acks.", bool(trouble(shot)))
    yield gauge("waybill_cloud_gateways", "Gateways connected to this node.", shot.connected)
    yield count("waybill_cloud_denied", "Publishes and subscriptions under another's topics.", shot.denied)
    yield count("waybill_cloud_refused", "Connections turned away.", shot.refused)
    yield count("waybill_cloud_handshakes_failed", "TLS handshakes that failed.", shot.handshakes)
    yield gauge("waybill_cloud_alarms", "Alarms that were raised lately.", len(shot.alarms))
    frames = shot.frames
    yield count("waybill_cloud_frames_journaled", "Frames journaled.", frames.journaled)
    yield count("waybill_cloud_frames_journaled_bytes", "Bytes of frames journaled.", frames.bytes)
    yield count("waybill_cloud_frames_refused", "Frames that will never be journaled.", frames.refused)
    yield count("waybill_cloud_frames_retried", "Frames that gateways were asked to send again.", frames.retried)
    yield count("waybill_cloud_frames_unknown_version", "Frames of a version not known.", frames.unknown_versions)
    yield gauge("waybill_cloud_frames_pending_bytes", "Frames that are not journaled yet.", frames.pending)
    yield gauge("waybill_cloud_routed_per_second", "Messages routed, lately.", shot.routed_per_second)
    yield from _partitions(shot.partitions)
    commands = shot.commands
    yield gauge("waybill_cloud_commands_open", "Commands without a final state.", commands.open)
    yield gauge("waybill_cloud_commands_fault", "1 while commands are not read.", bool(commands.fault))
    yield count("waybill_cloud_commands_sent", "Commands sent for the first time.", commands.sent)
    yield count("waybill_cloud_commands_sent_again", "Commands sent again.", commands.sent_again)
    yield count("waybill_cloud_commands_malformed", "Records that are no command.", commands.malformed)
    if (devices := shot.devices) is not None:
        yield gauge("waybill_cloud_devices", "Devices connected without a gateway.", devices.connected)
        yield count("waybill_cloud_devices_messages", "Their messages journaled.", devices.messages)
        yield count("waybill_cloud_devices_frames", "Frames made of these.", devices.frames)
        yield gauge("waybill_cloud_devices_fault", "1 while nothing of theirs is journaled.", bool(devices.fault))


def _partitions(partitions: tuple[PartitionSnapshot, ...]) -> Iterator[Metric]:
    """Of those that this node routes."""
    ready = {(str(one.partition),): float(one.state == "ready") for one in partitions}
    yield several("gauge", "waybill_cloud_partition_ready", "1 while it is routed.", ready, "partition")
    behind = {(str(one.partition),): one.behind_ms / 1000 for one in partitions}
    text = "Age of the oldest frame that is not routed."
    yield several("gauge", "waybill_cloud_partition_behind_seconds", text, behind, "partition")
    for name, text, kind in (
        ("held_frames", "Frames that came ahead, held.", "gauge"),
        ("held_bytes", "Bytes of these.", "gauge"),
        ("routed", "Messages written to their topics.", "counter"),
        ("copies", "Messages told as copies.", "counter"),
        ("dead", "Messages written to dead letters.", "counter"),
        ("dropped", "Messages declared lost by gateways.", "counter"),
    ):
        samples = {(str(one.partition),): float(getattr(one, name)) for one in partitions}
        yield several(kind, f"waybill_cloud_partition_{name}", text, samples, "partition")

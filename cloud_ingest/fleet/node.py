"""What a node says of itself to the others. Pure."""

from __future__ import annotations

from cloud_ingest.status import CloudSnapshot
from waybill.fleet_state import NodeState, PartitionState

FAULT: int = 200
"""Characters of a fault."""


def node_state(node: str, shot: CloudSnapshot) -> NodeState:
    """Return a snapshot as the node ``node`` tells it; without when."""
    devices = shot.devices
    faults = (
        shot.fault,
        shot.frames.fault,
        shot.commands.fault,
        shot.presence and f"presence: {shot.presence}",
        devices.fault if devices is not None else "",
        shot.plain.fault if shot.plain is not None else "",
        *(f"partition {one.partition} {one.state}: {one.reason}" for one in shot.partitions if one.state == "stopped"),
    )
    return NodeState(
        node,
        shot.version,
        shot.address,
        shot.started_ms,
        shot.connected,
        devices.connected if devices is not None else 0,
        round(shot.routed_per_second, 1),
        tuple(
            PartitionState(
                one.partition,
                node,
                one.state,
                one.reason[:FAULT],
                one.position,
                one.behind_ms,
                one.held_frames,
                one.routed,
                one.copies,
                one.dead,
                one.dropped,
            )
            for one in shot.partitions
        ),
        tuple(dict.fromkeys(text[:FAULT] for text in faults if text)),
    )

"""The ingest's snapshot: what people see of it, and rates."""

from __future__ import annotations

import msgspec
import pytest
from rich.console import Console

from cloud_ingest.fleet.node import node_state
from cloud_ingest.status import (
    AlarmSnapshot,
    CloudSnapshot,
    FramesSnapshot,
    GatewaySnapshot,
    PartitionSnapshot,
    PlainSnapshot,
    Rates,
    render,
)

NOW = 1_800_000_000_000
SHOT = CloudSnapshot(
    deployment="fleet",
    version="0.1.0",
    log="kafka",
    address="0.0.0.0:8883",
    started_ms=NOW - 90_000_000,
    now_ms=NOW,
    state="waiting",
    fault="no broker answers",
    connected=1,
    gateways=(GatewaySnapshot("depot-4", "10.0.0.9:1234", NOW - 61_000, "online", "0.1.0"),),
    frames=FramesSnapshot(journaled=1234, fault="no broker answers"),
    partitions=(PartitionSnapshot(2, "stopped", "the ledger is refused", 77, 5000, 3, 900, 1000, 2, 1, 0),),
    alarms=(AlarmSnapshot(NOW, "partition 2 is stopped"),),
)


def text(shot: CloudSnapshot) -> str:
    console = Console(width=160, force_terminal=False)
    with console.capture() as captured:
        console.print(render(shot))
    return captured.get()


def test_what_is_wrong_is_said_once() -> None:
    shown = text(SHOT)
    assert shown.count("no broker answers") == 1
    for part in (
        "waiting",
        "1 d 1 h",
        "depot-4",
        "1 min 1 s",
        "1,234",
        "stopped: the ledger is refused",
        "partition 2 is",
    ):
        assert part in shown


def test_it_passes_through_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(SHOT), type=CloudSnapshot) == SHOT
    assert "connected" in text(msgspec.structs.replace(SHOT, gateways=(), partitions=(), alarms=()))


def test_rates_are_over_the_last_samples() -> None:
    rates = Rates(samples=3)
    assert rates.per_second(0) == 0.0
    for second, count in enumerate((0, 100, 300, 500)):
        rates.sample(float(second), count, 7)
    assert rates.per_second(0) == pytest.approx(200.0)
    assert rates.per_second(1) == 0.0


def test_why_presence_waits_is_said_and_so_are_plain_topics() -> None:
    shot = msgspec.structs.replace(
        SHOT, presence="waybill.presence: Write is not allowed", plain=PlainSnapshot(1_234, 5, 6, 7, "no such user")
    )
    shown = text(shot)
    assert "presence waits: waybill.presence: Write is not allowed" in shown
    assert "1,234 messages journaled, 5 waiting, 7 too large; 6 without a gateway's name; no such user" in shown
    assert "presence waits" not in text(msgspec.structs.replace(shot, presence=shot.fault))
    assert "plain" not in text(SHOT)


def test_a_node_tells_the_others_what_is_wrong_and_what_it_routes() -> None:
    told = node_state(
        "node:1", msgspec.structs.replace(SHOT, presence="not allowed", plain=PlainSnapshot(fault="gone"))
    )
    assert told.faults == (
        "no broker answers",
        "presence: not allowed",
        "gone",
        "partition 2 stopped: the ledger is refused",
    )
    (part,) = told.partitions
    assert (part.partition, part.node, part.behind_ms, part.held, part.position) == (2, "node:1", 5000, 3, 77)

"""Pictures of a fleet as the monitor gets them, the same at each call; and a source that gives them."""

from __future__ import annotations

import math

from waybill.errors import Unavailable
from waybill.fleet_state import (
    Broker,
    CommandRow,
    CommandsState,
    DeviceInfo,
    DiskInfo,
    FleetSnapshot,
    GatewayDetail,
    GatewayRow,
    Health,
    History,
    KafkaState,
    LaneInfo,
    LinkChange,
    LogLine,
    LogState,
    NodeState,
    PartitionState,
    PlanInfo,
    Talker,
    Talkers,
    TopicState,
    UplinkUse,
)
from waybill.monitor.sources import Kind, Picture

NOW = 1_795_262_405_000  # 2026-11-21 12:00:05 UTC
SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
HOSTILE = "\x1b]0;owned\x07[bold red]V9[/]\x1b[2J\u202e"
"""A name that would set a terminal's title, clear it, turn text round, and be markup."""


def row(number: int) -> GatewayRow:
    """Return a gateway's row; one of ten is not well."""
    name = f"depot-{number:04}"
    well = GatewayRow(
        name,
        "online",
        NOW - (number % 50 + 1) * HOUR,
        uplink="lte",
        node=f"node-{number % 3 + 1}",
        address=f"10.1.{number // 250}.{number % 250}:41000",
        version="0.1.0",
        partition=number % 12,
        reported_ms=NOW - (number % 280 + 3) * SECOND,
        backlog=0,
        backlog_bytes=0,
        holds_s=6.5 * DAY / 1000 + number,
        drained_s=0.0,
        bytes_per_min=52_000.0 + 37 * number,
        rate_in=48.0,
        rate_out=48.0,
        dropped=0,
        devices=24 + number % 9,
        certificate_ms=NOW + (30 + number % 300) * DAY,
        plan_used=0.31,
    )
    if number % 10 or not number:
        return well
    backlog = {"backlog": 1840 * number, "backlog_bytes": 402_000 * number, "oldest_ms": NOW - 47 * MINUTE}
    kinds: tuple[dict[str, object], ...] = (
        {"state": "offline", "since_ms": NOW - 47 * MINUTE, "reason": "no answer within 1.5 keep-alives", **backlog},
        {"certificate_ms": NOW + 6 * DAY, "trouble": "its certificate ends in 6 days"},
        {"dropped": 1_204, "trouble": "lane telemetry is full", **backlog},
        {"state": "unknown", "since_ms": 0, "reported_ms": 0, "backlog": None, "backlog_bytes": None, "version": "",
         "holds_s": None, "bytes_per_min": None, "dropped": None, "devices": None, "certificate_ms": 0, "node": "",
         "uplink": "", "plan_used": None, "partition": None},
    )  # fmt: skip
    fields = {name: getattr(well, name) for name in well.__struct_fields__} | kinds[number // 10 % 4]
    return GatewayRow(**fields)


def fleet(count: int = 240, at_ms: int = NOW) -> FleetSnapshot:
    """Return a fleet of ``count`` gateways."""
    rows = tuple(row(number) for number in range(1, count + 1))
    states = [each.state for each in rows]
    return FleetSnapshot(
        at_ms,
        "prod",
        "node-1",
        "1-1",
        True,
        rows,
        total=count,
        online=states.count("online"),
        offline=states.count("offline"),
        lag_ms=(0, 350, 0, 0, 75_000, 0, 0, 0, 0, 0, 0, None),
    )


def gateway(device: str = "V3") -> GatewayDetail:
    """Return all that is known of a gateway that lost its link twice today."""
    links = (
        LinkChange(NOW - 26 * HOUR, "online", "lte"),
        LinkChange(NOW - 9 * HOUR, "offline", reason="the interface wwan0 is gone"),
        LinkChange(NOW - 8 * HOUR - 20 * MINUTE, "connecting", "lte"),
        LinkChange(NOW - 8 * HOUR - 19 * MINUTE, "online", "lte"),
        LinkChange(NOW - 61 * MINUTE, "offline", reason="connection reset by peer"),
        LinkChange(NOW - 47 * MINUTE, "online", "satellite"),
    )
    points = range(60)
    latency = tuple(None if 30 < at < 38 else 62 + 30 * math.sin(at / 5) ** 2 for at in points)
    history = History(
        60,
        NOW - 5 * SECOND,
        tuple(48 + 20 * math.sin(at / 7) for at in points),
        tuple(0.0 if 30 < at < 38 else 52 + 25 * math.sin(at / 9) for at in points),
        tuple(0.0 if 30 < at < 38 else 54_000 + 26_000 * math.sin(at / 9) for at in points),
        latency,
    )
    topics = tuple(Talker(f"vehicles/V{at}/telemetry", 91_000 // at, 18_000_000 // at) for at in range(1, 7))
    loud = Talker("vehicles/V17/camera/thumbnail", 240, 31_400_000, 0, 12_000)
    devices = tuple(Talker(f"V{at}", 95_000 // at, 19_000_000 // at) for at in range(1, 6))
    talkers = Talkers(
        NOW - 26 * HOUR,
        412_000,
        121_000_000,
        14_200_000,
        (loud, *topics),
        (*topics, loud),
        (Talker("V17", 9_400, 33_200_000), *devices),
        (*devices, Talker("V17", 9_400, 33_200_000)),
    )
    health = Health(
        NOW - 2 * SECOND,
        "0.1.0",
        NOW - 26 * HOUR,
        4711,
        links=links,
        uplinks=(
            UplinkUse("lte", "offline", False, 8_100_000, 402_000, "wwan0: no carrier", NOW + 89 * DAY),
            UplinkUse("satellite", "online", True, 1_240_000, 88_000, "", NOW + 89 * DAY),
        ),
        lanes=(
            LaneInfo("control"),
            LaneInfo("alarm", 3, 912, NOW - 4 * SECOND),
            LaneInfo("telemetry", 18_420, 4_020_000, NOW - 47 * MINUTE, cap=64 << 20),
            LaneInfo("camera", 611, 80_100_000, NOW - 5 * HOUR, ("plan",), 96 << 20, 240, 12, 0, full=True),
        ),
        holds_s=6.2 * 86_400,
        drained_s=190.0,
        rate_in=51.2,
        rate_out=77.0,
        bytes_per_min=61_000.0,
        connected=31,
        devices=tuple(
            DeviceInfo(device if at == 3 else f"V{at}", NOW - at * 17 * MINUTE, f"192.168.4.{at}:5{at:04}")
            for at in range(1, 13)
        ),
        history=history,
        talkers=talkers,
        disk=DiskInfo(11 << 30, 29 << 30, 88 << 20, 410e6),
        plan=PlanInfo(500_000_000, 312_000_000, 471_000_000, NOW + 10 * DAY, 1, held=("camera",)),
        full="the lane camera is at its cap",
    )
    shown = GatewayRow(
        "depot-0010",
        "online",
        NOW - 47 * MINUTE,
        uplink="satellite",
        node="node-2",
        address="10.1.0.10:41000",
        version="0.1.0",
        partition=4,
        reported_ms=NOW - 2 * SECOND,
        backlog=19_034,
        backlog_bytes=84_120_912,
        oldest_ms=NOW - 5 * HOUR,
        certificate_ms=NOW + 89 * DAY,
        trouble="the lane camera is at its cap",
    )
    return GatewayDetail(NOW, shown, health)


def commands() -> CommandsState:
    """Return a few commands in each state."""
    states = ("done", "delivered", "open", "expired", "done", "rejected")
    answers = {
        "done": ("", '{"locked":true}'),
        "expired": ("nobody was there in time", ""),
        "rejected": ("no device", ""),
    }
    rows = []
    for at in range(18):
        state = states[at % 6]
        reason, result = answers.get(state, ("", ""))
        rows.append(
            CommandRow(
                f"c-{9000 - at}",
                f"depot-{at * 7 % 40:04}",
                f"V{at}",
                ("lock", "unlock", "report", "update-map")[at % 4],
                state,  # type: ignore[arg-type] # one of those above
                NOW - (at * 3 + 1) * MINUTE,
                NOW - (at * 3 + 1) * MINUTE + 10 * MINUTE,
                NOW - (at * 3 + 1) * MINUTE + (0 if state == "open" else 2 * SECOND),
                reason,
                result,
            )
        )
    return CommandsState(NOW, tuple(rows))


def kafka() -> KafkaState:
    """Return a cluster that lost a broker, and a dead letter or two."""
    parts = tuple(
        PartitionState(at, f"node-{at % 3 + 1}", "ready", "", 90_000 + at, 0 if at != 4 else 75_000, 0, 400_000, 12)
        for at in range(11)
    )
    return KafkaState(
        NOW,
        "kafka",
        (Broker(1, "kafka-1:9092", True), Broker(2, "kafka-2:9092")),
        (
            NodeState("node-1", "0.1.0", "10.0.0.1:8883", NOW - 3 * DAY, 84, 0, 4100.0, parts[:4], (), NOW - SECOND),
            NodeState("node-2", "0.1.0", "10.0.0.2:8883", NOW - 3 * DAY, 81, 0, 3900.0, parts[4:8],
                      ("partition 4 waits for its predecessor",), NOW - 2 * SECOND),
            NodeState("node-3", "0.1.0", "10.0.0.3:8883", NOW - 3 * DAY, 75, 0, 3800.0, parts[8:11], (), NOW - SECOND),
        ),
        (*parts, PartitionState(11, reason="no node owns it")),
        (
            TopicState("waybill.frames", "frames", 12, 3, 12, 0, 1_204_000, 4_120),
            TopicState("waybill.ledger", "table", 12, 3, 12, 0, 3_600),
            TopicState("waybill.presence", "table", 12, 3, 12, 0, 640),
            TopicState("waybill.health", "table", 12, 3, 12, 0, 240),
            TopicState("waybill.commands", "commands", 12, 3, 12, 0, 812),
            TopicState("waybill.command-status", "commands", 12, 3, 12, 0, 1_640),
            TopicState("fleet.telemetry", "route", 24, 3, 8, 0, 48_120_000),
            TopicState("fleet.alarms", "route", 6, 3, 2, 1, 9_120),
            TopicState("fleet.telemetry.dlq", "dead letters", 1, 3, 0, 0, 17),
            TopicState("waybill.dlq", "dead letters", 1, 3, 0, 0, 0),
        ),
    )  # fmt: skip


def log() -> LogState:
    """Return what happened in the last minutes."""
    told = (
        ("info", "node-1", "the log is connected"),
        ("info", "depot-0007", "online at node-2, from 10.1.0.7:41000"),
        ("warning", "depot-0010", "offline: connection reset by peer"),
        ("info", "depot-0010", "online at node-2, from 10.1.0.10:41022"),
        ("error", "node-2", "partition 4 waits: kafka-3:9092 is away"),
        ("warning", "depot-0040", "offline: no answer within 1.5 keep-alives"),
    )
    lines = tuple(
        LogLine(at + 1, NOW - (60 - at) * 41 * SECOND, told[at % 6][0], told[at % 6][1], told[at % 6][2])  # type: ignore[arg-type]
        for at in range(60)
    )
    return LogState(NOW, lines, "60")


class Still:
    """A source of pictures that stand still; ``pictures`` can be changed, an error in it is raised."""

    name = "http://cloud.example:8080"
    notice = ""

    def __init__(self, **pictures: Picture | Unavailable) -> None:
        """``pictures``: by their kind; else all of those here."""
        self.pictures: dict[str, Picture | Unavailable] = dict(
            pictures or {"fleet": fleet(), "gateway": gateway(), "commands": commands(), "kafka": kafka(), "log": log()}
        )
        self.kinds: tuple[Kind, ...] = (
            ("fleet", "gateway", "commands", "kafka", "log") if "fleet" in self.pictures else ("gateway", "log")
        )
        self.asked: list[tuple[str, str]] = []

    async def ask(self, kind: Kind, gateway: str = "") -> Picture:
        """Give the picture."""
        self.asked.append((kind, gateway))
        found = self.pictures[kind]
        if isinstance(found, Unavailable):
            raise found
        return found

    async def close(self) -> None:
        """Do nothing."""

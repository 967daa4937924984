"""The snapshot, its rates, and how it is drawn."""

from __future__ import annotations

import io
from typing import Literal

import msgspec
import pytest
from rich.console import Console

from edge_agent.flash import FlashState
from edge_agent.plan.plan import PlanState
from edge_agent.status import (
    SPAN,
    EdgeStatus,
    LaneState,
    LinkState,
    ListenerState,
    Rate,
    SourceState,
    UplinkState,
    render,
)

NOW = 1_800_000_000_000
STATUS = EdgeStatus(
    gateway="plant-7",
    version="1.2.3",
    epoch=42,
    at_ms=NOW,
    started_ms=NOW - 60_000,
    listeners=(ListenerState("", "mqtt", "127.0.0.1:1883"), ListenerState("outside", "mqtts", "0.0.0.0:8883")),
    uplinks=(
        UplinkState("", "mqtts://ingest:8883", "offline", False, "ingest:8883 refuses the connection", 5 << 20, 2048),
    ),
    link=LinkState("offline", NOW - 3 * 3600_000, "ingest:8883 refuses the connection"),
    lanes=(LaneState("control", 0, 0, None), LaneState("telemetry", 12_345, 3 << 20, NOW - 95_000)),
    rate_in=1234.4,
    rate_out=0.0,
    in_flight=2048,
    credit=None,
    memory_ceiling=1 << 30,
    fault="disk full",
    error="",
    counters={"mqtt_connections": 7},
    alarm="buffer.db is gone",
    left=(("buffer.db", 4096),),
    flash=FlashState(3 << 30, 512.4, 7 << 20),
    sources=(
        SourceState(
            "plant", "mqtt://10.0.0.1", LinkState("offline", NOW - 7000, "no broker listens there"), 8000, 2, 3
        ),
    ),
    clock="no NTP client vouches for it",
)


def drawn(status: EdgeStatus, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(render(status))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_survives_the_socket() -> None:
    assert msgspec.json.decode(msgspec.json.encode(STATUS), type=EdgeStatus) == STATUS


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_person_sees_link_backlog_and_fault(width: int) -> None:
    text = drawn(STATUS, width)
    for piece in ("plant-7", "7 connected", "offline for 3 h", "refuses the connection", "disk full", "in 1,234/s",
                  "12,345", "3.0 MiB", "95 s", "2.0 KiB", "credit none yet", "buffer.db is gone", "4.0 KiB",
                  "3.0 GiB", "512 B a message", "7.0 MiB a day",
                  "plant   offline for 7 s", "8,000 messages", "no broker listens", "2 times",
                  "3 messages not taken", "no NTP client vouches",
                  "mqtts   0.0.0.0:8883   outside"):  # fmt: skip
        assert piece in text
    assert max(map(len, text.splitlines())) <= width


def test_what_a_lane_has_lost_and_its_cap_are_there_where_there_is_any() -> None:
    assert "dropped" not in drawn(STATUS)
    lane = LaneState("bulk", 7, 1 << 20, NOW, ("plan",), 2 << 20, dropped=1234, refused=56, full=True)
    text = drawn(msgspec.structs.replace(STATUS, lanes=(*STATUS.lanes, lane)))
    assert "no room" not in text
    text = drawn(msgspec.structs.replace(STATUS, lanes=(*STATUS.lanes, lane), full="no room on the disk"))
    for piece in ("no room on the disk", "bulk (full)", "cap", "2.0 MiB", "dropped", "1,234", "refused", "56", "plan"):
        assert piece in text
    assert "expired" not in text


def test_an_online_link_hides_the_last_error_and_no_link_says_so() -> None:
    online = msgspec.structs.replace(STATUS, link=LinkState("online", NOW, "old trouble"), fault="")
    assert "old trouble" not in drawn(online)
    assert "fault" not in drawn(online)
    off = msgspec.structs.replace(STATUS, uplinks=(), link=LinkState("off", NOW))
    assert "none configured" in drawn(off)


def test_several_uplinks_are_shown_with_what_each_has_cost_and_why_a_lane_waits() -> None:
    several = msgspec.structs.replace(
        STATUS,
        uplinks=(
            UplinkState("[[uplink]] 1", "wss://a by wlan0", "offline", False, "no way to a:443", 0, 0),
            UplinkState("lte", "mqtts://b", "online", True, "old trouble", 5 << 20, 2048),
        ),
        link=LinkState("online", NOW - 5000, "no way to a:443", "lte"),
        lanes=(LaneState("bulk", 7, 900, NOW, ("plan", "uplink")),),
    )
    text = drawn(several)
    for piece in ("online for 5 s on lte", "[[uplink]] 1   offline   wss://a by wlan0   0 B up", "no way to a:443",
                  "lte   online   mqtts://b   5.0 MiB up, 2.0 KiB down (metered)", "plan, uplink"):  # fmt: skip
        assert piece in text
    assert "old trouble" not in text


@pytest.mark.parametrize(
    ("link", "holds_s", "outage_s", "drained_s", "says"),
    [
        ("offline", 273_700.0, 273_700.0, None, "holds 3 d 4 h more"),
        ("offline", None, None, None, "does not fill"),
        ("online", None, 1_000_000.0, 0.0, "holds 11 d without the uplink   no backlog"),
        ("online", None, 86_400.0, 1500.0, "holds 1 d without the uplink   backlog gone in 25 min"),
        ("online", None, 86_400.0, 95.0, "holds 1 d without the uplink   backlog gone in 1 min 35 s"),
        ("online", 4000.0, 86_400.0, None, "holds 1 h 6 min more   backlog not gone at this rate"),
        ("online", None, None, 7.9, "does not fill   backlog gone in 7 s"),
    ],
)
def test_it_says_how_long_the_buffer_holds_and_when_its_backlog_is_gone(
    link: Literal["offline", "online"],
    holds_s: float | None,
    outage_s: float | None,
    drained_s: float | None,
    says: str,
) -> None:
    state = LinkState(link, NOW)
    status = msgspec.structs.replace(STATUS, link=state, holds_s=holds_s, outage_s=outage_s, drained_s=drained_s)
    lines = [line.strip() for line in drawn(status).splitlines()]
    assert f"buffer     {says}" in lines


@pytest.mark.parametrize(
    ("link", "outage_s", "drained_s", "says"),
    [
        ("offline", None, 0.0, "how long it holds is not known yet"),
        ("offline", 86_400.0, 0.0, "holds 1 d without the uplink"),
        ("offline", None, None, "how long it holds is not known yet"),
        ("online", None, 0.0, "how long it holds is not known yet   no backlog"),
        ("online", 86_400.0, None, "holds 1 d without the uplink   backlog gone when is not known yet"),
    ],
)
def test_what_is_not_known_yet_is_said_to_be_so(
    link: Literal["offline", "online"], outage_s: float | None, drained_s: float | None, says: str
) -> None:
    status = msgspec.structs.replace(
        STATUS, link=LinkState(link, NOW), outage_s=outage_s, drained_s=drained_s, outlook_known=False
    )
    assert f"buffer     {says}" in [line.strip() for line in drawn(status).splitlines()]


PLAN = PlanState(
    budget=500_000_000,
    used=123_400_000,
    sent=100_000_000,
    received=23_400_000,
    forecast=480_000_000,
    cycle_ms=20_758 * 86_400_000,
    ends_ms=20_788 * 86_400_000,
    since_ms=None,
    last_used=None,
    stage=0,
    used_up=False,
    held=(),
    idle=2_400_000,
)


def test_a_data_plan_is_shown_with_what_it_holds_back() -> None:
    assert "used" not in drawn(STATUS)
    text = drawn(msgspec.structs.replace(STATUS, plan=PLAN))
    assert "123.4 MB of 500.0 MB used (25%)   480.0 MB expected by its end" in text
    assert "cycle 2026-11-01 to 2026-12-01   idle 2.4 MB in 30 d" in text
    lanes = (*STATUS.lanes, LaneState("bulk", 5, 500, NOW, ("plan", "uplink")))
    waits = drawn(msgspec.structs.replace(STATUS, link=LinkState("online", NOW), lanes=lanes))
    assert "does not fill   no backlog but what is held" in waits
    held = msgspec.structs.replace(PLAN, stage=1, held=("bulk",), since_ms=PLAN.ends_ms, error="no disk")
    text = drawn(msgspec.structs.replace(STATUS, plan=held, lanes=lanes))
    for piece in ("not over metered uplinks: bulk", "counted since 2026-12-01", "no disk", "plan, uplink"):
        assert piece in text
    over = msgspec.structs.replace(PLAN, used_up=True, used=510_000_000, cycle_ms=None, ends_ms=None, forecast=None)
    text = drawn(msgspec.structs.replace(STATUS, plan=over))
    for piece in ("(102%)", "only control goes", "the cycle is not known while the clock is not set"):
        assert piece in text


def test_a_rate_is_the_mean_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.value == 0
    rate.sample(0.0, 100)
    assert rate.value == 0
    rate.sample(1.0, 150)
    assert rate.value == 50
    for second in range(2, 20):
        rate.sample(float(second), 150 + 10 * (second - 1))
    assert rate.value == 10
    assert rate._samples.maxlen == SPAN + 1

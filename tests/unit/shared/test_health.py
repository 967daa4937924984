"""The health record: small, bounded, and the same on both ends; times survive a wrong clock."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waybill.errors import Corrupt
from waybill.fleet_state import (
    DiskInfo,
    GatewayRow,
    Health,
    History,
    LaneInfo,
    LinkChange,
    PlanInfo,
    Talker,
    Talkers,
    UplinkUse,
)
from waybill.frames import encode_plain
from waybill.health import MAX_BYTES, POINTS, pack, unpack
from waybill.health_row import row_of
from waybill.wire import HEALTH_TOPIC

NOW = 1_795_255_200_000
HOUR = 3_600_000


def talkers(kind: str) -> tuple[Talker, ...]:
    return tuple(Talker(f"vehicles/V{n}/{kind}", 9_000 - n, 900_000 - 1_234 * n) for n in range(4))


TYPICAL = Health(
    at_ms=NOW,
    version="0.1.0",
    started_ms=NOW - 72 * HOUR,
    epoch=2**62 + 12_345,
    links=tuple(
        LinkChange(NOW - n * HOUR, "offline", "", "connection reset by peer")
        if n % 2
        else LinkChange(NOW - n * HOUR, "online", "lte")
        for n in range(6, 0, -1)
    ),
    uplinks=(
        UplinkUse("wifi", "offline", False, 12_345_678, 2_345_678, "no route to host", NOW + 4_000 * HOUR),
        UplinkUse("lte", "online", True, 912_345_678, 82_345_678, "", NOW + 4_000 * HOUR),
    ),
    lanes=(LaneInfo("control"), LaneInfo("telemetry", 123_456, 8_123_456, NOW - HOUR), LaneInfo("alarms", 2, 300, NOW)),
    holds_s=86_400 * 4,
    drained_s=12,
    rate_in=122.5,
    rate_out=120.25,
    bytes_per_min=65_432,
    connected=40,
    history=History(
        60,
        NOW - 20_000,
        tuple(120 + n / 2 for n in range(POINTS)),
        tuple(119 + n / 2 for n in range(POINTS)),
        tuple(65_000.0 + 137 * n for n in range(POINTS)),
        tuple(None if n == 3 else 85.0 + n for n in range(POINTS)),
    ),
    talkers=Talkers(NOW - 2 * HOUR, 9_000, 900_000, 300_000, *(talkers(kind) for kind in ("gps", "gps", "can", "can"))),
    disk=DiskInfo(12_345_678_901, 31_000_000_000, 8_123_456, 3_500_000),
    plan=PlanInfo(500_000_000, 123_456_789, 400_000_000, NOW + 200 * HOUR, 1),
    alarm="the buffer was cut off",
)


def frame_of(record: bytes) -> bytes:
    return encode_plain(
        epoch=2**62,
        prev_epoch=0,
        prev_last=0,
        oldest_epoch=2**62,
        lane="control",
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=12,
        base_ms=NOW,
        sources=[(HEALTH_TOPIC, "")],
        rows=[(0, 0, 1, record, b"")],
    )


def test_what_is_packed_is_unpacked() -> None:
    assert unpack(pack(TYPICAL)) == TYPICAL


def test_a_typical_record_costs_what_the_documentation_says() -> None:
    assert len(frame_of(pack(TYPICAL))) <= 600


@given(st.integers(0, 2**32))
def test_however_much_there_is_to_say_a_receiver_takes_it(seed: int) -> None:
    rng = random.Random(seed)

    def text() -> str:
        return rng.choice("ä€😀x") * rng.choice((0, 3, 70, 500))

    big = 2**53
    full = Health(
        at_ms=rng.randrange(-big, big),
        version=text(),
        started_ms=0,
        epoch=2**63 - 1,
        clock=text(),
        links=tuple(LinkChange(rng.randrange(big), "online", text(), text()) for _ in range(60)),
        uplinks=tuple(UplinkUse(text(), "online", True, big, big, text(), big) for _ in range(20)),
        lanes=tuple(LaneInfo("x" * 64, big, big, 5, (text(),) * 9, big, big, big, big, True) for _ in range(40)),
        holds_s=1e9,
        rate_in=1e6,
        connected=10**6,
        history=History(5, 7, (1e6,) * 120, (1e6,) * 120, (1e9,) * 120, (1e6,) * 120),
        talkers=Talkers(0, big, big, big, *((tuple(Talker(text() + str(n), big, big) for n in range(64))),) * 4),
        fault=text(),
        error=text(),
        alarm=text(),
        full=text(),
    )
    data = pack(full)
    assert len(data) <= MAX_BYTES
    unpack(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x90",
        b"\xc1",
        pack(TYPICAL)[:-1],
        b"\x91" * 5_000,
        msgspec.msgpack.encode({"at_ms": 1}),
        bytes(MAX_BYTES),
    ],
)
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt, match="health"):
        unpack(data)


def test_fields_added_later_are_ignored() -> None:
    assert unpack(msgspec.msgpack.encode([*msgspec.msgpack.decode(pack(TYPICAL)), "later", {}])) == TYPICAL


def test_a_row_has_the_readers_times_whatever_the_gateways_clock_says() -> None:
    wrong = msgspec.structs.replace(
        TYPICAL, at_ms=TYPICAL.at_ms - 40_000 * HOUR, clock="wrong", lanes=(LaneInfo("a", 5, 7, NOW - 40_001 * HOUR),)
    )
    row = row_of(GatewayRow("gw", "offline", 5, reason="gone"), wrong, NOW)
    assert (row.state, row.since_ms, row.reason) == ("offline", 5, "gone")
    assert (row.reported_ms, row.oldest_ms, row.backlog, row.backlog_bytes) == (NOW, NOW - HOUR, 5, 7)
    assert (row.uplink, row.devices, row.version, row.plan_used) == ("lte", 40, "0.1.0", 0.247)
    assert row.trouble == "the buffer was cut off; clock: wrong"
    assert row.certificate_ms == NOW + 4_000 * HOUR

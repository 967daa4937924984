"""The audit: what is delivered, declared, pending, missing, from the ledger alone."""

import io
import json
from pathlib import Path

from rich.console import Console

from cloud_ingest import audit
from cloud_ingest.audit import LaneAudit, LostFrames
from cloud_ingest.config import Topics
from cloud_ingest.journal.embedded import EmbeddedLog
from cloud_ingest.journal.embedded_partition import EmbeddedPartition
from cloud_ingest.journal.port import Step
from cloud_ingest.router.entry import Key, Offsets
from cloud_ingest.router.intervals import Intervals
from tests.support.gateway import Bench, Epoch, control, receipt

ONE = Epoch(1, oldest=1)


def lanes(bench: Bench, gateway: str | None = None) -> dict[int, LaneAudit]:
    return {lane.epoch: lane for lane in audit.report(bench.ledger, gateway).lanes if lane.lane != "control"}


def test_all_there_is_complete() -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 5), control(9, 1, receipt(ONE, 6, 8, "evicted")), ONE.frame(9, 9))
    (lane,) = lanes(bench).values()
    assert (lane.delivered, lane.dropped, lane.reasons, lane.dropped_bytes) == (6, 3, {"evicted": 3}, 30)
    assert (lane.last, lane.open, lane.pending, lane.missing) == (9, True, 0, ())
    assert audit.report(bench.ledger).complete


def test_a_reason_cannot_command_the_terminal() -> None:
    bench = Bench()
    bench.feed(control(9, 1, receipt(ONE, 1, 3, "\x1b[2Jgone")))
    assert lanes(bench)[1].reasons == {"\\x1b[2Jgone": 3}


def test_a_gap_given_up_is_missing_until_it_comes_or_is_declared() -> None:
    bench = Bench()
    bench.feed(ONE.frame(4, 6))
    bench.now += 60_000
    bench.step(at_end=True)
    assert lanes(bench)[1].missing == ((1, 3),)
    assert not audit.report(bench.ledger).complete
    bench.feed(ONE.frame(1, 1), control(9, 1, receipt(ONE, 2, 3)))
    assert audit.report(bench.ledger).complete


def test_what_the_gateway_still_holds_is_pending_and_missing_once_it_is_settled() -> None:
    bench = Bench()
    two = Epoch(2, prev=1, prev_last=7, oldest=1, order="arrival")
    bench.feed(Epoch(1, oldest=1, order="arrival").frame(1, 2), two.frame(1, 1))
    found = lanes(bench)[1]
    assert (found.last, found.open, found.pending, found.missing_count) == (7, False, 5, 0)
    bench.feed(Epoch(2, prev=1, prev_last=7, oldest=2, order="arrival").frame(2, 2))
    found = lanes(bench)[1]
    assert (found.pending, found.missing) == (0, ((3, 7),))


def test_what_is_journaled_and_not_routed_is_pending_and_never_missing() -> None:
    bench = Bench()
    two = Epoch(2, prev=1, prev_last=7, oldest=2, order="arrival")
    bench.feed(Epoch(1, oldest=1, order="arrival").frame(1, 2), two.frame(1, 1))
    telemetry = Key("gw", 1, "telemetry")
    journaled = {
        telemetry: Intervals([(2, 5)]),
        telemetry.at(2): Intervals([(2, 4)]),
        Key("new", 1, "x"): Intervals([(1, 9)]),
    }
    found = {(lane.gateway, lane.epoch): lane for lane in audit.report(bench.ledger, None, journaled).lanes}
    one = found["gw", 1]
    assert (one.last, one.pending, one.journaled, one.missing) == (7, 3, 3, ((6, 7),))
    assert (found["gw", 2].last, found["gw", 2].delivered, found["gw", 2].pending) == (4, 1, 3)
    assert (found["new", 1].last, found["new", 1].pending, found["new", 1].missing) == (9, 9, ())
    assert {lane.gateway for lane in audit.report(bench.ledger, "new", journaled).lanes} == {"new"}


def test_one_gateway_alone() -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 1), gateway="a")
    bench.feed(ONE.frame(1, 1), gateway="b")
    assert [lane.gateway for lane in audit.report(bench.ledger, "b").lanes] == ["b"]


def test_lost_frames_and_alarms_are_shown() -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 4), Epoch(2, prev=1, prev_last=3, oldest=2).frame(1, 1))
    bench.ledger[b"#3"] = Offsets(lost=Intervals([(1, 5)])).encode()
    found = audit.report(bench.ledger)
    assert found.lost == (LostFrames(3, 0, 4),)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(audit.as_table(found))
    text = console.export_text()
    assert "past-end" in text
    assert "frames 0 to 4 deleted before they were routed" in text


def test_as_json_names_every_gap() -> None:
    bench = Bench()
    bench.feed(ONE.frame(4, 6))
    bench.now += 60_000
    bench.step(at_end=True)
    found = json.loads(audit.as_json(audit.report(bench.ledger)))
    assert found["missing"] == 3
    assert found["lanes"][0]["missing"] == [[1, 3]]


async def test_it_reads_the_newest_entries_of_a_log(tmp_path: Path) -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 3))
    log = EmbeddedLog(tmp_path / "log.db", Topics(partitions=1))
    await log.start()
    try:
        partition = EmbeddedPartition(log, 0)
        await partition.load()
        await partition.commit(Step([], dict(bench.ledger), 1))
        bench.feed(ONE.frame(4, 5))
        await partition.commit(Step([], dict(bench.ledger), 2))
        found = await audit.audit(log, Topics(partitions=1))
    finally:
        await log.close()
    assert [lane.delivered for lane in found.lanes] == [5]


def test_however_large_the_numbers_are_the_gateway_is_named_in_80_columns() -> None:
    most = (1 << 62) - 1
    lane = LaneAudit("truck-0042", (1 << 64) - 1, "telemetry", most, True, most, most, 0, {}, 0, most, 0, most, (), ())
    small = LaneAudit("truck-0043", (1 << 64) - 1, "bulk", 7, False, 7, 0, 0, {}, 0, 0, 0, 0, (), ())
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(audit.as_table(audit.AuditReport((lane, small))))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    epoch = str((1 << 64) - 1)
    assert [line for line in lines if line.split()[:2] == ["truck-0042", epoch]]
    assert [line for line in lines if line.split() == ["truck-0043", "bulk", epoch, "7", "of", "7", "0", "0", "0"]]

"""The ledger: what it remembers, what it forgets, what it warns of (R4, B5, E2 to E5)."""

import msgspec
import pytest

from cloud_ingest import audit
from cloud_ingest.journal.port import JournalRecord
from cloud_ingest.router import entry as entries
from cloud_ingest.router.dictionaries import Dictionaries
from cloud_ingest.router.entry import KEPT_DECLARED, MAX_INTERVALS, Alarm, Entry, Key, Offsets
from cloud_ingest.router.intervals import Intervals
from cloud_ingest.router.ledger import Draft, Ledger
from tests.support.gateway import Bench, Epoch, control, expected, receipt, values
from waybill.errors import Corrupt, UnknownVersion
from waybill.frames.header import MAX_EPOCH

ONE = Epoch(1, oldest=1)
KEY = Key("gw", 1, "telemetry")


def entry(bench: Bench, epoch: int = 1, lane: str = "telemetry") -> Entry:
    return bench.state.ledger.entries[Key("gw", epoch, lane)]


def test_r4_copies_are_told_by_seq_however_they_are_cut() -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 4), ONE.frame(5, 8))
    assert values(bench.feed(ONE.frame(3, 6), ONE.frame(1, 10), ONE.frame(9, 10))) == expected(1, 9, 10)
    assert bench.state.counters.copies == 4 + 8 + 2
    assert bench.state.counters.routed == 10


def test_r4_copies_are_told_after_a_restart() -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 4))
    bench.restart()
    assert values(bench.feed(ONE.frame(1, 5))) == expected(1, 5, 5)


def test_r3_nothing_is_remembered_before_the_commit_returned() -> None:
    bench = Bench()
    assert bench.plan() is None
    bench.feed(ONE.frame(1, 2))
    before = bench.ledger.copy()
    bench.journal.append(JournalRecord(0, 1, bench.now, "gw", ONE.frame(3, 5)))
    bench.journal.append(JournalRecord(0, 2, bench.now, "gw", ONE.frame(8, 9)))
    refused = bench.plan()
    assert refused is not None
    assert values(refused.step.records) == expected(1, 3, 5)
    assert bench.ledger == before
    assert bench.state.held.frames == {}
    again = bench.plan()
    assert again is not None
    assert again.step == refused.step


def test_r4_at_most_4096_intervals_a_frame_that_adds_one_is_dead_lettered_whole_with_one_alarm() -> None:
    bench = Bench()
    lane = Epoch(1, oldest=1, order="arrival")
    ledger = Ledger()
    full = Entry(known=True, covered=Intervals([(n * 2, n * 2) for n in range(1, MAX_INTERVALS + 1)]))
    ledger.entries[KEY] = full
    bench.state.resume(ledger, Dictionaries(), 0, 0)
    beyond = MAX_INTERVALS * 2 + 10
    (letter,) = bench.feed(lane.frame(beyond, beyond + 2))
    assert letter.topic == "waybill.dlq"
    assert letter.value == lane.frame(beyond, beyond + 2)
    assert bench.notices == [f"more than {MAX_INTERVALS} intervals: frames that add one are dead-lettered"]
    bench.feed(lane.frame(beyond, beyond + 2))
    assert bench.notices == []
    assert entry(bench).intervals == MAX_INTERVALS
    # what closes a gap still passes
    assert values(bench.feed(lane.frame(3, 3))) == expected(1, 3, 3)


def test_b5_the_first_entry_wins_a_receipt_after_the_delivery_declares_nothing() -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 4), control(5, 1, receipt(ONE, 3, 6)))
    assert (entry(bench).delivered_count, entry(bench).dropped_count) == (4, 2)
    assert list(entry(bench).dropped) == [(5, 6)]


def test_b5_the_first_entry_wins_a_delivery_after_the_receipt_is_a_copy() -> None:
    bench = Bench()
    assert values(bench.feed(control(5, 1, receipt(ONE, 3, 6)), ONE.frame(1, 8))) == [
        *expected(1, 1, 2),
        *expected(1, 7, 8),
    ]
    assert entry(bench).reasons == {"evicted": 4}


def test_e5_receipts_of_more_bytes_than_an_entry_can_count_stop_nobody() -> None:
    bench = Bench()
    for seq in (1, 2, 3):
        bench.feed(control(5, seq, msgspec.structs.replace(receipt(ONE, seq, seq), bytes=MAX_EPOCH)))
    assert entry(bench).dropped_bytes == MAX_EPOCH
    assert entry(bench).dropped_count == 3
    assert values(bench.feed(ONE.frame(4, 5))) == expected(1, 4, 5)


def test_e5_a_receipt_is_a_frame_header_of_its_epoch() -> None:
    bench = Bench()
    bench.feed(control(5, 1, receipt(Epoch(2, prev=1, prev_last=7), 1, 3)))
    assert (entry(bench, 2).prev_epoch, entry(bench, 2).prev_last) == (1, 7)
    assert entry(bench, 1).end == 7


@pytest.mark.parametrize("prev_last", [4, 9])
def test_e3_two_successors_of_one_epoch_are_delivered_and_an_alarm(prev_last: int) -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 4), Epoch(2, prev=1, prev_last=4, oldest=2).frame(1, 2))
    assert bench.notices == []
    clone = Epoch(3, prev=1, prev_last=prev_last, oldest=3)
    assert values(bench.feed(clone.frame(1, 2))) == expected(3, 1, 2)
    assert bench.notices == ["epochs 2 and 3 both follow it: a cloned card or a restored backup"]
    assert entry(bench).alarms & Alarm.FORK
    bench.feed(clone.frame(3, 4))
    assert bench.notices == []


def test_e3_a_seq_past_the_declared_last_is_delivered_and_an_alarm() -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 4), Epoch(2, prev=1, prev_last=4).frame(1, 1))
    assert values(bench.feed(ONE.frame(5, 6))) == expected(1, 5, 6)
    assert bench.notices == ["seq 6 is past the epoch's declared last, 4"]


def test_e3_a_declared_last_before_what_is_there_already_is_an_alarm() -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 6))
    assert values(bench.feed(Epoch(2, prev=1, prev_last=4).frame(1, 1))) == expected(2, 1, 1)
    assert bench.notices == ["seq 6 is past the epoch's declared last, 4"]


def test_e3_where_the_lane_is_relaxed_it_is_a_note_once_and_no_alarm() -> None:
    bench = Bench()
    relaxed = Epoch(2, prev=1, prev_last=4, durability="relaxed")
    bench.feed(ONE.frame(1, 6), relaxed.frame(1, 1))
    assert bench.last is not None
    assert bench.notices == []
    assert [notice.text for notice in bench.last.notices] == ["seq 6 is past the epoch's declared last, 4"]
    assert not entry(bench).alarms & (Alarm.PAST_END | Alarm.FORK)


def forgotten(bench: Bench, log_start: int) -> set[int]:
    before = {key.epoch for key in bench.state.ledger.entries}
    bench.step(log_start=log_start)
    return before - {key.epoch for key in bench.state.ledger.entries}


def chain(bench: Bench, *, oldest: int) -> None:
    bench.feed(
        ONE.frame(1, 4),
        Epoch(2, prev=1, prev_last=4, oldest=1).frame(1, 4),
        Epoch(3, prev=2, prev_last=4, oldest=oldest).frame(1, 4),
    )


def test_e4_an_epoch_is_forgotten_when_it_is_settled_and_the_journal_is_past_its_last_frame() -> None:
    bench = Bench()
    chain(bench, oldest=3)
    assert forgotten(bench, 0) == set()
    assert forgotten(bench, 1) == {1}
    assert forgotten(bench, 10) == {2}
    assert set(bench.ledger) == {b"gw/3/telemetry"}


def test_e4_an_epoch_that_is_not_settled_is_never_forgotten_however_old() -> None:
    bench = Bench()
    chain(bench, oldest=1)
    assert forgotten(bench, 10**9) == set()


def test_e4_only_what_is_older_than_the_oldest_unsettled_epoch_is_forgotten() -> None:
    bench = Bench()
    chain(bench, oldest=2)
    assert forgotten(bench, 10**9) == {1}
    assert values(bench.feed(Epoch(2, prev=1, prev_last=4, oldest=2).frame(1, 4))) == []


def test_e4_a_clone_that_may_still_hold_an_epochs_messages_keeps_it() -> None:
    bench = Bench()
    chain(bench, oldest=3)
    bench.feed(Epoch(9, prev=2, prev_last=4, oldest=2).frame(1, 1))
    assert forgotten(bench, 10**9) == {1}
    assert values(bench.feed(Epoch(2, prev=1, prev_last=4, oldest=2).frame(1, 4))) == []
    bench.feed(Epoch(9, prev=2, prev_last=4, oldest=9).frame(2, 2))
    assert forgotten(bench, 10**9) == {2}


def test_e4_forgetting_survives_a_restart_and_a_forgotten_epoch_is_not_expected_again() -> None:
    bench = Bench()
    chain(bench, oldest=3)
    assert forgotten(bench, 10) == {1, 2}
    bench.restart()
    assert values(bench.feed(Epoch(3, prev=2, prev_last=4, oldest=3).frame(5, 6))) == expected(3, 5, 6)
    assert {key.epoch for key in bench.state.ledger.entries} == {3}


def test_e4_of_a_node_what_the_journal_is_past_is_forgotten_and_its_holes_are_no_loss() -> None:
    """It has no successor that could settle it, and a seq that it left out was acknowledged to nobody."""
    bench = Bench()
    node = Epoch(1, lane="devices.0", order="arrival")
    bench.feed(node.frame(1, 3), node.frame(7, 9), gateway="node:a")
    (lane,) = audit.report(bench.ledger).lanes
    assert (lane.delivered, lane.pending, lane.missing_count) == (6, 0, 0)
    assert forgotten(bench, 1) == set()
    assert forgotten(bench, 2) == {1}
    assert bench.ledger == {}
    assert values(bench.feed(node.frame(10, 11), gateway="node:a")) == expected(1, 10, 11)


def test_e4_an_undeclared_gap_is_not_forgotten() -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 3), Epoch(2, prev=1, prev_last=4, oldest=2).frame(1, 4))
    assert forgotten(bench, 10**9) == set()


def test_an_epoch_known_from_its_successor_alone_is_expected() -> None:
    bench = Bench()
    bench.feed(Epoch(2, prev=1, prev_last=4, oldest=1).frame(1, 4))
    assert entry(bench).end == 4
    assert not entry(bench).known


def test_a_cycle_of_epochs_ends() -> None:
    bench = Bench()
    bench.feed(Epoch(1, prev=2, prev_last=1, oldest=1).frame(1, 1), Epoch(2, prev=1, prev_last=1, oldest=2).frame(1, 1))
    bench.now += 60_000
    bench.step(at_end=True)
    assert sorted(values(bench.written)) == ["1:1", "2:1"]


def full_entry() -> Entry:
    made = Entry(7, 8, 9, 3, known=True, begins=True, last_offset=77, alarms=3)
    made.covered = Intervals([(1, 5), (9, 2**62)])
    made.add_dropped(2, 3, "evicted")
    made.add_dead(4, 4)
    made.dropped_bytes = 99
    return made


def test_what_is_stored_reads_back_the_same() -> None:
    made = full_entry()
    assert Entry.decode(made.encode()) == made
    assert Entry.decode(made.copy().encode()) == made
    key = Key("gw-1", 2**63 - 1, "lane/with slash ü")
    assert entries.decode_key(key.encode()) == key
    offsets = Offsets(Intervals([(1, 2)]), Intervals([(5, 5)]))
    assert Offsets.decode(offsets.encode()) == offsets


def test_a_copy_shares_nothing() -> None:
    made = full_entry()
    twin = made.copy()
    twin.covered.add(6, 6)
    twin.add_dropped(7, 7, "expired")
    twin.add_dead(8, 8)
    assert made == full_entry()


def test_an_entry_of_a_busy_lane_is_small() -> None:
    assert len(Entry(2**62, 10**6, known=True, last_offset=10**6, covered=Intervals([(1, 10**7)])).encode()) < 64


def test_declared_losses_are_counted_in_full_and_kept_one_by_one_only_so_many() -> None:
    made = Entry()
    for n in range(1, 2 * KEPT_DECLARED + 1):
        made.add_dead(2 * n, 2 * n)
        made.add_dropped(2 * n + 1, 2 * n + 1, f"reason {n}")
    assert made.dead_count == made.dropped_count == 2 * KEPT_DECLARED
    assert len(made.dead) == len(made.dropped) == KEPT_DECLARED
    assert made.reasons["other"] == 2 * KEPT_DECLARED - entries.MAX_REASONS


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        (b"gw/1/telemetry", b"\xc1", Corrupt),
        (b"gw/1/telemetry", b"\x91\x02", UnknownVersion),
        (b"gw/1/telemetry", b"\x92\x01\x01", Corrupt),
        (b"gw/x/telemetry", b"", Corrupt),
        (b"gw", b"", Corrupt),
        (b"#0", b"\x91\x02", UnknownVersion),
    ],
)
def test_a_ledger_that_cannot_be_read_is_an_error_that_says_so(key: bytes, value: bytes, error: type[Corrupt]) -> None:
    with pytest.raises(error, match="ledger"):
        Ledger.load({key: value}, 0)


def test_a_draft_that_is_not_adopted_leaves_no_trace() -> None:
    ledger = Ledger()
    draft = Draft(ledger)
    draft.deliver(KEY, 1, 5)
    draft.edit_offsets().lost.add(1, 2)
    assert ledger.entries == {}
    assert ledger.offsets == Offsets()

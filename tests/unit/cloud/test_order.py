"""R7: fifo lanes hold what came ahead, until the gap is filled, declared or given up. E2, E4: across epochs."""

from itertools import permutations

from cloud_ingest.journal.port import JournalRecord
from cloud_ingest.router.entry import Key
from cloud_ingest.router.state import Limits
from tests.support.gateway import BASE_MS, Bench, Epoch, control, expected, receipt, values

ONE = Epoch(1, oldest=1)


def test_r7_a_frame_that_came_ahead_waits_for_the_gap_to_be_filled() -> None:
    bench = Bench()
    assert values(bench.feed(ONE.frame(4, 6))) == []
    assert values(bench.feed(ONE.frame(1, 3))) == expected(1, 1, 6)


def test_r7_every_order_of_arrival_comes_out_in_order() -> None:
    for order in permutations([(1, 2), (3, 4), (5, 6), (7, 8)]):
        bench = Bench()
        for first, last in order:
            bench.feed(ONE.frame(first, last))
        assert values(bench.written) == expected(1, 1, 8), order


def test_r7_a_receipt_fills_the_gap() -> None:
    bench = Bench()
    bench.feed(ONE.frame(4, 6))
    assert values(bench.feed(control(1, 1, receipt(ONE, 1, 3)))) == expected(1, 4, 6)


def test_r7_the_committed_offset_never_passes_a_held_frame_and_a_restart_reads_it_again() -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 2), ONE.frame(5, 6), Epoch(9, oldest=9, lane="other").frame(1, 3))
    assert bench.state.committed == 1
    assert values(bench.written) == expected(1, 1, 2) + expected(9, 1, 3)
    bench.restart()
    assert bench.step() == []
    assert values(bench.feed(ONE.frame(3, 4))) == expected(1, 3, 6)
    assert bench.state.committed == 4


def test_r7_lanes_and_gateways_do_not_wait_for_each_other() -> None:
    bench = Bench()
    bench.feed(ONE.frame(2, 3))
    assert values(bench.feed(ONE.frame(1, 1), gateway="another")) == expected(1, 1, 1)


def test_r7_only_fifo_lanes_hold() -> None:
    for order in ("fresh-first", "arrival"):
        bench = Bench()
        assert values(bench.feed(Epoch(1, oldest=1, order=order).frame(4, 6))) == expected(1, 4, 6)


def test_r7_a_gap_is_given_up_when_a_record_stamped_past_the_bound_was_read() -> None:
    bench = Bench()
    bench.feed(ONE.frame(4, 6))
    bench.now += 29_999
    assert values(bench.feed(ONE.frame(7, 7))) == []
    bench.now += 1
    assert values(bench.feed(Epoch(1, lane="x", oldest=1).frame(1, 1), gateway="another")) == [
        *expected(1, 1, 1),
        *expected(1, 4, 7),
    ]
    assert bench.state.counters.given_up == 3


def test_r7_a_gap_is_given_up_at_the_end_of_the_partition_by_the_clock_and_not_before_the_end() -> None:
    bench = Bench()
    bench.feed(ONE.frame(4, 6))
    bench.now += 30_000
    assert bench.step(at_end=False) == []
    assert values(bench.step(at_end=True)) == expected(1, 4, 6)


def test_r7_no_gap_is_given_up_before_it_is_known_that_nothing_is_elsewhere() -> None:
    bench = Bench()
    bench.state.cleared = 0
    bench.feed(ONE.frame(4, 6), Epoch(1, lane="x", oldest=1).frame(2, 2))
    bench.now += 60_000
    assert bench.step(at_end=True) == []
    bench.state.cleared = 1
    assert values(bench.step(at_end=True)) == expected(1, 4, 6)
    assert (bench.state.counters.given_up, bench.state.committed) == (3, 1)
    bench.state.cleared = 2
    assert values(bench.step(at_end=True)) == expected(1, 2, 2)


def test_r7_a_new_epoch_waits_for_what_is_settled_where_that_may_be_elsewhere_in_the_journal() -> None:
    bench = Bench()
    bench.state.cleared = 0
    two, three = Epoch(2, prev=1, prev_last=4, oldest=2), Epoch(3, prev=2, prev_last=2, oldest=3)
    bench.feed(ONE.frame(1, 2))
    assert values(bench.feed(three.frame(1, 1), two.frame(1, 2))) == []
    assert values(bench.feed(ONE.frame(3, 4))) == [*expected(1, 3, 4), *expected(2, 1, 2), *expected(3, 1, 1)]
    bench.feed(three.frame(2, 2))
    assert [bench.state.ledger.entries[Key("gw", epoch, "telemetry")].begins for epoch in (2, 3)] == [True, True]
    unknown = Epoch(5, prev=4, prev_last=4, oldest=5)
    assert bench.feed(unknown.frame(1, 1)) == []
    bench.now += 60_000
    assert bench.step(at_end=True) == []
    bench.state.cleared = bench.state.position
    assert values(bench.step(at_end=True)) == expected(5, 1, 1)
    bench.feed(unknown.frame(2, 2))
    assert bench.state.ledger.entries[Key("gw", 5, "telemetry")].begins


def test_r7_the_bound_is_the_journals_time_not_the_devices() -> None:
    """A backlog of days, read at once, waits for nobody but has its own order."""
    bench = Bench()
    bench.now = BASE_MS + 10**9
    bench.feed(ONE.frame(4, 6))
    bench.now += 20_000
    assert values(bench.step(at_end=True)) == []
    assert values(bench.feed(ONE.frame(1, 3))) == expected(1, 1, 6)


def test_r7_a_gap_given_up_never_holds_again_not_even_after_a_restart() -> None:
    bench = Bench()
    bench.feed(ONE.frame(4, 6))
    bench.now += 30_000
    bench.step(at_end=True)
    bench.restart()
    assert values(bench.feed(ONE.frame(7, 9))) == expected(1, 7, 9)
    # what comes late after all is delivered, once
    assert values(bench.feed(ONE.frame(1, 3), ONE.frame(2, 4))) == expected(1, 1, 3)


def test_r7_too_much_memory_gives_up_the_oldest() -> None:
    frame = ONE.frame(4, 6)
    bench = Bench(limits=Limits(hold_bytes=2 * (len(frame) + 1024)))
    bench.feed(frame, gateway="a")
    bench.feed(frame, gateway="b")
    assert bench.written == []
    assert values(bench.feed(frame, gateway="c")) == expected(1, 4, 6)
    assert {r.record.gateway for r in bench.state.held.frames.values()} == {"b", "c"}


def test_e2_a_new_epoch_waits_for_the_one_before_up_to_its_last_seq() -> None:
    bench = Bench()
    two = Epoch(2, prev=1, prev_last=4, oldest=1)
    bench.feed(ONE.frame(1, 2))
    assert values(bench.feed(two.frame(1, 2))) == []
    assert values(bench.feed(ONE.frame(3, 4))) == [*expected(1, 3, 4), *expected(2, 1, 2)]


def test_e2_a_chain_of_epochs_arriving_backwards_comes_out_in_order() -> None:
    bench = Bench()
    two, three = Epoch(2, prev=1, prev_last=2, oldest=1), Epoch(3, prev=2, prev_last=2, oldest=1)
    for frame in (three.frame(1, 2), two.frame(1, 2)):
        assert values(bench.feed(frame)) == []
    assert values(bench.feed(ONE.frame(1, 2))) == [*expected(1, 1, 2), *expected(2, 1, 2), *expected(3, 1, 2)]


def test_e4_a_new_epoch_does_not_wait_for_what_is_settled() -> None:
    bench = Bench()
    assert values(bench.feed(Epoch(2, prev=1, prev_last=4, oldest=2).frame(1, 2))) == expected(2, 1, 2)


def test_e4_what_is_settled_lets_held_frames_go_first() -> None:
    """The receipt of 1:1-2 is still on its way, yet the gateway says that all of epoch 1 is settled."""
    bench = Bench()
    bench.feed(ONE.frame(3, 4))
    records = bench.feed(Epoch(2, prev=1, prev_last=4, oldest=2).frame(1, 2))
    assert values(records) == [*expected(1, 3, 4), *expected(2, 1, 2)]


def test_r7_giving_up_a_new_epochs_frame_lets_the_frames_of_the_epoch_before_go_first() -> None:
    bench = Bench()
    bench.feed(Epoch(2, prev=1, prev_last=4, oldest=1).frame(1, 2))
    bench.now += 10_000
    bench.feed(ONE.frame(3, 4))
    bench.now += 20_000
    assert values(bench.step(at_end=True)) == [*expected(1, 3, 4), *expected(2, 1, 2)]
    assert (
        bench.state.counters.given_up == 4
    )  # at that moment: 1 to 4 of epoch 1, of which 3 and 4 came out of what was held


def test_e4_what_is_let_go_first_stays_first_where_the_step_is_full() -> None:
    bench = Bench(limits=Limits(step_messages=1))
    bench.feed(ONE.frame(3, 3), ONE.frame(4, 4))
    bench.journal.append(JournalRecord(0, 2, bench.now, "gw", Epoch(2, prev=1, prev_last=4, oldest=2).frame(1, 2)))
    assert values(bench.step()) == [*expected(1, 3, 4), *expected(2, 1, 2)]

"""R10: dictionaries are held back by nothing, an unknown one waits like a gap, and none harms anybody else."""

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_ingest.audit import report
from cloud_ingest.journal.port import JournalRecord
from cloud_ingest.router import dictionaries
from cloud_ingest.router.dictionaries import KEPT, Dictionaries, DictionariesDraft
from cloud_ingest.router.entry import Key
from cloud_ingest.router.state import Limits
from tests.support.gateway import Bench, Epoch, control, expected, header, receipt, trained, values
from waybill.errors import Corrupt, UnknownVersion
from waybill.frames import Dictionary, Order, read_header
from waybill.frames.header import body_of, pack_header
from waybill.wire import DICTIONARY_TOPIC

ONE = Epoch(1, oldest=1)
KNOWN, OTHER = trained(), trained(1)


def brings(*found: Dictionary | bytes, first: int = 1) -> bytes:
    contents = [each.content if isinstance(each, Dictionary) else each for each in found]
    return control(9, first, *[(DICTIONARY_TOPIC, content) for content in contents])


def test_r10_a_frame_is_read_with_the_dictionary_that_its_gateway_sent_before() -> None:
    bench = Bench()
    frame = ONE.frame(1, 3, dictionary=KNOWN)
    assert read_header(frame).dictionary == KNOWN.id
    bench.feed(brings(KNOWN))
    assert values(bench.feed(frame)) == expected(1, 1, 3)
    assert bench.state.counters.dictionaries == 1
    assert bench.state.ledger.entries[Key("gw", 9, "control")].delivered_count == 1


def test_r10_a_dictionary_is_in_the_step_that_read_it_and_outlives_a_restart() -> None:
    bench = Bench()
    bench.feed(brings(KNOWN))
    assert bench.last is not None
    assert list(bench.last.step.dictionaries) == [b"gw/%d" % KNOWN.id]
    bench.restart()
    assert values(bench.feed(ONE.frame(1, 1, dictionary=KNOWN))) == expected(1, 1, 1)


def test_r3_r10_what_was_planned_and_not_committed_is_not_known() -> None:
    bench = Bench()
    bench.journal.append(JournalRecord(0, 0, bench.now, "gw", brings(KNOWN)))
    assert bench.plan() is not None
    made = bench.plan()
    assert made is not None
    assert not bench.state.dictionaries.entries
    bench.commit(made)
    assert list(bench.state.dictionaries.entries) == ["gw"]


def test_r10_a_dictionary_serves_its_own_gateway_alone() -> None:
    bench = Bench()
    bench.feed(brings(KNOWN), gateway="another")
    assert bench.feed(ONE.frame(1, 1, dictionary=KNOWN)) == []
    assert values(bench.feed(ONE.frame(1, 1, dictionary=KNOWN), gateway="another")) == expected(1, 1, 1)


def test_r10_a_dictionary_is_not_held_back_by_what_its_lane_waits_for() -> None:
    bench = Bench()
    bench.feed(brings(KNOWN, first=7))  # ahead of 1 to 6
    assert len(bench.state.held.frames) == 1
    assert values(bench.feed(ONE.frame(1, 2, dictionary=KNOWN))) == expected(1, 1, 2)
    bench.restart()
    assert values(bench.feed(ONE.frame(3, 3, dictionary=KNOWN))) == expected(1, 3, 3)


def test_r10_an_unknown_dictionary_waits_like_a_gap_and_its_lane_with_it() -> None:
    bench = Bench()
    assert bench.feed(ONE.frame(1, 2, dictionary=KNOWN), ONE.frame(3, 4)) == []
    assert bench.state.committed == 0
    bench.restart()
    assert bench.step() == []
    assert values(bench.feed(ONE.frame(1, 1), gateway="another")) == expected(1, 1, 1)
    assert values(bench.feed(brings(KNOWN))) == expected(1, 1, 4)
    assert bench.state.committed == 4
    assert bench.state.held.frames == {}


@pytest.mark.parametrize("order", ["fifo", "fresh-first", "arrival"])
def test_r10_an_unknown_dictionary_becomes_a_dead_letter_after_the_bound_and_the_rest_goes_on(order: Order) -> None:
    bench = Bench()
    epoch = Epoch(1, oldest=1, order=order)
    unknown = epoch.frame(1, 2, dictionary=KNOWN)
    bench.feed(unknown)
    bench.feed(epoch.frame(3, 4))
    bench.now += 29_999
    assert bench.step(at_end=True) == []
    bench.now += 1
    letter, *rest = bench.step(at_end=True)
    assert (letter.topic, letter.value) == ("waybill.dlq", unknown)
    assert header(letter, "waybill_error") == f"frame: dictionary {KNOWN.id} is not known".encode()
    assert values(bench.written) == expected(1, 3, 4)
    assert len(rest) == (2 if order == "fifo" else 0)
    assert bench.state.counters.dead == 2
    assert bench.state.counters.given_up == 0
    assert report(bench.ledger).missing == 0
    assert bench.state.committed == 2
    assert values(bench.feed(epoch.frame(1, 2))) == [], "a dead letter is an entry like any other"


def test_r10_in_lanes_without_order_each_frame_waits_its_own_time() -> None:
    bench = Bench()
    epoch = Epoch(1, oldest=1, order="fresh-first")
    bench.feed(epoch.frame(9, 9, dictionary=KNOWN))
    bench.now += 20_000
    bench.feed(epoch.frame(5, 5, dictionary=KNOWN))
    bench.now += 10_000
    assert len(bench.step(at_end=True)) == 1
    assert bench.state.counters.given_up == 0
    assert values(bench.feed(brings(KNOWN))) == expected(1, 5, 5)


def test_r10_copies_wait_for_no_dictionary() -> None:
    bench = Bench()
    bench.feed(ONE.frame(1, 3))
    bench.feed(ONE.frame(2, 3, dictionary=KNOWN))
    assert bench.state.held.frames == {}
    assert bench.state.counters.copies == 2


def test_r10_held_frames_of_unknown_dictionaries_stay_within_their_memory() -> None:
    bench = Bench(limits=Limits(hold_bytes=20_000))
    for seq in range(1, 101):
        bench.feed(ONE.frame(seq, seq, dictionary=KNOWN))
        assert bench.state.held.size <= 20_000
    assert bench.state.counters.dead > 50


@pytest.mark.parametrize(
    "bad", [b"", b"x" * 100, KNOWN.content[:30], b"\x37\xa4\x30\xec" + bytes(400), bytes(1 << 20)], ids=len
)
def test_r10_what_is_no_dictionary_is_a_dead_letter_and_harms_nobody(bad: bytes) -> None:
    bench = Bench()
    (letter,) = bench.feed(brings(bad, KNOWN))
    assert (letter.topic, letter.value) == ("waybill.dlq", bad)
    assert b"dictionary" in header(letter, "waybill_error")
    assert values(bench.feed(ONE.frame(1, 1, dictionary=KNOWN))) == expected(1, 1, 1)
    (held,) = Bench().feed(brings(bad, first=3), brings(KNOWN, first=1), control(9, 2, receipt(ONE, 1, 1)))
    assert held.value == bad


def test_r10_of_a_gateway_the_newest_stay_and_a_repeated_one_is_the_newest() -> None:
    bench = Bench()
    made = [trained(seed) for seed in range(KEPT + 2)]
    for at, one in enumerate(made[:KEPT]):
        bench.feed(brings(one, first=at + 1))
    bench.feed(brings(made[0], first=KEPT + 1))
    bench.feed(brings(made[KEPT], made[KEPT], first=KEPT + 2))
    bench.feed(brings(made[0]), gateway="another")
    kept = {f"gw/{one.id}".encode() for one in [made[0], *made[2 : KEPT + 1]]}
    assert set(bench.dictionaries) == kept | {f"another/{made[0].id}".encode()}
    bench.restart()
    bench.feed(brings(made[KEPT + 1], first=KEPT + 4))
    assert set(bench.state.dictionaries.entries["gw"]) == {one.id for one in [made[0], *made[3:]]}


def test_r10_more_dictionaries_in_use_than_are_kept_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "READY", 2)
    bench = Bench()
    for turn in (1, 2):
        for number in range(5):
            one = trained(number)
            if turn == 1:
                bench.feed(brings(one), gateway=f"gw-{number}")
            frame = ONE.frame(turn, turn, dictionary=one)
            assert values(bench.feed(frame, gateway=f"gw-{number}")) == expected(1, turn, turn)
            assert len(bench.state.dictionaries.ready) <= 2


def test_r5_r10_a_dictionary_that_the_log_refuses_becomes_a_dead_letter() -> None:
    bench = Bench()
    bench.journal.append(JournalRecord(0, 0, bench.now, "gw", brings(KNOWN)))
    made = bench.plan(limit=1, condemned="too large")
    assert made is not None
    assert made.step.dictionaries == {}
    (letter,) = made.step.records
    assert header(letter, "waybill_error") == b"too large"


def test_what_a_later_program_wrote_is_not_guessed_at() -> None:
    draft = DictionariesDraft(Dictionaries())
    draft.add("gw", KNOWN.content)
    (name, value), *_ = draft.values.items()
    assert value is not None
    more = b"\x95" + value[1:] + b"\x01"  # one field more
    assert set(Dictionaries.load({name: more}).entries["gw"]) == {KNOWN.id}
    with pytest.raises(UnknownVersion):
        Dictionaries.load({name: b"\x94\x02" + value[2:]})
    for bad_name, bad in ((b"gw", value), (b"gw/x", value), (name, b""), (name, value[:9]), (b"\xff/1", value)):
        with pytest.raises(Corrupt):
            Dictionaries.load({bad_name: bad})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_r10_whatever_comes_in_whatever_order_every_message_is_a_record_or_a_dead_letter(seed: int) -> None:
    """Frames of any order of lane, with dictionaries that come early, late, never or are not what they say."""
    rng = random.Random(seed)
    frames: list[bytes] = []
    lengths = {"fifo": 0, "arrival": 0}
    for lane, order in (("a", "fifo"), ("b", "arrival"), ("c", "mixed")):
        seq = 1
        while seq < 20:
            last = seq + rng.randrange(3)
            chosen: Order = rng.choice(["fifo", "arrival", "fresh-first"]) if order == "mixed" else order  # type: ignore[assignment]
            epoch = Epoch(1, oldest=1, lane=lane, order=chosen)
            frame = epoch.frame(seq, last, dictionary=rng.choice([None, KNOWN, OTHER]))
            if rng.random() < 0.1 and read_header(frame).dictionary:
                told = read_header(frame)
                frame = pack_header(replace(told, dictionary=rng.choice([KNOWN.id, 77])), bytes(body_of(frame, told)))
            frames += [frame] * rng.choice([1, 1, 2])
            seq = last + 1
        lengths[lane] = seq - 1
    frames += [brings(KNOWN, first=rng.randrange(1, 4))] if rng.random() < 0.8 else []
    reach = rng.choice([0, 3, 60])
    keyed = sorted((at + rng.uniform(0, reach), frame) for at, frame in enumerate(frames))
    bench = Bench(limits=Limits(hold_bytes=rng.choice([5_000, 1 << 20])))
    for _, frame in keyed:
        bench.feed(frame)
        bench.now += rng.choice([0, 10, 5_000])
        if rng.random() < 0.1:
            bench.restart()
    bench.now += 60_000
    bench.step(at_end=True)
    assert bench.state.held.frames == {}
    found = {lane.lane: lane for lane in report(bench.ledger).lanes}
    for lane in "abc":
        assert found[lane].delivered + found[lane].dead == lengths[lane]
        assert found[lane].missing_count == 0
    written = values(bench.written)
    assert len(written) == sum(found[lane].delivered for lane in "abc")

"""R10 at the gateway: a dictionary is used when the cloud has it and not before, and is made only where it pays."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from edge_agent.buffer.port import Lease, Position, Stored
from edge_agent.forward import dictionaries as module
from edge_agent.forward.dictionaries import A_DAY, DAY, FEWEST, Dictionaries, Sample, train
from waybill.frames import Dictionary, encode_plain, read_header
from waybill.wire import CONTROL_LANE, DICTIONARY_TOPIC, TELEMETRY_LANE, Ack, Span


def payload(rng: random.Random, n: int) -> bytes:
    return b'{"ts":%d,"vin":"WVWZZZ1JZ%08d","speed":%.1f,"door":"closed"}' % (n, n % 5, rng.uniform(0, 99))


def frame(*payloads: bytes, dictionary: Dictionary | None = None) -> bytes:
    return encode_plain(
        epoch=11,
        prev_epoch=0,
        prev_last=0,
        oldest_epoch=11,
        lane=TELEMETRY_LANE,
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=1,
        base_ms=0,
        sources=[("vehicles/V7/telemetry", "V7")],
        rows=[(0, 0, 1, each, b"") for each in payloads],
        dictionary=dictionary,
    )


def like(count: int, seed: int = 1, dictionary: Dictionary | None = None) -> list[bytes]:
    rng = random.Random(seed)
    return [frame(payload(rng, n), dictionary=dictionary) for n in range(count)]


def noise(count: int) -> list[bytes]:
    rng = random.Random(2)
    return [frame(rng.randbytes(800)) for _ in range(count)]


def made(seed: int = 1) -> Dictionary:
    found = train(Sample(like(300, seed), 10_000, None))
    assert found is not None
    return found


def lease(*messages: tuple[str, bytes], lane: str = CONTROL_LANE, first: int = 1) -> Lease:
    stored = [Stored(topic, "", 0, 0, content) for topic, content in messages]
    return Lease(lane, 11, 0, 0, 11, first, stored, Position(1, first + len(stored) - 1))


def fed(frames: Sequence[bytes], every: float = 1.0) -> Dictionaries:
    one = Dictionaries()
    for at, each in enumerate(frames):
        one.sent(TELEMETRY_LANE, each, at * every)
    return one


def at(log: int = 0) -> Dictionaries:
    """Return dictionaries over a connection to a cloud with this log."""
    one = Dictionaries()
    reach(one, log)
    return one


def reach(one: Dictionaries, log: int) -> None:
    one.connected()
    one.answered(Ack(credit=1, log=log))


def knowing(log: int) -> Dictionaries:
    """Return dictionaries of which this log has one, since time 0."""
    one = at(log)
    one.announced(0.0)
    announce(one, made().content)
    one.settled([Span(11, CONTROL_LANE, 1, 1)])
    assert one.usable(TELEMETRY_LANE) is not None
    return one


def announce(one: Dictionaries, content: bytes, first: int = 1) -> None:
    lane = lease((DICTIONARY_TOPIC, content), first=first)
    one.leased(lane, lane.messages, first)


# --- used when the cloud has it ---


def test_r10_a_dictionary_is_used_when_the_message_that_brings_it_is_journaled() -> None:
    one, known = at(), made()
    lane = lease(("$waybill/receipt", b"{}"), (DICTIONARY_TOPIC, known.content), first=3)
    one.leased(lane, lane.messages, 3)
    for span in (Span(11, CONTROL_LANE, 1, 3), Span(12, CONTROL_LANE, 1, 9), Span(11, TELEMETRY_LANE, 1, 9)):
        one.settled([span])
        assert one.usable(TELEMETRY_LANE) is None
    one.settled([Span(11, CONTROL_LANE, 4, 9)])
    used = one.usable(TELEMETRY_LANE)
    assert used is not None
    assert used.id == known.id
    assert one.usable(CONTROL_LANE) is None, "what brings dictionaries is read without"
    assert one.counters.known == 1


def test_r10_the_newest_that_is_journaled_is_used() -> None:
    one, first, second = Dictionaries(), made(), made(2)
    announce(one, first.content)
    announce(one, second.content, 2)
    one.settled([Span(11, CONTROL_LANE, 1, 2)])
    assert one.current is not None
    assert one.current.id == second.id


def test_r10_messages_of_other_lanes_are_no_dictionaries() -> None:
    one = Dictionaries()
    lane = lease((DICTIONARY_TOPIC, made().content), lane="alarms")
    one.leased(lane, lane.messages, 1)
    one.settled([Span(11, "alarms", 1, 1), Span(11, CONTROL_LANE, 1, 1)])
    assert one.current is None


def test_u4_after_a_refusal_none_is_used_until_the_next_connection() -> None:
    one = at(5)
    announce(one, made().content)
    one.settled([Span(11, CONTROL_LANE, 1, 1)])
    one.refused()
    assert one.usable(TELEMETRY_LANE) is None
    assert one.again(1e9) is None
    reach(one, 5)
    assert one.usable(TELEMETRY_LANE) is not None


def test_what_is_no_dictionary_is_never_used_and_what_waits_is_bounded() -> None:
    one, known = Dictionaries(), made()
    announce(one, b"none")
    one.settled([Span(11, CONTROL_LANE, 1, 1)])
    assert one.current is None
    for seq in range(1, 1000):
        announce(one, known.content, seq)
    assert len(one._under_way) == module.MAX_UNDER_WAY


# --- to each log that does not have it ---


def test_r10_on_a_new_connection_it_is_used_once_the_cloud_has_named_a_log_that_has_it() -> None:
    one = knowing(5)
    one.connected()
    assert one.usable(TELEMETRY_LANE) is None
    assert one.again(1e9) is None, "it is not known yet whether the log has it"
    one.answered(Ack(credit=1, log=5))
    assert one.usable(TELEMETRY_LANE) is not None
    one.answered(Ack(journaled=(Span(11, TELEMETRY_LANE, 1, 1),)))
    assert one.usable(TELEMETRY_LANE) is not None, "not every ack names the log"
    assert one.again(1e9) is None


@pytest.mark.parametrize("reconnects", [True, False])
def test_r10_to_another_log_it_is_sent_again_and_used_when_that_has_it(reconnects: bool) -> None:  # noqa: FBT001
    one, now = knowing(5), 1e6
    if reconnects:
        one.connected()
    one.answered(Ack(credit=1, log=6))
    assert one.usable(TELEMETRY_LANE) is None
    again = one.again(now)
    assert again is not None
    assert one.usable(TELEMETRY_LANE) is None
    assert one.again(now + module.SAME_AGAIN - 1) is None, "it is on its way"
    announce(one, again.content, 2)
    one.settled([Span(11, CONTROL_LANE, 2, 2)])
    for log in (5, 6, 5):
        reach(one, log)
        assert one.usable(TELEMETRY_LANE) is not None
        assert one.again(1e9) is None, "both have it"


def test_r10_a_newer_one_is_sent_to_the_logs_that_have_the_older_one() -> None:
    one = knowing(5)
    reach(one, 6)
    announce(one, made(2).content, 2)
    one.settled([Span(11, CONTROL_LANE, 2, 2)])
    reach(one, 5)
    assert one.usable(TELEMETRY_LANE) is None
    assert one.again(1e6) is one.current


def test_r10_to_a_cloud_that_names_no_log_it_is_sent_on_each_connection_but_once_an_hour_at_most() -> None:
    one = knowing(0)
    reach(one, 0)
    assert one.usable(TELEMETRY_LANE) is None
    assert one.again(module.SAME_AGAIN - 1) is None
    again = one.again(module.SAME_AGAIN)
    assert again is not None
    announce(one, again.content, 2)
    one.settled([Span(11, CONTROL_LANE, 2, 2)])
    assert one.usable(TELEMETRY_LANE) is not None


def test_r10_a_cloud_that_names_another_log_each_time_costs_little() -> None:
    one, sent = knowing(5), 0
    for second in range(3600):
        one.answered(Ack(credit=1, log=6 + second))
        if (again := one.again(second)) is not None:
            sent += 1
            announce(one, again.content, 2 + second)
            one.settled([Span(11, CONTROL_LANE, 2 + second, 2 + second)])
    assert 0 < sent <= 3600 / module.AGAIN
    assert len(one._logs) == module.MAX_LOGS


def test_sending_it_again_does_not_count_as_a_new_one() -> None:
    one = knowing(5)
    for log in range(6, 12):
        reach(one, log)
        assert one.again(log * 100.0) is not None
    for each in like(FEWEST):
        one.sent(TELEMETRY_LANE, each, 2_000.0)
    assert one.due(2_000.0)


# --- made where it pays ---


def test_a_dictionary_is_made_of_small_frames_that_say_much_the_same() -> None:
    known = made()
    fresh = like(100, seed=9)
    with_it = sum(len(each) for each in like(100, seed=9, dictionary=known))
    assert with_it < sum(map(len, fresh)) * 0.7
    assert len(known.content) <= module.SIZE


@pytest.mark.parametrize(
    ("frames", "a_day", "pays"),
    [
        (like(300), 1000.0, True),
        (like(300), 1.0, False),  # two days of this do not earn its bytes back
        (noise(300), 1e9, False),  # nothing in common
        ([], 1e9, False),
        (like(1), 1e9, False),
        ([frame(*[payload(random.Random(1), n) for n in range(400)])] * 100, 1e9, False),  # no small bodies
    ],
    ids=["pays", "too few a day", "noise", "none", "one", "large"],
)
def test_it_is_made_only_where_it_pays(frames: list[bytes], a_day: float, pays: bool) -> None:  # noqa: FBT001
    assert (train(Sample(frames, a_day, None)) is not None) is pays


def test_another_is_made_when_the_traffic_has_changed_and_not_before() -> None:
    known = made()
    same = like(300, seed=5, dictionary=known)
    assert read_header(same[0]).dictionary == known.id
    assert train(Sample(same, 1e6, known)) is None
    rng = random.Random(3)
    other = [
        b"<state><door>%d</door><window>open</window><at>%f</at></state>" % (n % 3, rng.random()) for n in range(300)
    ]
    changed = [frame(each, dictionary=known) for each in other]
    assert train(Sample(changed, 1e6, known)) is not None


def test_frames_of_an_earlier_dictionary_are_left_out() -> None:
    assert train(Sample(like(300, dictionary=made()), 1e6, None)) is None


def test_training_waits_for_enough_frames_and_then_longer_and_longer() -> None:
    one = Dictionaries()
    now, times = 0.0, []
    for each in like(FEWEST, 1) * 40:
        now += 600
        one.sent(TELEMETRY_LANE, each, now)
        if one.due(now):
            assert len(one.sample(now).frames) >= FEWEST
            times.append(now)
    assert times[0] == FEWEST * 600
    gaps = [later - before for before, later in pairwise(times)]
    assert gaps == sorted(gaps)
    assert max(gaps) >= module.LONGEST_PAUSE
    assert one.counters.trained == len(times)


def test_a_day_has_few_dictionaries() -> None:
    one = Dictionaries()
    now, sent = 0.0, []
    for each in like(200) * 200:
        now += 10
        one.sent(TELEMETRY_LANE, each, now)
        if one.due(now):
            one.sample(now)
            one.announced(now)
            one._pause, one._next_at = 1.0, now  # as if the next were due at once
            sent.append(now)
    assert len(sent) > 2 * A_DAY
    assert all(later - before >= DAY for before, later in zip(sent, sent[A_DAY:], strict=False))


def test_while_one_is_on_its_way_no_other_is_trained() -> None:
    """After a start that is the one that was kept: what it gains is not to be seen before the cloud has it."""
    one = Dictionaries()
    one.announced(0.0)
    for each in like(100):
        one.sent(TELEMETRY_LANE, each, 100.0)
    assert not one.due(100.0)
    assert one.due(module.FIRST_PAUSE)


def test_the_pace_is_measured_and_a_burst_is_none() -> None:
    assert fed(like(101), every=60).sample(6000).a_day == pytest.approx(24 * 60, rel=0.02)
    assert fed(like(100), every=0.0).sample(0).a_day == 100 * DAY / module.LEAST_TIME


def test_samples_are_bounded_and_of_other_frames_none_is_kept() -> None:
    one = Dictionaries()
    for each in like(3000):
        one.sent(TELEMETRY_LANE, each, 0.0)
        one.sent(CONTROL_LANE, each, 0.0)
    one.sent(TELEMETRY_LANE, frame(random.Random(1).randbytes(10_000)), 0.0)
    assert len(one._frames) == module.MAX_FRAMES
    large = [frame(random.Random(n).randbytes(7_000)) for n in range(200)]
    for each in large:
        one.sent(TELEMETRY_LANE, each, 0.0)
    assert sum(map(len, one._frames)) == one._bytes <= module.MAX_BYTES
    assert one.sample(0.0).frames[-1] == large[-1]


def test_training_looks_at_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = like(300)
    monkeypatch.setattr(module, "MAX_RAW", 20 * read_header(frames[0]).raw_size)
    assert len(module._bodies(Sample(frames, 1e6, None))) <= 21

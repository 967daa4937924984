"""Who uses the link: none of the largest is missing, and what is said of each is off by no more than is said."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.buffer.port import Stored
from edge_agent.health.talkers import BYTES, COUNT, ENTRIES, MOST, SAMPLE, SPAN, Summary, TopTalkers, largest


def message(topic: str, client: str, size: int = 10) -> Stored:
    return Stored(topic, client, 0, 0, bytes(size))


def first(messages: Sequence[Stored], count: int) -> Sequence[Stored]:
    return messages[:count]


@given(st.lists(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 9)), max_size=300), max_size=9))
def test_the_summary_keeps_its_word(frames: list[list[tuple[int, int]]]) -> None:
    """None is too small by more than was taken, none is too large, nobody heavy is missing, and it stays small."""
    summary, truth = Summary(BYTES), Counter[str]()
    for frame in frames:
        summary.add((str(name), 1, size) for name, size in frame)
        for name, size in frame:
            truth[str(name)] += size
        assert len(summary.found) <= MOST
    for one in largest([summary], BYTES, MOST):
        assert one.bytes - one.over_bytes <= truth[one.name] <= one.bytes
    total = sum(truth.values())
    assert summary.taken <= total / ENTRIES
    assert {name for name, size in truth.items() if size > total / ENTRIES} <= summary.found.keys()


def test_topics_and_devices_by_bytes_and_by_count() -> None:
    found = TopTalkers(0.0, 1_000, first)
    found.count([message("a/big", "V1", 1_000), *[message("a/often", "V2", 1)] * 50], 400, 1.0, 2_000)
    found.count([message("$waybill/health", "", 300)], 200, 2.0, 3_000)
    state = found.state(3.0, 4_000, 2)
    assert (state.since_ms, state.count, state.wire) == (1_000, 52, 600)
    assert [(one.name, one.count, one.bytes) for one in state.topics_by_bytes] == [
        ("a/big", 1, 1_005),
        ("a/often", 50, 50 * 8),
    ]
    assert [one.name for one in state.topics_by_count] == ["a/often", "a/big"]
    assert [one.name for one in state.devices_by_bytes] == ["V1", "V2"]
    assert [(one.name, one.count) for one in state.devices_by_count] == [("V2", 50), ("V1", 1)]


def test_of_a_large_frame_a_sample_stands_for_all() -> None:
    asked: list[int] = []

    def choose(messages: Sequence[Stored], count: int) -> Sequence[Stored]:
        asked.append(count)
        return random.Random(7).choices(messages, k=count)

    found = TopTalkers(0.0, 0, choose)
    found.count([message(f"t{n % 4}", f"V{n % 4}", 98) for n in range(4_096)], 1, 0.0, 0)
    assert asked == [SAMPLE]
    state = found.state(0.0, 0, 10)
    assert sum(one.count for one in state.topics_by_count) == 4_096
    assert state.bytes == 409_600
    assert all(400 < one.count < 1_800 for one in state.topics_by_count)


def test_what_was_sent_long_ago_is_forgotten() -> None:
    found = TopTalkers(0.0, 0, first)
    found.count([message("old", "V1")], 1, 0.0, 0)
    assert [one.name for one in found.state(SPAN, 5, 9).topics_by_count] == ["old"]
    found.count([message("new", "V1")], 1, SPAN, 5)
    assert {one.name for one in found.state(SPAN + 1, 6, 9).topics_by_count} == {"old", "new"}
    state = found.state(2 * SPAN + 1, 7, 9)
    assert ([one.name for one in state.topics_by_count], state.since_ms) == (["new"], 5)
    assert not found.state(9 * SPAN, 8, 9).topics_by_count


def test_names_have_a_limit() -> None:
    found = TopTalkers(0.0, 0, first)
    found.count([message("t" * 60_000, "V" * 60_000)], 1, 0.0, 0)
    state = found.state(0.0, 0, 1)
    assert len(state.topics_by_bytes[0].name) == len(state.devices_by_count[0].name) == 256
    assert state.topics_by_bytes[0].bytes == 60_010


def test_counts_are_of_their_own_list() -> None:
    summary = Summary(COUNT)
    summary.add((str(number), 2, 5) for number in range(MOST))
    summary.add([("more", 7, 9)])
    (one,) = largest([summary], COUNT, 9)
    assert (one.name, one.count, one.over_count, one.bytes, one.over_bytes) == ("more", 7, 2, 9, 0)

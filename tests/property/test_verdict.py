"""The ranges of the verdict are a set; its counts are those of a verdict over plain lists."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fleet_simulator.verdict import Comparison, Ranges

NUMBERS = st.lists(st.integers(1, 60), max_size=120)


@given(NUMBERS, NUMBERS)
def test_ranges_are_a_set(mine: list[int], theirs: list[int]) -> None:
    one, other = Ranges(), Ranges()
    for ranges, numbers in ((one, mine), (other, theirs)):
        model: set[int] = set()
        for number in numbers:
            assert ranges.add(number) is (number not in model)
            model.add(number)
        assert ranges.count == len(model)
        assert [n for first, last in ranges for n in range(first, last + 1)] == sorted(model)
        assert all(number in ranges for number in model)
        spans = list(ranges)
        assert all(left[1] + 1 < right[0] for left, right in itertools.pairwise(spans))
    left_over = [n for first, last in one.minus(other) for n in range(first, last + 1)]
    assert left_over == sorted(set(mine) - set(theirs))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 12)), max_size=30),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 12)), max_size=30),
)
def test_counts_are_those_of_plain_lists(acked: list[tuple[str, int]], records: list[tuple[str, int]]) -> None:
    comparison = Comparison()
    for vehicle, seq in acked:
        comparison.acked(vehicle, seq)
    duplicated = out_of_order = 0
    seen: list[tuple[str, int]] = []
    for at, (vehicle, seq) in enumerate(records, 1):
        comparison.read(vehicle, seq, key=vehicle, partition=0, ce_id=f"gw/1/telemetry/{at}")
        if (vehicle, seq) in seen:
            duplicated += 1
        elif any(v == vehicle and s > seq for v, s in seen):
            out_of_order += 1
        seen.append((vehicle, seq))
    verdict = comparison.verdict()
    assert verdict.acked == len(set(acked))
    assert verdict.delivered == len(set(records))
    assert verdict.lost == len(set(acked) - set(records))
    assert verdict.unacked == len(set(records) - set(acked))
    assert (verdict.duplicated, verdict.out_of_order) == (duplicated, out_of_order)
    assert verdict.passed is (not (verdict.lost or duplicated or out_of_order) and bool(acked))

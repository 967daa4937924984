"""The ranges of the verdict are a set; its counts are those of a verdict over plain lists."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fleet_simulator.numbers import Bits, Ranges
from fleet_simulator.verdict import Comparison

NUMBERS = st.lists(st.integers(1, 60), max_size=120)


@given(NUMBERS, NUMBERS)
def test_ranges_are_a_set(mine: list[int], theirs: list[int]) -> None:
    for ranges, numbers in ((Ranges(), mine), (Ranges(), theirs)):
        model: set[int] = set()
        for number in numbers:
            assert ranges.add(number) is (number not in model)
            model.add(number)
        assert ranges.count == len(model)
        assert [n for first, last in ranges for n in range(first, last + 1)] == sorted(model)
        assert all(number in ranges for number in model)
        spans = list(ranges)
        assert all(left[1] + 1 < right[0] for left, right in itertools.pairwise(spans))


@given(st.lists(st.integers(1, 40_000), max_size=300), st.lists(st.integers(1, 5), max_size=3), st.integers(1, 40_000))
def test_bits_are_a_set(numbers: list[int], whole: list[int], last: int) -> None:
    bits = Bits()
    model: set[int] = set()
    for number in itertools.chain(numbers, *(range(8192 * n, 8192 * (n + 1)) for n in whole)):
        assert bits.add(number) is (number not in model)
        model.add(number)
    assert bits.count == len(model)
    assert bits.last == max(model, default=0)
    assert all(number in bits for number in model)
    gaps = list(bits.missing(last))
    assert [n for a, b in gaps for n in range(a, b + 1)] == sorted(set(range(1, last + 1)) - model)
    assert all(left[1] + 1 < right[0] for left, right in itertools.pairwise(gaps))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 12)), max_size=30),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 12)), max_size=30),
)
def test_counts_are_those_of_plain_lists(acked: list[tuple[str, int]], records: list[tuple[str, int]]) -> None:
    comparison = Comparison()
    for vehicle, seq in [*acked, *records]:
        comparison.published(vehicle, "telemetry", seq, seq)
    for vehicle, seq in acked:
        comparison.acked(vehicle, "telemetry", seq, seq)
    duplicated = out_of_order = 0
    seen: list[tuple[str, int]] = []
    for at, (vehicle, seq) in enumerate(records, 1):
        comparison.read(vehicle, "telemetry", seq, key=vehicle, place=("t", 0), ce_id=f"gw/1/telemetry/{at}")
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

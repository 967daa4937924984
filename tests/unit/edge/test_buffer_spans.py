"""The interval set against a set of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.buffer.spans import SpanSet

intervals = st.tuples(st.integers(1, 60), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def runs(numbers: set[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found


@given(st.lists(intervals, max_size=30), intervals)
def test_a_span_set_is_a_set_of_numbers(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    spans, model = SpanSet(), set[int]()
    for first, last in added:
        new = set(range(first, last + 1)) - model
        expected = next(run for run in runs(model | set(range(first, last + 1))) if run[0] <= first <= run[1])
        assert spans.covering(first, last) == expected
        assert spans.add(first, last) == (expected if new else None)
        model |= new
        assert list(spans) == runs(model)
        assert spans.total == len(model)
    first, last = asked
    gaps = list(runs(set(range(first, last + 1)) - model))
    assert spans.next_gap(first, last) == (gaps[0] if gaps else None)
    before = list(runs(set(range(1, last + 1)) - model))
    assert spans.last_gap(last) == (before[-1] if before else None)

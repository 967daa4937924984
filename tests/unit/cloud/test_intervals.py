"""Intervals against a plain set of integers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_ingest.router.intervals import Intervals

SPANS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9)).map(lambda s: (s[0], s[0] + s[1])), max_size=30)


def numbers(spans: list[tuple[int, int]]) -> set[int]:
    return {n for first, last in spans for n in range(first, last + 1)}


@given(SPANS, st.integers(1, 70), st.integers(0, 20))
def test_it_is_the_set_of_its_numbers(spans: list[tuple[int, int]], first: int, length: int) -> None:
    made = Intervals(spans)
    model = numbers(spans)
    assert numbers(list(made)) == model
    assert made.count == len(model)
    assert made.last == max(model, default=0)
    assert all(b[0] > a[1] + 1 for a, b in zip(list(made), list(made)[1:], strict=False))
    assert numbers(made.missing(first, first + length)) == set(range(first, first + length + 1)) - model
    assert (first in made) == (first in model)
    reach = first - 1
    while reach + 1 in model:
        reach += 1
    assert made.reach(first - 1) == reach


@given(SPANS)
def test_packed_and_unpacked_it_is_the_same(spans: list[tuple[int, int]]) -> None:
    made = Intervals(spans)
    assert Intervals.unpack(made.pack()) == made
    assert Intervals.unpack(made.pack()).count == made.count


@given(SPANS, st.integers(0, 5))
def test_the_oldest_can_be_dropped(spans: list[tuple[int, int]], keep: int) -> None:
    made = Intervals(spans)
    kept = list(made)[max(0, len(made) - keep) :]
    before = made.count
    assert made.drop_oldest(keep) == before - made.count
    assert list(made) == kept
    assert made.count == len(numbers(kept))


def test_a_copy_is_independent() -> None:
    one = Intervals([(1, 3)])
    two = one.copy()
    two.add(4, 5)
    assert list(one) == [(1, 3)]
    assert (one.count, two.count) == (3, 5)


@pytest.mark.parametrize("packed", [[1], [0, 1], [1, -1]])
def test_what_is_no_list_of_intervals_is_refused(packed: list[int]) -> None:
    with pytest.raises(ValueError, match=r"intervals|argument"):
        Intervals.unpack(packed)

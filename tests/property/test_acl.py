"""Filters that cover filters, against the definition: every topic name that one matches, the other matches."""

from __future__ import annotations

from itertools import product

from hypothesis import assume, given
from hypothesis import strategies as st

from waybill.acl import covers
from waybill.mqtt.topics import Tree, valid_filter, valid_topic

MAX_LEVELS = 64
LEVELS = ("a", "b", "", "$s")
# A level that no filter names stands for all those, and topics go one level deeper than any filter.
TOPICS = tuple(
    "/".join(levels)
    for count in range(1, 5)
    for levels in product((*LEVELS, "other"), repeat=count)
    if valid_topic("/".join(levels).encode(), MAX_LEVELS)
)
FILTERS = tuple(
    "/".join(levels)
    for count in range(1, 4)
    for levels in product((*LEVELS, "+", "#"), repeat=count)
    if valid_filter("/".join(levels), MAX_LEVELS)
)


def test_every_pair_of_short_filters() -> None:
    tree: Tree[int, None] = Tree()
    for number, text in enumerate(FILTERS):
        tree.add(text, number, None)
    matched: list[set[str]] = [set() for _ in FILTERS]
    for topic in TOPICS:
        for number in tree.match(topic.encode()):
            matched[number].add(topic)
    assert all(matched), "each filter matches some topic, else the comparison says nothing of it"
    wrong = [
        (FILTERS[i], FILTERS[j])
        for i, j in product(range(len(FILTERS)), repeat=2)
        if covers(FILTERS[i], FILTERS[j]) != (matched[j] <= matched[i])
    ]
    assert not wrong
    assert sum(covers(one, other) for one, other in product(FILTERS, repeat=2)) > len(FILTERS)


level = st.sampled_from((*LEVELS, "+"))
patterns = st.tuples(st.lists(level, max_size=6), st.sampled_from(("#", "+", *LEVELS))).map(
    lambda parts: "/".join((*parts[0], parts[1]))
)


@given(patterns, patterns, st.lists(st.sampled_from((*LEVELS, "other")), min_size=1, max_size=8))
def test_what_is_covered_matches_nothing_that_the_cover_does_not(allowed: str, wanted: str, levels: list[str]) -> None:
    topic = "/".join(levels)
    assume(bool(allowed) and bool(wanted) and bool(topic))
    tree: Tree[str, None] = Tree()
    tree.add(allowed, "allowed", None)
    tree.add(wanted, "wanted", None)
    found = tree.match(topic.encode())
    if covers(allowed, wanted):
        assert "wanted" not in found or "allowed" in found
    assert covers(allowed, topic) == ("allowed" in found), "a topic name is the filter of itself"


@given(patterns, patterns, patterns)
def test_covering_is_an_order(one: str, two: str, three: str) -> None:
    assume(all((one, two, three)))
    assert covers(one, one)
    if covers(one, two) and covers(two, three):
        assert covers(one, three)

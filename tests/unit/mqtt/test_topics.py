"""waybill.mqtt.topics: names, filters, matching (3.1.1, 4.7)."""

from __future__ import annotations

import pytest

from waybill.mqtt.topics import Tree, matcher, valid_filter, valid_topic

MATCHES = [
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/#", "sport", True),
    ("sport/#", "sports", False),
    ("#", "a", True),
    ("#", "/a/b", True),
    ("#", "$SYS/a", False),
    ("+/a", "$SYS/a", False),
    ("$SYS/#", "$SYS/a", True),
    ("$SYS/+", "$SYS/a", True),
    ("a/#", "a/$b", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    ("+", "", False),
    ("a//b", "a//b", True),
    ("a/+/b", "a//b", True),
    ("a.b", "axb", False),
    ("A", "a", False),
    ("ä/+", "ä/ö", True),
    ("a\nb/#", "a\nb/c\nd", True),
]


@pytest.mark.parametrize(("pattern", "topic", "expected"), MATCHES)
def test_matching(pattern: str, topic: str, expected: bool) -> None:  # noqa: FBT001 - the table's third column
    tree: Tree[str, int] = Tree()
    tree.add(pattern, "s", 1)
    if topic:
        assert tree.match(topic.encode()) == ({"s": [1]} if expected else {})
        assert (matcher(pattern).fullmatch(topic.encode()) is not None) is expected


@pytest.mark.parametrize("good", ["a", "/", "#", "+", "a/#", "+/a/+", "a//b", "$share/g/a", " "])
def test_valid_filters(good: str) -> None:
    assert valid_filter(good, 8)


@pytest.mark.parametrize("bad", ["", "#/a", "a#", "a/b#", "a+", "+a/b", "a/#/b", "a\0", "a/" * 8])
def test_invalid_filters(bad: str) -> None:
    assert not valid_filter(bad, 8)


@pytest.mark.parametrize("good", [b"a", b"/", b"$x", "ä".encode(), b"a/" * 7, b"/" * 7])
def test_valid_topics(good: bytes) -> None:
    assert valid_topic(good, 8)


@pytest.mark.parametrize("bad", [b"", b"a/+", b"#", b"a\0", b"\xff", b"\xc0\x80", b"a/" * 8, b"/" * 8])
def test_invalid_topics(bad: bytes) -> None:
    assert not valid_topic(bad, 8)


def test_overlapping_subscriptions_are_one_subscriber() -> None:
    tree: Tree[str, int] = Tree()
    tree.add("a/#", "s", 0)
    tree.add("a/+", "s", 2)
    tree.add("a/b", "s", 1)
    tree.add("a/b", "t", 0)
    found = tree.match(b"a/b")
    assert (sorted(found["s"]), found["t"]) == ([0, 1, 2], [0])


def test_removal_leaves_nothing_behind() -> None:
    tree: Tree[str, int] = Tree()
    tree.add("a/b/c", "s", 1)
    tree.add("a/b", "t", 1)
    tree.remove("a/b/c", "s")
    tree.remove("a/b/c", "s")
    tree.remove("x/y", "s")
    assert tree.match(b"a/b/c") == {}
    assert tree.match(b"a/b") == {"t": [1]}
    tree.remove("a/b", "t")
    assert not tree._root.children


def test_resubscribing_replaces_the_qos() -> None:
    tree: Tree[str, int] = Tree()
    tree.add("a", "s", 2)
    tree.add("a", "s", 0)
    assert tree.match(b"a") == {"s": [0]}

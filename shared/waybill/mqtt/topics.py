"""Topic names, filters and who gets what (OASIS MQTT 3.1.1 and 5.0, section 4.7). No I/O."""

from __future__ import annotations

import re
from typing import Final, Generic, TypeVar

S = TypeVar("S")
V = TypeVar("V")

_PLUS: Final = ord("+")
_HASH: Final = ord("#")
_NUL: Final = 0
"""As numbers: a byte is found in half the time that a string of one byte is."""


def valid_topic(topic: bytes, max_levels: int, max_bytes: int = 65_535) -> bool:
    """Say whether a PUBLISH may use this topic name.

    1 byte or more of UTF-8, no wildcard, no U+0000, not too deep, not too long.
    """
    size = len(topic)
    if not 0 < size <= max_bytes or _PLUS in topic or _HASH in topic or _NUL in topic:
        return False
    if size >= max_levels and topic.count(b"/") >= max_levels:
        return False
    if topic.isascii():
        return True
    try:
        topic.decode()
    except UnicodeDecodeError:
        return False
    return True


def wild(pattern: str) -> bool:
    """Say whether a filter has a wildcard."""
    return "+" in pattern or "#" in pattern


def valid_filter(pattern: str, max_levels: int, max_bytes: int = 65_535) -> bool:
    """Say whether a filter is well formed: wildcards stand alone in their level, ``#`` only in the last one."""
    if not pattern or "\0" in pattern or len(pattern.encode()) > max_bytes:
        return False
    levels = pattern.split("/")
    if len(levels) > max_levels or any("#" in level for level in levels[:-1]):
        return False
    return all(level in ("+", "#") or ("+" not in level and "#" not in level) for level in levels)


def matcher(pattern: str) -> re.Pattern[bytes]:
    """Return an expression whose ``fullmatch`` takes exactly the topic names that a valid filter matches."""
    levels = pattern.split("/")
    deep = levels[-1] == "#"
    parts = [rb"[^/]*" if level == "+" else re.escape(level.encode()) for level in (levels[:-1] if deep else levels)]
    expression = b"/".join(parts)
    if deep:
        expression = expression + rb"(?:/.*)?" if parts else rb".*"
    if levels[0] in ("+", "#"):
        expression = rb"(?!\$)" + expression  # 4.7.2: a leading wildcard does not match $SYS and the like
    return re.compile(expression, re.DOTALL)


class _Node(Generic[S, V]):
    __slots__ = ("children", "subscribers")

    def __init__(self) -> None:
        self.children: dict[bytes, _Node[S, V]] = {}
        self.subscribers: dict[S, V] = {}


class Tree(Generic[S, V]):
    """Subscriptions by filter. A subscriber has at most one value (QoS, options) a filter."""

    def __init__(self) -> None:
        self._root: _Node[S, V] = _Node()

    def add(self, pattern: str, subscriber: S, value: V) -> None:
        """Subscribe, or change the value."""
        node = self._root
        for level in pattern.encode().split(b"/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        node.subscribers[subscriber] = value

    def remove(self, pattern: str, subscriber: S) -> None:
        """Unsubscribe; no error where there is no such subscription."""
        path: list[tuple[_Node[S, V], bytes]] = []
        node = self._root
        for level in pattern.encode().split(b"/"):
            child = node.children.get(level)
            if child is None:
                return
            path.append((node, level))
            node = child
        node.subscribers.pop(subscriber, None)
        while path and not node.children and not node.subscribers:
            node, level = path.pop()
            del node.children[level]

    def match(self, topic: bytes) -> dict[S, list[V]]:
        """Return every subscriber of a valid topic name with the values of its matching filters."""
        found: dict[S, list[V]] = {}
        first = self._root.children
        if b"#" not in first and b"+" not in first and topic.partition(b"/")[0] not in first:
            return found  # telemetry, where devices only listen for commands
        nodes = [self._root]
        for depth, level in enumerate(topic.split(b"/")):
            wild = depth > 0 or not level.startswith(b"$")
            below: list[_Node[S, V]] = []
            for node in nodes:
                children = node.children
                if wild and (deep := children.get(b"#")) is not None:
                    _merge(found, deep.subscribers)
                if (exact := children.get(level)) is not None:
                    below.append(exact)
                if wild and (plus := children.get(b"+")) is not None:
                    below.append(plus)
            nodes = below
            if not nodes:
                return found
        for node in nodes:
            _merge(found, node.subscribers)
            if (deep := node.children.get(b"#")) is not None:
                _merge(found, deep.subscribers)  # 4.7.1.2: "a/#" matches "a" as well
        return found


def _merge(found: dict[S, list[V]], subscribers: dict[S, V]) -> None:
    for subscriber, value in subscribers.items():
        found.setdefault(subscriber, []).append(value)

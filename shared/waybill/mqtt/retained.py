"""Retained messages (OASIS MQTT 3.1.1, 3.3.1.3). No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from waybill.mqtt import topics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class RetainedMessage(NamedTuple):
    """The last retained message of a topic."""

    qos: int
    payload: bytes
    properties: bytes = b""


class RetainedMessages:
    """Retained messages by topic, bounded in number and bytes."""

    def __init__(self, max_messages: int, max_bytes: int, saved: Mapping[bytes, tuple[int, bytes, bytes]]) -> None:
        self._max = max_messages
        self._max_bytes = max_bytes
        self._messages: dict[bytes, RetainedMessage] = {topic: RetainedMessage(*each) for topic, each in saved.items()}
        self._bytes = sum(len(topic) + len(each.payload) for topic, each in self._messages.items())

    def __len__(self) -> int:
        return len(self._messages)

    def get(self, topic: bytes) -> RetainedMessage | None:
        """Return the retained message of a topic."""
        return self._messages.get(topic)

    def fits(self, topic: bytes, payload: bytes) -> bool:
        """Say whether this message may be kept."""
        old = self._messages.get(topic)
        if old is not None:
            return self._bytes + len(payload) - len(old.payload) <= self._max_bytes
        return len(self._messages) < self._max and self._bytes + len(topic) + len(payload) <= self._max_bytes

    def put(self, topic: bytes, message: RetainedMessage | None) -> RetainedMessage | None:
        """Keep a message, or with None clear the topic; returns what was there."""
        old = self._messages.pop(topic, None)
        if old is not None:
            self._bytes -= len(topic) + len(old.payload)
        if message is not None:
            self._messages[topic] = message
            self._bytes += len(topic) + len(message.payload)
        return old

    def matching(self, pattern: str) -> Iterator[tuple[bytes, RetainedMessage]]:
        """Yield the messages whose topics a valid filter matches."""
        if "+" not in pattern and "#" not in pattern:
            topic = pattern.encode()
            message = self._messages.get(topic)
            if message is not None:
                yield topic, message
            return
        matches = topics.matcher(pattern).fullmatch
        for topic, message in self._messages.items():
            if matches(topic):
                yield topic, message

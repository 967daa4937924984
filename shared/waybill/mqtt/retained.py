"""Retained messages (OASIS MQTT 3.1.1 and 5.0, 3.3.1.3). No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from waybill.mqtt import topics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class RetainedMessage(NamedTuple):
    """The last retained message of a topic. ``expires_ns``: on the broker's clock, 0 for never."""

    qos: int
    payload: bytes
    properties: bytes = b""
    expires_ns: int = 0

    @property
    def size(self) -> int:
        """Bytes, besides the topic."""
        return len(self.payload) + len(self.properties)


class RetainedMessages:
    """Retained messages by topic, bounded in number and bytes."""

    def __init__(self, max_messages: int, max_bytes: int, saved: Mapping[bytes, RetainedMessage]) -> None:
        self._max = max_messages
        self._max_bytes = max_bytes
        self._messages = dict(saved)
        self._bytes = sum(len(topic) + each.size for topic, each in self._messages.items())
        self._expiring = {topic: each.expires_ns for topic, each in self._messages.items() if each.expires_ns}

    def __len__(self) -> int:
        return len(self._messages)

    def get(self, topic: bytes) -> RetainedMessage | None:
        """Return the retained message of a topic."""
        return self._messages.get(topic)

    def fits(self, topic: bytes, message: RetainedMessage) -> bool:
        """Say whether this message may be kept."""
        old = self._messages.get(topic)
        if old is not None:
            return self._bytes + message.size - old.size <= self._max_bytes
        return len(self._messages) < self._max and self._bytes + len(topic) + message.size <= self._max_bytes

    def put(self, topic: bytes, message: RetainedMessage | None) -> RetainedMessage | None:
        """Keep a message, or with None clear the topic; returns what was there."""
        old = self._messages.pop(topic, None)
        if old is not None:
            self._bytes -= len(topic) + old.size
            self._expiring.pop(topic, None)
        if message is not None:
            self._messages[topic] = message
            self._bytes += len(topic) + message.size
            if message.expires_ns:
                self._expiring[topic] = message.expires_ns
        return old

    def expired(self, now_ns: int) -> list[bytes]:
        """Return the topics whose messages have expired; they are still there."""
        return [topic for topic, expires_ns in self._expiring.items() if expires_ns <= now_ns]

    def matching(self, pattern: str, now_ns: int) -> Iterator[tuple[bytes, RetainedMessage]]:
        """Yield the messages whose topics a valid filter matches, but for what has expired."""
        if not topics.wild(pattern):
            topic = pattern.encode()
            message = self._messages.get(topic)
            if message is not None and not 0 < message.expires_ns <= now_ns:
                yield topic, message
            return
        matches = topics.matcher(pattern).fullmatch
        for topic, message in self._messages.items():
            if matches(topic) and not 0 < message.expires_ns <= now_ns:
                yield topic, message

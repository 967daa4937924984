"""What many share, and what things cost in memory. No I/O.

Costs are what CPython needs at most for an object and what refers to it, bytes, rounded up; a limit in bytes counts
them, so that it bounds memory and not just what was sent.
"""

from __future__ import annotations

from typing import Final

PUBLISH: Final = 320
"""Of one PUBLISH of a batch, besides its packet."""

QUEUED: Final = 512
"""Of one message that waits for a session, besides its packet."""

SUBSCRIPTION: Final = 768
LEVEL: Final = 448
"""Of a subscription, and of each level of its filter, where no other has the same."""

WILL: Final = 1024
ROUTE: Final = 320
TARGET: Final = 256
"""Of a topic whose route is remembered, and of each that gets its messages."""

HELD: Final = 160
ENTRY: Final = 448
"""Of a QoS 2 id that is held, and of a message that is remembered (O1), folded."""


class Budget:
    """A limit that many share, of bytes or of things. No holder may have more than what is left.

    So the first one gets half of it at most, and however many there are that take what they can, there is as much left
    for the next as the greediest has.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def fits(self, more: int, own: int = 0) -> bool:
        """Say whether a holder that has ``own`` may have ``more`` besides."""
        return own + more <= self.limit - self.used


def subscription(pattern: str) -> int:
    """Return what a subscription costs."""
    return SUBSCRIPTION + LEVEL * (pattern.count("/") + 1) + 8 * len(pattern)


def will(topic: bytes, payload: bytes, block: bytes) -> int:
    """Return what a will costs while it may still come."""
    return WILL + len(topic) + len(payload) + 2 * len(block)

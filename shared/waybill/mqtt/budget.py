"""What many share, and what things cost in memory. No I/O.

Costs are what CPython needs at most for an object and what refers to it, bytes, rounded up; a limit in bytes counts
them, so that it bounds memory and not just what was sent.
"""

from __future__ import annotations

from typing import Final

from waybill.mqtt.limits import KIB, MIB

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
"""Of a QoS 2 id that is held, and of a message that is remembered (O1), as a hash."""

RETAINED: Final = 512
ALIAS: Final = 256
"""Of a retained message, and of a topic alias, besides their bytes."""

SHARE: Final = 16
"""How many messages are remembered of a client, however many there are."""

FOLD_BYTES_ALL: Final = 32 * MIB
"""What the resend memories of all clients hold that is no hash yet."""

SMALL: Final = 4 * KIB
"""What a connection may keep of output, or of input, without being counted."""

ASKED: Final = 128
ASKED_BYTES: Final = 16 * KIB
"""Of a topic for which the answer of ``authorize_publish`` is remembered, and of all of a connection."""

CONNECTION: Final = 12 * KIB
TLS: Final = 320 * KIB
"""Of an idle connection, over a WebSocket, and what asyncio and OpenSSL need besides for TLS."""

SESSION: Final = 12 * KIB
AWAY: Final = 6 * KIB
"""Of a session, and of the resend memory of a client that is away, with the longest client ids and user names."""

BLOCKS: Final = 8 * MIB
"""Of the property blocks that are remembered as understood."""

READ: Final = 256 * KIB
"""Bytes that are read at once."""


class Budget:
    """A limit that many share, of bytes or of things. A holder may get no more than what is left then, as a whole.

    So one that takes bit by bit gets half of it at most, and however many do that, there is something left for the
    next: about as much as each of them has.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def fits(self, more: int, own: int = 0) -> bool:
        """Say whether a holder that has ``own`` may have ``more`` besides."""
        return own + more <= self.limit - self.used


def read(max_packet: int) -> int:
    """Return what one read costs at most: the end of the largest packet, or the smallest packets there are."""
    return 2 * (max_packet + READ) + READ // 5 * PUBLISH


def subscription(pattern: str) -> int:
    """Return what a subscription costs."""
    return SUBSCRIPTION + LEVEL * (pattern.count("/") + 1) + 8 * len(pattern)


def will(topic: bytes, payload: bytes, block: bytes) -> int:
    """Return what a will costs while it may still come."""
    return WILL + len(topic) + len(payload) + 2 * len(block)

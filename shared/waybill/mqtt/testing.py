"""A sink in memory: the second implementation of :class:`waybill.mqtt.state.Sink`.

For tests and for trying things out.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from waybill.mqtt.resend import entries_of
from waybill.mqtt.state import (
    DUP_WINDOW,
    Arrival,
    Batch,
    Change,
    Dequeued,
    InboundHeld,
    InboundReleased,
    Queued,
    Received,
    ResendEntry,
    ResendFrozen,
    RetainCleared,
    Retained,
    SavedMessage,
    SavedSession,
    SavedState,
    SessionDeleted,
    SessionLeft,
    SessionOpened,
    Subscribed,
    Subscription,
    Unsubscribed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class _Session:
    version: int
    expiry: int
    expires_ms: int = 0
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    queue: dict[int, SavedMessage] = field(default_factory=dict)
    inbound: dict[int, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Memory:
    frozen: list[ResendEntry] = field(default_factory=list)
    tail: list[ResendEntry] = field(default_factory=list)


class MemorySink:
    """Keeps what was committed, and restores it.

    ``delay``: seconds that a commit takes. ``gate``: while it is cleared, commits wait. ``failures``: raised by the
    next commits, one each. ``arrivals``: all that was stored; ``batches``: how many commits returned.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[Exception] = []
        self.arrivals: list[Arrival] = []
        self.changes: list[Change] = []
        self.batches = 0
        self.waiting = 0
        self._sessions: dict[str, _Session] = {}
        self._retained: dict[bytes, Retained] = {}
        self._memories: dict[str, _Memory] = {}

    @property
    def messages(self) -> list[tuple[str, bytes, bytes]]:
        """Client id, topic and payload of every message stored, in order."""
        return [(arrival.client_id, each[0], each[1]) for arrival in self.arrivals for each in arrival.publishes]

    async def restore(self) -> SavedState:
        """Return the state as of the last commit."""
        return SavedState(
            {
                client: SavedSession(
                    each.version,
                    dict(each.subscriptions),
                    [each.queue[n] for n in sorted(each.queue)],
                    list(each.inbound),
                    each.expiry,
                    each.expires_ms,
                )
                for client, each in self._sessions.items()
            },
            dict(self._retained),
            {client: each.frozen + each.tail for client, each in self._memories.items() if each.frozen or each.tail},
        )

    async def commit(self, batch: Batch) -> None:
        """Keep a batch, or raise the next of ``failures``."""
        self.waiting += 1
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            await self.gate.wait()
        finally:
            self.waiting -= 1
        if self.failures:
            raise self.failures.pop(0)
        self._remember(batch)
        for change in batch.changes:
            self._apply(change)
        self.arrivals += batch.arrivals
        self.changes += batch.changes
        self.batches += 1

    def _remember(self, batch: Batch) -> None:
        frozen = [change for change in batch.changes if isinstance(change, ResendFrozen)]
        for at, arrival in enumerate(batch.arrivals):
            self._freeze([change for change in frozen if change.at == at])
            memory = self._memories.setdefault(arrival.client_id, _Memory())
            del memory.tail[: max(0, len(memory.tail) - arrival.keep)]
            memory.tail = (memory.tail + entries_of(arrival.raw, arrival.version))[-DUP_WINDOW:]
        self._freeze([change for change in frozen if change.at >= len(batch.arrivals)])

    def _freeze(self, changes: Sequence[ResendFrozen]) -> None:
        for change in changes:
            self._memories[change.client] = _Memory(list(change.entries))

    def _apply(self, change: Change) -> None:  # noqa: C901, PLR0912 - a case a change
        match change:
            case SessionOpened(client, version, expiry):
                session = self._sessions.setdefault(client, _Session(version, expiry))
                session.version, session.expiry, session.expires_ms = version, expiry, 0
            case SessionLeft(client, expiry, expires_ms):
                session = self._sessions[client]
                session.expiry, session.expires_ms = expiry, expires_ms
            case SessionDeleted(client):
                self._sessions.pop(client, None)
            case Subscribed(client, pattern, options, identifier):
                self._sessions[client].subscriptions[pattern] = options, identifier
            case Unsubscribed(client, pattern):
                self._sessions[client].subscriptions.pop(pattern, None)
            case Queued(client, n, qos, retain, topic, payload, block, expires_ms):
                message = SavedMessage(n, qos, retain, topic, payload, block, expires_ms=expires_ms)
                self._sessions[client].queue[n] = message
            case Received(client, n):
                queue = self._sessions[client].queue
                queue[n] = replace(queue[n], received=True)
            case Dequeued(client, n):
                self._sessions[client].queue.pop(n, None)
            case InboundHeld(client, pid):
                self._sessions[client].inbound[pid] = None
            case InboundReleased(client, pid):
                self._sessions[client].inbound.pop(pid, None)
            case Retained():
                self._retained[change.topic] = change
            case RetainCleared(topic):
                self._retained.pop(topic, None)
            case ResendFrozen():
                pass  # in its place among the arrivals

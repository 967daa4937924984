"""The second implementation of the port: a buffer in memory, for tests of what stands before and behind it.

It keeps the contract but durability: ``restart`` stands for what a restart of the agent does to a durable one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from edge_agent.buffer.blocks import ChunkHead, parse
from edge_agent.buffer.index import Index, LaneIndex, Outcome, Track
from edge_agent.buffer.port import LOCAL, Backlog, Commit, Lease, OutboxEntry, Position, Stored
from waybill.errors import Unavailable
from waybill.mqtt import state as mqtt
from waybill.mqtt.resend import entries_of
from waybill.wire import (
    COMMAND_STATUS_TOPIC,
    CONTROL_LANE,
    RECEIPT_TOPIC,
    TELEMETRY_LANE,
    CommandStatus,
    Envelope,
    Receipt,
    Span,
)


@dataclass(slots=True)
class _Session:
    version: int
    expiry: int
    expires_ms: int = 0
    subscriptions: dict[str, mqtt.Subscription] = field(default_factory=dict)
    queue: dict[int, mqtt.SavedMessage] = field(default_factory=dict)
    inbound: dict[int, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Memory:
    frozen: list[mqtt.ResendEntry] = field(default_factory=list)
    tail: list[mqtt.ResendEntry] = field(default_factory=list)


class MemoryBuffer:
    """A :class:`edge_agent.buffer.port.Buffer` whose every method is plain Python."""

    def __init__(self, gateway: str, *, now_ms: int = 0, window: int = mqtt.DUP_WINDOW) -> None:
        self.fault = ""
        self.refusing: frozenset[str] = frozenset()
        self.now_ms = now_ms
        self._gateway = gateway
        self._window = window
        self._index = Index(1, _epoch(), "boot-1", (CONTROL_LANE, TELEMETRY_LANE))
        self._messages: dict[tuple[str, int, int], Stored] = {}
        self._sessions: dict[str, _Session] = {}
        self._retained: dict[bytes, mqtt.Retained] = {}
        self._memories: dict[str, _Memory] = {}
        self._outbox: dict[str, tuple[OutboxEntry, bool]] = {}
        self._appended = asyncio.Event()
        self._closed = False

    @property
    def epoch(self) -> int:
        """The epoch of this start."""
        return self._index.epoch

    def restart(self) -> None:
        """Begin a new epoch with what there is, as a restarted agent does."""
        lanes, ordinal = self._index.lanes, self._index.ordinal
        self._index = Index(ordinal + 1, _epoch(), "boot-1", ())
        self._index.lanes = lanes
        for memory in self._memories.values():
            memory.frozen, memory.tail = (memory.frozen + memory.tail)[-self._window :], []
        self._closed = False

    async def restore(self) -> mqtt.SavedState:
        """Return sessions, queues, retained messages and resend memories."""
        return mqtt.SavedState(
            {
                client: mqtt.SavedSession(
                    s.version, dict(s.subscriptions), list(s.queue.values()), list(s.inbound), s.expiry, s.expires_ms
                )
                for client, s in self._sessions.items()
            },
            dict(self._retained),
            {
                client: (memory.frozen + memory.tail)[-self._window :]
                for client, memory in self._memories.items()
                if memory.frozen or memory.tail
            },
        )

    async def commit(self, commit: Commit) -> None:
        """Take in ``commit``. Raises Unavailable once closed."""
        if self._closed:
            raise Unavailable("the buffer is closed")
        frozen = [change for change in commit.changes if isinstance(change, mqtt.ResendFrozen)]
        for at, chunk in enumerate(commit.chunks):
            self._freeze([each for each in frozen if each.at == at])
            memory = self._memories.setdefault(chunk.client, _Memory())
            memory.tail = memory.tail[-chunk.keep :] if chunk.keep else []
            memory.tail = (memory.tail + (entries_of(chunk.raw, chunk.version) if chunk.remembered else []))[
                -self._window :
            ]
            if chunk.lane != LOCAL:
                head = ChunkHead(
                    chunk.client, chunk.version, chunk.wall_ms, chunk.mono_ns, 0, chunk.count, 0, 0, len(chunk.raw)
                )
                self._append(chunk.lane, parse(head, chunk.raw, {}))
        self._freeze([each for each in frozen if each.at >= len(commit.chunks)])
        for change in commit.changes:
            self._change(change)
        for result in commit.results:
            entry, done = self._outbox.get(result.id, (None, False))
            if entry is not None and entry.device == result.device and not done:
                self._outbox[result.id] = entry, True
                self._status(result.id, result.device, "done", result.at_ms, result.payload)
        for own in commit.own:
            self._own(own.topic, own.payload)

    async def lease(self, lane: str, after: Position | None, count: int, size: int) -> Lease | None:
        """Return the next messages of ``lane``."""
        return self._lease(lane, self._index.next_unsettled(lane, after), count, size)

    async def lease_newest(
        self, lane: str, under_way: Sequence[tuple[int, int, int]], count: int, size: int
    ) -> Lease | None:
        """Return the newest messages of ``lane``."""
        return self._lease(lane, self._index.newest_unsettled(lane, under_way, count, size), count, 2 * size)

    def _lease(self, lane: str, found: tuple[Track, int, int] | None, count: int, size: int) -> Lease | None:
        if found is None:
            return None
        track, first, last = found
        messages: list[Stored] = []
        for seq in range(first, min(last, first + count - 1) + 1):
            messages.append(self._messages[lane, track.ordinal, seq])
            size -= len(messages[-1].payload)
            if size <= 0:
                break
        end = Position(track.ordinal, first + len(messages) - 1)
        oldest = self._index.oldest_epoch(lane)
        return Lease(lane, track.epoch, track.prev_epoch, track.prev_last, oldest, first, messages, end, track.boot)

    async def settle(self, spans: Sequence[Span]) -> int:
        """Forget messages."""
        count = 0
        for span in spans:
            if clamped := self._index.clamp(span):
                track, first, last = clamped
                for seq in range(first, last + 1):
                    if gone := self._messages.pop((span.lane, track.ordinal, seq), None):
                        self._index.lanes[span.lane].bytes -= len(gone.payload)
                before = track.settled.total
                track.settled.add(first, last)
                count += track.settled.total - before
                self._index.forget_done(span.lane)
                self._index.lanes[span.lane].oldest_ms = self._oldest(span.lane)
        return count

    async def give_up(self, receipt: Receipt) -> None:
        """Declare a loss and settle its span."""
        self._own(RECEIPT_TOPIC, msgspec.json.encode(receipt))
        await self.settle([Span(receipt.epoch, receipt.lane, receipt.first, receipt.last)])

    async def receive(self, envelope: Envelope, now_ms: int) -> bool:
        """Take a command in."""
        if envelope.expires_ms <= now_ms or envelope.id in self._outbox:
            return False
        e = envelope
        self._outbox[e.id] = OutboxEntry(e.id, e.device, e.name, e.payload, e.expires_ms), False
        self._status(e.id, e.device, "delivered", now_ms, None)
        return True

    async def outbox(self, now_ms: int) -> Sequence[OutboxEntry]:
        """Return the open commands. An id is kept for a day after its expiry."""
        day = 24 * 3600 * 1000
        self._outbox = {k: v for k, v in self._outbox.items() if v[0].expires_ms > now_ms - day}
        return [entry for entry, done in self._outbox.values() if not done and entry.expires_ms > now_ms]

    async def changed(self) -> None:
        """Wait until something was appended since the last call returned."""
        await self._appended.wait()
        self._appended.clear()

    def backlog(self) -> Sequence[Backlog]:
        """Return what waits in every lane."""
        return self._index.backlog()

    async def close(self) -> None:
        """Refuse what comes."""
        self._closed = True

    def _append(self, lane: str, messages: Sequence[Stored]) -> None:
        track = self._index.upcoming(lane)
        for seq, message in enumerate(messages, track.last + 1):
            self._messages[lane, track.ordinal, seq] = message
        outcome = Outcome(lasts={lane: track.last + len(messages)})
        outcome.added[lane] = sum(len(message.payload) for message in messages)
        self._index.lanes.setdefault(lane, LaneIndex())
        outcome.oldest[lane] = self._oldest(lane)
        self._index.apply(outcome)
        self._appended.set()

    def _oldest(self, lane: str) -> int | None:
        found = [key for key in self._messages if key[0] == lane]
        return self._messages[min(found)].wall_ms if found else None

    def _own(self, topic: str, payload: bytes) -> None:
        self._append(CONTROL_LANE, [Stored(topic, "", self.now_ms, 0, payload)])

    def _status(self, command: str, device: str, state: Any, at_ms: int, result: bytes | None) -> None:  # noqa: ANN401
        status = CommandStatus(command, self._gateway, device, state, at_ms, result)
        self._own(COMMAND_STATUS_TOPIC, msgspec.json.encode(status))

    def _freeze(self, frozen: Sequence[mqtt.ResendFrozen]) -> None:
        for each in frozen:
            self._memories[each.client] = _Memory(list(each.entries))

    def _change(self, change: mqtt.Change) -> None:  # noqa: C901, PLR0912 - one case a change
        sessions = self._sessions
        match change:
            case mqtt.SessionOpened(client, version, expiry):
                session = sessions.setdefault(client, _Session(version, expiry))
                session.version, session.expiry, session.expires_ms = version, expiry, 0
            case mqtt.SessionLeft(client, expiry, expires_ms):
                sessions[client].expiry, sessions[client].expires_ms = expiry, expires_ms
            case mqtt.SessionDeleted(client):
                sessions.pop(client, None)
            case mqtt.Subscribed(client, pattern, options, identifier):
                sessions[client].subscriptions[pattern] = options, identifier
            case mqtt.Unsubscribed(client, pattern):
                sessions[client].subscriptions.pop(pattern, None)
            case mqtt.Queued(client, n, qos, retain, topic, payload, block, expires_ms):
                message = mqtt.SavedMessage(n, qos, retain, topic, payload, block, expires_ms=expires_ms)
                sessions[client].queue[n] = message
            case mqtt.Received(client, n):
                if n in sessions[client].queue:
                    sessions[client].queue[n] = replace(sessions[client].queue[n], received=True)
            case mqtt.Dequeued(client, n):
                sessions[client].queue.pop(n, None)
            case mqtt.InboundHeld(client, pid):
                sessions[client].inbound[pid] = None
            case mqtt.InboundReleased(client, pid):
                sessions[client].inbound.pop(pid, None)
            case mqtt.Retained():
                self._retained[change.topic] = change
            case mqtt.RetainCleared(topic):
                self._retained.pop(topic, None)


def _epoch() -> int:
    return secrets.randbelow(2**63 - 1) + 1

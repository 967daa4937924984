"""From the MQTT server to the buffer: each batch becomes one commit.

What goes up is configured as filters; it goes as whole runs of packets, as they came in. What stays at the gateway
(commands, and what the filters leave out) is not stored in a lane; what the resend memory needs of it is (O3).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from edge_agent.buffer.port import LOCAL, Buffer, Chunk, CommandResult, Commit
from edge_agent.lanes import Lane
from waybill.mqtt.state import Arrival, Batch, Change, Publish, ResendEntry, ResendFrozen, SavedState
from waybill.mqtt.topics import matcher
from waybill.wire import TELEMETRY_LANE

MAX_TOPICS: Final = 20_000
"""Topics whose lane is remembered; beyond that the memory begins anew."""

_RESULT_LEVELS: Final = 4


@dataclass(frozen=True, slots=True)
class Forward:
    """Which topics go up: those that match one of ``filters`` and none of ``exclude``; never those of ``$…``."""

    filters: Sequence[str] = ("#",)
    exclude: Sequence[str] = ("cmd/#",)
    lanes: Sequence[Lane] = ()
    """Those that claim some of them; telemetry has the rest."""


@dataclass(slots=True)
class Counters:
    """Since the start: messages that go up, messages that stay.

    ``refused``: by lane, messages for which there was no room and that were not taken: those of QoS 1 and 2 that the
    broker turned away, and those of QoS 0, which stayed.
    """

    forwarded: int = 0
    local: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Intake:
    """A :class:`waybill.mqtt.state.Sink` on a buffer."""

    def __init__(self, buffer: Buffer, forward: Forward | None = None, sources: Iterable[str] = ()) -> None:
        """``sources``: names of brokers that the agent subscribes to."""
        forward = forward or Forward()
        self.remembered: dict[str, Sequence[ResendEntry]] = dict.fromkeys(sources, ())
        """Of each source, the resend memory as of the last commit; :meth:`restore` fills it in."""
        self.counters = Counters()
        self._buffer = buffer
        # One expression each: where a fleet has a million topics, they are asked for nearly every message.
        self._staying = _any(rb"\$.*", *map(_expression, forward.exclude)).fullmatch
        self._going = None if "#" in forward.filters else _any(*map(_expression, forward.filters)).fullmatch
        claims = [(each, lane.name) for lane in forward.lanes for each in lane.filters]
        self._claimed = _any(*(b"(%s)" % _expression(each) for each, _ in claims)).fullmatch
        self._names = [name for _, name in claims]
        self._lanes: dict[bytes, str] = {}
        self._refusing: frozenset[str] = frozenset()

    async def restore(self) -> SavedState:
        """Return the state as of the last commit, without the memories of the sources, which keep their own."""
        saved = await self._buffer.restore()
        memories = dict(saved.memories)
        self.remembered = {name: memories.pop(name, ()) for name in self.remembered}
        return replace(saved, memories=memories)

    async def commit(self, batch: Batch) -> None:
        """Store the batch. Raises Unavailable only when the buffer is closed."""
        await self._buffer.commit(self.translate(batch))

    def lane_of(self, topic: bytes) -> str:
        """Return the lane of a topic, LOCAL for what stays."""
        lane = self._lanes.get(topic)
        if lane is not None:
            return lane
        if self._staying(topic) or not (self._going is None or self._going(topic)):
            lane = LOCAL
        else:
            claim = self._claimed(topic) if self._names else None
            lane = TELEMETRY_LANE if claim is None or claim.lastindex is None else self._names[claim.lastindex - 1]
        if len(self._lanes) >= MAX_TOPICS:
            self._lanes.clear()
        self._lanes[topic] = lane
        return lane

    def shut(self, topic: bytes) -> bool:
        """Tell whether there is no room for messages of a topic."""
        refusing = self._buffer.refusing
        return bool(refusing) and self.lane_of(topic) in refusing

    def turned_down(self, topic: str) -> None:
        """The broker did not take a message, because its lane is shut."""
        self.counters.refused[self.lane_of(topic.encode())] += 1

    def translate(self, batch: Batch) -> Commit:
        """Return the batch as a commit."""
        chunks: list[Chunk] = []
        results: list[CommandResult] = []
        self._refusing = self._buffer.refusing
        begins: list[int] = []  # the chunk with which each arrival begins
        for arrival in batch.arrivals:
            begins.append(len(chunks))
            self._arrival(arrival, chunks, results)
        begins.append(len(chunks))
        changes: list[Change] = batch.changes
        if any(type(change) is ResendFrozen for change in changes):
            changes = [
                msgspec.structs.replace(change, at=begins[change.at]) if isinstance(change, ResendFrozen) else change
                for change in changes
            ]
        return Commit(chunks, changes, results)

    def _goes(self, publish: Publish) -> str:
        """Return the lane of a message; LOCAL where it stays, as QoS 0 does when its lane has no room."""
        lane = self.lane_of(publish[0])
        if lane in self._refusing and publish[3] is None:
            self.counters.refused[lane] += 1
            return LOCAL
        return lane

    def _arrival(self, arrival: Arrival, chunks: list[Chunk], results: list[CommandResult]) -> None:
        publishes = arrival.publishes
        count = len(publishes)
        known, lane_of = self._lanes.get, self.lane_of
        # One pass over the common case: every topic known, one lane for all.
        lane = lane_of(publishes[0][0])
        if count > 1 and len({known(publish[0]) or lane_of(publish[0]) for publish in publishes}) > 1:
            lane = LOCAL
        if lane != LOCAL and lane not in self._refusing:
            self.counters.forwarded += count
            if count == 1:
                remembered = int(publishes[0][3] is not None)
            else:
                remembered = sum([publish[3] is not None for publish in publishes])
            if publishes[0][3] == _NO_ID:  # a will, which is an arrival of its own
                remembered = 0
            a = arrival
            chunk = Chunk(lane, a.client_id, a.version, a.wall_ms, a.mono_ns, a.keep, count, a.raw, remembered)
            chunks.append(chunk)
            return
        keep = arrival.keep
        for lane, run in _runs(publishes, self._goes):
            remembered = sum([publish[3] is not None and publish[3] != _NO_ID for publish in run])
            if lane == LOCAL:
                self.counters.local += len(run)
                kept = [arrival.raw[p[4] : p[5]] for p in run if p[3] is not None and p[3] != _NO_ID]
                results += [result for publish in run if (result := _result(arrival, publish))]
                raw, count = b"".join(kept), len(kept)
            else:
                self.counters.forwarded += len(run)
                raw, count = arrival.raw[run[0][4] : run[-1][5]], len(run)
            a = arrival
            chunks.append(Chunk(lane, a.client_id, a.version, a.wall_ms, a.mono_ns, keep, count, raw, remembered))
            keep += remembered


def _expression(pattern: str) -> bytes:
    return matcher(pattern).pattern


def _any(*expressions: bytes) -> re.Pattern[bytes]:
    """Return an expression that takes what the first of ``expressions`` takes that takes anything."""
    return re.compile(b"|".join(expressions), re.DOTALL)


_NO_ID: Final = b"\0\0"
"""The packet id of a message that no client sent: the resend memory is not about it."""


def _runs(publishes: Sequence[Publish], lane_of: Callable[[Publish], str]) -> list[tuple[str, list[Publish]]]:
    """Cut publishes into runs of one lane each, in order."""
    runs: list[tuple[str, list[Publish]]] = []
    for publish in publishes:
        lane = lane_of(publish)
        if runs and runs[-1][0] == lane and runs[-1][1][-1][5] == publish[4]:
            runs[-1][1].append(publish)
        else:
            runs.append((lane, [publish]))
    return runs


def _result(arrival: Arrival, publish: Publish) -> CommandResult | None:
    """Return a device's answer to a command, if ``publish`` is one: ``cmd/{device}/{id}/res``."""
    topic = publish[0]
    if not topic.startswith(b"cmd/") or not topic.endswith(b"/res"):
        return None
    levels = topic.decode().split("/")
    if len(levels) != _RESULT_LEVELS:
        return None
    return CommandResult(levels[2], levels[1], bytes(publish[1]), arrival.wall_ms)

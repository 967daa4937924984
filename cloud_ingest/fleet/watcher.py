"""What one node knows of the whole fleet: follows ``waybill.health``, and is told what presence and commands say.

::

    waybill.presence ─▶ Keeper ───────╮
    waybill.health ─▶ follow() ───────┼▶ Fleet, nodes ─▶ answers: HTTP API (api), socket for tools
    commands, their states ─▶ Dispatcher ─▶ Recent

Every node writes a record of its own into ``waybill.health`` every few seconds, so all know how far each partition is.
It takes that back when it ends; one that was killed is forgotten by the others after a day.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Protocol

import msgspec

from cloud_ingest.config import Topics
from cloud_ingest.fleet.recent import Recent
from cloud_ingest.fleet.state import Fleet, is_gateway, lags
from cloud_ingest.following import Readable, following
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import CaughtUp, Described, OutRecord, TopicRecord, TopicSeen
from cloud_ingest.presence import Here
from cloud_ingest.wall import now_ms
from waybill.errors import Refused, Unavailable
from waybill.fleet_state import (
    CommandsState,
    FleetSnapshot,
    GatewayDetail,
    KafkaState,
    LogState,
    NodeState,
    PartitionState,
    TopicState,
)
from waybill.log_lines import LogLines
from waybill.snapshot import Handler
from waybill.wire import NODE

log = logging.getLogger(__name__)

EVERY: Final = 5.0
"""Seconds between two records of a node."""

STALE_MS: Final = 20_000
"""A node that has said nothing for so long is not counted on."""

FORGET_MS: Final = 86_400_000
"""A node that has said nothing for so long is forgotten."""

MAX_NODES: Final = 1_000

FRESH: Final = 0.5
"""Seconds for which what this node says of itself is said again."""

DESCRIBED: Final = 3.0
"""Seconds for which what Kafka said of itself is said again, however many ask."""

_decode_node = msgspec.json.Decoder(NodeState).decode
_encode = msgspec.json.Encoder().encode

Use = Literal["frames", "table", "commands", "route", "dead letters"]


class Source(Readable, Protocol):
    """The part of a log that this needs."""

    @property
    def partitions(self) -> int:
        """How many frames partitions there are."""

    async def append(self, record: OutRecord) -> None:
        """Append one record; as in the log's port."""

    async def describe(self, topics: Any) -> Described:  # noqa: ANN401 - a collection of names
        """Say how brokers and topics are; as in the log's port."""


class Watcher:
    """The fleet as one node sees it. ``node``: its name; ``me``: what it says of itself, without ``told_ms``."""

    def __init__(
        self,
        source: Source,
        topics: Topics,
        routes: tuple[str, ...],
        *,
        deployment: str,
        node: str,
        kind: Literal["kafka", "embedded"],
        me: Callable[[], NodeState],
    ) -> None:
        """``routes``: the topics of the routes. Nothing runs yet."""
        self._log = source
        self._topics = topics
        self._uses = _uses(topics, routes)
        self._deployment = deployment
        self._node = node
        self._kind = kind
        self._ask_me = me
        self._mine: tuple[float, NodeState] | None = None
        self.lines = LogLines()
        self._fleet = Fleet(
            secrets.token_hex(4), lambda name: partition_of(name.encode(), source.partitions), self.lines.add
        )
        self._recent = Recent()
        self._nodes: dict[str, NodeState] = {}
        self._described: tuple[float, Described] | None = None
        self._describing = asyncio.Lock()
        self._live = False
        self.fault = ""
        self.faults: Callable[[], tuple[str, ...]] = lambda: ()
        """Why presence and commands may be old."""

    # --- what is read ---

    def presence(self, key: str, here: Here | None, live: bool) -> None:  # noqa: FBT001 - as the keeper tells it
        """Take a record of the presence topic; ``live``: it is new."""
        if is_gateway(key):
            self._fleet.presence(key, here, live=live)

    def command(self, record: TopicRecord) -> None:
        """Take a record of the commands topic, or of the states' topic."""
        if record.topic == self._topics.commands:
            self._recent.command(record)
        else:
            self._recent.status(record)

    async def follow(self) -> None:
        """Follow the health topic until cancelled; where the log is away, say so and try again."""
        while True:
            self._live = False
            try:
                async with following(self._log, [self._topics.health]) as records:
                    async for record in records:
                        if isinstance(record, CaughtUp):
                            self._live = True
                            self.fault = ""
                        else:
                            self._read(record)
            except (Unavailable, Refused) as error:  # refused: the topic is not there yet, or not allowed
                if not self.fault:
                    log.warning("the state of the fleet waits: %s", error)
                self.fault = f"health: {error}"
            await asyncio.sleep(1.0)

    def _read(self, record: TopicRecord) -> None:
        key = (record.key or b"").decode(errors="replace")
        try:
            if is_gateway(key):
                self._fleet.health(key, record.value, record.stamp_ms, live=self._live)
            elif key.startswith(NODE):
                self._read_node(key, record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("%s[%d] offset %d is skipped: %s", record.topic, record.partition, record.offset, error)

    def _read_node(self, key: str, record: TopicRecord) -> None:
        if record.value is None:
            self._nodes.pop(key, None)
        elif key in self._nodes or len(self._nodes) < MAX_NODES:
            self._nodes[key] = msgspec.structs.replace(_decode_node(record.value), told_ms=record.stamp_ms)

    # --- what is written ---

    async def tell(self) -> None:
        """Write this node's record until cancelled."""
        while True:
            try:
                await self._log.append(self._record(self._node, self._me()))
                old = [name for name, one in self._nodes.items() if one.told_ms < now_ms() - FORGET_MS]
                for name in old[:10]:
                    await self._log.append(self._record(name, None))
            except (Unavailable, Refused) as error:
                log.debug("this node's health is not written: %s", error)
            await asyncio.sleep(EVERY)

    async def finish(self, patience: float) -> None:
        """Take this node's record back, within ``patience`` seconds; ``tell`` no longer runs."""
        try:
            async with asyncio.timeout(patience):
                await self._log.append(self._record(self._node, None))
        except (Unavailable, Refused, TimeoutError):
            pass  # it is forgotten after a day

    def _record(self, name: str, state: NodeState | None) -> OutRecord:
        value = None if state is None else _encode(state)
        return OutRecord(self._topics.health, name.encode(), value, [("content-type", b"application/json")])

    # --- what is asked ---

    def ops(self) -> Mapping[str, Handler]:
        """Return the same answers for the socket: fleet (since), gateway (id), commands, kafka, log (since)."""

        async def fleet(request: dict[str, Any]) -> FleetSnapshot:
            return self.fleet(str(request.get("since", "")))

        async def gateway(request: dict[str, Any]) -> GatewayDetail:
            return self.gateway(str(request.get("id", "")))

        async def commands(_: dict[str, Any]) -> CommandsState:
            return self.commands()

        async def kafka(_: dict[str, Any]) -> KafkaState:
            return await self.kafka()

        async def log_lines(request: dict[str, Any]) -> LogState:
            return self.log_lines(str(request.get("since", "")))

        return {"fleet": fleet, "gateway": gateway, "commands": commands, "kafka": kafka, "log": log_lines}

    def fleet(self, since: str = "") -> FleetSnapshot:
        """Answer what has changed ``since``; its rows are to be encoded, and nothing else."""
        nodes = self._now()
        blank = FleetSnapshot(
            at_ms=now_ms(),
            deployment=self._deployment,
            node=self._node,
            revision="",
            full=True,
            gateways=(),
            lag_ms=lags(
                ((part.partition, part.behind_ms) for node in nodes for part in node.partitions), self._log.partitions
            ),
            faults=tuple(
                dict.fromkeys(
                    text
                    for text in (self.fault, *self.faults(), *(text for node in nodes for text in node.faults))
                    if text
                )
            ),
        )
        return self._fleet.snapshot(since, blank)

    def gateway(self, name: str) -> GatewayDetail:
        """Answer all that is known of one gateway. Raises Refused where nothing is."""
        return self._fleet.detail(name, now_ms())

    def commands(self) -> CommandsState:
        """Answer the newest commands."""
        return CommandsState(now_ms(), self._recent.newest(), "; ".join(filter(None, self.faults())))

    def log_lines(self, since: str = "") -> LogState:
        """Answer the newest lines."""
        return self.lines.state(since)

    async def kafka(self) -> KafkaState:
        """Answer how the log behind the fleet is."""
        nodes = self._now()
        known = {part.partition: part for node in nodes for part in node.partitions}
        parts = tuple(known.get(number, PartitionState(number)) for number in range(self._log.partitions))
        try:
            found = await self._describe()
        except Unavailable as error:
            return KafkaState(now_ms(), self._kind, nodes=nodes, partitions=parts, fault=str(error))
        topics = tuple(
            _topic(name, use, found.topics[name], parts) for name, use in self._uses.items() if name in found.topics
        )
        missing = [name for name in self._uses if name not in found.topics and self._kind == "kafka"]
        fault = f"not there: {', '.join(missing)}" if missing else ""
        return KafkaState(now_ms(), self._kind, found.brokers, nodes, parts, topics, fault)

    async def _describe(self) -> Described:
        async with self._describing:
            now = time.monotonic()
            if self._described is None or now - self._described[0] > DESCRIBED:
                self._described = now, await self._log.describe(self._uses.keys())
            return self._described[1]

    def _me(self) -> NodeState:
        now = time.monotonic()
        if self._mine is None or now - self._mine[0] > FRESH:
            self._mine = now, msgspec.structs.replace(self._ask_me(), told_ms=now_ms())
        return self._mine[1]

    def _now(self) -> tuple[NodeState, ...]:
        """Return the nodes that are there; this one as of now."""
        now = now_ms()
        others = [one for one in self._nodes.values() if one.node != self._node and one.told_ms > now - STALE_MS]
        return tuple(sorted((*others, self._me()), key=lambda one: one.node))


def _uses(topics: Topics, routes: tuple[str, ...]) -> Mapping[str, Use]:
    found: dict[str, Use] = {
        topics.frames: "frames",
        topics.ledger: "table",
        topics.dictionaries: "table",
        topics.presence: "table",
        topics.health: "table",
        topics.commands: "commands",
        topics.command_status: "commands",
    }
    found |= dict.fromkeys(routes, "route")
    found |= dict.fromkeys((topics.dead_letters, *(f"{route}.dlq" for route in dict.fromkeys(routes))), "dead letters")
    return found


def _topic(name: str, use: Use, seen: TopicSeen, parts: tuple[PartitionState, ...]) -> TopicState:
    lag: int | None = None
    if use == "frames":
        ends = dict(enumerate(end for _, end in seen.offsets))
        places = [part for part in parts if part.position is not None and part.partition in ends]
        if len(places) == len(parts):
            lag = sum(max(0, ends[part.partition] - (part.position or 0)) for part in places)
    return TopicState(
        name,
        use,
        len(seen.offsets),
        seen.replicas,
        seen.under_replicated,
        seen.offline,
        sum(max(0, end - first) for first, end in seen.offsets),
        lag,
    )

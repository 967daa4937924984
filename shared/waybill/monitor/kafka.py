"""The screen *Kafka*: brokers, nodes, partitions and topics of the log behind the fleet. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from waybill.fleet_state import KafkaState, NodeState, PartitionState, TopicState
from waybill.monitor.table import Column, Order, arranged, fit, heading, line, sorts
from waybill.monitor.words import GAP, GLYPHS, NEVER, Bit, Line, Tone, beside, bit, brief, count, folded, many, span

BEHIND: Final = 60_000
"""Milliseconds from which on a partition that waits to be routed is to be looked at."""

WIDE: Final = 160
"""Cells from which on there are two columns."""

_PARTITIONS: Final = 12
"""So many partitions are listed, those in trouble first."""


def topic_tone(topic: TopicState) -> Tone:
    """Say how a topic is."""
    if topic.offline:
        return "bad"
    return "look" if topic.under_replicated or (topic.use == "dead letters" and topic.records) else "good"


def partition_tone(one: PartitionState) -> Tone:
    """Say how a partition is."""
    if one.state == "nobody":
        return "bad"
    return "look" if one.state != "ready" or (one.behind_ms or 0) >= BEHIND else "good"


def grade(state: KafkaState) -> Tone:
    """Say how all of it is: the worst."""
    tones = {topic_tone(topic) for topic in state.topics} | {partition_tone(one) for one in state.partitions}
    if state.fault:
        tones.add("bad")
    if any(node.faults for node in state.nodes):
        tones.add("look")
    worst: tuple[Tone, ...] = ("bad", "look")
    return next((tone for tone in worst if tone in tones), "good")


def _replicas(topic: TopicState) -> Bit:
    if topic.offline:
        return Bit(f"{GLYPHS['bad']} {topic.offline} leaderless", "bad")
    if topic.under_replicated:
        return Bit(f"{GLYPHS['look']} {topic.under_replicated} under", "look")
    return Bit(f"{GLYPHS['good']} whole", "good") if topic.replicas else Bit(NEVER, "quiet")


def _records(topic: TopicState) -> Bit:
    if topic.records is None:
        return Bit(NEVER, "quiet")
    return Bit(count(topic.records), "look" if topic.use == "dead letters" and topic.records else "")


TOPICS: Final[tuple[Column[TopicState], ...]] = (
    Column("topic", 22, lambda one: bit(one.topic), lambda one: one.topic, grow=1),
    Column("use", 12, lambda one: bit(one.use), lambda one: one.use),
    Column("parts", 5, lambda one: Bit(count(one.partitions)), lambda one: one.partitions, True, 2, falls=True),
    Column("copies", 6, lambda one: Bit(count(one.replicas) if one.replicas else NEVER), None, right=True, rank=3),
    Column(
        "replicas",
        14,
        _replicas,
        lambda one: (-one.offline, -one.under_replicated, one.topic),
    ),
    Column("records", 8, _records, lambda one: one.records or 0, right=True, falls=True),
    Column(
        "lag",
        6,
        lambda one: Bit("" if one.lag is None else count(one.lag), "look" if one.lag else ""),
        lambda one: one.lag or 0,
        right=True,
        falls=True,
    ),
)
SORTS: Final = tuple(sorts(TOPICS))
"""What topics can be sorted by."""

_PARTS: Final[tuple[Column[PartitionState], ...]] = (
    Column("no", 4, lambda one: Bit(str(one.partition)), None, right=True),
    Column("state", 10, lambda one: bit(f"{GLYPHS[partition_tone(one)]} {one.state}", partition_tone(one))),
    Column("node", 12, lambda one: bit(one.node or NEVER), grow=1),
    Column("behind", 6, lambda one: Bit(brief(None if one.behind_ms is None else one.behind_ms / 1000)), right=True),
    Column("offset", 8, lambda one: Bit(count(one.position)), right=True, rank=2),
    Column("routed", 7, lambda one: Bit(count(one.routed)), right=True),
    Column("copies", 7, lambda one: Bit(count(one.copies) if one.copies else ""), right=True, rank=3),
    Column("dead", 5, lambda one: Bit(count(one.dead) if one.dead else "", "look"), right=True),
    Column("dropped", 7, lambda one: Bit(count(one.dropped) if one.dropped else "", "look"), right=True, rank=4),
    Column("held", 5, lambda one: Bit(count(one.held) if one.held else "", "look"), right=True, rank=5),
    Column("why", 12, lambda one: bit(one.reason, partition_tone(one)), rank=6, grow=2, prose=True),
)
_NODES: Final[tuple[Column[NodeState], ...]] = (
    Column("node", 14, lambda one: bit(one.node), grow=1),
    Column("address", 21, lambda one: bit(one.address), rank=2),
    Column("gateways", 8, lambda one: Bit(count(one.connected)), right=True),
    Column("devices", 7, lambda one: Bit(count(one.devices)), right=True, rank=3),
    Column("routed/s", 8, lambda one: Bit(count(one.routed)), right=True),
    Column("partitions", 10, lambda one: Bit(count(len(one.partitions))), right=True, rank=1),
    Column("version", 8, lambda one: bit(one.version), rank=4),
)


def page(state: KafkaState, cells: int, order: Order) -> list[Line]:
    """Return the whole page, ``cells`` wide; topics are filtered and sorted as ``order`` says."""
    half = (cells - GAP) // 2
    if cells < WIDE:
        return [*_topics(state, cells, order), *_partitions(state.partitions, cells), *_nodes(state, cells)]
    right = [*_partitions(state.partitions, cells - GAP - half), *_nodes(state, cells - GAP - half)]
    return beside(_topics(state, half, order), right[1:], half)


def _topics(state: KafkaState, cells: int, order: Order) -> list[Line]:
    lines = folded(f"{GLYPHS['bad']} {state.fault}", cells, "bad") if state.fault else []
    fitting = fit(TOPICS, cells)
    found = arranged(state.topics, TOPICS, order)
    lines += [(Bit("Topics", "head"),), heading(fitting, order), *(line(topic, fitting) for topic in found)]
    if state.brokers:
        said = "   ".join(f"{one.id} {one.address}{' (controller)' if one.controller else ''}" for one in state.brokers)
        lines += [(), (Bit("Brokers", "head"),), *folded(said, cells)]
    return lines


def _partitions(partitions: Sequence[PartitionState], cells: int) -> list[Line]:
    if not partitions:
        return []
    ranks: dict[Tone, int] = {"bad": 0, "look": 1}
    worst = sorted(
        partitions, key=lambda one: (ranks.get(partition_tone(one), 2), -(one.behind_ms or 0), one.partition)
    )
    shown = worst[:_PARTITIONS]
    more = f"  {len(shown)} of {len(partitions)}, those in trouble first" if len(shown) < len(partitions) else ""
    fitting = fit(_PARTS, cells)
    title = (Bit("Partitions that are routed", "head"), Bit(more, "quiet"))
    return [(), title, heading(fitting, Order()), *(line(one, fitting) for one in shown)]


def _nodes(state: KafkaState, cells: int) -> list[Line]:
    if not state.nodes:
        return []
    fitting = fit(_NODES, cells)
    lines: list[Line] = [(), (Bit("Nodes", "head"),), heading(fitting, Order())]
    for node in state.nodes:
        lines.append(line(node, fitting))
        told = f" (said {span((state.at_ms - node.told_ms) / 1000)} ago)" if node.told_ms else ""
        for fault in node.faults:
            lines += [(Bit("  "), *each) for each in folded(f"{GLYPHS['look']} {fault}{told}", cells - 2, "look")]
    return lines


def summary(state: KafkaState) -> Line:
    """Say how the log is, in one line."""
    tone = grade(state)
    under = sum(topic.under_replicated for topic in state.topics)
    offline = sum(topic.offline for topic in state.topics)
    dead = sum(topic.records or 0 for topic in state.topics if topic.use == "dead letters")
    lag = sum(topic.lag or 0 for topic in state.topics)
    kind = f"Kafka, {many(len(state.brokers), 'broker')}" if state.kind == "kafka" else "the embedded log"
    return (
        Bit(f"{GLYPHS[tone]} {kind}  ", tone),
        Bit(f"{offline} leaderless  " if offline else "", "bad"),
        Bit(f"{under} under-replicated  " if state.kind == "kafka" else "", "look" if under else "quiet"),
        Bit(f"{count(lag)} to route  ", "look" if lag else "quiet"),
        Bit(f"{count(dead)} dead letter{'' if dead == 1 else 's'}", "look" if dead else "quiet"),
    )

"""The topics of a deployment: made with the right settings, or checked (R4, R6, R8, B4).

==================  ==========  =============  ==================================================================
topic               partitions  cleanup        settings that matter
==================  ==========  =============  ==================================================================
waybill.frames      as set      delete         ``message.timestamp.type=LogAppendTime`` (R7 measures by it),
                                               ``max.message.bytes`` 4 MiB (B4), ``retention.ms`` (R8)
waybill.ledger      as frames   compact only   ``segment.bytes`` 16 MiB, ``min.cleanable.dirty.ratio`` 0.1 (R4)
waybill.dictionar…  as frames   compact only   what frames were compressed with is needed to read them (R10)
waybill.commands    as set      delete         keyed by gateway: compaction would lose commands
waybill.command-…   as set      delete         keyed by command: compaction would lose its states
waybill.presence    as set      compact        the newest state of each gateway and device (C3)
waybill.health      as set      compact        ``segment.bytes``, ``min.cleanable.dirty.ratio`` as the ledger has them
dead letters        as set      delete         ``max.message.bytes`` 5 MiB: a letter holds what was too large elsewhere
routes' topics      as set      the cluster's  made only where missing
==================  ==========  =============  ==================================================================

All of them have three replicas, as far as there are brokers, of which two must have a record before it counts
(``min.insync.replicas=2``), and no leader that lacks some (``unclean.leader.election.enable=false``): what was
acknowledged is still there when a broker and its disk are not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from cloud_ingest.config import Topics
from cloud_ingest.journal.kafka_batches import DEFAULT_LIMIT, Shape
from cloud_ingest.journal.kafka_client import translated
from cloud_ingest.journal.kafka_config import KafkaConfig
from waybill.errors import ConfigError, Unavailable

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
FRAME_BYTES: Final = 4 * MIB
LETTER_BYTES: Final = 5 * MIB
ENTRY_BYTES: Final = MIB // 2
"""Of an entry of the ledger at most, and room to spare."""

SOON_COMPACTED: Final = {"segment.bytes": str(16 * MIB), "min.cleanable.dirty.ratio": "0.1"}
_DAY_MS: Final = 24 * 3_600_000
_REPLICAS: Final = 3
_IN_SYNC: Final = 2
_UNCLEAN: Final = "unclean.leader.election.enable"

APPEARS: Final = 10.0
"""Seconds within which all brokers know a topic that was just made."""

_DENIED: Final = (errors.TopicAuthorizationFailedError, errors.ClusterAuthorizationFailedError)


@dataclass(frozen=True, slots=True)
class Spec:
    """One topic. ``settings``: when made here. ``must``, ``least``: what it has to have, else it breaks a promise.

    ``why``: the promise. ``better``: below it is only doubtful. ``fixed``: its partition count must be that of the
    configuration.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    must: Mapping[str, str] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)
    better: Mapping[str, int] = field(default_factory=dict)
    fixed: bool = False


def specs(topics: Topics, routed: Sequence[str], retention_ms: int) -> list[Spec]:
    """Return what the deployment needs; ``routed``: the routes' topics, each with its dead letters ``T.dlq``."""
    letters = {"cleanup.policy": "delete", "max.message.bytes": str(LETTER_BYTES), "retention.ms": str(30 * _DAY_MS)}
    stories = {"cleanup.policy": "delete", "retention.ms": str(7 * _DAY_MS)}
    found = [
        Spec(
            topics.frames,
            settings={
                "cleanup.policy": "delete",
                "message.timestamp.type": "LogAppendTime",
                "max.message.bytes": str(FRAME_BYTES),
                "retention.ms": str(retention_ms),
                "retention.bytes": "-1",
            },
            must={
                "cleanup.policy": "delete",
                "message.timestamp.type": "LogAppendTime",
                "retention.bytes": "-1",
            },
            least={"max.message.bytes": FRAME_BYTES, "retention.ms": retention_ms},
            why={
                "cleanup.policy": "compaction would keep one frame a gateway",
                "message.timestamp.type": "gaps are given up by the log's clock (R7)",
                "max.message.bytes": "a frame that was sent must fit (B4)",
                "retention.ms": "the listener counts on frames.retention.ms (R8; set that, or the topic)",
                "retention.bytes": "by size frames would be deleted before they are routed (R8)",
            },
            fixed=True,
        ),
        Spec(
            topics.ledger,
            settings={"cleanup.policy": "compact", **SOON_COMPACTED},
            must={"cleanup.policy": "compact"},
            least={"max.message.bytes": ENTRY_BYTES},
            why={
                "max.message.bytes": "an entry that does not fit stops its partition (R4)",
                "cleanup.policy": "an entry that is deleted by age would let its messages in twice (R4)",
            },
            fixed=True,
        ),
        Spec(
            topics.dictionaries,
            settings={"cleanup.policy": "compact"},
            must={"cleanup.policy": "compact"},
            why={"cleanup.policy": "without its dictionary a frame cannot be read (R10)"},
            fixed=True,
        ),
    ]
    for name in (topics.commands, topics.command_status):
        why = {"cleanup.policy": "compaction would lose commands and their states"}
        found.append(Spec(name, settings=stories, must={"cleanup.policy": "delete"}, why=why))
    why = {"cleanup.policy": "it is what is so now, of each gateway and device; by age alone it would be forgotten"}
    compacted = {"cleanup.policy": "compact"}
    found.append(Spec(topics.presence, settings=compacted, must=compacted, why=why))
    # Every node reads all of it at its start: what is old must go soon.
    found.append(Spec(topics.health, settings=compacted | SOON_COMPACTED, must=compacted, why=why))
    distinct = list(dict.fromkeys(routed))
    found += [Spec(name) for name in distinct if name not in {spec.name for spec in found}]
    for name in (topics.dead_letters, *(f"{name}.dlq" for name in distinct)):
        why = {
            "cleanup.policy": "compaction would keep one letter a key",
            "max.message.bytes": "a dead letter that does not fit stops its partition (R5)",
        }
        better = {"max.message.bytes": LETTER_BYTES}
        found.append(Spec(name, settings=letters, must={"cleanup.policy": "delete"}, why=why, better=better))
    return found


@dataclass(frozen=True, slots=True)
class State:
    """An existing topic. ``settings``: None where they may not be read."""

    partitions: int
    replicas: int
    settings: Mapping[str, str] | None


def shape(spec: Spec, state: State) -> Shape:
    """Return what the batches must know. A limit that may not be read is taken for what it should be."""
    settings = spec.settings if state.settings is None else state.settings
    return Shape(state.partitions, int(settings.get("max.message.bytes", DEFAULT_LIMIT)))


def judge(spec: Spec, state: State, partitions: int, brokers: int) -> tuple[list[str], list[str]]:
    """Return what makes the promise untrue and what is only worth a warning; each text ends with the mend."""
    wrong: list[str] = []
    doubtful: list[str] = []
    if spec.fixed and (state.partitions < partitions or state.partitions % partitions):
        wrong.append(
            f"topic {spec.name} has {state.partitions} partitions, the configuration says {partitions}: "
            f"set [topics] partitions = {state.partitions} (frames, ledger and dictionaries must agree, R4)"
        )
    if state.replicas == 1 < brokers:
        wrong.append(
            f"topic {spec.name} has 1 replica on {brokers} brokers: what was acknowledged is lost with one disk: give "
            f"it {min(brokers, _REPLICAS)} by kafka-reassign-partitions.sh, or delete it while it is empty"
        )
    if state.settings is None:
        doubtful.append(
            f"topic {spec.name}: its settings may not be read; allow DescribeConfigs on it to have them checked"
        )
        return wrong, doubtful
    needed = [(name, value) for name, value in spec.must.items() if state.settings.get(name, value) != value]
    needed += [(name, str(least)) for name, least in spec.least.items() if _below(state.settings.get(name), least)]
    for name, value in needed:
        wrong.append(_but(spec, state.settings[name], name, value))
    if state.settings.get(_UNCLEAN, "false") != "false":
        wrong.append(
            f"topic {spec.name} has {_UNCLEAN}=true: an unclean leader loses records that were acknowledged: "
            f"{_alter(spec.name, _UNCLEAN, 'false')}"
        )
    low = [(name, least) for name, least in spec.better.items() if _below(state.settings.get(name), least)]
    doubtful += [_but(spec, state.settings[name], name, str(least)) for name, least in low]
    in_sync = int(state.settings.get("min.insync.replicas", _IN_SYNC))
    if state.replicas > 1 and in_sync < _IN_SYNC:
        wrong.append(
            f"topic {spec.name} has {state.replicas} replicas and min.insync.replicas={in_sync}: a record acknowledged "
            f"by one broker alone is lost with it: {_alter(spec.name, 'min.insync.replicas', str(_IN_SYNC))}"
        )
    elif 1 < state.replicas <= in_sync:
        doubtful.append(
            f"topic {spec.name} has {state.replicas} replicas and min.insync.replicas={in_sync}: while a broker is "
            "away nothing can be written to it; give it one replica more by kafka-reassign-partitions.sh"
        )
    if "compact" in state.settings.get("cleanup.policy", "") and not spec.must:
        doubtful.append(f"topic {spec.name} is compacted: of a device only its newest record stays")
    return wrong, doubtful


def _but(spec: Spec, found: str, name: str, value: str) -> str:
    return f"topic {spec.name} has {name}={found}, but {spec.why[name]}: {_alter(spec.name, name, value)}"


def _below(found: str | None, least: int) -> bool:
    return found is not None and 0 <= int(found) < least  # -1: without a limit


def _alter(topic: str, name: str, value: str) -> str:
    return f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {name}={value}"


async def prepare(
    admin: AIOKafkaAdminClient, config: KafkaConfig, wanted: Sequence[Spec], topics: Topics, *, allow_unsafe: bool
) -> dict[str, Shape]:
    """Make what is missing, check what is there, and return the shape of each topic.

    Raises ConfigError (what makes the promise untrue, unless ``allow_unsafe``; may not be made), Unavailable.
    """
    with translated("topics"):
        brokers = await _brokers(admin)
        there = await _described(admin, [spec.name for spec in wanted])
        missing = [spec for spec in wanted if spec.name not in there]
        if missing:
            replicas = min(brokers, _REPLICAS) if topics.replication_factor < 0 else topics.replication_factor
            hidden = await _create(admin, config, missing, topics.partitions, replicas)
            there = await _settled(admin, [spec.name for spec in wanted], hidden)
    wrong: list[str] = []
    frames, *tables = (spec.name for spec in wanted if spec.fixed)
    wrong += [
        f"topic {name} has fewer partitions than {frames} (R4): waybill cloud partitions grows them together"
        for name in tables
        if there[name].partitions < there[frames].partitions  # more: they are growing
    ]
    for spec in wanted:
        bad, doubtful = judge(spec, there[spec.name], topics.partitions, brokers)
        wrong += bad
        for text in doubtful:
            log.warning("%s", text)
    if brokers == 1:
        log.warning("Kafka has one broker: what it has acknowledged is lost with its disk")
    if wrong and not allow_unsafe:
        raise ConfigError("\n".join([*wrong, "(--allow-unsafe goes on all the same)"]))
    for text in wrong:
        log.error("unsafe, but allowed: %s", text)
    return {spec.name: shape(spec, there[spec.name]) for spec in wanted}


async def _create(
    admin: AIOKafkaAdminClient, config: KafkaConfig, missing: Sequence[Spec], partitions: int, replicas: int
) -> set[str]:
    """Create topics; return those that are there already: another node was faster, or they may not be seen.

    Raises ConfigError (may not, or cannot, be created), Unavailable.
    """
    safe = {"min.insync.replicas": str(_IN_SYNC)} if replicas > 1 else {}
    new = [NewTopic(spec.name, partitions, replicas, topic_configs={**spec.settings, **safe}) for spec in missing]
    response = await admin.create_topics(new, timeout_ms=int(config.request * 1000))
    existing: set[str] = set()
    denied: list[str] = []
    for name, code, *text in response.topic_errors:
        error = errors.for_code(code)
        if error is errors.NoError:
            continue
        if error is errors.TopicAlreadyExistsError:
            existing.add(name)
            continue
        reason = text[0] if text and text[0] else error.__name__
        if error in _DENIED:
            denied.append(
                f"topic {name} is missing and may not be created here: create it, or allow Create on it; "
                f"if it is there, allow Describe on it ({reason})"
            )
        elif error in (
            errors.InvalidReplicationFactorError,
            errors.PolicyViolationError,
            errors.InvalidConfigurationError,
        ):
            raise ConfigError(
                f"topic {name} cannot be created: {reason}; set [topics] replication_factor to what the cluster has"
            )
        else:
            raise Unavailable(f"topic {name} could not be created: {reason}")
    if denied:
        raise ConfigError("\n".join(denied))
    return existing


async def _settled(admin: AIOKafkaAdminClient, names: Sequence[str], existing: set[str]) -> dict[str, State]:
    """Wait until the brokers agree that all of ``names`` exist; ``existing``: they said so of these already.

    Raises ConfigError (there, but hidden), Unavailable.
    """
    there: dict[str, State] = {}
    for _ in range(int(APPEARS / 0.2)):
        there = await _described(admin, names)
        if len(there) == len(set(names)):
            return there
        await asyncio.sleep(0.2)
    if hidden := existing - set(there):
        raise ConfigError("\n".join(f"topic {name} is there but not seen: allow Describe on it" for name in hidden))
    raise Unavailable(f"topics were created but do not appear: {', '.join(set(names) - set(there))}")


async def _brokers(admin: AIOKafkaAdminClient) -> int:
    """Return how many brokers there are, with those that are away but known of."""
    found = {broker["node_id"] for broker in (await admin.describe_cluster())["brokers"]}
    for topic in await admin.describe_topics():
        found.update(node for part in topic["partitions"] for node in part["replicas"])
    return len(found)


async def _described(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, State]:
    found: dict[str, tuple[int, int]] = {}
    for topic in await admin.describe_topics():  # all: naming one that is missing would make a broker create it
        if topic["topic"] not in names:
            continue
        parts = topic["partitions"]
        error = errors.for_code(topic["error_code"])
        if error in _DENIED:
            raise ConfigError(f"topic {topic['topic']}: not allowed to see it; its ACL must allow Describe")
        if error is errors.NoError and parts and all(part["leader"] >= 0 for part in parts):
            found[topic["topic"]] = (len(parts), min(len(part["replicas"]) for part in parts))
    settings = await _settings(admin, list(found))
    return {name: State(*found[name], settings[name]) for name in settings}


async def _settings(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str] | None]:
    """Return the settings of topics, None where they may not be read; a topic the broker does not know is left out."""
    if not names:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str] | None] = {}
    for response in await admin.describe_configs(resources):
        for code, _text, _kind, name, entries in (resource[:5] for resource in response.resources):
            error = errors.for_code(code)
            if error is not errors.UnknownTopicOrPartitionError:  # made a moment ago
                found[name] = _pairs(entries) if error is errors.NoError else None
    return found


def _pairs(entries: Sequence[Sequence[Any]]) -> dict[str, str]:
    return {entry[0]: entry[1] for entry in entries if entry[1] is not None}

"""How a Kafka cluster and some of its topics are now: brokers, replicas that lag, offsets."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient

from cloud_ingest.journal.kafka_client import translated
from cloud_ingest.journal.port import Described, TopicSeen
from waybill.errors import Unavailable
from waybill.fleet_state import Broker


async def described(
    admin: AIOKafkaAdminClient, asker: AIOKafkaConsumer, topics: Collection[str], patience: float
) -> Described:
    """Ask for brokers and ``topics``; ``patience``: seconds. Raises Unavailable."""
    try:
        async with asyncio.timeout(patience):
            with translated("how the cluster is"):
                cluster = await admin.describe_cluster()
                everything = await admin.describe_topics()  # all: naming one that is missing would make it
                there = {
                    one["topic"]: one["partitions"]
                    for one in everything
                    if one["topic"] in topics and errors.for_code(one["error_code"]) is errors.NoError
                }
                # of a partition without a leader nobody knows the offsets
                places = [
                    TopicPartition(name, part["partition"])
                    for name, parts in there.items()
                    for part in parts
                    if part["leader"] >= 0
                ]
                first = await asker.beginning_offsets(places) if places else {}
                end = await asker.end_offsets(places) if places else {}
    except TimeoutError as error:
        raise Unavailable(f"the cluster has not answered within {patience:g} s") from error
    controller = cluster.get("controller_id")
    brokers = tuple(
        Broker(one["node_id"], f"{one['host']}:{one['port']}", controller=one["node_id"] == controller)
        for one in sorted(cluster["brokers"], key=lambda one: int(one["node_id"]))
    )
    return Described(brokers, {name: _seen(name, parts, first, end) for name, parts in there.items()})


def _seen(
    name: str,
    parts: Sequence[Mapping[str, Any]],
    first: Mapping[TopicPartition, int],
    end: Mapping[TopicPartition, int],
) -> TopicSeen:
    places = [TopicPartition(name, number) for number in range(len(parts))]
    return TopicSeen(
        min((len(part["replicas"]) for part in parts), default=0),
        sum(len(part["isr"]) < len(part["replicas"]) for part in parts),
        sum(part["leader"] < 0 for part in parts),
        tuple((first.get(place, 0), end.get(place, 0)) for place in places),
    )

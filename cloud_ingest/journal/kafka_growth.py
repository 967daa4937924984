"""More frames partitions, while messages flow (R4, ``waybill cloud partitions``).

Kafka can only add partitions, and the new count must be a multiple of the one before: then a gateway either stays or
moves from partition p to one of ``p + N``, ``p + 2N``, …, which have no other origin. Whoever owns p, once it sees
that the topic has grown, first routes all that is in p by then, however long that takes: nothing may overtake it. Then
it hands over in one transaction of its own producer: the moved gateways' ledger entries and dictionaries, to the
partitions with their new numbers, and what says that these may begin. Until then nobody routes a new partition, so
nobody's memory is wrong; its frames wait in the journal. Frames of moved gateways that come into p still later, by
nodes that do not know yet, are put into the journal again, for their new owner, in p's transactions. That one gives no
gap up before it has them (:mod:`cloud_ingest.journal.kafka_stragglers`).

The ledger's key ``#{partition}/count`` says for how many partitions a partition's entries are, from which offset on,
and where its gateways were before: ``{count}@{offset}<{parent}<{parent's parent}``. Without it the count is the
configured one; a partition beyond that, and one whose count is 0, waits. Nodes' own frames (of devices without a
gateway) stay where they are, and so do those that a running node makes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from cloud_ingest.following import following
from cloud_ingest.journal.kafka_client import translated
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import CaughtUp
from waybill.errors import ConfigError
from waybill.wire import is_node

if TYPE_CHECKING:
    from cloud_ingest.journal.kafka import KafkaLog

MAX_PARTITIONS: Final = 1000
LOOK: Final = 1.0
"""Seconds between looks whether all have handed over."""


class Count(NamedTuple):
    """For how many partitions a partition's entries are (0: it waits for them), and from which offset on.

    ``ancestors``: the partition that its gateways came from, then that one's, and so on; none where it never was new.
    """

    partitions: int
    offset: int = 0
    ancestors: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the value in the ledger."""
        return b"<".join((b"%d@%d" % self[:2], *(b"%d" % each for each in self.ancestors)))


def count_key(partition: int) -> bytes:
    """Return the key in the ledger."""
    return b"#%d/count" % partition


def count_of(value: bytes | None, partition: int, configured: int) -> Count:
    """Return the count that the ledger's ``value`` means, None where there is none."""
    if value is None:
        return Count(configured if partition < configured else 0)
    own, *ancestors = value.split(b"<")
    partitions, _, offset = own.partition(b"@")
    return Count(int(partitions), int(offset), tuple(map(int, ancestors)))


Entries = dict[bytes, bytes | None]


def moved(table: Mapping[bytes, bytes], partition: int, count: int) -> dict[int, Entries]:
    """Return the entries of gateways that are not ``partition``'s among ``count``: by their new partition."""
    found: dict[int, Entries] = {}
    for key, value in table.items():
        gateway = key.partition(b"/")[0]
        if not key.startswith(b"#") and moves(gateway):
            target = partition_of(gateway, count)
            if target != partition:
                found.setdefault(target, {})[key] = value
    return found


def moves(gateway: bytes) -> bool:
    """Tell whether its partition is that of its name however many there are; a node's frames are where it put them."""
    return not is_node(gateway.decode(errors="replace"))


def children(partition: int, before: int, after: int) -> range:
    """Return the new partitions whose gateways were ``partition``'s."""
    return range(partition + before, after, before)


def handed_over(
    tables: Mapping[str, dict[bytes, bytes]], partition: int, before: int, made: Count
) -> dict[str, dict[int, Entries]]:
    """Take what is another's among ``made.partitions`` out of ``tables``, of which the first is the ledger.

    Return what is to be written: topic -> partition -> entries. ``before``: for how many partitions the tables were.
    """
    written: dict[str, dict[int, Entries]] = {}
    for topic, entries in tables.items():
        found = written[topic] = moved(entries, partition, made.partitions)
        gone: Entries = {key: None for moving in found.values() for key in moving}
        for key in gone:
            del entries[key]
        found[partition] = gone
    ledger = written[next(iter(tables))]
    for child in children(partition, before, made.partitions):
        theirs = Count(made.partitions, ancestors=(partition, *made.ancestors))
        ledger.setdefault(child, {})[count_key(child)] = theirs.encode()
    ledger[partition][count_key(partition)] = made.encode()
    return written


async def grow(log: KafkaLog, admin: AIOKafkaAdminClient, count: int, tell: Callable[[str], None]) -> None:
    """Grow the started ``log`` to ``count`` partitions and wait until all gateways are handed over.

    Killed anywhere it may be run again. Raises ConfigError, Unavailable.
    """
    before = log.partitions
    if not log.config.exactly_once:
        raise ConfigError(f'{log.config.where}: more partitions need transactions: delivery = "exactly-once"')
    if count < before or count % before or count > MAX_PARTITIONS:
        raise ConfigError(
            f"there are {before} partitions: the new number must be a multiple of that, {MAX_PARTITIONS} at most"
        )
    if count > before:
        await _add_all(log, admin, before, count)
        tell(f"{log.frames} has {count} partitions; their gateways are handed over by the routers that run")
    done = -1
    while done < count:
        known = await counts(log)
        ready = sum(known.get(number, Count(count)).partitions == count for number in range(count))
        if ready != done:
            done = ready
            tell(f"{done} of {count} partitions are ready")
        if done < count:
            await asyncio.sleep(LOOK)


async def _add_all(log: KafkaLog, admin: AIOKafkaAdminClient, before: int, count: int) -> None:
    """Grow the topics, frames last: who reads them finds marked what must wait."""
    known = await counts(log)
    if late := [number for number in range(before) if known.get(number, Count(before)).partitions != before]:
        raise ConfigError(
            f"partitions {late} have not handed their gateways over since the topics grew the last time: "
            "let the ingest route them first"
        )
    for topic in (log.ledger, log.dictionaries):
        await _add(log, admin, topic, count)
    for number in range(count):
        if number not in known:
            await log.mark(number, count_key(number), Count(before if number < before else 0).encode())
    await _add(log, admin, log.frames, count)


async def counts(log: KafkaLog) -> dict[int, Count]:
    """Return the counts that are in the ledger. Raises Unavailable."""
    found: dict[int, Count] = {}
    async with following(log, (log.ledger,), end=True) as records:
        async for record in records:
            if not isinstance(record, CaughtUp) and record.key == count_key(record.partition) and record.value:
                found[record.partition] = count_of(record.value, record.partition, 0)
    return found


async def _add(log: KafkaLog, admin: AIOKafkaAdminClient, topic: str, count: int) -> None:
    with translated(f"more partitions for {topic}"):
        (there,) = await admin.describe_topics([topic])
        if len(there["partitions"]) >= count:
            return
        await admin.create_partitions({topic: NewPartitions(count)})
        async with asyncio.timeout(log.config.request):
            while len((await admin.describe_topics([topic]))[0]["partitions"]) < count:  # noqa: ASYNC110 - it asks
                await asyncio.sleep(0.1)

"""Appending single records durably: the journal of frames, and commands (acks=all, idempotent).

A queue and a pump for each partition: what arrives while a batch is under way goes into the next one, in the order it
came. Bounded by bytes over all queues; at the bound an append fails at once with Unavailable. A record whose outcome is
unknown at its deadline is reported as Unavailable too and may yet be written: its sender sends it again, and the ledger
tells copies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder

from cloud_ingest.journal.kafka_batches import BATCH_BYTES, CODECS
from cloud_ingest.journal.kafka_client import REFUSED_RECORD, REFUSED_TOPIC, discard, partitions_of, reason, translated
from cloud_ingest.journal.port import Headers
from waybill.errors import Refused, TopicRefused, Unavailable, WaybillError

log = logging.getLogger(__name__)

WAITING_BYTES: Final = 64 << 20
"""Bytes that may wait for Kafka before appends fail at once."""

OVERHEAD: Final = 256
"""Bytes that a batch adds to a lone record, with room to spare."""

RENEW_AT: Final = 1 << 30
"""Records of one partition after which the producer is made anew: its sequence numbers break at 2³¹."""


@dataclass(slots=True, eq=False)
class _Item:
    key: bytes | None
    value: bytes | None
    headers: Headers
    size: int
    done: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class _Lane:
    """One partition. ``alone``: how many of the next items go one by one, because their batch was refused.

    ``limit``: the topic's ``max.message.bytes``.
    """

    topic: str
    partition: int
    limit: int
    queue: deque[_Item] = field(default_factory=deque)
    pump: asyncio.Task[None] | None = None
    alone: int = 0
    sent: int = 0


@dataclass(slots=True, eq=False)
class _Connection:
    producer: AIOKafkaProducer
    dead: asyncio.Future[None]


class Appender:
    """Appends to any topic, through one idempotent producer that is made anew after each failure."""

    def __init__(self, connect: Callable[[], Awaitable[AIOKafkaProducer]], deadline: float) -> None:
        """Append through what ``connect()`` gives, started; ``deadline``: seconds until an append gives up."""
        self._connect = connect
        self._deadline = deadline
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._waiting = 0
        self._closed = False

    async def append(
        self, topic: str, record: tuple[bytes | None, bytes | None, Headers], partition: int, limit: int
    ) -> None:
        """Append ``record`` (key, value, headers) to that partition; durable on return.

        ``limit``: the topic's ``max.message.bytes``. Raises Unavailable, Refused (TopicRefused: the topic itself).
        """
        key, value, headers = record
        size = OVERHEAD + len(key or b"") + len(value or b"") + sum(len(k) + len(v) + 4 for k, v in headers)
        if size > limit:
            raise Refused(f"{topic}: a record of about {size} bytes; the topic's max.message.bytes is {limit}")
        if self._closed:
            raise Unavailable("the log is closed")
        if self._waiting + size > WAITING_BYTES:
            raise Unavailable(f"{self._waiting >> 20} MiB wait for Kafka already")
        lane = self._lanes.setdefault((topic, partition), _Lane(topic, partition, limit))
        lane.limit = limit
        item = _Item(key, value, headers, size, asyncio.get_running_loop().create_future())
        lane.queue.append(item)
        self._waiting += size
        if lane.pump is None:
            lane.pump = asyncio.create_task(self._pump(lane), name=f"append {topic}/{partition}")
        try:
            async with asyncio.timeout(self._deadline):
                await item.done
        except TimeoutError as error:
            raise Unavailable(f"{topic}: Kafka did not take the record within {self._deadline:g} s") from error
        finally:
            self._waiting -= size

    async def partitions(self, topic: str) -> int:
        """Return how many partitions ``topic`` has. Raises TopicRefused, Unavailable."""
        connection = await self._connected()
        with translated(topic):
            async with asyncio.timeout(self._deadline):
                return await partitions_of(connection.producer.client, topic)

    async def _pump(self, lane: _Lane) -> None:
        """Send what is queued, batch by batch; ends when the queue is empty."""
        items: list[_Item] = []
        try:
            while lane.queue:
                connection = await self._connected()
                items, batch = self._fill(lane)
                if items:
                    await self._send(lane, connection, items, batch)
        except WaybillError as error:
            _fail([*items, *lane.queue], error)
            lane.queue.clear()
        except Exception as error:  # a fault of ours: the callers must know, and this partition must go on
            log.exception("append %s/%s failed", lane.topic, lane.partition)
            _fail([*items, *lane.queue], Unavailable(f"{lane.topic}: {error}"))
            lane.queue.clear()
        finally:
            lane.pump = None

    def _fill(self, lane: _Lane) -> tuple[list[_Item], BatchBuilder]:
        """Take from the queue what goes into one batch; items whose caller has given up are left out."""
        # not the producer's own: its 16 KiB would be a batch for each frame
        batch = BatchBuilder(min(BATCH_BYTES, lane.limit), CODECS["none"])
        items: list[_Item] = []
        now = int(time.time() * 1000)
        while lane.queue:
            item = lane.queue[0]
            if not item.done.done():
                if batch.append(timestamp=now, key=item.key, value=item.value, headers=item.headers) is None:
                    break
                items.append(item)
            lane.queue.popleft()
            if lane.alone:
                lane.alone -= 1
                break
        return items, batch

    async def _send(self, lane: _Lane, connection: _Connection, items: list[_Item], batch: BatchBuilder) -> None:
        """Send one batch and tell its callers. Raises WaybillError where all that waits must fail too."""
        producer = connection.producer
        where = f"{lane.topic}/{lane.partition}"
        try:
            async with asyncio.timeout(self._deadline):
                await partitions_of(producer.client, lane.topic)
                sent = await producer.send_batch(batch, lane.topic, partition=lane.partition)
                await asyncio.wait({sent, connection.dead}, return_when=asyncio.FIRST_COMPLETED)
                if not sent.done():
                    raise Unavailable(f"{where}: the connection to Kafka was made anew")
                sent.result()
        except REFUSED_RECORD as error:
            await self._drop(connection)
            if len(items) == 1:
                _fail(items, Refused(f"{where}: {reason(error, 'Write', lane.topic)}"))
            else:  # one by one, to find which
                lane.queue.extendleft(reversed(items))
                lane.alone = len(items)
            return
        except BaseException as error:
            await self._drop(connection)
            if isinstance(error, REFUSED_TOPIC):
                raise TopicRefused(lane.topic, reason(error, "Write", lane.topic)) from error
            with translated(where):
                raise
        for item in items:
            if not item.done.done():
                item.done.set_result(None)
        lane.sent += len(items)
        if lane.sent >= RENEW_AT:
            await self._drop(connection)

    async def _connected(self) -> _Connection:
        """Return the producer, started. Raises Unavailable."""
        async with self._connecting:
            if self._connection is None:
                if self._closed:
                    raise Unavailable("the log is closed")
                producer = await self._connect()
                self._connection = _Connection(producer, asyncio.get_running_loop().create_future())
            return self._connection

    async def _drop(self, connection: _Connection) -> None:
        """Discard the producer; whoever waits on it fails now and not at its deadline."""
        if self._connection is connection:
            self._connection = None
            for lane in self._lanes.values():
                lane.sent = 0
        if not connection.dead.done():
            connection.dead.set_result(None)
            await discard(connection.producer)

    async def close(self, patience: float = 5.0) -> None:
        """Wait for what is queued, ``patience`` seconds at most, then close."""
        pumps = [lane.pump for lane in self._lanes.values() if lane.pump]
        if pumps:
            await asyncio.wait(pumps, timeout=patience)
        self._closed = True
        for lane in self._lanes.values():
            if lane.pump:
                lane.pump.cancel()
            _fail(lane.queue, Unavailable("the log is closed"))
        await asyncio.gather(*(pump for pump in pumps if not pump.done()), return_exceptions=True)
        if self._connection:
            await self._drop(self._connection)


def _fail(items: list[_Item] | deque[_Item], error: Exception) -> None:
    for item in items:
        if not item.done.done():
            item.done.set_exception(error)

"""Which frames partitions this process owns: a member of the consumer group ``{deployment}.router``.

The group says who *should* own a partition; only fencing says who does (R1). So the member reads nothing (its
partitions are paused, every partition reads by itself), and its callbacks only note what was assigned: a callback is
no barrier, and an exception in it is swallowed (R2). A partition that stays with this process through a rebalance goes
on undisturbed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener

from cloud_ingest.journal.kafka_client import discard, started, translated
from cloud_ingest.journal.kafka_partitions import KafkaPartition
from cloud_ingest.journal.port import PartitionLog
from waybill.errors import WaybillError

log = logging.getLogger(__name__)

ENDING: Final = 30.0
"""Seconds for routes to end when this process takes part no more: nobody waits for it, and what they hold is closed."""

PATIENCE: Final = 5.0
"""Seconds that a cancelled route has to end; and that a fenced one waits for the assignment that explains it."""

RETRY: Final = 2.0
"""Seconds before a member that could not join, or a route that failed, is tried again."""

Route = Callable[[PartitionLog], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Run:
    """A route at work. ``generation``: of the assignment it was started under. ``ended``: monotonic seconds."""

    partition: KafkaPartition
    task: asyncio.Task[None]
    generation: int
    ended: float = 0.0
    failed: bool = False


class _Assigned(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes the assignment. What was revoked is not let go before the next assignment says that it is gone."""

    def __init__(self, owner: Owner, consumer: AIOKafkaConsumer) -> None:
        self._owner = owner
        self._consumer = consumer

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Do nothing: until another owner fences, our work is still good."""

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Note what is ours now."""
        places = list(assigned)
        self._consumer.pause(*places)
        self._owner.note({place.partition for place in places})


class Owner:
    """Runs a route for each partition that is assigned to this process."""

    def __init__(
        self, make: Callable[[], AIOKafkaConsumer], topic: str, open_: Callable[[int], KafkaPartition], route: Route
    ) -> None:
        """Join by ``make()`` for ``topic``; ``open_(n)`` gives the partition that ``route`` works on."""
        self._make = make
        self._topic = topic
        self._open = open_
        self._route = route
        self._wanted: set[int] = set()
        self._generation = 0
        self._changed = asyncio.Event()
        self._runs: dict[int, _Run] = {}
        self._late: set[asyncio.Task[None]] = set()

    def note(self, partitions: set[int]) -> None:
        """Take a new assignment."""
        self._wanted = partitions
        self._generation += 1
        self._changed.set()

    async def run(self) -> None:
        """Own partitions until cancelled."""
        said = ""
        try:
            while True:
                generation = self._generation
                try:
                    await self._member()
                except WaybillError as error:
                    if str(error) != said or generation != self._generation:
                        log.warning("cannot take part in routing: %s; trying again", error)
                    said = str(error)
                    await self._look_after(RETRY)
        finally:
            await self._let_go(list(self._runs))
            if self._late:
                await asyncio.wait(self._late, timeout=ENDING)

    async def _member(self) -> None:
        """Be one member of the group; returns when the group must be joined anew. Raises Unavailable."""
        consumer = self._make()
        # Discards stray records, keeps the member alive, and is where the coordinator's errors come out.
        consumer.subscribe([self._topic], listener=_Assigned(self, consumer))
        await started(consumer, 60.0, "joining the routers")  # a rebalance waits for members that are gone
        poll = asyncio.create_task(_poll(consumer), name=f"routers of {self._topic}")
        try:
            while not poll.done():
                if await self._look_after(0.5):
                    log.warning(
                        "fenced, though the group assigns it here: joining anew; "
                        "if that goes on, another deployment has the same name"
                    )
                    return
            with translated("taking part in routing"):
                poll.result()
        finally:
            poll.cancel()
            await asyncio.gather(poll, return_exceptions=True)
            await discard(consumer)

    async def _look_after(self, seconds: float) -> bool:
        """Start and stop routes as assigned, then wait for a change. Return whether to join anew."""
        await self._let_go([number for number in self._runs if number not in self._wanted])
        now = time.monotonic()
        for number in sorted(self._wanted):
            run = self._runs.get(number)
            if run is None:
                self._start(number)
            elif run.task.done():
                if run.generation < self._generation or (run.failed and now - run.ended > RETRY):
                    self._start(number)
                elif run.partition.fenced and now - run.ended > PATIENCE:
                    # Nobody was assigned it in our place: the broker timed our transaction out, or a message of the
                    # group was missed. Never fence back on the old assignment (R3): ask the group for a new one.
                    self._start_later(number)
                    return True
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
        return False

    def _start_later(self, number: int) -> None:
        """Forget the route: the next assignment starts it."""
        self._runs.pop(number, None)
        self._wanted.discard(number)

    def _start(self, number: int) -> None:
        partition = self._open(number)
        task = asyncio.create_task(self._guarded(partition), name=f"route {partition!r}")
        self._runs[number] = _Run(partition, task, self._generation)

    async def _guarded(self, partition: KafkaPartition) -> None:
        """Run the route; its end and its failure are noted and logged, and stop no other partition."""
        failed = True
        try:
            await self._route(partition)
            failed = False
        except WaybillError as error:
            failed = not partition.fenced
            log.warning("%r: %s", partition, error)
        except Exception:
            log.exception("%r: its route failed", partition)
        finally:
            run = self._runs.get(partition.partition)
            if run is not None and run.partition is partition:
                run.ended, run.failed = time.monotonic(), failed
            self._changed.set()
            await partition.close()

    async def _let_go(self, numbers: list[int]) -> None:
        """Cancel the routes of ``numbers`` and wait for their end, PATIENCE seconds at most."""
        runs = [self._runs.pop(number) for number in numbers]
        tasks = [run.task for run in runs]
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=PATIENCE)
            for task in late:
                log.error("%s did not end within %.0f s", task.get_name(), PATIENCE)
                self._late.add(task)
                task.add_done_callback(self._late.discard)


async def _poll(consumer: AIOKafkaConsumer) -> None:
    while True:
        await consumer.getmany(timeout_ms=1000)

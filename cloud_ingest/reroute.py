"""Frames of the journal once more, under the rules of now, into a topic of their own (R9).

::

    waybill.frames, from a time on ─▶ the router's step, ledger empty at first ─▶ the records of one route ─▶ --to

A job is named by the topic it writes to. It has a group and transactional ids of its own
(``{deployment}.reroute.{topic}.{partition}``), so it runs beside the live router and neither fences the other. Its
ledger entries are in the ledger topic, each key behind ``#reroute/{topic}/``, which the live router and the audit pass
over. Dictionaries are those that the live router has stored. Of what a step would write, records of the job's
topic and its dead letters alone are written: states of commands, presence and other routes have had theirs.

It ends at the frames that were there when it began. Then its ledger entries go, and a mark stays that it is done: run
again it does nothing. Killed before, it goes on where it stopped, each message once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec
from aiokafka import TopicPartition

from cloud_ingest import config
from cloud_ingest.config import Route
from cloud_ingest.journal.kafka import KafkaLog
from cloud_ingest.journal.kafka_client import discard, started, translated
from cloud_ingest.journal.kafka_growth import counts
from cloud_ingest.journal.port import CaughtUp, Cleared, JournalRecord, Loaded, PartitionLog, Step, TopicRecord
from cloud_ingest.router.routes import Routes
from cloud_ingest.router.worker import Router
from waybill.errors import ConfigError, Unavailable, WaybillError

AT_ONCE: Final = 4
"""Partitions that are routed at once: each may hold frames in memory."""

_DONE: Final = b"done"


def rules(settings: config.Settings, name: str, to: str) -> tuple[Route, ...]:
    """Return the routes of ``settings`` with that of ``name`` leading to the topic ``to``. Raises ConfigError."""
    routes = settings.config.route
    known = [route.name or route.topic for route in routes]
    if known.count(name) != 1:
        problem = "several are called so: give them names" if name in known else f"there are: {', '.join(known)}"
        raise ConfigError(f"{settings.where}: [[route]] {name!r}: {problem}")
    taken = {
        topic for route in routes for topic in (route.topic, f"{route.topic}.dlq")
    } | settings.config.topics.internal
    if to in taken:
        raise ConfigError(f"--to {to}: this deployment writes to that topic itself; name a new one")
    made = tuple(
        msgspec.structs.replace(route, topic=to) if known[number] == name else route
        for number, route in enumerate(routes)
    )
    config.check_topics(msgspec.structs.replace(settings.config, route=made), settings.where)
    return made


class Rerouting:
    """One job."""

    def __init__(self, settings: config.Settings, name: str, to: str, from_ms: int) -> None:
        """Route what was journaled at ``from_ms`` (since 1970 UTC) and later by route ``name`` to ``to``.

        Raises ConfigError.
        """
        if not isinstance(settings.log, config.Kafka):
            raise ConfigError(
                f'{settings.where}: reroute is for [log] kind = "kafka": one process has the embedded log'
            )
        self._routes = rules(settings, name, to)
        self._where = settings.where
        self._topics = settings.config.topics
        self._to = to
        self._from_ms = max(0, from_ms)  # Kafka knows no time before 1970
        self.grown: dict[int, int] = {}
        """From which offset on a partition's frames are of gateways that did not move."""
        self.partitions = 0
        """How many frames partitions there were when it began."""
        self.records = 0
        self.dead = 0
        self.unreadable = 0
        self.was_done = True
        """Whether the job was done before: then nothing is written, whatever the rules are now."""
        self._log = KafkaLog(
            settings.log.settings,
            deployment=f"{settings.config.deployment}.reroute.{to}",
            topics=self._topics,
            routes=self._routes,
            base=settings.log.base,
            where=settings.where,
            allow_unsafe=settings.log.allow_unsafe,
        )
        self._log.hands_over = False
        if not self._log.config.exactly_once:
            raise ConfigError(f'{settings.where}: reroute needs transactions: delivery = "exactly-once"')

    async def run(self) -> None:
        """Run to the end; ``records`` and ``dead`` (letters) count what was written, ``unreadable`` frames.

        Raises ConfigError, Unavailable, Corrupt, UnknownVersion.
        """
        await self._log.start()
        try:
            self.partitions = self._log.partitions
            known = await counts(self._log)
            if late := [number for number, count in known.items() if count.partitions != self.partitions]:
                raise ConfigError(
                    f"the topics are being given more partitions, and {sorted(late)} are not ready: "
                    "run this again when waybill cloud partitions has ended"
                )
            self.grown = {number: count.offset for number, count in known.items()}
            gate = asyncio.Semaphore(AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for number in range(self.partitions):
                    group.create_task(self._partition(number, gate), name=f"reroute {number}")
        except* WaybillError as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._log.close()

    async def _partition(self, number: int, gate: asyncio.Semaphore) -> None:
        async with gate:
            partition = _Partition(self, self._log, number)
            try:
                await self._route(partition)
            finally:
                await partition.close()

    async def _route(self, partition: _Partition) -> None:
        router = Router(_Source(self.partitions), self._topics, Routes(self._routes, self._where))
        routing = asyncio.create_task(router.route(partition))
        finished = asyncio.create_task(partition.finished.wait())
        try:
            await asyncio.wait({routing, finished}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (routing, finished):
                task.cancel()
            await asyncio.wait({routing, finished})
        if not partition.finished.is_set():
            if not routing.cancelled():
                routing.result()
            raise Unavailable(f"partition {partition.partition}: another process runs this job")
        await partition.clean_up()

    async def first(self, place: TopicPartition) -> int | None:
        """Return the offset of the first frame to be routed, None where there is none. Raises Unavailable."""
        what = f"finding the time in {place.topic}"
        asker = self._log.consumer()
        await started(asker, self._log.config.request, what)
        try:
            with translated(what):
                found = (await asker.offsets_for_times({place: self._from_ms}))[place]
        finally:
            await discard(asker)
        return None if found is None else int(found.offset)

    def keep(self, step: Step) -> Step:
        """Return what of ``step`` is this job's to write."""
        mine = {self._to, f"{self._to}.dlq"}
        return dataclasses.replace(step, records=[each for each in step.records if each.topic in mine], dictionaries={})

    def count(self, step: Step) -> None:
        """Count what was written."""
        self.records += sum(record.topic == self._to for record in step.records)
        self.dead += sum(record.topic == f"{self._to}.dlq" for record in step.records)
        letters = (record for record in step.records if record.topic == self._topics.dead_letters)
        self.unreadable += sum(any(name == "waybill_frame" for name, _ in record.headers) for record in letters)

    @property
    def prefix(self) -> bytes:
        """What stands before the keys of this job in the ledger."""
        return f"#reroute/{self._to}/".encode()


class _Source:
    """What the router asks the log for, to which no commands belong here."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions

    async def follow(
        self,
        topics: Sequence[str],  # noqa: ARG002 - the port's
        *,
        only: int | None = None,  # noqa: ARG002
        end: bool = False,  # noqa: ARG002
    ) -> AsyncIterator[TopicRecord | CaughtUp]:
        """Say that there is nothing, and never more."""
        yield CaughtUp()
        await asyncio.Event().wait()


class _Partition(PartitionLog):
    """A frames partition as the job sees it. ``finished``: all that was there when it began is done with."""

    def __init__(self, job: Rerouting, log: KafkaLog, number: int) -> None:
        self._job = job
        self._log = log
        self._inner = log.open_partition(number)
        self._place = TopicPartition(log.frames, number)
        self._end: int | None = None
        self._next = self._returned = 0
        self.finished = asyncio.Event()

    @property
    def partition(self) -> int:
        return self._inner.partition

    async def load(self) -> Loaded:
        loaded = await self._inner.load()
        if loaded.partitions != self._job.partitions:
            raise ConfigError(
                f"partition {self.partition}: the topics were given more partitions while this ran, and gateways have "
                "moved: what was written stays, and is not all; when waybill cloud partitions has ended, run it again "
                "with another topic, and a --from after that"
            )
        entries = self._entries(loaded)
        start = loaded.start
        if (await self._log.committed(self._place))[0] < 0:
            first = await self._job.first(self._place)
            _, end = await self._log.bounds(self._place)
            start = end if first is None else first
            self._inner.rewind(start)
        if start < self._job.grown.get(self.partition, 0):
            raise ConfigError(
                f"partition {self.partition}: gateways have moved to other partitions since then; "
                "give a later --from, and another topic where this one was begun"
            )
        if self._end is None:
            _, self._end = await self._log.bounds(self._place)
        self._job.was_done &= _DONE in entries
        if start >= self._end or _DONE in entries:
            self.finished.set()
        entries.pop(_DONE, None)
        self._next = self._returned = start
        return dataclasses.replace(loaded, ledger=entries, start=start, lost=0, cleared=sys.maxsize)

    def _entries(self, loaded: Loaded) -> dict[bytes, bytes]:
        prefix = self._job.prefix
        return {key.removeprefix(prefix): value for key, value in loaded.ledger.items() if key.startswith(prefix)}

    async def read(self, count: int, wait: float) -> tuple[Sequence[JournalRecord], bool]:
        if self.finished.is_set():
            await asyncio.Event().wait()  # until cancelled
        records, at_end = await self._inner.read(count, wait)
        if records:
            self._returned = records[-1].offset + 1
        elif self._end is not None and self._inner.position >= self._end and self._next >= self._returned:
            self.finished.set()  # its end may be a transaction's mark: no step ever goes past that
        return records, at_end

    def cleared(self) -> Cleared:
        return Cleared(self._inner.position)  # a job goes by what stands in the partition, and waits for no other one

    def rewind(self, offset: int) -> None:
        self._inner.rewind(offset)

    async def commit(self, step: Step) -> None:
        kept = self._job.keep(step)
        prefix = self._job.prefix
        kept.ledger = {prefix + key: value for key, value in step.ledger.items()}
        await self._inner.commit(kept)
        self._job.count(step)
        self._next = step.next_offset
        if self._end is not None and step.next_offset >= self._end:
            self.finished.set()

    async def log_start(self) -> int:
        return await self._inner.log_start()

    async def clean_up(self) -> None:
        """Leave of the job's ledger entries the mark that it is done. Raises Fenced, Unavailable."""
        loaded = await self._inner.load()
        entries = self._entries(loaded)
        if _DONE not in entries:
            gone: dict[bytes, bytes | None] = {self._job.prefix + key: None for key in entries}
            await self._inner.commit(
                Step([], {**gone, self._job.prefix + _DONE: b"1"}, max(loaded.start, self._end or 0))
            )

    async def close(self) -> None:
        """Let go of everything."""
        await self._inner.close()

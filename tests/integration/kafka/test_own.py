"""Who routes which partition: the group assigns, fencing decides (R1–R3)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from cloud_ingest.journal import kafka_owner
from cloud_ingest.journal.kafka import KafkaLog
from cloud_ingest.journal.port import OutRecord, PartitionLog, Step
from tests.support.kafka_log import OpenLog, eventually, values
from waybill.errors import Fenced

Route = Callable[[PartitionLog], Awaitable[None]]


@asynccontextmanager
async def owning(log: KafkaLog, route: Route) -> AsyncIterator[None]:
    """Own partitions of ``log`` within the block."""
    task = asyncio.create_task(log.own_partitions(route))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Worker:
    """Routes each frame to the fleet topic, one record a frame, as a router does."""

    def __init__(self, name: str) -> None:
        self.topic = f"{name}.fleet"
        self.loads: dict[int, int] = {}
        self.now: set[int] = set()

    async def __call__(self, partition: PartitionLog) -> None:
        await partition.load()
        number = partition.partition
        self.loads[number] = self.loads.get(number, 0) + 1
        self.now.add(number)
        try:
            while True:
                frames, _ = await partition.read(10, 0.2)
                if frames:
                    records = [OutRecord(self.topic, b"k", frame.frame, []) for frame in frames]
                    await partition.commit(Step(records, {b"k": b"v"}, frames[-1].offset + 1))
        finally:
            self.now.discard(number)


async def _frames(log: KafkaLog, first: int, last: int) -> None:
    await asyncio.gather(*(log.append_frame(f"gw-{n % 9}", b"%d" % n) for n in range(first, last)))


async def test_partitions_move_between_workers_and_every_frame_is_routed_once(open_log: OpenLog, unique: str) -> None:
    one, two = await open_log(partitions=4), await open_log(partitions=4)
    first, second = Worker(unique), Worker(unique)
    async with owning(one, first):
        await eventually(lambda: first.now == {0, 1, 2, 3}, "the first worker owns all")
        await _frames(one, 0, 100)
        async with owning(two, second):
            await _frames(one, 100, 200)
            await eventually(lambda: len(first.now) == 2 and len(second.now) == 2, "each owns half")
            assert first.now | second.now == {0, 1, 2, 3}
            await _frames(one, 200, 300)
        await eventually(lambda: first.now == {0, 1, 2, 3}, "the first worker owns all again")
        await _frames(one, 300, 400)
        found: list[bytes | None] = []
        while len(found) < 400:
            found = await values(one, first.topic)
    assert sorted(int(value or b"") for value in found) == list(range(400))
    assert first.now == set()


async def test_r2_records_wait_for_the_load_however_long_it_takes(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient, foreign: AIOKafkaProducer
) -> None:
    """That a partition was assigned says nothing: its ledger cannot be read to the end yet."""
    log = await open_log(partitions=1)
    await _frames(log, 0, 20)
    await foreign.begin_transaction()
    await foreign.send_and_wait(f"{unique}.waybill.ledger", b"theirs", key=b"job", partition=0)
    worker = Worker(unique)
    async with owning(log, worker):
        state = ""
        while state != "Stable":
            with contextlib.suppress(GroupCoordinatorNotAvailableError):
                [response] = await admin.describe_consumer_groups([f"{unique}.router"])
                state = response.groups[0][2]
        for _ in range(5):
            assert await values(log, worker.topic) == []
        assert worker.loads == {}
        await foreign.abort_transaction()
        found: list[bytes | None] = []
        while len(found) < 20:
            found = await values(log, worker.topic)
    assert worker.loads == {0: 1}
    assert sorted(int(value or b"") for value in found) == list(range(20))


async def test_a_partition_that_stays_goes_on_undisturbed(open_log: OpenLog, unique: str) -> None:
    one, two = await open_log(partitions=4), await open_log(partitions=4)
    first, second = Worker(unique), Worker(unique)
    async with owning(one, first):
        await eventually(lambda: first.now == {0, 1, 2, 3}, "the first worker owns all")
        async with owning(two, second):
            await eventually(lambda: len(first.now) == 2 and len(second.now) == 2, "each owns half")
            stayed = set(first.now)
        await eventually(lambda: first.now == {0, 1, 2, 3}, "the first worker owns all again")
    assert {number: first.loads[number] for number in stayed} == dict.fromkeys(stayed, 1)


async def test_r3_one_that_was_fenced_asks_the_group_before_it_fences_again(
    open_log: OpenLog, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_owner, "PATIENCE", 1.0)
    log = await open_log(partitions=2)
    joined = 0
    worker = Worker(unique)
    make = log.consumer

    def counted(**options: object) -> object:
        nonlocal joined
        joined += "group_id" in options
        return make(**options)

    monkeypatch.setattr(log, "consumer", counted)
    async with owning(log, worker):
        await eventually(lambda: worker.now == {0, 1}, "the worker owns all")
        assert joined == 1
        stranger = log.open_partition(0)  # fences without being assigned anything
        await stranger.load()
        await log.append_frame("gw-0", b"x")
        await _frames(log, 0, 20)
        await eventually(lambda: worker.loads.get(0) == 2, "the worker loads again")
        assert joined == 2
        with pytest.raises(Fenced):
            await stranger.commit(Step([], {b"k": b"v"}, 0))
        await stranger.close()
        found: list[bytes | None] = []
        while len(found) < 21:
            found = await values(log, worker.topic)
    assert len(found) == 21


async def test_a_route_that_fails_is_tried_again_and_disturbs_no_other(
    open_log: OpenLog, unique: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kafka_owner, "RETRY", 0.2)
    log = await open_log(partitions=2)
    worker = Worker(unique)
    failures = 0

    async def route(partition: PartitionLog) -> None:
        nonlocal failures
        if partition.partition == 1 and failures < 3:
            failures += 1
            raise ValueError("a fault of ours")
        await worker(partition)

    async with owning(log, route):
        await eventually(lambda: worker.now == {0, 1}, "both are routed")
    assert worker.loads == {0: 1, 1: 1}
    assert failures == 3
    assert "a fault of ours" in caplog.text


async def test_the_end_waits_for_a_route_that_takes_its_time(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with much to do; what it holds open would outlive it."""
    monkeypatch.setattr(kafka_owner, "PATIENCE", 0.05)
    log = await open_log(partitions=1)
    began, ended = asyncio.Event(), asyncio.Event()

    async def route(_: PartitionLog) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.5)  # as long as its end takes
            ended.set()

    async with owning(log, route):
        await began.wait()
    assert ended.is_set()


async def test_leaving_gives_the_partitions_back_at_once(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient
) -> None:
    """Not after the session time-out: the group has no member any more."""
    log = await open_log(partitions=2)
    worker = Worker(unique)
    async with owning(log, worker):
        await eventually(lambda: worker.now == {0, 1}, "the worker owns all")
    [response] = await admin.describe_consumer_groups([f"{unique}.router"])
    [group] = response.groups
    assert (group[2], group[5]) == ("Empty", [])

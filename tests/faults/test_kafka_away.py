"""A Kafka that goes away and comes back: nothing hangs, nothing is lost, nothing is there twice (R3)."""

import asyncio
import time

import pytest

from cloud_ingest.journal.kafka import KafkaLog
from cloud_ingest.journal.kafka_partitions import FRESH
from cloud_ingest.journal.port import CaughtUp, OutRecord, PartitionLog, Step
from deploy.kafka.cluster import Cluster
from tests.support.kafka import StartCluster
from tests.support.kafka_log import make_log, values
from waybill.errors import Unavailable

QUICK = {"request.timeout.ms": 2000, "delivery.timeout.ms": 2000, "transaction.timeout.ms": 8000}


@pytest.fixture(scope="module")
def cluster(kafka_cluster: StartCluster) -> Cluster:
    """Return a broker to break."""
    return kafka_cluster()


async def _append(log: KafkaLog, first: int, last: int) -> None:
    """Append frames until each was taken, as a gateway does: sent again after each Unavailable."""
    for number in range(first, last):
        while True:
            try:
                await log.append_frame("gw-1", b"%d" % number)
                break
            except Unavailable:
                await asyncio.sleep(0.1)


class Router:
    """Routes each frame once: its ledger is the highest number, because frames may be journaled twice."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.troubles: list[str] = []

    async def __call__(self, partition: PartitionLog) -> None:
        while True:
            try:
                await self._route(partition)
            except Unavailable as error:
                self.troubles.append(str(error))
                await asyncio.sleep(0.2)

    async def _route(self, partition: PartitionLog) -> None:
        high = int((await partition.load()).ledger.get(b"high", b"-1"))
        while True:
            frames, _ = await partition.read(20, 0.2)
            records = []
            for frame in frames:
                if int(frame.frame) > high:
                    high = int(frame.frame)
                    records.append(OutRecord(self.topic, b"k", frame.frame, []))
            if frames:
                await partition.commit(Step(records, {b"high": b"%d" % high}, frames[-1].offset + 1))


@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_a_broker_that_goes_away_under_load_costs_time_only(cluster: Cluster, unique: str, fault: str) -> None:
    log = make_log(cluster.bootstrap, unique, partitions=1, **QUICK)
    await log.start()
    router = Router(f"{unique}.fleet")
    owning = asyncio.create_task(log.own_partitions(router))
    await _append(log, 0, 100)
    appending = asyncio.create_task(_append(log, 100, 1500))
    for _ in range(2):
        await asyncio.sleep(0.5)
        if fault == "killed":
            cluster.kill(1)
            await asyncio.sleep(3)
            cluster.up(1)  # in this thread: the broker would end with another one
        else:
            cluster.pause(1)
            await asyncio.sleep(4)
            cluster.resume(1)
    async with asyncio.timeout(180):
        await appending
        found: list[bytes | None] = []
        while b"1499" not in found:
            found = await values(log, router.topic)
    owning.cancel()
    await asyncio.gather(owning, return_exceptions=True)
    await log.close()
    assert found == [b"%d" % number for number in range(1500)]
    assert router.troubles


async def _read_on(partition: PartitionLog, stale: float) -> None:
    """Read until that fails; from ``stale`` on (monotonic seconds) nobody can know where the end is."""
    while True:
        began = time.monotonic()
        _, end = await partition.read(10, 0.2)
        assert not end or began < stale


async def test_r7_the_end_of_a_partition_is_not_claimed_on_an_old_word(cluster: Cluster, unique: str) -> None:
    """A gap would be given up for frames that are there and cannot be read."""
    log = make_log(cluster.bootstrap, unique, partitions=1, **QUICK)
    await log.start()
    partition = log.open_partition(0)
    await partition.load()
    while not (await partition.read(10, 0.2))[1]:
        pass
    cluster.pause(1)
    try:
        with pytest.raises(Unavailable, match="no broker has answered"):
            await _read_on(partition, time.monotonic() + FRESH + 1)
    finally:
        cluster.resume(1)
    await partition.close()
    await log.close()


async def test_nothing_hangs_while_no_broker_answers(cluster: Cluster, unique: str) -> None:
    """Stopped, not dead: its sockets stay open and say nothing."""
    log = make_log(cluster.bootstrap, unique, partitions=1, **QUICK)
    await log.start()
    partition = log.open_partition(0)
    await partition.load()
    items = log.follow([f"{unique}.fleet"])
    assert await anext(items) == CaughtUp()
    await log.append_frame("gw-1", b"before")  # its producer is connected: what hangs then is the future of a batch
    cluster.pause(1)
    try:
        began = time.monotonic()
        fresh = make_log(cluster.bootstrap, unique, partitions=1, **QUICK)
        silent = Step([], {b"k": b"v"}, 0)
        results = await asyncio.gather(
            log.append_frame("gw-1", b"x"),
            partition.commit(silent),
            fresh.start(),
            values(fresh, f"{unique}.fleet"),
            log.bounds(partition._frames),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [Unavailable] * 5
        with pytest.raises(Unavailable):
            await partition.load()
        await partition.close()
        await items.aclose()  # type: ignore[attr-defined]
        await log.close()
        await fresh.close()
        assert time.monotonic() - began < 120  # bounded at all; a hang would be for ever
    finally:
        cluster.resume(1)
    assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()

"""Three brokers: one may be lost under load; without two of them nothing is acknowledged, and nothing is lost (R3)."""

import asyncio
import contextlib

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from cloud_ingest.journal.kafka import KafkaLog
from deploy.kafka.cluster import Cluster
from tests.faults.test_kafka_away import QUICK, Router
from tests.support.kafka import StartCluster
from tests.support.kafka_log import eventually, make_log, values
from waybill.errors import ConfigError, Unavailable


@pytest.fixture(scope="module")
def cluster(kafka_cluster: StartCluster) -> Cluster:
    """Return three brokers; a test leaves them running."""
    return kafka_cluster(brokers=3)


class Gateway:
    """Appends numbered frames, each again until it is taken, until ``enough``."""

    def __init__(self) -> None:
        self.taken = 0
        self.retries = 0
        self.enough = False

    async def run(self, log: KafkaLog) -> None:
        while not self.enough:
            try:
                await log.append_frame("gw-1", b"%d" % self.taken)
                self.taken += 1
            except Unavailable:
                self.retries += 1
            await asyncio.sleep(0.01)

    async def goes_on(self) -> None:
        """Wait until a hundred more are taken."""
        goal = self.taken + 100
        await eventually(lambda: self.taken >= goal, f"{goal} frames taken")


async def _safety(bootstrap: str, topic: str) -> tuple[set[int], str]:
    """Return how many replicas the partitions of ``topic`` have, and its ``min.insync.replicas``."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    [described] = await admin.describe_topics([topic])
    [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    await admin.close()
    settings = {entry[0]: entry[1] for entry in response.resources[0][4]}
    return {len(partition["replicas"]) for partition in described["partitions"]}, settings["min.insync.replicas"]


async def test_one_of_three_brokers_may_be_lost_and_without_two_frames_are_retried(
    cluster: Cluster, unique: str
) -> None:
    log = make_log(cluster.bootstrap, unique, partitions=1, **QUICK)
    await log.start()
    for topic in ("waybill.frames", "waybill.ledger", "waybill.commands", "waybill.dlq", "fleet"):
        assert await _safety(cluster.bootstrap, f"{unique}.{topic}") == ({3}, "2")
    router, gateway = Router(f"{unique}.fleet"), Gateway()
    owning = asyncio.create_task(log.own_partitions(router))
    sending = asyncio.create_task(gateway.run(log))
    await gateway.goes_on()
    cluster.kill(2)
    await gateway.goes_on()
    missing = 0
    async with asyncio.timeout(180):
        while not missing:
            with contextlib.suppress(Unavailable):  # it may have asked the one that is gone
                missing = (await log.describe({log.frames})).topics[log.frames].under_replicated
            await asyncio.sleep(0.5)
    assert missing == 1  # of the one partition that there is
    cluster.kill(3)
    before = gateway.retries
    await eventually(lambda: gateway.retries > before, "a frame is answered retry")
    # What was on its way may have been taken; from the first retry on there is nobody to acknowledge.
    taken = gateway.taken
    await eventually(lambda: gateway.retries > before + 2, "it stays so")
    assert gateway.taken == taken
    cluster.up()
    await gateway.goes_on()
    gateway.enough = True
    await sending
    found: list[bytes | None] = []
    async with asyncio.timeout(180):
        while len(found) < gateway.taken:
            found = await values(log, router.topic)
    owning.cancel()
    await asyncio.gather(owning, return_exceptions=True)
    await log.close()
    assert found == [b"%d" % number for number in range(gateway.taken)]


@pytest.mark.parametrize(
    ("topic", "replicas", "settings", "says"),
    [
        ("waybill.ledger", 1, {}, "has 1 replica on 3 brokers.*give it 3 by kafka-reassign-partitions.sh"),
        ("fleet", 1, {}, "has 1 replica on 3 brokers.*give it 3 by kafka-reassign-partitions.sh"),
        ("waybill.ledger", 3, {"min.insync.replicas": "1"}, "has 3 replicas and.*--add-config min.insync.replicas=2"),
        ("fleet", 2, {"min.insync.replicas": "1"}, "has 2 replicas and.*--add-config min.insync.replicas=2"),
    ],
)
async def test_r4_a_topic_that_one_broker_can_lose_is_an_error_with_its_mend(
    cluster: Cluster, unique: str, topic: str, replicas: int, settings: dict[str, str], says: str
) -> None:
    name = f"{unique}.{topic}"
    policy = {"cleanup.policy": "compact"} if topic == "waybill.ledger" else {}
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(name, 1, replicas, topic_configs={**policy, **settings})])
    await admin.close()
    log = make_log(cluster.bootstrap, unique, partitions=1)
    with pytest.raises(ConfigError, match=f"topic {name} {says}"):
        await log.start()
    allowed = make_log(cluster.bootstrap, unique, partitions=1, allow_unsafe=True)
    await allowed.start()
    await allowed.close()


async def test_two_replicas_that_must_both_be_there_are_warned_of(
    cluster: Cluster, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = make_log(cluster.bootstrap, unique, partitions=1)
    log._topics = type(log._topics)(prefix=f"{unique}.", partitions=1, replication_factor=2)
    await log.start()
    await log.close()
    assert "has 2 replicas and min.insync.replicas=2: while a broker is away nothing can be written" in caplog.text


async def test_a_partition_without_a_leader_holds_up_no_other(cluster: Cluster, unique: str) -> None:
    log = make_log(
        cluster.bootstrap, unique, partitions=3, allow_unsafe=True, **{**QUICK, "delivery.timeout.ms": 60_000}
    )
    log._topics = type(log._topics)(prefix=f"{unique}.", partitions=3, replication_factor=1)
    await log.start()
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    [described] = await admin.describe_topics([f"{unique}.waybill.frames"])
    await admin.close()
    leaders = {partition["partition"]: partition["leader"] for partition in described["partitions"]}
    assert len(set(leaders.values())) > 1
    for number in leaders:
        await log.append_frame("gw-1", b"before", number)
    silent = leaders[0]
    cluster.pause(silent)
    try:
        stuck = [asyncio.create_task(log.append_frame("gw-1", b"%d" % number * 100_000, 0)) for number in range(8)]
        await asyncio.sleep(0)
        async with asyncio.timeout(50):
            for number in range(100):
                for partition in (one for one, leader in leaders.items() if leader != silent):
                    await log.append_frame("gw-1", b"%d" % number, partition)
        assert not any(task.done() for task in stuck)
    finally:
        cluster.resume(silent)
    await asyncio.gather(*stuck)
    await log.close()

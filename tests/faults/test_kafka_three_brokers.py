"""Three brokers: one may be lost under load; without two of them nothing is acknowledged, and nothing is lost (R3)."""

import asyncio

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from cloud_ingest.journal.kafka import KafkaLog
from tests.faults.test_kafka_away import QUICK, Router
from tests.support.kafka import StartCluster
from tests.support.kafka_log import eventually, make_log, values
from waybill.errors import Unavailable


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
    kafka_cluster: StartCluster, unique: str
) -> None:
    cluster = kafka_cluster(brokers=3)
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
    async with asyncio.timeout(60):
        while len(found) < gateway.taken:
            found = await values(log, router.topic)
    owning.cancel()
    await asyncio.gather(owning, return_exceptions=True)
    await log.close()
    assert found == [b"%d" % number for number in range(gateway.taken)]

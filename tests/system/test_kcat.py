"""What kcat (librdkafka) reads back: committed records only."""

import subprocess

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.kafka_log import OpenLog, step

pytestmark = pytest.mark.system


async def test_kcat_reads_each_committed_record_once(
    open_log: OpenLog, unique: str, kafka: str, foreign: AIOKafkaProducer
) -> None:
    log = await open_log()
    topic = f"{unique}.fleet"
    partition = log.open_partition(0)
    await partition.load()
    for number in range(50):
        await foreign.begin_transaction()
        await foreign.send_and_wait(topic, b"aborted", key=b"V1")
        await foreign.abort_transaction()
        await partition.commit(step(unique, b"%d" % number))
    await partition.close()
    read = subprocess.run(  # noqa: ASYNC221 - nothing else runs here
        ["kcat", "-C", "-b", kafka, "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%k %h %s\n"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert read.stdout.splitlines() == [f"V1 ce_id={number} {number}" for number in range(50)]

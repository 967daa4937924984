"""The development Kafka, read by a client that others wrote: kcat, over librdkafka.

In plain text: librdkafka before 2.6.1 repeats a SCRAM nonce, and Kafka 4 refuses that (confluentinc/librdkafka#4895);
Debian 12 has an older one.
"""

import subprocess

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

pytestmark = pytest.mark.system


def kcat(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["kcat", *arguments], capture_output=True, text=True, timeout=60, check=False)


async def test_kcat_reads_what_was_committed(kafka: str, unique: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(unique, num_partitions=1, replication_factor=1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=unique)
    await producer.start()
    async with producer.transaction():
        await producer.send_and_wait(unique, b"kept")
    await producer.begin_transaction()
    await producer.send_and_wait(unique, b"taken back")
    await producer.abort_transaction()
    await producer.stop()

    read = ["-C", "-t", unique, "-o", "beginning", "-e", "-q"]
    plain = ["-b", kafka]
    assert kcat(*plain, *read, "-X", "isolation.level=read_committed").stdout == "kept\n"
    assert kcat(*plain, *read, "-X", "isolation.level=read_uncommitted").stdout == "kept\ntaken back\n"

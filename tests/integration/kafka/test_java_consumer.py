"""What a client that others wrote reads: committed records once, with key, headers and partition."""

from aiokafka import AIOKafkaProducer

from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import OutRecord, Step
from tests.support.java_consumer import read_committed
from tests.support.kafka_log import OpenLog


async def test_javas_console_consumer_reads_each_committed_record_once(
    open_log: OpenLog, unique: str, kafka: str, foreign: AIOKafkaProducer
) -> None:
    log = await open_log()
    topic = f"{unique}.fleet"
    partition = log.open_partition(0)
    await partition.load()
    for number in range(0, 100, 10):
        records = [
            OutRecord(topic, b"V%d" % (n % 7), b"%d" % n, [("ce_id", b"gw/1/telemetry/%d" % n), ("mqtt_qos", b"1")])
            for n in range(number, number + 10)
        ]
        await foreign.begin_transaction()
        await foreign.send_and_wait(topic, b"aborted", key=b"V1")
        await foreign.abort_transaction()
        await partition.commit(Step(records, {b"k": b"v"}, 0))
    await partition.close()
    read = await read_committed(kafka, topic)
    assert sorted(int(record.value) for record in read) == list(range(100))
    for record in read:
        number = int(record.value)
        assert record.key == f"V{number % 7}"
        assert record.headers == {"ce_id": f"gw/1/telemetry/{number}", "mqtt_qos": "1"}
        assert record.partition == partition_of(record.key.encode(), 2)
    for key in range(7):
        values = [int(record.value) for record in read if record.key == f"V{key}"]
        assert values == sorted(values)

"""Following topics of a real Kafka: committed records only, and an end that is an end."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import CaughtUp, OutRecord, TopicRecord
from tests.support.kafka_log import OpenLog, step, values
from waybill.errors import TopicRefused


async def test_an_empty_topic_is_caught_up_at_once(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    assert [item async for item in log.follow([f"{unique}.fleet"], end=True)] == [CaughtUp()]


async def test_aborted_records_are_never_seen_and_markers_at_the_end_do_not_hang(
    open_log: OpenLog, unique: str, foreign: AIOKafkaProducer
) -> None:
    log = await open_log()
    topic = f"{unique}.fleet"
    for value, end in (
        (b"aborted", foreign.abort_transaction),
        (b"committed", foreign.commit_transaction),
        (b"aborted too", foreign.abort_transaction),
    ):
        await foreign.begin_transaction()
        await foreign.send_and_wait(topic, value, key=b"k")
        await end()
    assert await values(log, topic) == [b"committed"]


async def test_an_open_transaction_does_not_hold_back_the_end(
    open_log: OpenLog, unique: str, foreign: AIOKafkaProducer
) -> None:
    log = await open_log()
    topic = f"{unique}.fleet"
    await log.append(OutRecord(topic, b"k", b"before", []))
    await foreign.begin_transaction()
    await foreign.send_and_wait(topic, b"open", key=b"k")
    assert await values(log, topic) == [b"before"]
    await foreign.abort_transaction()


async def test_it_goes_on_with_new_records_after_it_has_caught_up(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    topic = f"{unique}.fleet"
    partition = log.open_partition(0)
    await partition.load()
    await partition.commit(step(unique, b"old"))
    seen: list[bytes | None] = []
    async for item in log.follow([topic, f"{unique}.waybill.commands"]):
        if isinstance(item, CaughtUp):
            assert seen == [b"old"]
            await partition.commit(step(unique, b"new"))
            await log.append(OutRecord(f"{unique}.waybill.commands", b"gw-1", b"command", []))
        else:
            seen.append(item.value)
            if len(seen) == 3:
                break
    assert set(seen) == {b"old", b"new", b"command"}
    await partition.close()


async def test_one_partition_alone(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    topic = f"{unique}.fleet"
    for number in range(20):
        await log.append(OutRecord(topic, b"%d" % number, b"v", []))
    found = [item async for item in log.follow([topic], only=1, end=True) if isinstance(item, TopicRecord)]
    assert {item.partition for item in found} == {1}
    assert {item.key for item in found} == {b"%d" % n for n in range(20) if partition_of(b"%d" % n, 2) == 1}


async def test_what_is_not_there_is_said(open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient) -> None:
    log = await open_log()
    with pytest.raises(TopicRefused, match="no such topic"):
        await values(log, f"{unique}.typo")
    assert f"{unique}.typo" not in await admin.list_topics()
    with pytest.raises(TopicRefused, match="no partition 2; it has 2"):
        async for _ in log.follow([f"{unique}.fleet"], only=2, end=True):
            pass


async def test_records_deleted_under_it_do_not_stop_it(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient
) -> None:
    log = await open_log()
    topic = f"{unique}.fleet"
    for number in range(10):
        await log.append(OutRecord(topic, b"k", b"%d" % number, []))
    place = TopicPartition(topic, partition_of(b"k", 2))
    await admin.delete_records({place: RecordsToDelete(8)})
    assert await values(log, topic) == [b"8", b"9"]


async def test_leaving_early_leaves_no_task_behind(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    await log.append(OutRecord(f"{unique}.fleet", b"k", b"v", []))
    await log.close()
    before = asyncio.all_tasks()
    items = log.follow([f"{unique}.fleet"])
    await anext(items)
    await items.aclose()  # type: ignore[attr-defined]
    assert asyncio.all_tasks() <= before

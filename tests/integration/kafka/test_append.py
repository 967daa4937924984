"""Appending to a real Kafka: durable, in order, bounded, and refused where it must be (B4, R5)."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.producer.message_accumulator import BatchBuilder

from cloud_ingest.journal import kafka_append
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import OutRecord, TopicRecord
from tests.support.kafka_log import OpenLog, limit_records, values
from waybill.errors import Refused, TopicRefused, Unavailable


async def test_frames_of_many_gateways_at_once_keep_the_order_of_each(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    await asyncio.gather(*(log.append_frame(f"gw-{n % 7}", b"%d/%d" % (n % 7, n)) for n in range(700)))
    frames = [r async for r in log.follow([f"{unique}.waybill.frames"], end=True) if isinstance(r, TopicRecord)]
    for gateway in range(7):
        mine = [frame for frame in frames if frame.key == b"gw-%d" % gateway]
        assert [frame.value for frame in mine] == [b"%d/%d" % (gateway, n) for n in range(gateway, 700, 7)]
        assert {frame.partition for frame in mine} == {partition_of(b"gw-%d" % gateway, log.partitions)}


async def test_b4_a_frame_that_the_topic_cannot_take_is_refused_and_others_go_on(
    open_log: OpenLog, unique: str
) -> None:
    log = await open_log()
    with pytest.raises(Refused, match="max.message.bytes"):
        await log.append_frame("gw-1", b"x" * (5 << 20))
    large = b"x" * (4_000_000)
    await log.append_frame("gw-1", large)
    assert await values(log, f"{unique}.waybill.frames") == [large]


async def test_r5_the_one_record_of_a_batch_that_the_broker_refuses_is_found(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient, kafka: str
) -> None:
    log = await open_log()
    topic = f"{unique}.fleet"
    await log.append(OutRecord(topic, b"k", b"first", []))
    await limit_records(admin, kafka, topic, 1000)  # behind the log's back
    sent = [b"1", b"2", b"x" * 5000, b"3", b"4"]
    results = await asyncio.gather(
        *(log.append(OutRecord(topic, b"k", value, [])) for value in sent), return_exceptions=True
    )
    assert [isinstance(result, Refused) for result in results] == [False, False, True, False, False]
    assert await values(log, topic) == [b"first", b"1", b"2", b"3", b"4"]


async def test_frames_that_waited_together_share_batches(
    open_log: OpenLog, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await open_log()
    sizes: list[int] = []
    send = AIOKafkaProducer.send_batch

    async def counted(self: AIOKafkaProducer, batch: BatchBuilder, topic: str, *, partition: int) -> object:
        sizes.append(batch.record_count())
        return await send(self, batch, topic, partition=partition)

    monkeypatch.setattr(AIOKafkaProducer, "send_batch", counted)
    sent = [b"%d" % n + b"." * 25_000 for n in range(60)]
    await asyncio.gather(*(log.append_frame("gw-1", frame) for frame in sent))
    assert sum(sizes) == len(sent)
    assert len(sizes) <= 5  # of 512 KiB
    assert await values(log, f"{unique}.waybill.frames") == sent


async def test_a_topic_that_is_not_there_is_refused(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    with pytest.raises(TopicRefused, match="nowhere"):
        await log.append(OutRecord(f"{unique}.nowhere", b"k", b"v", []))


async def test_what_waits_is_bounded_by_bytes(open_log: OpenLog, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_append, "WAITING_BYTES", 100_000)
    log = await open_log()
    results = await asyncio.gather(
        *(log.append_frame("gw-1", b"%04d" % n + b"." * 9_000) for n in range(20)), return_exceptions=True
    )
    taken = [result for result in results if result is None]
    assert 0 < len(taken) < 20
    assert all(isinstance(result, Unavailable) for result in results if result is not None)
    assert len(await values(log, f"{unique}.waybill.frames")) == len(taken)
    await log.append_frame("gw-1", b"room again")


async def test_a_log_that_is_closed_takes_nothing(open_log: OpenLog) -> None:
    log = await open_log()
    await log.close()
    with pytest.raises(Unavailable, match="closed"):
        await log.append_frame("gw-1", b"x")


async def test_the_producer_is_made_anew_before_its_sequence_numbers_break(
    open_log: OpenLog, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_append, "RENEW_AT", 3)
    log = await open_log()
    producers = set()
    for number in range(10):
        await log.append_frame("gw-1", b"%d" % number)
        producers.add(log._appender._connection)
    assert len(producers - {None}) > 2
    assert await values(log, f"{unique}.waybill.frames") == [b"%d" % number for number in range(10)]

"""One frames partition on a real Kafka: fenced, loaded, read and written in transactions (R1–R6, R8)."""

import asyncio
import time
from typing import Any, Literal

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete

from cloud_ingest.config import Route
from cloud_ingest.journal import kafka_partitions
from cloud_ingest.journal.kafka import KafkaLog
from cloud_ingest.journal.kafka_partitions import KafkaPartition
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import OutRecord, Step, TopicRecord
from tests.support.kafka_log import OpenLog, fleet, limit_records, read_all, step, values
from waybill.errors import Fenced, RecordRefused, TopicRefused, Unavailable


async def _journal(log: KafkaLog, gateway: str, count: int) -> int:
    """Append ``count`` frames of ``gateway`` and return their partition."""
    for number in range(count):
        await log.append_frame(gateway, b"frame %d" % number)
    return partition_of(gateway.encode(), log.partitions)


async def test_a_step_becomes_visible_whole_with_its_offset_and_its_ledger(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    number = await _journal(log, "gw-1", 3)
    partition = log.open_partition(number)
    loaded = await partition.load()
    assert (loaded.start, loaded.log_start, loaded.lost, dict(loaded.ledger)) == (0, 0, 0, {})
    frames = await read_all(partition, 3)
    assert [frame.frame for frame in frames] == [b"frame 0", b"frame 1", b"frame 2"]
    assert {frame.gateway for frame in frames} == {"gw-1"}
    assert abs(frames[0].stamp_ms / 1000 - time.time()) < 600

    await partition.commit(Step([fleet(unique, b"a"), fleet(unique, b"b")], {b"k": b"1", b"gone": b"x"}, 2))
    await partition.commit(Step([], {b"gone": None}, 2))
    await partition.close()

    again = log.open_partition(number)
    loaded = await again.load()
    assert loaded.start == 2
    assert dict(loaded.ledger) == {b"k": b"1"}
    assert [frame.frame for frame in await read_all(again, 1)] == [b"frame 2"]
    await again.close()
    assert await values(log, f"{unique}.fleet") == [b"a", b"b"]


async def test_r1_the_new_owner_fences_the_old_one(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    old, new = log.open_partition(0), log.open_partition(0)
    await old.load()
    await old.commit(step(unique, b"1"))
    assert dict((await new.load()).ledger) == {b"last": b"1"}
    with pytest.raises(Fenced):
        await old.commit(step(unique, b"by the zombie"))
    with pytest.raises(Fenced):  # and never fences back by itself
        await old.load()
    await new.commit(step(unique, b"2"))
    assert await values(log, f"{unique}.fleet") == [b"1", b"2"]
    await old.close()
    await new.close()


async def test_r1_loading_finishes_the_transaction_of_an_owner_that_died_in_it(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    dead = log.open_partition(0)
    await dead.load()
    producer = dead._producer
    assert producer is not None
    await producer.begin_transaction()
    await producer.send_and_wait(f"{unique}.fleet", b"half done", key=b"V1")
    await producer.send_and_wait(f"{unique}.waybill.ledger", b"half done", key=b"last", partition=0)
    heir = log.open_partition(0)
    assert dict((await heir.load()).ledger) == {}
    await heir.commit(step(unique, b"whole"))
    assert await values(log, f"{unique}.fleet") == [b"whole"]
    await dead.close()
    await heir.close()


async def test_r2_a_partition_that_is_not_loaded_reads_and_writes_nothing(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    partition = log.open_partition(0)
    with pytest.raises(Unavailable, match="load it first"):
        await partition.read(10, 0.1)
    with pytest.raises(Unavailable, match="load it first"):
        await partition.commit(step(unique, b"early"))
    assert await values(log, f"{unique}.fleet") == []
    await partition.close()


async def test_r2_the_ledger_is_read_past_a_foreign_transaction_that_is_open_on_it(
    open_log: OpenLog, unique: str, foreign: AIOKafkaProducer
) -> None:
    """Below it, the last stable offset would hide our own later entries."""
    log = await open_log()
    ledger = f"{unique}.waybill.ledger"
    await foreign.begin_transaction()
    await foreign.send_and_wait(ledger, b"theirs", key=b"job", partition=0)
    partition = log.open_partition(0)
    loading = asyncio.create_task(partition.load())
    # The first load has nothing of ours to find but cannot know that: it waits for what is open.
    done, _ = await asyncio.wait({loading}, timeout=1.5)
    assert not done
    await foreign.abort_transaction()
    assert dict((await loading).ledger) == {}

    await foreign.begin_transaction()
    await foreign.send_and_wait(ledger, b"theirs", key=b"job", partition=0)
    await partition.commit(step(unique, b"ours"))
    await partition.close()
    heir = log.open_partition(0)
    loading = asyncio.create_task(heir.load())
    done, _ = await asyncio.wait({loading}, timeout=1.5)
    assert not done
    await foreign.commit_transaction()
    assert dict((await loading).ledger) == {b"last": b"ours", b"job": b"theirs"}
    await heir.close()


async def test_r3_after_an_unknown_outcome_only_a_load_goes_on(
    open_log: OpenLog, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await open_log()
    partition = log.open_partition(0)
    await partition.load()
    producer = partition._producer
    assert producer is not None
    end = producer.commit_transaction

    async def committed_but_unheard() -> None:
        await end()
        raise TimeoutError

    monkeypatch.setattr(producer, "commit_transaction", committed_but_unheard)
    with pytest.raises(Unavailable, match="load again"):
        await partition.commit(step(unique, b"once", next_offset=7))
    with pytest.raises(Unavailable, match="load it first"):
        await partition.commit(step(unique, b"once", next_offset=7))
    loaded = await partition.load()
    assert dict(loaded.ledger) == {b"last": b"once"}
    assert await values(log, f"{unique}.fleet") == [b"once"]
    await partition.close()


async def test_r5_a_record_that_the_broker_refuses_takes_its_step_back_and_nothing_else(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient, kafka: str
) -> None:
    log = await open_log(**{"compression.type": "none"})
    partition = log.open_partition(0)
    await partition.load()
    await partition.commit(step(unique, b"before"))
    await limit_records(admin, kafka, f"{unique}.fleet", 1000)  # behind the log's back
    for _ in range(3):  # again and again: a poisoned producer would answer otherwise the second time
        with pytest.raises(RecordRefused, match=f"{unique}.fleet"):
            await partition.commit(step(unique, b"good", b"x" * 5000, b"good"))
    await partition.commit(step(unique, b"after"))
    assert await values(log, f"{unique}.fleet") == [b"before", b"after"]
    await partition.close()


async def test_r5_a_record_larger_than_its_topic_is_refused_before_it_is_sent(open_log: OpenLog, unique: str) -> None:
    log = await open_log(**{"compression.type": "none"})
    partition = log.open_partition(0)
    await partition.load()
    producer = partition._producer
    with pytest.raises(RecordRefused, match="max.message.bytes"):
        await partition.commit(step(unique, b"x" * 1_100_000))
    assert partition._producer is producer  # nothing was begun
    await partition.commit(step(unique, b"after"))
    assert await values(log, f"{unique}.fleet") == [b"after"]
    await partition.close()


async def test_r5_a_record_without_a_key_for_a_compacted_topic_is_refused(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient
) -> None:
    """INVALID_RECORD, which aiokafka itself takes for an unknown error."""
    topic = f"{unique}.compacted"
    await admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"cleanup.policy": "compact"})])
    log = await open_log()
    partition = log.open_partition(0)
    await partition.load()
    with pytest.raises(RecordRefused, match="InvalidRecord"):
        await partition.commit(Step([OutRecord(topic, None, b"x", [])], {}, 0))
    await partition.commit(Step([OutRecord(topic, b"k", b"x", [])], {}, 0))
    assert await values(log, topic) == [b"x"]
    await partition.close()


async def test_r5_a_topic_that_is_not_there_is_refused_as_a_topic(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    partition = log.open_partition(0)
    await partition.load()
    nowhere = OutRecord(f"{unique}.nowhere", b"k", b"v", [])
    with pytest.raises(TopicRefused) as refused:
        await partition.commit(Step([fleet(unique, b"a"), nowhere], {}, 0))
    assert refused.value.topic == f"{unique}.nowhere"
    await partition.commit(step(unique, b"b"))
    assert await values(log, f"{unique}.fleet") == [b"b"]
    await partition.close()


async def test_r5_making_the_producer_anew_does_not_write_over_a_successor(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient, kafka: str
) -> None:
    """A worker paused between a refused record and its next commit must not fence the one that took over, and write."""
    log = await open_log(**{"compression.type": "none"})
    paused, heir = log.open_partition(0), log.open_partition(0)
    await paused.load()
    await limit_records(admin, kafka, f"{unique}.fleet", 1000)
    with pytest.raises(RecordRefused):
        await paused.commit(step(unique, b"x" * 5000))
    await heir.load()
    await heir.commit(step(unique, b"by the heir"))  # the offset does not move: a frame before it may be held (R7)
    with pytest.raises(Unavailable, match="another worker wrote"):
        await paused.commit(step(unique, b"by the heir"))
    assert await values(log, f"{unique}.fleet") == [b"by the heir"]
    assert dict((await paused.load()).ledger) == {b"last": b"by the heir"}
    await paused.close()
    await heir.close()


async def test_the_producer_is_made_anew_before_its_sequence_numbers_break(
    open_log: OpenLog, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_partitions, "RENEW_AT", 5)
    log = await open_log()
    partition = log.open_partition(0)
    await partition.load()
    producers = set()
    for number in range(10):
        await partition.commit(step(unique, b"%d" % number, b"-"))
        producers.add(id(partition._producer))
    assert len(producers) > 2
    assert await values(log, f"{unique}.fleet") == [v for n in range(10) for v in (b"%d" % n, b"-")]
    await partition.close()


@pytest.mark.parametrize("moment", ["begin_transaction", "send_offsets_to_transaction", "commit_transaction"])
async def test_a_commit_that_is_cancelled_holds_nobody_back(
    open_log: OpenLog, unique: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Left open, its transaction would hide what others write to the topics until it times out."""
    log = await open_log(**{"transaction.timeout.ms": 600_000})
    partition = log.open_partition(0)
    await partition.load()
    producer = partition._producer
    assert producer is not None
    reached = asyncio.Event()
    real = getattr(producer, moment)

    async def noted(*arguments: Any) -> None:
        reached.set()
        await real(*arguments)

    monkeypatch.setattr(producer, moment, noted)
    commit = asyncio.create_task(partition.commit(step(unique, b"maybe")))
    await reached.wait()
    commit.cancel()
    await asyncio.gather(commit, return_exceptions=True)
    await partition.close()
    await log.append(fleet(unique, b"after"))
    found: list[bytes | None] = []
    async with asyncio.timeout(180):  # much less than a transaction may stay open
        while b"after" not in found:
            found = await values(log, f"{unique}.fleet")
    assert found[-1:] == [b"after"]


async def test_r6_records_bear_the_time_of_their_writing(open_log: OpenLog, unique: str) -> None:
    log = await open_log()
    partition = log.open_partition(0)
    await partition.load()
    before = int(time.time() * 1000)
    await partition.commit(step(unique, b"a"))
    after = int(time.time() * 1000)
    [record] = [item async for item in log.follow([f"{unique}.fleet"], end=True) if isinstance(item, TopicRecord)]
    assert before <= record.stamp_ms <= after
    assert record.headers == (("ce_id", b"a"),)
    await partition.close()


async def test_r8_frames_deleted_unrouted_are_counted_and_never_skipped_in_silence(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient
) -> None:
    log = await open_log()
    number = await _journal(log, "gw-1", 10)
    partition = log.open_partition(number)
    await partition.load()
    await read_all(partition, 10)
    await partition.commit(step(unique, b"a", next_offset=2))
    partition.rewind(2)
    place = TopicPartition(f"{unique}.waybill.frames", number)
    await admin.delete_records({place: RecordsToDelete(7)})
    with pytest.raises(Unavailable, match="deleted"):
        await read_all(partition, 1)
    loaded = await partition.load()
    assert (loaded.start, loaded.log_start, loaded.lost) == (7, 7, 5)
    assert [frame.offset for frame in await read_all(partition, 3)] == [7, 8, 9]
    assert await partition.log_start() == 7
    await partition.close()


async def test_reading_says_when_the_end_was_reached(open_log: OpenLog) -> None:
    log = await open_log()
    number = await _journal(log, "gw-1", 3)
    partition = log.open_partition(number)
    await partition.load()
    seen: list[tuple[int, bool]] = []
    while not seen or seen[-1][0] < 2:
        records, end = await partition.read(1, 1.0)
        seen += [(record.offset, end) for record in records]
    assert [end for _, end in seen] == [False, False, True]
    partition.rewind(1)
    assert [frame.offset for frame in await read_all(partition, 2)] == [1, 2]
    empty = log.open_partition(1 - number)
    await empty.load()
    async with asyncio.timeout(180):
        while not (await empty.read(10, 0.3))[1]:
            pass
    await partition.close()
    await empty.close()


async def test_a_large_step_is_cut_into_batches_that_the_broker_takes(open_log: OpenLog, unique: str) -> None:
    """A million bytes and more for one partition, in order."""
    log = await open_log(**{"compression.type": "none"})
    partition = log.open_partition(0)
    await partition.load()
    lines = [b"%06d" % number + b"." * 394 for number in range(5000)]
    await partition.commit(step(unique, *lines))
    assert await values(log, f"{unique}.fleet") == lines
    await partition.close()


async def test_closing_leaves_no_task_behind(open_log: OpenLog, unique: str) -> None:
    before = asyncio.all_tasks()
    log = await open_log()
    partition: KafkaPartition = log.open_partition(0)
    await partition.load()
    await partition.commit(step(unique, b"a"))
    await log.append_frame("gw-1", b"x")
    await partition.close()
    await log.close()
    assert asyncio.all_tasks() <= before


async def test_without_transactions_the_offset_is_in_the_ledger_and_back_in_the_group_with_them(
    open_log: OpenLog, unique: str
) -> None:
    plain, whole = await open_log(delivery="at-least-once"), await open_log()
    number = await _journal(plain, "gw-1", 3)
    for log, offset in ((plain, 1), (whole, 2), (plain, 3)):
        partition = log.open_partition(number)
        loaded = await partition.load()
        assert (loaded.start, dict(loaded.ledger)) == (
            offset - 1,
            {b"last": b"%d" % (offset - 1)} if offset > 1 else {},
        )
        await partition.commit(step(unique, b"%d" % offset, next_offset=offset))
        await partition.close()
        assert [record.offset async for record in log.unrouted() if record.partition == number] == [*range(offset, 3)]
    assert await values(whole, f"{unique}.fleet") == [b"1", b"2", b"3"]


async def test_without_transactions_a_worker_that_was_overtaken_leaves_the_ledger_alone(
    open_log: OpenLog, unique: str
) -> None:
    log = await open_log(delivery="at-least-once")
    old, new = log.open_partition(0), log.open_partition(0)
    await old.load()
    await old.commit(step(unique, b"1"))
    await new.load()
    await new.commit(step(unique, b"2"))
    with pytest.raises(Unavailable, match="another worker wrote the ledger"):
        await old.commit(step(unique, b"by the zombie"))
    assert dict((await old.load()).ledger) == {b"last": b"2"}
    await old.commit(step(unique, b"3"))
    assert await values(log, f"{unique}.fleet") == [b"1", b"2", b"by the zombie", b"3"]
    await old.close()
    await new.close()


@pytest.mark.parametrize("send", ["async", "sync"])
async def test_a_route_says_how_its_records_are_sent(
    open_log: OpenLog, unique: str, send: Literal["async", "sync"]
) -> None:
    route = Route(topic=f"{unique}.fleet", compression="lz4", batch_bytes=2_000, send=send)
    log = await open_log(route=route, partitions=1)
    partition = log.open_partition(0)
    await partition.load()
    sent = [b"%d" % number * 100 for number in range(300)]
    await partition.commit(step(unique, *sent))
    assert await values(log, f"{unique}.fleet") == sent
    with pytest.raises(RecordRefused):
        await partition.commit(step(unique, bytes(2 << 20)))
    await partition.commit(step(unique, b"after"))
    assert await values(log, f"{unique}.fleet") == [*sent, b"after"]
    await partition.close()

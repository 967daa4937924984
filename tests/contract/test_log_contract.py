"""What every log does, through its port alone: the embedded one and Kafka."""

import asyncio
import time
from pathlib import Path

import pytest

from cloud_ingest.config import Topics
from cloud_ingest.following import following
from cloud_ingest.journal.embedded import EmbeddedLog
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import CaughtUp, JournalRecord, Log, OutRecord, PartitionLog, Step, TopicRecord
from tests.support.logs import PARTITIONS, make, owned, read_to_end
from waybill.errors import RecordRefused, Refused, TopicRefused


async def frames(partition: PartitionLog, count: int) -> list[JournalRecord]:
    found: list[JournalRecord] = []
    async with asyncio.timeout(180):
        while len(found) < count:
            records, _ = await partition.read(100, 1.0)
            found += records
    return found


async def at_the_end(partition: PartitionLog) -> list[JournalRecord]:
    """Return what is read until the log says that this is all."""
    found: list[JournalRecord] = []
    end = False
    async with asyncio.timeout(180):
        while not end:
            records, end = await partition.read(100, 0.1)
            found += records
    return found


async def test_frames_are_read_in_order_in_the_partition_of_their_gateway(log: Log) -> None:
    sent = [(f"gw-{n % 3}", b"frame %d" % n) for n in range(30)]
    before = time.time_ns() // 1_000_000
    for gateway, frame in sent:
        await log.append_frame(gateway, frame)
    async with owned(log) as partitions:
        assert sorted(partitions) == list(range(PARTITIONS))
        for number, partition in partitions.items():
            loaded = await partition.load()
            assert (loaded.start, loaded.log_start, loaded.lost, dict(loaded.ledger)) == (0, 0, 0, {})
            mine = [each for each in sent if partition_of(each[0].encode(), PARTITIONS) == number]
            found = await frames(partition, len(mine))
            assert [(record.gateway, record.frame) for record in found] == mine
            assert [record.offset for record in found] == sorted({record.offset for record in found})
            assert {record.partition for record in found} <= {number}
            assert all(before - 5_000 <= record.stamp_ms <= before + 600_000 for record in found)
            assert await at_the_end(partition) == []
            assert await partition.log_start() == 0
            assert partition.cleared() == (found[-1].offset + 1, "")


async def test_r10_a_log_has_an_id_that_outlives_a_restart_and_no_other_log_has(
    request: pytest.FixtureRequest, log: Log, unique: str, tmp_path: Path
) -> None:
    kind = "embedded" if isinstance(log, EmbeddedLog) else "kafka"
    bootstrap = request.getfixturevalue("kafka") if kind == "kafka" else ""
    known = log.log_id
    assert 0 < known < 1 << 63
    await log.close()
    for name, directory, same in ((unique, tmp_path, True), (f"{unique}x", tmp_path / "wiped", False)):
        other = make(kind, name, directory, bootstrap)
        assert other.log_id == 0
        await other.start()
        assert (other.log_id == known) is same
        assert other.log_id > 0
        await other.close()


async def test_a_frame_may_name_its_partition(log: Log) -> None:
    other = (partition_of(b"node:1", PARTITIONS) + 1) % PARTITIONS
    await log.append_frame("node:1", b"frame", other)
    async with owned(log) as partitions:
        await partitions[other].load()
        (found,) = await frames(partitions[other], 1)
        assert (found.gateway, found.frame, found.partition) == ("node:1", b"frame", other)


async def test_frames_appended_together_are_all_there_and_a_reader_is_woken(log: Log) -> None:
    async with owned(log) as partitions:
        number = partition_of(b"gw", PARTITIONS)
        await partitions[number].load()
        reading = asyncio.create_task(frames(partitions[number], 50))
        await asyncio.sleep(0.05)
        async with asyncio.TaskGroup() as group:
            for n in range(50):
                group.create_task(log.append_frame("gw", b"%d" % n))
        assert sorted(record.frame for record in await reading) == sorted(b"%d" % n for n in range(50))


async def test_a_step_is_there_whole_and_a_new_owner_goes_on_after_it(log: Log, fleet: str, topics: Topics) -> None:
    for n in range(4):
        await log.append_frame("gw", b"%d" % n)
    number = partition_of(b"gw", PARTITIONS)
    headers = [("ce_id", b"1"), ("twice", b"a"), ("twice", b"b")]
    record = OutRecord(fleet, b"V7", b"value", headers)
    async with owned(log) as partitions:
        partition = partitions[number]
        await partition.load()
        offsets = [each.offset for each in await frames(partition, 4)]
        entries: dict[bytes, bytes | None] = {b"one": b"1", b"two": b"2", b"three": b"3"}
        await partition.commit(Step([record], entries, offsets[1], {b"gw/7": b"7", b"gw/8": b"8"}))
        await partition.commit(Step([], {b"one": b"11", b"two": None}, offsets[2], {b"gw/7": None, b"gw/9": b"9"}))
        loaded = await partition.load()
        assert dict(loaded.ledger) == {b"one": b"11", b"three": b"3"}
        assert dict(loaded.dictionaries) == {b"gw/8": b"8", b"gw/9": b"9"}
        assert loaded.start == offsets[2]
        assert loaded.lost == 0
        assert [each.frame for each in await frames(partition, 2)] == [b"2", b"3"]
        partition.rewind(offsets[1])
        assert [each.frame for each in await frames(partition, 3)] == [b"1", b"2", b"3"]
    (found,) = await read_to_end(log, [fleet])
    assert (found.topic, found.key, found.value, list(found.headers)) == (fleet, b"V7", b"value", headers)
    ledger = {each.key: each.value for each in await read_to_end(log, [topics.ledger])}
    assert {key: value for key, value in ledger.items() if value and b"/next" not in (key or b"")} == {
        b"one": b"11",
        b"three": b"3",
    }
    for topic in (topics.ledger, topics.dictionaries):
        assert {each.partition for each in await read_to_end(log, [topic])} == {number}


async def test_records_of_a_step_keep_their_order_and_a_key_its_partition(log: Log, fleet: str) -> None:
    records = [OutRecord(fleet, b"V%d" % (n % 7), b"%d" % n, []) for n in range(500)]
    async with owned(log) as partitions:
        await partitions[0].load()
        await partitions[0].commit(Step(records, {}, 0))
    found = await read_to_end(log, [fleet])
    assert len(found) == len(records)
    for n in range(7):
        mine = [each for each in found if each.key == b"V%d" % n]
        assert [each.value for each in mine] == [record.value for record in records if record.key == b"V%d" % n]
        assert {each.partition for each in mine} == {partition_of(b"V%d" % n, PARTITIONS)}


async def test_follow_yields_what_is_there_then_says_so_once_then_what_comes(log: Log, topics: Topics) -> None:
    for n in range(3):
        await log.append(OutRecord(topics.commands, b"gw", b"%d" % n, [("h", b"x")]))
    seen: list[bytes | None] = []
    async with asyncio.timeout(180), following(log, [topics.commands, topics.command_status]) as records:
        async for record in records:
            if isinstance(record, CaughtUp):
                seen.append(b"caught up")
                await log.append(OutRecord(topics.command_status, b"c", b"status", []))
                await log.append(OutRecord(topics.commands, b"gw", None, []))
            else:
                seen.append(record.value)
            if len(seen) == 6:
                break
    assert seen[:4] == [b"0", b"1", b"2", b"caught up"]
    assert set(seen[4:]) == {b"status", None}


async def test_follow_of_one_partition_and_of_topics_with_nothing_in_them(log: Log, topics: Topics) -> None:
    for n in range(8):
        await log.append(OutRecord(topics.commands, b"gw-%d" % n, b"%d" % n, []))
    everything = await read_to_end(log, [topics.commands])
    for number in range(PARTITIONS):
        mine = await read_to_end(log, [topics.commands], only=number)
        assert mine == [each for each in everything if each.partition == number]
    assert await read_to_end(log, [topics.command_status]) == []


async def test_b4_a_frame_that_the_journal_will_never_take_is_refused(log: Log) -> None:
    with pytest.raises(Refused):
        await log.append_frame("gw", bytes(5 << 20))
    await log.append_frame("gw", bytes(3 << 20))


async def test_r5_a_record_refused_for_good_leaves_nothing_of_its_step(log: Log, fleet: str) -> None:
    good = OutRecord(fleet, b"V7", b"good", [])
    large = OutRecord(fleet, b"V7", bytes(8 << 20), [])
    async with owned(log) as partitions:
        partition = partitions[0]
        await partition.load()
        with pytest.raises(RecordRefused):
            await partition.commit(Step([good, large], {b"one": b"1"}, 0, {b"gw/1": b"1"}))
        await partition.commit(Step([good], {b"two": b"2"}, 0))
        loaded = await partition.load()
        assert (dict(loaded.ledger), dict(loaded.dictionaries)) == ({b"two": b"2"}, {})
    assert [each.value for each in await read_to_end(log, [fleet])] == [b"good"]


async def test_r5_a_topic_that_is_refused_is_named_and_leaves_nothing_of_its_step(log: Log, fleet: str) -> None:
    good = OutRecord(fleet, b"V7", b"good", [])
    async with owned(log) as partitions:
        partition = partitions[0]
        await partition.load()
        with pytest.raises(TopicRefused) as refused:
            await partition.commit(Step([good, OutRecord("not a topic", b"V7", b"x", [])], {b"one": b"1"}, 0))
        assert refused.value.topic == "not a topic"
        await partition.commit(Step([good], {}, 0))
        assert dict((await partition.load()).ledger) == {}
    assert [each.value for each in await read_to_end(log, [fleet])] == [b"good"]


async def test_frames_are_records_of_their_topic_for_readers(log: Log, topics: Topics) -> None:
    await log.append_frame("gw", b"frame")
    (record,) = await read_to_end(log, [topics.frames])
    assert isinstance(record, TopicRecord)
    assert (record.key, record.value, record.partition) == (b"gw", b"frame", partition_of(b"gw", PARTITIONS))


async def test_a_log_says_how_its_topics_are(log: Log, unique: str) -> None:
    for number in range(6):
        await log.append_frame(f"gw-{number}", b"frame")
    frames_topic = f"{unique}.waybill.frames"
    found = await log.describe({frames_topic, f"{unique}.nothing"})
    assert found.topics.keys() == {frames_topic}
    seen = found.topics[frames_topic]
    assert (seen.replicas, seen.under_replicated, seen.offline, len(seen.offsets)) == (1, 0, 0, PARTITIONS)
    counts = [0] * PARTITIONS
    for number in range(6):
        counts[partition_of(f"gw-{number}".encode(), PARTITIONS)] += 1
    assert list(seen.offsets) == [(0, count) for count in counts]
    if isinstance(log, EmbeddedLog):
        assert found.brokers == ()
    else:
        assert [bool(broker.address) for broker in found.brokers] == [True]
        assert found.brokers[0].controller

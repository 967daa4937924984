"""A step as batches: the partition of each key, order, and limits."""

import time

import pytest
from aiokafka.partitioner import murmur2
from aiokafka.record.default_records import DefaultRecordBatch

from cloud_ingest.journal.kafka_batches import CODECS, SLICE, Batch, Filling, Shape
from cloud_ingest.journal.port import OutRecord
from waybill.errors import RecordRefused

PLAIN, ZSTD = 0, 4


def _record(key: bytes | None, value: bytes, topic: str = "t") -> OutRecord:
    return OutRecord(topic, key, value, [("h", b"x")])


def _fill(records: list[OutRecord], *, codec: int = PLAIN, turn: int = 0, limit: int = 100_000) -> list[Batch]:
    filling = Filling({"t": Shape(4, limit, codec), "u": Shape(3, limit, codec)}, turn=turn)
    for _ in filling.add(records):
        pass
    return filling.batches()


def test_a_key_goes_where_kafkas_own_partitioner_sends_it() -> None:
    records = [_record(b"V%d" % n, b"v") for n in range(200)]
    counts = {(batch.topic, batch.partition): batch.size for batch in _fill(records)}
    expected: dict[tuple[str, int], int] = {}
    for record in records:
        place = ("t", (murmur2(record.key) & 0x7FFFFFFF) % 4)
        expected[place] = expected.get(place, 0) + 1
    assert counts == expected


@pytest.mark.parametrize(("turn", "partition"), [(0, 0), (1, 1), (5, 1), (7, 3)])
def test_records_without_a_key_of_one_step_stay_together(turn: int, partition: int) -> None:
    [batch] = _fill([_record(None, b"v")] * 10, turn=turn)
    assert (batch.partition, batch.size) == (partition, 10)


def test_topics_that_alternate_keep_their_own_batches() -> None:
    batches = _fill([_record(None, b"v", "tu"[n % 2]) for n in range(100)])
    assert {(batch.topic, batch.size) for batch in batches} == {("t", 50), ("u", 50)}


def test_batches_stay_below_the_limit_of_their_topic() -> None:
    batches = _fill([_record(None, b"x" * 900)] * 100, limit=5_000)
    assert sum(batch.size for batch in batches) == 100
    assert all(batch.builder.size() <= 5_000 for batch in batches)
    assert len(batches) < 30


@pytest.mark.parametrize("codec", [PLAIN, ZSTD])
def test_r5_a_record_above_the_limit_is_refused_however_well_it_would_compress(codec: int) -> None:
    with pytest.raises(RecordRefused, match=r"t: a record of 6\d\d\d bytes; the topic's max.message.bytes is 5000"):
        _fill([_record(None, b"small"), _record(None, b"x" * 6_000)], codec=codec, limit=5_000)


def test_r6_no_record_is_stamped_before_the_frame_it_came_in(monkeypatch: pytest.MonkeyPatch) -> None:
    since = 1_700_000_000_000
    for clock, stamp in ((0.0, since), (since / 1000 + 1, since + 1000)):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        filling = Filling({"t": Shape(4, 1 << 20)}, since_ms=since)
        list(filling.add([_record(b"k", b"v")]))
        filling.put("t", 3, [(b"k", b"v")])
        for batch in filling.batches():
            batch.builder.close()
            assert {record.timestamp for record in DefaultRecordBatch(bytes(batch.builder._build()))} == {stamp}


def test_others_may_run_between_slices() -> None:
    filling = Filling({"t": Shape(4, 1 << 20)})
    assert len(list(filling.add([_record(b"k", b"v")] * (3 * SLICE + 1)))) == 3


def test_ledger_entries_go_to_the_partition_of_their_frames() -> None:
    filling = Filling({"t": Shape(4, 1 << 20)})
    filling.put("t", 3, [(b"a", b"1"), (b"b", None)])
    [batch] = filling.batches()
    assert (batch.partition, batch.size) == (3, 2)


@pytest.mark.parametrize(("name", "bits"), CODECS.items())
def test_each_topic_has_its_own_compression_and_size_of_batches(name: str, bits: int) -> None:
    filling = Filling({"t": Shape(1, 1 << 20, CODECS[name], 5_000), "u": Shape(1, 1 << 20, sync=True)})
    for _ in filling.add([_record(b"k", b"x" * 900, topic) for topic in "tu" * 50]):
        pass
    batches = filling.batches()
    mine = [batch for batch in batches if batch.topic == "t"]
    assert len(mine) > 8
    assert all(batch.builder.size() <= 5_000 for batch in mine)
    assert {(batch.topic, batch.sync) for batch in batches} == {("t", False), ("u", True)}
    assert len(batches) == len(mine) + 1
    codecs = {(batch.topic, batch.builder._build()[22] & 7) for batch in batches}
    assert codecs == {("t", bits), ("u", PLAIN)}

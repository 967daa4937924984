"""A key's partition is the one that Kafka's own producers choose."""

from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from cloud_ingest.journal.keys import hashes, murmur2, partition_of


@given(st.binary(max_size=50), st.integers(1, 64))
def test_it_agrees_with_the_client_library(key: bytes, partitions: int) -> None:
    numbers = list(range(partitions))
    assert partition_of(key, partitions) == DefaultPartitioner()(key, numbers, numbers)


def test_it_agrees_with_kafkas_own_test() -> None:
    """org.apache.kafka.common.utils.UtilsTest.testMurmur2, signed there."""
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    assert {key: murmur2(key) - (1 << 32) for key in known} == known


def _alike(size: int) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.binary(min_size=size, max_size=size), max_size=40)


@given(st.lists(st.integers(0, 20).flatmap(_alike)))
def test_many_at_once_agree_with_one_by_one(alike: list[list[bytes]]) -> None:
    keys = [key for some in alike for key in some]
    assert hashes(keys) == {key: murmur2(key) & 0x7FFFFFFF for key in keys}

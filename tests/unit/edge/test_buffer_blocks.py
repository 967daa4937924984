"""The bytes of a block: round trip, checksum, cutting, and what damaged ones do."""

from __future__ import annotations

import random

import pytest

from edge_agent.buffer.blocks import checksum, cut, pack, parse, unpack_head
from edge_agent.buffer.port import Chunk
from tests.support.buffer import chunk, packet
from waybill.errors import Corrupt


def test_a_block_round_trips() -> None:
    chunks = [
        (chunk(b"1", b"2", client="ä", pid=1, keep=3), 17),
        (Chunk("telemetry", "", 5, -1, 2**62, 0, 1, packet(b""), 0), 0),
    ]
    count, head, body = pack(chunks)
    assert count == 3
    heads = unpack_head(head)
    first = heads[0]
    assert (first.client, first.version, first.wall_ms, first.keep, first.count) == ("ä", 4, 1000, 3, 2)
    assert (first.start, first.remembered, first.size) == (17, 2, len(chunks[0][0].raw))
    assert (heads[1].client, heads[1].version, heads[1].wall_ms, heads[1].mono_ns) == ("", 5, -1, 2**62)
    assert body == b"".join(each.raw for each, _ in chunks)


def test_the_checksum_covers_place_head_and_body() -> None:
    good = checksum("lane", 5, 1, 2, b"head", b"body")
    assert good == checksum("lane", 5, 1, 2, b"head", b"body")
    for other in (
        checksum("line", 5, 1, 2, b"head", b"body"),
        checksum("lane", 6, 1, 2, b"head", b"body"),
        checksum("lane", 5, 2, 2, b"head", b"body"),
        checksum("lane", 5, 1, 3, b"head", b"body"),
        checksum("lane", 5, 1, 2, b"heae", b"body"),
        checksum("lane", 5, 1, 2, b"head", b"bodx"),
    ):
        assert other != good


def test_a_large_commit_is_cut_between_chunks() -> None:
    chunks = [(chunk(b"x" * 400), 0) for _ in range(10)]
    parts = list(cut(chunks, 1000))
    assert [len(part) for part in parts] == [2, 2, 2, 2, 2]
    assert [each for part in parts for each in part] == chunks
    assert [len(part) for part in cut(chunks, 10)] == [1] * 10
    assert list(cut([], 10)) == []


def test_packets_of_every_length_are_parsed() -> None:
    sizes = (0, 1, 120, 127, 128, 129, 16_380, 16_384, 2_097_152)
    payloads = [b"x" * size for size in sizes]
    one = chunk(*payloads, pid=1)
    _, head, body = pack([(one, 0)])
    assert [message.payload for message in parse(unpack_head(head)[0], body, {})] == payloads


def test_any_bytes_are_corrupt_or_messages_and_nothing_else() -> None:
    rng = random.Random(7)
    _, head, body = pack([(chunk(b"1" * 20, b"2" * 200, pid=1), 0)])
    refused = 0
    for _ in range(3000):
        damaged = bytearray(head if rng.random() < 0.5 else body)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        damaged = damaged[: rng.randint(0, len(damaged))]
        try:
            if len(damaged) <= len(head) and rng.random() < 0.5:
                unpack_head(bytes(damaged))
            else:
                parse(unpack_head(head)[0], bytes(damaged), {})
        except Corrupt:
            refused += 1
    assert refused > 100


def test_a_chunk_that_holds_other_than_its_count_is_corrupt() -> None:
    _, head, body = pack([(chunk(b"1", b"2"), 0)])
    with pytest.raises(Corrupt, match="holds 1 messages, its head says 2"):
        parse(unpack_head(head)[0], body[: len(body) // 2], {})

"""Reading the newest first, over both implementations of the buffer's port."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_agent.buffer.port import Buffer, Lease
from edge_agent.buffer.testing import MemoryBuffer
from tests.support.buffer import commit, open_sqlite, span_of
from waybill.wire import TELEMETRY_LANE

UnderWay = list[tuple[int, int, int]]


@pytest.fixture(params=["sqlite", "memory"])
async def buffer(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Buffer]:
    if request.param == "memory":
        yield MemoryBuffer("g")
        return
    older = await open_sqlite(tmp_path / "data")
    yield older
    await older.close()


async def newest(buffer: Buffer, under_way: UnderWay, count: int, size: int = 1 << 20) -> Lease | None:
    lease = await buffer.lease_newest(TELEMETRY_LANE, under_way, count, size)
    if lease is not None:
        under_way.append((lease.end.ordinal, lease.first, lease.end.seq))
    return lease


def seqs(lease: Lease | None) -> tuple[int, int]:
    assert lease is not None
    assert [message.payload for message in lease.messages] == [
        b"%05d" % n for n in range(lease.first, lease.end.seq + 1)
    ]
    return lease.first, lease.end.seq


async def test_the_newest_goes_first_what_comes_meanwhile_before_the_backlog(buffer: Buffer) -> None:
    under_way: UnderWay = []
    for at in range(0, 20, 5):
        await buffer.commit(commit(*[b"%05d" % n for n in range(at + 1, at + 6)]))
    assert seqs(await newest(buffer, under_way, 8)) == (13, 20)
    await buffer.commit(commit(b"00021", b"00022"))
    assert seqs(await newest(buffer, under_way, 8)) == (21, 22)
    assert seqs(await newest(buffer, under_way, 8)) == (5, 12)
    assert seqs(await newest(buffer, under_way, 8)) == (1, 4)
    assert await newest(buffer, under_way, 8) is None


async def test_a_lease_has_about_the_bytes_that_were_asked_for(buffer: Buffer) -> None:
    await buffer.commit(commit(*[b"%05d" % n for n in range(1, 1001)]))
    first, last = seqs(await newest(buffer, [], 1000, 500))
    assert last == 1000
    assert 10 <= last - first + 1 <= 100
    assert seqs(await newest(buffer, [], 1000, 1)) == (1000, 1000)


async def test_what_is_settled_or_under_way_is_not_read_whatever_the_holes(buffer: Buffer) -> None:
    rng, under_way, done, last = random.Random(3), UnderWay(), set[int](), 0
    for _ in range(200):
        if rng.random() < 0.5:
            count = rng.randrange(1, 20)
            await buffer.commit(commit(*[b"%05d" % n for n in range(last + 1, last + count + 1)]))
            last += count
        held = {seq for _, low, high in under_way for seq in range(low, high + 1)}
        lease = await newest(buffer, under_way, rng.randrange(1, 15))
        if lease is None:
            assert held | done >= set(range(1, last + 1))
            continue
        got = set(range(seqs(lease)[0], lease.end.seq + 1))
        assert not got & (held | done)
        assert max(got) == max(set(range(1, last + 1)) - held - done)
        if rng.random() < 0.7:
            done |= got
            under_way.pop()
            await buffer.settle([span_of(lease)])
        elif under_way and rng.random() < 0.3:
            del under_way[rng.randrange(len(under_way))]


async def test_newer_epochs_go_before_older_ones(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path / "data")
    await buffer.commit(commit(b"00001", b"00002"))
    old = buffer.epoch
    await buffer.close()
    buffer = await open_sqlite(tmp_path / "data")
    await buffer.commit(commit(b"00001"))
    under_way: UnderWay = []
    leases = [await newest(buffer, under_way, 10) for _ in range(3)]
    assert [(lease.epoch, len(lease.messages)) for lease in leases if lease] == [(buffer.epoch, 1), (old, 2)]
    await buffer.close()

"""The power goes while commits run (EXT4_IOC_SHUTDOWN on a loop device): what was acknowledged is there afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from edge_agent.buffer.engine import Engine
from edge_agent.buffer.port import Chunk, Commit
from edge_agent.buffer.sqlite import SqliteBuffer
from edge_agent.lanes import Lane, complete
from tests.support.buffer import SMALL, chunk, drain, messages, open_sqlite
from tests.support.loop_disk import LoopDisk, loop_disk
from waybill.errors import Unavailable
from waybill.mqtt.resend import entries_of
from waybill.mqtt.state import ResendEntry
from waybill.wire import TELEMETRY_LANE, Span

pytestmark = pytest.mark.system

CUTS: Final = 50 if os.environ.get("WAYBILL_LONG") else 5


class NormalEngine(Engine):
    synchronous = "NORMAL"


class NormalBuffer(SqliteBuffer):
    """The control: WAL with synchronous=NORMAL, which loses its last transactions when the power goes."""

    engine = NormalEngine


@dataclass
class Run:
    """What commits returned for, what was settled, and the chunk of each commit by its last number."""

    acked: int = 0
    settled: set[int] = field(default_factory=set)
    chunks: dict[int, Chunk] = field(default_factory=dict)


async def publish(buffer: SqliteBuffer, run: Run, rng: random.Random) -> None:
    """Commit numbered messages, settle some, until the buffer is closed."""
    while True:
        numbers = range(run.acked, run.acked + rng.randint(1, 20))
        sent = chunk(*[b"%d " % each + b"x" * rng.randint(0, 300) for each in numbers], pid=run.acked % 60_000 + 1)
        run.chunks[numbers.stop] = sent
        await buffer.commit(Commit([sent]))
        run.acked = numbers.stop
        if rng.random() < 0.1:
            first = rng.randint(1, run.acked)
            span = Span(buffer.epoch, TELEMETRY_LANE, first, min(first + 50, run.acked))
            run.settled.update(range(span.first - 1, span.last))
            await buffer.settle([span])


async def run_until_the_cut(disk: LoopDisk, kind: type[SqliteBuffer], rng: random.Random) -> Run:
    buffer = await open_sqlite(disk.path / "data", SMALL, kind)
    run = Run()
    publisher = asyncio.ensure_future(publish(buffer, run, rng))
    enough = rng.randint(300, 6000)
    while run.acked < enough:  # noqa: ASYNC110 - the cut comes at any moment of a commit, so nothing may tell of it
        await asyncio.sleep(0)
    disk.cut_power()
    await asyncio.sleep(0.3)  # what is acknowledged now, wrongly or not, counts as well
    await buffer.close()
    with contextlib.suppress(Unavailable):
        await publisher
    return run


async def found_after(data: Path) -> tuple[set[int], list[ResendEntry], str]:
    """Return the numbers that are there, what is remembered against copies, and the alarm."""
    buffer = await open_sqlite(data)
    alarm = buffer.alarm
    numbers = [int(message.payload.split(b" ")[0]) for message in messages(await drain(buffer))]
    state = await buffer.restore()
    await buffer.close()
    assert numbers == sorted(set(numbers))
    return set(numbers), list(state.memories.get("c", ())), alarm


async def lost_in_a_cut(where: Path, kind: type[SqliteBuffer], seed: int) -> set[int]:
    """Cut the power once; return the numbers that were acknowledged and are gone."""
    with loop_disk(where, 64) as disk:
        run = await run_until_the_cut(disk, kind, random.Random(seed))
        disk.replug()
        found, memory, alarm = await found_after(disk.path / "data")
    lost = set(range(run.acked)) - run.settled - found
    if not lost:
        assert alarm == ""  # the mark beside the file is a lower bound, whatever of it the cut has left
        # O3: the unproven entries of the last commit, be it acknowledged or just on the disk
        last = max(found | {run.acked - 1}) + 1
        assert memory == entries_of(run.chunks[last].raw)
    return lost


@pytest.mark.parametrize("seed", range(CUTS))
async def test_b1_what_was_acknowledged_outlives_a_power_cut(tmp_path: Path, seed: int) -> None:
    assert await lost_in_a_cut(tmp_path, SqliteBuffer, seed) == set()


async def test_a_relaxed_lane_may_lose_its_end_and_takes_nothing_of_others_along(tmp_path: Path) -> None:
    """What it loses are its last seconds; a commit of another lane makes all before it durable."""
    lanes = complete([Lane("relaxed", 20, ("r",), durability="relaxed")])

    async def opened() -> SqliteBuffer:
        return await SqliteBuffer.open(disk.path / "data", SMALL, gateway="g", boot="b", lanes=lanes)

    with loop_disk(tmp_path, 64) as disk:
        buffer = await opened()
        acked: dict[str, list[bytes]] = {"relaxed": [], TELEMETRY_LANE: []}
        for number in range(2000):
            lane = TELEMETRY_LANE if number in {100, 500, 1000} else "relaxed"
            await buffer.commit(Commit([chunk(b"%d" % number, lane=lane)]))
            acked[lane].append(b"%d" % number)
        disk.cut_power()
        await buffer.close()
        disk.replug()
        buffer = await opened()
        found = {lane: [message.payload for message in messages(await drain(buffer, lane))] for lane in acked}
        await buffer.close()
    assert found[TELEMETRY_LANE] == acked[TELEMETRY_LANE]
    assert found["relaxed"] == acked["relaxed"][: len(found["relaxed"])]
    assert 998 <= len(found["relaxed"]) < 1997


async def test_the_control_with_synchronous_normal_loses(tmp_path: Path) -> None:
    """The same check turns red where the log is not synced at each commit."""
    assert len(await lost_in_a_cut(tmp_path, NormalBuffer, 1)) > 100


BULK: Final = "bulk"
LANES: Final = complete([Lane(BULK, filters=("bulk/#",), durability="relaxed")])


async def acknowledged_and_found(where: Path, lanes: tuple[str, ...], seed: int) -> dict[str, tuple[int, set[int]]]:
    """Commit to ``lanes`` in turn until the power is cut; return how many were acknowledged and which are there."""
    rng, acked = random.Random(seed), dict.fromkeys(lanes, 0)

    async def keep_on(buffer: SqliteBuffer) -> None:
        while True:
            lane = rng.choice(lanes)
            numbers = range(acked[lane], acked[lane] + rng.randint(1, 20))
            await buffer.commit(Commit([chunk(*[b"%d" % each for each in numbers], lane=lane)]))
            acked[lane] = numbers.stop

    found: dict[str, tuple[int, set[int]]] = {}
    with loop_disk(where, 64) as disk:
        buffer = await SqliteBuffer.open(disk.path / "data", SMALL, gateway="g", boot="b", lanes=LANES)
        publisher = asyncio.ensure_future(keep_on(buffer))
        enough = rng.randint(2000, 6000)
        while sum(acked.values()) < enough:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        disk.cut_power()
        await asyncio.sleep(0.3)
        await buffer.close()
        with contextlib.suppress(Unavailable):
            await publisher
        disk.replug()
        buffer = await SqliteBuffer.open(disk.path / "data", SMALL, gateway="g", boot="b", lanes=LANES)
        for lane in lanes:
            numbers = [int(message.payload) for message in messages(await drain(buffer, lane))]
            assert numbers == list(range(len(numbers)))
            found[lane] = acked[lane], set(numbers)
        await buffer.close()
    return found


@pytest.mark.parametrize("seed", range(CUTS))
async def test_b1_a_relaxed_lane_takes_nothing_from_the_others_in_a_power_cut(tmp_path: Path, seed: int) -> None:
    acked, found = (await acknowledged_and_found(tmp_path, (TELEMETRY_LANE, BULK), seed))[TELEMETRY_LANE]
    assert set(range(acked)) <= found


async def test_a_relaxed_lane_alone_loses_what_a_power_cut_takes(tmp_path: Path) -> None:
    """What it is called is what it is."""
    acked, found = (await acknowledged_and_found(tmp_path, (BULK,), 1))[BULK]
    assert acked - len(found) > 100

"""Any order of commits, leases, settles, full lanes, expiry, restarts and kills: the books of every lane add up.

What is stored, what was settled and what is declared are together every number that was given; nothing is declared that
is stored, or twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import hypothesis.strategies as st
import msgspec
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.buffer import keeper as keeping
from edge_agent.buffer.keeper import Keeper
from edge_agent.buffer.port import Chunk, Commit, Position
from edge_agent.buffer.settings import MIB, BufferSettings
from edge_agent.buffer.sql import SQL
from edge_agent.buffer.sqlite import SqliteBuffer
from edge_agent.lanes import Lane, complete
from tests.support.buffer import drain, packet
from waybill.wire import CONTROL_LANE, RECEIPT_TOPIC, Receipt, Span

T = TypeVar("T")

KIB = 1024
LANES = complete(
    [
        Lane("oldest", 20, ("o",), max_bytes=64 * KIB, when_full="drop-oldest"),
        Lane("newest", 30, ("n",), max_bytes=64 * KIB, when_full="drop-newest"),
        Lane("refuses", 5, ("r",), max_bytes=96 * KIB),
        Lane("mortal", 200, ("m",), ttl_s=100, when_full="drop-oldest", durability="relaxed"),
        Lane("telemetry", 10),
    ]
)
NAMES = [lane.name for lane in LANES if lane.name != CONTROL_LANE]
FIRM = {lane.name for lane in LANES if lane.when_full == "reject"}
RESERVE = 100_000
"""Bytes that firm lanes are sent at once: there is room for so much when they begin to refuse."""

LIMITS = BufferSettings(max_bytes=MIB, ballast_bytes=0, min_free_bytes=0)

Number = tuple[str, int, int]
"""Lane, epoch, seq."""

sent = st.lists(
    st.tuples(
        st.sampled_from(NAMES), st.integers(1, 4), st.sampled_from([10, 1000, 12_000, 20_000, 30_000]), st.booleans()
    ),
    min_size=1,
    max_size=6,
)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.loop = asyncio.new_event_loop()
        self.stack.callback(self.loop.close)
        self.root = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.stack.enter_context(patch.object(keeping, "EVERY", 3600.0))  # the rules do it, at their own time
        self.place = 0
        self.now_ns = 0
        self.pid = 0
        self.lasts: dict[tuple[str, int], int] = {}
        self.delivered: set[Number] = set()
        self.twice: set[Number] = set()  # what may be delivered and declared: the ledger's first entry wins (B5)
        self.open(LIMITS)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def age(self, _wall_ms: int, mono_ns: int, boot: str) -> int | None:
        return (self.now_ns - mono_ns) // 1_000_000 if boot == "b" else None

    def open(self, limits: BufferSettings) -> None:
        path = self.root / str(self.place)
        self.buffer: SqliteBuffer = self.run(
            SqliteBuffer.open(path, limits, gateway="g", boot="b", lanes=LANES, age=self.age)
        )
        self.keeper = Keeper(self.buffer._engine, self.age)
        self.at: dict[str, Position] = {}
        self.flying: dict[str, set[Number]] = {name: set() for name in NAMES}

    # --- what is there ---

    def blocks(self) -> list[set[Number]]:
        """Return what is stored and not settled, block by block."""
        rows = self.run(self.buffer._engine.read(lambda db: db.execute(SQL["block_places"]).fetchall()))
        tracks = {(name, t.ordinal): t for name, lane in self.buffer._index.lanes.items() for t in lane.tracks}
        return [
            {(lane, track.epoch, seq) for seq in range(first, first + count) if not track.settled.overlapping(seq, seq)}
            for lane, ordinal, first, count, _, _ in rows
            if (track := tracks.get((lane, ordinal))) is not None and lane != CONTROL_LANE
        ]

    def stored(self) -> set[Number]:
        return {number for block in self.blocks() for number in block}

    def receipts(self) -> list[Receipt]:
        said = [
            msgspec.json.decode(message.payload, type=Receipt)
            for lease in self.run(drain(self.buffer, CONTROL_LANE))
            for message in lease.messages
            if message.topic == RECEIPT_TOPIC
        ]
        rows = self.run(self.buffer._engine.read(lambda db: db.execute(SQL["losses"]).fetchall()))
        owed = [Receipt(*row) for row in rows]
        assert owed == sorted(self.buffer._index.losses.values(), key=lambda r: (r.epoch, r.lane, r.first))
        return said + owed

    def declared(self) -> Counter[Number]:
        found: Counter[Number] = Counter()
        for receipt in self.receipts():
            assert receipt.count == receipt.last - receipt.first + 1
            assert receipt.bytes > 0
            found.update((receipt.lane, receipt.epoch, seq) for seq in range(receipt.first, receipt.last + 1))
        return found

    # --- what happens ---

    @rule(chunks=sent)
    def commit(self, chunks: list[tuple[str, int, int, bool]]) -> None:
        before, known = self.stored(), set(self.declared())
        made: list[Chunk] = []
        firm = 0
        for lane, count, size, qos in chunks:
            if lane in FIRM:
                firm += count * size
                if lane in self.buffer.refusing or firm > RESERVE:
                    continue
            packets = []
            for _ in range(count):
                self.pid = self.pid % 60_000 + 1
                packets.append(packet(b"%06d" % self.pid + b"x" * size, self.pid if qos else 0))
            made.append(Chunk(lane, "c", 4, 0, self.now_ns, 0, count, b"".join(packets), count if qos else 0))
        self.run(self.buffer.commit(Commit(made)))
        evicted = (set(self.declared()) - known) & before
        flying = {number for numbers in self.flying.values() for number in numbers}
        self.twice |= evicted & flying
        for lane in {number[0] for number in evicted & flying}:  # B5: what was sent goes last of all
            for block in self.blocks():
                assert not block & before or lane not in {number[0] for number in block} or block & flying

    @rule(lane=st.sampled_from(NAMES), times=st.integers(1, 4))
    def flood(self, lane: str, times: int) -> None:
        for _ in range(times):
            self.commit([(lane, 4, 25_000, True)])

    @rule(lanes=st.sets(st.sampled_from(NAMES), min_size=2), count=st.integers(1, 6))
    def lease(self, lanes: set[str], count: int) -> None:
        for lane in sorted(lanes):
            lease = self.run(self.buffer.lease(lane, self.at.get(lane), count, MIB))
            if lease is not None:
                self.at[lane] = lease.end
                self.flying[lane] |= {(lane, lease.epoch, lease.first + at) for at in range(len(lease.messages))}

    @rule(lanes=st.sets(st.sampled_from(NAMES), min_size=2), part=st.integers(0, 3))
    def settle(self, lanes: set[str], part: int) -> None:
        for lane in sorted(lanes):
            chosen = sorted(self.flying[lane])[part:]
            self.run(self.buffer.settle([Span(number[1], lane, number[2], number[2]) for number in chosen]))
            self.delivered |= set(chosen)
            self.flying[lane] -= set(chosen)

    @rule(seconds=st.integers(1, 80))
    def wait(self, seconds: int) -> None:
        self.now_ns += seconds * 10**9
        self.run(self.keeper._look(expire=True))

    @rule()
    def say(self) -> None:
        self.run(self.keeper._look(expire=False))

    @rule(smaller=st.booleans())
    def restart(self, *, smaller: bool) -> None:
        """End and start again, sometimes with the cap at less than what is stored.

        What is settled of a block that is not settled whole is there again, and sent again.
        """
        self.run(self.buffer.close())
        self.twice |= self.delivered
        limits = msgspec.structs.replace(LIMITS, max_bytes=MIB if smaller else MIB + 256 * KIB)
        self.open(limits)

    @precondition(lambda self: self.place < 3)
    @rule()
    def kill(self) -> None:
        """Go on with a copy of the files as they are: what was settled and not deleted yet is there again."""
        before = self.root / str(self.place)
        self.place += 1
        self.run(self.copy(before, self.root / str(self.place)))
        self.run(self.buffer.close())
        self.open(LIMITS)
        self.twice |= self.delivered

    async def copy(self, before: Path, to: Path) -> None:
        async with self.buffer._engine._lock:  # no checkpoint meanwhile: a kill stops all of it at once
            shutil.copytree(before, to)

    # --- what always holds ---

    @invariant()
    def everything_is_accounted_for_once(self) -> None:
        for name, lane in self.buffer._index.lanes.items():
            for track in lane.tracks:
                if name != CONTROL_LANE:
                    self.lasts[name, track.epoch] = max(track.last, self.lasts.get((name, track.epoch), 0))
        stored, declared = self.stored(), self.declared()
        given = {(lane, epoch, seq) for (lane, epoch), last in self.lasts.items() for seq in range(1, last + 1)}
        assert stored | set(declared) | self.delivered == given
        assert all(times == 1 for times in declared.values())
        assert not set(declared) & stored
        assert set(declared) & self.delivered <= self.twice

    @invariant()
    def caps_hold(self) -> None:
        for lane in LANES:
            if lane.max_bytes and lane.when_full != "reject":
                assert self.buffer._index.lanes[lane.name].bytes <= lane.max_bytes

    def teardown(self) -> None:
        self.run(self.buffer.close())
        self.stack.close()


TestLanes = Machine.TestCase
TestLanes.settings = settings(
    max_examples=1000 if os.environ.get("WAYBILL_LONG") else 40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

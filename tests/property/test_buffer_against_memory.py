"""Any order of calls, restarts and failed commits: the buffer on SQLite does what the one in memory does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.buffer import sqlite
from edge_agent.buffer.port import LOCAL, Buffer, Chunk, CommandResult, Commit, Lease
from edge_agent.buffer.settings import BufferSettings
from edge_agent.buffer.sqlite import SqliteBuffer
from edge_agent.buffer.testing import MemoryBuffer
from tests.support.buffer import drain, open_sqlite, packet
from tests.support.faulty_disk import Disk, Fault, faulty
from waybill.mqtt.resend import entries_of
from waybill.mqtt.state import (
    Change,
    Dequeued,
    Queued,
    Received,
    ResendFrozen,
    SavedState,
    SessionDeleted,
    SessionOpened,
)
from waybill.wire import CONTROL_LANE, TELEMETRY_LANE, Envelope, Receipt, Span

T = TypeVar("T")

MAX_STARTS = 5
WINDOW = 12
CLIENTS = ("a", "b")
LANES = (TELEMETRY_LANE, CONTROL_LANE, LOCAL)
LIMITS = BufferSettings(ballast_bytes=0, min_free_bytes=0, dup_window=WINDOW)

chunks = st.lists(
    st.tuples(st.sampled_from(CLIENTS), st.sampled_from(LANES), st.integers(1, 5), st.integers(0, 8), st.booleans()),
    max_size=4,
)


def seen(state: SavedState) -> object:
    return (
        {
            client: (session.version, sorted(session.queue, key=lambda each: each.n))
            for client, session in state.sessions.items()
        },
        {client: list(entries) for client, entries in state.memories.items()},
    )


def flat(leases: list[Lease], epochs: Sequence[int]) -> object:
    """Return what leases say, with epochs as their place in ``epochs``; 0 is none."""
    place = {0: 0} | {epoch: at for at, epoch in enumerate(epochs, 1)}
    return [
        (
            place[lease.epoch],
            place[lease.prev_epoch],
            lease.prev_last,
            place[lease.oldest_epoch],
            lease.first,
            [(each.client, each.topic, each.payload if each.client else b"") for each in lease.messages],
        )
        for lease in leases
    ]


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.loop = asyncio.new_event_loop()
        self.stack.callback(self.loop.close)
        self.path = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.disk = Disk()
        self.stack.enter_context(faulty(self.disk))
        self.stack.enter_context(patch.object(sqlite, "PAUSES", (0.0, 0.0)))
        self.model = MemoryBuffer("g", window=WINDOW)
        self.buffer: SqliteBuffer = self.run(open_sqlite(self.path, LIMITS))
        self.epochs = [(self.buffer.epoch, self.model.epoch)]
        self.count = 0
        self.starts = 1

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def both(self) -> tuple[Buffer, Buffer]:
        return self.buffer, self.model

    @rule(sent=chunks, freeze=st.booleans(), at=st.integers(0, 4), queue=st.integers(0, 3))
    def commit(self, sent: list[tuple[str, str, int, int, bool]], at: int, queue: int, *, freeze: bool) -> None:
        made: list[Chunk] = []
        for client, lane, count, keep, qos in sent:
            packets = []
            for _ in range(count):
                self.count += 1
                packets.append(packet(b"%d" % self.count, self.count if qos or lane == LOCAL else 0))
            raw = b"".join(packets)
            made.append(Chunk(lane, client, 4, self.count, 0, keep, count, raw, len(entries_of(raw))))
        opened, n = SessionOpened("a", 4), self.count + 1
        queued = Queued("a", n, 2, retain=False, topic=b"t", payload=b"p")
        choices: list[list[Change]] = [
            [],
            [opened],
            [opened, queued],
            [opened, Received("a", n - 1), Dequeued("a", n - 3)],
        ]
        changes = choices[queue]
        if freeze:
            entries = [(each, b"%16d" % each) for each in range(at)]
            changes.append(ResendFrozen("a", entries, min(at, len(made))))
        for each in self.both():
            self.run(each.commit(Commit(made, list(changes))))

    @rule()
    def delete_session(self) -> None:
        for each in self.both():
            self.run(each.commit(Commit(changes=[SessionDeleted("a")])))

    @rule(epoch=st.integers(0, 3), lane=st.sampled_from(LANES[:2]), first=st.integers(1, 30), size=st.integers(0, 9))
    def settle(self, epoch: int, lane: str, first: int, size: int) -> None:
        ours, theirs = self.epochs[-1 - epoch % len(self.epochs)]
        self.run(self.buffer.settle([Span(ours, lane, first, first + size)]))
        self.run(self.model.settle([Span(theirs, lane, first, first + size)]))

    @rule(first=st.integers(1, 30))
    def give_up(self, first: int) -> None:
        ours, theirs = self.epochs[-1]
        for each, epoch in ((self.buffer, ours), (self.model, theirs)):
            self.run(each.give_up(Receipt(epoch, TELEMETRY_LANE, 0, 0, first, first, 1, 1, "no")))

    @rule(name=st.integers(0, 4), now=st.integers(0, 20))
    def receive(self, name: int, now: int) -> None:
        envelope = Envelope(f"id-{name}", "command", "V", "x", b"", 10)
        first, second = [self.run(each.receive(envelope, now)) for each in self.both()]
        assert first == second

    @rule(name=st.integers(0, 4))
    def answer(self, name: int) -> None:
        for each in self.both():
            self.run(each.commit(Commit(results=[CommandResult(f"id-{name}", "V", b"", 5)])))

    @rule(after=st.booleans(), skip=st.integers(0, 1))
    def fail(self, skip: int, *, after: bool) -> None:
        self.disk.faults[:] = [Fault("COMMIT", after=after, skip=skip)]

    @rule()
    def move(self) -> None:
        """The next commit fails, and so does the file's repair: a new file."""
        self.disk.faults[:] = [Fault("COMMIT"), Fault("PRAGMA wal_checkpoint(TRUNCATE)")]

    @precondition(lambda self: self.starts < MAX_STARTS)
    @rule()
    def restart(self) -> None:
        self.starts += 1
        self.disk.faults.clear()
        self.run(self.buffer.close())
        self.buffer = self.run(open_sqlite(self.path, LIMITS))
        self.model.restart()
        self.epochs.append((self.buffer.epoch, self.model.epoch))
        # On disk a block that is settled in part is there again whole.
        for lane in LANES[:2]:
            for track in self.model._index.lanes[lane].tracks:
                ours = next(mine for mine, theirs in self.epochs if theirs == track.epoch)
                self.run(self.buffer.settle([Span(ours, lane, *run) for run in track.settled]))
        assert seen(self.run(self.buffer.restore())) == seen(self.run(self.model.restore()))

    @invariant()
    def agree(self) -> None:
        ours, theirs = zip(*self.epochs, strict=True)
        for lane in LANES[:2]:
            assert flat(self.run(drain(self.buffer, lane, 7)), ours) == flat(
                self.run(drain(self.model, lane, 7)), theirs
            )
        assert [(b.lane, b.count) for b in self.buffer.backlog()] == [(b.lane, b.count) for b in self.model.backlog()]

    def teardown(self) -> None:
        self.disk.faults.clear()
        self.run(self.buffer.close())
        self.stack.close()


TestBuffer = Machine.TestCase
TestBuffer.settings = settings(
    max_examples=1000 if os.environ.get("WAYBILL_LONG") else 60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

"""A backlog of millions: a commit and a lease do the same work as with an empty buffer, and memory stays as it was.

Work is counted in instructions of SQLite's virtual machine, so that a busy machine changes nothing; `make bench` has
the rates.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from edge_agent.buffer.port import Commit, Position
from edge_agent.buffer.sqlite import SqliteBuffer
from tests.support.buffer import chunk, open_sqlite, span_of, until
from waybill.wire import TELEMETRY_LANE

TOTAL: Final = 10_000_000 if os.environ.get("WAYBILL_LONG") else 300_000
FEW: Final = 10_000
TOGETHER: Final = 1000
ROUNDS: Final = 5
MEMORY: Final = 32 << 20
STEP: Final = 10
"""Instructions between two calls of the counter."""


class Work:
    """Counts what the buffer's connection does."""

    def __init__(self) -> None:
        self.steps = 0

    async def watch(self, buffer: SqliteBuffer) -> None:
        def count() -> int:
            self.steps += 1
            return 0

        def ask(db: sqlite3.Connection) -> None:
            db.set_progress_handler(count, STEP)

        await buffer._engine.read(ask)

    async def of_round(self, buffer: SqliteBuffer) -> tuple[int, int]:
        """Return the least work of appending and of taking in a few rounds: housekeeping may come between."""
        rounds = []
        for _ in range(ROUNDS):
            before = self.steps
            await append(buffer, FEW)
            between = self.steps
            await take(buffer, FEW)
            rounds.append((between - before, self.steps - between))
        return min(one for one, _ in rounds), min(other for _, other in rounds)


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def append(buffer: SqliteBuffer, count: int) -> None:
    one = chunk(*[b"%04d" % number + b"x" * 60 for number in range(TOGETHER)])
    for _ in range(count // TOGETHER):
        await buffer.commit(Commit([one]))


async def take(buffer: SqliteBuffer, count: int) -> None:
    """Lease and settle ``count`` messages, and wait until they are deleted."""
    after: Position | None = None
    while count > 0:
        lease = await buffer.lease(TELEMETRY_LANE, after, TOGETHER, 1 << 20)
        assert lease is not None
        count -= len(lease.messages)
        after = lease.end
        await buffer.settle([span_of(lease)])
    await buffer.commit(Commit())
    await until(lambda: not buffer._engine.leaving)


async def test_work_and_memory_are_the_same_however_much_waits(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path)
    work = Work()
    await work.watch(buffer)
    appended, taken = await work.of_round(buffer)
    await append(buffer, FEW)
    before = resident()
    await append(buffer, TOTAL)
    assert resident() - before < MEMORY
    more = await work.of_round(buffer)
    assert more[0] < 1.1 * appended
    assert more[1] < 1.1 * taken
    await buffer.close()
    buffer = await open_sqlite(tmp_path)
    await work.watch(buffer)
    assert sum(each.count for each in buffer.backlog()) == TOTAL + FEW
    more = await work.of_round(buffer)
    assert more[0] < 1.1 * appended
    assert more[1] < 1.1 * taken
    assert resident() - before < MEMORY
    await buffer.close()

"""The edge buffer alone, with little and with much that waits: rates, CPU and memory side by side in one run."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.faults.test_backlog import FEW, append, resident, take
from tests.support.buffer import SMALL, open_sqlite

pytestmark = pytest.mark.bench

TOTAL = int(os.environ.get("WAYBILL_BACKLOG", "10000000"))
ROUNDS = 20


async def measured(work: Callable[[], Awaitable[None]], count: int) -> tuple[float, float]:
    """Return messages a second and CPU-µs a message."""
    began, spent = time.perf_counter(), time.process_time()
    await work()
    return count / (time.perf_counter() - began), 1e6 * (time.process_time() - spent) / count


async def test_backlog(tmp_path: Path) -> None:
    buffer = await open_sqlite(tmp_path, SMALL)

    async def show(title: str) -> None:
        rounds = [
            (*await measured(lambda: append(buffer, FEW), FEW), *await measured(lambda: take(buffer, FEW), FEW))
            for _ in range(ROUNDS)
        ]
        in_rate, in_cpu, out_rate, out_cpu = (sorted(column)[ROUNDS // 2] for column in zip(*rounds, strict=True))
        print(f"  {title}:\n    append {in_rate:,.0f}/s, {in_cpu:.2f} CPU-µs a message", end="")
        print(f"   drain {out_rate:,.0f}/s, {out_cpu:.2f} CPU-µs   memory {resident() >> 20} MiB")

    print(f"\n\nthe edge buffer, messages of 64 bytes, {FEW:,} at a time, medians of {ROUNDS} rounds:")
    await append(buffer, FEW)
    await show(f"{FEW:,} waiting")
    rate, _ = await measured(lambda: append(buffer, TOTAL), TOTAL)
    await show(f"{TOTAL:,} waiting ({rate:,.0f}/s on the way)")
    await buffer.close()
    began = time.perf_counter()
    buffer = await open_sqlite(tmp_path, SMALL)
    await show(f"the same after a start of {time.perf_counter() - began:.1f} s")
    rate, cpu = await measured(lambda: take(buffer, TOTAL), TOTAL)
    print(f"  all of it drained: {rate:,.0f}/s, {cpu:.2f} CPU-µs; {resident() >> 20} MiB")
    await buffer.close()

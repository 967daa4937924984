"""Long-lived tasks are guarded."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import pytest

from waybill.lifecycle import Tasks


async def test_a_task_that_dies_stops_the_process_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()

    async def dies() -> None:
        raise ValueError("broken")

    tasks.start("writer", dies())
    with caplog.at_level(logging.ERROR):
        await asyncio.wait_for(tasks.until_stopped(), 60)
    assert isinstance(tasks.failure, ValueError)
    assert "task writer failed: broken" in caplog.text


async def test_a_signal_stops_and_a_cancelled_task_is_no_failure() -> None:
    tasks = Tasks()
    tasks.start("idle", asyncio.sleep(60))
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(tasks.until_stopped(), 60)
    await tasks.cancel("idle")
    await tasks.cancel("unknown")
    assert tasks.failure is None


async def test_a_task_that_will_not_end_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    release = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await release.wait()

    tasks.start("stubborn", stubborn())
    await asyncio.sleep(0)
    await tasks.cancel("stubborn", patience=0.05)
    assert "task stubborn did not end" in caplog.text
    release.set()
    await asyncio.sleep(0.01)


async def test_a_signal_that_comes_before_anybody_waits_is_heeded() -> None:
    tasks = Tasks()
    tasks.heed_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0)
    await asyncio.wait_for(tasks.until_stopped(), 60)

"""A disk that answers nothing: the service manager's watchdog is fed while the writer makes progress, and not else."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from pathlib import Path

import pytest

from cloud_ingest.app import Ingest
from cloud_ingest.config import first_look
from cloud_ingest.journal.port import OutRecord
from tests.integration.edge.agents import process, publish, running
from tests.support.faulty_disk import Disk, Fault, disk
from tests.support.notified import Notified, notified
from waybill import systemd

__all__ = ["disk"]

STUCK = "STATUS=the disk has not answered"


async def bites(heard: Notified) -> None:
    """See the watchdog left alone: three times in a row it was due and was not fed."""
    await heard.until(STUCK)
    for _ in range(2):
        (line,) = await heard.next()
        assert line.startswith(STUCK)


async def test_a_disk_that_hangs_ends_the_feeding_of_an_agent_and_one_that_answers_begins_it_again(
    tmp_path: Path, disk: Disk
) -> None:
    answers = threading.Event()
    with notified(tmp_path) as heard:
        async with running(tmp_path / "data", None) as agent:
            try:
                await heard.until("WATCHDOG=1")
                await publish(agent.port, [b"before"])
                disk.faults.append(Fault("COMMIT", hangs=answers))
                sending = asyncio.create_task(publish(agent.port, [b"stuck"]))
                await bites(heard)
                assert not sending.done()
            finally:
                answers.set()
            await heard.until("WATCHDOG=1")
            await sending
        await heard.until("STOPPING=1")


async def test_a_disk_that_refuses_ends_no_feeding(tmp_path: Path, disk: Disk) -> None:
    """Starting anew would not give it room."""
    with notified(tmp_path) as heard:
        async with running(tmp_path / "data", None) as agent:
            await heard.until("WATCHDOG=1")
            disk.faults.append(refuses := Fault("COMMIT", times=1 << 30))
            sending = asyncio.create_task(publish(agent.port, [b"waits"]))
            while not agent.agent.status().fault:
                await heard.next()
            for _ in range(2 * systemd.FEEDS):
                await heard.until("WATCHDOG=1")  # now and then after a disk that was slow, as another's work makes it
            refuses.times = 0
            await sending


async def test_a_disk_that_hangs_ends_the_feeding_of_an_ingest(tmp_path: Path, disk: Disk) -> None:
    answers = threading.Event()
    with notified(tmp_path) as heard:
        ingest = Ingest(first_look("127.0.0.1:0", tmp_path / "data"))
        await ingest.start()
        try:
            await heard.until("WATCHDOG=1")
            disk.faults.append(Fault("COMMIT", hangs=answers))
            writing = asyncio.create_task(ingest.log.append(OutRecord("t", b"k", b"v", [])))
            await bites(heard)
            answers.set()
            await heard.until("WATCHDOG=1")
            await writing
        finally:
            answers.set()
            await ingest.stop()


@pytest.mark.parametrize("part", ["edge", "cloud"])
async def test_a_service_manager_hears_when_it_serves_and_when_it_ends(tmp_path: Path, part: str) -> None:
    arguments = ["run", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "data")]
    with notified(tmp_path) as heard:
        if part == "edge":
            async with process(*arguments) as agent:
                await heard.until("READY=1")
                await agent.ready()
                assert await agent.end(signal.SIGTERM) == 0
        else:
            command = [sys.executable, "-m", "waybill", "cloud", *arguments]
            pipe = asyncio.subprocess.PIPE
            ingest = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
            await heard.until("READY=1")
            ingest.terminate()
            await ingest.communicate()
            assert ingest.returncode == 0
        await heard.until("STOPPING=1")


def test_nobody_listens_or_somebody_elses_watchdog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    assert systemd.watchdog_s() == 1.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_s() is None
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    systemd.notify("READY=1")

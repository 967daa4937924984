"""The embedded log on a disk that is really full: by its own doing, and filled to the last block by somebody else."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from cloud_ingest.config import Topics
from cloud_ingest.journal import embedded
from cloud_ingest.journal.embedded import EmbeddedLog
from cloud_ingest.journal.embedded_partition import EmbeddedPartition
from cloud_ingest.journal.embedded_retention import Retention
from cloud_ingest.journal.port import OutRecord, Step
from tests.support.logs import read_to_end
from tests.support.loop_disk import fill, loop_disk
from waybill.errors import Unavailable

pytestmark = pytest.mark.system

MIB = 1 << 20
TOPICS = Topics(partitions=1)
SIZE = 100_000


async def patient(what: Callable[[], Awaitable[None]]) -> int:
    """Do ``what`` as gateways and routers do, again while it is Unavailable; return how often it was."""
    until = time.monotonic() + 60
    refused = 0
    while True:
        try:
            await what()
        except Unavailable:
            refused += 1
            assert time.monotonic() < until, "the log does not recover"
            await asyncio.sleep(0.01)
        else:
            return refused


async def route(log: EmbeddedLog, first: int, last: int) -> tuple[int, int]:
    """Journal and route messages; return how often frames and steps were refused."""
    partition = EmbeddedPartition(log, 0)
    await patient(lambda: _load(partition))
    frames = steps = 0
    for number in range(first, last):
        frames += await patient(lambda: log.append_frame("gw", os.urandom(SIZE)))
        step = Step([OutRecord("fleet", b"V1", b"%06d" % number + os.urandom(SIZE), [])], {}, number + 1)
        steps += await patient(partial(partition.commit, step))
    return frames, steps


async def _load(partition: EmbeddedPartition) -> None:
    await partition.load()


async def test_r8_a_log_that_fills_its_disk_deletes_what_it_may_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with loop_disk(tmp_path, 32) as disk, caplog.at_level(logging.WARNING):
        log = EmbeddedLog(disk.path / "log.db", TOPICS, retention=Retention(size=6 * MIB))
        await log.start()
        assert (disk.path / "log.db.ballast").exists()
        refused, _ = await route(log, 0, 400)  # 80 MB
        assert refused
        assert log.fault == ""
        [*_, newest] = await read_to_end(log, ["fleet"])
        assert newest.offset == 399
        assert "cannot be pruned" not in caplog.text
        await log.close()


async def test_r8_on_a_disk_that_others_filled_the_ballast_is_for_pruning_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with loop_disk(tmp_path, 64) as disk, caplog.at_level(logging.WARNING):
        ballast = disk.path / "log.db.ballast"
        log = EmbeddedLog(disk.path / "log.db", TOPICS, retention=Retention(size=6 * MIB))
        await log.start()
        await route(log, 0, 60)
        fill(disk.path / "theirs")
        await route(log, 60, 200)
        assert log.fault == ""
        assert not ballast.exists()
        assert caplog.text.count("cannot be pruned") <= 1
        (disk.path / "theirs").unlink()
        monkeypatch.setattr(embedded, "PRUNE_EVERY", 0.0)
        log._prune_at = 0.0
        await route(log, 200, 203)
        assert ballast.exists()
        await log.close()


async def test_r8_where_nothing_may_be_deleted_a_full_disk_says_so_once_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with loop_disk(tmp_path, 32) as disk, caplog.at_level(logging.WARNING):
        log = EmbeddedLog(disk.path / "log.db", TOPICS)
        await log.start()
        kept = refused = 0
        while refused < 5:  # in a row: at first the write-ahead log becomes shorter
            try:
                await log.append_frame("gw", os.urandom(SIZE))
            except Unavailable:
                refused += 1
            else:
                kept, refused = kept + 1, 0
        assert "disk is full" in caplog.text
        caplog.clear()
        for _ in range(5):
            with pytest.raises(Unavailable):
                await log.append_frame("gw", os.urandom(SIZE))
        assert caplog.text == ""
        partition = EmbeddedPartition(log, 0)
        await partition.load()  # a router finds its room
        await partition.commit(Step([OutRecord("fleet", b"V1", os.urandom(SIZE), [])], {}, kept))
        await patient(lambda: log.append_frame("gw", os.urandom(SIZE)))  # what was routed may go
        assert log.fault == ""
        await log.close()

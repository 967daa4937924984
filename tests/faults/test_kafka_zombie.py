"""A router worker that is paused past its session time-out and continued: each record once (R1, R3).

Real processes: the worker is stopped by SIGSTOP inside its transaction, after its records and before its offset;
another one takes the partition over and routes the same frames; then the first goes on where it stood. The control
fences by worker instead of by partition, as one would who makes one producer a process, and must show the copies.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from cloud_ingest.journal.kafka import KafkaLog
from cloud_ingest.journal.keys import partition_of
from tests.support.kafka_log import make_log, values

FRAMES = 10


def _worker(stack: ExitStack, name: str, bootstrap: str, deployment: str, *options: str) -> "subprocess.Popen[str]":
    """Start ``zombie_worker.py``; it says on standard output what it does, a word a line."""
    program = Path(__file__).with_name("zombie_worker.py")
    command = [sys.executable, str(program), name, bootstrap, deployment, *options]
    environment = {**os.environ, "PYTHONPATH": str(program.parents[2])}
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    stack.enter_context(worker)
    stack.callback(worker.kill)
    return worker


async def _says(worker: "subprocess.Popen[str]", word: str) -> None:
    """Wait until ``worker`` says ``word``."""
    assert worker.stdout is not None
    async with asyncio.timeout(180):
        while True:
            line = await asyncio.to_thread(worker.stdout.readline)
            assert line, f"{worker.args!r} ended before it said {word}"
            if line.strip() == word:
                return


async def _paused_and_continued(kafka: str, name: str, *options: str, after: bool) -> list[bytes | None]:
    """Return what is in the topic once the paused worker went on; ``after``: and a frame more was routed."""
    log: KafkaLog = make_log(kafka, name, partitions=1)
    await log.start()
    assert partition_of(b"gw-1", 1) == 0
    for number in range(FRAMES):
        await log.append_frame("gw-1", json.dumps(number).encode())
    with ExitStack() as stack:
        zombie = _worker(stack, "zombie", kafka, name, "--pause", *options)
        await _says(zombie, "pausing")
        heir = _worker(stack, "heir", kafka, name, *options)
        await _says(heir, "committed")
        zombie.send_signal(signal.SIGCONT)
        await _says(zombie, "continued")
        if after:
            await log.append_frame("gw-1", b'"after"')
        found = await values(log, f"{name}.fleet")
        while after and b'"after"' not in found:
            found = await values(log, f"{name}.fleet")
    await log.close()
    return found


async def test_r1_a_paused_router_that_goes_on_writes_nothing(kafka: str, unique: str) -> None:
    found = await _paused_and_continued(kafka, unique, after=True)
    assert found == [*(b"%d" % number for number in range(FRAMES)), b'"after"']


async def test_r1_control_one_producer_a_worker_writes_twice(kafka: str, unique: str) -> None:
    """Without the rule the same run must show copies, or it shows nothing."""
    found = await _paused_and_continued(kafka, unique, "--fence-by", "worker", after=False)
    assert len(found) == 2 * FRAMES
    assert {*found} == {b"%d" % number for number in range(FRAMES)}

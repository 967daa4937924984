"""Routers that are killed in the middle of their steps: what ``delivery`` promises, and what it does not.

``at-least-once`` is the control of ``exactly-once``: with transactions off the same kills must show duplicates, or the
run shows nothing. The ids let a reader tell them.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from aiokafka import TopicPartition

from cloud_ingest.audit import audit
from cloud_ingest.config import Topics
from cloud_ingest.journal.kafka import KafkaLog
from tests.support.gateway import Epoch
from tests.support.kafka_log import make_log
from tests.support.logs import read_to_end

FRAMES, FRAME = 150, 50
KILLS = 6
MOST_KILLS = 30


def _worker(bootstrap: str, deployment: str, delivery: str) -> "subprocess.Popen[bytes]":
    program = Path(__file__).with_name("delivery_worker.py")
    environment = {**os.environ, "PYTHONPATH": str(program.parents[2])}
    return subprocess.Popen([sys.executable, str(program), bootstrap, deployment, delivery], env=environment)


async def _grown(log: KafkaLog, place: TopicPartition, worker: "subprocess.Popen[bytes]") -> bool:
    """Wait until the topic has more than at first, or all; say whether it has grown."""
    _, before = await log.bounds(place)
    async with asyncio.timeout(180):
        while True:
            assert worker.poll() is None
            _, end = await log.bounds(place)
            if end > before:
                return True
            if before >= FRAMES * FRAME:  # it may have no more to write
                return False


async def _ids(log: KafkaLog, topic: str) -> list[str]:
    return [dict(record.headers)["ce_id"].decode() for record in await read_to_end(log, [topic])]


async def _killed_again_and_again(kafka: str, name: str, delivery: str) -> list[str]:
    """Return the ids that are in the topic once all is routed, by workers that were killed as soon as they wrote."""
    log = make_log(kafka, name, partitions=1, delivery=delivery)
    await log.start()
    topic, epoch = f"{name}.fleet", Epoch(1, oldest=1)
    try:
        for number in range(FRAMES):
            await log.append_frame("gw", epoch.frame(number * FRAME + 1, number * FRAME + FRAME))
        for kills in range(MOST_KILLS):
            with _worker(kafka, name, delivery) as worker:
                try:
                    more = await _grown(log, TopicPartition(topic, 0), worker)
                finally:
                    worker.kill()
            found = await _ids(log, topic)
            if not more or (kills >= KILLS and (delivery == "exactly-once" or len(found) > len(set(found)))):
                break
        with _worker(kafka, name, delivery) as worker:
            try:
                async with asyncio.timeout(180):
                    while (report := await audit(log, Topics(prefix=f"{name}.", partitions=1))).lanes[0].pending:
                        assert worker.poll() is None
                        await asyncio.sleep(0.1)
            finally:
                worker.kill()
        assert (report.missing, report.lanes[0].delivered) == (0, FRAMES * FRAME)
        return await _ids(log, topic)
    finally:
        await log.close()


ALL = [f"gw/1/telemetry/{seq}" for seq in range(1, FRAMES * FRAME + 1)]


async def test_r1_exactly_once_over_sigkill(kafka: str, unique: str) -> None:
    assert await _killed_again_and_again(kafka, unique, "exactly-once") == ALL


async def test_r1_control_at_least_once_over_sigkill_shows_duplicates_and_their_ids_tell(
    kafka: str, unique: str
) -> None:
    found = await _killed_again_and_again(kafka, unique, "at-least-once")
    assert len(found) > len(ALL)
    assert list(dict.fromkeys(found)) == ALL  # a reader that remembers ids has each once, and in order

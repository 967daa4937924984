"""A router worker as a process of its own, which may stop itself in the middle of its first transaction.

zombie_worker.py NAME BOOTSTRAP DEPLOYMENT [--pause] [--fence-by partition|worker]
"""

import argparse
import asyncio
import os
import signal
from typing import Any

from aiokafka import AIOKafkaProducer

from cloud_ingest.journal.kafka import KafkaLog
from cloud_ingest.journal.port import OutRecord, PartitionLog, Step
from tests.support.kafka_log import make_log
from waybill.errors import Fenced, Unavailable


def _say(word: str) -> None:
    print(word, flush=True)  # noqa: T201 - the test listens


def _pause_inside(producer: AIOKafkaProducer) -> None:
    """Make ``producer`` stop this process once its records are written, before its offset is sent."""
    gather = producer.commit_transaction

    async def commit() -> None:
        await gather()
        _say("continued")

    send_offsets = producer.send_offsets_to_transaction

    async def paused(*arguments: Any) -> None:
        await asyncio.sleep(0.5)  # the records are with the broker by now
        _say("pausing")
        os.kill(os.getpid(), signal.SIGSTOP)
        await send_offsets(*arguments)

    producer.send_offsets_to_transaction = paused
    producer.commit_transaction = commit


def _fence_by(worker: str, log: KafkaLog) -> None:
    """Make the transactional producers of ``log`` bear the worker's name, not the partition's."""
    make = log.producer

    def by_worker(**settings: Any) -> AIOKafkaProducer:
        if "transactional_id" in settings:
            settings["transactional_id"] = worker
        return make(**settings)

    log.producer = by_worker  # type: ignore[method-assign]


async def main(options: argparse.Namespace) -> None:
    """Route each frame to the fleet topic, one record a frame."""
    log = make_log(options.bootstrap, options.deployment, partitions=1)
    if options.fence_by == "worker":
        _fence_by(f"{options.deployment}.{options.name}", log)
    await log.start()
    pause = options.pause

    async def route(partition: PartitionLog) -> None:
        nonlocal pause
        while True:
            try:
                await partition.load()
                if pause:
                    pause = False
                    _pause_inside(partition._producer)  # type: ignore[attr-defined]
                while True:
                    frames, _ = await partition.read(100, 0.5)
                    if frames:
                        records = [OutRecord(f"{options.deployment}.fleet", b"k", frame.frame, []) for frame in frames]
                        # No ledger: that the heir waits for what is open on it would hide a missing fence.
                        await partition.commit(Step(records, {}, frames[-1].offset + 1))
                        _say("committed")
            except Unavailable:
                await asyncio.sleep(0.2)
            except Fenced:
                _say("continued")
                raise

    await log.own_partitions(route)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("bootstrap")
    parser.add_argument("deployment")
    parser.add_argument("--pause", action="store_true")
    parser.add_argument("--fence-by", choices=["partition", "worker"], default="partition")
    asyncio.run(main(parser.parse_args()))

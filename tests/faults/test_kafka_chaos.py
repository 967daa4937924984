"""Exactly once under every fault: nodes, workers and brokers are killed at random under load, by a seed (R1–R7).

Three real brokers with ``min.insync.replicas=2``; two nodes and three workers. The control is the same run without
transactions, which must show duplicates, or the first one shows nothing.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from deploy.kafka.cluster import Cluster
from tests.faults.chaos import LONG, site
from tests.support.kafka import StartCluster

SEED = int(os.environ.get("WAYBILL_SEED", "20261121"))
SECONDS = 120.0 if LONG else 20.0
NODES = ("node-1", "node-2", "worker")
ROUNDS = 12


@pytest.fixture(scope="module")
def cluster(kafka_cluster: StartCluster) -> Cluster:
    """Return three brokers; a test leaves them running."""
    return kafka_cluster(brokers=3)


async def test_r1_each_message_once_and_in_order_whatever_is_killed_or_paused(
    cluster: Cluster, unique: str, tmp_path: Path
) -> None:
    choice = random.Random(SEED)
    async with site(cluster, unique, tmp_path, nodes=NODES, gateways=12, pace=8.0) as run:
        run.publish()
        await run.chaos(choice, SECONDS)
        await run.end()
        await run.acked()
        await run.routed()
        sent = sum(gateway.messages for gateway in run.gateways)
        sys.stderr.write(f"seed {SEED}: {sent} messages, {run.faults}\n")
        await run.judged()
    faults = run.faults
    assert min(faults.kills, faults.pauses, faults.brokers, faults.elections, faults.epochs) > 0


async def test_r1_control_without_transactions_the_same_faults_show_duplicates(
    cluster: Cluster, unique: str, tmp_path: Path
) -> None:
    choice = random.Random(SEED)
    async with site(cluster, unique, tmp_path, nodes=NODES, gateways=12, pace=8.0, delivery="at-least-once") as run:
        run.publish()
        for _ in range(ROUNDS):
            await run.kill(choice)
            await run.pause(choice)
            if await run.doubled():
                break
        await run.end()
        await run.acked()
        await run.routed()
        found = await run.found()
        made = {device: values for gateway in run.gateways for device, values in gateway.made.items()}
        assert {device: set(values) for device, values in found.items()} == {
            device: set(values) for device, values in made.items()
        }
        assert sum(map(len, found.values())) > sum(map(len, made.values()))


async def test_r1_nodes_and_workers_come_and_go_under_load_and_gateways_are_spread(
    cluster: Cluster, unique: str, tmp_path: Path
) -> None:
    """One, three, restarted gently while they are at work, one again."""
    names = ("node-1", "node-2", "node-3")
    async with site(cluster, unique, tmp_path, nodes=names, gateways=12, pace=4.0, running=1) as run:
        one, two, three = run.nodes
        run.publish()
        await run.settled(one)
        await two.process.start()
        await three.process.start()
        await run.settled(one, two, three)
        for node in run.nodes if LONG else [one]:
            assert await node.process.stop() == 0
            others = [other for other in run.nodes if other is not node]
            await run.settled(*others)
            assert min([(await other.snapshot())["connected"] for other in others]) >= 3
            await node.process.start()
            await run.settled(*run.nodes)
        for node in (three, two):
            assert await node.process.stop() == 0
        await run.settled(one)
        await run.end()
        await run.acked()
        await run.routed()
        await run.judged()

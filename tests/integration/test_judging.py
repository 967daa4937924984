"""A real run, judged: PASS as it is; FAIL, and the record named, when any one record is removed, doubled or swapped."""

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from fleet_simulator.accounts import LaneAudit
from fleet_simulator.deployment import Deployment, Plan
from fleet_simulator.fleet import Fleet
from fleet_simulator.judging import Source, judge, load
from fleet_simulator.ledger import Ledger
from fleet_simulator.processes import until
from fleet_simulator.readback import read_audit, read_line
from fleet_simulator.verdict import Comparison, Verdict

LOSSY = {"name": "lossy", "filters": ["vehicles/#"], "max_bytes": 65_536, "when_full": "drop-oldest"}
LONG = bool(os.environ.get("WAYBILL_LONG"))
VEHICLES = [f"V{number}" for number in range(1, 7)]


async def lines_of(deployment: Deployment) -> list[bytes]:
    tail = deployment.tool("cloud", "tail", deployment.topic, "--json", "--end")
    process = await asyncio.create_subprocess_exec(*tail, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.splitlines()


def judged(comparison: Comparison, lines: list[bytes], audits: tuple[LaneAudit, ...]) -> Verdict:
    comparison.again()
    for line in lines:
        read_line(comparison, line)
    return comparison.verdict(audits)


def named(verdict: Verdict, line: bytes) -> bool:
    """Tell whether a finding names this record: by vehicle and number, or by its gateway's number."""
    record = json.loads(line)
    said = json.loads(record["value"])
    lane, _, number = record["headers"]["ce_id"].rpartition("/")
    return any(
        text.startswith(f"{said['vehicle']} {said['stream']} seq {said['seq']} ")
        or text == f"{said['vehicle']} {said['stream']} seq {said['seq']}"
        or (text.startswith(f"{lane}: ") and text.endswith(f"not there: {number}"))
        for texts in verdict.findings.values()
        for text in texts
    )


def partner(lines: list[bytes], at: int, same: Callable[[dict[str, Any], dict[str, Any]], bool]) -> int | None:
    mine = json.loads(lines[at])
    return next((n for n in range(at + 1, len(lines)) if same(mine, json.loads(lines[n]))), None)


async def test_any_one_record_removed_doubled_or_swapped_fails(tmp_path: Path, log: str | None) -> None:
    plan = Plan(gateways=("depot-1", "depot-2"), kafka=log, forward={"linger_ms": 20}, lanes=(LOSSY,))
    path = tmp_path / "ledger"
    async with Deployment(tmp_path, plan).running() as deployment:
        sites = list(deployment.sites.values())
        brokers = {name: sites[at % 2].broker for at, name in enumerate(VEHICLES)}
        with Ledger(path) as ledger:
            for at, name in enumerate(VEHICLES):
                ledger.behind(name, sites[at % 2].name)
            fleet = Fleet(brokers, interval=0.02, ledger=ledger)
            async with fleet.driving():
                await until("some arrived", lambda: fleet.acked > 60, 60)
                await sites[0].link.cut()

                async def dropping() -> bool:
                    lanes = (await sites[0].snapshot())["lanes"]
                    return any(lane["dropped"] > 20 for lane in lanes)

                async with asyncio.timeout(180):
                    while not await dropping():  # noqa: ASYNC110 - another process's doing
                        await asyncio.sleep(0.1)
                await sites[1].agent.kill()
                await sites[0].link.restore()
                await sites[1].agent.start()
                before = fleet.acked
                await until("more arrived", lambda: fleet.acked > before + 60, 60)
                fleet.halt()
                await fleet.settled(180)
        source = Source(["--config", str(deployment.config)], [deployment.topic], audited=True)
        report = await judge(path, source, drain=180)
        assert report.outcome == "PASS", report.checks
        assert report.counts.declared > 20
        assert report.counts.lost == 0
        lines = await lines_of(deployment)
        audits = await read_audit(deployment.tool("cloud", "audit", "--json"))
    assert len(lines) == report.counts.delivered
    assert all(one.exact for one in audits)

    _, comparison = load(path)
    assert judged(comparison, lines, audits).passed
    for at in range(0, len(lines), 1 if LONG else max(1, len(lines) // 20)):
        removed = judged(comparison, lines[:at] + lines[at + 1 :], audits)
        assert not removed.passed
        assert named(removed, lines[at]), (lines[at], removed.findings)
        doubled = judged(comparison, [*lines[: at + 1], lines[at], *lines[at + 1 :]], audits)
        assert (doubled.passed, doubled.duplicated) == (False, 1)
        assert named(doubled, lines[at])
        # With the next one of its vehicle; with the next one of its gateway's lane in its partition.
        for same in (
            lambda a, b: a["key"] == b["key"],
            lambda a, b: (
                a["partition"] == b["partition"]
                and a["headers"]["ce_id"].rpartition("/")[0] == b["headers"]["ce_id"].rpartition("/")[0]
            ),
        ):
            other = partner(lines, at, same)
            if other is None:
                continue
            swapped = list(lines)
            swapped[at], swapped[other] = lines[other], lines[at]
            found = judged(comparison, swapped, audits)
            assert not found.passed
            assert named(found, lines[at]), (lines[at], found.findings)


@pytest.fixture(params=["embedded", "kafka"])
def log(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "embedded" else request.getfixturevalue("kafka")


async def test_any_producer_and_any_kafka_read_committed(kafka: str, tmp_path: Path) -> None:
    topic = f"foreign-{secrets.token_hex(4)}"
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.about({"topics": [topic], "source": ["--bootstrap", kafka], "waybill": False})
        for vehicle in VEHICLES:
            ledger.published(vehicle, "telemetry", 1, 20, 1)
            ledger.acked(vehicle, "telemetry", 1, 20, 1)

    async def produce(producer: AIOKafkaProducer, seqs: Iterable[int]) -> None:
        for seq in seqs:
            for at, vehicle in enumerate(VEHICLES):
                value = json.dumps({"vehicle": vehicle, "stream": "telemetry", "seq": seq}).encode()
                await producer.send_and_wait(topic, value, partition=at % 2)

    async with topic_with_partitions(kafka, topic, 2), writing(kafka, topic) as producer:
        async with producer.transaction():
            await produce(producer, range(1, 20))
        await producer.begin_transaction()
        await produce(producer, [20])  # nobody who reads what is committed sees this
        await producer.abort_transaction()
        found = await judge(tmp_path)
        assert (found.outcome, found.counts.lost, found.counts.delivered) == ("FAIL", len(VEHICLES), 19 * len(VEHICLES))
        async with producer.transaction():
            await produce(producer, [20])
        found = await judge(tmp_path, drain=180)
        assert found.outcome == "PASS", found.checks
        assert {check.name for check in found.checks}.isdisjoint({"reused", "disagreeing"})
        async with producer.transaction():
            await produce(producer, [7])
        found = await judge(tmp_path)
        assert (found.outcome, found.counts.duplicated, found.counts.lost) == ("FAIL", len(VEHICLES), 0)


@contextlib.asynccontextmanager
async def topic_with_partitions(kafka: str, topic: str, count: int) -> AsyncIterator[None]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, count, 1)])
        yield
    finally:
        await admin.close()


@contextlib.asynccontextmanager
async def writing(kafka: str, topic: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=topic)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()

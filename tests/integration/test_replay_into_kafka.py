"""All recorded trips through agent, ingest and a real Kafka, with a cut in the middle, read back by a Java client."""

import asyncio
from pathlib import Path

import msgspec

from fleet_simulator.deployment import Deployment, Plan
from fleet_simulator.judging import Source, judge, load
from fleet_simulator.ledger import Ledger
from fleet_simulator.processes import until
from fleet_simulator.replay import Progress, Replay, check, run
from fleet_simulator.vehicles.drives import rows, trips
from tests.support.java_consumer import read_committed

ROWS = 18_559


async def test_each_row_is_in_the_topic_once_and_in_order(kafka: str, tmp_path: Path) -> None:
    files = tmp_path / "trips"
    files.mkdir()
    for trip in trips():
        (files / trip.name).write_bytes(trip.read_bytes())
    checked = check(Replay(tuple(sorted(files.iterdir())), None))
    plan = Plan(gateways=("depot-1",), kafka=kafka, forward={"linger_ms": 50})
    async with Deployment(tmp_path, plan).running() as deployment:
        site = deployment.sites["depot-1"]
        cut: list[asyncio.Task[None]] = []

        async def outage() -> None:
            await site.link.cut()
            # Everything else comes in while the link is away: what arrives later comes from the disk.
            await until("all acknowledged during the cut", lambda: progress[-1].complete, 120)
            await site.link.restore()

        progress: list[Progress] = []

        def tell(now: Progress) -> None:
            progress.append(now)
            if not cut and now.acked > ROWS // 4:
                cut.append(asyncio.create_task(outage(), name="outage"))

        with Ledger(tmp_path / "noted") as ledger:
            done = await run(checked, site.broker, ledger=ledger, tell=tell, window=20)
        progress.append(done)
        assert done.acked == ROWS
        assert cut, "the replay was over before the cut"
        await cut[0]

        source = Source(["--config", str(deployment.config)], [deployment.topic], audited=True)
        report = await judge(tmp_path / "noted", source, drain=120)
        assert report.line == f"verdict: PASS delivered={ROWS} lost=0 duplicated=0 out_of_order=0", report.checks
        assert site.link.connections >= 2
        records = await read_committed(kafka, deployment.topic)

    _, comparison = load(tmp_path / "noted")
    said: dict[str, list[dict[str, object]]] = {name: [] for name in checked.vehicles}
    for record in records:
        value = msgspec.json.decode(record.value)
        comparison.read(
            value["vehicle"],
            "telemetry",
            value["seq"],
            key=record.key,
            place=(deployment.topic, record.partition),
            ce_id=record.headers["ce_id"],
        )
        said[value["vehicle"]].append(value)
    verdict = comparison.verdict()
    assert verdict.line() == f"verdict: PASS delivered={ROWS} lost=0 duplicated=0 out_of_order=0", verdict.examples
    assert verdict.unacked == 0
    # Not only the numbers: what the recorder wrote is what is there.
    for trip in trips():
        recorded = [row.fields for row in rows(trip)]
        there = said[trip.name.removesuffix(".csv")]
        assert [value["timestamp"] for value in there] == [fields["timestamp"] for fields in recorded]
        assert [value["speed_mph"] for value in there] == [float(fields["speed_mph"]) for fields in recorded]

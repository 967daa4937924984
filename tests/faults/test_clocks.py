"""R6: gateways with wrong clocks: all arrives, nobody waits; their own time is kept unless it cannot be true."""

import asyncio
import datetime as dt
import sys
import time
from pathlib import Path

from edge_agent import clock
from fleet_simulator.deployment import Deployment, Plan
from fleet_simulator.fleet import Fleet
from tests.support.java_consumer import read_committed

HOUR = 3600
OFFSETS = {"ahead": 2 * HOUR, "back": -8 * 24 * HOUR, "right": 0}
BUILT = Path(clock.__file__).stat().st_mtime
"""Before this the program was not there, so a clock that is farther back is wrong."""


async def test_r6_wrong_clocks_arrive_and_hold_nobody_up(kafka: str, tmp_path: Path) -> None:
    plan = Plan(
        gateways=tuple(OFFSETS),
        kafka=kafka,
        agent_command=[sys.executable, str(Path(__file__).with_name("agent_with_clock.py"))],
        agent_environment={name: {"CLOCK_OFFSET": str(offset)} for name, offset in OFFSETS.items()},
        forward={"linger_ms": 50},
    )
    async with Deployment(tmp_path, plan).running() as deployment:
        brokers = {f"{name}-{n}": site.broker for name, site in deployment.sites.items() for n in range(3)}
        fleet = Fleet(brokers, interval=0.02)
        async with fleet.driving():
            await asyncio.sleep(2)
            fleet.halt()
            await fleet.settled(30)
        verdict = await deployment.compared(fleet.into, 60)
        records = await read_committed(kafka, deployment.topic)
    assert verdict.passed, verdict.examples
    assert len(records) == fleet.acked
    seen = set()
    for record in records:
        gateway = record.key.partition("-")[0]
        seen.add(gateway)
        # Kafka's stamp is the router's: Kafka refuses one that is far ahead and deletes one that is old.
        assert abs(record.timestamp / 1000 - time.time()) < 600
        own = dt.datetime.fromisoformat(record.headers["ce_time"]).timestamp()
        says = time.time() + OFFSETS[gateway]
        assert abs(own - max(BUILT, says)) < 600
    assert seen == set(OFFSETS)

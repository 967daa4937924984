"""Gateways with wrong clocks: everything arrives, nobody waits, and times are as right as they can be made."""

import asyncio
import datetime as dt
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

from edge_agent import clock
from fleet_simulator.deployment import Deployment, Plan
from fleet_simulator.fleet import Fleet
from fleet_simulator.processes import until
from tests.integration.edge.agents import publish
from tests.support.java_consumer import read_committed
from waybill import pki

HOUR = 3600
YEAR = 365 * 24 * HOUR
OFFSETS = {"ahead": 2 * HOUR, "back": -8 * 24 * HOUR, "right": 0}
BUILT = Path(clock.__file__).stat().st_mtime
"""Before this the program was not there, so a clock that is farther back is wrong."""


def plan(directory: Path, *gateways: str, kafka: str | None = None) -> Plan:
    """Agents whose clocks are in files of their names."""
    return Plan(
        gateways=gateways,
        kafka=kafka,
        agent_command=[sys.executable, str(Path(__file__).with_name("agent_with_clock.py"))],
        agent_environment={name: {"CLOCK": str(directory / f"{name}.clock")} for name in gateways},
        forward={"linger_ms": 50},
    )


def set_clock(directory: Path, gateway: str, offset: float, *, synced: bool = False) -> None:
    part = directory / f"{gateway}.part"
    part.write_text(f"{int(offset)} {'yes' if synced else 'no'}")
    part.replace(directory / f"{gateway}.clock")


async def test_r6_wrong_clocks_arrive_and_hold_nobody_up(kafka: str, tmp_path: Path) -> None:
    for name, offset in OFFSETS.items():
        set_clock(tmp_path, name, offset)
    async with Deployment(tmp_path, plan(tmp_path, *OFFSETS, kafka=kafka)).running() as deployment:
        brokers = {f"{name}-{n}": site.broker for name, site in deployment.sites.items() for n in range(3)}
        fleet = Fleet(brokers, interval=0.02)
        async with fleet.driving():
            await asyncio.sleep(2)
            fleet.halt()
            await fleet.settled(180)
        verdict = await deployment.compared(fleet.into, 180)
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


class Arrived(NamedTuple):
    """A record: its payload, what its time is worth, and that time in seconds since 1970."""

    payload: str
    clock: str
    time: float


async def arrived(deployment: Deployment, count: int) -> list[Arrived]:
    """Wait until there are so many records; return them in order."""
    end = time.monotonic() + 180
    while True:
        tail = await asyncio.create_subprocess_exec(
            *deployment.tool("cloud", "tail", deployment.topic, "--json", "--end"), stdout=asyncio.subprocess.PIPE
        )
        lines = [json.loads(line) for line in (await tail.communicate())[0].splitlines()]
        if len(lines) >= count or time.monotonic() > end:
            return [
                Arrived(
                    line["value"], headers["waybill_clock"], dt.datetime.fromisoformat(headers["ce_time"]).timestamp()
                )
                for line in lines
                for headers in (line["headers"],)
            ]
        await asyncio.sleep(0.2)


async def test_t1_messages_stamped_in_1970_get_their_times_once_the_clock_is_set(tmp_path: Path) -> None:
    began = time.time()
    set_clock(tmp_path, "gw", -began)
    async with Deployment(tmp_path, plan(tmp_path, "gw")).running() as deployment:
        site = deployment.sites["gw"]
        await publish(site.broker.port, [b"sent at once"])
        first = await arrived(deployment, 1)

        await deployment.cloud.kill()
        await publish(site.broker.port, [b"kept"])
        await site.agent.kill()
        await site.agent.start()
        await publish(site.broker.port, [b"kept by the next"])
        set_clock(tmp_path, "gw", 0, synced=True)
        await until("the clock was saved", lambda: '"good":true' in (site.data / clock.FILE).read_text(), 60)
        await publish(site.broker.port, [b"right"])
        await deployment.cloud.start()
        found = await arrived(deployment, 4)
        ended = time.time()
    assert [each.payload for each in found] == ["sent at once", "kept", "kept by the next", "right"]
    assert first == found[:1]
    assert [each.clock for each in found] == ["unknown", "corrected", "corrected", "corrected"]
    assert abs(found[0].time - BUILT) < 60
    assert began <= found[1].time <= found[2].time <= found[3].time <= ended + 0.001


class NotYetValid(Deployment):
    """Its ingest has a certificate of five years from now: to that, the present is what 1970 is to today's."""

    def _make_certificates(self) -> None:
        now, ca = dt.datetime.now(dt.UTC), self.directory / "pki" / "ca"
        pki.ca_init(ca, now=now)
        pki.issue_server(ca, self.directory / "pki" / "server", ["127.0.0.1"], now=now + dt.timedelta(days=5 * 365))
        pki.issue_gateway(ca, self.directory / "pki" / "gw", "gw", now=now)


async def test_t3_a_gateway_that_boots_in_1970_connects_over_tls(tmp_path: Path) -> None:
    set_clock(tmp_path, "gw", -time.time())
    async with NotYetValid(tmp_path, plan(tmp_path, "gw")).running() as deployment:
        await publish(deployment.sites["gw"].broker.port, [b"hello"])
        assert [each.payload for each in await arrived(deployment, 1)] == ["hello"]
        assert "the clock is wrong: it says 1970-01-01" in deployment.sites["gw"].agent.said()

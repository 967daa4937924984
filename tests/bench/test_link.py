"""The uplink over an emulated link beside mosquitto's bridge: bytes on the wire, how full the link is, memory.

Both have TLS 1.3 with client certificates and forward JSON of ten fields (``test_frames.rows``) with QoS 1. Bytes are
those of IP packets, both ways, without the connection's set-up. Needs root, for network namespaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fleet_simulator.processes import Process
from tests.bench.test_frames import VEHICLES, rows
from tests.support.emulated_site import Device, certificates, site
from tests.support.link_emulator import CLOUD, Counts, EmulatedLink, emulated_link

pytestmark = pytest.mark.bench

BACKLOG = 100_000
OF_THE_BRIDGE = 5_000
"""Messages of the bridge's backlog: it takes minutes for more, and a message costs the same."""
SECONDS = 60
"""How long it trickles."""
WARMING, SETTLING = 400, 15
"""Messages before that, and seconds."""


def messages(count: int) -> Iterator[tuple[bytes, bytes]]:
    made = [(f"vehicles/V{source:06d}/telemetry".encode(), payload) for source, _, _, payload, _ in rows()]
    return itertools.islice(itertools.cycle(made), count)


def total(counts: Counts) -> float:
    return counts["up"]["bytes"] + counts["down"]["bytes"]


def resident(pid: int, field: str = "VmRSS") -> float:
    """Return MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{field}:"))


class Bridge:
    """mosquitto at the gateway, bridged to mosquitto in the cloud."""

    def __init__(self, directory: Path, link: EmulatedLink) -> None:
        certificates(directory)
        self.socket = directory / "bridge.sock"
        self._log = directory / "cloud.log"
        pki = directory / "pki"
        (directory / "edge.conf").write_text(
            f"user root\nlistener 0 {self.socket}\nallow_anonymous true\nmax_queued_messages 0\n"
            f"max_inflight_messages 1000\nconnection up\naddress {CLOUD}:8883\ntopic # out 1\n"
            f"bridge_cafile {pki}/gw1/ca.pem\nbridge_certfile {pki}/gw1/gateway.pem\n"
            f"bridge_keyfile {pki}/gw1/gateway.key\ncleansession false\nbridge_protocol_version mqttv311\n"
            "remote_clientid gw1\nrestart_timeout 1 1\nkeepalive_interval 20\nnotifications false\n"
        )
        (directory / "cloud.conf").write_text(
            f"user root\nlistener 8883 {CLOUD}\ncafile {pki}/server/ca.pem\ncertfile {pki}/server/server.pem\n"
            f"keyfile {pki}/server/server.key\nrequire_certificate true\nallow_anonymous true\n"
            f"max_inflight_messages 0\nmax_queued_messages 0\nlistener 0 {directory}/cloud.sock\n"
        )
        mosquitto = "/usr/sbin/mosquitto"
        self.edge = Process(
            "bridge", link.within("gateway", [mosquitto, "-c", f"{directory}/edge.conf"]), directory / "edge.log",
            ready="running",
        )  # fmt: skip
        self.cloud = Process(
            "cloud mosquitto",
            link.within("cloud", [mosquitto, "-v", "-c", f"{directory}/cloud.conf"]),
            self._log,
            ready="running",
        )

    def received(self) -> int:
        return self._log.read_bytes().count(b"Received PUBLISH")

    async def until(self, count: int, patience: float) -> float:
        """Wait until the cloud has ``count`` messages; return the monotonic time of it."""
        async with asyncio.timeout(patience):
            while self.received() < count:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.05)
        return time.monotonic()


@contextlib.asynccontextmanager
async def bridge(directory: Path, link: EmulatedLink) -> AsyncIterator[Bridge]:
    directory.mkdir()
    made = Bridge(directory, link)
    try:
        await made.edge.start()
        yield made
    finally:
        await made.edge.stop()
        await made.cloud.stop()


class Drain(NamedTuple):
    """``bytes``: a message, both ways. ``busy``: share of the time that the link had something to carry."""

    rate: float
    bytes: float
    busy: float


async def bridge_drains(directory: Path, rate: float) -> Drain:
    async with emulated_link(rate=rate, delay=0.05) as link, bridge(directory, link) as made:
        async with Device(made.socket) as device:
            await device.publish(messages(OF_THE_BRIDGE))
        await made.cloud.start()
        await made.until(1, 30)
        before, began, already = await link.count(), time.monotonic(), made.received()
        seconds = await made.until(OF_THE_BRIDGE, 120) - began
        after, count = await link.count(), OF_THE_BRIDGE - already
        busy = (after["up"]["busy"] - before["up"]["busy"]) / seconds
        return Drain(count / seconds, (total(after) - total(before)) / count, busy)


async def agent_drains(
    directory: Path, rate: float, made: Iterator[tuple[bytes, bytes]], count: int, **forward: object
) -> Drain:
    directory.mkdir()
    async with emulated_link(rate=rate, delay=0.05) as link, site(directory, link, forward) as ends:
        await ends.buffer(made)
        await ends.cloud.start()
        await ends.start_agent()
        await ends.until_online()
        before, began = await link.count(), time.monotonic()
        seconds = await ends.drained(300) - began
        after = await link.count()
        assert (await ends.snapshot())["counters"]["uplink_connects"] == 1
        busy = (after["up"]["busy"] - before["up"]["busy"]) / seconds
        return Drain(count / seconds, (total(after) - total(before)) / count, busy)


async def test_a_backlog(tmp_path: Path) -> None:
    theirs = await bridge_drains(tmp_path / "bridge", 1e6)
    print(f"\n\n{BACKLOG:,} JSON messages of ten fields, 1 Mbit/s, 100 ms round trip")
    print(f"  {'':24}{'bytes/message':>14}{'messages/s':>12}{'link used':>11}")
    print(f"  {'mosquitto bridge':24}{theirs.bytes:14.1f}{theirs.rate:12,.0f}{theirs.busy:11.1%}")
    for body in ("auto", "plain"):
        ours = await agent_drains(tmp_path / body, 1e6, messages(BACKLOG), BACKLOG, body=body)
        ratios = f"   1/{theirs.bytes / ours.bytes:.1f} of the bytes, {ours.rate / theirs.rate:.1f} × the messages"
        print(f"  {f'agent, body {body}':24}{ours.bytes:14.1f}{ours.rate:12,.0f}{ours.busy:11.1%}{ratios}")


async def test_a_fast_link(tmp_path: Path) -> None:
    count = 500_000
    made = (
        (b"plant/line7/press", b'{"n":%07d,"bar":%06.2f,"state":"%s"}' % (n, n % 977 / 7, b"x" * 66))
        for n in range(count)
    )
    ours = await agent_drains(tmp_path / "agent", 50e6, made, count, body="plain")
    print(f"\n\n{count:,} messages of 100 bytes, plain, 50 Mbit/s, 100 ms round trip: {ours.rate:,.0f} messages/s")


async def trickle(link: EmulatedLink, socket: Path) -> float:
    """Publish a message a second of one vehicle; return the bytes a message.

    Before that some go faster, one by one, and there is time for what is learned from them.
    """
    made = itertools.islice(messages((WARMING + SECONDS) * VEHICLES), 0, None, VEHICLES)
    async with Device(socket) as device:
        for message in itertools.islice(made, WARMING):
            await device.publish([message])
            await asyncio.sleep(0.05)
        await asyncio.sleep(SETTLING)
        first = total(await link.count())
        for message in made:
            await device.publish([message])
            await asyncio.sleep(1)
    return (total(await link.count()) - first) / SECONDS


async def test_a_trickle(tmp_path: Path) -> None:
    async def agent(linger_ms: int) -> float:
        directory = tmp_path / f"linger-{linger_ms}"
        directory.mkdir()
        forward = {"linger_ms": linger_ms}
        async with emulated_link(rate=1e6, delay=0.05) as link, site(directory, link, forward) as ends:
            await ends.cloud.start()
            await ends.start_agent()
            await ends.until_online()
            return await trickle(link, ends.socket)

    async def peer() -> float:
        async with emulated_link(rate=1e6, delay=0.05) as link, bridge(tmp_path / "bridge", link) as made:
            await made.cloud.start()
            return await trickle(link, made.socket)

    theirs, waiting, at_once = await asyncio.gather(peer(), agent(10_000), agent(0))
    print("\n\nA message a second: bytes on the wire of each, both ways")
    print(f"  {'mosquitto bridge':24}{theirs:8.0f}")
    print(f"  {'agent, linger 10 s':24}{waiting:8.0f}   1/{theirs / waiting:.1f}")
    print(f"  {'agent, linger 0':24}{at_once:8.0f}   1/{theirs / at_once:.2f}")


async def test_memory(tmp_path: Path) -> None:
    count = 1_000_000
    directory = tmp_path / "agent"
    directory.mkdir()
    async with emulated_link(rate=10e6, delay=0.05) as link, site(directory, link) as ends:
        await ends.cloud.start()
        await ends.start_agent()
        await ends.until_online()
        idle = resident(ends.agent.pid)
        await ends.agent.stop()
        await ends.buffer(messages(count))
        await ends.start_agent()
        await ends.until_online()
        waiting = resident(ends.agent.pid)
        await ends.drained(300)
        print(
            f"\n\nResident memory of the agent: idle {idle:.0f} MB, with {count:,} messages waiting {waiting:.0f} MB, "
            f"at most while they drained {resident(ends.agent.pid, 'VmHWM'):.0f} MB"
        )

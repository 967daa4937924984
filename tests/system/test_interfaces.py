"""Two interfaces of a gateway, in a network namespace of its own: each uplink uses its interface and no other.

::

    gateway (wifi0 10.71.1.1, wwan0 10.71.2.1) ══ two veth pairs ══ cloud (10.71.1.2, 10.71.2.2; ingest on 10.71.9.9)
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import aiomqtt
import pytest

from fleet_simulator.processes import Process, waybill
from tests.support.link_emulator import clear_namespace
from waybill import pki, snapshot
from waybill.errors import Unavailable

pytestmark = pytest.mark.system

INGEST: Final = "10.71.9.9"
NAME: Final = "gw1"
UNPRIVILEGED: Final = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class Site:
    """Both namespaces and what runs in them."""

    def __init__(self, directory: Path, gateway: str, cloud: str, prefix: Sequence[str]) -> None:
        self.directory, self.gateway, self.cloud = directory, gateway, cloud
        now, made = dt.datetime.now(dt.UTC), directory / "pki"
        pki.ca_init(made / "ca", now=now)
        pki.issue_server(made / "ca", made / "server", [INGEST], now=now)
        pki.issue_gateway(made / "ca", made / NAME, NAME, now=now)
        server, mine = made / "server", made / NAME
        (directory / "cloud.toml").write_text(
            f'data = "cloud"\n[listener]\naddress = "{INGEST}:8883"\ncertificate = "{server}/server.pem"\n'
            f'key = "{server}/server.key"\nca = "{server}/ca.pem"\n'
        )
        files = f'ca = "{mine}/ca.pem"\ncertificate = "{mine}/gateway.pem"\nkey = "{mine}/gateway.key"\n'
        common = f'url = "mqtts://{INGEST}"\nkeepalive = 4\nreturn_s = 1\n'
        (directory / "agent.toml").write_text(
            f'gateway = "{NAME}"\ndata = "agent"\n[[listener]]\nkind = "unix"\npath = "mqtt.sock"\n'
            f'[[uplink]]\nname = "wifi"\ninterface = "wifi0"\n{common}{files}'
            f'[[uplink]]\nname = "lte"\ninterface = "wwan0"\nmetered = true\n{common}'
        )
        self.ingest = self._process("cloud", cloud, [], waybill("cloud", "run"))
        self.agent = self._process("agent", gateway, prefix, waybill("edge", "run"))

    def _process(self, name: str, space: str, prefix: Sequence[str], command: Sequence[str]) -> Process:
        whole = ["ip", "netns", "exec", space, *prefix, *command, "--config", str(self.directory / f"{name}.toml")]
        return Process(name, whole, self.directory / f"{name}.log")

    async def publish(self, first: int, last: int) -> None:
        """Publish numbers, and return when the agent has them."""
        path = str(self.directory / "mqtt.sock")
        async with aiomqtt.Client(path, transport="unix", identifier="V7", timeout=60) as client:
            for number in range(first, last + 1):
                await client.publish("vehicles/V7/telemetry", b"%d" % number, qos=1)

    async def until(self, socket: str, holds: Callable[[dict[str, Any]], object], patience: float = 60) -> None:
        """Wait until what a process says of itself holds."""
        answer: dict[str, Any] = {}
        try:
            async with asyncio.timeout(patience):
                while not answer or not holds(answer):
                    with contextlib.suppress(Unavailable):
                        answer = await snapshot.request(self.directory / socket, "snapshot")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"{answer.get('link')} {answer.get('uplinks')} {answer.get('gateways')}")

    async def uses(self, name: str, address: str) -> None:
        """Wait until the agent uses an uplink, and the cloud sees it come from an address."""
        await self.until("agent/agent.sock", lambda said: said["link"]["uplink"] == name)
        await self.until(
            "cloud/cloud.sock",
            lambda said: [one["address"].partition(":")[0] for one in said["gateways"]] == [address],
        )

    async def drained(self) -> None:
        await self.until("agent/agent.sock", lambda said: not sum(lane["count"] for lane in said["lanes"]))

    async def sent(self, name: str) -> tuple[int, int]:
        """Return what the agent says that an uplink has cost."""
        answer = await snapshot.request(self.directory / "agent" / "agent.sock", "snapshot")
        (one,) = [each for each in answer["uplinks"] if each["name"] == name]
        return one["sent"], one["received"]

    async def lost(self, before_ms: int) -> tuple[str, bool]:
        """Return why the link was lost first since ``before_ms``, and whether within a minute, by the agent's stamp."""
        answer = await snapshot.request(self.directory / "agent" / "agent.sock", "gateway")
        found = next(
            one for one in answer["health"]["links"] if one["state"] == "offline" and one["at_ms"] >= before_ms
        )
        return found["reason"].removeprefix("wifi: "), found["at_ms"] - before_ms <= 60_000

    def on_the_wire(self, interface: str) -> tuple[int, int]:
        """Return the bytes of IP that an interface has sent and received, as the kernel counts frames of Ethernet."""
        folder = f"/sys/class/net/{interface}/statistics"
        files = [f"{folder}/{name}" for name in ("tx_bytes", "tx_packets", "rx_bytes", "rx_packets")]
        counts = ip("netns", "exec", self.gateway, "cat", *files).split()
        sent, out, received, came = map(int, counts)
        return sent - 14 * out, received - 14 * came

    def arrived(self) -> list[int]:
        """Return the numbers in the ingest's topic, in order."""
        shown = subprocess.run(
            [*waybill("cloud", "tail", "fleet.telemetry", "--end", "--from-beginning", "--json"),
             "--config", str(self.directory / "cloud.toml")],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        return [int(json.loads(line)["value"]) for line in shown.splitlines()]


@contextlib.asynccontextmanager
async def site(directory: Path, prefix: Sequence[str]) -> AsyncIterator[Site]:
    """Make the namespaces, start both ends, and remove it all at the end."""
    gateway, cloud = f"wb-gw-{os.getpid()}", f"wb-cl-{os.getpid()}"
    try:
        for space in (gateway, cloud):
            clear_namespace(space)
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
            ip("netns", "exec", space, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        ip("-n", cloud, "address", "add", f"{INGEST}/32", "dev", "lo")
        for number, device in ((1, "wifi0"), (2, "wwan0")):
            ip("-n", gateway, "link", "add", device, "type", "veth", "peer", "name", device, "netns", cloud)
            for space, last in ((gateway, 1), (cloud, 2)):
                ip("-n", space, "address", "add", f"10.71.{number}.{last}/24", "dev", device)
                ip("-n", space, "link", "set", device, "up")
            via = f"10.71.{number}.2"
            ip("-n", gateway, "route", "add", "default", "via", via, "dev", device, "metric", str(number))
        made = Site(directory, gateway, cloud, prefix)
        try:
            await made.ingest.start()
            await made.agent.start()
            yield made
        finally:
            await made.agent.stop()
            await made.ingest.stop()
    finally:
        for space in (gateway, cloud):
            ip("netns", "delete", space)


@pytest.mark.parametrize("prefix", [[], UNPRIVILEGED], ids=["root", "unprivileged"])
async def test_each_uplink_uses_its_interface_and_the_better_one_is_come_back_to(
    tmp_path: Path, prefix: list[str]
) -> None:
    async with site(tmp_path, prefix) as here:
        await here.uses("wifi", "10.71.1.1")
        await here.publish(1, 100)
        await here.drained()
        # Packets vanish without a word: only the keepalive finds out.
        ip("-n", here.cloud, "route", "add", "blackhole", "10.71.1.1")
        await here.publish(101, 200)
        await here.uses("lte", "10.71.2.1")
        await here.drained()
        ip("-n", here.cloud, "route", "del", "blackhole", "10.71.1.1")
        await here.uses("wifi", "10.71.1.1")
        # The device itself is gone: the kernel knows that at once.
        before = time.time_ns() // 1_000_000
        ip("-n", here.gateway, "link", "set", "wifi0", "down")
        await here.publish(201, 300)
        await here.uses("lte", "10.71.2.1")
        await here.drained()
        assert await here.lost(before) == ("the interface wifi0 is down", True)
        counted, real = await here.sent("lte"), here.on_the_wire("wwan0")
        # ARP, and what came between the two looks
        assert counted == pytest.approx(real, rel=0.05)
        assert here.arrived() == list(range(1, 301))

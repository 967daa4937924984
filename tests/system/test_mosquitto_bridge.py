"""mosquitto as a bridge into the agent's broker: both ways, QoS 1 and 2, with a SIGKILL of the agent in between."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet_simulator.ports import free_ports
from fleet_simulator.processes import Process as Restartable
from fleet_simulator.processes import waybill
from tests.support.status import waiting

pytestmark = pytest.mark.system

THIRD = 100
COUNT = 3 * THIRD
STATE = "$SYS/broker/connection/#"

CONFIG = """
user root
listener {port} 127.0.0.1
allow_anonymous true
connection bridge
address 127.0.0.1:{agent}
bridge_protocol_version {version}
remote_clientid bridge
cleansession false
restart_timeout 1
notifications true
topic up/# out {qos}
topic down/# in {qos}
"""


class Sites:
    """An agent, and a mosquitto that bridges to it."""

    def __init__(self, directory: Path, version: str, qos: str) -> None:
        self.port, self.bridge = free_ports(2)
        self.data = str(directory / "data")
        command = waybill("edge", "run", "--listen", f"127.0.0.1:{self.port}", "--data", self.data)
        self.agent = Restartable("agent", command, directory / "log")
        self.config = directory / "mosquitto.conf"
        self.config.write_text(CONFIG.format(version=version, qos=qos, port=self.bridge, agent=self.port))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Both of them; ready when the bridge has said at the agent that it is there."""
        await self.agent.start()
        mosquitto = await asyncio.create_subprocess_exec("mosquitto", "-c", self.config, stdout=DEVNULL, stderr=DEVNULL)
        try:
            state = await self.sub(self.port, STATE, "-C", "1", "-F", "%p")
            assert await heard(state) == ["1"]
            yield
        finally:
            mosquitto.terminate()
            await mosquitto.wait()
            await self.agent.stop()

    async def restart(self, version: str) -> None:
        """Start the agent again. A bridge of version 5 asks for no session that stays, so it must be there again."""
        await self.agent.start()
        if version == "mqttv50":
            assert await heard(await self.sub(self.port, STATE, "-R", "-C", "1", "-F", "%p")) == ["1"]

    async def pub(self, port: int, topic: str, qos: str, numbers: range) -> None:
        """Publish numbers; ends when all are acknowledged."""
        command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(port), "-t", topic, "-q", qos, "-l"]
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE)
        async with asyncio.timeout(60):
            await process.communicate("".join(f"{n}\n" for n in numbers).encode())
        assert process.returncode == 0

    async def sub(self, port: int, topic: str, *more: str) -> Process:
        """Start mosquitto_sub."""
        command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(port), "-t", topic, "-W", "60", *more]
        return await asyncio.create_subprocess_exec(*command, stdout=PIPE)

    async def sleeper(self, port: int, topic: str, qos: str) -> list[str]:
        """The arguments with which mosquitto_sub finds the session that this leaves behind."""
        arguments = ["-q", qos, "-i", "sleeper", "-c"]
        assert await heard(await self.sub(port, topic, *arguments, "-E")) == []
        return arguments


async def heard(process: Process) -> list[str]:
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    return said.decode().splitlines()


@pytest.mark.parametrize("version", ["mqttv311", "mqttv50"])
@pytest.mark.parametrize("qos", ["1", "2"])
async def test_b1_a_bridge_loses_nothing_over_sigkill_of_the_agent(tmp_path: Path, version: str, qos: str) -> None:
    sites = Sites(tmp_path, version, qos)
    numbers = [str(n) for n in range(COUNT)]
    async with sites.running():
        up = await sites.sleeper(sites.port, "up/#", qos)
        down = await sites.sleeper(sites.bridge, "down/#", qos)
        before = await waiting(sites.data)

        await asyncio.gather(
            sites.pub(sites.bridge, "up/x", qos, range(THIRD)), sites.pub(sites.port, "down/x", qos, range(THIRD))
        )
        await sites.agent.kill()
        await sites.pub(sites.bridge, "up/x", qos, range(THIRD, 2 * THIRD))  # while there is no agent
        await sites.restart(version)
        await sites.pub(sites.port, "down/x", qos, range(THIRD, 2 * THIRD))
        flying = asyncio.create_task(sites.pub(sites.bridge, "up/x", qos, range(2 * THIRD, 3 * THIRD)))
        await sites.agent.kill()
        await flying
        await sites.restart(version)
        await sites.pub(sites.port, "down/x", qos, range(2 * THIRD, 3 * THIRD))
        assert await heard(await sites.sub(sites.port, "up/#", *up, "-C", str(COUNT))) == numbers
        assert await heard(await sites.sub(sites.bridge, "down/#", *down, "-C", str(COUNT))) == numbers
        assert await waiting(sites.data) - before >= 2 * COUNT

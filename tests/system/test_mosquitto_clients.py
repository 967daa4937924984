"""The agent's broker with the command-line clients of mosquitto, which others wrote, and SIGKILL in between."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet_simulator.ports import free_ports
from fleet_simulator.processes import Process, waybill
from tests.support.status import waiting

pytestmark = pytest.mark.system


class Site:
    """One agent on a port that stays, and mosquitto's clients."""

    def __init__(self, directory: Path) -> None:
        self.port = str(free_ports(1)[0])
        self.data = str(directory / "data")
        command = waybill("edge", "run", "--listen", f"127.0.0.1:{self.port}", "--data", self.data)
        self.agent = Process("agent", command, directory / "log")

    async def pub(self, topic: str, *more: str, text: str | None = None) -> None:
        """Run mosquitto_pub; it ends well once all is acknowledged."""
        command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", self.port, "-t", topic, *more]
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE)
        async with asyncio.timeout(60):
            await process.communicate(text.encode() if text is not None else None)
        assert process.returncode == 0

    async def sub(self, topic: str, *more: str) -> asyncio.subprocess.Process:
        """Start mosquitto_sub."""
        command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", self.port, "-t", topic, "-W", "60", *more]
        return await asyncio.create_subprocess_exec(*command, stdout=PIPE)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    await made.agent.start()
    yield made
    await made.agent.stop()


async def subscribed(process: asyncio.subprocess.Process, retained: str) -> None:
    """Wait until it prints the retained message: mosquitto_sub does not say otherwise that it is subscribed."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert (await process.stdout.readline()).decode().strip() == retained


async def heard(process: asyncio.subprocess.Process) -> list[str]:
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    return said.decode().splitlines()


@pytest.mark.parametrize("qos", ["0", "1", "2"])
async def test_messages_of_each_qos_arrive_and_are_buffered(site: Site, qos: str) -> None:
    await site.pub("ready", "-r", "-q", "1", "-m", "yes")
    listener = await site.sub("v/+/t", "-t", "ready", "-q", qos, "-C", "201", "-v")
    await subscribed(listener, "ready yes")
    await site.pub("v/1/t", "-q", qos, "-l", text="".join(f"{n}\n" for n in range(200)))
    assert await heard(listener) == [f"v/1/t {n}" for n in range(200)]
    assert await waiting(site.data) == 201


async def test_b1_a_sleeping_session_retained_messages_and_the_buffer_survive_sigkill(site: Site) -> None:
    first = await site.sub("news/#", "-q", "1", "-i", "sleeper", "-c", "-E")
    assert await heard(first) == []
    await site.pub("news/a", "-q", "1", "-l", text="".join(f"{n}\n" for n in range(50)))
    await site.pub("news/kept", "-q", "2", "-r", "-m", "kept")
    await site.agent.kill()
    await site.agent.start()
    again = await site.sub("news/#", "-q", "1", "-i", "sleeper", "-c", "-C", "51")
    assert sorted(await heard(again)) == sorted([*map(str, range(50)), "kept"])
    late = await site.sub("news/kept", "-q", "1", "-C", "1")
    assert await heard(late) == ["kept"]
    assert await waiting(site.data) == 51


async def test_a_will_is_published_when_its_client_is_killed(site: Site) -> None:
    await site.pub("ready", "-r", "-q", "1", "-m", "yes")
    listener = await site.sub("gone", "-t", "ready", "-q", "1", "-C", "2")
    await subscribed(listener, "yes")
    will = ("--will-topic", "gone", "--will-payload", "bye")
    doomed = await site.sub("x", "-t", "ready", "-q", "1", "-i", "doomed", *will)
    await subscribed(doomed, "yes")
    doomed.kill()
    assert await heard(listener) == ["bye"]
    await doomed.communicate()

"""Agents for tests: in this process, and as processes of their own; devices that publish to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec

from edge_agent.app import Agent
from edge_agent.config import EdgeConfig, ForwardSettings
from edge_agent.listener_config import ListenerSettings
from edge_agent.uplink.config import UplinkSettings
from tests.integration.edge.peer import GATEWAY, until
from waybill.config import address

ANY = ListenerSettings(port=0)


class Running:
    """An agent in this process."""

    def __init__(self, settings: EdgeConfig) -> None:
        self.said: list[str] = []
        self.agent = Agent(settings, self.said.append)
        self.task = asyncio.create_task(self.agent.run())

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def ports(self) -> list[int]:
        """One a listener, 0 for a Unix socket."""
        said = [line.removeprefix("listening on ").split()[0] for line in self.said if line.startswith("listening")]
        return [0 if each.startswith("/") else address(each)[1] for each in said]

    def waiting(self, lane: str = "telemetry") -> int:
        return next(one.count for one in self.agent.status().lanes if one.lane == lane)


@contextlib.asynccontextmanager
async def running(
    data: Path,
    uplink: UplinkSettings | tuple[UplinkSettings, ...] | None,
    forward: ForwardSettings | None = None,
    **more: Any,
) -> AsyncIterator[Running]:
    """Run an agent for gateway ``gw1`` in this process; it must end with exit code 0. ``more``: of its settings."""
    uplinks = (uplink,) if isinstance(uplink, UplinkSettings) else uplink or ()
    settings = EdgeConfig(GATEWAY, data, (ANY,), uplinks, forward or ForwardSettings(linger_ms=20))
    settings = msgspec.structs.replace(settings, **more)
    agent = Running(settings)
    try:
        await until(lambda: len(agent.ports) == len(settings.listeners) or agent.task.done())
        if agent.task.done():
            agent.task.result()
        yield agent
    finally:
        if not agent.task.done():
            agent.agent.stop()
        assert await asyncio.wait_for(agent.task, 60) == 0


async def publish(port: int, payloads: Iterable[bytes], topic: str = "vehicles/V7/telemetry", qos: int = 1) -> None:
    """Publish as one device; returns when all is acknowledged."""
    async with aiomqtt.Client("127.0.0.1", port, identifier="V7", clean_session=True, timeout=60) as client:
        for payload in payloads:
            await client.publish(topic, payload, qos=qos)


class Process:
    """An agent as a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0
        self.log = ""

    async def ready(self) -> None:
        """Wait until it listens."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            line = (await self.process.stdout.readline()).decode().strip()
        assert line.startswith("listening on "), line
        self.port = address(line.removeprefix("listening on "))[1]

    async def end(self, number: int) -> int:
        """Send it a signal and return its exit code; ``log`` is then what it wrote to stderr."""
        self.process.send_signal(number)
        async with asyncio.timeout(60):
            _, errors = await self.process.communicate()
        self.log = errors.decode()
        assert self.process.returncode is not None
        return self.process.returncode


@contextlib.asynccontextmanager
async def process(*arguments: str, part: str = "edge") -> AsyncIterator[Process]:
    """Run ``waybill PART ARGUMENTS`` as a process; it is killed at the end, if it still runs."""
    code = "import sys; from waybill.console.main import main; sys.exit(main())"
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, part, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    try:
        yield Process(started)
    finally:
        if started.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                started.send_signal(signal.SIGKILL)
            await started.communicate()

"""A whole deployment on this machine, for demonstrations and tests: real processes, certificates and links.

::

    devices ──▶ agent of a gateway ──TLS──▶ Link ──▶ cloud ingest ──▶ embedded log or Kafka

Everything but Kafka's topics is below one directory; every process is stopped by its pid.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fleet_simulator.devices import Broker
from fleet_simulator.link import Link
from fleet_simulator.network.profiles import Model
from fleet_simulator.ports import free_port
from fleet_simulator.processes import Process, waybill
from fleet_simulator.readback import read_topic
from fleet_simulator.verdict import Comparison, Verdict
from waybill import pki, snapshot
from waybill.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Plan:
    """What to set up. ``kafka``: HOST:PORT of one without security, None for the embedded log.

    ``cloud_command`` and ``agent_command``: what to run instead of ``waybill cloud run`` and ``waybill edge run``
    (``--config FILE`` is appended); ``agent_environment``: by gateway. ``forward``: keys of the agents' [forward];
    ``lanes``: of each of their [[lane]]; ``tables``: more of agent.toml, by gateway. ``networks``: of the uplinks, by
    gateway. ``name``: what topics and groups in Kafka begin with, a number behind it. ``seed``: of what links leave to
    chance.
    """

    gateways: tuple[str, ...] = ("depot-1", "depot-2")
    kafka: str | None = None
    cloud_command: Sequence[str] = field(default_factory=lambda: waybill("cloud", "run"))
    agent_command: Sequence[str] = field(default_factory=lambda: waybill("edge", "run"))
    agent_environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    forward: Mapping[str, object] = field(default_factory=dict)
    lanes: Sequence[Mapping[str, object]] = ()
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    networks: Mapping[str, Model] = field(default_factory=dict)
    name: str = "demo"
    seed: int = 0


@dataclass(slots=True)
class Site:
    """One gateway: its agent, its link to the cloud, and where its devices connect."""

    name: str
    agent: Process
    link: Link
    broker: Broker
    data: Path

    async def snapshot(self) -> dict[str, Any]:
        """Ask the agent how it is. Raises Unavailable."""
        answer: dict[str, Any] = await snapshot.request(self.data / "agent.sock", "snapshot")
        return answer

    async def backlog(self) -> int:
        """Return how many messages the agent has that are not in the cloud yet. Raises Unavailable."""
        return sum(int(lane["count"]) for lane in (await self.snapshot())["lanes"])

    async def link_state(self) -> str:
        """Return what the agent says of its uplink: ``online``, ``connecting``, ``offline``. Raises Unavailable."""
        return str((await self.snapshot())["link"]["state"])


class Deployment:
    """A deployment; it is there while :meth:`running` is open."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        """Nothing is made or started yet."""
        self.directory = directory
        self.plan = plan
        # With Kafka, topics and groups of its own; nothing that is there already is touched.
        self.prefix = f"{plan.name}-{secrets.token_hex(3)}." if plan.kafka else ""
        self.topic = f"{self.prefix}fleet.telemetry"
        self.config = directory / "cloud.toml"
        self.data = directory / "cloud"
        self.port = free_port()
        self.cloud = Process("cloud ingest", self._command(plan.cloud_command, self.config), directory / "cloud.log")
        self.sites: dict[str, Site] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Set everything up and start it; stop it at the end, in the order of the data. Raises Unavailable."""
        async with contextlib.AsyncExitStack() as stack:
            self._make_certificates()
            self._write_cloud()
            stack.push_async_callback(self.cloud.stop)
            for name in self.plan.gateways:
                relay = Link(
                    ("127.0.0.1", self.port),
                    ("127.0.0.1", free_port()),
                    network=self.plan.networks.get(name),
                    seed=f"{self.plan.seed}/{name}",
                )
                self.sites[name] = self._site(name, await stack.enter_async_context(relay))
            stack.push_async_callback(self._stop_agents)
            await self.cloud.start()
            await _few_at_once(site.agent.start for site in self.sites.values())
            yield self

    async def _stop_agents(self) -> None:
        await _few_at_once(site.agent.stop for site in self.sites.values())

    async def routed(self) -> int:
        """Return how many messages the cloud ingest has routed since it started. Raises Unavailable."""
        answer = await snapshot.request(self.data / "cloud.sock", "snapshot")
        return sum(int(partition["routed"]) for partition in answer["partitions"])

    def tool(self, *arguments: str) -> list[str]:
        """Return the command line of a tool that works on this deployment."""
        return [*waybill(*arguments), "--config", str(self.config)]

    async def read_back(self, comparison: Comparison) -> int:
        """Read the routed topic into ``comparison``; return the number of records. Raises Unavailable."""
        return await read_topic(comparison, self.tool("cloud", "tail", self.topic, "--json", "--end"))

    async def compared(self, acked: Callable[[Comparison], None], patience: float) -> Verdict:
        """Wait until the agents have nothing left, then read back until nothing is missing and nothing more comes.

        ``acked`` tells a comparison what was acknowledged. After ``patience`` seconds the verdict is what it is.
        Raises Unavailable where the topic cannot be read then.
        """
        end = time.monotonic() + patience
        with contextlib.suppress(Unavailable):  # then messages are missing, and the verdict says which
            for site in self.sites.values():
                while await site.backlog() and time.monotonic() < end:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.1)
        before = -1
        while True:
            comparison = Comparison()
            acked(comparison)
            try:
                count = await self.read_back(comparison)
            except Unavailable:
                if time.monotonic() > end:
                    raise
                count = -1
            verdict = comparison.verdict()
            if (not verdict.lost and count == before) or time.monotonic() > end:
                return verdict
            before = count
            await asyncio.sleep(0.5)

    @staticmethod
    def _command(command: Sequence[str], config: Path) -> list[str]:
        return [*command, "--config", str(config)]

    def _make_certificates(self) -> None:
        now, ca = dt.datetime.now(dt.UTC), self.directory / "pki" / "ca"
        pki.ca_init(ca, now=now)
        pki.issue_server(ca, self.directory / "pki" / "server", ["127.0.0.1"], now=now)
        for name in self.plan.gateways:
            pki.issue_gateway(ca, self.directory / "pki" / name, name, now=now)

    def _write_cloud(self) -> None:
        server = self.directory / "pki" / "server"
        log: dict[str, object] = {"kind": "embedded"}
        if self.plan.kafka:
            log = {"kind": "kafka", "bootstrap.servers": self.plan.kafka}
        text = _toml("", {"deployment": f"{self.prefix}waybill", "data": str(self.data)})
        text += _toml(
            "[listener]",
            {
                "address": f"127.0.0.1:{self.port}",
                "certificate": str(server / "server.pem"),
                "key": str(server / "server.key"),
                "ca": str(server / "ca.pem"),
            },
        )
        text += _toml("[log]", log)
        text += _toml("[topics]", {"prefix": self.prefix})
        text += _toml("[[route]]", {"topic": self.topic})
        self.config.write_text(text, encoding="utf-8")

    def _site(self, name: str, link: Link) -> Site:
        bundle, port, data = self.directory / "pki" / name, free_port(), self.directory / name
        text = _toml("", {"gateway": name, "data": str(data)})
        text += _toml("[[listener]]", {"host": "127.0.0.1", "port": port})
        text += _toml(
            "[[uplink]]",
            {
                "url": f"mqtts://127.0.0.1:{link.address[1]}",
                "ca": str(bundle / "ca.pem"),
                "certificate": str(bundle / "gateway.pem"),
                "key": str(bundle / "gateway.key"),
            },
        )
        if self.plan.forward:
            text += _toml("[forward]", self.plan.forward)
        text += "".join(_toml("[[lane]]", lane) for lane in self.plan.lanes)
        for key, value in self.plan.tables.get(name, {}).items():
            for each in value if isinstance(value, list) else [value]:
                text += _toml(f"[[{key}]]" if isinstance(value, list) else f"[{key}]", each)
        config = self.directory / f"{name}.toml"
        config.write_text(text, encoding="utf-8")
        agent = Process(
            f"agent {name}",
            self._command(self.plan.agent_command, config),
            self.directory / f"{name}.log",
            environment=self.plan.agent_environment.get(name),
        )
        return Site(name, agent, link, Broker("127.0.0.1", port), data)


async def _few_at_once(jobs: Iterable[Callable[[], Coroutine[Any, Any, object]]]) -> None:
    """Do all of ``jobs``, as many at a time as there are processors, and two more. Raises what the first one raises."""
    room = asyncio.Semaphore((os.cpu_count() or 1) + 2)

    async def one(job: Callable[[], Coroutine[Any, Any, object]]) -> None:
        async with room:
            await job()

    tasks = [asyncio.create_task(one(job), name="deployment") for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _toml(header: str, table: Mapping[str, object]) -> str:
    """Write a table of texts, numbers, lists and tables."""
    lines = [header] if header else []
    lines += [f"{json.dumps(key)} = {_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n\n"


def _value(value: object) -> str:
    """Write a value: JSON's way to write texts, numbers and lists is TOML's, too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)

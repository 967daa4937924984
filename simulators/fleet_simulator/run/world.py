"""What a run disturbs: Waybill's own deployment on this machine, or the programs of a target in its place."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fleet_simulator.deployment import Deployment, Plan
from fleet_simulator.devices import Broker
from fleet_simulator.link import Link
from fleet_simulator.processes import Process, waybill
from fleet_simulator.run import clocked
from fleet_simulator.run.kafka import StartedKafka
from fleet_simulator.scenarios import Program, Scenario, Vehicles
from waybill.config import address
from waybill.errors import Unavailable

_ANSWERS: Final = 10.0
"""Seconds that a Kafka or broker which others run may take to answer."""

_SERVES: Final = 120.0
"""Seconds that a program of a target may take until it answers at its address."""

_ATTEMPT: Final = 3.0

Placed = tuple[str, Vehicles, str, Broker]
"""A vehicle's name, its table, its gateway and where it connects."""


@dataclass(slots=True)
class World:
    """What there is while a run lasts.

    ``processes``: by name; an agent has its gateway's. ``links``: relays by name. ``clocks``: files of agents' clocks,
    by gateway. ``source``: the arguments that tell the tools of ``waybill cloud`` where to read; ``topics``: what they
    read back. ``command``: the arguments that tell ``waybill command`` the same, empty where nobody takes commands.
    """

    placed: list[Placed]
    processes: dict[str, Process]
    links: dict[str, Link]
    source: list[str]
    topics: list[str]
    agents: list[str] = field(default_factory=list)
    clocks: dict[str, Path] = field(default_factory=dict)
    deployment: Deployment | None = None
    kafka: StartedKafka | None = None

    async def backlogs(self) -> dict[str, int]:
        """Return how much each gateway has that is not in the cloud yet; those that do not answer are left out."""
        if self.deployment is None:
            return {}
        found: dict[str, int] = {}

        async def ask(name: str) -> None:
            with contextlib.suppress(Unavailable):
                found[name] = await sites[name].backlog()

        sites = self.deployment.sites
        await asyncio.gather(*(ask(name) for name in sites))
        return found

    async def online(self) -> bool:
        """Whether the uplink of every gateway is online."""

        async def ask(name: str) -> bool:
            with contextlib.suppress(Unavailable):
                return await sites[name].link_state() == "online"
            return False

        sites = {} if self.deployment is None else self.deployment.sites
        return all(await asyncio.gather(*(ask(name) for name in sites)))

    async def fault(self) -> str:
        """Return what keeps an agent from taking anything, in the words of the first that says so; else empty."""
        for name, site in ({} if self.deployment is None else self.deployment.sites).items():
            with contextlib.suppress(Unavailable):
                if fault := (await site.snapshot())["fault"]:
                    return f"{name}: {fault}"
        return ""

    async def empty(self) -> bool:
        """Whether every gateway says that the cloud has all that it had."""
        found = await self.backlogs()
        return len(found) == len(self.agents) and not any(found.values())

    async def routed(self) -> int | None:
        """Return how many messages the ingest has routed since it started; None where nobody says."""
        if self.deployment is not None:
            with contextlib.suppress(Unavailable):
                return await self.deployment.routed()
        return None


def place(scenario: Scenario) -> list[tuple[str, Vehicles, str]]:
    """Return each vehicle's name, its table and its gateway, empty with a target."""
    names, placed = scenario.gateways(), list[tuple[str, Vehicles, str]]()
    used = dict.fromkeys(names, 0)
    for vehicles in scenario.vehicle:
        for number in range(1, vehicles.count + 1):
            gateway = ""
            if names:
                those = names[vehicles.gateway]
                gateway = those[used[vehicles.gateway] % len(those)]
                used[vehicles.gateway] += 1
            placed.append((f"{vehicles.name}-{number}", vehicles, gateway))
    return placed


@contextlib.asynccontextmanager
async def open_world(scenario: Scenario, directory: Path, kafka: str | None) -> AsyncIterator[World]:
    """Start everything that ``scenario`` needs below ``directory``; stop it at the end. Raises Unavailable.

    ``kafka``: bootstrap servers instead of what the scenario says.
    """
    if scenario.target is not None:
        async with _foreign(scenario, directory) as world:
            yield world
        return
    async with contextlib.AsyncExitStack() as stack:
        started: StartedKafka | None = None
        if kafka is None and scenario.kafka is not None:
            kafka = scenario.kafka.bootstrap
            if scenario.kafka.start:
                started = await stack.enter_async_context(StartedKafka(scenario.kafka, directory / "kafka"))
                kafka = started.bootstrap
        if kafka is not None and started is None:
            await _kafka_answers(kafka)
        plan, clocks = _plan(scenario, directory, kafka)
        deployment = await stack.enter_async_context(Deployment(directory, plan).running())
        sites = deployment.sites
        yield World(
            placed=[(name, table, gateway, sites[gateway].broker) for name, table, gateway in place(scenario)],
            processes={"ingest": deployment.cloud, **{name: site.agent for name, site in sites.items()}},
            links={name: site.link for name, site in sites.items()},
            source=["--config", str(deployment.config)],
            topics=[deployment.topic],
            agents=list(sites),
            clocks=clocks,
            deployment=deployment,
            kafka=started,
        )


def _plan(scenario: Scenario, directory: Path, kafka: str | None) -> tuple[Plan, dict[str, Path]]:
    names = scenario.gateways()
    everyone = tuple(name for those in names.values() for name in those)
    clocks: dict[str, Path] = {}
    command: Sequence[str] = waybill("edge", "run")
    environment: dict[str, Mapping[str, str]] = {}
    if any(fault.kind == "clock" for fault in scenario.fault):
        command = [sys.executable, "-P", "-m", "fleet_simulator.run.clocked"]
        for name in everyone:
            clocks[name] = directory / f"{name}.clock"
            clocked.make(clocks[name])
            environment[name] = {clocked.VARIABLE: str(clocks[name])}
    plan = Plan(
        gateways=everyone,
        kafka=kafka,
        agent_command=command,
        agent_environment=environment,
        tables={name: each.agent for each in scenario.gateway for name in names[each.name]},
        networks={
            name: scenario.networks[each.network]
            for each in scenario.gateway
            if each.network
            for name in names[each.name]
        },
        name="fleet",
        seed=scenario.seed,
    )
    return plan, clocks


@contextlib.asynccontextmanager
async def _foreign(scenario: Scenario, directory: Path) -> AsyncIterator[World]:
    """Start the programs and relays of a target."""
    target = scenario.target
    if target is None:
        raise ValueError("a scenario without a target")
    directory.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        links: dict[str, Link] = {}
        for relay in target.link:
            network = scenario.networks[relay.network] if relay.network else None
            link = Link(address(relay.to), address(relay.listen), network=network, seed=f"{scenario.seed}/{relay.name}")
            links[relay.name] = await stack.enter_async_context(link)
        processes: dict[str, Process] = {}
        for program in target.process:
            processes[program.name] = process = _process(program, directory)
            stack.push_async_callback(process.stop)
            await start(process, program.ready)
        broker = Broker.parse(target.mqtt)
        await answers(f"target {broker}", [(broker.host, broker.port)])
        if target.kafka:
            await _kafka_answers(target.kafka)
        yield World(
            placed=[(name, table, gateway, broker) for name, table, gateway in place(scenario)],
            processes=processes,
            links=links,
            source=["--bootstrap", target.kafka] if target.kafka else [],
            topics=[target.topic] if target.topic else [],
        )


def _process(program: Program, directory: Path) -> Process:
    command = [part.replace("{directory}", str(directory)) for part in program.command]
    return Process(program.name, command, directory / f"{program.name}.log", ready="")


async def start(process: Process, ready: str) -> None:
    """Start a program of a target and wait until it says ``ready``, or answers there. Raises Unavailable."""
    process.ready = ready if ":" not in ready else ""
    await process.start()
    if process.ready or not ready:
        return
    await answers(f"{process.name}, whose words are in {process.output},", [address(ready)], _SERVES, process)


async def answers(
    what: str, places: Sequence[tuple[str, int]], patience: float | None = None, process: Process | None = None
) -> None:
    """Wait until one of ``places`` takes a connection. Raises Unavailable, at once where ``process`` has ended."""
    patience = _ANSWERS if patience is None else patience
    try:
        async with asyncio.timeout(patience):
            while not await _one_answers(places):
                if process is not None and not process.running:
                    raise Unavailable(f"{what} ended instead of answering")
                await asyncio.sleep(0.1)
    except TimeoutError as error:
        where = ", ".join(f"{host}:{port}" for host, port in places)
        raise Unavailable(f"{what}: nothing answers at {where} within {patience:.0f} s: start it first") from error


async def _one_answers(places: Sequence[tuple[str, int]]) -> bool:
    for host, port in places:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_ATTEMPT):
                _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return True
    return False


async def _kafka_answers(bootstrap: str) -> None:
    await answers("Kafka", [address(each.strip(), "kafka") for each in bootstrap.split(",")])

"""The demonstration: a minute of a small fleet with an outage, a killed agent and a command; then the verdict.

What happens when, as shares of the time given (60 s by default)::

    0.15          the uplink of the first gateway is cut, for 15 s at most
    0.15 + half   a command for a vehicle behind it, which therefore has to wait
    0.60          the agent of the second gateway gets SIGKILL, and is started again two seconds later
    1.00          the vehicles stop; everything drains; the topic is read back and compared
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from fleet_simulator.deployment import Deployment, Plan, Site
from fleet_simulator.fleet import Fleet
from fleet_simulator.verdict import Verdict
from waybill.errors import Unavailable

CUT: Final = 15.0
DOWN: Final = 2.0
DRAIN: Final = 120.0
"""Seconds that draining may take at the end."""

PATIENCE: Final = 120.0
"""Seconds beyond the time given that the command may take."""

_LOOK: Final = 0.5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GatewayView:
    """What is to be seen of one gateway.

    ``agent``: ``running`` or ``killed``. ``link``: ``cut``, or what the agent says of it. ``backlog``: messages that
    are not in the cloud yet; None while nobody answers.
    """

    name: str
    agent: str
    link: str
    backlog: int | None
    acked: int
    vehicles: int


@dataclass(frozen=True, slots=True)
class View:
    """One frozen moment of the demonstration; ``events``: (seconds, what happened), oldest first."""

    elapsed: float
    seconds: float
    stage: str
    gateways: tuple[GatewayView, ...]
    connected: int
    acked: int
    waiting: int
    records: int | None
    events: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended. ``command``: ``ok`` or what went wrong with it. ``facts``: (what, how much) for the table."""

    verdict: Verdict
    command: str
    facts: tuple[tuple[str, str], ...]

    @property
    def passed(self) -> bool:
        """Whether everything held."""
        return self.verdict.passed and self.command == "ok"

    @property
    def line(self) -> str:
        """The last line."""
        return self.verdict.line(self.command)


@dataclass(slots=True)
class _Seen:
    """What was last heard of the processes."""

    backlog: dict[str, int | None] = field(default_factory=dict)
    link: dict[str, str] = field(default_factory=dict)
    records: int | None = None


class Demo:
    """One run. ``show`` gets a view twice a second and at each event."""

    def __init__(
        self,
        directory: Path,
        *,
        kafka: str | None = None,
        seconds: float = 60.0,
        vehicles: int = 20,
        seed: int = 1,
        interval: float = 0.2,
        show: Callable[[View], None] = lambda _: None,
    ) -> None:
        """``directory``: an empty one, for everything. ``interval``: seconds between two messages of a vehicle."""
        self._seconds = seconds
        self._vehicles = vehicles
        self._seed = seed
        self._interval = interval
        self._show = show
        self._events: list[tuple[float, str]] = []
        self._stage = "starting"
        self._start = time.monotonic()
        self._seen = _Seen()
        self._command_id = f"demo-{secrets.token_hex(3)}"
        self._command_state = "lost"
        self._deployment = Deployment(directory, Plan(kafka=kafka))
        self._fleet: Fleet | None = None

    async def run(self) -> Outcome:
        """Run it to its end. Raises Unavailable where something does not even start."""
        async with self._deployment.running() as deployment:
            first, second = deployment.sites.values()
            brokers = {
                f"V{number}": (first if number % 2 else second).broker for number in range(1, self._vehicles + 1)
            }
            self._fleet = fleet = Fleet(brokers, seed=self._seed, interval=self._interval)
            self._start = time.monotonic()
            self._stage = "driving"
            where = f"Kafka, topic {deployment.topic}" if deployment.plan.kafka else "the embedded log"
            self._tell(f"{self._vehicles} vehicles drive, {len(deployment.sites)} gateways, cloud ingest on {where}")
            watching = asyncio.create_task(self._watch(), name="demo watch")
            try:
                async with fleet.driving():
                    await self._story(first, second)
                    fleet.halt()
                    self._stage = "draining"
                    self._tell("the vehicles stop; what is under way arrives")
                    with contextlib.suppress(Unavailable):  # the verdict tells
                        await fleet.settled(DRAIN)
                    verdict = await deployment.compared(fleet.into, DRAIN)
            finally:
                watching.cancel()
                await asyncio.wait({watching})
            self._stage = "compared"
            self._look()
            return self._outcome(verdict, fleet)

    # -- what happens --

    async def _story(self, first: Site, second: Site) -> None:
        tasks = [
            asyncio.create_task(self._outage(first), name="demo outage"),
            asyncio.create_task(self._crash(second), name="demo crash"),
            asyncio.create_task(self._command(first), name="demo command"),
            asyncio.create_task(asyncio.sleep(self._seconds), name="demo time"),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    @property
    def _cut(self) -> float:
        return min(CUT, self._seconds / 4)

    async def _outage(self, site: Site) -> None:
        await asyncio.sleep(0.15 * self._seconds)
        await site.link.cut()
        self._tell(f"the uplink of {site.name} is cut for {self._cut:.0f} s; its vehicles notice nothing")
        await asyncio.sleep(self._cut)
        await site.link.restore()
        self._tell(f"the uplink of {site.name} is whole again; its agent finds out at its next attempt")

    async def _crash(self, site: Site) -> None:
        await asyncio.sleep(0.6 * self._seconds)
        await site.agent.kill()
        self._tell(f"the agent of {site.name} was killed with SIGKILL")
        await asyncio.sleep(DOWN)
        await site.agent.start()
        self._tell(f"the agent of {site.name} runs again; its vehicles repeat what was not acknowledged")

    async def _command(self, site: Site) -> None:
        await asyncio.sleep(0.15 * self._seconds + self._cut / 2)
        device = "V1"
        arguments = ("command", "send", "--gateway", site.name, "--device", device, "--name", "honk")
        more = ("--payload", '{"times":2}', "--expires", "10m", "--id", self._command_id)
        code, said = await _run(self._deployment.tool(*arguments, *more), PATIENCE)
        if code != 0:
            self._command_state = "not-sent"
            self._tell(f"the command could not be sent: {said}")
            return
        self._tell(f"command {self._command_id} to {device}: honk; it has to wait for the uplink")
        sent = time.monotonic()
        watch = self._deployment.tool("command", "watch", self._command_id)
        code, said = await _run(watch, self._seconds + PATIENCE)
        effects = None if self._fleet is None else self._fleet.devices[device].effects
        if code != 0 or "done" not in said:
            self._command_state = "unanswered"
        elif effects is None or effects.acted.get(self._command_id) != 1:
            self._command_state = "no-effect"
        elif effects.payloads[self._command_id] != b'{"times":2}':
            self._command_state = "garbled"
        else:
            self._command_state = "ok"
        last = said.splitlines()[-1] if said else "nothing came back"
        self._tell(f"command {self._command_id} after {time.monotonic() - sent:.1f} s: {last}")

    # -- what is seen of it --

    def _tell(self, event: str) -> None:
        self._events.append((time.monotonic() - self._start, event))
        self._look()

    async def _watch(self) -> None:
        while True:
            for site in self._deployment.sites.values():
                self._seen.backlog[site.name] = await _asked(site.backlog())
                self._seen.link[site.name] = await _asked(site.link_state()) or "–"
            self._seen.records = await _asked(self._deployment.routed()) or self._seen.records
            self._look()
            await asyncio.sleep(_LOOK)

    def _look(self) -> None:
        fleet = self._fleet
        if fleet is None:
            return
        gateways = []
        for site in self._deployment.sites.values():
            devices = [one for one in fleet.devices.values() if one.broker == site.broker]
            gateways.append(
                GatewayView(
                    name=site.name,
                    agent="running" if site.agent.running else "killed",
                    link="cut" if site.link.is_cut else self._seen.link.get(site.name, "–"),
                    backlog=self._seen.backlog.get(site.name),
                    acked=sum(one.acked.count for one in devices),
                    vehicles=sum(one.connected for one in devices),
                )
            )
        self._show(
            View(
                elapsed=time.monotonic() - self._start,
                seconds=self._seconds,
                stage=self._stage,
                gateways=tuple(gateways),
                connected=fleet.connected,
                acked=fleet.acked,
                waiting=fleet.waiting,
                records=self._seen.records,
                events=tuple(self._events),
            )
        )

    def _outcome(self, verdict: Verdict, fleet: Fleet) -> Outcome:
        sites = self._deployment.sites.values()
        facts = (
            ("vehicles", str(len(fleet.devices))),
            ("connections that vehicles made", str(sum(one.connects for one in fleet.devices.values()))),
            ("starts of agents", ", ".join(f"{site.name} {site.agent.starts}" for site in sites)),
            ("connections of agents to the cloud", ", ".join(f"{s.name} {s.link.connections}" for s in sites)),
            ("sent by agents", ", ".join(f"{s.name} {s.link.bytes_up / 1000:.0f} kB" for s in sites)),
            ("acknowledged to vehicles", str(verdict.acked)),
            ("in the topic", str(verdict.delivered)),
            ("of these not acknowledged", str(verdict.unacked)),
            ("lost", str(verdict.lost)),
            ("duplicated", str(verdict.duplicated)),
            ("out of order", str(verdict.out_of_order)),
            ("command", self._command_state),
        )
        return Outcome(verdict, self._command_state, facts)


async def _asked(asking: Coroutine[Any, Any, T]) -> T | None:
    try:
        return await asking
    except Unavailable:
        return None


async def _run(command: list[str], patience: float) -> tuple[int, str]:
    """Run a tool; return its exit code and what it said; after ``patience`` seconds kill it."""
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
    try:
        async with asyncio.timeout(patience):
            said, _ = await process.communicate()
        return process.returncode or 0, said.decode(errors="replace").strip()
    except TimeoutError:
        return 1, f"no end within {patience:.0f} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

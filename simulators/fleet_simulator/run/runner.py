"""One run: the world is started, the vehicles drive, the story happens, everything drains."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleet_simulator.ledger import Ledger
from fleet_simulator.run.commands import Commands
from fleet_simulator.run.pace import Pace
from fleet_simulator.run.story import Story
from fleet_simulator.run.traffic import Traffic
from fleet_simulator.run.world import World, open_world
from fleet_simulator.scenarios import Scenario, span
from fleet_simulator.schedule import moments
from waybill.errors import ConfigError, Unavailable

LEDGER: Final = "ledger"
"""Name of the ledger in the run's directory; all that faults touch is below ``SITE``."""

SITE: Final = "site"

_SAMPLE: Final = 1.0
_LOOK: Final = 0.1
_ONLINE: Final = 60.0
_FILES: Final = 500
"""Files that a run has open beside its vehicles' connections."""


@dataclass(frozen=True, slots=True)
class GatewayView:
    """One gateway, or relay of a target: what is wrong with its link (empty: nothing), whether it runs, its backlog."""

    name: str
    link: str
    running: bool
    backlog: int | None


@dataclass(frozen=True, slots=True)
class View:
    """One moment of a run. ``at``: scenario seconds of ``length``. ``stage``: starting, driving, draining, drained.

    ``trouble``: why no vehicle is online, where none is.
    """

    name: str
    stage: str
    at: float
    length: float
    elapsed: float
    vehicles: int
    online: int
    published: int
    acked: int
    silent: int
    routed: int | None
    gateways: tuple[GatewayView, ...]
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Driven:
    """How the driving went. ``seconds``: real ones until the vehicles stopped.

    ``silent``: messages that vehicles did not make for want of room; ``resent``: that they sent again. ``failures``:
    what could not be done, in words.
    """

    seconds: float
    published: int
    acked: int
    silent: int
    resent: int
    connects: int
    failures: tuple[str, ...]


class Run:
    """One run of a scenario. ``show`` gets a view each second."""

    def __init__(
        self,
        scenario: Scenario,
        directory: Path,
        *,
        kafka: str | None = None,
        show: Callable[[View], None] = lambda _: None,
    ) -> None:
        """``directory``: an empty one. ``kafka``: bootstrap servers, instead of what the scenario says."""
        self.scenario = scenario
        self.directory = directory
        self.ledger_path = directory / LEDGER
        self._kafka = kafka
        self._show = show
        self._stage = "starting"
        self._pace = Pace(scenario.pace, time.monotonic())
        self._began = time.monotonic()
        self._backlogs: dict[str, int] = {}
        self._routed: int | None = None
        self._trouble = ""

    @contextlib.asynccontextmanager
    async def driven(self) -> AsyncIterator[Driven]:
        """Run it to its end; while this is open, all that was started still is, and can be read back.

        Raises Unavailable where something does not start, and ConfigError.
        """
        _make_room(sum(each.count for each in self.scenario.vehicle))
        site = self.directory / SITE
        site.mkdir(parents=True)
        with Ledger(self.ledger_path) as ledger:
            async with open_world(self.scenario, site, self._kafka) as world:
                self._introduce(ledger, world)
                driven = await self._drive(ledger, world)
                ledger.close()
                yield driven

    def _introduce(self, ledger: Ledger, world: World) -> None:
        scenario = self.scenario
        ledger.about(
            {
                "scenario": scenario.name,
                "seed": scenario.seed,
                "topics": world.topics,
                "source": world.source,
                "waybill": scenario.target is None,
                "real_time": scenario.pace == 1,
            }
        )

    async def _drive(self, ledger: Ledger, world: World) -> Driven:
        scenario = self.scenario
        async with contextlib.AsyncExitStack() as stack:
            commands: Commands | None = None
            if scenario.command and world.deployment is not None:
                behind = {name: gateway for name, _, gateway, _ in world.placed}
                commands = Commands(ledger, world.deployment, behind)
                await stack.enter_async_context(commands.followed())
            coming = moments(scenario, list(world.links), world.agents, [name for name, *_ in world.placed])
            story = Story(scenario, world, ledger, coming, commands)
            stack.push_async_callback(story.stop)
            traffic = Traffic(
                scenario,
                world.placed,
                ledger,
                on_zone=lambda car: story.car_in_zone(car, traffic),
                commands=commands is not None,
            )
            await stack.enter_async_context(traffic.connected())
            watching = asyncio.create_task(self._watch(ledger, world, story, traffic), name="run watch")
            stack.push_async_callback(_ended, watching)
            await self._online(world, traffic)
            self._began = time.monotonic()
            self._pace = Pace(scenario.pace, asyncio.get_running_loop().time())
            self._say(ledger, "driving")
            await traffic.drive(self._pace, story)
            seconds = time.monotonic() - self._began
            self._say(ledger, "draining")
            await story.finish()
            traffic.all_come_back()
            await self._drain(world, traffic, commands)
            self._say(ledger, "drained")
            await self._sample(ledger, world, story, traffic)
            return Driven(
                seconds,
                traffic.published,
                traffic.acked,
                traffic.silent,
                sum(car.client.resent for car in traffic.cars.values()),
                sum(car.client.connects for car in traffic.cars.values()),
                tuple(story.failures),
            )

    async def _online(self, world: World, traffic: Traffic) -> None:
        """Wait until all uplinks are online, and a vehicle: what was never whole cannot be cut. Raises Unavailable."""
        try:
            async with asyncio.timeout(_ONLINE):
                while not traffic.online or not await world.online():  # noqa: ASYNC110 - other processes
                    await asyncio.sleep(_LOOK)
        except TimeoutError as error:
            why = await self._why(world, traffic)
            what = "not all uplinks are online" if traffic.online else f"no vehicle is connected: {why}"
            raise Unavailable(f"{what}, after {_ONLINE:.0f} s") from error

    @staticmethod
    async def _why(world: World, traffic: Traffic) -> str:
        """Say why no vehicle is online; nothing where one is."""
        return "" if traffic.online else "; ".join(filter(None, (traffic.trouble, await world.fault())))

    async def _drain(self, world: World, traffic: Traffic, commands: Commands | None) -> None:
        """Wait until nothing waits for anything any more, at most as long as the scenario gives it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(span(self.scenario.drain, "drain")):
                while traffic.waiting or (commands is not None and commands.open):  # noqa: ASYNC110 - other processes
                    await asyncio.sleep(_LOOK)
                while not await world.empty():  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK)

    # -- what is seen of it --

    def _say(self, ledger: Ledger, stage: str) -> None:
        self._stage = stage
        ledger.note(time.time_ns(), "phase", "", stage)

    async def _watch(self, ledger: Ledger, world: World, story: Story, traffic: Traffic) -> None:
        while True:
            await self._sample(ledger, world, story, traffic)
            await asyncio.sleep(_SAMPLE)

    async def _sample(self, ledger: Ledger, world: World, story: Story, traffic: Traffic) -> None:
        self._backlogs = await world.backlogs()
        self._routed = await world.routed() or self._routed
        self._trouble = await self._why(world, traffic)
        now = time.time_ns()
        ledger.sample(now, "published", "", traffic.published)
        ledger.sample(now, "acked", "", traffic.acked)
        ledger.sample(now, "connected", "", traffic.online)
        if self._routed is not None:
            ledger.sample(now, "routed", "", self._routed)
        for name, link in world.links.items():
            ledger.sample(now, "bytes_up", name, link.bytes_up)
            ledger.sample(now, "bytes_down", name, link.bytes_down)
        for name, backlog in self._backlogs.items():
            ledger.sample(now, "backlog", name, backlog)
        self._show(self._view(world, story, traffic))

    def _view(self, world: World, story: Story, traffic: Traffic) -> View:
        return View(
            name=self.scenario.name,
            stage=self._stage,
            at=min(self._pace.now, self.scenario.length),
            length=self.scenario.length,
            elapsed=time.monotonic() - self._began,
            vehicles=len(traffic.cars),
            online=traffic.online,
            published=traffic.published,
            acked=traffic.acked,
            silent=traffic.silent,
            routed=self._routed,
            gateways=tuple(
                GatewayView(
                    name,
                    story.links.state(name),
                    name not in world.processes or world.processes[name].running,
                    self._backlogs.get(name),
                )
                for name in world.links
            ),
            trouble=self._trouble,
        )


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task that watches; raises what it ended by."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def _make_room(vehicles: int) -> None:
    """Let this process have a file for each connection. Raises ConfigError where the system does not allow it."""
    wanted = vehicles + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigError(f"{vehicles} vehicles need {wanted} open files, and {hard} are allowed: ulimit -n {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

"""What happens in a run: each moment of its scenario is a task that begins it, waits for its end, and ends it.

What was asked for and what was seen go into the ledger as counters: ``kill`` (the process's exit code), ``pause`` (its
state in /proc), ``clock`` (the process read the clock that was set), ``kafka-kill`` (the command that did it), what
happens to links (``cut``, ``black-hole``, ``half-open``, ``flap``, ``network``: the relay's own state),
``zone`` (vehicles that came into it).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from fleet_simulator.ledger import Ledger
from fleet_simulator.processes import until
from fleet_simulator.run import clocked
from fleet_simulator.run.commands import Commands
from fleet_simulator.run.links import BLACK_HOLE, CUT, HALF_OPEN, NETWORK, Links
from fleet_simulator.run.traffic import Car, Traffic
from fleet_simulator.run.world import World, start
from fleet_simulator.scenarios import Command, Fault, LinkChange, Scenario, Zone, jump
from fleet_simulator.schedule import Moment
from waybill.errors import Unavailable, WaybillError

SEEN: Final = 10.0
"""Real seconds within which what was done to a process must be seen."""

_KILLED: Final = -9
_ZONE: Final = "zone"


class Story:
    """Lets moments happen as the scenario's time passes. ``failures``: what could not be done, in words."""

    def __init__(
        self, scenario: Scenario, world: World, ledger: Ledger, moments: list[Moment], commands: Commands | None
    ) -> None:
        """``moments``: all of them, in order. ``commands``: who sends them, where there are any."""
        self.links = Links(world.links)
        self.failures: list[str] = []
        self._scenario = scenario
        self._world = world
        self._ledger = ledger
        self._commands = commands
        self._counts = self.links.counts
        self._coming = deque(moments)
        self._going: dict[asyncio.Event, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: dict[str, asyncio.Lock] = {}
        self._kafka_node = 0
        self._programs = {one.name: one.ready for one in scenario.target.process} if scenario.target else {}
        self._own = {one.name for one in scenario.gateway if one.count == "each"}
        wanted = Counter((counter(one.what), one.subject) for one in moments if not isinstance(one.what, Command))
        for (what, subject), count in sorted(wanted.items()):
            ledger.asked(what, subject, count)
        for zone in scenario.zone:
            ledger.asked("zone", zone.name, 1)

    # -- the course of time --

    def look(self, now: float) -> None:
        """Begin what begins by ``now`` and end what ends, in seconds of the scenario."""
        while self._coming and self._coming[0].at <= now:
            self._start(self._coming.popleft())
        if self._going:
            for over in [event for event, end in self._going.items() if end <= now]:
                over.set()
                del self._going[over]

    @property
    def next_at(self) -> float:
        """When something begins or ends next, in seconds of the scenario."""
        first = self._coming[0].at if self._coming else float("inf")
        return min(first, *self._going.values()) if self._going else first

    async def finish(self) -> None:
        """End everything: links whole, processes running, clocks right; then say what was seen."""
        self._coming.clear()
        for over in self._going:
            over.set()
        self._going.clear()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self.links.end_all()
        for (what, subject), count in sorted(self._counts.items()):
            self._ledger.counted(what, subject, count)

    async def stop(self) -> None:
        """Let go of what is under way, for a run that is broken off."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, moment: Moment) -> None:
        over, what = asyncio.Event(), moment.what
        if isinstance(what, LinkChange):
            doing = self._link(moment, what, over)
        elif isinstance(what, Command):
            doing = self._command(moment.subject, what)
        elif what.what == "kafka":
            doing = self._kafka(over)
        elif what.kind == "kill":
            doing = self._kill(moment.subject, over)
        elif what.kind == "pause":
            doing = self._pause(moment.subject, over)
        else:
            doing = self._clock(moment.subject, jump(what.by or 0.0, "by"), over)
        if isinstance(what, Fault) and what.kind == "kill" and moment.end == float("inf"):
            over.set()  # a process that was killed for no time is started again at once
        else:
            self._going[over] = moment.end
        self._do(doing, f"{counter(what)} {moment.subject}")

    def _do(self, doing: Coroutine[Any, Any, None], name: str) -> None:
        async def one() -> None:
            try:
                await doing
            except WaybillError as error:
                self.failures.append(f"{name}: {error}")
                self._note("fault", name, f"failed: {error}")

        task = asyncio.create_task(one(), name=f"story {name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(f"{task.get_name()}: {error!r}")

    # -- links --

    async def _link(self, moment: Moment, change: LinkChange, over: asyncio.Event) -> None:
        name, key = moment.subject, f"link {moment.number}"
        if change.kind == HALF_OPEN:
            self._note("fault", name, "half-open connections")
            await self.links.begin(name, key, HALF_OPEN)
        elif change.kind == NETWORK:
            self._note("link", name, change.network)
            await self.links.begin(name, key, NETWORK, self._scenario.networks[change.network])
            await over.wait()
            await self.links.end(name, key)
            self._note("link", name, "as before")
        elif change.kind == "flap":
            await self._flap(name, key, self._real(self._scenario.time(change.period)) / 2, over)
        else:
            self._note("down", name, change.kind)
            await self.links.begin(name, key, change.kind)
            await over.wait()
            await self.links.end(name, key)
            self._note("up", name, "")

    async def _flap(self, name: str, key: str, half: float, over: asyncio.Event) -> None:
        self._note("down", name, "flaps")
        cuts = self._counts[CUT, name]
        while not over.is_set():
            await self.links.begin(name, key, CUT)
            await asyncio.sleep(half)
            await self.links.end(name, key)
            await asyncio.sleep(half)
        self._note("up", name, "")
        # Counted as one flap: its cuts are its own affair.
        flapped, self._counts[CUT, name] = self._counts[CUT, name] - cuts, cuts
        self._counts["flap", name] += flapped > 0

    def car_in_zone(self, car: Car, traffic: Traffic) -> None:
        """A vehicle has entered a zone or left one."""
        name = car.vehicle.name
        if car.zone is not None:
            self._counts["zone", car.zone.name] += 1
        if car.gateway.rpartition("-")[0] in self._own:
            self._do(self._zone(car.gateway, car.zone), f"zone {name}")
        elif car.zone is not None:
            self._note("down", name, f"out of reach: {car.zone.name}")
            traffic.leave(car)
        else:
            self._note("up", name, "in reach")
            traffic.come_back(car)

    async def _zone(self, link: str, zone: Zone | None) -> None:
        await self.links.end(link, _ZONE)
        if zone is None:
            self._note("up", link, "")
        elif zone.network == "none":
            self._note("down", link, zone.name)
            await self.links.begin(link, _ZONE, BLACK_HOLE)
        else:
            self._note("link", link, f"{zone.name}: {zone.network}")
            await self.links.begin(link, _ZONE, NETWORK, self._scenario.networks[zone.network])

    # -- processes --

    async def _kill(self, name: str, over: asyncio.Event) -> None:
        process = self._world.processes[name]
        async with self._turn(name):
            await process.kill()
            self._counts["kill", name] += process.code == _KILLED
            self._note("down", name, "killed")
            self._note("fault", name, "SIGKILL")
            await over.wait()
            await start(process, self._programs.get(name, process.ready))
            self._note("up", name, "runs again")

    async def _pause(self, name: str, over: asyncio.Event) -> None:
        process = self._world.processes[name]
        async with self._turn(name):
            pid = process.pid
            process.pause()
            try:
                await until(f"{name} is stopped", lambda: _state(pid) == "T", SEEN)
                self._counts["pause", name] += 1
                self._note("down", name, "paused")
                self._note("fault", name, "SIGSTOP")
                await over.wait()
            finally:
                process.resume()
            self._note("up", name, "goes on")

    async def _clock(self, name: str, by: float, over: asyncio.Event) -> None:
        path = self._world.clocks[name]
        async with self._turn(name):
            clocked.put(path, by)
            self._note("fault", name, f"its clock jumps by {by:+g} s")
            await until(f"{name} looks at its clock", lambda: clocked.seen(path) == by, SEEN)
            self._counts["clock", name] += 1
            await over.wait()
            clocked.put(path, 0.0)
            self._note("fault", name, "its clock is right again")

    async def _kafka(self, over: asyncio.Event) -> None:
        kafka = self._world.kafka
        if kafka is None:
            raise Unavailable("this run has not started the Kafka itself")
        async with self._turn("kafka"):
            node = self._kafka_node = self._kafka_node % kafka.nodes + 1
            await kafka.down(node)
            self._counts["kafka-kill", "kafka"] += 1
            self._note("down", "kafka", f"broker {node} killed")
            self._note("fault", "kafka", f"SIGKILL of broker {node}")
            await over.wait()
            await kafka.up(node)
            self._note("up", "kafka", f"broker {node} runs again")

    async def _command(self, vehicle: str, command: Command) -> None:
        if self._commands is not None:
            await self._commands.send(vehicle, command)

    def _turn(self, name: str) -> asyncio.Lock:
        """Return what lets one thing at a time happen to a process."""
        return self._turns.setdefault(name, asyncio.Lock())

    def _real(self, seconds: float) -> float:
        """Return what scenario seconds are in real ones; in a run without a pace the same."""
        return seconds if self._scenario.pace == "max" else seconds / self._scenario.pace

    def _note(self, kind: str, subject: str, text: str) -> None:
        self._ledger.note(time.time_ns(), kind, subject, text)


def counter(what: LinkChange | Fault | Command) -> str:
    """Return the name of the counter that shows that something happened."""
    if isinstance(what, Command):
        return "command"
    return f"kafka-{what.kind}" if isinstance(what, Fault) and what.what == "kafka" else what.kind


def _state(pid: int) -> str:
    """Return the state of a process as /proc says it, ``T`` for stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return ""

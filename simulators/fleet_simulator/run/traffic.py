"""The vehicles of a run, each with its connection: they drive, speak, take commands, and get out of reach."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from fleet_simulator.client import Client
from fleet_simulator.devices import Broker
from fleet_simulator.ledger import Ledger, digest
from fleet_simulator.network.zones import here
from fleet_simulator.run.pace import Pace
from fleet_simulator.scenarios import Scenario, Vehicles, Zone
from fleet_simulator.vehicles import PROFILES, Route, Vehicle, cycles
from fleet_simulator.vehicles.vehicle import LONGEST

BATCH: Final = 1000
SLICE: Final = 0.05
"""Messages that are made, and real seconds that pass, before anybody else gets a turn."""

BURST: Final = 16
"""Steps of one vehicle in a row, where it is behind: a write and a read for each message is half of what it costs."""

TICK: Final = 0.02
"""Seconds between two looks at who is due, at the most often."""

STUCK: Final = 1.0
"""Real seconds without a PUBACK after which time waits for a vehicle no longer."""

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_CONNECTING: Final = 256
"""Connections that are opened at a time."""


@dataclass(slots=True, eq=False)
class Car:
    """One vehicle. ``said_at``: scenario seconds up to which it drove. ``zone``: the one that it is in.

    ``trouble``: why its last connection failed or ended, until the next one is there.
    """

    vehicle: Vehicle
    client: Client
    gateway: str
    interval: float
    zones: tuple[Zone, ...]
    said_at: float
    topics: dict[str, bytes] = field(default_factory=dict)
    reachable: asyncio.Event = field(default_factory=asyncio.Event)
    last: dict[str, int] = field(default_factory=dict)
    zone: Zone | None = None
    silent: int = 0
    trouble: str = ""


class Timed(Protocol):
    """What happens by the scenario's time beside the vehicles."""

    @property
    def next_at(self) -> float:
        """When something happens next."""

    def look(self, now: float) -> None:
        """Let happen what happens by ``now``."""


class Traffic:
    """All vehicles. ``published``, ``acked``: messages, all in all."""

    def __init__(
        self,
        scenario: Scenario,
        placed: Sequence[tuple[str, Vehicles, str, Broker]],
        ledger: Ledger,
        *,
        on_zone: Callable[[Car], None],
        commands: bool,
    ) -> None:
        """``placed``: name, table, gateway and broker of each vehicle. ``commands``: whether they listen to any.

        ``on_zone``: told of a car that enters a zone or leaves one.
        """
        self.cars: dict[str, Car] = {}
        self.published = self.acked = 0
        self.left = 0
        self._scenario = scenario
        self._ledger = ledger
        self._on_zone = on_zone
        self._commands = commands
        self._chance = random.Random(f"{scenario.seed}/traffic")  # noqa: S311 - jitter
        self._room = asyncio.Semaphore(_CONNECTING)
        self._epoch_ms = 0
        self._heap: list[tuple[float, int, Car]] = []
        self._leaving: set[asyncio.Task[None]] = set()
        routes = {
            table.name: Route(table.route, closed=table.closed) if table.route else None for table in scenario.vehicle
        }
        for number, (name, table, gateway, broker) in enumerate(placed):
            car = self._car(name, table, gateway, broker, routes[table.name])
            self.cars[name] = car
            phase = car.interval * self._chance.random()
            car.said_at = scenario.time(table.start) + phase - car.interval
            self._heap.append((scenario.time(table.start) + phase, number, car))
            ledger.behind(name, gateway)
        heapq.heapify(self._heap)

    def _car(self, name: str, table: Vehicles, gateway: str, broker: Broker, route: Route | None) -> Car:
        scenario = self._scenario
        profile = PROFILES[table.profile]
        interval = profile.period if table.interval is None else scenario.time(table.interval)
        cycle = cycles.named(table.cycle) if table.cycle else None
        vehicle = Vehicle(name, profile, scenario.seed, cycle=cycle, route=route, period=interval)

        def on_acked(stream: str, first: int, last: int) -> None:
            if stream:
                self.acked += last - first + 1
                self._ledger.acked(name, stream, first, last, time.time_ns())

        def on_order(command: str, payload: bytes) -> bytes | None:
            before = vehicle.acted.get(command, 0)
            said = vehicle.command(command, payload, self._epoch_ms + int(1000 * car.said_at))
            if vehicle.acted.get(command, 0) > before:
                self._ledger.acted(command, name, time.time_ns())
            return said.payload

        client = Client(
            name,
            broker,
            on_acked,
            on_order=on_order if self._commands else None,
            version=table.mqtt,
            window=table.window,
            queue=table.queue,
        )
        zones = tuple(zone for zone in scenario.zone if zone.vehicle in ("", table.name))
        car = Car(vehicle, client, gateway, interval, zones, 0.0)
        car.reachable.set()
        return car

    # -- connections --

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep every vehicle connected; at the end all say good-bye."""
        keeping = [asyncio.create_task(self._keep(car), name=f"vehicle {name}") for name, car in self.cars.items()]
        keeping.append(asyncio.create_task(self._ping(), name="vehicles ping"))
        try:
            yield
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.wait(keeping)
            await asyncio.gather(*(car.client.disconnect() for car in self.cars.values()), *self._leaving)
        for task in keeping:
            if not task.cancelled():
                task.result()  # none ends by itself but by an error

    async def _keep(self, car: Car) -> None:
        pause = _FIRST_PAUSE
        while True:
            await car.reachable.wait()
            try:
                async with self._room:
                    await car.client.connect()
            except OSError as error:
                car.trouble = str(error)
            else:
                car.trouble = ""
                pause = _FIRST_PAUSE
                car.client.flush()
                await car.client.closed.wait()
                car.trouble = car.client.error
            await asyncio.sleep(self._chance.uniform(0, pause))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = asyncio.get_running_loop().time()
            for car in self.cars.values():
                car.client.ping(now)

    @property
    def online(self) -> int:
        """Vehicles that are connected."""
        return sum(car.client.connected for car in self.cars.values())

    @property
    def trouble(self) -> str:
        """Why no vehicle is connected, as one that tries to be was told; empty where one is."""
        if self.online:
            return ""
        return next((car.trouble for car in self.cars.values() if car.reachable.is_set() and car.trouble), "")

    @property
    def waiting(self) -> int:
        """Messages that await their PUBACK."""
        return sum(car.client.waiting for car in self.cars.values())

    @property
    def silent(self) -> int:
        """Messages that vehicles did not make because their queue was full."""
        return sum(car.silent for car in self.cars.values())

    # -- what they say --

    async def drive(self, pace: Pace, story: Timed) -> None:
        """Let them drive to the end of the scenario; ``story`` is told the time at least each ``TICK``."""
        loop = asyncio.get_running_loop()
        end = self._scenario.length
        wait_for = float("inf")
        self._epoch_ms = time.time_ns() // 1_000_000
        if self._scenario.pace != 1:  # what is told quickly happened before now, and not in times to come
            self._epoch_ms -= int(1000 * end)
        ahead = max(
            BATCH / sum(1 / car.interval for car in self.cars.values()),
            BURST / 2 * min(car.interval for car in self.cars.values()),
        )
        while True:
            next_due = min(max(self._heap[0][0], min(self._heap[0][0] + ahead, story.next_at)), end)
            now = pace.advance(loop.time(), next_due, wait_for=wait_for)
            story.look(now)
            if now >= end <= self._heap[0][0]:
                return
            wait_for = self._speak(now, loop.time(), end)
            waits = TICK if wait_for < float("inf") else min(TICK, pace.pause_until(min(self._heap[0][0], end)))
            await asyncio.sleep(waits / 20 if wait_for < float("inf") else waits)

    def _speak(self, now: float, real: float, end: float) -> float:
        """Let those speak who are due by ``now``; return since when one is due for whom time waits."""
        heap, at_ns = self._heap, time.time_ns()
        until, enough = min(now, math.nextafter(end, 0)), self.published + BATCH
        wait_for = float("inf")
        patient = self._scenario.pace != 1
        loop = asyncio.get_running_loop()
        stop = loop.time() + SLICE
        while self.published < enough and loop.time() < stop:
            due, number, car = heap[0]
            if due > until:
                break
            client = car.client
            mute = not client.has_room
            if mute and patient and client.connected and real - client.moved < STUCK:
                wait_for = due
                break
            heapq.heapreplace(heap, (self._drive(car, due, until, at_ns, mute=mute), number, car))
            client.flush()
            if car.zones:
                self._look_round(car)
        return wait_for

    def _drive(self, car: Car, due: float, until: float, at_ns: int, *, mute: bool) -> float:
        """Let a vehicle drive on and say what it has to say by ``until``; return when it is due next.

        ``mute``: it has no room, so it says nothing.
        """
        client, vehicle = car.client, car.vehicle
        first: dict[str, int] = {}
        content: dict[str, bytearray] = {}
        for _ in range(BURST):
            now_ms = self._epoch_ms + int(1000 * due)
            for said in vehicle.step(now_ms, min(due - car.said_at, LONGEST), mute=mute):
                stream = said.stream
                if (topic := car.topics.get(stream)) is None:
                    topic = self._scenario.topic.format(vehicle=vehicle.name, stream=stream).encode()
                    car.topics[stream] = topic
                first.setdefault(stream, said.seq)
                content.setdefault(stream, bytearray()).extend(digest(said.payload))
                car.last[stream] = said.seq
                client.offer(topic, said.payload, stream, said.seq)
            car.silent += mute
            car.said_at = due
            due += car.interval
            if due > until or mute or not client.has_room:
                break
        for stream, seq in first.items():  # before anything is sent
            last = car.last[stream]
            self._ledger.published(vehicle.name, stream, seq, last, at_ns, content[stream])
            self.published += last - seq + 1
        return due

    def _look_round(self, car: Car) -> None:
        """See whether a vehicle has entered or left a zone."""
        zone = here(car.zones, car.vehicle.metre)
        if zone is not car.zone:
            car.zone = zone
            self._on_zone(car)

    def leave(self, car: Car) -> None:
        """Let a vehicle be out of reach of its gateway."""
        if car.reachable.is_set():
            car.reachable.clear()
            self.left += 1
            task = asyncio.create_task(car.client.leave(), name=f"{car.vehicle.name} leaves")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def come_back(self, car: Car) -> None:
        """Let it be in reach again."""
        car.reachable.set()

    def all_come_back(self) -> None:
        """Let all be in reach, for the end."""
        for car in self.cars.values():
            car.zone = None
            car.reachable.set()

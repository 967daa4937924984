"""Many vehicles at once: each drives, speaks through a device of its own, and knows what was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping

from fleet_simulator.devices import Broker, Device
from fleet_simulator.ledger import Ledger, digest
from fleet_simulator.processes import until
from fleet_simulator.vehicles import TELEMETRY, Vehicle
from fleet_simulator.verdict import Comparison

TOPIC = "vehicles/{vehicle}/telemetry"


class Fleet:
    """Vehicles by id, each with the broker that it speaks to."""

    def __init__(
        self,
        brokers: Mapping[str, Broker],
        *,
        seed: int = 0,
        interval: float = 1.0,
        topic: str = TOPIC,
        ledger: Ledger | None = None,
    ) -> None:
        """``interval``: seconds between two messages of a vehicle. ``topic``: with the placeholder {vehicle}."""
        on_acked = None if ledger is None else recorder(ledger)
        self.devices = {
            name: Device(name, broker, seed=seed, on_acked=on_acked) for name, broker in sorted(brokers.items())
        }
        self._ledger = ledger
        self._interval = interval
        self._seed = seed
        self._topic = topic
        self._drivers: list[asyncio.Task[None]] = []
        self._going = asyncio.Event()
        self._going.set()

    @contextlib.asynccontextmanager
    async def driving(self) -> AsyncIterator[None]:
        """Connect and drive; at the end disconnect. ``halt`` ends the driving earlier."""
        tasks = [asyncio.create_task(one.run(), name=f"device {one.name}") for one in self.devices.values()]
        self._drivers = [
            asyncio.create_task(self._drive(one), name=f"driver {one.name}") for one in self.devices.values()
        ]
        tasks += self._drivers
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()  # no task ends by itself but by an error

    def halt(self) -> None:
        """Let the vehicles say nothing new; what was said is still resent until it is acknowledged."""
        for task in self._drivers:
            task.cancel()

    def hold(self) -> None:
        """Let the vehicles say nothing new until ``go_on``."""
        self._going.clear()

    def go_on(self) -> None:
        """Let them speak again."""
        self._going.set()

    async def settled(self, patience: float) -> None:
        """Wait until everything published is acknowledged. Raises Unavailable."""
        await until("every vehicle's messages acknowledged", lambda: self.waiting == 0, patience)

    @property
    def acked(self) -> int:
        """Messages acknowledged to all vehicles."""
        return sum(one.acked.count for one in self.devices.values())

    @property
    def waiting(self) -> int:
        """Messages that await their acknowledgement."""
        return sum(one.waiting for one in self.devices.values())

    @property
    def connected(self) -> int:
        """Vehicles that are connected."""
        return sum(one.connected for one in self.devices.values())

    def into(self, comparison: Comparison) -> None:
        """Tell ``comparison`` what was published and acknowledged."""
        for one in self.devices.values():
            if one.published:
                comparison.published(one.name, TELEMETRY, 1, one.published)
            for first, last in one.acked:
                comparison.acked(one.name, TELEMETRY, first, last)

    async def _drive(self, device: Device) -> None:
        vehicle = Vehicle(device.name, seed=self._seed, period=self._interval)
        topic = self._topic.format(vehicle=device.name)
        loop = asyncio.get_running_loop()
        # Spread over the interval, the same way each time.
        due = loop.time() + self._interval * (hash_of(device.name) % 1000) / 1000
        while True:
            await asyncio.sleep(due - loop.time())
            await self._going.wait()
            for said in vehicle.step(time.time_ns() // 1_000_000, self._interval):
                if said.stream == TELEMETRY:
                    if self._ledger is not None:
                        now, content = time.time_ns(), digest(said.payload)
                        self._ledger.published(device.name, TELEMETRY, said.seq, said.seq, now, content)
                    await device.publish(topic, said.payload, said.seq)
            due = max(due + self._interval, loop.time())


def recorder(ledger: Ledger) -> Callable[[str, int], None]:
    """Return what notes in ``ledger`` that a message of a vehicle was acknowledged."""

    def acked(vehicle: str, seq: int) -> None:
        ledger.acked(vehicle, TELEMETRY, seq, seq, time.time_ns())

    return acked


def hash_of(name: str) -> int:
    """Return a number for ``name`` that is the same in every process."""
    return int.from_bytes(name.encode()[-8:], "big")

"""Replay of recorded drives: each row of a CSV file becomes a message, at the pace of the recording or faster.

A message is a JSON object: the row's columns (numbers as they are written, empty fields null), ``vehicle`` and ``seq``,
which counts the vehicle's rows from 1. All files start together, each at its own first row. The files are read
twice: once to check everything, so that nothing is sent of what cannot be sent whole, then to send.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from fleet_simulator.devices import Broker, Device
from fleet_simulator.fleet import TOPIC, recorder
from fleet_simulator.ledger import Ledger, digest
from fleet_simulator.vehicles import TELEMETRY
from fleet_simulator.vehicles.drives import TIME_COLUMNS, Row, json_value, rows, seconds
from waybill.errors import ConfigError

MOST_VEHICLES: Final = 1000
"""Each vehicle is a connection of this one process."""

_LOOK: Final = 0.1
_OWN: Final = ("vehicle", "seq")


@dataclass(frozen=True, slots=True)
class Replay:
    """What to replay. ``speed``: times real time, None for as fast as it is acknowledged.

    ``id_from``: column with the vehicle's id, None for the file's name without its ending. ``columns``: those to send,
    empty for all. ``time_column``: None for the first of TIME_COLUMNS that a file has. ``topic``: with {vehicle}.
    """

    files: tuple[Path, ...]
    speed: float | None = 1.0
    id_from: str | None = None
    columns: tuple[str, ...] = ()
    time_column: str | None = None
    topic: str = TOPIC


@dataclass(frozen=True, slots=True)
class Message:
    """One message to send: ``at`` seconds after the start, at speed 1."""

    vehicle: str
    seq: int
    at: float
    payload: bytes


@dataclass(frozen=True, slots=True)
class Checked:
    """A replay whose files are right. ``vehicles``: rows by vehicle. ``duration``: seconds at speed 1."""

    replay: Replay
    vehicles: dict[str, int]
    duration: float


def check(replay: Replay) -> Checked:
    """Read all files once. Raises ConfigError with file, line and mend."""
    if "{vehicle}" not in replay.topic or any(sign in replay.topic for sign in "+#\0"):
        raise ConfigError(f"topic {replay.topic!r}: write {{vehicle}} for the vehicle's id, and no wildcard")
    vehicles: dict[str, int] = {}
    files: dict[str, Path] = {}
    duration = 0.0
    seen: set[Path] = set()
    for path in replay.files:
        if path.resolve() in seen:
            raise ConfigError(f"{path} is named twice: name it once")
        seen.add(path.resolve())
        empty = True
        for message in messages(replay, path):
            if files.setdefault(message.vehicle, path) != path:
                raise ConfigError(
                    f"{path}: vehicle {message.vehicle!r} is in {files[message.vehicle]} too: its messages would have "
                    "no order; put its rows into one file, or rename one of the files"
                )
            vehicles[message.vehicle] = message.seq
            duration = max(duration, message.at)
            empty = False
            if len(vehicles) > MOST_VEHICLES:
                raise ConfigError(f"{path}: more than {MOST_VEHICLES} vehicles, which is too many for one process")
        if empty:
            raise ConfigError(f"{path}: there is no row below the column names: nothing to replay")
    return Checked(replay, vehicles, duration)


def messages(replay: Replay, path: Path) -> Iterator[Message]:
    """Yield what a file becomes, in its order. Raises ConfigError with file, line and mend."""
    counts: dict[str, int] = {}
    clock: str | None = None
    wanted: tuple[str, ...] = ()
    first = last = 0.0
    for number, row in enumerate(rows(path)):
        if number == 0:
            wanted, clock = _columns(replay, path, row)
        if clock is not None:
            now = seconds(path, row, clock)
            if number == 0:
                first = last = now
            if now < last:
                raise ConfigError(
                    f"{path}:{row.line}: {clock} goes back from {last:g} to {now:g}: sort the rows, name another "
                    "column with --time-column, or use --speed max"
                )
            last = now
        vehicle = path.stem if replay.id_from is None else row.fields[replay.id_from].strip()
        if not vehicle or any(sign in vehicle for sign in "/+#\0"):
            raise ConfigError(
                f"{path}:{row.line}: {vehicle!r} cannot name a vehicle: an id is a level of an MQTT topic, so it is "
                "not empty and has no '/', '+' or '#'; rename the file or use --id-from"
            )
        seq = counts[vehicle] = counts.get(vehicle, 0) + 1
        said: dict[str, object] = {name: json_value(row.fields[name]) for name in wanted}
        said |= {"vehicle": vehicle, "seq": seq}
        yield Message(vehicle, seq, last - first, msgspec.json.encode(said))


def _columns(replay: Replay, path: Path, row: Row) -> tuple[tuple[str, ...], str | None]:
    """Return the columns to send and the one that has the time."""
    there = row.fields
    for option, names in (
        ("--columns", replay.columns),
        ("--id-from", [replay.id_from] if replay.id_from else []),
        ("--time-column", [replay.time_column] if replay.time_column else []),
    ):
        for name in names:
            if name not in there:
                raise ConfigError(f"{path}:1: no column {name!r} for {option}; there are: {', '.join(there)}")
    wanted = replay.columns or tuple(there)
    for name in _OWN:
        if name in wanted and name != replay.id_from:
            others = ",".join(column for column in wanted if column not in _OWN)
            raise ConfigError(
                f"{path}:1: a column is named {name!r}, as a field that replay adds is: leave it out with "
                f"--columns {others}" + (f", or take the id from it with --id-from {name}" if name == _OWN[0] else "")
            )
    if replay.speed is None:
        return wanted, None
    clock = replay.time_column or next((name for name in TIME_COLUMNS if name in there), None)
    if clock is None:
        raise ConfigError(
            f"{path}:1: none of the columns {', '.join(there)} is known as the time: name it with --time-column, "
            "or use --speed max"
        )
    return wanted, clock


@dataclass(slots=True)
class Progress:
    """How far a replay is. ``busy``: senders that wait for a device. ``moved``: loop time of the last step ahead."""

    rows: int
    published: int = 0
    acked: int = 0
    devices: dict[str, Device] = field(default_factory=dict)
    busy: int = 0
    moved: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every row was acknowledged."""
        return self.acked == self.rows

    def stuck(self, now: float, patience: float) -> bool:
        """Whether something waits and nothing has moved for ``patience`` seconds."""
        if not (self.busy or any(one.waiting for one in self.devices.values())):
            self.moved = now
        return now - self.moved > patience

    def why(self) -> str:
        """Say why it does not go on, in the words of a device."""
        return next((one.error for one in self.devices.values() if one.error), "no acknowledgement came")


async def run(
    checked: Checked,
    broker: Broker,
    *,
    patience: float = 60.0,
    ledger: Ledger | None = None,
    tell: Callable[[Progress], None] = lambda _: None,
    window: int = 100,
) -> Progress:
    """Send everything; return when all is acknowledged, or nothing moved for ``patience`` seconds.

    ``tell`` is called several times a second. ``ledger`` takes what is published and acknowledged.
    """
    loop = asyncio.get_running_loop()
    progress = Progress(sum(checked.vehicles.values()), moved=loop.time())
    noted = None if ledger is None else recorder(ledger)

    def on_acked(vehicle: str, seq: int) -> None:
        progress.acked += 1
        progress.moved = loop.time()
        if noted is not None:
            noted(vehicle, seq)

    progress.devices = {
        name: Device(name, broker, window=window, commands=False, on_acked=on_acked) for name in checked.vehicles
    }
    start = loop.time()
    tasks = [asyncio.create_task(one.run(), name=f"device {one.name}") for one in progress.devices.values()]
    tasks += [
        asyncio.create_task(_send(checked.replay, path, start, progress, ledger), name=f"replay {path}")
        for path in checked.replay.files
    ]
    try:
        while not (progress.complete or progress.stuck(loop.time(), patience)):
            await asyncio.wait(tasks, timeout=_LOOK, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
            tell(progress)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return progress


async def _send(replay: Replay, path: Path, start: float, progress: Progress, ledger: Ledger | None) -> None:
    loop = asyncio.get_running_loop()
    for message in messages(replay, path):
        if replay.speed is not None:
            await asyncio.sleep(start + message.at / replay.speed - loop.time())
        device = progress.devices[message.vehicle]
        if ledger is not None:
            content = digest(message.payload)
            ledger.published(message.vehicle, TELEMETRY, message.seq, message.seq, time.time_ns(), content)
        progress.busy += 1
        try:
            await device.publish(replay.topic.format(vehicle=message.vehicle), message.payload, message.seq)
        finally:
            progress.busy -= 1
        progress.published += 1
        progress.moved = loop.time()

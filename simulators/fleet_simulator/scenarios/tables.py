"""What a scenario holds: one TOML file, read into frozen structs.

All times are the scenario's own: with ``pace = 60`` an hour of it takes a minute. A time is a number of seconds, a text
with a unit (``"90s"``, ``"5m"``, ``"2h"``, ``"7d"``, ``"200ms"``), or a share of the whole run (``"25%"``), which grows
with ``--seconds``. Only ``drain`` and the ``expires`` of commands are in real seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from fleet_simulator.network.profiles import PROFILES, Model
from waybill.errors import ConfigError

Time = float | int | str
"""Seconds, or a text with a unit or a percent sign."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TIME: Final = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>ms|s|m|h|d|%)")


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"seconds_for": "for"}):
    """A table of the file."""


class When(Table, frozen=True):
    """When something happens: at ``at``; then, until ``until``, each ``every``, or by chance each ``mean`` on average.

    ``seconds_for`` (in the file ``for``): how long it lasts. ``pick``: at how many of those named, drawn anew each
    time; 0 for all.
    """

    at: Time = 0.0
    until: Time = "100%"
    every: Time | None = None
    mean: Time | None = None
    seconds_for: Time = 0.0
    pick: int = 0


class Target(Table, frozen=True):
    """Somebody else's broker and Kafka in Waybill's place.

    ``mqtt``: where the vehicles connect, a URL. ``kafka``: bootstrap servers. ``topic``: where the messages arrive.
    ``process``: programs that this run starts, stops and may kill. ``link``: relays that this run puts between them.
    """

    mqtt: str
    kafka: str = ""
    topic: str = ""
    process: tuple[Program, ...] = ()
    link: tuple[Relay, ...] = ()


class Program(Table, frozen=True):
    """A program of the target. ``ready``: a text that it says, or an address HOST:PORT that answers, once it serves."""

    name: str
    command: tuple[str, ...]
    ready: str = ""


class Relay(Table, frozen=True):
    """A relay of the target: listens at ``listen`` and passes on to ``to``, both HOST:PORT."""

    name: str
    listen: str
    to: str
    network: str = ""


class Kafka(Table, frozen=True):
    """The Kafka behind Waybill's ingest; without this table it writes an embedded log.

    ``bootstrap``: its servers; empty where ``start`` prints them. ``start``, ``stop``, ``down``, ``up``: commands with
    which this run starts a Kafka of its own, stops it at the end, kills a broker and starts that again. ``{directory}``
    in them is a new directory, ``{node}`` the number of a broker, 1 to ``nodes``.
    """

    bootstrap: str = ""
    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    down: tuple[str, ...] = ()
    up: tuple[str, ...] = ()
    nodes: int = 1


class Gateways(Table, frozen=True):
    """Gateways that are alike, named ``NAME-1``, ``NAME-2`` and so on.

    ``count``: how many, or ``"each"`` for one on each vehicle that names it. ``network``: of the uplink. ``agent``:
    tables for the agents' configuration, as they stand in agent.toml.
    """

    name: str
    count: int | Literal["each"] = 1
    network: str = ""
    agent: Mapping[str, Any] = {}


class Vehicles(Table, frozen=True):
    """Vehicles that are alike, named ``NAME-1``, ``NAME-2`` and so on.

    ``profile``: see :mod:`fleet_simulator.vehicles.profiles`. ``gateway``: the [[gateway]] behind which they are,
    spread evenly. ``interval``: between two telemetry messages of one; None for what its profile has. ``start``: when
    the first is said. ``mqtt``: version. ``window``: messages that may wait for their PUBACK on the wire. ``queue``:
    messages that a vehicle keeps while it has no connection; then it says nothing new.

    ``cycle``: what is driven, see :mod:`fleet_simulator.vehicles.cycles`; empty for one that the profile has.
    ``route``: points, each latitude, longitude (degrees, WGS 84) and, if known, altitude (m); empty for a made-up one.
    ``closed``: whether the last point is joined to the first; else it is there and back.
    """

    name: str
    count: int = 1
    profile: str = "car"
    gateway: str = ""
    interval: Time | None = None
    mqtt: Literal["3.1.1", "5"] = "3.1.1"
    window: int = 100
    queue: int = 1000
    start: Time = 0.0
    cycle: str = ""
    route: tuple[tuple[float, ...], ...] = ()
    closed: bool = True


class LinkChange(When, frozen=True):
    """Something happens to links.

    ``kind``: ``cut`` (reset, then refused), ``black-hole`` (nothing passes, nobody hears of it), ``half-open`` (the
    cloud's side is reset, the gateway's hears nothing), ``flap`` (cut and whole in turns of ``period``), ``network``
    (another one, named by ``network``). ``link``: the [[gateway]] or one of its gateways, or a relay of the target;
    empty for all.
    """

    kind: Literal["cut", "black-hole", "half-open", "flap", "network"] = "cut"
    link: str = ""
    network: str = ""
    period: Time = 1.0


class Zone(Table, frozen=True):
    """A part of the route where vehicles have a bad network or none, in metres from the route's first point.

    ``first`` to ``last``, and again ``every`` so many metres. ``network``: what there is of one there, ``"none"`` by
    default. On a vehicle with a gateway of its own it holds for that gateway's uplink, else for the vehicle's way to
    its gateway, which it leaves and comes back to.
    """

    name: str
    first: float
    last: float
    every: float = 0.0
    vehicle: str = ""
    network: str = "none"


class Fault(When, frozen=True):
    """Something happens to a process.

    ``kind``: ``kill`` (SIGKILL; started again after ``for``), ``pause`` (SIGSTOP, SIGCONT after ``for``), ``clock``
    (its wall clock jumps by ``by``, and back after ``for`` if that is given). ``what``: ``agent``, ``ingest``,
    ``kafka``, or the name of a program of the target. ``gateway``: whose agent; empty for all.
    """

    kind: Literal["kill", "pause", "clock"] = "kill"
    what: str = "agent"
    gateway: str = ""
    by: Time | None = None


class Command(When, frozen=True):
    """Commands for vehicles. ``expires``: real seconds after it was sent. ``vehicle``: a [[vehicle]]; empty for all."""

    name: str = "horn"
    vehicle: str = ""
    payload: Mapping[str, Any] = {}
    expires: Time = "10m"
    pick: int = 1


class Scenario(Table, frozen=True):
    """The whole file. ``pace``: scenario seconds in a real one, or ``"max"``: as fast as it is acknowledged."""

    vehicle: tuple[Vehicles, ...]
    name: str = ""
    about: str = ""
    seconds: Time = 60.0
    pace: float | Literal["max"] = 1.0
    seed: int = 1
    drain: Time = 120.0
    topic: str = "vehicles/{vehicle}/{stream}"
    target: Target | None = None
    kafka: Kafka | None = None
    gateway: tuple[Gateways, ...] = ()
    network: Mapping[str, Model] = {}
    link: tuple[LinkChange, ...] = ()
    zone: tuple[Zone, ...] = ()
    fault: tuple[Fault, ...] = ()
    command: tuple[Command, ...] = ()

    @property
    def length(self) -> float:
        """How long the vehicles drive, in seconds of the scenario."""
        return span(self.seconds, "seconds")

    def has_own_gateway(self, vehicles: Vehicles) -> bool:
        """Whether each of these vehicles has a gateway of its own."""
        return any(each.name == vehicles.gateway and each.count == "each" for each in self.gateway)

    @property
    def networks(self) -> dict[str, Model]:
        """Every network by name: built-in ones, then those of the file."""
        return {**PROFILES, **self.network}

    def gateways(self) -> dict[str, list[str]]:
        """Return the names of the gateways of each [[gateway]], by its name."""
        found: dict[str, list[str]] = {}
        for each in self.gateway:
            count = each.count
            if count == "each":
                count = sum(vehicles.count for vehicles in self.vehicle if vehicles.gateway == each.name)
            found[each.name] = [f"{each.name}-{number}" for number in range(1, count + 1)]
        return found

    def time(self, value: Time, field: str = "time") -> float:
        """Return a time of this scenario in seconds. Raises ConfigError."""
        return span(value, field, self.length)


def span(value: Time, field: str, whole: float | None = None) -> float:
    """Return ``value`` in seconds; ``whole``: what 100 % are, None where a share has no meaning. Raises ConfigError."""
    if isinstance(value, int | float):
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{field}: {value!r} is no time: write seconds, 0 or more")
        return float(value)
    found = _TIME.fullmatch(value.strip())
    if not found or (found["unit"] == "%" and whole is None):
        share = "" if whole is None else ', or a share of the run such as "25%"'
        raise ConfigError(f'{field}: {value!r} is no time: write seconds, or a text such as "90s", "5m", "7d"{share}')
    number = float(found["number"])
    return number * whole / 100 if found["unit"] == "%" and whole is not None else number * _UNITS[found["unit"]]


def jump(value: Time, field: str) -> float:
    """Return by how many seconds a clock jumps; with a minus in front, back. Raises ConfigError."""
    if isinstance(value, str) and value.startswith("-"):
        return -span(value[1:], field)
    return -span(-value, field) if not isinstance(value, str) and value < 0 else span(value, field)

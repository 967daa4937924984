"""Whether everything in a scenario fits together; every error names the field and the mend."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

import msgspec

from fleet_simulator.devices import Broker
from fleet_simulator.network.profiles import PROFILES as NETWORKS
from fleet_simulator.scenarios.tables import (
    Command,
    Fault,
    Gateways,
    LinkChange,
    Scenario,
    Target,
    Vehicles,
    When,
    Zone,
    jump,
    span,
)
from fleet_simulator.vehicles import PROFILES, Route, cycles
from fleet_simulator.vehicles.commands import Done, understood
from fleet_simulator.vehicles.vehicle import LONGEST
from waybill.config import address
from waybill.errors import ConfigError

MOST_VEHICLES: Final = 20_000
"""Each is a connection of this one process."""

MOST_GATEWAYS: Final = 2_000
"""Each is a process."""

MOST_NAME: Final = 48
"""Letters of a vehicle's or a gateway's name before its number."""

MOST_PACE: Final = 1_000_000
MOST_WINDOW: Final = 65_535

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def checked(scenario: Scenario, where: str) -> Scenario:
    """Return ``scenario`` where everything in it fits together; ``where`` names it in errors. Raises ConfigError."""
    try:
        _check_run(scenario)
        _check_networks(scenario)
        _check_target(scenario)
        names: set[tuple[str, str]] = set()
        for gateways in scenario.gateway:
            _check_gateways(scenario, gateways, names)
        for vehicles in scenario.vehicle:
            _check_vehicles(scenario, vehicles, names)
        _check_numbers(scenario)
        for number, link in enumerate(scenario.link, 1):
            _check_link(scenario, link, f"[[link]] number {number}")
        for number, fault in enumerate(scenario.fault, 1):
            _check_fault(scenario, fault, f"[[fault]] number {number}")
        for zone in scenario.zone:
            _check_zone(scenario, zone, f"[[zone]] {zone.name!r}")
        for number, command in enumerate(scenario.command, 1):
            _check_command(scenario, command, f"[[command]] number {number}")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return scenario


def late(scenario: Scenario) -> list[str]:
    """Return what would begin only when the run has ended, each with its place and its mend."""
    tables = (("link", scenario.link), ("fault", scenario.fault), ("command", scenario.command))
    return [
        f"[[{name}]] number {number} at: {when.at!r} is not before the end, {scenario.length:g} s: it never happens"
        for name, those in tables
        for number, when in enumerate(those, 1)
        if scenario.time(when.at) >= scenario.length
    ]


def _check_run(scenario: Scenario) -> None:
    if scenario.length <= 0:
        raise ConfigError("seconds: the run has to last; write for example 60")
    if scenario.pace != "max" and not 0 < scenario.pace <= MOST_PACE:
        raise ConfigError(f'pace: {scenario.pace:g}: write 1 for real time, 60 for an hour a minute, or "max"')
    if abs(scenario.seed) >= 1 << 63:
        raise ConfigError(f"seed: {scenario.seed}: write a number of 18 digits at most")
    span(scenario.drain, "drain")
    around = scenario.topic.replace("{vehicle}", "", 1).replace("{stream}", "", 1)
    if len(around) != len(scenario.topic) - len("{vehicle}{stream}") or any(sign in around for sign in "{}+#\0"):
        raise ConfigError(f"topic: {scenario.topic!r}: write {{vehicle}} and {{stream}} once each, and no wildcard")
    if (kafka := scenario.kafka) is not None:
        if bool(kafka.bootstrap) == bool(kafka.start):
            raise ConfigError("[kafka] give either bootstrap (one that runs) or start (a command that starts one)")
        if bool(kafka.start) != bool(kafka.stop):
            raise ConfigError("[kafka] start and stop go together: what begins it, and what ends it")
        if bool(kafka.down) != bool(kafka.up):
            raise ConfigError("[kafka] down and up go together: what kills a broker, and what starts it again")
        if kafka.nodes < 1:
            raise ConfigError(f"[kafka] nodes: {kafka.nodes}: at least 1")


def _check_networks(scenario: Scenario) -> None:
    for name, model in scenario.network.items():
        if name in NETWORKS or name == "none":
            raise ConfigError(f"[network.{name}] is built in: take another name")
        model.check(f"[network.{name}]")


def _check_target(scenario: Scenario) -> None:
    target = scenario.target
    if target is None:
        if not scenario.gateway:
            raise ConfigError("there is no [[gateway]]: add one, or [target] for a broker of others")
        return
    if scenario.gateway or scenario.kafka:
        raise ConfigError("[target] takes Waybill's place: leave [[gateway]] and [kafka] out")
    Broker.parse(target.mqtt)
    if bool(target.kafka) != bool(target.topic):
        raise ConfigError("[target] kafka and topic go together: what is read back, and where")
    _check_parts(scenario, target)


def _check_parts(scenario: Scenario, target: Target) -> None:
    names: set[str] = set()
    for kind, those in (("process", target.process), ("link", target.link)):
        for each in those:
            if not _NAME.fullmatch(each.name) or each.name in names:
                raise ConfigError(f"[[target.{kind}]] name {each.name!r}: letters, digits, - and _, each name once")
            names.add(each.name)
    for program in target.process:
        if not program.command:
            raise ConfigError(f"[[target.process]] {program.name!r} command: it is empty")
    for relay in target.link:
        where = f"[[target.link]] {relay.name!r}"
        address(relay.listen, f"{where} listen")
        address(relay.to, f"{where} to")
        if relay.network:
            _known(relay.network, scenario.networks, f"{where} network")


def _check_name(kind: str, name: str, count: int, names: set[tuple[str, str]]) -> None:
    if not _NAME.fullmatch(name) or len(name) > MOST_NAME:
        raise ConfigError(f"[[{kind}]] name {name!r}: letters, digits, - and _, at most {MOST_NAME}")
    if (kind, name) in names:
        raise ConfigError(f"[[{kind}]] {name!r} is there twice: rename one")
    names.add((kind, name))
    if count < 1:
        raise ConfigError(f"[[{kind}]] {name!r} count: {count}: at least 1")


def _check_gateways(scenario: Scenario, gateways: Gateways, names: set[tuple[str, str]]) -> None:
    _check_name("gateway", gateways.name, 1 if gateways.count == "each" else gateways.count, names)
    where = f"[[gateway]] {gateways.name!r}"
    if gateways.network:
        _known(gateways.network, scenario.networks, f"{where} network")
    if not any(vehicles.gateway == gateways.name for vehicles in scenario.vehicle):
        raise ConfigError(f"{where}: no [[vehicle]] is behind it: take it out")
    for key, value in gateways.agent.items():
        if key in {"gateway", "data", "listener", "uplink"} or not isinstance(value, dict | list):
            raise ConfigError(f"{where} agent.{key}: the run sets that itself; agent takes tables such as [buffer]")


def _check_vehicles(scenario: Scenario, vehicles: Vehicles, names: set[tuple[str, str]]) -> None:
    _check_name("vehicle", vehicles.name, vehicles.count, names)
    where = f"[[vehicle]] {vehicles.name!r}"
    if scenario.target is None:
        _known(vehicles.gateway, [each.name for each in scenario.gateway], f"{where} gateway")
    elif vehicles.gateway:
        raise ConfigError(f"{where} gateway: with [target] all vehicles speak to its mqtt: take it out")
    _known(vehicles.profile, PROFILES, f"{where} profile")
    if vehicles.cycle:
        _known(vehicles.cycle, cycles.names(), f"{where} cycle")
    if vehicles.route:
        try:
            Route(vehicles.route, closed=vehicles.closed)
        except ConfigError as error:
            raise ConfigError(f"{where} {error}") from error
    scenario.time(vehicles.start, f"{where} start")
    if vehicles.interval is not None and not 0 < span(vehicles.interval, f"{where} interval") <= LONGEST:
        raise ConfigError(f"{where} interval: more than 0, and no more than a day")
    if not 1 <= vehicles.window <= MOST_WINDOW:
        raise ConfigError(f"{where} window: {vehicles.window}: from 1 to {MOST_WINDOW}")
    if vehicles.queue < vehicles.window:
        raise ConfigError(f"{where} queue: {vehicles.queue}: no less than window, {vehicles.window}")


def _check_numbers(scenario: Scenario) -> None:
    if not scenario.vehicle:
        raise ConfigError("there is no [[vehicle]]: add one")
    if (many := sum(each.count for each in scenario.vehicle)) > MOST_VEHICLES:
        raise ConfigError(f"[[vehicle]] count: {many} vehicles; at most {MOST_VEHICLES} in one process")
    if (many := len([name for those in scenario.gateways().values() for name in those])) > MOST_GATEWAYS:
        raise ConfigError(f"[[gateway]] count: {many} gateways; at most {MOST_GATEWAYS} on one machine")


def _check_link(scenario: Scenario, link: LinkChange, where: str) -> None:
    _check_when(scenario, link, where)
    those = scenario.target.link if scenario.target else scenario.gateway
    _part_of(link.link, [each.name for each in those], f"{where} link")
    if (link.kind == "network") != bool(link.network):
        raise ConfigError(f'{where} network: goes with kind = "network", and has to be there then')
    if link.network:
        _known(link.network, scenario.networks, f"{where} network")
    if scenario.time(link.period, f"{where} period") <= 0:
        raise ConfigError(f"{where} period: more than 0")


def _check_fault(scenario: Scenario, fault: Fault, where: str) -> None:
    _check_when(scenario, fault, where)
    what = [each.name for each in scenario.target.process] if scenario.target else ["agent", "ingest", "kafka"]
    _known(fault.what, what, f"{where} what")
    _part_of(fault.gateway, [each.name for each in scenario.gateway], f"{where} gateway")
    if fault.by is not None:
        jump(fault.by, f"{where} by")
    if (fault.kind == "clock") != (fault.by is not None):
        raise ConfigError(f'{where} by: goes with kind = "clock", and has to be there then')
    if fault.kind == "clock" and fault.what != "agent":
        raise ConfigError(f'{where} what: only the clock of an "agent" can be set')
    if fault.kind == "pause" and not scenario.time(fault.seconds_for):
        raise ConfigError(f"{where} for: how long it is stopped is missing")
    if fault.what == "kafka" and (fault.kind != "kill" or not scenario.kafka or not scenario.kafka.down):
        raise ConfigError(f"{where} what: a broker of Kafka can be killed where [kafka] has down and up")


def _check_zone(scenario: Scenario, zone: Zone, where: str) -> None:
    _part_of(zone.vehicle, [each.name for each in scenario.vehicle], f"{where} vehicle")
    if not 0 <= zone.first < zone.last or (zone.every and zone.last > zone.every):
        raise ConfigError(f"{where}: first is below last, and last not above every")
    _known(zone.network, {*scenario.networks, "none"}, f"{where} network")
    there = [each for each in scenario.vehicle if zone.vehicle in ("", each.name)]
    if zone.network != "none" and not all(map(scenario.has_own_gateway, there)):
        raise ConfigError(
            f'{where} network: only a vehicle with a gateway of its own (count = "each") has one; else there is "none"'
        )


def _check_command(scenario: Scenario, command: Command, where: str) -> None:
    _check_when(scenario, command, where)
    _part_of(command.vehicle, [each.name for each in scenario.vehicle], f"{where} vehicle")
    span(command.expires, f"{where} expires")
    if scenario.target:
        raise ConfigError(f"{where}: a broker of others knows no commands of Waybill: take it out")
    payload = msgspec.json.encode({"command": command.name, **command.payload})
    for vehicles in scenario.vehicle:
        if command.vehicle in ("", vehicles.name) or command.vehicle.rpartition("-")[0] == vehicles.name:
            found = understood(PROFILES[vehicles.profile], payload)
            if isinstance(found, Done):
                raise ConfigError(f"{where} for {vehicles.name!r}: {found.error}")


def _check_when(scenario: Scenario, when: When, where: str) -> None:
    for field in ("at", "until", "every", "mean", "seconds_for"):
        value = getattr(when, field)
        name = f"{where} {'for' if field == 'seconds_for' else field}"
        if value is not None and scenario.time(value, name) <= 0 and field in {"every", "mean"}:
            raise ConfigError(f"{name}: more than 0")
    if when.every is not None and when.mean is not None:
        raise ConfigError(f"{where}: every (regular) or mean (by chance), not both")
    if when.pick < 0:
        raise ConfigError(f"{where} pick: {when.pick}: 0 for all, or how many")


def _known(name: str, names: Collection[str], where: str) -> None:
    if name not in names:
        raise ConfigError(f"{where}: there is no {name!r}; there are {', '.join(sorted(names)) or 'none'}")


def _part_of(name: str, names: Collection[str], where: str) -> None:
    """Check a name, or one with a number behind it; empty means all."""
    if name and name not in names:
        stem, dash, number = name.rpartition("-")
        if not (dash and number.isdigit() and stem in names):
            _known(name, names, where)

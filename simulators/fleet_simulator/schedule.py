"""What happens when: the tables of a scenario as one list in the order of time. Pure; the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fleet_simulator.scenarios import Command, Fault, LinkChange, Scenario, When
from waybill.errors import ConfigError

MOST: Final = 100_000
"""Moments of one run."""


@dataclass(frozen=True, slots=True, order=True)
class Moment:
    """Something that begins ``at`` seconds of the scenario and ends at ``end``; ``subject``: whom it happens to."""

    at: float
    number: int
    end: float
    what: LinkChange | Fault | Command
    subject: str


def moments(scenario: Scenario, links: Sequence[str], agents: Sequence[str], vehicles: Sequence[str]) -> list[Moment]:
    """Return all that happens. ``links``, ``agents``, ``vehicles``: the names of those that there are.

    Raises ConfigError where it is too much, or where a name fits nobody.
    """
    found: list[Moment] = []
    chance = random.Random(f"{scenario.seed}/schedule")  # noqa: S311 - the same for the same seed is the point
    for link in scenario.link:
        found += _each(scenario, link, belonging(link.link, links, "[[link]] link"), chance, len(found))
    for fault in scenario.fault:
        whom = belonging(fault.gateway, agents, "[[fault]] gateway") if fault.what == "agent" else [fault.what]
        found += _each(scenario, fault, whom, chance, len(found))
    for command in scenario.command:
        whom = belonging(command.vehicle, vehicles, "[[command]] vehicle")
        found += _each(scenario, command, whom, chance, len(found))
    return sorted(found, key=lambda one: (one.at, one.number))


def belonging(name: str, everybody: Sequence[str], where: str) -> list[str]:
    """Return those of ``everybody`` that ``name`` means: one of them, all of a group, or all where it is empty."""
    found = [one for one in everybody if name in ("", one) or one.rpartition("-")[0] == name]
    if not found:
        raise ConfigError(f"{where}: there is no {name!r}; there are {', '.join(everybody[:10])}")
    return found


def _each(
    scenario: Scenario, what: LinkChange | Fault | Command, whom: Sequence[str], chance: random.Random, number: int
) -> Iterator[Moment]:
    lasting = scenario.time(what.seconds_for)
    for at in _times(scenario, what, chance):
        for subject in sorted(chance.sample(whom, what.pick)) if 0 < what.pick < len(whom) else whom:
            number += 1
            if number > MOST:
                raise ConfigError(f"more than {MOST} things happen: let them happen less often")
            yield Moment(at, number, at + lasting if lasting else float("inf"), what, subject)


def _times(scenario: Scenario, when: When, chance: random.Random) -> Iterator[float]:
    at, until = scenario.time(when.at), min(scenario.time(when.until), scenario.length)
    if when.mean is not None:
        at += chance.expovariate(1 / scenario.time(when.mean))
    while at < until:
        yield at
        if when.every is not None:
            at += scenario.time(when.every)
        elif when.mean is not None:
            at += chance.expovariate(1 / scenario.time(when.mean))
        else:
            return

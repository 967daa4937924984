"""Scenarios: what a run of the fleet is made of. The ready ones are the TOML files beside this module."""

from fleet_simulator.scenarios.checks import checked, late
from fleet_simulator.scenarios.files import load, parse, shipped, template
from fleet_simulator.scenarios.tables import (
    Command,
    Fault,
    Gateways,
    Kafka,
    LinkChange,
    Program,
    Relay,
    Scenario,
    Target,
    Vehicles,
    When,
    Zone,
    jump,
    span,
)

__all__ = [
    "Command",
    "Fault",
    "Gateways",
    "Kafka",
    "LinkChange",
    "Program",
    "Relay",
    "Scenario",
    "Target",
    "Vehicles",
    "When",
    "Zone",
    "checked",
    "jump",
    "late",
    "load",
    "parse",
    "shipped",
    "span",
    "template",
]

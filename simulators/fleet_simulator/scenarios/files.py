"""Scenario files: found, read and checked."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

from fleet_simulator.scenarios.checks import checked, late
from fleet_simulator.scenarios.tables import Scenario
from waybill import config
from waybill.errors import ConfigError


def shipped() -> dict[str, str]:
    """Return the text of each scenario that comes with the package, by name."""
    folder = resources.files("fleet_simulator") / "scenarios"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in files}


def load(what: str) -> Scenario:
    """Read a scenario: a file, or the name of one that comes with the package. Raises ConfigError."""
    path, ready = Path(what), shipped()
    if what in ready and not path.exists():
        text, where = ready[what], f"scenario {what}"
    elif not path.exists():
        raise ConfigError(
            f"{what}: no such file, and no scenario of that name; there are {', '.join(ready)}; "
            "waybill fleet new FILE writes one to begin with"
        )
    else:
        try:
            text, where = path.read_text(encoding="utf-8"), what
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{what}: cannot be read: {error}") from error
    return parse(text, where, name=path.stem)


def parse(text: str, where: str, name: str = "") -> Scenario:
    """Read the text of a scenario; ``where`` names it in errors. Raises ConfigError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from error
    scenario = checked(config.convert({"name": name, **table}, Scenario, where), where)
    if never := late(scenario):
        raise ConfigError(f"{where}: {never[0]}")
    return scenario


def template() -> str:
    """Return a scenario with comments, for ``waybill fleet new``."""
    return (resources.files("fleet_simulator") / "scenarios" / "template" / "new.toml").read_text(encoding="utf-8")

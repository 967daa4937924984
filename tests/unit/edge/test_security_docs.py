"""docs/security.md says of every limit what is so, and its recipes are configurations that work."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import msgspec
import pytest

from edge_agent import app, config
from edge_agent.buffer.settings import BufferSettings
from edge_agent.config import EdgeConfig
from edge_agent.listener_config import LimitSettings, ListenerSettings
from waybill import auth, passwords
from waybill.mqtt.settings import Counters, Settings

TEXT = (Path(__file__).parents[3] / "docs" / "security.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| ")]
LIMITS = {row[0].strip("`"): row[1:] for row in ROWS if len(row) == 4 and row[0].startswith("`")}
PASSWORDS = {row[0]: row[1] for row in ROWS[[row[0] for row in ROWS].index("what") + 1 :]}
RECIPES = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)

UNITS = {"": 1, "s": 1, "characters": 1, "KiB": 1 << 10, "MiB": 1 << 20}


def value(text: str) -> float:
    found = re.fullmatch(r"([\d,.]+) ?([A-Za-z]*)", text)
    assert found is not None, text
    return float(found[1].replace(",", "")) * UNITS[found[2]]


def names(kind: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)}


def test_every_limit_of_the_server_is_there_with_its_default() -> None:
    shown = {name: value(row[0]) for name, row in LIMITS.items()}
    server = {field.name: field.default for field in dataclasses.fields(Settings)}
    del server["gather"], server["ephemeral"]  # no limits
    agent = msgspec.structs.asdict(LimitSettings())
    own = {"dup_window": BufferSettings().dup_window, "close_timeout": app.CLOSE_PATIENCE}
    assert shown == server | agent | own


def test_where_a_limit_is_set() -> None:
    where: dict[str, set[str]] = {}
    for name, row in LIMITS.items():
        where.setdefault(row[1], set()).add(name)
    of_listeners = names(ListenerSettings) & names(LimitSettings)
    assert where["listener"] == of_listeners
    assert where["limits"] == names(LimitSettings) - of_listeners
    assert where["buffer"] <= names(BufferSettings)
    assert set(where) == {"listener", "limits", "buffer", "–"}


def test_the_counters_that_it_names_exist() -> None:
    counters = {f"mqtt_{field.name}" for field in dataclasses.fields(Counters)}
    counters |= {f"auth_{field.name}" for field in dataclasses.fields(auth.Counters)}
    named = set(re.findall(r"`((?:mqtt|auth)_\w+)`", TEXT))
    assert named
    assert named <= counters


def test_the_limits_of_passwords() -> None:
    assert {name: value(text) for name, text in PASSWORDS.items()} == {
        "passwords that wait to be hashed": auth.LINE,
        "password file": passwords.MAX_FILE,
        "user name": passwords.MAX_USER,
        "password": passwords.MAX_PASSWORD,
        "memory that a hash in the file may ask for": max(passwords.MEMORY_RANGE) * 1024,
        "passes that it may ask for": max(passwords.PASSES_RANGE),
    }


def loaded(directory: Path, recipe: str) -> EdgeConfig:
    for name in re.findall(r'"(\w+\.(?:pem|key))"', recipe):
        (directory / name).touch()
    path = directory / "agent.toml"
    path.write_text(f'gateway = "g"\ndata = "data"\n{recipe}')
    return config.load(path)


def test_how_much_memory_all_of_it_may_take(tmp_path: Path) -> None:
    """With the defaults, for a connection over TLS, and with the recipe for a small gateway."""
    default, tls, small = re.findall(r"([\d,]+)\s(?:MiB beside|KiB a connection|MiB:)", TEXT)
    assert value(default) == pytest.approx(config.memory_ceiling(EdgeConfig("g", tmp_path)) / 2**20, rel=0.03)
    assert value(tls) == pytest.approx((Settings().ceiling(1) - Settings().ceiling()) / 2**10, rel=0.03)
    (recipe,) = (each for each in RECIPES if "max_held_all" in each)
    assert value(small) == pytest.approx(config.memory_ceiling(loaded(tmp_path, recipe)) / 2**20, rel=0.03)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_a_configuration(tmp_path: Path, recipe: str) -> None:
    read = loaded(tmp_path, recipe)
    assert read.acl
    assert not any(listener.lets_anybody for listener in read.listeners if not listener.inside)

"""docs/mqtt-conformance.md and the tests agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "mqtt-conformance.md"
STATEMENT = re.compile(r"\[MQTT-(\d+[.-]\d+\.\d+-\d+)\]")
ROW = re.compile(r"^\| \[MQTT-([^\]]+)\] \| ([^|]+) \| ([^|]+) \|$")
SECTIONS = {"## MQTT 5.0": 5, "## MQTT 3.1.1": 4}
Rows = dict[int, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """By version the statement ids and what shows them."""
    found: Rows = {4: [], 5: []}
    version = 0
    for line in TABLE.read_text().splitlines():
        version = SECTIONS.get(line, version)
        if line.startswith("| ["):
            row = ROW.match(line)
            assert row, line
            found[version].append((row[1], row[3].strip()))
    return found


def files() -> dict[str, Path]:
    paths = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert len({path.name for path in paths if "mqtt" in path.parts}) == sum("mqtt" in path.parts for path in paths)
    return {path.name: path for path in sorted(paths, key=lambda path: "mqtt" in path.parts)}


def test_every_statement_is_there_once(rows: Rows) -> None:
    for version, least in ((4, 126), (5, 227)):
        ids = [each for each, _ in rows[version]]
        assert len(set(ids)) == len(ids) >= least
        assert all(STATEMENT.fullmatch(f"[MQTT-{each}]") for each in ids)


def test_every_test_that_is_named_exists(rows: Rows) -> None:
    known = files()
    for _, shown in rows[4] + rows[5]:
        named = re.findall(r"`([^`]+)`", shown)
        assert named or shown
        assert named == [] or shown == ", ".join(f"`{each}`" for each in named)
        for each in named:
            file, _, name = each.partition("::")
            assert re.search(rf"^((async )?def {name}\(|{name} = )", known[file].read_text(), re.MULTILINE), each


def test_every_statement_that_a_test_names_is_in_the_table(rows: Rows) -> None:
    """A file named for version 5 names its statements, any other those of 3.1.1."""
    ids = {version: {each for each, _ in rows[version]} for version in rows}
    for name, path in files().items():
        version = 5 if name.startswith("test_v5") else 4
        assert set(STATEMENT.findall(path.read_text())) <= ids[version], name


def test_a_test_that_names_a_statement_is_named_by_it(rows: Rows) -> None:
    shown = {version: dict(rows[version]) for version in rows}
    for name, path in files().items():
        version = 5 if name.startswith("test_v5") else 4
        for test, doc in re.findall(r'def (test_\w+)\([^"]*?-> None:[^"\n]*\n    """([^"]*)"""', path.read_text()):
            for statement in STATEMENT.findall(doc):
                assert f"`{name}::{test}`" in shown[version][statement], (statement, test)

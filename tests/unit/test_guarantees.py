"""Every rule of docs/guarantees.md has tests, and every test that names a rule names one that is written down."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "guarantees.md").read_text()
RULES = set(re.findall(r"^\| ([BOEURTC]\d+) \|", DOCUMENT, re.MULTILINE))
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
}
NAMED = {match[1].upper() for name in TESTS if (match := re.match(r"test_([boeurtc]\d+)_", name))}


def test_every_rule_has_a_test_that_bears_its_name() -> None:
    assert not RULES - NAMED


def test_every_rule_that_a_test_names_is_written_down() -> None:
    assert not NAMED - RULES


def test_the_tests_that_the_document_names_are_there() -> None:
    assert not set(re.findall(r"`(test_\w+)`", DOCUMENT)) - TESTS

"""What `--help` says: each command in one line of 80 columns, each option explained, the same ones named the same."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from waybill.console.main import PARTS, usage

WIDTH = 76  # between the frames of 80 columns
SAME = {"--config": "FILE", "--data": "DIR", "--bootstrap": "HOST:PORT"}


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, each in getattr(command, "commands", {}).items():
        yield from commands(f"{name} {child}", each)


def part(name: str) -> Any:
    module, _, attribute = PARTS[name].app.partition(":")
    return typer.main.get_command(getattr(importlib.import_module(module), attribute))


ALL = [found for name in PARTS for found in commands(name, part(name))]


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_help_is_whole_and_lists_in_one_line_each(name: str, command: Any) -> None:
    assert command.help, f"waybill {name} has no help"
    children = getattr(command, "commands", {})
    width = max(map(len, children), default=0)
    for child, each in children.items():
        listed = each.help.split("\n\n")[0]
        assert width + 2 + len(listed) <= WIDTH, f"waybill {name} {child}: {listed!r} takes more than a line"
    for parameter in command.params:
        said = parameter.help or ""
        option = parameter.opts[0]
        assert not said[:1].islower(), f"waybill {name} {option}: {said!r}"
        assert said.endswith((".", "…")), f"waybill {name} {option}: {said!r}"
        metavar = parameter.metavar
        assert metavar or getattr(parameter, "is_flag", False), f"waybill {name} {option}: of what?"
        assert metavar == SAME.get(option, metavar), f"waybill {name} {option} {metavar}"


def test_the_parts_fit_a_terminal() -> None:
    assert all(len(line) <= 80 for line in usage().splitlines())

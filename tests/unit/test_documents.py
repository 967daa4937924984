"""The documents: what they link to is there, and the commands that they show are those of the program."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from waybill.console.main import PARTS

ROOT = Path(__file__).parents[2]
FOLDERS = ("deploy", "docs", "examples", "simulators", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BEFORE = frozenset({"sudo", "until", "while", "if", "then", "do", "exec", "!"})
SPAN = re.compile(r"`(waybill [^`]+)`")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return what a page's headings are called in links: as GitHub makes them."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> Iterator[str]:
    """Give the links of ``page`` into the repository that lead nowhere."""
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield target


def shown(text: str) -> Iterator[list[str]]:
    """Give the arguments of each ``waybill …`` in a block of shell commands."""
    for line in text.replace("\\\n", " ").splitlines():
        if "waybill" not in line:
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("();<>|&"):
                words.append(word)
                continue
            while words and (words[0] in BEFORE or re.match(r"\w+=", words[0])):
                words.pop(0)
            called = [i for i, each in enumerate(words) if Path(each).name == "waybill"]
            # Behind another program it is one where a part follows: else it may be a user, or a file.
            at = [i for i in called if i == 0 or (i + 1 < len(words) and words[i + 1] in PARTS)]
            if at:
                yield words[at[-1] + 1 :]
            words = []


def complaint(arguments: list[str], *, whole: bool) -> str | None:
    """Return what the program has against these arguments; without ``whole``, against the names of its options."""
    name, *rest = arguments or ["--help"]
    if name in {"--help", "--version"}:
        return None
    if name not in PARTS:
        return f"there is no part {name!r}"
    module, _, attribute = PARTS[name].app.partition(":")
    command: Any = typer.main.get_command(getattr(importlib.import_module(module), attribute))
    while rest and hasattr(command, "commands"):
        name, *rest = rest
        if name not in command.commands:
            return f"there is no command {name!r}"
        command = command.commands[name]
    if not whole:
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        wrong = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
        return f"there is no option {wrong[0]}" if wrong else None
    try:
        command.make_context(name, rest)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return str(error.format_message())
    return None


def wrong_commands(text: str) -> Iterator[str]:
    """Give what is wrong with the commands that a page shows: in its blocks whole ones, in its lines parts of them."""
    blocks = [body for language, body in FENCE.findall(text) if language in {"", "sh", "bash", "console"}]
    spans = [span for span in SPAN.findall(FENCE.sub("", text)) if "…" not in span and "PART" not in span]
    for whole, piece in [*((True, block) for block in blocks), *((False, span) for span in spans)]:
        for arguments in shown(piece):
            if wrong := complaint(arguments, whole=whole):
                yield f"waybill {shlex.join(arguments)}: {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(dead_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_program_takes_the_commands_that_are_shown(page: Path) -> None:
    assert list(wrong_commands(page.read_text())) == []


@pytest.mark.parametrize(
    "command",
    [
        "waybill egde run",
        "waybill edge runs",
        "waybill edge status --data var --jsn",
        "echo x | sudo /opt/waybill/bin/waybill edge passwd users",
        "until waybill cloud tail fleet.telemetry --ende | grep speed; do sleep 1; done",
    ],
)
def test_a_command_that_the_program_refuses_is_found(command: str) -> None:
    assert list(wrong_commands(f"```sh\n{command}\n```\n"))
    assert not list(wrong_commands("```sh\nwaybill edge status --data var --json  # all of it\n```\n"))


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    missing = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} - set(LINK.findall(index))
    assert not missing


ROW = re.compile(
    r"^\| `((?:edge_agent|cloud_ingest|shared/waybill|simulators/fleet_simulator)/[^`]*)` \| (.*) \|$", re.MULTILINE
)


def test_the_architecture_names_what_is_there() -> None:
    rows = dict(ROW.findall((ROOT / "ARCHITECTURE.md").read_text()))
    packages = {
        f"{each.parent.relative_to(ROOT)}/"
        for top in ("edge_agent", "cloud_ingest", "shared/waybill", "simulators/fleet_simulator")
        for each in (ROOT / top).rglob("__init__.py")
    }
    assert set(rows) == packages - {"simulators/fleet_simulator/scenarios/template/"}
    for folder, text in rows.items():
        for name in re.findall(r"`(\w+)(?:/)?`", text):
            path = ROOT / folder / name
            assert path.is_dir() or path.with_suffix(".py").is_file(), f"{folder} has no {name}"


def test_the_changelog_says_nothing_twice() -> None:
    entries = re.findall(r"^- (.{50})", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert len(entries) == len(set(entries))

"""The one command, ``waybill``: finds the part that is asked for, imports that alone, and turns errors into exit codes.

A part is a ``typer.Typer`` named in PARTS. Importing only what was asked for keeps a gateway's agent small, and lets
each part's dependencies be an extra of their own. Exit codes: 0 done, 1 it could not be done, 2 the person must change
something first (arguments, configuration, a missing extra), 130 interrupted.
"""

from __future__ import annotations

import codecs
import difflib
import importlib
import importlib.metadata
import io
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from waybill.errors import ConfigError, WaybillError


class Part(NamedTuple):
    """A sub-command: ``module:attribute`` of its typer app, the extras that install what it needs, one line of help."""

    app: str
    extras: str
    help: str
    group: str = ""


PARTS: Mapping[str, Part] = {
    "edge": Part("edge_agent.cli:app", "edge", "the agent on a gateway: set it up, run it, ask how it is", "Run"),
    "cloud": Part("cloud_ingest.cli:app", "cloud", "the ingest: run it, read topics, audit, issue certificates", "Run"),
    "monitor": Part("waybill.monitor.cli:app", "tui", "watch a gateway or the fleet on a terminal", "Use"),
    "command": Part("cloud_ingest.command_cli:app", "cloud", "send a command to a device and follow it", "Use"),
    "demo": Part(
        "fleet_simulator.demo_cli:app", "edge,cloud,sim", "a minute with an outage and a crash, and the verdict", "Try"
    ),
    "fleet": Part(
        "fleet_simulator.cli:app", "edge,cloud,sim", "simulated vehicles on bad networks, recorded drives", "Try"
    ),
}
_OWN_PACKAGES = {"waybill", "edge_agent", "cloud_ingest", "fleet_simulator"}


def main(arguments: Sequence[str] | None = None, parts: Mapping[str, Part] = PARTS) -> int:
    """Run ``waybill ARGUMENTS`` (default: those of the process) and return its exit code; nothing is raised."""
    _bear_any_encoding()
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in {"--help", "-h"}:
        print(usage(parts))
        return 0
    if name == "--version":
        print(f"waybill {importlib.metadata.version('waybill')}")
        return 0
    if name not in parts:
        near = difflib.get_close_matches(name, parts, 1)
        _complain("waybill", f"there is no {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        print(f"\n{usage(parts)}", file=sys.stderr)
        return 2
    try:
        return _run(name, parts[name], rest)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OWN_PACKAGES:
            raise
        extras = parts[name].extras
        _complain(f"waybill {name}", f"{error.name} is not installed: pip install 'waybill[{extras}]'")
        return 2
    except WaybillError as error:
        _complain(f"waybill {name}", str(error))
        return 2 if isinstance(error, ConfigError) else 1
    except PermissionError as error:  # what is installed, and its data, is open to its user and to root
        if error.filename is None:
            raise
        _complain(f"waybill {name}", f"{error.filename}: not for this user; run it as root (sudo), or as who owns that")
        return 2
    except KeyboardInterrupt:
        return 130


def usage(parts: Mapping[str, Part] = PARTS) -> str:
    """Return the help of ``waybill`` itself."""
    width = max(map(len, parts))
    listed: list[str] = []
    for group, members in itertools.groupby(parts.items(), lambda item: item[1].group):
        listed += [f"{group}:"] if group else []
        listed += [f"  {name:{width}}  {part.help}" for name, part in members]
    return "\n".join(
        [
            "usage: waybill [--version | --help] PART [COMMAND] [OPTIONS]",
            "",
            "Messages of devices reach Kafka through outages, or their loss is declared.",
            "",
            *listed,
            "",
            "waybill PART --help says more. NO_COLOR=1 takes colours away.",
        ]
    )


def _bear_any_encoding() -> None:
    """Let a terminal or pipe of Latin-1 show a ? for each mark that it lacks, instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="replace")


def _complain(who: str, text: str) -> None:
    """Print an error: on a terminal with its beginning in red, and lines that end between words."""
    if not sys.stderr.isatty():
        print(f"{who}: {text}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble((f"{who}:", "bold red"), f" {text}"))


def _run(name: str, part: Part, arguments: list[str]) -> int:
    module, _, attribute = part.app.partition(":")
    app = getattr(importlib.import_module(module), attribute)
    try:
        app(args=arguments, prog_name=f"waybill {name}")
    except SystemExit as done:
        # How typer ends, always; a text instead of a number is Python's way to say 1.
        if done.code is None or isinstance(done.code, int):
            return done.code or 0
        print(done.code, file=sys.stderr)
        return 1
    return 0

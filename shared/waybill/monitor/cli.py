"""``waybill monitor``: the options. Heavy imports are in the functions."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from waybill.errors import ConfigError
from waybill.monitor.sources import Kind, Source

app = typer.Typer(add_completion=False)

_KINDS: tuple[Kind, ...] = ("fleet", "gateway", "commands", "kafka", "log")


@app.command()
def monitor(  # noqa: PLR0913 - each an option
    *,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Data directory of an agent or ingest that runs here."),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Configuration file of an agent or ingest that runs here."),
    ] = None,
    cloud: Annotated[
        str | None, typer.Option("--cloud", metavar="URL", help="The fleet: http(s)://HOST:PORT of a node's API.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="With --cloud: the token of the API.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="With --cloud https: who signed its certificate.")
    ] = None,
    gateway: Annotated[
        str | None, typer.Option("--gateway", metavar="ID", help="Begin with this gateway of the fleet.")
    ] = None,
    screen: Annotated[
        str | None, typer.Option("--screen", metavar="NAME", help=f"Begin with: {', '.join(_KINDS)}.")
    ] = None,
    words: Annotated[str, typer.Option("--filter", metavar="WORDS", help="Rows that hold all of them.")] = "",
    interval: Annotated[
        float, typer.Option("--interval", min=0.2, max=3600, metavar="SECONDS", help="Between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print it once, as plain text, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it once, as JSON, and end.")] = False,
) -> None:
    """Watch a gateway, or the whole fleet, on a terminal.

    With --once and --json the exit code says how it is: 0 well, 3 to be looked at,
    4 something is wrong; 1 it could not be asked, 2 the arguments are not right.
    """
    from waybill.monitor import places

    if cloud is not None and (data or config_file):
        raise ConfigError("--cloud is for another machine, --data and --config for this one: give one")
    if cloud is None and (token_file or ca):
        raise ConfigError("--token-file and --ca go with --cloud URL")
    if data and config_file:
        raise ConfigError("--data and --config say the same: give one")
    source, sender = places.local(config_file, data) if cloud is None else (places.cloud(cloud, token_file, ca), None)
    kind = _kind(source, screen, gateway)
    if once or as_json:
        raise typer.Exit(asyncio.run(_print(source, kind, gateway or "", words, as_json=as_json)))
    from waybill.monitor.app import Monitor

    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):  # textual draws on stderr
        raise ConfigError("there is no terminal to draw on; --once and --json print it once")
    if os.environ.get("TERM") == "dumb":
        raise ConfigError("TERM=dumb: this terminal cannot be drawn on; --once and --json print it once")
    # Keys alone: a terminal that tells of the mouse sends for each of its moves, and takes selecting text away.
    terminal = Monitor(source, sender=sender, interval=interval, begin=(kind, gateway or "", words))
    terminal.run(mouse=False)
    raise typer.Exit(terminal.return_code or 0)


def _kind(source: Source, screen: str | None, gateway: str | None) -> Kind:
    """Return the screen to begin with. Raises ConfigError."""
    if gateway and "fleet" not in source.kinds:
        raise ConfigError(f"--gateway {gateway}: an agent is one gateway; leave it out")
    if screen is None:
        return "gateway" if gateway else source.kinds[0]
    found = next((kind for kind in source.kinds if kind == screen), None)
    if found is None:
        raise ConfigError(f"--screen {screen}: there are {', '.join(source.kinds)} here")
    if found == "gateway" and "fleet" in source.kinds and not gateway:
        raise ConfigError("--screen gateway: which one? say --gateway ID")
    return found


async def _print(source: Source, kind: Kind, gateway: str, words: str, *, as_json: bool) -> int:
    """Print what is so now; return the exit code. Raises Unavailable."""
    from waybill.monitor import plain
    from waybill.monitor.views import VIEWS

    try:
        picture = await source.ask(kind, gateway)
    finally:
        await source.close()
    if as_json:
        print(msgspec.json.encode(plain.kept(picture, words)).decode())
    else:
        print(plain.once(VIEWS[kind], picture, shutil.get_terminal_size((plain.WIDTH, 24)).columns, words))
    return plain.CODES.get(plain.health(plain.kept(picture, words)), 0)

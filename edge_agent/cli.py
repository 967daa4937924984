"""``waybill edge``: set the agent up, run it, ask how it is, keep its password files.

Heavy imports are in the functions.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from edge_agent.setup import cli as setup
from waybill.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The agent on a gateway: set it up, run it, ask how it is."
)
SERVICE: Final = "Run it"
INSTALLED: Final = Path("/etc/waybill/agent.toml")
"""The configuration that ``waybill edge install`` puts there."""

for command in setup.COMMANDS:
    app.command(rich_help_panel="Set it up")(command)


@app.command(rich_help_panel=SERVICE)
def run(
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML; see docs/configuration.md.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="Without a file, for a look: no uplink.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="With --listen: where messages are buffered.")
    ] = None,
) -> None:
    """Take messages from devices and send them to the cloud.

    Until SIGTERM or Ctrl-C. Without a file, --listen and --data start an agent that keeps everything here.
    """
    from edge_agent import config

    if config_file and not listen and not data:
        config.load(config_file)
        arguments = [str(config_file)]
    elif listen and data and not config_file:
        config.first_look(listen, data)
        arguments = [listen, str(data)]
    else:
        raise ConfigError("give --config FILE, or for a first look both --listen HOST:PORT and --data DIR")
    # The same process, without the memory of this command line; -P: no module of the current directory is taken.
    python = ["-P", "-m", "edge_agent"]
    if sys.flags.isolated:  # Debian's package: Python finds only what its first line names
        begin = f"import runpy, sys; sys.path.insert(0, {sys.path[0]!r}); "
        python = ["-I", "-S", "-c", begin + "runpy.run_module('edge_agent', run_name='__main__')"]
    os.execv(sys.executable, [sys.executable, *python, *arguments])  # noqa: S606 - no shell needed


@app.command(rich_help_panel=SERVICE)
def status(
    *,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="The running agent's data directory.")
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help=f"Or its configuration; without either, {INSTALLED}."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for programs.")] = False,
) -> None:
    """Say how the agent is: its link, what waits, rates, faults."""
    import asyncio

    import msgspec

    from edge_agent import config
    from edge_agent.status import SOCKET, EdgeStatus, render
    from waybill import snapshot

    if data is not None and config_file is not None:
        raise ConfigError("--data and --config say the same: give one")
    if data is None:
        if config_file is None and not INSTALLED.is_file():
            raise ConfigError(f"which agent? --data DIR or --config FILE; no {INSTALLED} is here to go by")
        data = config.load(config_file or INSTALLED).data
    if not data.is_dir():
        raise ConfigError(f"{data}: no such directory; give the agent's own data directory with --data")
    answer = asyncio.run(snapshot.request(data / SOCKET, "snapshot"))
    if as_json:
        print(msgspec.json.encode(answer).decode())
        return
    from rich.console import Console

    Console().print(render(msgspec.convert(answer, EdgeStatus)))


@app.command(rich_help_panel=SERVICE)
def passwd(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The password file; made where there is none.")],
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose password to set.")],
    *,
    delete: Annotated[bool, typer.Option("--delete", help="Take the user out of the file.")] = False,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read the password from a line of standard input.")] = False,
) -> None:
    """Set a device's password, or take the device out.

    A running agent sees it within seconds.
    """
    import getpass

    from waybill import passwords

    if delete and stdin:
        raise ConfigError("--delete takes no password; leave --stdin out")
    if delete:
        passwords.delete(file, user)
        return
    passwords.check_user(user)
    if stdin:
        password = sys.stdin.buffer.readline(passwords.MAX_PASSWORD + 2).removesuffix(b"\n")
    else:
        password = getpass.getpass(f"password of {user}: ").encode()
        if password != getpass.getpass("again: ").encode():
            raise ConfigError("the two passwords differ; nothing was changed")
    passwords.put(file, user, password)

"""``waybill edge init``, ``check``, ``plan``, ``install``, ``uninstall``. Heavy imports are in the functions."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from waybill.console.busy import busy
from waybill.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from edge_agent.setup.install import Step

RootOption = Annotated[
    Path, typer.Option("--root", metavar="DIR", help="Of the image of a card; this machine without it.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what it would do, and do nothing.")]

_ROOT: Final = Path("/")


def init(  # noqa: PLR0913 - each is a flag
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path("agent.toml"),
    *,
    uplink: Annotated[str | None, typer.Option(metavar="URL", help="The ingest; none: keep everything here.")] = None,
    certificates: Annotated[
        str | None, typer.Option(metavar="DIR", help="This gateway's ca.pem, gateway.pem and gateway.key.")
    ] = None,
    gateway: Annotated[str | None, typer.Option(metavar="ID", help="Its id; by default as in its certificate.")] = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where devices connect.")] = None,
    passwords: Annotated[
        str | None, typer.Option(metavar="FILE", help="Who may, beyond loopback; none: anybody.")
    ] = None,
    devices: Annotated[str | None, typer.Option(metavar="COUNT", help="How many at most: sets the limits.")] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Where messages are kept.")] = None,
    buffer_gb: Annotated[str | None, typer.Option(metavar="GB", help="What waiting messages may take.")] = None,
    budget_mb: Annotated[
        str | None, typer.Option(metavar="MB", help="What the uplink may carry a month; 0: not metered.")
    ] = None,
) -> None:
    """Write a configuration with comments, from answers or flags.

    In a terminal it asks for what no flag says. A file that is there is never written over.
    """
    from edge_agent.setup import init as asking

    if file.exists():
        raise ConfigError(f"{file} is there already and stays as it is; name another, or remove it first")
    flags = {
        "--uplink": uplink,
        "--certificates": certificates,
        "--gateway": gateway,
        "--listen": listen,
        "--passwords": passwords,
        "--devices": devices,
        "--data": data,
        "--buffer-gb": buffer_gb,
        "--budget-mb": budget_mb,
    }
    given = {flag: value for flag, value in flags.items() if value is not None}
    ask = asking.terminal(given, input, print) if sys.stdin.isatty() else asking.flags(given)
    try:
        answers = asking.asked(ask, given)
    except EOFError as error:
        raise ConfigError("no more answers; nothing was written") from error
    except KeyboardInterrupt:
        print("\nnothing was written", file=sys.stderr)
        raise
    asking.write(file, answers)
    print(f"wrote {file}; waybill edge check --config {file} tries it out")


def check(
    config_file: Annotated[Path, typer.Option("--config", metavar="FILE", help="The agent's configuration.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for programs.")] = False,
) -> None:
    """Prove disk, clock, files, listeners and the way to the cloud.

    One by one, each with a verdict and the mend; it may be run beside the agent.
    Exit code 1 where a step has failed; warnings are 0.
    """
    import asyncio

    import msgspec
    from rich.console import Console

    from edge_agent.setup.check import check as steps
    from edge_agent.setup.finding import Finding, line, report, row

    console = Console(highlight=False)

    async def run() -> list[Finding]:
        found = []
        async for finding in steps(config_file):
            found.append(finding)
            if not as_json:
                console.print(row(finding) if console.is_terminal else line(finding), soft_wrap=not console.is_terminal)
        return found

    with console.status("trying it out") if console.is_terminal and not as_json else busy("trying it out"):
        done = report(asyncio.run(run()))
    if as_json:
        print(msgspec.json.encode(done).decode())
    raise typer.Exit(int(done.verdict == "failed"))


def plan(
    *,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Take what this file sets, else defaults.")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, max=100_000, metavar="COUNT", help="How many.")] = 20,
    every: Annotated[
        float, typer.Option(min=0.001, max=31_536_000, metavar="SECONDS", help="How often each one sends.")
    ] = 1.0,
    size: Annotated[
        int, typer.Option("--bytes", min=1, max=100_000, metavar="COUNT", help="Of a payload, without --sample.")
    ] = 174,
    sample: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own messages, as mosquitto_sub -v prints them.")
    ] = None,
    outage_days: Annotated[
        float, typer.Option(min=0.0, max=36_500, metavar="DAYS", help="How long the uplink may be away.")
    ] = 3.0,
    tbw: Annotated[
        float, typer.Option(min=0.001, max=1_000_000, metavar="TB", help="What may be written to the card.")
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for programs.")] = False,
) -> None:
    """Size a gateway: buffer, life of the card, data plan.

    It encodes messages like yours, or your own (--sample), as the agent would.
    """
    import math

    import msgspec

    from edge_agent import config
    from edge_agent.setup import sample as samples
    from edge_agent.setup.sizing import Given, sizing
    from edge_agent.uplink.config import UplinkSettings

    for name, value in (("--every", every), ("--outage-days", outage_days), ("--tbw", tbw)):
        if math.isnan(value):  # which no bound keeps out
            raise ConfigError(f"{name}: {value}: write a number")
    settings = config.EdgeConfig("gateway", Path()) if config_file is None else config.load(config_file)
    uplink = settings.uplinks[0] if settings.uplinks else UplinkSettings("mqtts://ingest.example")
    given = Given(
        rate=devices / every,
        devices=devices,
        gather_ms=settings.buffer.gather_ms,
        max_bytes=settings.buffer.max_bytes,
        frame_messages=settings.forward.frame_messages,
        linger_ms=settings.forward.linger_ms,
        ping_s=uplink.ping,
        outage_s=outage_days * 86_400,
        tbw=tbw,
    )
    with busy("encoding messages as the agent would"):
        found = sizing(given, samples.read(sample) if sample is not None else samples.made_up(devices, size))
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    from rich.console import Console

    from edge_agent.setup.sizing_view import render

    Console().print(render(found, own=sample is not None))


def install(
    *,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Copied to /etc/waybill, where none is yet.")
    ] = None,
    root: RootOption = _ROOT,
    program: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The waybill that the unit starts; by default this one.")
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Set the agent up as a service of systemd.

    User, directories, configuration and a hardened unit; it can be run again, and changes only what is different.
    """
    from edge_agent.setup import install as setting_up

    _do(setting_up.install(_image(root), config_file, program or setting_up.program()), root, dry_run=dry_run)


def uninstall(
    *,
    root: RootOption = _ROOT,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove the configuration and the data, too: messages that wait are lost.")
    ] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Take the service away; configuration and data stay.

    Unless --purge says otherwise.
    """
    from edge_agent.setup import install as setting_up

    _do(setting_up.uninstall(_image(root), purge=purge), root, dry_run=dry_run)


def _image(root: Path) -> Path:
    if not root.is_dir():
        raise ConfigError(f"--root {root}: no such directory; name the one where the card's image is mounted")
    return root


def _do(steps: Sequence[Step], root: Path, *, dry_run: bool) -> None:
    if not dry_run and root == _ROOT and os.geteuid() != 0:
        raise ConfigError("this changes the system: run it as root (sudo), or with --dry-run to see what it would do")
    for step in steps:
        if step.do is not None and not dry_run:
            try:
                step.do()
            except OSError as error:
                raise Unavailable(f"{step.text.strip()}: {error}; what is above is done, run it again") from error
        print(step.text)
    if dry_run:
        print("nothing was changed (--dry-run)")


COMMANDS: Final[Sequence[Callable[..., None]]] = (init, check, plan, install, uninstall)
"""In the order of use."""

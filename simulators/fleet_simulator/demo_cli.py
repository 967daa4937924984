"""``waybill demo``: a minute with an outage, a killed agent and a command, and the verdict as the last line."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waybill.errors import Unavailable

if TYPE_CHECKING:
    from rich.console import Console

    from fleet_simulator.demo import Outcome, View

app = typer.Typer(add_completion=False)

NEXT = (
    "to try next, each in a terminal of its own (after . .venv/bin/activate):",
    "  waybill cloud run --listen 127.0.0.1:8883 --data var/cloud",
    "  waybill edge run --config examples/first-look/agent.toml",
    "  waybill monitor --data var/cloud",
)
"""What is said before the verdict."""

_STATUS = 5.0
"""Seconds between two lines on how it is, where nothing can be drawn over."""


@app.command()
def demo(
    kafka: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Through this Kafka, in topics of its own.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=10, max=3600, metavar="SECONDS", help="How long they drive.")] = 60.0,
    vehicles: Annotated[int, typer.Option(min=2, max=500, metavar="COUNT", help="How many.")] = 20,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="The same seed, the same drives.")] = 1,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="New; all files and logs stay there.")] = None,
) -> None:
    """Show that nothing is lost: 2 gateways, 20 vehicles, an outage, a SIGKILL and a command, in one minute.

    The last line is the verdict, computed by reading the topic back; exit code 1 if it is FAIL.
    """
    from rich.console import Console

    from fleet_simulator import demo_view

    if kafka is not None:
        _check_kafka(kafka)
    console = Console(highlight=False)
    directory = _directory(keep)
    try:
        outcome = asyncio.run(_run(console, directory, kafka, seconds, vehicles, seed))
    except asyncio.CancelledError:
        raise typer.Exit(128 + signal.SIGTERM) from None
    except Unavailable as error:
        console.print(f"the demonstration could not go on: {error}", markup=False)
        print("verdict: FAIL delivered=0 lost=0 duplicated=0 out_of_order=0 command=lost")
        raise typer.Exit(1) from error
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    console.print(demo_view.table(outcome))
    for example in outcome.verdict.examples:
        console.print(example, markup=False)
    for line in NEXT:
        console.print(line, markup=False, soft_wrap=True)
    sys.stdout.flush()
    print(outcome.line)
    raise typer.Exit(0 if outcome.passed else 1)


async def _run(
    console: Console, directory: Path, kafka: str | None, seconds: float, vehicles: int, seed: int
) -> Outcome:
    from rich.live import Live

    from fleet_simulator import demo_view
    from fleet_simulator.demo import Demo

    # SIGTERM as Ctrl-C: the processes that this one started are stopped either way.
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    console.print("starting: certificates, cloud ingest, two agents", markup=False)
    if not console.is_terminal:
        show = _printer(console, demo_view.plain)
        return await Demo(directory, kafka=kafka, seconds=seconds, vehicles=vehicles, seed=seed, show=show).run()
    with Live(console=console, refresh_per_second=8) as live:

        def draw(view: View) -> None:
            live.update(demo_view.live(view))

        return await Demo(directory, kafka=kafka, seconds=seconds, vehicles=vehicles, seed=seed, show=draw).run()


def _printer(console: Console, status: Callable[[View], str]) -> Callable[[View], None]:
    """Return what prints each event once, and now and then how it is."""
    told = 0
    last = 0.0

    def show(view: View) -> None:
        nonlocal told, last
        for at, event in view.events[told:]:
            console.print(f"{at:6.1f} s  {event}", markup=False, soft_wrap=True)
        told = len(view.events)
        if view.elapsed - last >= _STATUS:
            last = view.elapsed
            console.print(status(view), markup=False, soft_wrap=True)

    return show


def _check_kafka(servers: str) -> None:
    """Raise ConfigError where nobody listens: better now than after two minutes."""
    import socket

    from waybill.config import address
    from waybill.errors import ConfigError

    for server in servers.split(","):
        try:
            socket.create_connection(address(server.strip(), "--kafka"), timeout=10).close()
        except OSError as error:
            raise ConfigError(
                f"--kafka {server}: {error}; make kafka starts one, make demo KAFKA=local starts one for the demo alone"
            ) from error


def _directory(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="waybill-demo-"))
    from waybill.errors import ConfigError

    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--keep {keep}: {error.strerror}; name a directory that is not there yet") from error
    return keep.resolve()

"""``waybill fleet``: simulated vehicles, replay of recorded drives, and the verdict over what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleet_simulator import judge_cli, run_cli
from waybill.console.busy import counted
from waybill.errors import ConfigError

if TYPE_CHECKING:
    from fleet_simulator.ledger import Ledger
    from fleet_simulator.replay import Checked, Progress

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Simulated vehicles on bad networks, the verdict, and recorded drives.",
)
app.command("list", rich_help_panel="Scenarios")(run_cli.list_all)
app.command(rich_help_panel="Scenarios")(run_cli.new)
app.command(rich_help_panel="Scenarios")(run_cli.run)
app.command(rich_help_panel="The verdict")(judge_cli.verdict)
app.command(rich_help_panel="The verdict")(judge_cli.report)

To = Annotated[
    str, typer.Option("--to", metavar="BROKER", help="HOST:PORT, mqtt://[USER:PASSWORD@]HOST:PORT or mqtts://…")
]
Ca = Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="With mqtts://: who signed its certificate.")]
LedgerFile = Annotated[
    Path | None, typer.Option("--ledger", metavar="FILE", help="Notes what is published and acknowledged.")
]
Topic = Annotated[str, typer.Option(metavar="TOPIC", help="Of the messages, with {vehicle} for the id.")]


@app.command(rich_help_panel="Recorded drives")
def replay(  # noqa: PLR0913, PLR0917 - the options of a command
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="CSV, a vehicle each; the first line names columns.")
    ],
    to: To = "127.0.0.1:1883",
    speed: Annotated[str, typer.Option(metavar="FACTOR", help="1: real time; max: as fast as acknowledged.")] = "1",
    id_from: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Has the vehicle's id; else the file's name.")
    ] = None,
    columns: Annotated[str, typer.Option(metavar="COLUMNS", help="To send, with commas between; else all.")] = "",
    time_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Has the time: seconds, or date and time.")
    ] = None,
    topic: Topic = "vehicles/{vehicle}/telemetry",
    ledger: LedgerFile = None,
    ca: Ca = None,
    patience: Annotated[float, typer.Option(metavar="SECONDS", help="Give up where nothing moves so long.")] = 60.0,
) -> None:
    """Play CSV files as messages, each row one, with QoS 1.

    A message is a JSON object with the columns and a seq.
    Ends when every message is acknowledged, with exit code 1 where some are not.
    """
    from fleet_simulator.devices import Broker
    from fleet_simulator.replay import Replay, check, run

    wanted = tuple(name.strip() for name in columns.split(",") if name.strip())
    plan = Replay(tuple(files), _speed(speed), id_from, wanted, time_column, topic)
    broker = Broker.parse(to, ca)
    checked = check(plan)
    _note(f"{sum(checked.vehicles.values())} messages of {len(checked.vehicles)} vehicles to {broker}{_time(checked)}")
    with _noting(ledger) as notes, counted("acknowledged", sum(checked.vehicles.values())) as draw:
        done = asyncio.run(run(checked, broker, patience=patience, ledger=notes, tell=_teller(draw)))
    print(f"acked {done.acked} of {done.rows} messages of {len(checked.vehicles)} vehicles")
    if not done.complete:
        _note(f"gave up: {done.rows - done.acked} messages are not acknowledged: {broker}: {done.why()}")
        raise typer.Exit(1)


def _noting(path: Path | None) -> contextlib.AbstractContextManager[Ledger | None]:
    from fleet_simulator.ledger import Ledger

    return contextlib.nullcontext() if path is None else Ledger(path)


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise ConfigError(f"--speed {text!r}: give a factor such as 1 or 10, or max")
    return speed


def _time(checked: Checked) -> str:
    speed = checked.replay.speed
    return "" if speed is None else f" in {checked.duration / speed:.0f} s"


def _teller(draw: Callable[[int], None]) -> Callable[[Progress], None]:
    """Return what draws how far it is, and says it every five seconds: on a terminal only why it stands still."""
    last = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal last
        draw(progress.acked)
        if time.monotonic() - last >= 5:  # noqa: PLR2004
            last = time.monotonic()
            why = progress.why() if not any(one.connected for one in progress.devices.values()) else ""
            if why or not sys.stderr.isatty():
                _note(f"acked {progress.acked} of {progress.rows}" + (f" ({why})" if why else ""))

    return tell


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

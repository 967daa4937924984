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
from waybill.errors import ConfigError

if TYPE_CHECKING:
    from fleet_simulator.ledger import Ledger
    from fleet_simulator.replay import Checked, Progress

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Simulated vehicles, and replay of recorded drives.")
app.add_typer(run_cli.app)

To = Annotated[str, typer.Option("--to", help="the broker: HOST:PORT, mqtt://[USER:PASSWORD@]HOST:PORT or mqtts://…")]
Ca = Annotated[Path | None, typer.Option("--ca", help="with mqtts://: PEM file of the CA to believe")]
LedgerFile = Annotated[
    Path | None, typer.Option("--ledger", help="note what is published and acknowledged in this file")
]
Topic = Annotated[str, typer.Option(help="MQTT topic of a message, with {vehicle} for the id")]


@app.command()
def replay(  # noqa: PLR0913, PLR0917 - the options of a command
    files: Annotated[list[Path], typer.Argument(help="CSV files, one vehicle each; the first line names the columns")],
    to: To = "127.0.0.1:1883",
    speed: Annotated[str, typer.Option(help="times real time (1, 10, …), or max: as fast as acknowledged")] = "1",
    id_from: Annotated[
        str | None, typer.Option(help="column with the vehicle's id, instead of the file's name")
    ] = None,
    columns: Annotated[str, typer.Option(help="the columns to send, with commas between; all, if not given")] = "",
    time_column: Annotated[str | None, typer.Option(help="column with the time: seconds, or date and time")] = None,
    topic: Topic = "vehicles/{vehicle}/telemetry",
    ledger: LedgerFile = None,
    ca: Ca = None,
    patience: Annotated[float, typer.Option(help="give up after so many seconds in which nothing moved")] = 60.0,
) -> None:
    """Play CSV files: each row is one JSON message with these columns and a seq, published with QoS 1.

    Ends when every message is acknowledged. Exit code 1 if some are not.
    """
    from fleet_simulator.devices import Broker
    from fleet_simulator.replay import Replay, check, run

    wanted = tuple(name.strip() for name in columns.split(",") if name.strip())
    plan = Replay(tuple(files), _speed(speed), id_from, wanted, time_column, topic)
    broker = Broker.parse(to, ca)
    checked = check(plan)
    _note(f"{sum(checked.vehicles.values())} messages of {len(checked.vehicles)} vehicles to {broker}{_time(checked)}")
    with _noting(ledger) as notes:
        done = asyncio.run(run(checked, broker, patience=patience, ledger=notes, tell=_teller()))
    print(f"acked {done.acked} of {done.rows} messages of {len(checked.vehicles)} vehicles")
    if not done.complete:
        _note(f"gave up: {done.rows - done.acked} messages are not acknowledged: {broker}: {done.why()}")
        raise typer.Exit(1)


app.command()(judge_cli.verdict)
app.command()(judge_cli.report)


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


def _teller() -> Callable[[Progress], None]:
    """Return what says how far it is, every five seconds at most."""
    last = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= 5:  # noqa: PLR2004
            last = time.monotonic()
            why = progress.why() if not any(one.connected for one in progress.devices.values()) else ""
            _note(f"acked {progress.acked} of {progress.rows}" + (f" ({why})" if why else ""))

    return tell


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""``waybill fleet run``, ``new`` and ``list``: scenarios."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from fleet_simulator import judge_cli
from waybill.console.busy import busy
from waybill.errors import ConfigError

if TYPE_CHECKING:
    from fleet_simulator.scenarios import Scenario


def run(  # noqa: PLR0913, PLR0917 - the options of a command
    what: Annotated[str, typer.Argument(metavar="SCENARIO", help="A file, or the name of a ready one.")],
    seconds: Annotated[str | None, typer.Option(metavar="TIME", help="How long it lasts: 600, 10m, 2h.")] = None,
    pace: Annotated[str | None, typer.Option(metavar="FACTOR", help="Scenario seconds in a real one, or max.")] = None,
    scale: Annotated[float, typer.Option(metavar="FACTOR", help="So many times the vehicles.")] = 1.0,
    seed: Annotated[int | None, typer.Option(metavar="NUMBER", help="The same seed, the same story.")] = None,
    kafka: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Instead of the scenario's log.")] = None,
    target: Annotated[
        str | None, typer.Option(metavar="URL", help="A broker, mqtt://…, in place of the gateways.")
    ] = None,
    topic: Annotated[str | None, typer.Option(metavar="TOPIC", help="With --target: of --kafka, to read back.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="For report.html, report.json, junit.xml.")] = None,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="New; ledger, data and logs stay there.")] = None,
) -> None:
    """Run a scenario and judge it.

    Exit code 0 PASS, 1 FAIL, 2 something has to be changed first, 3 INCONCLUSIVE.
    """
    from fleet_simulator.scenarios import late, load

    scenario = _overridden(load(what), seconds, pace, scale, seed)
    if topic is not None and target is None:
        raise ConfigError("--topic goes with --target: a run of its own gateways has topics of its own")
    for text in late(scenario):
        _note(text)
    if target is not None:
        scenario = _aimed(scenario, target, kafka, topic)
        kafka = None
    if report is not None:
        _writable(report)
    with _directory(keep) as directory, judge_cli.or_exit_2():
        try:
            code = asyncio.run(_run(scenario, directory, kafka, report))
        except (asyncio.CancelledError, KeyboardInterrupt) as ended:
            code = 128 + (signal.SIGINT if isinstance(ended, KeyboardInterrupt) else signal.SIGTERM)
            _note(f"ended early{f': waybill fleet verdict {keep} judges what was driven' if keep else ''}")
    kept = report or keep
    if kept is not None and (kept / "report.html").is_file():
        _note(f"report: {kept / 'report.html'}")
    raise typer.Exit(code)


def list_all() -> None:
    """List the scenarios that come with Waybill."""
    from fleet_simulator.scenarios import load, shipped

    width = max(map(len, shipped()))
    for name in shipped():
        print(f"{name:{width}}  {load(name).about}")


def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    like: Annotated[str | None, typer.Option("--from", metavar="SCENARIO", help="A ready one to begin with.")] = None,
) -> None:
    """Write a scenario with comments, to change and to run."""
    from fleet_simulator.scenarios import shipped, template

    if like is not None and like not in shipped():
        raise ConfigError(f"--from {like}: there is no such scenario; there are {', '.join(shipped())}")
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(template() if like is None else shipped()[like])
    except FileExistsError as error:
        raise ConfigError(f"{file} exists and is not overwritten: name another file") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error
    print(f"wrote {file}: waybill fleet run {file}")


async def _run(scenario: Scenario, directory: Path, kafka: str | None, report: Path | None) -> int:
    from rich.console import Console

    from fleet_simulator import judging
    from fleet_simulator.checks import EXIT_CODES
    from fleet_simulator.report.live import shown
    from fleet_simulator.run.runner import Run
    from fleet_simulator.scenarios import span

    if (task := asyncio.current_task()) is not None:  # SIGTERM as Ctrl-C: what this one started is stopped either way
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    console = Console(stderr=True)
    async with contextlib.AsyncExitStack() as stack:
        with shown(console) as show:
            driven = await stack.enter_async_context(Run(scenario, directory, kafka=kafka, show=show).driven())
        for failure in driven.failures:
            _note(f"failed: {failure}")
        _note(
            f"{driven.published} messages in {driven.seconds:.1f} s, {driven.published / driven.seconds:.0f} a second; "
            f"{driven.connects} connections, {driven.resent} sent again"
            + (f", {driven.silent} not made: queues were full" if driven.silent else "")
        )
        if scenario.target is not None and not scenario.target.topic:
            print(f"acked {driven.acked} of {driven.published}; nothing is read back: give --kafka and --topic")
            return 0 if driven.acked == driven.published else 1
        with busy("reading the topics back"):
            found = await judging.judge(directory, drain=span(scenario.drain, "drain"))
    judge_cli.tell(found)
    for where in (directory, report):
        if where is not None:
            judge_cli.keep(found, where)
    return EXIT_CODES[found.outcome]


def _overridden(scenario: Scenario, seconds: str | None, pace: str | None, scale: float, seed: int | None) -> Scenario:
    """Return ``scenario`` with what the command line says. Raises ConfigError."""
    from fleet_simulator.scenarios import checked, span

    changes: dict[str, object] = {}
    if seconds is not None:
        changes["seconds"] = float(seconds) if seconds.replace(".", "", 1).isdigit() else seconds
        span(seconds if isinstance(changes["seconds"], str) else 0.0, "--seconds")
    if pace is not None:
        changes["pace"] = "max" if pace == "max" else _number(pace)
    if seed is not None:
        changes["seed"] = seed
    if scale != 1:
        if not 0 < scale < float("inf"):
            raise ConfigError(f"--scale {scale:g}: more than 0")
        changes["vehicle"] = tuple(
            msgspec.structs.replace(each, count=max(1, round(each.count * scale))) for each in scenario.vehicle
        )
    return checked(msgspec.structs.replace(scenario, **changes), "command line")


def _number(text: str) -> float:
    try:
        return float(text.removesuffix("x"))
    except ValueError as error:
        raise ConfigError(f"--pace {text!r}: a number such as 1 or 60, or max") from error


def _aimed(scenario: Scenario, target: str, kafka: str | None, topic: str | None) -> Scenario:
    """Return ``scenario`` with somebody else's broker in place of the gateways. Raises ConfigError."""
    from fleet_simulator.scenarios import Target, checked

    before = scenario.target
    aim = Target(
        mqtt=target,
        kafka=kafka or (before.kafka if before else ""),
        topic=topic or (before.topic if before else ""),
        process=before.process if before else (),
        link=before.link if before else (),
    )
    changes: dict[str, object] = {"target": aim, "gateway": (), "kafka": None, "command": ()}
    changes["zone"] = tuple(each for each in scenario.zone if each.network == "none")
    changes["vehicle"] = tuple(msgspec.structs.replace(each, gateway="") for each in scenario.vehicle)
    if before is None:  # what was to happen to gateways can happen to nobody
        changes |= {"link": (), "fault": ()}
        if scenario.link or scenario.fault:
            _note("--target: no links or processes of its own: the scenario's links and faults are left out")
    return checked(msgspec.structs.replace(scenario, **changes), "command line")


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="waybill-fleet-", ignore_cleanup_errors=True) as directory:
            yield Path(directory)
        return
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--keep {keep}: has to be a new directory: {error.strerror}") from error
    yield keep.resolve()


def _writable(report: Path) -> None:
    """Make the directory of a report, before anybody drives. Raises ConfigError where nothing can be put there."""
    try:
        report.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=report).close()
    except OSError as error:
        raise ConfigError(f"--report {report}: nothing can be written there: {error.strerror}") from error


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

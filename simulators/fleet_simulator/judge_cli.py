"""``waybill fleet verdict`` and ``report``: was everything delivered that was acknowledged, and how it went."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waybill.console.busy import busy
from waybill.errors import ConfigError, WaybillError
from waybill.printable import printable

if TYPE_CHECKING:
    from fleet_simulator.judging import Lines, Source
    from fleet_simulator.report.model import Report

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory, or its ledger alone.")]


def verdict(
    run: RunArgument,
    records: Annotated[
        str | None,
        typer.Argument(
            metavar="RECORDS", help="A file as tail --json prints it, or - for stdin; else from the topics."
        ),
    ] = None,
    *,
    topic: Annotated[
        list[str] | None, typer.Option("--topic", metavar="TOPIC", help="Instead of the run's own.")
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Of the ingest that has the topics.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Of an ingest on the embedded log.")
    ] = None,
    bootstrap: Annotated[
        str | None, typer.Option("--bootstrap", metavar="HOST:PORT", help="Of any Kafka without security.")
    ] = None,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", help="Read again so long while something is missing.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for programs.")] = False,
) -> None:
    """Compare what was acknowledged with what is in the topics.

    Exit code 0 PASS, 1 FAIL, 2 something has to be changed first, 3 INCONCLUSIVE.
    In a run's directory the report is left as report.html, report.json and junit.xml.
    """
    from fleet_simulator import judging
    from fleet_simulator.checks import EXIT_CODES
    from fleet_simulator.report.model import to_json

    where = [*_option("--config", config_file), *_option("--data", data), *_option("--bootstrap", bootstrap)]
    with or_exit_2(), busy("reading the topics back"):
        found = asyncio.run(judging.judge(run, _source(run, records, topic or [], where), drain=drain))
    if as_json:
        print(to_json(found).decode())
    else:
        tell(found)
    if run.is_dir():
        keep(found, run)
    raise typer.Exit(EXIT_CODES[found.outcome])


def _source(run: Path, records: str | None, topics: list[str], where: list[str]) -> Lines | Source | None:
    from fleet_simulator import judging

    if records is not None:
        if topics or where:
            raise ConfigError("give either RECORDS, or where the topics are")
        return judging.Lines(_lines(records))
    if not (topics or where):
        return None
    facts = judging.facts_of(judging.ledger_of(run))
    known = topics or facts.topics
    if not known:
        raise ConfigError(f"{run}: the ledger does not say which topics: name them with --topic")
    return judging.Source(where or facts.source, known, audited=facts.waybill)


def _lines(records: str) -> Iterator[bytes]:
    try:
        with sys.stdin.buffer if records == "-" else Path(records).open("rb") as file:
            yield from file
    except OSError as error:
        raise ConfigError(f"{records}: cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def or_exit_2() -> Iterator[None]:
    """Make an error of what keeps a run from being judged: exit code 1 is for messages that are missing."""
    try:
        yield
    except ConfigError:
        raise
    except (WaybillError, OSError) as error:
        raise ConfigError(str(error)) from error


def tell(found: Report) -> None:
    """Print the verdict, and above it, on stderr, what is not as it should be."""
    for check in found.checks:
        if check.outcome != "PASS":
            print(f"{check.outcome}: {check.title}: {printable(check.text)}", file=sys.stderr)
            for finding in check.findings:
                print(f"  {printable(finding)}", file=sys.stderr)
    sys.stderr.flush()
    print(found.line, flush=True)


def keep(found: Report, directory: Path) -> None:
    """Write ``report.json``, ``report.html`` and ``junit.xml`` into ``directory``. Raises ConfigError."""
    from fleet_simulator.report.junit import junit
    from fleet_simulator.report.model import to_json
    from fleet_simulator.report.page import page

    files = (
        ("report.json", to_json(found)),
        ("report.html", page(found).encode()),
        ("junit.xml", junit(found).encode()),
    )
    for name, data in files:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(data)
        except OSError as error:
            raise ConfigError(f"{directory / name}: cannot be written: {error.strerror}") from error


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory, or a report.json.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="For the files; else where it is.")] = None,
) -> None:
    """Make report.html and junit.xml anew, of a report.json.

    waybill fleet run and verdict leave one.
    """
    from fleet_simulator.report.model import from_file

    file = run / "report.json" if run.is_dir() else run
    where = out or file.parent
    keep(from_file(file), where)
    print(where / "report.html")
    print(where / "junit.xml")

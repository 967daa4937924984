"""``waybill cloud``: run the ingest, read topics, audit, issue certificates. Heavy imports are in the functions."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from cloud_ingest import config
from cloud_ingest.where import AllowUnsafeOption, BootstrapOption, ConfigOption, DataOption, located
from waybill.console.busy import busy
from waybill.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The ingest: run it, read topics, audit, issue certificates."
)
SERVICE: Final = "Run it"
TOPICS: Final = "Look into topics"
KAFKA: Final = "Change what is in Kafka"
CERTIFICATES: Final = "Certificates"

ca = typer.Typer(no_args_is_help=True, help="The authority that signs certificates: init.")
server = typer.Typer(no_args_is_help=True, help="Certificates of ingest nodes: issue.")
gateway = typer.Typer(no_args_is_help=True, help="Certificates of gateways: issue.")
app.add_typer(ca, name="ca", rich_help_panel=CERTIFICATES)
app.add_typer(server, name="server", rich_help_panel=CERTIFICATES)
app.add_typer(gateway, name="gateway", rich_help_panel=CERTIFICATES)

JsonOption = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]
CaOption = Annotated[Path, typer.Option("--ca", metavar="DIR", help="Directory of the authority.")]

_PKI = Path("pki")


@app.command(rich_help_panel=SERVICE)
def run(
    *,
    config_file: ConfigOption = None,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="For a look: plain TCP on loopback, embedded log."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="With --listen: where the log is kept.")
    ] = None,
    allow_unsafe: AllowUnsafeOption = False,
) -> None:
    """Take frames from gateways and route their messages.

    Until SIGTERM or Ctrl-C.
    """
    if config_file and not listen and not data:
        settings = config.read(config_file, allow_unsafe=allow_unsafe)
    elif listen and data and not config_file and not allow_unsafe:
        settings = config.first_look(listen, data)
    else:
        raise ConfigError("give --config FILE, or for a first look both --listen HOST:PORT and --data DIR")
    from cloud_ingest.app import main

    raise typer.Exit(asyncio.run(main(settings)))


@app.command(rich_help_panel=TOPICS)
def tail(  # noqa: PLR0913 - the options of a command
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="The topic's whole name, for example fleet.telemetry.")],
    *,
    config_file: ConfigOption = None,
    data: DataOption = None,
    bootstrap: BootstrapOption = None,
    as_json: JsonOption = False,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="All that is there, then new ones.")] = False,
    end: Annotated[bool, typer.Option("--end", help="All that is there, then stop.")] = False,
    partition: Annotated[
        int | None, typer.Option("--partition", min=0, metavar="NUMBER", help="Of this one alone.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", metavar="NAME", help="With --json: of the headers only these.")
    ] = None,
) -> None:
    """Print the last records of a topic, then new ones.

    Only committed ones.
    """
    from cloud_ingest import logs, tail
    from cloud_ingest.journal.port import TopicRecord

    only = frozenset(header) if header else None

    def render(record: TopicRecord) -> bytes:
        return tail.as_json(record, only) if as_json else tail.as_text(record).encode()

    # Into a pipe, lines are written in blocks: the reader of a million wants them fast. A person sees each at once.
    out = sys.stdout.buffer
    flush = not end or out.isatty()

    shown = False

    def show(record: TopicRecord) -> None:
        nonlocal shown
        shown = True
        out.write(render(record) + b"\n")
        if flush:
            out.flush()

    gc.set_threshold(100_000)  # records are no garbage that has to be looked for: a fifth of the time

    async def follow() -> None:
        async with logs.reading(located(config_file, data, bootstrap)) as source:
            await tail.tail(
                source,
                topic,
                show,
                partition=partition,
                last=None if from_beginning or end else tail.LAST,
                end=end,
            )

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(follow())
    if end and not shown:
        print(f"{topic}: no records", file=sys.stderr)


@app.command(rich_help_panel=TOPICS)
def audit(
    gateway: Annotated[str | None, typer.Argument(metavar="ID", help="One gateway; all without it.")] = None,
    *,
    config_file: ConfigOption = None,
    data: DataOption = None,
    bootstrap: BootstrapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is delivered, declared lost, and missing.

    For each gateway, epoch and lane. Exit code 1 where anything is missing.
    """
    from cloud_ingest import audit as audits
    from cloud_ingest import logs

    settings = located(config_file, data, bootstrap)

    async def report() -> audits.AuditReport:
        async with logs.reading(settings) as source:
            return await audits.audit(source, settings.config.topics, gateway)

    with busy("reading the ledger"):
        found = asyncio.run(report())
    if as_json:
        print(audits.as_json(found))
    elif found.lanes:
        from rich.console import Console

        Console().print(audits.as_table(found))
    elif gateway is None:
        print("no gateway has sent anything yet")
    if gateway is not None and not found.lanes:
        raise ConfigError(f"nothing is known of gateway {gateway!r}; leave the name out to see all that are")
    raise typer.Exit(0 if found.complete else 1)


@app.command(rich_help_panel=KAFKA)
def partitions(
    count: Annotated[
        int,
        typer.Argument(
            metavar="COUNT", help="How many frames partitions there shall be: a multiple of those there are."
        ),
    ],
    config_file: Annotated[Path, typer.Option("--config", metavar="FILE", help="The ingest's configuration.")],
    *,
    allow_unsafe: AllowUnsafeOption = False,
) -> None:
    """Add partitions to Kafka's internal topics while messages flow.

    More routers can share the work then.
    """
    from cloud_ingest import logs
    from cloud_ingest.journal.kafka import KafkaLog

    log = logs.open_log(config.read(config_file, allow_unsafe=allow_unsafe)).log
    if not isinstance(log, KafkaLog):
        raise ConfigError(
            f'{config_file}: [log] kind = "embedded": one process routes all its partitions; they cannot grow'
        )

    async def grow() -> None:
        await log.start()
        try:
            await log.grow(count, print)
        finally:
            await log.close()

    try:
        asyncio.run(grow())
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command(rich_help_panel=KAFKA)
def reroute(
    *,
    config_file: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="The configuration with the new rules.")
    ],
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="2026-11-21T08:00:00Z: of the first frame.")],
    name: Annotated[
        str, typer.Option("--route", metavar="NAME", help="The route: its name, or its topic where it has none.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="TOPIC", help="The topic to write to; made where it is missing.")],
    allow_unsafe: AllowUnsafeOption = False,
) -> None:
    """Route frames of the journal once more, into another topic.

    By the rules of now, beside the running ingest; each message once.
    """
    import logging

    from cloud_ingest.reroute import Rerouting

    try:
        at = dt.datetime.fromisoformat(since)
    except ValueError as error:
        raise ConfigError(f"--from {since!r} is no time; write 2026-11-21T08:00:00Z") from error
    at = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
    if at > dt.datetime.now(dt.UTC):
        raise ConfigError(f"--from {since}: that is still to come; give the time of the first frame to be routed again")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    job = Rerouting(config.read(config_file, allow_unsafe=allow_unsafe), name, to, int(at.timestamp() * 1000))
    try:
        with busy(f"routing into {to}"):
            asyncio.run(job.run())
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    if job.was_done:
        print(f"{to} was written before; to route by other rules, or from another time, name another topic")
        return
    print(f"{job.records} records written to {to}, {job.dead} dead letters to {to}.dlq")
    if job.unreadable:
        print(f"{job.unreadable} frames could not be read: damaged, or their dictionary is gone")


@app.command(rich_help_panel=SERVICE)
def status(config_file: ConfigOption = None, data: DataOption = None, *, as_json: JsonOption = False) -> None:
    """Say how the ingest on this machine is doing."""
    import msgspec

    from cloud_ingest.status import CloudSnapshot, render
    from waybill import snapshot

    settings = located(config_file, data, None)
    answer = asyncio.run(snapshot.request(settings.socket, "snapshot"))
    if as_json:
        print(msgspec.json.encode(answer).decode())
    else:
        from rich.console import Console

        Console().print(render(msgspec.convert(answer, CloudSnapshot)))


@ca.command("init")
def ca_init(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to make it.")] = _PKI / "ca",
) -> None:
    """Make a certificate authority.

    Its key signs every certificate: keep it off the nodes.
    """
    from waybill import pki

    made = pki.ca_init(directory, now=_now())
    print(f"made {made.certificate} and {made.key}; keep the key off the nodes and backed up")


@server.command("issue")
def server_issue(
    hosts: Annotated[
        list[str], typer.Argument(metavar="HOST...", help="DNS names and addresses by which gateways reach the node.")
    ],
    authority: CaOption = _PKI / "ca",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to put it.")] = _PKI / "server",
) -> None:
    """Issue the certificate of an ingest node."""
    from waybill import pki

    made = pki.issue_server(authority, out, hosts, now=_now())
    print(f'made {made.certificate} and {made.key}; in the ingest\'s file:\n\n[listener]\ncertificate = "'
          f'{made.certificate.resolve()}"\nkey = "{made.key.resolve()}"\nca = "{made.ca.resolve()}"')  # fmt: skip


@gateway.command("issue")
def gateway_issue(
    gateway_id: Annotated[str, typer.Argument(metavar="ID", help="The gateway's id.")],
    authority: CaOption = _PKI / "ca",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to put it; default pki/gateways/ID.")
    ] = None,
) -> None:
    """Issue a gateway's certificate and key, and whom it trusts."""
    from waybill import pki

    made = pki.issue_gateway(
        authority, out or _PKI / "gateways" / pki.check_gateway_id(gateway_id), gateway_id, now=_now()
    )
    print(f"made {made.certificate.parent} for {gateway_id}: bring the directory to the gateway, and keep no copy")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)

"""``waybill command``: send a command to a device and follow what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from cloud_ingest import command_record, logs
from cloud_ingest.config import Topics
from cloud_ingest.following import Readable, following
from cloud_ingest.journal.port import CaughtUp
from cloud_ingest.where import BootstrapOption, ConfigOption, DataOption, located
from waybill.config import milliseconds
from waybill.errors import ConfigError, Unavailable
from waybill.printable import printable
from waybill.wire import CommandStatus

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Send a command to a device and follow it.")

TERMINAL: Final = frozenset({"done", "expired", "rejected"})
"""States after which nothing more is said of a command."""

_decode_status = msgspec.json.Decoder(CommandStatus).decode


@app.command()
def send(  # noqa: PLR0913 - a command's fields, each an option
    device: Annotated[str, typer.Option("--device", metavar="ID", help="The device, as in cmd/DEVICE/…")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What is to be done.")],
    *,
    gateway: Annotated[
        str, typer.Option("--gateway", metavar="ID", help="What it is behind; without, the cloud.")
    ] = "",
    payload: Annotated[str | None, typer.Option("--payload", metavar="JSON", help="Any JSON value.")] = None,
    payload_file: Annotated[
        Path | None, typer.Option("--payload-file", metavar="FILE", help="Its bytes are sent.")
    ] = None,
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="From now; later it is not carried out.")
    ] = "60s",
    id_: Annotated[str | None, typer.Option("--id", metavar="ID", help="Carried out once an id; else random.")] = None,
    config_file: ConfigOption = None,
    data: DataOption = None,
    bootstrap: BootstrapOption = None,
) -> None:
    """Write a command for a device, and print its id."""
    fields: dict[str, Any] = {
        "id": secrets.token_hex(8) if id_ is None else id_,
        "gateway": gateway,
        "device": device,
        "name": name,
        "expires_at": time.time_ns() // 1_000_000 + milliseconds(expires),
    }
    if payload is not None and payload_file:
        raise ConfigError("--payload and --payload-file exclude each other: leave one out")
    if payload is not None:
        try:
            fields["payload"] = msgspec.json.decode(payload)
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"--payload is not JSON: {error}; a text needs its quotes: --payload '\"text\"'"
            ) from error
        fields["payload"] = msgspec.Raw(payload.encode())
    if payload_file:
        try:
            fields["payload_base64"] = payload_file.read_bytes()
        except OSError as error:
            raise ConfigError(f"--payload-file {payload_file}: cannot be read: {error.strerror}") from error
    settings = located(config_file, data, bootstrap)
    try:
        record = command_record.record(fields, settings.config.topics.commands)
    except command_record.MalformedCommand as error:
        raise ConfigError(str(error)) from error

    async def write() -> None:
        async with logs.appending(settings) as append:
            await append(record)

    asyncio.run(write())
    print(fields["id"])
    if sys.stdout.isatty():
        print(
            f"what becomes of it: waybill command watch {fields['id']}, with the same --config or --data",
            file=sys.stderr,
        )


@app.command()
def watch(
    id_: Annotated[str, typer.Argument(metavar="ID", help="What `send` printed.")],
    *,
    timeout: Annotated[str, typer.Option("--timeout", metavar="TIME", help="Give up after it without an end.")] = "1d",
    as_json: Annotated[bool, typer.Option("--json", help="The records, as JSON lines.")] = False,
    config_file: ConfigOption = None,
    data: DataOption = None,
    bootstrap: BootstrapOption = None,
) -> None:
    """Print the states of a command as they come.

    Exit code 0 when it is done, 1 when it expired or was rejected.
    """
    settings = located(config_file, data, bootstrap)
    patience = milliseconds(timeout) / 1000

    async def follow() -> CommandStatus:
        async with logs.reading(settings) as source:
            try:
                async with asyncio.timeout(patience):
                    return await until_terminal(source, settings.config.topics, id_, as_json=as_json)
            except TimeoutError as error:
                raise Unavailable(f"command {id_} has come to no end within {timeout}") from error

    with contextlib.suppress(KeyboardInterrupt):
        raise typer.Exit(0 if asyncio.run(follow()).state == "done" else 1)
    raise typer.Exit(130)


async def until_terminal(source: Readable, topics: Topics, id_: str, *, as_json: bool = False) -> CommandStatus:
    """Print the states of the command ``id_`` until a terminal one, and return that. Raises Unavailable, Refused."""
    seen = False
    async with following(source, [topics.command_status]) as records:
        async for record in records:
            if isinstance(record, CaughtUp):
                if not seen:
                    print(f"command {id_}: no state yet", file=sys.stderr)
                continue
            try:
                status = _decode_status(record.value or b"")
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if status.id != id_:
                continue
            seen = True
            print((record.value or b"").decode() if as_json else describe(status), flush=True)
            if status.state in TERMINAL:
                return status
    raise Unavailable(f"{topics.command_status} came to an end")


def describe(status: CommandStatus) -> str:
    """Return a state as a line for people."""
    detail = status.reason if status.result is None else status.result.decode(errors="backslashreplace")
    return printable(f"{status.state} {status.gateway}/{status.device} {detail}".rstrip())

"""``waybill edge init``: a few answers into a commented ``agent.toml`` that the agent takes as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent import config
from edge_agent.listener_config import LimitSettings, ListenerSettings
from edge_agent.uplink.config import UplinkSettings, check_uplinks
from waybill.config import address
from waybill.errors import ConfigError, Refused, WaybillError
from waybill.pki import check_gateway_id, gateway_of

NONE: Final = "none"
"""The answer for no uplink, and for no password file."""

BUNDLE: Final = ("ca.pem", "gateway.pem", "gateway.key")
"""What ``waybill cloud gateway issue`` makes."""

MOST_BUFFER: Final = 8 << 30
_GB: Final = 10**9
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Answers:
    """What is asked. ``certificates``: directory of the gateway's bundle; None: no TLS, or the system's CAs alone.

    ``passwords``: the file of who may connect; None: anybody who reaches ``listen``. ``buffer_gb``, ``budget_mb``: 10⁹
    and 10⁶ bytes; a budget of 0: the uplink is not metered.
    """

    gateway: str
    uplink: str
    certificates: Path | None
    listen: str
    passwords: str | None
    devices: int
    data: Path
    buffer_gb: float
    budget_mb: int


Ask = Callable[[str, str, str, Callable[[str], object]], str]
"""Asks one thing: its flag, the question, the default, what raises WaybillError or ValueError at a bad answer."""


def asked(ask: Ask, given: Collection[str]) -> Answers:
    """Get every answer through ``ask``; whether and how it is asked for may depend on an earlier one.

    ``given``: flags that were, which are heeded, or refused where they mean nothing. Raises ConfigError.
    """
    uplink = ask("--uplink", f"URL of the ingest, or {NONE} to keep everything here for now", "", check_uplink)
    text = ""
    if uplink.startswith(("mqtts:", "wss:")) or "--certificates" in given:
        text = ask("--certificates", "directory of this gateway's ca.pem, gateway.pem, gateway.key", "", _bundle)
    certificates = Path(text).expanduser() if text else None
    named = default_gateway(certificates)
    gateway = ask("--gateway", "this gateway's id", named, lambda said: _id(said, named if certificates else ""))
    listen = ask(
        "--listen", "address at which devices connect", "127.0.0.1:1883", lambda said: address(said, "--listen")
    )
    passwords: str | None = None
    if not ListenerSettings(*address(listen)).inside or "--passwords" in given:
        passwords = ask("--passwords", f"password file of devices; {NONE} lets in anybody", "users", _passwords)
    devices = ask("--devices", "how many devices at most", "200", lambda said: _within(said, 1, 100_000))
    data = Path(ask("--data", "where messages are kept", "/var/lib/waybill", _directory)).expanduser()
    room = f"{default_buffer_gb(data):g}"
    buffer = ask("--buffer-gb", "GB that waiting messages may take", room, lambda said: _within(said, 0.1, 100_000))
    budget = "0"
    if uplink == NONE and (vain := {"--budget-mb", "--certificates"} & {*given}):
        raise ConfigError(f"{min(vain)}: there is no uplink (--uplink {NONE}); leave it out")
    if uplink != NONE:
        budget = ask("--budget-mb", "MB a month that the uplink may carry; 0: it is not metered", "0", _budget)
    return Answers(
        gateway,
        uplink,
        certificates,
        listen,
        None if passwords == NONE else passwords,
        int(devices),
        data,
        float(buffer),
        int(budget),
    )


def check_uplink(text: str) -> None:
    """Raise ConfigError where ``text`` is no URL of an ingest, and not ``none`` either."""
    if text == NONE:
        return
    try:
        check_uplinks((UplinkSettings(text),), "")
    except ConfigError as error:
        raise ConfigError(f"{str(error).removeprefix(': [[uplink]] 1 url: ')}; or {NONE}") from error


def default_gateway(certificates: Path | None) -> str:
    """Return the id that the certificate names, else the host's name as far as it can be one."""
    if certificates is not None:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        path = certificates / BUNDLE[1]
        try:
            return gateway_of(x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER))
        except (OSError, ValueError, Refused) as error:
            raise ConfigError(f"{path}: {error}") from error
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "gateway"


def default_buffer_gb(data: Path) -> float:
    """Return half of what is free where the data will be, 8 GiB at most, in GB of one digit."""
    there = next(path for path in (data, *data.absolute().parents) if path.is_dir())
    return max(0.1, round(min(MOST_BUFFER, shutil.disk_usage(there).free / 2) / _GB, 1))


def write(file: Path, answers: Answers) -> None:
    """Write the file, once it has been read as the agent will. Raises ConfigError; nothing is ever overwritten."""
    if file.exists():
        raise ConfigError(f"{file} is there already and stays as it is; name another, or remove it first")
    if not file.parent.is_dir():
        raise ConfigError(f"{file.parent}: no such directory; make it first")
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(text(answers, file), encoding="utf-8")
        part.chmod(0o640)
        config.load(part)
        os.link(part, file)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(part), str(file))) from error
    except FileExistsError as error:
        raise ConfigError(f"{file} is there already and stays as it is") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def text(answers: Answers, file: Path) -> str:
    """Return the file's text; paths beside ``file`` are written relative to it."""
    return "\n".join(
        [*_head(answers), *_listener(answers), *_uplink(answers, file), *_buffer(answers), *_limits(answers)]
    )


def _head(answers: Answers) -> list[str]:
    return [
        "# The agent's configuration. All keys, their defaults and what they mean: docs/configuration.md.",
        "# Relative paths are relative to this file. waybill edge check --config FILE tries it out.",
        "",
        "# By this name the cloud knows the gateway; its certificate has to say the same.",
        f"gateway = {_toml(answers.gateway)}",
        "# The buffer: a message is here before its device gets the acknowledgement. On a disk of this machine.",
        f"data = {_toml(str(answers.data))}",
        "",
    ]


def _listener(answers: Answers) -> list[str]:
    host, port = address(answers.listen)
    lines = [
        "# Where devices connect, by MQTT 3.1.1 or 5. Repeat the table for more: TLS, WebSockets, Unix sockets.",
        "[[listener]]",
        f"host = {_toml(host)}",
        f"port = {port}",
    ]
    if answers.passwords is not None:
        lines += [
            "# waybill edge passwd FILE USER sets a device's password. Without TLS it crosses the network as it is:",
            '# certificate = "listener.pem" and key = "listener.key" encrypt it.',
            f"passwords = {_toml(answers.passwords)}",
        ]
    elif not ListenerSettings(host, port).inside:
        lines += ["# Anybody who reaches this address may publish, and read what others publish.", "anonymous = true"]
    else:
        lines += [
            "# From this machine alone, and anybody on it. 0.0.0.0 is the whole network: then say who may connect."
        ]
    return [*lines, ""]


def _uplink(answers: Answers, file: Path) -> list[str]:
    if answers.uplink == NONE:
        return [
            "# No way to the cloud yet: everything is kept here. With one it is:",
            "# [[uplink]]",
            '# url = "mqtts://ingest.example:8883"',
            *(f'# {key} = "{name}"' for key, name in zip(("ca", "certificate", "key"), BUNDLE, strict=True)),
            "",
        ]
    lines = [
        "# The way to the cloud. Repeat the table for more ways, in order of preference (docs/uplink.md).",
        "[[uplink]]",
        f"url = {_toml(answers.uplink)}",
    ]
    if answers.certificates is not None:
        lines.append("# Whom to believe, and who this gateway is (waybill cloud gateway issue ID).")
        base, beside = answers.certificates.absolute(), file.parent.absolute()
        base = base.relative_to(beside) if base.is_relative_to(beside) else base
        lines += [
            f"{key} = {_toml(str(base / name))}" for key, name in zip(("ca", "certificate", "key"), BUNDLE, strict=True)
        ]
    if not answers.budget_mb:
        return [
            *lines,
            "# metered = true                  # bytes cost money here: fewest bytes, and [plan] counts them",
            "",
        ]
    return [
        *lines,
        "# Bytes cost money here: messages travel in columns, and each ping of a longer keepalive saves 204 bytes.",
        "metered = true",
        "keepalive = 120",
        "",
        "# What the SIM may carry in a month, both ways. At it all waits here but receipts and results of commands.",
        "[plan]",
        f"budget_bytes = {answers.budget_mb * 1_000_000}",
        "cycle_day = 1                     # the day on which the operator begins to count anew",
        "",
    ]


def _buffer(answers: Answers) -> list[str]:
    return [
        "# What waits for the cloud. When it is full devices are told so and keep their messages;",
        '# a [[lane]] with when_full = "drop-oldest" would rather have the newest. How long: waybill edge plan.',
        "[buffer]",
        f"max_bytes = {int(answers.buffer_gb * _GB)}",
        "# Commits of few messages wait so many milliseconds for more: a third less wear of a card.",
        "gather_ms = 20",
        "",
    ]


def _limits(answers: Answers) -> list[str]:
    chosen = limits(answers.devices)
    ceiling = config.memory_ceiling(config.EdgeConfig("gateway", Path("/"), limits=LimitSettings(**chosen)))
    return [
        f"# For {answers.devices} devices, whatever they do: {ceiling // _MIB} MiB at most, and some 60 of the agent.",
        "# docs/security.md says what happens at each.",
        "[limits]",
        *(f"{key} = {value}" for key, value in chosen.items()),
        "",
    ]


def limits(devices: int) -> dict[str, int]:
    """Return the limits of a server for so many devices: what 200 need (docs/security.md), in proportion.

    What one device may take is the same for all sizes.
    """
    parts = max(1, -(-devices // 200))
    one = {"queue_messages": 5000, "queue_bytes": 4 * _MIB, "uncommitted_bytes": _MIB}
    all_of_them = {
        "subscription_bytes": 8 * _MIB,
        "queue_bytes_all": 32 * _MIB,
        "buffer_bytes_all": 16 * _MIB,
        "uncommitted_bytes_all": 8 * _MIB,
        "retained_messages": 5000,
        "retained_bytes": 4 * _MIB,
        "will_bytes": _MIB,
        "max_held_all": 20_000,
        "route_bytes": 8 * _MIB,
        "memory_clients": 500,
        "memory_entries": 20_000,
        "memory_entries_all": 50_000,
    }
    counts = {"max_connections": devices, "max_sessions": devices}
    return counts | one | {name: parts * value for name, value in all_of_them.items()}


def _toml(value: str) -> str:
    """Return a text as TOML's basic string: JSON's escapes are among its own."""
    return json.dumps(value, ensure_ascii=False)


def _bundle(said: str) -> None:
    directory = Path(said).expanduser()
    missing = [name for name in BUNDLE if said and not (directory / name).is_file()]
    if missing:
        raise ConfigError(
            f"{directory}: {', '.join(missing)} not there; waybill cloud gateway issue ID makes the three"
        )


def _id(said: str, named: str) -> None:
    check_gateway_id(said)
    if named and said != named:
        raise ConfigError(f"the certificate is of {named!r}: take that id, or bring the certificate of {said!r}")


def _passwords(said: str) -> None:
    if not said:
        raise ConfigError(f"write the name of a file, or {NONE}: then anybody is let in")


def _directory(said: str) -> None:
    path = Path(said).expanduser()
    if not path.is_absolute():
        raise ConfigError(f"{said}: write the whole path, such as /var/lib/waybill")
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        raise ConfigError(f"{there} is there and no directory: name another")


def _within(said: str, least: float, most: float) -> None:
    try:
        number = float(said)
    except ValueError as error:
        raise ConfigError(f"{said!r} is no number") from error
    whole = isinstance(least, int)
    if not least <= number <= most or (whole and not number.is_integer()):
        raise ConfigError(f"{said}: write a {'whole ' if whole else ''}number from {least:g} to {most:,}")


def _budget(said: str) -> None:
    _within(said, 0, 10_000_000)


def terminal(given: dict[str, str], read: Callable[[str], str], say: Callable[[str], None]) -> Ask:
    """Return what asks a person, for what is not ``given`` by flags, until the answer can be used."""

    def ask(flag: str, question: str, default: str, check: Callable[[str], object]) -> str:
        if flag in given:
            return flags(given)(flag, question, default, check)
        while True:
            said = read(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
            try:
                check(said)
            except (WaybillError, ValueError) as error:
                say(f"  {str(error).removeprefix(flag).lstrip(': ')}")
                continue
            return said

    return ask


def flags(given: dict[str, str]) -> Ask:
    """Return what answers from flags alone. Raises ConfigError where one is missing or wrong."""

    def ask(flag: str, question: str, default: str, check: Callable[[str], object]) -> str:
        said = given.get(flag, default)
        if not said and flag not in given and flag == "--uplink":
            raise ConfigError(f"{flag}: {question}; give it, or run this in a terminal, which asks")
        try:
            check(said)
        except WaybillError as error:
            raise ConfigError(str(error) if str(error).startswith(flag) else f"{flag}: {error}") from error
        return said

    return ask

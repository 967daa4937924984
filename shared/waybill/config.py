"""Configuration files: TOML into one typed, frozen object with visible defaults.

Every error is a ConfigError that names file, line or key, and the mend. Values resolve as: defaults < file < flags.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import re
import tomllib
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from waybill.errors import ConfigError

LogFormat = Literal["auto", "text", "journald", "json"]

T = TypeVar("T")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
Table = TypeVar("Table", bound=msgspec.Struct)

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_WORD = re.compile(r"Invalid enum value (?P<word>.*)")
_PATH = re.compile(r" - at `\$(?P<path>[^`]*)`$")


PORTS: Final = {"mqtts": 8883, "wss": 443, "mqtt": 1883, "ws": 80}
"""Schemes of the URL of an MQTT server, and the port that each has where none is given."""


class Server:
    """What the ``url`` of an MQTT server says: a base of tables that have one, which was checked."""

    __slots__ = ()

    url: str

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.url).scheme in {"mqtts", "wss"}

    @property
    def host(self) -> str:
        """The server's host."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The server's port."""
        parts = urlsplit(self.url)
        return parts.port or PORTS[parts.scheme]


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a process logs: :mod:`waybill.logs`. ``level``: what is less grave is left out."""

    format: LogFormat = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where monitoring systems ask: :mod:`waybill.metrics`. ``listen``: HOST:PORT."""

    listen: str = "127.0.0.1:9464"


def load(path: Path, kind: type[T]) -> T:
    """Read the TOML file ``path`` as ``kind`` (a msgspec Struct with ``forbid_unknown_fields=True``).

    Raises ConfigError: file missing or unreadable, TOML syntax (with its line), unknown or missing key, wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        msg = f"{path}: no such file; give the path of the configuration file with --config"
        raise ConfigError(msg) from error
    except PermissionError as error:
        msg = f"{path}: not for this user; run it as root (sudo), or as who owns that"
        raise ConfigError(msg) from error
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read: {error}"
        raise ConfigError(msg) from error
    try:
        table = tomllib.loads(text, parse_float=_finite)
    except ValueError as error:  # a TOMLDecodeError, and of numbers
        msg = f"{path}: not valid TOML: {error}"
        raise ConfigError(msg) from error
    return convert(table, kind, str(path))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        msg = f"{text}: no key takes that; give a number"
        raise ValueError(msg)
    return number


def convert(table: dict[str, Any], kind: type[T], where: str) -> T:
    """Turn ``table`` into ``kind``; ``where`` names its origin in errors. Raises ConfigError."""
    try:
        return msgspec.convert(table, kind, dec_hook=_custom)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), kind, where)) from error


def _custom(kind: type[Any], value: Any) -> Any:  # noqa: ANN401 - msgspec asks about any type that it does not know
    if kind is Path and isinstance(value, str):
        return Path(value)
    msg = f"expected {'a path, as text' if kind is Path else kind.__name__}, got {value!r}"
    raise ValueError(msg)


def _explain(text: str, kind: type[Any], where: str) -> str:
    """Say msgspec's message in terms of keys in the file, with the nearest known key as the mend."""
    found = _PATH.search(text)
    path = found["path"].lstrip(".") if found else ""
    text = _PATH.sub("", text)
    key = f"[{path}] " if path else ""
    if unknown := _UNKNOWN.search(text):
        tables = _tables(kind)
        known = tables.get(re.sub(r"\[[^]]*\]", "", path), set())
        near = difflib.get_close_matches(unknown["field"], known, n=1)
        others = [table for table, keys in tables.items() if table and unknown["field"] in keys]
        if near:
            mend = f"did you mean {near[0]!r}?"
        elif others:
            mend = f"it belongs below {' or '.join(f'[{table}]' for table in others)}"
        else:
            mend = f"known keys are: {', '.join(sorted(known))}"
        return f"{where}: {key}unknown key {unknown['field']!r}; {mend}"
    if missing := _MISSING.search(text):
        return f"{where}: {key}the key {missing['field']!r} is missing; add it"
    if wrong := _WORD.fullmatch(text):
        words = " or ".join(json.dumps(word) for word in _words(kind, path))
        return f"{where}: {path}: {wrong['word']}: write {words}"
    mend = f"; write [[{path}]], once for each" if text == "Expected `array`, got `object`" else ""
    return f"{where}: {path or 'top level'}: {text[:1].lower()}{text[1:]}{mend}"


def _words(kind: type[Any], path: str) -> list[Any]:
    """Return the words that the key at ``path`` takes."""
    at: list[Any] = [kind]
    for name in re.sub(r"\[[^]]*\]", "", path).split("."):
        inner = [struct for annotation in at for struct in _structs(annotation)]
        at = [item.type for struct in inner for item in msgspec.structs.fields(struct) if item.encode_name == name]
    return [word for annotation in at for word in _literals(annotation)]


def _literals(annotation: Any) -> list[Any]:  # noqa: ANN401 - any annotation can be asked
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return [*arguments]
    return [word for argument in arguments for word in _literals(argument)]


def _tables(kind: type[Any], path: str = "", seen: frozenset[type[Any]] = frozenset()) -> dict[str, set[str]]:
    """Return the key names of ``kind`` and of every struct within it, by the path of their table."""
    if kind in seen or not issubclass(kind, msgspec.Struct):
        return {}
    tables: dict[str, set[str]] = {path: set()}
    for item in msgspec.structs.fields(kind):
        tables[path].add(item.encode_name)
        for inner in _structs(item.type):
            for table, keys in _tables(inner, f"{path}.{item.encode_name}".lstrip("."), seen | {kind}).items():
                tables.setdefault(table, set()).update(keys)
    return tables


def _structs(annotation: Any) -> list[type[msgspec.Struct]]:  # noqa: ANN401 - any annotation can be asked
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return [annotation]
    return [inner for argument in getattr(annotation, "__args__", ()) for inner in _structs(argument)]


def check_files(table: msgspec.Struct, where: str, but: Collection[str] = ()) -> None:
    """Check that every path in ``table`` is a file, but for the keys ``but``. Raises ConfigError."""
    for key, path in _paths(table).items():
        if key not in but and not path.is_file():
            msg = f"{where} {key}: {path}: no such file"
            raise ConfigError(msg)


def relative_to(table: Table, base: Path) -> Table:
    """Return ``table`` with its paths relative to ``base``."""
    return msgspec.structs.replace(table, **{key: base / path.expanduser() for key, path in _paths(table).items()})


def _paths(table: msgspec.Struct) -> dict[str, Path]:
    values = {item.name: getattr(table, item.name) for item in msgspec.structs.fields(table)}
    return {name: value for name, value in values.items() if isinstance(value, Path)}


def address(text: str, what: str = "address") -> tuple[str, int]:
    """Split ``HOST:PORT`` (``[v6]:PORT`` too; port 0 for any free one). Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 - the largest port there is
        msg = f"{what} {text!r}: write HOST:PORT, for example 127.0.0.1:1883"
        raise ConfigError(msg)
    return host, int(port)


def milliseconds(text: str) -> int:
    """Read a time span such as ``60s``, ``5m``, ``1.5h``, ``2d``. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", text)
    if not found or not (span := int(float(found[1]) * _SECONDS[found[2]] * 1000)):
        raise ConfigError(f"{text!r} is no time span: write a number and ms, s, m, h or d, for example 60s")
    return span


def is_loopback(host: str) -> bool:
    """Tell whether ``host`` (an address, or ``localhost``) can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

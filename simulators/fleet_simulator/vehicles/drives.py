"""Recorded and standard drives: CSV files with named columns, and the speed traces that come with the package.

A CSV file here is UTF-8 (a byte order mark is fine), comma-separated as RFC 4180 has it; its first line names the
columns, every other line has as many fields as there are names. What is not so is a ConfigError with file, line and
mend.
"""

from __future__ import annotations

import csv
import datetime as dt
import functools
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import msgspec

from waybill.errors import ConfigError

TIME_COLUMNS: Final = ("timestamp", "cycle_sec", "cycSecs")
"""Columns taken as the time of a row where none is named; in recorded trips ``cycle_sec`` begins anew now and then."""

_MPH: Final = 0.44704
"""Metres a second in a mile an hour."""

_FASTEST: Final = 150.0

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file: ``line`` is its number there, ``fields`` its text by column."""

    line: int
    fields: dict[str, str]


def rows(path: Path | Traversable) -> Iterator[Row]:
    """Yield the rows of a CSV file. Raises ConfigError with file, line and mend."""
    line = 0
    try:
        with path.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = _header(path, next(reader, []))
            for fields in reader:
                line = reader.line_num
                if not fields:
                    continue  # an empty line, as many programs leave at the end
                if len(fields) != len(names):
                    raise ConfigError(
                        f"{path}:{line}: {len(fields)} fields where the first line names {len(names)}: "
                        "complete the line, or put quotes around a field that has a comma in it"
                    )
                yield Row(line, dict(zip(names, fields, strict=True)))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; name CSV files with a line of column names") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}: convert it, for example with iconv") from error
    except csv.Error as error:
        raise ConfigError(f"{path}:{line + 1}: not CSV: {error}; check the quotes of this line") from error


def _header(path: Path | Traversable, names: Sequence[str]) -> list[str]:
    cleaned = [name.strip() for name in names]
    if not cleaned:
        raise ConfigError(f"{path}:1: the file is empty: it needs a first line with the names of its columns")
    for number, name in enumerate(cleaned, 1):
        if not name:
            raise ConfigError(f"{path}:1: column {number} has no name: give it one")
        if cleaned.index(name) != number - 1:
            raise ConfigError(f"{path}:1: two columns are named {name!r}: rename one")
    if all(_JSON_NUMBER.fullmatch(name) for name in cleaned):
        raise ConfigError(f"{path}:1: {','.join(cleaned)!r} are numbers, not names: add a line with the column names")
    return cleaned


def seconds(path: Path, row: Row, column: str) -> float:
    """Return a row's time in seconds: a number, or an ISO 8601 date and time. Raises ConfigError."""
    text = row.fields[column].strip()
    if _JSON_NUMBER.fullmatch(text):
        return float(text)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"{path}:{row.line}: {column} is {text!r}, neither seconds nor a date and time such as "
            "2007-05-21 06:35:46: mend the line, name another column with --time-column, or use --speed max"
        ) from error
    # Without a zone only differences matter; UTC keeps them free of the machine's own zone and its clock changes.
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()


def json_value(text: str) -> msgspec.Raw:
    """Return a field as JSON: a number exactly as it is written, null where it is empty, else a string."""
    text = text.strip()
    if _JSON_NUMBER.fullmatch(text):
        return msgspec.Raw(text.encode())
    return msgspec.Raw(msgspec.json.encode(text or None))


@dataclass(frozen=True, slots=True)
class Drive:
    """A speed trace: ``speeds`` in m/s, one a second."""

    name: str
    speeds: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raise ConfigError where a speed is none."""
        if not self.speeds:
            raise ConfigError(f"drive {self.name}: it has no speeds: give one for each second")
        for second, speed in enumerate(self.speeds):
            if not 0 <= speed <= _FASTEST:
                raise ConfigError(
                    f"drive {self.name}: {speed:g} m/s in second {second}: speeds are 0 to {_FASTEST:.0f} m/s"
                )


def trips() -> list[Traversable]:
    """Return the recorded trips that come with the package, by name."""
    return _shipped("trips")


@functools.cache
def recordings() -> tuple[str, ...]:
    """Return the names of the drives that come with the package: standard cycles, then recorded trips."""
    return tuple(path.name.removesuffix(".csv") for path in _shipped("cycles") + _shipped("trips"))


def recorded(name: str) -> Drive:
    """Return one of ``recordings()``; any other name is a KeyError."""
    return _drive({path.name: path for path in _shipped("cycles") + _shipped("trips")}[f"{name}.csv"])


def _shipped(folder: str) -> list[Traversable]:
    files = (resources.files("fleet_simulator") / "data" / "drives" / folder).iterdir()
    return sorted((path for path in files if path.name.endswith(".csv")), key=lambda path: path.name)


def _drive(path: Traversable) -> Drive:
    speeds = tuple(
        float(row.fields["cycMps"]) if "cycMps" in row.fields else float(row.fields["speed_mph"]) * _MPH
        for row in rows(path)
    )
    return Drive(path.name.removesuffix(".csv"), speeds)

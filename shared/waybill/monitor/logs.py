"""The screen *Log*: what happened, the newest last. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from waybill.fleet_state import LogLine, LogState
from waybill.monitor.table import Column
from waybill.monitor.words import GLYPHS, Bit, Line, Tone, bit, many, moment

KEPT: Final = 2_000
"""So many lines are kept, the newest."""

_TONES: Final[dict[str, Tone]] = {"error": "bad", "warning": "look"}


def merged(known: LogState | None, told: LogState) -> LogState:
    """Return the lines that are known and those that were told since; of one ``number`` the newer one."""
    if known is None or not told.lines or not known.lines or told.lines[0].number <= known.lines[0].number:
        lines = told.lines or (known.lines if known else ())
    else:
        first = told.lines[0].number
        lines = (*(line for line in known.lines if line.number < first), *told.lines)
    return msgspec.structs.replace(told, lines=lines[-KEPT:])


def _tone(line: LogLine) -> Tone:
    return _TONES.get(line.level, "")


COLUMNS: Final[tuple[Column[LogLine], ...]] = (
    Column("time (UTC)", 19, lambda line: Bit(moment(line.at_ms)), lambda line: line.number),
    Column(
        "level",
        9,
        lambda line: bit(f"{GLYPHS[_tone(line)]} {line.level}", _tone(line)),
        lambda line: ("error", "warning", "info").index(line.level),
    ),
    Column("source", 12, lambda line: bit(line.source), lambda line: line.source, grow=1),
    Column("what happened", 20, lambda line: bit(line.text, _tone(line)), None, grow=6, prose=True),
)


def summary(log: LogState) -> Line:
    """Say how many lines there are, and how many of them are errors and warnings."""
    errors = sum(line.level == "error" for line in log.lines)
    warnings = sum(line.level == "warning" for line in log.lines)
    return (
        Bit(f"{many(len(log.lines), 'line')}  ", "head"),
        Bit(f"{GLYPHS['bad']} {many(errors, 'error')}  ", "bad" if errors else "quiet"),
        Bit(f"{GLYPHS['look']} {many(warnings, 'warning')}", "look" if warnings else "quiet"),
    )


def about(line: LogLine) -> Line:
    """Return the whole text of a line."""
    return bit(f"{line.source}: ", "head"), bit(line.text, _tone(line))

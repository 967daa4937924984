"""The log of a process: lines for people, for the journal of systemd, or JSON for whatever collects them.

Everything logs through Python's ``logging``; here alone is decided how a line looks (with structlog) and how many there
are. A line names its gateway: the agent's own, bound once, or in the ingest the one that the line is about, which is
given as ``extra={"gateway": …}``. Payloads and secrets are never logged.

===========  ===========================================================================================
format       a line
===========  ===========================================================================================
``text``     ``2026-11-21T19:44:36.123Z warning  edge_agent.clock: the clock is wrong …  gateway=depot-1``
``journald`` the same without its time, after the priority that ``sd-daemon(3)`` names: ``<4>…``
``json``     an object: ``time``, ``level``, ``logger``, ``text``, ``gateway``, ``trace`` after a failure
``auto``     ``journald`` where stderr is the journal (``JOURNAL_STREAM``, ``systemd.exec(5)``), else text
===========  ===========================================================================================
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TextIO

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level

from waybill.config import LogFormat, LogSettings
from waybill.printable import printable

EACH: Final = 10
BURST: Final = 100
KINDS: Final = 1000
"""Kinds of lines remembered; what was not said for longest is forgotten first."""

_PRIORITIES: Final = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
_EXTRA: Final = ("gateway", "left_out", "left_out_of_others")
_ABOUT: Final = {"event", "level", "logger", "timestamp", "exception"}

Line = MutableMapping[str, Any]


@dataclass(slots=True)
class _Kind:
    """``at``: monotonic seconds of the last line; ``room``: how many more may be said then."""

    at: float
    room: float = EACH
    unsaid: int = 0


class Limit(logging.Filter):
    """Bounds the lines: of each kind EACH, then one a second; of all together BURST a second.

    What others can cause at will cannot fill a disk. A kind is a place in the code, its text before values are put in,
    and the gateway that it is about. The next line of a kind says how many of it were left out.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """``monotonic``: seconds."""
        super().__init__()
        self._monotonic = monotonic
        self._kinds: dict[tuple[str, int, str, str], _Kind] = {}
        self._second = 0.0
        self._said = 0
        self._others = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether ``record`` is logged.

        It gets ``left_out``, how many of its kind were not, and ``left_out_of_others``, where there are such.
        """
        now = self._monotonic()
        kind = self._kind((record.pathname, record.lineno, str(record.msg), str(getattr(record, "gateway", ""))), now)
        kind.room = min(EACH, kind.room + now - kind.at)
        kind.at = now
        if kind.room < 1:
            kind.unsaid += 1
            return False
        if now - self._second >= 1:
            self._second, self._said = now, 0
        if self._said >= BURST:
            self._others += 1
            return False
        self._said += 1
        kind.room -= 1
        if kind.unsaid:
            record.left_out, kind.unsaid = kind.unsaid, 0
        if self._others:
            record.left_out_of_others, self._others = self._others, 0
        return True

    def _kind(self, name: tuple[str, int, str, str], now: float) -> _Kind:
        known = self._kinds.pop(name, None) or _Kind(now)
        while len(self._kinds) >= KINDS:
            self._others += self._kinds.pop(next(iter(self._kinds))).unsaid
        self._kinds[name] = known
        return known


class _Handler(logging.StreamHandler[TextIO]):
    """The one that this module has set up."""


def set_up(settings: LogSettings | None = None, stream: TextIO | None = None, **about: str) -> None:
    """Let this process log to ``stream`` (default: stderr); ``about`` is said on every line, as ``gateway=…``.

    May be called again, when the configuration is read.
    """
    settings = settings or LogSettings()
    stream = stream or sys.stderr
    handler = _Handler(stream)
    handler.addFilter(Limit())
    handler.setFormatter(_formatter(_format(settings.format, stream), about))
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())


def _format(asked: LogFormat, stream: TextIO) -> LogFormat:
    if asked != "auto":
        return asked
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return "text"
    return "journald" if os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}" else "text"


def _formatter(form: LogFormat, about: dict[str, str]) -> logging.Formatter:
    def bind(_logger: object, _method: str, line: Line) -> Line:
        return {**about, **line}

    render = {"json": _json, "journald": _journald}.get(form, _text)
    return ProcessorFormatter(
        processors=[
            _time,
            ExtraAdder(_EXTRA),
            bind,
            structlog.processors.format_exc_info,
            ProcessorFormatter.remove_processors_meta,
            render,
        ],
        foreign_pre_chain=[add_log_level, structlog.stdlib.add_logger_name],
    )


def _time(_logger: object, _method: str, line: Line) -> Line:
    record: logging.LogRecord = line["_record"]
    at = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
    line["timestamp"] = at.replace("+00:00", "Z")
    return line


def _json(_logger: object, _method: str, line: Line) -> str:
    told = {"time": line["timestamp"], "level": line["level"], "logger": line["logger"], "text": str(line["event"])}
    told |= {key: value for key, value in line.items() if key not in _ABOUT}
    if "exception" in line:
        told["trace"] = line["exception"]
    return json.dumps(told, default=str)


def _text(_logger: object, _method: str, line: Line) -> str:
    return f"{line['timestamp']} {line['level']:<8} {_told(line)}"


def _journald(_logger: object, _method: str, line: Line) -> str:
    priority = _PRIORITIES.get(line["level"], 6)
    return "\n".join(f"<{priority}>{each}" for each in _told(line).splitlines())


def _told(line: Line) -> str:
    """Return what stands behind time and level. Nothing that others sent moves a cursor or makes a line of its own."""
    values = "".join(f"  {key}={value}" for key, value in line.items() if key not in _ABOUT)
    lines = [f"{line['logger']}: {line['event']}{values}", *line.get("exception", "").splitlines()]
    return "\n".join(map(printable, lines))

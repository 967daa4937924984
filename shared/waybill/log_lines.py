"""The newest lines of a process's log, kept for those who watch it from elsewhere."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Iterator
from typing import Final, Literal

from waybill.fleet_state import LogLine, LogState

KEPT: Final = 500
TEXT: Final = 500
"""Characters of a line that are kept."""

Level = Literal["info", "warning", "error"]


class LogLines(logging.Handler):
    """A ring of ``KEPT`` lines. As a handler it takes records of ``logging`` from ``INFO`` on."""

    def __init__(self) -> None:
        """Start with none."""
        super().__init__(logging.INFO)
        self._lines: deque[LogLine] = deque(maxlen=KEPT)
        self._start = secrets.token_hex(4)
        self._number = 0

    def add(self, level: Level, source: str, text: str, at_ms: int) -> None:
        """Keep a line."""
        self._number += 1
        self._lines.append(LogLine(self._number, at_ms, level, source[:TEXT], text[:TEXT]))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        try:
            level: Level = (
                "info" if record.levelno < logging.WARNING else "warning" if record.levelno < logging.ERROR else "error"
            )
            source = getattr(record, "gateway", None) or record.name.rpartition(".")[2]
            self.add(level, str(source), record.getMessage(), int(record.created * 1000))
        except Exception:  # noqa: BLE001 - a handler must not raise into who logs
            self.handleError(record)

    def state(self, since: str = "") -> LogState:
        """Return the lines after ``since`` (:attr:`LogState.since` of an answer before), or all."""
        start, _, number = since.partition("-")
        after = int(number) if start == self._start and number.isdecimal() and len(number) < len(str(1 << 63)) else 0
        lines = tuple(line for line in self._lines if line.number > after)
        return LogState(time.time_ns() // 1_000_000, lines, f"{self._start}-{self._number}")

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Take what this process logs, while the context is open."""
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)

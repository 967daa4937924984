"""Log lines that a client can cause with each message: one a second of each kind, and how many were left out.

For what may be as frequent as messages: a line that is made for :class:`waybill.logs.Limit` to drop costs more than a
message.
"""

from __future__ import annotations

import logging
from typing import Final

logger = logging.getLogger(__name__)

SECOND: Final = 1_000_000_000


class Notices:
    """The kinds of lines, and when each may be said again."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._unsaid: dict[str, int] = {}

    def warn(self, now_ns: int, text: str, *values: object) -> None:
        """Log ``text % values``, or count it; the text is the kind, a constant. ``now_ns``: monotonic."""
        if now_ns < self._next.get(text, now_ns):
            self._unsaid[text] = self._unsaid.get(text, 0) + 1
            return
        unsaid = self._unsaid.pop(text, 0)
        logger.warning(f"{text}%s", *values, f" (and {unsaid} more lately)" if unsaid else "")
        self._next[text] = now_ns + SECOND

"""Log lines that somebody else can cause as often as he likes: one a second at most, and how many were left out."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class Seldom:
    """Warnings of one kind."""

    def __init__(self, mono: Callable[[], float]) -> None:
        """``mono``: monotonic seconds."""
        self._mono = mono
        self._next = 0.0
        self._unsaid = 0

    def say(self, text: str) -> None:
        """Log ``text``, or count it."""
        now = self._mono()
        if now < self._next:
            self._unsaid += 1
            return
        more = f" (and {self._unsaid} more lately)" if self._unsaid else ""
        log.warning("%s%s", text, more)
        self._next, self._unsaid = now + 1, 0

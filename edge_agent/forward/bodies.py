"""Which body the next frame gets. Pure: times come in.

``columns`` makes a frame three to four times smaller than ``plain`` for ten times the work. So it is the one to take
while the forwarder has nothing better to do than to wait: for the link to take bytes, for credit, or for messages. Over
the last few frames the waiting is compared with the work that columns are for them:

    plain ──▶ columns   it waited for longer than the work would have taken
    columns ──▶ plain   it waits for less than a quarter of the work: bytes do not limit any more, the work does

Waiting for messages counts for a quarter: devices want the processor, too. A new link is taken for a slow one. On a
metered link bytes cost money, and it is columns always.
"""

from __future__ import annotations

from typing import Final, Literal

Body = Literal["auto", "plain", "columns"]
"""What is configured."""

KEPT: Final = 7 / 8
"""How much of a frame's figures counts one frame later."""

GRAIN: Final = 0.005
"""Waits of fewer seconds are the event loop's own."""

LONGEST: Final = 1.0
"""Seconds of waiting that count for one frame at most: a link that hung is soon forgotten."""

FIRST_WORK: Final = 20e-6
"""Seconds that columns take a message, before the first was measured."""


class Bodies:
    """Chooses for one forwarder. All seconds are monotonic time."""

    def __init__(self, wanted: Body) -> None:
        self._wanted = wanted
        self._seconds, self._messages = FIRST_WORK, 1.0  # what columns took, for how many
        self.connected()

    def connected(self, *, metered: bool = False) -> None:
        """Begin anew: another connection may be another link, and another receiver. ``metered``: bytes cost money."""
        self._metered = metered
        self._refused = False
        self._chosen = True
        self._pause = 0.0
        self._waited = LONGEST
        self._work = 0.0

    @property
    def columns(self) -> bool:
        """Whether the next frame goes in columns."""
        wanted = self._wanted == "columns" or (self._wanted == "auto" and (self._chosen or self._metered))
        return wanted and not self._refused

    @property
    def fewest(self) -> bool:
        """Whether bytes count more than any work for them."""
        return self._wanted == "columns" or self._metered

    def waited(self, seconds: float) -> None:
        """The forwarder had something to send, and waited for the link or for credit."""
        if seconds > GRAIN:
            self._pause += seconds

    def idled(self, seconds: float) -> None:
        """The forwarder had nothing to send."""
        self.waited(seconds / 4)

    def encoded(self, messages: int, seconds: float | None = None) -> None:
        """A frame is encoded. ``seconds``: what columns took of a processor; None where it is plain."""
        if seconds is not None:
            self._seconds = KEPT * self._seconds + seconds
            self._messages = KEPT * self._messages + messages
        self._waited = KEPT * self._waited + min(self._pause, LONGEST)
        self._work = KEPT * self._work + messages * self._seconds / self._messages
        self._pause = 0.0
        self._chosen = self._waited > (self._work / 4 if self._chosen else self._work)

    def refused(self) -> None:
        """The cloud refused a frame in columns: it may not know them. Plain, until the next connection."""
        self._refused = True

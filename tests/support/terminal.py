"""The monitor on a terminal that a test looks at."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from textual.pilot import Pilot

from tests.support import svg
from waybill.monitor.app import Monitor

PATIENCE = 60.0
"""Seconds that a machine with much to do may take for what comes at once."""


class Terminal:
    """A terminal of ``cells`` by ``lines`` with the monitor on it."""

    def __init__(self, app: Monitor, pilot: Pilot[None]) -> None:
        self.app = app
        self._pilot = pilot

    @property
    def text(self) -> str:
        """What is on it, without colours."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)

    def picture(self, title: str) -> str:
        """Return it as SVG."""
        return svg.drawn([list(strip) for strip in self.app.screen._compositor.render_strips()], title)

    async def until(self, seen: Callable[[str], bool]) -> str:
        """Wait for what is to be seen, and return it."""
        deadline = time.monotonic() + PATIENCE
        while not seen(self.text):
            assert time.monotonic() < deadline, f"not seen within {PATIENCE} s:\n{self.text}"
            await self._pilot.pause()
            await asyncio.sleep(0.01)
        return self.text

    async def shows(self, *words: str) -> str:
        """Wait until it holds all ``words``, and return it."""
        return await self.until(lambda text: all(word in text for word in words))

    async def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        await self._pilot.press(*keys)

    async def write(self, words: str) -> None:
        """Write words."""
        await self._pilot.press(*("space" if letter == " " else letter for letter in words))

    async def resize(self, cells: int, lines: int) -> None:
        """Give it another size."""
        await self._pilot.resize_terminal(cells, lines)


@contextlib.asynccontextmanager
async def terminal(app: Monitor, cells: int = 80, lines: int = 24) -> AsyncIterator[Terminal]:
    """Give a terminal with ``app`` on it."""
    async with app.run_test(size=(cells, lines)) as pilot:
        yield Terminal(app, pilot)

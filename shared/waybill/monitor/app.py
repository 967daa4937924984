"""The terminal: textual's loop, keys, and one task that asks.

One task asks for what is on the screen, and only for that; pure functions draw what comes (``panes``, ``views``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Final

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from waybill.errors import Unavailable
from waybill.monitor import sources
from waybill.monitor.dialogs import Command, Sheet, how_to_send
from waybill.monitor.panes import Pane, tabs
from waybill.monitor.sending import Sender
from waybill.monitor.sources import Kind, Source
from waybill.monitor.views import VIEWS, Table, whole
from waybill.monitor.widgets import Board
from waybill.monitor.words import Bit, Line, bit, width

TICK: Final = 1.0
"""Seconds between two looks at the clock while nothing answers."""

BOARDS: Final = 5
"""Of the screen; while that is made, or taken down, it has fewer."""

HELP: Final = """\
1 2 3 4        the screens, by their numbers
↑ ↓ j k        a row, or a line, up and down
PgUp PgDn      a page;  Home End: to the first, to the last
Enter          open the row: a gateway's screen, or all that the row says
Esc            back
/              filter: rows that hold all words;  !word: that do not hold it
s  S           sort by the next column;  the other way round
n              send a command, after a question
r              ask again now
?              this help
q  Ctrl-C      quit

● good   ▲ to be looked at   ✖ wrong   ○ not known   – no value
Times are UTC. Without colour (NO_COLOR) nothing is lost: marks and words say it all."""


class Monitor(App[None]):
    """The monitor. ``sender``: None where nothing can be sent from here. ``interval``: seconds between two pictures."""

    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    CSS = """
    Screen { layout: vertical; background: ansi_default; color: ansi_default; overflow: hidden; }
    ModalScreen { background: ansi_default; }
    Input, Input:focus { border: none; height: 1; padding: 0; background: ansi_default; color: ansi_default; }
    #filter { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", show=False),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("question_mark", "keys", show=False),
        Binding("slash", "filter", show=False),
        Binding("s", "sort", show=False),
        Binding("S,upper_s", "turn", show=False),
        Binding("n", "send", show=False),
        Binding("r", "again", show=False),
        Binding("enter", "open", show=False),
        Binding("escape", "leave", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("up,k", "move(-1)", show=False),
        Binding("pagedown,space", "page(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("home,g", "end(True)", show=False),
        Binding("end,G,upper_g", "end(False)", show=False),
        *(Binding(str(number), f"view({number})", show=False) for number in range(1, 5)),
    ]

    def __init__(
        self,
        source: Source,
        *,
        sender: Sender | None = None,
        interval: float = 1.0,
        begin: tuple[Kind, str, str] | None = None,
        now: Callable[[], float] = sources.now,
    ) -> None:
        """``begin``: the screen, the gateway and the filter to begin with. ``now``: the clock of feeds."""
        super().__init__(ansi_color=True)
        self.animation_level = "none"
        self._source = source
        self._sender = sender
        self._interval = interval
        self._now = now
        # A gateway of the fleet is opened from the fleet; that of an agent is there by itself.
        listed = [kind for kind in source.kinds if kind != "gateway" or "fleet" not in source.kinds]
        self._panes = [Pane(VIEWS[kind]) for kind in listed]
        self._back: list[Pane] = []
        self._wake = asyncio.Event()
        self._notice = source.notice
        self.pane = self._panes[0]
        if begin is not None:
            kind, gateway, words = begin
            known = next((pane for pane in self._panes if pane.view.kind == kind), None)
            self.pane = known or Pane(VIEWS[kind], gateway)
            self._back = [] if known else [self._panes[0]]
            self.pane.filter(words)
        self.title = "waybill monitor"

    def compose(self) -> ComposeResult:
        """Lay the screen out: a line of tabs, a summary, the body, a line on what is looked at, the keys."""
        yield Board(id="tabs", classes="line")
        yield Board(id="summary", classes="line")
        yield Board(id="body")
        yield Board(id="about", classes="line")
        yield Input(id="filter", placeholder="words that a row must hold; !word: must not", compact=True)
        yield Board(id="keys", classes="line")

    def on_mount(self) -> None:
        """Begin to ask."""
        self.query_one(Input).cursor_blink = False
        self.set_focus(None)
        self.run_worker(self._ask(), name="ask", exit_on_error=True)
        if not self.is_headless:  # whoever ends it gets the terminal back as it was
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self._end, number)

    def _end(self, number: int) -> None:
        self.exit(return_code=128 + number)

    def on_resize(self) -> None:
        """Draw for the new size, once it is everywhere."""
        self.call_after_refresh(self.draw)

    # --- what is asked for ---

    async def _ask(self) -> None:
        """Ask for what the screen shows, for as long as it runs."""
        while True:
            if not self.is_headless and not os.isatty(0):
                self._end(signal.SIGHUP)  # the terminal is gone, and nobody said so
                return
            pane = self.pane
            self._wake.clear()
            if self._now() >= pane.feed.due:
                await self._ask_for(pane)
                self.draw()
            left = max(0.0, pane.feed.due - self._now()) if pane is self.pane else 0.0
            if pane.feed.error:
                left = min(left, TICK)
            await _pause(self._wake, left)
            if pane.feed.error:
                self.draw()

    async def _ask_for(self, pane: Pane) -> None:
        """Ask once; what a person does meanwhile with another pane does not wait for the answer."""
        asking = asyncio.create_task(self._source.ask(pane.view.kind, pane.gateway), name="ask once")
        waking = asyncio.create_task(self._wake.wait(), name="wake")
        try:
            while not asking.done():
                await asyncio.wait({asking, waking}, return_when=asyncio.FIRST_COMPLETED)
                if waking.done() and pane is not self.pane:
                    return
                if waking.done() and not asking.done():
                    self._wake.clear()
                    waking = asyncio.create_task(self._wake.wait(), name="wake")
            try:
                picture = asking.result()
            except Unavailable as error:
                pane.feed = pane.feed.failed(str(error), self._now())
            else:
                pane.feed = pane.feed.arrived(picture, self._now(), max(self._interval, pane.view.apart))
        finally:
            for task in (asking, waking):
                task.cancel()
            await asyncio.gather(asking, waking, return_exceptions=True)

    async def on_unmount(self) -> None:
        """Let go of what is open."""
        await self._source.close()

    # --- what is drawn ---

    def draw(self) -> None:
        """Draw all of it; what did not change is not sent to the terminal."""
        if not self.screen_stack:
            return
        boards = {board.id: board for board in self.screen_stack[0].query(Board)}
        if len(boards) < BOARDS:
            return
        body = boards["body"]
        cells, height = body.size
        if not height:
            return
        pane = self.pane
        old = bool(pane.feed.error)
        lines, cursor = pane.lines(cells, height, self._source.name)
        body.show(lines, cursor=cursor, old=old and pane.feed.picture is not None)
        boards["tabs"].show([tabs(self._panes, pane, cells, self._source.name)])
        boards["summary"].show([pane.summary(self._now())])
        about = (bit(self._notice, "look"),) if self._notice else pane.about()
        boards["about"].show([about], old=old and not self._notice)
        boards["keys"].show([self._keys()])

    def _keys(self) -> Line:
        """Return the keys that mean something here."""
        table = isinstance(self.pane.view.body, Table)
        pane = self.pane
        words = "Enter open  " if table else "↑↓ scroll  "
        back = "Esc back  " if self._back or pane.order.filter else ""
        keys = Bit(f"{words}/ filter  s by {pane.order.column}  n send  {back}? help  q quit", "quiet")
        where = bit(pane.position)
        room = self.size.width - width((keys, where))
        return (keys, Bit(" " * room), where) if room > 0 else (keys,)

    # --- keys ---

    def _go(self, pane: Pane) -> None:
        """Show ``pane``, and ask for it at once."""
        self.pane = pane
        self._notice = ""
        self._hide_filter()
        if not pane.feed.failures:
            pane.feed = replace(pane.feed, due=0.0)
        self._wake.set()
        self.draw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - textual's
        """Leave keys to what lies over the screen."""
        return len(self.screen_stack) == 1 or action == "quit" or action.startswith("focus")

    def action_view(self, number: int) -> None:
        """Go to the screen of a number."""
        if number <= len(self._panes):
            self._back.clear()
            self._go(self._panes[number - 1])

    def action_open(self) -> None:
        """Open the row that is looked at."""
        body, row = self.pane.view.body, self.pane.row
        if not isinstance(body, Table) or row is None:
            return
        if body.opens is None:
            self.push_screen(Sheet(whole(body, row, self.size.width)))
            return
        self._back.append(self.pane)
        self._go(Pane(VIEWS["gateway"], body.opens(row)))

    def action_leave(self) -> None:
        """Give up the filter, or go back to where one came from."""
        if self.query_one("#filter", Input).display or self.pane.order.filter:
            self._hide_filter()
            self.pane.filter("")
        elif self._back:
            self._go(self._back.pop())
        self._notice = ""
        self.draw()

    def action_move(self, by: int) -> None:
        """Go up or down."""
        self._notice = ""
        self.pane.move(by)
        self.draw()

    def action_page(self, pages: int) -> None:
        """Go pages up or down."""
        self.pane.page(pages)
        self.draw()

    def action_end(self, first: bool) -> None:  # noqa: FBT001 - textual calls it by position
        """Go to an end."""
        self.pane.end(first=first)
        self.draw()

    def action_sort(self) -> None:
        """Sort by what comes next."""
        self.pane.sort()
        self.draw()

    def action_turn(self) -> None:
        """Sort the other way round."""
        self.pane.turn()
        self.draw()

    def action_again(self) -> None:
        """Ask again now."""
        self.pane.feed = replace(self.pane.feed, due=0.0)
        self._wake.set()

    def action_keys(self) -> None:
        """Show the help."""
        head: list[Line] = [(Bit("waybill monitor ", "head"), bit(f"of {self._source.name}")), ()]
        self.push_screen(Sheet([*head, *((Bit(each),) for each in HELP.splitlines())]))

    # --- the filter ---

    def action_filter(self) -> None:
        """Let words be written that rows must hold."""
        field = self.query_one("#filter", Input)
        field.value = self.pane.order.filter
        field.display = True
        self.set_focus(field)

    def _hide_filter(self) -> None:
        with contextlib.suppress(LookupError):
            field = self.screen_stack[0].query_one("#filter", Input)
            field.display = False
            self.set_focus(None)
            self.call_after_refresh(self.draw)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is being written."""
        if event.input.id == "filter" and event.input.display:
            self.pane.filter(event.value)
            self.draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the filter."""
        if event.input.id == "filter":
            self._hide_filter()

    # --- commands ---

    def action_send(self) -> None:
        """Write a command, for the row that is looked at where that is a gateway's or a command's."""
        gateway, device = self._aim()
        if self._sender is None:
            self.push_screen(Sheet(how_to_send(gateway, device, self.size.width)))
        else:
            self.push_screen(Command(self._sender, gateway=gateway, device=device), self._sent)

    def _aim(self) -> tuple[str, str]:
        kind: Kind = self.pane.view.kind
        row = self.pane.row
        if kind == "gateway":
            picture = self.pane.feed.picture
            return self.pane.gateway or ("" if picture is None else picture.row.gateway), ""
        if row is None or kind not in {"fleet", "commands"}:
            return "", ""
        return str(row.row.gateway), str(getattr(row.row, "device", ""))

    def _sent(self, became: str | None) -> None:
        self._notice = became or ""
        self.draw()


async def _pause(wake: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wake.wait()

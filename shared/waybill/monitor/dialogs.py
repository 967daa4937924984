"""Screens over the screen: a text, and a command that is to be sent."""

from __future__ import annotations

import secrets
from typing import Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Input

from waybill.errors import WaybillError
from waybill.monitor.sending import Sender, checked
from waybill.monitor.widgets import Board
from waybill.monitor.words import Bit, Line, bit, folded

_QUIET: Final = "ctrl+c"


class Sheet(ModalScreen[None]):
    """A text to read; the next key closes it, but for those that go through it."""

    def __init__(self, lines: list[Line]) -> None:
        """Show ``lines``."""
        super().__init__()
        self._lines = lines
        self._top = 0

    def compose(self) -> ComposeResult:
        """Fill the screen."""
        yield Board(id="sheet")
        yield Board(id="sheet-foot", classes="line")

    def on_mount(self) -> None:
        """Show it once its size is known."""
        self.call_after_refresh(self._show)

    def on_resize(self) -> None:
        """Show it anew."""
        self.call_after_refresh(self._show)

    def _show(self) -> None:
        board = self.query_one("#sheet", Board)
        self._top = max(0, min(self._top, len(self._lines) - board.size.height))
        board.show(self._lines[self._top :])
        below = len(self._lines) - self._top > board.size.height
        words = "↓ more   any other key: back" if below else "any key: back"
        self.query_one("#sheet-foot", Board).show([(Bit(words, "quiet"),)])

    def on_key(self, event: Key) -> None:
        """Scroll, or close."""
        event.stop()
        steps = {"down": 1, "up": -1, "pagedown": 20, "pageup": -20, "j": 1, "k": -1}
        if event.key in steps:
            self._top += steps[event.key]
            self._show()
        elif event.key != _QUIET:
            self.dismiss()


class Command(ModalScreen[str]):
    """A command, written, then confirmed, then sent. Gives back what became of it; empty: it was not sent."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", show=False),
        Binding("down,tab", "app.focus_next", show=False),
        Binding("up,shift+tab", "app.focus_previous", show=False),
        Binding("y", "send", show=False),
        Binding("n", "back", show=False),
    ]
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("gateway", "what the device is behind; empty: the cloud itself"),
        ("device", "as in cmd/DEVICE/…"),
        ("name", "what is to be done"),
        ("payload", "any JSON value, or nothing"),
        ("expires", "not carried out later than this from now: 60s, 5m, 2h"),
    )

    def __init__(self, sender: Sender, **known: str) -> None:
        """``known``: what the fields hold at first, but what a terminal would obey."""
        super().__init__()
        self._sender = sender
        self._known = {"expires": "60s", **{name: text for name, text in known.items() if text.isprintable()}}
        self._fields: dict[str, Any] | None = None
        self._command_id = ""

    def compose(self) -> ComposeResult:
        """One line a field."""
        with Vertical():
            yield Board(id="command-title", classes="line")
            for name, hint in self.FIELDS:
                yield Board(id=f"label-{name}", classes="line")
                yield Input(self._known.get(name, ""), placeholder=hint, id=f"field-{name}", compact=True)
            yield Board(id="command-says")
            yield Board(id="command-foot", classes="line")

    def on_mount(self) -> None:
        """Begin at the first field that is empty."""
        for each in self.query(Input):
            each.cursor_blink = False
        empty = [name for name, _ in self.FIELDS if not self._known.get(name)]
        self.query_one(f"#field-{empty[0] if empty else 'name'}", Input).focus()
        self.call_after_refresh(self._show)

    def on_resize(self) -> None:
        """Show it anew."""
        self.call_after_refresh(self._show)

    def _show(self, words: str = "", *, bad: bool = False) -> None:
        self.query_one("#command-title", Board).show([(Bit("Send a command", "head"),)])
        for name, _ in self.FIELDS:
            self.query_one(f"#label-{name}", Board).show([(Bit(name, "quiet"),)])
        says = self.query_one("#command-says", Board)
        says.show([(), *folded(words, max(20, says.size.width), "bad" if bad else "head")] if words else [])
        keys = "Enter: go on   ↑↓: fields   Esc: do not send"
        if self._fields is not None:
            keys = "y: send it   n, Esc: back to the fields"
        self.query_one("#command-foot", Board).show([(Bit(keys, "quiet"),)])

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go to the next field; after the last, ask whether it is right."""
        event.stop()
        names = [name for name, _ in self.FIELDS]
        at = names.index((event.input.id or "").removeprefix("field-"))
        if at + 1 < len(names):
            self.query_one(f"#field-{names[at + 1]}", Input).focus()
            return
        given = {name: self.query_one(f"#field-{name}", Input).value.strip() for name in names}
        try:
            self._fields = checked(given)
        except WaybillError as error:
            self._show(str(error), bad=True)
            return
        # One id for all attempts: what did arrive, though the answer did not, is carried out once.
        self._command_id = secrets.token_hex(8)
        self.set_focus(None)
        behind = f" behind gateway {given['gateway']}" if given["gateway"] else ", which connects to the cloud itself"
        payload = f", with {given['payload']}" if given["payload"] else ", with nothing else"
        self._show(
            f"Send {given['name']} to device {given['device']}{behind}{payload}, "
            f"to be carried out within {given['expires']}?"
        )

    async def action_send(self) -> None:
        """Send what was confirmed, once."""
        if self._fields is None:
            return
        try:
            await self._sender.send(self._command_id, self._fields)
        except WaybillError as error:
            self._show(f"not sent: {error}", bad=True)
            return
        self.dismiss(f"command {self._command_id} is on its way")

    def action_back(self) -> None:
        """Go back to the fields, or away."""
        if self._fields is None:
            self.dismiss("")
            return
        self._fields = None
        self.query_one("#field-name", Input).focus()
        self._show()


def how_to_send(gateway: str, device: str, cells: int) -> list[Line]:
    """Return how a command is sent where this monitor cannot."""
    words = (
        "From here nothing is sent: neither a gateway nor the cloud's HTTP API takes commands. Start the monitor on a "
        "machine of the ingest, with the ingest's data directory (--data DIR), or write there:"
    )
    line = f"waybill command send --config cloud.toml --gateway {gateway or 'GATEWAY'} --device {device or 'DEVICE'}"
    return [
        (Bit("Send a command", "head"),),
        (),
        *folded(words, cells),
        (),
        (bit(f"  {line} \\"),),
        (bit("      --name NAME"),),
    ]

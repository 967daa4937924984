"""What keys do, on a terminal."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.support.pictures import HOSTILE, NOW, Still, commands, fleet, gateway, row
from tests.support.terminal import terminal
from waybill import snapshot
from waybill.errors import Unavailable
from waybill.fleet_state import CommandsState
from waybill.monitor.app import Monitor
from waybill.monitor.sending import Sender
from waybill.monitor.sources import Kind, Picture


async def test_a_row_is_opened_and_left() -> None:
    source = Still()
    async with terminal(Monitor(source)) as screen:
        await screen.shows("depot-0040")
        await screen.press("down", "enter")
        await screen.shows("[Gateway]", "certificate 89 days left")
        assert source.asked[-1] == ("gateway", "depot-0080")
        await screen.press("end")
        await screen.until(lambda text: "192.168.4.9:50009" in text)
        await screen.press("escape")
        await screen.shows("[Fleet]", "depot-0080")
        await screen.press("2", "enter")
        await screen.shows("locked", "any key: back")
        await screen.press("x")
        await screen.shows("[Commands]", "18 commands")


async def test_rows_are_filtered_while_one_writes_and_sorted() -> None:
    async with terminal(Monitor(Still())) as screen:
        await screen.shows("1–19 of 240")
        await screen.press("slash")
        await screen.write("offline !0240")
        await screen.shows("1–5 of 5/240", "offline !0240")
        await screen.press("enter", "s")
        await screen.shows("backlog ", "s by backlog")
        text = await screen.until(lambda text: "\ndepot-0200" in text)
        assert text.index("\ndepot-0200") < text.index("\ndepot-0040")
        await screen.press("S")
        await screen.until(lambda text: text.index("\ndepot-0040") < text.index("\ndepot-0200"))
        await screen.press("escape")
        await screen.shows("1–19 of 240")


async def test_help_says_the_keys() -> None:
    async with terminal(Monitor(Still())) as screen:
        await screen.shows("depot-0040")
        await screen.press("question_mark")
        text = await screen.shows("Ctrl-C", "any key: back")
        assert all(len(line) <= 80 for line in text.split("\n"))
        await screen.press("q")  # any key: it does not quit
        await screen.shows("[Fleet]")
        await screen.press("q")
        await screen.until(lambda _: screen.app._exit)


async def test_a_lost_source_is_said_keeps_its_picture_and_comes_back() -> None:
    source, clock = Still(), [0.0]
    async with terminal(Monitor(source, now=lambda: clock[0])) as screen:
        await screen.shows("depot-0040")
        source.pictures["fleet"] = Unavailable("nobody listens there")
        clock[0] = 5.0
        await screen.press("r")
        await screen.shows("LOST 0 s; this is 5 s old; nobody listens there; again in 1s", "depot-0040")
        clock[0] = 5.9
        asked = len(source.asked)
        await screen.press("down")
        await screen.shows("depot-0080")
        assert len(source.asked) == asked  # not before its time
        clock[0] = 6.0
        await screen.shows("LOST 1 s; this is 6 s old", "again in 2s")
        source.pictures["fleet"] = fleet(12, NOW + 60_000)
        clock[0] = 8.0
        await screen.shows("12:01:05Z", "of 12")
        assert "LOST" not in screen.text


async def test_nothing_there_from_the_start_is_said() -> None:
    source = Still(fleet=Unavailable("http://cloud.example:8080: nobody listens there"))
    async with terminal(Monitor(source)) as screen:
        await screen.shows("nothing yet:", "nobody listens there", "LOST")
        await screen.press("down", "enter", "s", "slash", "x", "escape", "n", "x")
        await screen.shows("[Fleet]", "LOST")


class Slow(Still):
    """Never answers for Kafka."""

    async def ask(self, kind: Kind, gateway: str = "") -> Picture:
        if kind == "kafka":
            await asyncio.Event().wait()
        return await super().ask(kind, gateway)


async def test_an_answer_that_does_not_come_holds_nobody_up() -> None:
    async with terminal(Monitor(Slow())) as screen:
        await screen.shows("depot-0040")
        await screen.press("3")
        await screen.shows("[Kafka]", "asking")
        await screen.press("4")
        await screen.shows("[Log]", "partition 4 wait")


async def test_names_of_devices_are_neither_markup_nor_obeyed(tmp_path: Path) -> None:
    source = Still()
    changed = replace(row(1), gateway=HOSTILE, trouble=HOSTILE, state="offline", reason=HOSTILE)
    source.pictures["fleet"] = replace(fleet(3), gateways=(changed,), faults=(HOSTILE,))
    source.pictures["gateway"] = gateway(HOSTILE)
    command = replace(commands().commands[0], device=HOSTILE, result=HOSTILE)
    source.pictures["commands"] = CommandsState(NOW, (command,))
    async with terminal(Monitor(source, sender=Sender(tmp_path / "none")), 120, 40) as screen:
        for keys, seen in (
            (("1",), "what to look at"),
            (("enter",), "Lanes"),
            (("2",), "c-9000"),
            (("enter",), "back"),
        ):
            await screen.press(*keys)
            await screen.shows(seen, "\\x1b")
            assert all(line.isprintable() for line in screen.text.split("\n"))
            assert "[bold red]V9[/]" in screen.text or "…" in screen.text
        await screen.press("x", "n")
        await screen.shows("Send a command")
        assert all(line.isprintable() for line in screen.text.split("\n"))


# --- commands ---


async def filled(screen: Any, *words: str) -> None:
    """Fill in device, name, payload and when it expires."""
    await screen.press("n")
    await screen.shows("Send a command", "depot-0040")
    for each in words:
        await screen.write(each)
        await screen.press("enter")


async def test_a_command_is_sent_after_a_question(tmp_path: Path) -> None:
    sent: list[dict[str, Any]] = []

    async def take(request: dict[str, Any]) -> None:
        sent.append(request["command"])

    async with (
        snapshot.serve(tmp_path / "cloud.sock", commands, {"command": take}),
        terminal(Monitor(Still(), sender=Sender(tmp_path / "cloud.sock"))) as screen,
    ):
        await screen.shows("depot-0040")
        await filled(screen, "V7", "lock", '{"door": 2}', "")
        await screen.shows('Send lock to device V7 behind gateway depot-0040, with {"door": 2}', "within 60s?")
        assert sent == []
        await screen.press("y", "y", "y")
        await screen.shows("[Fleet]", "is on its way")
    (command,) = sent
    assert len(command["id"]) == 16
    assert {name: command[name] for name in ("gateway", "device", "name", "payload_base64")} == {
        "gateway": "depot-0040", "device": "V7", "name": "lock", "payload_base64": "eyJkb29yIjogMn0="
    }  # fmt: skip


async def test_a_command_can_be_given_up_and_mended(tmp_path: Path) -> None:
    async with terminal(Monitor(Still(), sender=Sender(tmp_path / "cloud.sock"))) as screen:
        await screen.shows("depot-0040")
        await filled(screen, "V7", "lock", "not json", "")
        await screen.shows("payload is not JSON")
        await screen.press("y")  # a letter of the last field, no answer
        await screen.shows("expires\ny\n")
        await screen.press("backspace")
        await screen.write("60s")
        await screen.press("up", "backspace", "enter", "enter")
        await screen.shows("with nothing else", "within 60s?", "y: send it")
        await screen.press("n")
        await screen.until(lambda text: "y: send it" not in text)
        await screen.press("tab", "tab", "enter")
        await screen.shows("within 60s?", "y: send it")
        await screen.press("y")
        await screen.shows("not sent: nothing answers", "y: send it")
        await screen.press("escape", "escape")
        await screen.shows("[Fleet]")


async def test_where_nothing_can_be_sent_it_is_said_how() -> None:
    async with terminal(Monitor(Still())) as screen:
        await screen.shows("depot-0040")
        await screen.press("n")
        await screen.shows("waybill command send --config cloud.toml --gateway depot-0040", "any key: back")


async def test_a_picture_that_comes_while_the_screen_is_taken_down_is_not_drawn() -> None:
    async with terminal(Monitor(Still())) as screen:
        await screen.shows("1–19 of 240")
        await screen.app.query("#body").remove()
        screen.app.draw()

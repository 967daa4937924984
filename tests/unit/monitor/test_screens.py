"""What each screen looks like at several sizes, beside files that a person has looked at.

``WAYBILL_PICTURES=1`` writes them anew, and the pictures of the documentation, too: look at what changed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support import svg
from tests.support.pictures import NOW, Still, fleet, gateway
from tests.support.terminal import Terminal, terminal
from waybill.errors import Unavailable
from waybill.monitor.app import Monitor
from waybill.monitor.sending import Sender

ROOT = Path(__file__).parents[3]
PICTURES = ROOT / "docs" / "pictures"
TEXTS = Path(__file__).parent / "screens"
ANEW = bool(os.environ.get("WAYBILL_PICTURES"))
SIZES = [(80, 24), (120, 40), (200, 60)]
SCREENS = {"fleet": (), "gateway": ("enter",), "commands": ("2",), "kafka": ("3",), "log": ("4",)}
READY = {"fleet": "depot-0040", "gateway": "Lanes", "commands": "c-9000", "kafka": "Topics", "log": "what happened"}


def same(path: Path, found: str) -> None:
    """Compare with the file, or write it."""
    if ANEW:
        path.parent.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert path.is_file(), f"{path.name} is missing: WAYBILL_PICTURES=1 writes it"
    assert found == path.read_text(encoding="utf-8"), f"{path.name} has changed: WAYBILL_PICTURES=1 writes it anew"


async def opened(screen: Terminal, name: str) -> str:
    await screen.shows("12:00:05Z", "depot-0040")
    await screen.press(*SCREENS[name])
    return await screen.until(
        lambda text: f"[{name.title()}]" in text and "12:00:05Z" in text and (name == "gateway" or READY[name] in text)
    )


@pytest.mark.parametrize(("cells", "lines"), SIZES)
@pytest.mark.parametrize("name", SCREENS)
async def test_a_screen_looks_as_it_did(name: str, cells: int, lines: int) -> None:
    async with terminal(Monitor(Still()), cells, lines) as screen:
        text = await opened(screen, name)
        assert [len(each) <= cells for each in text.split("\n")] == [True] * lines
        same(TEXTS / f"{name}-{cells}x{lines}.txt", text + "\n")


@pytest.mark.parametrize("name", SCREENS)
async def test_the_documentation_shows_the_screens_as_they_are(name: str) -> None:
    async with terminal(Monitor(Still()), 120, 36) as screen:
        await opened(screen, name)
        same(PICTURES / f"{name}.svg", screen.picture(f"waybill monitor: {name}"))


async def test_the_documentation_shows_how_a_lost_source_looks() -> None:
    source = Still()
    clock = [0.0]
    async with terminal(Monitor(source, now=lambda: clock[0]), 120, 12) as screen:
        await screen.shows("12:00:05Z", "depot-0040")
        source.pictures["fleet"] = Unavailable("http://cloud.example:8080: nobody listens there")
        clock[0] = 40.0
        await screen.press("r")
        await screen.shows("LOST 0 s; this is 40 s old", "again in 1s", "depot-0040")
        same(PICTURES / "lost.svg", screen.picture("waybill monitor: the cloud does not answer"))


async def test_the_documentation_shows_the_question_before_a_command(tmp_path: Path) -> None:
    async with terminal(Monitor(Still(), sender=Sender(tmp_path / "cloud.sock")), 120, 16) as screen:
        await opened(screen, "fleet")
        await screen.press("n")
        await screen.shows("Send a command", "depot-0040", "expires")
        for words in ("V7", "lock", '{"door":2}'):
            await screen.write(words)
            await screen.press("enter")
        await screen.press("enter")
        await screen.shows("Send lock to device V7 behind gateway depot-0040", "y: send it")
        same(PICTURES / "send.svg", screen.picture("waybill monitor: a command"))


async def test_without_colour_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with terminal(Monitor(Still())) as screen:
        plain = await screen.shows("12:00:05Z", "depot-0040")
        picture = screen.picture("")
    assert set(re.findall(r'fill="(#[0-9a-f]{6})"', picture)) <= {svg.PAPER, svg.INK, svg.DIM}
    assert plain == (TEXTS / "fleet-80x24.txt").read_text(encoding="utf-8").rstrip("\n")


async def test_another_size_is_drawn_anew() -> None:
    async with terminal(Monitor(Still()), 80, 24) as screen:
        await screen.shows("12:00:05Z", "1–19 of 240")
        await screen.resize(120, 40)
        await screen.shows("1–35 of 240", "what to look at")


@pytest.mark.parametrize(("cells", "lines"), [(1, 1), (10, 5), (40, 10)])
async def test_a_terminal_that_is_far_too_small_breaks_nothing(cells: int, lines: int) -> None:
    async with terminal(Monitor(Still()), cells, lines) as screen:
        await screen.press("enter", "end", "escape", "2", "slash", "x", "escape", "question_mark", "x", "n", "x")
        await screen.resize(80, 24)
        await screen.shows("[Commands]", "c-9000")


async def test_a_gateway_at_itself_has_its_screen_and_its_log() -> None:
    source = Still(gateway=gateway(), log=Still().pictures["log"])
    async with terminal(Monitor(source)) as screen:
        await screen.shows("[Gateway]", "2 Log", "depot-0010", "certificate 89 days left")
        await screen.press("2")
        await screen.shows("[Log]", "partition 4 wait")
    assert source.asked[0] == ("gateway", "")


async def test_five_thousand_gateways_cost_a_screen_of_lines() -> None:
    source = Still()
    source.pictures["fleet"] = fleet(5000)
    async with terminal(Monitor(source)) as screen:
        await screen.shows("1–19 of 5,000")
        await screen.press("end")
        await screen.shows("4,982–5,000 of 5,000")
        await screen.press("slash")
        await screen.write("depot-4321")
        await screen.shows("1–1 of 1/5,000", "depot-4321")
        source.pictures["fleet"] = fleet(5000, NOW + 60_000)
        await screen.press("enter", "r")
        await screen.shows("12:01:05Z", "1–1 of 1/5,000")
        await screen.press("escape")
        await screen.shows("1–19 of 5,000")

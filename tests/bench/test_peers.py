"""A mosquitto, its bridge, a mosquitto in the cloud and Telegraf beside Waybill: one ledger judges both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.test_fleet_run import run
from tests.support.peers import EACH_CHANGE, EACH_SECOND, FLEET, OURS, Peers

pytestmark = pytest.mark.bench

RUNS = 3
SECONDS = 12
DRAIN = 120
"""Seconds in which what is late may still come and is not lost; who saves each change has twice as many."""
CUTS = """
[[link]]
kind = "cut"
at = 1
for = 4
[[link]]
kind = "black-hole"
at = 6
for = 2
[[link]]
kind = "cut"
at = 9
for = 2
"""
KILLS = """
[[fault]]
what = "{what}"
at = 3
every = 3
until = 10
for = "500ms"
"""
CUT_AND_KILL = """
[[link]]
kind = "cut"
at = 2
for = 8
[[fault]]
what = "{what}"
at = 7
for = "500ms"
"""
STORIES = {
    "nothing": ("", ""),
    "link is cut, a black hole, cut": ("", CUTS),
    "gateway killed 3 times": ("gateway", KILLS),
    "link is cut, gateway killed": ("gateway", CUT_AND_KILL),
    "cloud killed 3 times": ("cloud", KILLS),
    "collector killed 3 times": ("collector", KILLS),
}
CHAINS = {"each second": EACH_SECOND, "each change": EACH_CHANGE, "Waybill": None}
OURSELVES = {"gateway": "agent", "cloud": "ingest", "": ""}
THEMSELVES = {"gateway": "edge", "cloud": "cloud", "collector": "collector", "": ""}
COLUMNS = ("published", "acked", "delivered", "lost", "duplicated", "out_of_order")


async def judged(kafka: str, topic: str, directory: Path, persistence: str | None, what: str, story: str) -> list[int]:
    """Run one story and return its counts."""
    directory.mkdir()
    fleet = FLEET.format(
        seconds=SECONDS,
        drain=2 * DRAIN if persistence == EACH_CHANGE else DRAIN,
        count=20,
        interval="50ms",
        gateway="" if persistence else 'gateway = "gateway"',
    )
    if persistence is None:
        scenario = directory / "ours.toml"
        scenario.write_text(fleet + OURS + story.format(what=OURSELVES[what]))
        arguments = ["--kafka", kafka]
    else:
        peers = Peers(directory, kafka, topic, persistence, collector="telegraf")
        scenario = await peers.scenario(fleet, story.format(what=THEMSELVES[what]))
        arguments = []
    code, _, words = await run("run", str(scenario), *arguments, "--keep", str(directory / "run"))
    assert code in (0, 1), words
    counts = json.loads((directory / "run" / "report.json").read_text())["counts"]
    return [counts[column] for column in COLUMNS]


CASES = [(chain, story) for story in STORIES for chain in CHAINS if CHAINS[chain] or STORIES[story][0] in OURSELVES]


@pytest.mark.parametrize(("chain", "story"), CASES)
async def test_stories(kafka: str, unique: str, tmp_path: Path, chain: str, story: str) -> None:
    what, text = STORIES[story]
    rows = [
        await judged(kafka, f"{unique}-{number}", tmp_path / f"{number}", CHAINS[chain], what, text)
        for number in range(RUNS)
    ]
    print(
        f"\n{chain:12} | {story:31} |", *(f"{'/'.join(map(str, column)):>20} |" for column in zip(*rows, strict=True))
    )

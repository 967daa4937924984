"""``waybill fleet run`` as a person runs it: scenarios end in a verdict, faults happen, and nothing is left behind."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import pytest

from fleet_simulator.ledger import Counted, read
from fleet_simulator.processes import until, waybill
from tests.integration.test_demo import processes_below

STORY = """
seconds = 8
[[gateway]]
name = "depot"
[[gateway]]
name = "van"
count = "each"
network = "lte"
[[vehicle]]
name = "car"
count = 4
gateway = "depot"
interval = "100ms"
mqtt = "5"
[[vehicle]]
name = "van"
profile = "van"
gateway = "van"
interval = "100ms"
[[link]]
kind = "cut"
link = "van"
at = 1
for = 2
[[link]]
kind = "black-hole"
link = "depot"
at = 4
for = 1
[[link]]
kind = "half-open"
link = "depot"
at = 1
[[link]]
kind = "network"
network = "2g"
link = "van"
at = 4
for = 2
[[link]]
kind = "flap"
link = "depot"
at = 6
for = 2
period = 1
[[fault]]
gateway = "depot"
at = 2
for = 1
[[fault]]
kind = "pause"
gateway = "van"
at = 5
for = 1
[[fault]]
what = "ingest"
at = 5
for = 1
[[fault]]
kind = "clock"
gateway = "van"
by = "-3h"
at = 3
for = 2
[[command]]
vehicle = "van"
at = 2
"""


async def run(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *waybill("fleet", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, words = await process.communicate()
    return process.returncode or 0, out.decode(), words.decode()


async def test_everything_that_can_happen_happens_and_nothing_is_lost(tmp_path: Path) -> None:
    file, kept = tmp_path / "story.toml", tmp_path / "run"
    file.write_text(STORY)
    code, out, words = await run("run", str(file), "--keep", str(kept))
    assert (code, bool(re.fullmatch(r"verdict: PASS delivered=\d+ lost=0 .* commands=1/1\n", out))) == (0, True), words
    counted = {
        (item.counter, item.subject)
        for block in read(kept / "ledger")
        for item in block.items
        if isinstance(item, Counted) and item.value
    }
    assert counted == {
        *(("cut", "van-1"), ("black-hole", "depot-1"), ("half-open", "depot-1"), ("network", "van-1")),
        *(("flap", "depot-1"), ("kill", "depot-1"), ("pause", "van-1"), ("kill", "ingest"), ("clock", "van-1")),
    }
    assert processes_below(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_however_it_ends_it_leaves_nothing_behind_but_its_ledger(tmp_path: Path, number: signal.Signals) -> None:
    kept = tmp_path / "run"
    process = await asyncio.create_subprocess_exec(
        *waybill("fleet", "run", "commute", "--keep", str(kept)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"driving" not in await process.stderr.readline():
            pass
        assert len(processes_below(tmp_path)) >= 5
        process.send_signal(number)
        _, words = await process.communicate()
    if number in {signal.SIGINT, signal.SIGTERM}:
        assert process.returncode == 128 + number
        assert f"waybill fleet verdict {kept} judges what was driven".encode() in words
    else:
        assert process.returncode == -number
        await until("all that it started has ended", lambda: not processes_below(tmp_path), 30)
    assert b"Traceback" not in words
    assert processes_below(tmp_path) == []
    assert list(read(kept / "ledger"))


async def test_what_is_wrong_with_a_scenario_is_told_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("seconds = 5\n[[vehicle]]\nname = 'v'\n")
    code, out, words = await run("run", str(file))
    assert (code, out) == (2, "")
    assert words == f"waybill fleet: {file}: there is no [[gateway]]: add one, or [target] for a broker of others\n"


async def test_new_writes_a_scenario_once_and_list_names_the_ready_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    assert (await run("new", str(file)))[0] == 0
    code, _, words = await run("new", str(file))
    assert (code, words) == (2, f"waybill fleet: {file} exists and is not overwritten: name another file\n")
    assert (await run("new", str(tmp_path / "other.toml"), "--from", "commute"))[0] == 0
    _, out, _ = await run("list")
    assert re.search(r"^commute +\S", out, re.MULTILINE)

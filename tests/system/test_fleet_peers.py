"""Other people's way from MQTT to Kafka under our ledger: mosquitto's bridge, and a collector behind it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.integration.test_demo import processes_below
from tests.integration.test_fleet_run import run
from tests.support.peers import FLEET, IN_MEMORY, Peers

pytestmark = pytest.mark.system

# Telegraf is built with Go, from its module: some minutes.
COLLECTORS = ["ours", "telegraf"] if os.environ.get("WAYBILL_LONG") == "1" else ["ours"]
CARS = FLEET.format(seconds=6, drain=8, count=10, interval="100ms", gateway="")
CUT = """
[[link]]
kind = "cut"
at = 2
for = 3
"""
KILL = """
[[fault]]
what = "edge"
at = 4
for = "500ms"
"""


@pytest.mark.parametrize("collector", COLLECTORS)
async def test_a_bridge_delivers_at_least_once_over_a_cut(
    kafka: str, unique: str, tmp_path: Path, collector: str
) -> None:
    scenario = await Peers(tmp_path, kafka, unique, IN_MEMORY, collector=collector).scenario(CARS, CUT)
    code, out, words = await run("run", str(scenario), "--keep", str(tmp_path / "run"))
    found = re.match(r"verdict: (PASS|FAIL) delivered=[1-9]\d+ lost=0 duplicated=(\d+) out_of_order=(\d+)", out)
    assert found is not None, out + words
    assert (code == 0) == (found[1] == "PASS") == (found[2] == found[3] == "0")
    assert processes_below(tmp_path) == []


@pytest.mark.parametrize("collector", COLLECTORS)
async def test_a_bridge_that_is_killed_loses_what_it_had_acknowledged(
    kafka: str, unique: str, tmp_path: Path, collector: str
) -> None:
    scenario = await Peers(tmp_path, kafka, unique, IN_MEMORY, collector=collector).scenario(CARS, CUT + KILL)
    code, out, words = await run("run", str(scenario), "--keep", str(tmp_path / "run"))
    found = re.match(r"verdict: FAIL delivered=\d+ lost=(\d+)", out)
    assert code == 1, out + words
    assert found is not None
    assert int(found[1]) > 10, "of what it had queued for two seconds"

"""The ready scenarios through a real Kafka, judged: one cut short; in the long form all, on the embedded log too."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fleet_simulator.scenarios import shipped
from tests.integration.test_demo import processes_below
from tests.integration.test_fleet_run import run

LONG = os.environ.get("WAYBILL_LONG") == "1"
WHOLE = sorted(shipped()) if LONG else []


def passed(code: int, out: str) -> bool:
    return code == 0 and bool(re.fullmatch(r"verdict: PASS delivered=\d+ lost=0 duplicated=0 out_of_order=0.*\n", out))


@pytest.mark.parametrize("name", WHOLE or ["commute"])
async def test_a_ready_scenario_passes_through_kafka(kafka: str, tmp_path: Path, name: str) -> None:
    kept = tmp_path / "run"
    short = [] if LONG else ["--seconds", "12"]
    code, out, words = await run("run", name, *short, "--kafka", kafka, "--keep", str(kept))
    assert passed(code, out), out + words
    assert processes_below(tmp_path) == []
    assert f'"{kafka}"' in (kept / "site" / "cloud.toml").read_text()


@pytest.mark.parametrize("name", WHOLE)
async def test_a_ready_scenario_passes_on_the_embedded_log(tmp_path: Path, name: str) -> None:
    code, out, words = await run("run", name, "--keep", str(tmp_path / "run"))
    assert passed(code, out), out + words

"""The ready scenarios through a real Kafka, judged: one cut short; in the long form all, on the embedded log too."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from deploy.kafka import kafka as kafka_tool
from fleet_simulator.ledger import Note, read
from fleet_simulator.scenarios import shipped
from tests.integration.test_demo import processes_below
from tests.integration.test_fleet_run import run


def passed(code: int, out: str) -> bool:
    return code == 0 and bool(re.fullmatch(r"verdict: PASS delivered=\d+ lost=0 duplicated=0 out_of_order=0.*\n", out))


async def test_a_ready_scenario_that_is_cut_short_passes_through_kafka(kafka: str, tmp_path: Path) -> None:
    kept = tmp_path / "run"
    code, out, words = await run("run", "commute", "--seconds", "12", "--kafka", kafka, "--keep", str(kept))
    assert passed(code, out), out + words
    assert processes_below(tmp_path) == []
    assert f'"{kafka}"' in (kept / "site" / "cloud.toml").read_text()


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(shipped()))
async def test_a_ready_scenario_passes_through_kafka(kafka: str, tmp_path: Path, name: str) -> None:
    code, out, words = await run("run", name, "--kafka", kafka, "--keep", str(tmp_path / "run"))
    assert passed(code, out), out + words


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(shipped()))
async def test_a_ready_scenario_passes_on_the_embedded_log(tmp_path: Path, name: str) -> None:
    code, out, words = await run("run", name, "--keep", str(tmp_path / "run"))
    assert passed(code, out), out + words


BROKERS = """
seconds = 20
[kafka]
start = ["{python}", "{tool}", "start", "{{directory}}", "--brokers", "3"]
stop = ["{python}", "{tool}", "stop", "{{directory}}"]
down = ["{python}", "{tool}", "kill", "{{directory}}", "{{node}}"]
up = ["{python}", "{tool}", "up", "{{directory}}", "{{node}}"]
nodes = 3
[[gateway]]
name = "g"
[[vehicle]]
name = "car"
count = 10
interval = "200ms"
gateway = "g"
[[fault]]
what = "kafka"
at = 4
every = 8
for = 4
"""


@pytest.mark.long
async def test_brokers_of_a_kafka_of_the_runs_own_are_killed(tmp_path: Path) -> None:
    file, kept = tmp_path / "brokers.toml", tmp_path / "run"
    file.write_text(BROKERS.format(python=sys.executable, tool=Path(kafka_tool.__file__)))
    code, out, words = await run("run", str(file), "--keep", str(kept))
    assert passed(code, out), out + words
    notes = [item.text for block in read(kept / "ledger") for item in block.items if isinstance(item, Note)]
    assert "SIGKILL of broker 1" in notes
    assert "SIGKILL of broker 2" in notes
    assert processes_below(tmp_path) == []

"""How many vehicles' messages one process makes, sends and accounts for: the runner of the fleet against one agent.

As fast as they are acknowledged, to an agent on the same cores. The CPU-µs a message are the runner's own: vehicles,
MQTT, ledger; a million of them a message would be one a second.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fleet_simulator.run.runner import Run
from fleet_simulator.scenarios import parse

pytestmark = pytest.mark.bench

SCENARIO = """
seconds = {seconds}
pace = "max"
[[gateway]]
name = "depot"
[[vehicle]]
name = "car"
count = {count}
gateway = "depot"
interval = 1
"""


@pytest.mark.parametrize(("count", "seconds"), [(100, 3000), (2000, 150), (10_000, 30)])
async def test_messages_of_a_fleet(tmp_path: Path, count: int, seconds: int) -> None:
    run = Run(parse(SCENARIO.format(count=count, seconds=seconds), "bench"), tmp_path / "run")
    before = time.process_time()
    async with run.driven() as driven:
        cpu = (time.process_time() - before) * 1e6 / driven.published
    assert driven.acked == driven.published >= count * seconds
    assert driven.connects == count
    print(f"\n{count:6,} vehicles: {driven.published / driven.seconds:8,.0f} messages/s, {cpu:.0f} CPU-µs a message")

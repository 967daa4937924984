"""A ledger and a verdict over many messages in the worst order: three bytes of memory a message, and no more.

Two vehicles share a gateway's lane, so that each has every second number of it; acknowledgements come odd numbers
first, then even ones, so that no two make a range; in the topic is every second message of each.
"""

import os
import subprocess
import sys
from pathlib import Path

COUNT = 100_000_000 if os.environ.get("WAYBILL_LONG") else 2_000_000

PROGRAM = """
import re, sys
from pathlib import Path
from fleet_simulator.judging import load
from fleet_simulator.ledger import Ledger, digest

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

path, half = Path(sys.argv[1]), int(sys.argv[2]) // 2
before = peak()
with Ledger(path) as ledger:
    for number in range(1, half + 1):
        for vehicle in ("V1", "V2"):
            ledger.published(vehicle, "telemetry", number, number, number * 1000, digest(b"%d" % number))
    for begin in (1, 2):
        for number in range(begin, half + 1, 2):
            for vehicle in ("V1", "V2"):
                ledger.acked(vehicle, "telemetry", number, number, number * 1000)
print("writing", peak() - before, path.stat().st_size)
_, comparison = load(path)
for number in range(1, half + 1, 2):
    for at, vehicle in enumerate(("V1", "V2")):
        ce_id = f"gw/7/telemetry/{2 * number + at}"
        said = digest(b"%d" % number)
        comparison.read(vehicle, "telemetry", number, key=vehicle, place=("t", 0), ce_id=ce_id, content=said)
verdict = comparison.verdict()
wrong = verdict.duplicated + verdict.out_of_order
print("judging", peak() - before, verdict.acked, verdict.delivered, verdict.lost, wrong)
"""


def test_100_million_messages_in_the_worst_order(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ledger, str(COUNT)], capture_output=True, text=True, check=False
    )
    ledger.unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    (_, writing, size), (_, judging, *counts) = (line.split() for line in done.stdout.splitlines())
    assert int(writing) < 16 << 20
    assert int(size) < 27 * COUNT
    assert int(judging) < 4 * COUNT + (64 << 20)
    assert [int(count) for count in counts] == [COUNT, COUNT // 2, COUNT // 2, 0]

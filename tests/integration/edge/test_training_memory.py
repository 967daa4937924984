"""What a training takes is given back: the agent is to stay small."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge_agent.forward.dictionaries import Sample, train
from edge_agent.forward.training import _be_modest
from waybill.frames import encode_plain


def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


frames = [
    encode_plain(
        epoch=1, prev_epoch=0, prev_last=0, oldest_epoch=1, lane="a", order="fifo", durability="every-commit",
        clock="synced", first=1, base_ms=0, sources=[("vehicles/V7/telemetry", "V7")],
        rows=[(0, 0, 1, b'{"ts":%d,"speed":%.2f,"door":"closed","window":"open"}' % (n, n / 7), b"")],
    )
    for n in range(1000)
]
with ThreadPoolExecutor(1, initializer=INITIALIZER) as thread:
    thread.submit(int).result()
    before = resident()
    assert thread.submit(train, Sample(frames, 1e6, None)).result() is not None
    print(resident() - before)
"""


def kept(initializer: str) -> int:
    """Return what a training leaves behind, in kB."""
    program = PROGRAM.replace("INITIALIZER", initializer)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_the_memory_of_a_training_is_given_back() -> None:
    assert kept("_be_modest") < 3_000
    assert kept("None") > 4_000, "the control: without it this test would see nothing"

"""What the data plan counts is what the kernel's own counters say. Needs root: a network namespace each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.plan.plan import DAY, idle_bytes

pytestmark = pytest.mark.system


def measured(directory: Path, count: str) -> dict[str, float]:
    """Run the agent where nobody else uses the loopback interface."""
    script = Path(__file__).with_name("plan_in_a_namespace.py")
    command = f'ip link set lo up && exec "{sys.executable}" "{script}" "{directory}" {count}'
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_the_bytes_counted_of_a_connection_are_those_of_its_packets(tmp_path: Path) -> None:
    said = measured(tmp_path, "uplink")
    assert said["kernel"] > 300_000
    assert said["counted"] == pytest.approx(said["kernel"], rel=0.01)
    # On a busy machine some questions are acknowledged before they are answered: smaller packets, and more of them.
    assert said["ping"] == pytest.approx(idle_bytes(1, tls=True) / (30 * DAY), rel=0.1)


def test_an_interface_is_counted_as_the_kernel_counts_it(tmp_path: Path) -> None:
    said = measured(tmp_path, "interface:lo")
    assert said["counted"] == pytest.approx(said["interface"], rel=0.01)

"""What the agent says it writes is what reaches the device; fewer commits mean fewer bytes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edge_agent.buffer.port import Commit
from edge_agent.flash import Flash
from tests.support.buffer import SMALL, chunk, drain, open_sqlite
from tests.support.loop_disk import LoopDisk, loop_disk

pytestmark = pytest.mark.system

MESSAGES = 2000


def device_bytes(disk: LoopDisk) -> int:
    """Return the bytes that the loop device has taken, everything synced."""
    subprocess.run(["sync", "-f", str(disk.path)], check=True, timeout=60)
    source = ["findmnt", "-n", "-o", "SOURCE", str(disk.path)]
    name = subprocess.run(source, check=True, timeout=60, capture_output=True, text=True).stdout.strip()
    return int(Path(f"/sys/block/{Path(name).name}/stat").read_text().split()[6]) * 512


async def written(where: Path, together: int) -> tuple[float, float]:
    """Return the bytes a message, by the agent's word and by the device's count."""
    where.mkdir()
    with loop_disk(where, 96) as disk:
        buffer = await open_sqlite(disk.path / "data", SMALL)
        before, flash = device_bytes(disk), Flash(0.0)
        for _ in range(MESSAGES // together):
            await buffer.commit(Commit([chunk(*[os.urandom(200)] * together)]))
        await drain(buffer, settle=True)
        await buffer.close()
        state = flash.state(1.0, MESSAGES)
        assert state is not None
        assert state.per_message is not None
        return state.per_message, (device_bytes(disk) - before) / MESSAGES


async def test_what_is_said_to_be_written_is_what_the_device_takes(tmp_path: Path) -> None:
    found = [await written(tmp_path / str(together), together) for together in (1, 10, 100)]
    for said, taken in found:
        assert 0.8 * taken < said < 1.2 * taken, found
    assert found[0][0] > 3 * found[1][0] > 6 * found[2][0]

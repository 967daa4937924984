"""What ``waybill edge status`` says of a running agent, as a person reads it."""

from __future__ import annotations

import asyncio
import re
from asyncio.subprocess import PIPE

from fleet_simulator.processes import waybill


async def waiting(data: str) -> int:
    """Return how many messages wait for the uplink at the agent with this data directory."""
    process = await asyncio.create_subprocess_exec(*waybill("edge", "status", "--data", data), stdout=PIPE)
    said, _ = await process.communicate()
    found = re.search(r"telemetry\s+([\d,]+)", said.decode())
    assert found is not None
    return int(found[1].replace(",", ""))

"""Commands of ``waybill`` that end by themselves, as processes."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE

PATIENCE = 180
"""Seconds that one may take on a busy machine."""


async def ended(*command: object) -> tuple[int, str, str]:
    """Run ``command`` to its end; return exit code, stdout and stderr. None may end in a traceback."""
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert b"Traceback" not in err, err.decode()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()

"""``waybill edge run`` with a store that acknowledges before its commit: the control that the kill test must catch."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from edge_agent import app, config
from edge_agent.buffer.port import Commit
from edge_agent.buffer.sqlite import SqliteBuffer


class EarlyAck(SqliteBuffer):
    """Breaks B1: ``commit`` returns at once, and the commit follows a little later, in order."""

    _after: asyncio.Task[None] | None = None

    async def commit(self, commit: Commit) -> None:
        """Return before anything is durable."""
        self._after = asyncio.create_task(self._later(commit, self._after), name="late commit")

    async def _later(self, commit: Commit, before: asyncio.Task[None] | None) -> None:
        await asyncio.sleep(0.1)
        if before is not None:
            await before
        await super().commit(commit)


if __name__ == "__main__":
    sys.exit(app.run(config.load(Path(sys.argv[sys.argv.index("--config") + 1])), EarlyAck))

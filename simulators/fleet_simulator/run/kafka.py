"""A Kafka that a run starts, and whose brokers it may kill: four commands that the scenario names."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fleet_simulator.scenarios import Kafka
from waybill.errors import Unavailable

PATIENCE = 180.0
"""Seconds that one of the commands may take: the first start of one may fetch it first."""


class StartedKafka:
    """There while the context is open. ``bootstrap``: its servers, which ``start`` prints. ``nodes``: how many."""

    def __init__(self, kafka: Kafka, directory: Path) -> None:
        """``directory``: what ``{directory}`` in the commands stands for; made by whoever needs it."""
        self.bootstrap = kafka.bootstrap
        self.nodes = kafka.nodes
        self._kafka = kafka
        self._directory = directory

    async def __aenter__(self) -> Self:
        """Start it. Raises Unavailable with what the command said."""
        lines = (await self._run(self._kafka.start)).split()
        self.bootstrap = next((word for word in reversed(lines) if ":" in word), "")
        if not self.bootstrap:
            raise Unavailable("[kafka] start: it printed no HOST:PORT")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        await self._run(self._kafka.stop)

    async def down(self, node: int) -> None:
        """Kill a broker. Raises Unavailable."""
        await self._run(self._kafka.down, node)

    async def up(self, node: int) -> None:
        """Start it again. Raises Unavailable."""
        await self._run(self._kafka.up, node)

    async def _run(self, command: Sequence[str], node: int = 1) -> str:
        words = [part.replace("{directory}", str(self._directory)).replace("{node}", str(node)) for part in command]
        try:
            process = await asyncio.create_subprocess_exec(*words, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
        except OSError as error:
            raise Unavailable(f"[kafka] {' '.join(words)}: {error.strerror}") from error
        try:
            async with asyncio.timeout(PATIENCE):
                said = (await process.communicate())[0].decode(errors="replace").strip()
        except TimeoutError as error:
            raise Unavailable(f"[kafka] {' '.join(words)}: no end within {PATIENCE:.0f} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise Unavailable(f"[kafka] {' '.join(words)} ended with {process.returncode}: {said}")
        return said

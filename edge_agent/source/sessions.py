"""Which sessions the agent has at which brokers, and with which filters: a small file that outlives a restart."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.source.config import SourceSettings

log = logging.getLogger(__name__)

FILE: Final = "sources.json"
"""Name of the file within the data directory."""


class Session(msgspec.Struct, frozen=True):
    """A session's filters; where they are not ``sure``, it may have some of them only."""

    filters: list[str]
    sure: bool = True


class Sessions:
    """The sessions of all sources."""

    def __init__(self, directory: Path) -> None:
        """Read what an earlier start left in ``directory``."""
        self._path = path = directory / FILE
        self._lock = asyncio.Lock()
        try:
            self._known = msgspec.json.decode(path.read_bytes(), type=dict[str, Session])
        except FileNotFoundError:
            self._known = {}
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be used: %s; retained messages of the sources will come again", path, error)
            self._known = {}

    def of(self, settings: SourceSettings) -> Session | None:
        """Return a source's session, None where it has none."""
        return self._known.get(_key(settings))

    async def begin(self, settings: SourceSettings, filters: set[str]) -> None:
        """Note that the session may have these filters."""
        await self._set(settings, Session(sorted(filters), sure=False))

    async def done(self, settings: SourceSettings) -> None:
        """Note that it has just those that are configured."""
        await self._set(settings, Session(sorted(settings.filters)))

    async def _set(self, settings: SourceSettings, session: Session) -> None:
        async with self._lock:
            self._known[_key(settings)] = session
            await asyncio.to_thread(self._write, msgspec.json.encode(self._known))

    def _write(self, data: bytes) -> None:
        part = self._path.with_suffix(".part")
        try:
            part.write_bytes(data)
            part.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written: %s; retained messages may come again", self._path, error.strerror)


def _key(settings: SourceSettings) -> str:
    return f"{settings.client_id} at {settings.host}:{settings.port}"

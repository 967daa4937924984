"""``waybill edge check``: whether this gateway can do its work, step by step, each with a verdict and the mend.

Nothing is changed but for 64 KiB written to the data directory's disk and removed. It may run beside the agent.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib.metadata
from collections.abc import AsyncIterator
from pathlib import Path

from edge_agent import config
from edge_agent.clock import Clock
from edge_agent.config import EdgeConfig
from edge_agent.setup import check_machine as machine
from edge_agent.setup.check_way import ways
from edge_agent.setup.finding import Finding
from edge_agent.source.config import SourceSettings
from waybill.errors import ConfigError

PATIENCE = 10.0
"""Seconds in which a source answers."""


async def check(path: Path) -> AsyncIterator[Finding]:
    """Try everything that the configuration ``path`` needs; nothing is raised."""
    try:
        settings = config.load(path)
    except ConfigError as error:
        mend = "run this as root (sudo)" if isinstance(error.__cause__, PermissionError) else ""
        yield Finding("config", "failed", str(error), mend=mend)
        return
    yield Finding("config", "ok", f"{path}: gateway {settings.gateway}")
    for finding in machine.service(path, settings):
        yield finding
    async for finding in _steps(settings):
        yield finding


async def _steps(settings: EdgeConfig) -> AsyncIterator[Finding]:
    found, status = await machine.agent(settings)
    yield found
    if found.verdict == "failed":  # nothing in the data directory can be seen
        return
    for finding in await asyncio.to_thread(lambda: [*machine.disk(settings)]):
        yield finding
    yield machine.clock()
    yield machine.memory(settings)
    for finding in machine.files(settings):
        yield finding
    clock = Clock(settings.data if settings.data.is_dir() else None)
    floor = clock.floor_ms()
    now = dt.datetime.now(dt.UTC) if floor is None else dt.datetime.fromtimestamp(floor / 1000, dt.UTC)
    for finding in await machine.listeners(settings, status, now):
        yield finding
    for source in settings.sources:
        yield await _source(source)
    async for finding in ways(settings, importlib.metadata.version("waybill"), clock.floor_ms, now):
        yield finding


async def _source(source: SourceSettings) -> Finding:
    """Connect to a broker, and no more: a CONNECT would end the agent's session there, or leave one behind."""
    where = f"{source.host}:{source.port}"
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(source.host, source.port)
    except (OSError, TimeoutError) as error:
        why = "does not answer" if isinstance(error, TimeoutError) else str(error)
        return Finding("source", "failed", f"{where}: {why}", source.name, "see [[source]] url; does the broker run?")
    writer.close()
    return Finding("source", "ok", f"{where} answers (TCP; no MQTT is tried)", source.name)

"""Chunks, commits and drains for the tests of the edge buffer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.buffer.port import Buffer, Chunk, Commit, Lease, Position, Stored
from edge_agent.buffer.settings import BufferSettings
from edge_agent.buffer.sqlite import SqliteBuffer
from waybill.mqtt.codec import publish
from waybill.wire import TELEMETRY_LANE, Span

SMALL = BufferSettings(ballast_bytes=0, min_free_bytes=0)
"""Settings of a test: nothing preallocated, no floor."""


def packet(payload: bytes, pid: int = 0, topic: str = "vehicles/V1/telemetry", flags: int | None = None) -> bytes:
    """Return a PUBLISH: QoS 1 with ``pid``, QoS 0 without."""
    if flags is None:
        flags = 2 if pid else 0
    return publish(topic.encode(), payload, flags, pid.to_bytes(2, "big") if flags & 6 else b"")


def chunk(
    *payloads: bytes, client: str = "c", pid: int = 0, keep: int = 0, lane: str = TELEMETRY_LANE, wall_ms: int = 1000
) -> Chunk:
    """Return ``payloads`` as one chunk; with ``pid`` as QoS 1, the packet ids counting up from it."""
    packets = [packet(payload, pid + at if pid else 0) for at, payload in enumerate(payloads)]
    remembered = len(payloads) if pid else 0
    return Chunk(lane, client, 4, wall_ms, 0, keep, len(payloads), b"".join(packets), remembered)


def commit(*payloads: bytes, lane: str = TELEMETRY_LANE) -> Commit:
    """Return a commit of one chunk."""
    return Commit([chunk(*payloads, lane=lane)])


async def open_sqlite(
    path: Path, settings: BufferSettings = SMALL, kind: type[SqliteBuffer] = SqliteBuffer, boot: str = "boot-1"
) -> SqliteBuffer:
    """Open the buffer of gateway ``g``."""
    return await kind.open(path, settings, gateway="g", boot=boot)


async def drain(buffer: Buffer, lane: str = TELEMETRY_LANE, count: int = 1000, *, settle: bool = False) -> list[Lease]:
    """Lease everything that waits in a lane."""
    leases: list[Lease] = []
    after: Position | None = None
    while lease := await buffer.lease(lane, after, count, 1 << 20):
        leases.append(lease)
        after = lease.end
        if settle:
            await buffer.settle([span_of(lease)])
    return leases


def span_of(lease: Lease) -> Span:
    """Return what a lease covers."""
    return Span(lease.epoch, lease.lane, lease.first, lease.first + len(lease.messages) - 1)


def messages(leases: Sequence[Lease]) -> list[Stored]:
    """Return the messages of all leases."""
    return [message for lease in leases for message in lease.messages]


async def payloads(buffer: Buffer, lane: str = TELEMETRY_LANE) -> list[bytes]:
    """Return the payloads that wait in a lane."""
    return [message.payload for message in messages(await drain(buffer, lane))]


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that no event tells of, a minute at most."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

"""A server on a free port of 127.0.0.1, and a raw client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from tests.unit.mqtt import rig
from waybill.mqtt.server import MqttServer
from waybill.mqtt.settings import Hooks, Settings
from waybill.mqtt.testing import MemorySink

LINGER_RST = struct.pack("ii", 1, 0)


@dataclass
class Raw:
    """A client that sends and expects bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def expect(self, expected: bytes) -> None:
        assert await asyncio.wait_for(self.reader.readexactly(len(expected)), 60) == expected

    async def expect_end(self) -> bytes:
        """Everything until the server closes."""
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.wait_for(self.reader.read(), 60)
        return b""

    async def send(self, *packets: bytes) -> None:
        self.writer.write(b"".join(packets))
        await self.writer.drain()

    def reset(self) -> None:
        """Close with RST."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RST)
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


@dataclass
class Site:
    """A running server with its store."""

    sink: MemorySink
    server: MqttServer
    host: str
    port: int
    raws: list[Raw] = field(default_factory=list)

    async def raw(self, *packets: bytes) -> Raw:
        """Connect; with packets also send them."""
        raw = Raw(*await asyncio.open_connection(self.host, self.port))
        self.raws.append(raw)
        if packets:
            await raw.send(*packets)
        return raw

    async def device(self, name: str = "dev", *, clean: bool = True) -> Raw:
        """Connect with CONNACK."""
        raw = await self.raw(rig.connect(name, clean=clean))
        assert (await raw.reader.readexactly(4))[:2] == b"\x20\x02"
        return raw

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - the server's state has no event
                await asyncio.sleep(0.005)

    def forget(self) -> None:
        """Forget what was stored, but for the state."""
        self.sink.arrivals.clear()
        self.sink.changes.clear()

    @property
    def stored(self) -> list[bytes]:
        return [payload for _, _, payload in self.sink.messages]


Start = Callable[..., Awaitable[Site]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start servers; all are closed at the end."""
    sites: list[Site] = []

    async def make(
        settings: Settings | None = None, hooks: Hooks | None = None, sink: MemorySink | None = None
    ) -> Site:
        sink = sink or MemorySink()
        server = MqttServer(sink, settings, hooks)
        await server.start()
        host, port = await server.listen("127.0.0.1", 0)
        sites.append(Site(sink, server, host, port))
        return sites[-1]

    yield make
    for site in sites:
        site.sink.gate.set()
        await site.server.close()
        for raw in site.raws:
            raw.close()


@pytest.fixture
async def site(start: Start) -> Site:
    """A server with the default settings."""
    return await start()

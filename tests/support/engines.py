"""The engines that their contract suite runs over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from edge_agent.engine import Engine
from waybill.mqtt.testing import MemorySink

ENGINES = ["waybill", "amqtt"]


def amqtt_fails(reason: str) -> pytest.MarkDecorator:
    """Both engines are tried, and amqtt must fail."""
    return pytest.mark.parametrize(
        "kind", ["waybill", pytest.param("amqtt", marks=pytest.mark.xfail(reason=reason, strict=True))]
    )


@dataclass
class Site:
    """A running engine with its store."""

    engine: Engine
    sink: MemorySink
    port: int
    subscribed: list[str] = field(default_factory=list)
    came: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def stored(self) -> list[bytes]:
        return [payload for _, _, payload in self.sink.messages]

    async def raw(self, *packets: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        writer.write(b"".join(packets))
        return reader, writer

    async def accepted(self, *packets: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect with raw bytes; the first packet is a CONNECT that must be accepted."""
        reader, writer = await self.raw(*packets)
        assert (await asyncio.wait_for(reader.readexactly(4), 60))[::3] == b"\x20\x00"
        return reader, writer


Start = Callable[..., Awaitable[Site]]

"""A node's connection to a broker of others, at a broker of a few lines that ends connections when a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from cloud_ingest.broker_client import BrokerClient, Received
from cloud_ingest.external_config import Broker
from tests.integration.cloud.gateway import until
from tests.support.mqtt import split

CONNACK = bytes([0x20, 3, 0, 0, 0])
NOT_AUTHORIZED = bytes([0x20, 3, 0, 0x87, 0])
CONNECT, PUBLISH, PUBACK, SUBSCRIBE = 0x10, 0x30, 0x40, 0x80


class Front:
    """What clients sent, by connection: (kind of packet, body). ``connack``: how they are answered."""

    def __init__(self) -> None:
        self.came: list[list[tuple[int, bytes]]] = []
        self.connack = CONNACK
        self._writer: asyncio.StreamWriter
        self._server: asyncio.Server

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        self._writer.close()

    def send(self, mid: int, topic: bytes) -> None:
        """Publish an empty message with QoS 1."""
        self._writer.write(bytes([0x32, 5 + len(topic), 0, len(topic)]) + topic + mid.to_bytes(2) + b"\0")

    def kinds(self, connection: int) -> list[int]:
        return [kind for kind, _ in self.came[connection]]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        mine: list[tuple[int, bytes]] = []
        self.came.append(mine)
        rest = b""
        while data := await reader.read(65536):
            found, rest = split(rest + data)
            for head, body in found:
                kind = head & 0xF0
                mine.append((kind, body))
                if kind == CONNECT:
                    writer.write(self.connack)
                elif kind == SUBSCRIBE:
                    writer.write(b"\x90\x04" + body[:2] + b"\0\1")
        writer.close()


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    one = Front()
    yield one
    one.close()


async def connected(front: Front, received: Callable[[Received], None]) -> BrokerClient:
    port = await front.start()
    client = BrokerClient(Broker(f"mqtt://127.0.0.1:{port}"), "n", ["a"], window=9, memory=1 << 20, received=received)
    client.start()
    await until(lambda: client.connects == 1)
    return client


async def test_u1_what_was_to_be_sent_dies_with_its_connection(front: Front) -> None:
    """It may be what the broker ended it for."""
    client = await connected(front, lambda _: None)
    client.publish("t", b"old")
    await until(lambda: PUBLISH in front.kinds(0))
    front.cut()
    await until(lambda: client.connects == 2)
    client.publish("t", b"new")
    await until(lambda: PUBLISH in front.kinds(1))
    assert [body[-3:] for kind, body in front.came[1] if kind == PUBLISH] == [b"new"]
    await client.close()


async def test_what_came_on_a_connection_is_not_acknowledged_on_the_next_one(front: Front) -> None:
    """There its packet id may be another message's, which nobody has journaled."""
    got: list[Received] = []
    client = await connected(front, got.append)
    front.send(7, b"t")
    await until(lambda: len(got) == 1)
    front.cut()
    await until(lambda: client.connects == 2)
    front.send(7, b"u")
    await until(lambda: len(got) == 2)
    got[0].ack()
    client.publish("t", b"marker")
    await until(lambda: PUBLISH in front.kinds(1))
    assert PUBACK not in front.kinds(1)
    got[1].ack()
    await until(lambda: PUBACK in front.kinds(1))
    await client.close()


async def test_a_broker_that_refuses_the_node_is_said_until_it_no_longer_does(front: Front) -> None:
    client = await connected(front, lambda _: None)
    front.connack = NOT_AUTHORIZED
    front.cut()
    await until(lambda: "refuses this node" in client.fault)
    await until(lambda: client.disconnects == 3)
    assert "look at user, password" in client.fault
    front.connack = CONNACK
    await until(lambda: not client.fault)
    await client.close()

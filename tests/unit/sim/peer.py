"""A scripted MQTT 3.1.1 peer: it notes each packet and acknowledges only what the test allows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True)
class Packet:
    """One packet of a client. ``connection`` counts from 1."""

    connection: int
    kind: int
    flags: int
    body: bytes

    @property
    def dup(self) -> bool:
        return bool(self.flags & 8)

    @property
    def topic(self) -> str:
        return self.body[2 : 2 + int.from_bytes(self.body[:2], "big")].decode()

    @property
    def pid(self) -> bytes:
        """Packet id of a PUBLISH of QoS 1 or 2."""
        at = 2 + int.from_bytes(self.body[:2], "big")
        return self.body[at : at + 2]

    @property
    def payload(self) -> bytes:
        return self.body[4 + int.from_bytes(self.body[:2], "big") :]


CONNECT, PUBLISH, PUBACK, SUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 4, 8, 12, 14


class Peer:
    """The broker's end. ``acks``: whether PUBACKs are sent; ``pongs``: whether pings are answered.

    ``connack``: the code of CONNACK, None for no answer.
    """

    def __init__(self) -> None:
        self.acks = True
        self.pongs = True
        self.connack: int | None = 0
        self.packets: list[Packet] = []
        self.address = ("", 0)
        self._connections = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.drop()
        await asyncio.sleep(0)

    def drop(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def send(self, data: bytes) -> None:
        """Send ``data`` on the newest connection."""
        self._writers[-1].write(data)

    def publishes(self, connection: int | None = None) -> list[Packet]:
        return [p for p in self.packets if p.kind == PUBLISH and connection in (None, p.connection)]

    async def until(self, kind: int, count: int) -> None:
        """Wait until ``count`` packets of ``kind`` came in all."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: sum(p.kind == kind for p in self.packets) >= count)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        self._writers.append(writer)
        try:
            while True:
                first = (await reader.readexactly(1))[0]
                size = shift = 0
                while True:
                    byte = (await reader.readexactly(1))[0]
                    size |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                packet = Packet(number, first >> 4, first & 15, await reader.readexactly(size))
                self._answer(packet, writer)
                async with self._changed:
                    self.packets.append(packet)
                    self._changed.notify_all()
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()

    def _answer(self, packet: Packet, writer: asyncio.StreamWriter) -> None:
        if packet.kind == CONNECT and self.connack is not None:
            writer.write(bytes([0x20, 2, 0, self.connack]))
        elif packet.kind == SUBSCRIBE:
            writer.write(b"\x90\x03" + packet.body[:2] + b"\x01")
        elif packet.kind == PINGREQ and self.pongs:
            writer.write(b"\xd0\x00")
        elif packet.kind == PUBLISH and self.acks:
            writer.write(b"\x40\x02" + packet.pid)

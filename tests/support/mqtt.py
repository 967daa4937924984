"""MQTT clients of bytes for tests: packets read for any version, and a client that remembers what its session needs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from tests.unit.mqtt import rig, v5
from tests.unit.mqtt.v5 import Packet

RST = struct.pack("ii", 1, 0)


def split(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Cut what a server wrote into (first byte, body), and the rest that is no whole packet yet."""
    found = []
    while len(data) >= 2:
        size = shift = 0
        at = 1
        while at < len(data):
            size |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if data[at - 1] < 128:
                break
        else:
            break
        if len(data) < at + size:
            break
        found.append((data[0], data[at : at + size]))
        data = data[at + size :]
    return found, data


def old(head: int, body: bytes) -> Packet:
    """Read a packet of a server of MQTT 3.1.1."""
    packet = Packet(head & 0xF0, head & 0xF, body)
    if packet.kind == 0x20:
        packet.present, packet.reason = bool(body[0]), body[1]
    elif packet.kind == 0x30:
        end = 2 + int.from_bytes(body[:2], "big")
        packet.topic = body[2:end]
        if packet.qos:
            packet.pid, end = int.from_bytes(body[end : end + 2], "big"), end + 2
        packet.body = body[end:]
    else:
        packet.pid = int.from_bytes(body[:2], "big")
    return packet


def read(level: int, data: bytes) -> list[Packet]:
    """Read whole packets of a server."""
    return v5.packets(data) if level == 5 else [old(*each) for each in split(data)[0]]


class Peer:
    """A client of one version (4 or 5), over one connection after the other; unless ``clean`` its session stays."""

    def __init__(self, name: str, level: int, port: int, *, clean: bool = False) -> None:
        self.name = name
        self.level = level
        self.port = port
        self.clean = clean
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._rest = b""
        self._waiting: list[Packet] = []

    def publish_packet(self, topic: str, payload: bytes, qos: int, pid: int, *, dup: bool) -> bytes:
        """A PUBLISH of this version."""
        make = rig.publish if self.level < 5 else v5.publish
        return make(topic, payload, qos, pid, dup=dup)

    async def connect(self, will: tuple[str, bytes, int] | None = None) -> bool:
        """Connect, waiting for the server if it is being started; says whether a session is present."""
        async with asyncio.timeout(60):
            while True:
                try:
                    self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
                    self._rest, self._waiting = b"", []
                    await self.send(self._wants(will))
                    answer = await self.next()
                    assert (answer.kind, answer.reason) == (0x20, 0)
                    return answer.present
                except (OSError, asyncio.IncompleteReadError):
                    await self.close()
                    await asyncio.sleep(0.02)

    def _wants(self, will: tuple[str, bytes, int] | None) -> bytes:
        """A CONNECT of this version."""
        if self.level < 5:
            return rig.connect(self.name, clean=self.clean, will=(*will, False) if will else None)
        wants = v5.receive_maximum(50) + (b"" if self.clean else v5.expiry(3600))
        return v5.connect(self.name, wants, clean=self.clean, will=(*will, False, b"") if will else None)

    async def subscribe(self, pattern: str, qos: int) -> None:
        """Subscribe; returns when that is acknowledged, and drops what came before."""
        await self.send((rig.subscribe if self.level < 5 else v5.subscribe)((pattern, qos), pid=9))
        while (await self.next()).kind != 0x90:
            pass

    async def send(self, *packets: bytes) -> None:
        """Send bytes."""
        assert self._writer is not None
        self._writer.write(b"".join(packets))
        await self._writer.drain()

    async def next(self) -> Packet:
        """The next packet from the server. Raises IncompleteReadError or OSError at the end of the connection."""
        while not self._waiting:
            async with asyncio.timeout(60):
                data = await self._reader.read(65_536)
            if not data:
                raise asyncio.IncompleteReadError(self._rest, None)
            found, self._rest = split(self._rest + data)
            for head, body in found:
                self._waiting += read(self.level, rig.packet(head, body))
        return self._waiting.pop(0)

    async def close(self, *, reset: bool = False) -> None:
        """End the connection, with FIN or RST."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

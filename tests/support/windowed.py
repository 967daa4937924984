"""Gateways of numbered messages that keep a window of frames in flight, and a relay in front of several nodes.

A gateway here is bytes on a socket: it buffers what it makes, sends it in order, sends again what is not acked, and
goes to whatever node the relay picks, as agents behind a load balancer do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Final

from tests.unit.mqtt import rig
from waybill import wire
from waybill.frames import encode_plain

WINDOW: Final = 8
FRAME: Final = 10
"""Messages of a frame."""

DEVICES: Final = 3
PROBE: Final = 3.0
"""Seconds without an ack after which the oldest frame is sent again; after twice as many the connection is given up."""

AGAIN: Final = 0.3
"""Seconds before what was answered ``retry``, or a connection that failed, is tried again."""


Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Connects a gateway."""


@dataclass(slots=True, eq=False)
class _Frame:
    """``due``: when it may be sent on this connection (monotonic); None once it was."""

    epoch: int
    first: int
    last: int
    data: bytes
    due: float | None = 0.0


class Gateway:
    """One gateway. ``made``: what its devices published, device -> values in order. ``acked``: frames."""

    def __init__(
        self, name: str, port: int, pace: float = 1.0, *, dial: Dial | None = None, patience: float = PROBE
    ) -> None:
        """Connect to ``port``, or by ``dial``; make ``pace`` frames a second.

        ``patience``: seconds for each step of a connection besides ``dial``, and until an ack is asked for by a probe.
        """
        self._dial = dial or (lambda: asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), patience))
        self._patience = patience
        self.name = name
        self.made: dict[str, list[str]] = {}
        self.messages = 0
        self.acked = 0
        self.connections = 0
        self.again = 0
        self._pace = pace
        self._epoch, self._previous, self._last = 1, (0, 0), 0
        self._waiting: deque[_Frame] = deque()
        self._more = asyncio.Event()
        self._heard = 0.0

    @property
    def idle(self) -> bool:
        """Whether all that was made is acked."""
        return not self._waiting

    def restart(self) -> None:
        """Number anew from 1, as an agent does that was started again; what is not acked is still there."""
        if self._last:
            self._epoch, self._previous, self._last = self._epoch + 1, (self._epoch, self._last), 0

    def make(self) -> None:
        """Make one frame of messages of all devices."""
        first, last = self._last + 1, self._last + FRAME
        topics = [f"vehicles/{self.name}-{number}/telemetry" for number in range(DEVICES)]
        values = []
        for seq in range(first, last + 1):
            device = f"{self.name}-{seq % DEVICES}"
            value = f"{device}:{self._epoch}:{seq}"
            self.made.setdefault(device, []).append(value)
            values.append((seq % DEVICES, 0, 1, value.encode(), b""))
        data = encode_plain(
            epoch=self._epoch,
            prev_epoch=self._previous[0],
            prev_last=self._previous[1],
            oldest_epoch=self._waiting[0].epoch if self._waiting else self._epoch,
            lane=wire.TELEMETRY_LANE,
            order="fifo",
            durability="every-commit",
            clock="synced",
            first=first,
            base_ms=time.time_ns() // 1_000_000,
            sources=[(topic, "") for topic in topics],
            rows=values,
        )
        self._last = last
        self.messages += FRAME
        self._waiting.append(_Frame(self._epoch, first, last, data))
        self._more.set()

    async def making(self) -> None:
        """Make frames until cancelled."""
        while True:
            self.make()
            await asyncio.sleep(1 / self._pace)

    async def run(self) -> None:
        """Send until cancelled, over one connection after the other."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await self._connection()
            await asyncio.sleep(AGAIN)

    async def _connection(self) -> None:
        reader, writer = await self._dial()
        try:
            writer.write(rig.connect(self.name) + rig.subscribe((wire.ack_topic(self.name), 0)))
            async with asyncio.timeout(self._patience):
                await reader.readexactly(9)  # CONNACK, SUBACK
            self.connections += 1
            for frame in self._waiting:
                frame.due = 0.0
            self._heard = time.monotonic()
            await _until_one_ends(self._listen(reader), self._send(writer))
        finally:
            writer.transport.abort()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        topic, probed = wire.up_topic(self.name), 0.0
        while True:
            now = time.monotonic()
            silent = now - self._heard
            for frame in list(self._waiting)[:WINDOW]:
                if frame.due is not None and frame.due <= now:
                    frame.due = None
                    writer.write(rig.publish(topic, frame.data))
            if not self._waiting:
                self._heard = now
            elif silent > 2 * self._patience:
                return
            elif silent > self._patience and now - probed > self._patience:
                probed, self.again = now, self.again + 1
                writer.write(rig.publish(topic, self._waiting[0].data))
            await writer.drain()
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN):
                    await self._more.wait()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            head = (await reader.readexactly(1))[0]
            size = shift = 0
            while True:
                (byte,) = await reader.readexactly(1)
                size |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            body = await reader.readexactly(size)
            if head >> 4 == 3:
                self._answered(wire.decode_ack(body[2 + int.from_bytes(body[:2], "big") :]))

    def _answered(self, ack: wire.Ack) -> None:
        if ack.refused or ack.versions:
            raise AssertionError(f"{self.name}: {ack}")
        kept: deque[_Frame] = deque()
        for frame in self._waiting:
            if any(_holds(span, frame) for span in ack.journaled):
                self.acked += 1
                continue
            if any(_holds(span, frame) for span in ack.retry):
                frame.due = time.monotonic() + AGAIN
                self.again += 1
            kept.append(frame)
        if ack.journaled or ack.retry:
            self._heard = time.monotonic()
        self._waiting = kept
        self._more.set()


def _holds(span: wire.Span, frame: _Frame) -> bool:
    return span.epoch == frame.epoch and span.first <= frame.first and frame.last <= span.last


class Relay:
    """A TCP load balancer: each connection goes to the port with the fewest that accepts one."""

    def __init__(self, ports: Iterable[int]) -> None:
        """Relay to ``ports``; the set may be changed at any time."""
        self.ports = set(ports)
        self.port = 0
        self._count: dict[int, int] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End it, with all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dead: set[int] = set()
        try:
            while live := self.ports - dead:
                port = min(live, key=lambda port: self._count.get(port, 0))
                self._count[port] = self._count.get(port, 0) + 1  # at once: others come at the same moment
                try:
                    await _connected(reader, writer, port)
                    return
                except OSError:
                    dead.add(port)
                finally:
                    self._count[port] -= 1
        finally:
            writer.transport.abort()


async def _connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Copy both ways until one ends. Raises OSError (nobody listens there)."""
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await _until_one_ends(_copy(reader, there_writer), _copy(there_reader, writer))
    finally:
        there_writer.transport.abort()


async def _until_one_ends(*ways: Coroutine[None, None, None]) -> None:
    """Run ``ways`` beside each other; when one ends, however, so do the others."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()

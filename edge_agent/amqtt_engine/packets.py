"""The bytes between a device and amqtt: whole, checked packets in; output that somebody reads.

amqtt reads a packet field by field, takes any length and passes over what it does not understand. So it is given whole
packets that were checked before, one at a time, and never the bytes themselves. Here, too, a device is made to wait
while too much of what it sent is not committed.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from amqtt.adapters import ReaderAdapter, StreamWriterAdapter

from waybill.mqtt import codec
from waybill.mqtt.properties import variable
from waybill.mqtt.reader import CONNECT_LIMIT, NO_ID
from waybill.mqtt.reasons import Malformed, UnsupportedVersion
from waybill.mqtt.topics import valid_topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from waybill.mqtt.settings import Client, Counters, Settings

LINGER: Final = 5.0
"""Seconds that a connection has to take its last output."""


@dataclass
class Listener:
    """Where connections come from: its name, the settings that hold for them, and how many there are."""

    name: str
    settings: Settings
    connections: int = 0


class Held:
    """Bytes of PUBLISH packets that were read and are not answered yet, of all connections."""

    def __init__(self, limit: int) -> None:
        """``limit``: beyond it nothing more is read, until half is answered."""
        self.limit = limit
        self.bytes = 0
        self.paused: set[Packets] = set()

    def give_back(self, size: int) -> None:
        """``size`` bytes were answered."""
        self.bytes -= size
        if self.bytes <= self.limit // 2:
            for one in self.paused:
                one.look()


class Packets(ReaderAdapter):  # type: ignore[misc] # amqtt ships no types
    """What amqtt reads from one connection.

    ``why``: for what reason it ends; ``goodbye``: it sent DISCONNECT. ``accepted``: whether its CONNECT was, and then
    ``client`` is who it is. ``paused``: nothing is read, although the device may have sent something.
    """

    def __init__(
        self, stream: asyncio.StreamReader, output: Output, listener: Listener, counters: Counters, held: Held
    ) -> None:
        self.why = ""
        self.goodbye = False
        self.accepted = False
        self.client: Client
        self.ended = asyncio.Event()
        self.paused = False
        self._stream = stream
        self._output = output
        self.listener = listener
        self._settings = listener.settings
        self._counters = counters
        self._held_all = held
        self._held = 0
        self._packet = b""
        self._at = 0
        self._changed = asyncio.Event()

    async def read(self, n: int = -1) -> bytes:
        """Return the next ``n`` bytes of a packet; fewer at the end of the connection, which amqtt takes for that."""
        if not n:
            return b""
        if self._at == len(self._packet) and not await self._next():
            return b""
        start, self._at = self._at, min(self._at + n, len(self._packet))
        return self._packet[start : self._at]

    def feed_eof(self) -> None:
        """Read nothing more."""
        self.end("connection lost")

    def abort(self) -> None:
        """Cut the connection, whatever waits to be written."""
        self._output.abort()

    def end(self, why: str) -> None:
        """End the connection when what was read is answered; the first reason counts."""
        self.why = self.why or why
        self._stream.set_exception(ConnectionAbortedError(why))
        self.look()

    async def first(self) -> codec.Connect:
        """Read the first packet and leave it to amqtt.

        Raises Malformed where it is no CONNECT, UnsupportedVersion where it is not of MQTT 3.1.1, ConnectionError where
        none came.
        """
        head, body = await self._whole(CONNECT_LIMIT)
        if head != codec.CONNECT:
            raise Malformed("the first packet is not CONNECT")
        connect = codec.parse_connect(body)
        if connect.version != codec.MQTT_3_1_1:
            answer = codec.connack(connect.version, codec.ConnackCode.BAD_VERSION, present=False)
            raise UnsupportedVersion(connect.version, answer)
        if connect.will is not None and not valid_topic(connect.will.topic, self._settings.max_levels):
            raise Malformed("no topic for a will")
        self._take(head, body)
        return connect

    async def _next(self) -> bool:
        """Read the next packet. False: there is none, and what was read before is answered."""
        if self.goodbye:  # its last packet was this one; the task that reads ends by being cancelled
            self.paused = True
            await asyncio.Event().wait()
        try:
            await self._room()
            if not self.why:
                head, body = await self._whole(self._settings.max_packet)
                self._check(head, body)
                self._take(head, body)
                return True
        except Malformed as error:
            self._counters.malformed += 1
            self.end(str(error))
        except TimeoutError:
            self._counters.timed_out += 1
            self.end("unfinished packet")
        except EOFError:
            self.end("connection lost")
        except OSError as error:
            self.end(f"connection lost: {error}")
        await self.answered()
        return False

    async def _whole(self, limit: int) -> tuple[int, bytes]:
        """Read one packet: its first byte, and what follows the remaining length (2.2)."""
        stream = self._stream
        head = (await stream.readexactly(1))[0]
        async with asyncio.timeout(self._settings.stall_timeout):
            size = shift = 0
            while True:
                byte = (await stream.readexactly(1))[0]
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:  # noqa: PLR2004 - the standard's
                    break
                if shift > 21:  # noqa: PLR2004 - the standard's
                    raise Malformed("remaining length of more than four bytes")
            if size > limit:
                raise Malformed(f"packet of {size} bytes; the limit is {limit}")
            body = await stream.readexactly(size)
        self._counters.bytes_in += size + 1 + shift // 7
        return head, body

    def _take(self, head: int, body: bytes) -> None:
        """Hand a packet over. Its length is written anew, as short as it goes."""
        self._packet = b"".join((bytes((head,)), variable(len(body)), body))
        self._at = 0
        self.goodbye = head == codec.DISCONNECT
        if head & 0xF0 == codec.PUBLISH:
            self._held += len(body)
            self._held_all.bytes += len(body)

    def _check(self, head: int, body: bytes) -> None:
        """Raise Malformed for what a client of MQTT 3.1.1 must not send now."""
        if head & 0xF0 == codec.PUBLISH:
            self._check_publish(head, body)
        elif head in (codec.PUBACK, codec.PUBREC, codec.PUBREL, codec.PUBCOMP):
            codec.parse_ack(body)
        elif head == codec.SUBSCRIBE:
            codec.parse_subscribe(body)
        elif head == codec.UNSUBSCRIBE:
            codec.parse_unsubscribe(body)
        elif head == codec.CONNECT:
            raise Malformed("a second CONNECT")
        elif head not in (codec.PINGREQ, codec.DISCONNECT) or body:
            raise Malformed(f"packet type {head >> 4} with flags {head & 15} and {len(body)} bytes is not for a server")

    def _check_publish(self, head: int, body: bytes) -> None:
        """3.3; amqtt has no topic that begins with ``$`` for clients."""
        qos = head >> 1 & 3
        end = 2 + int.from_bytes(body[:2], "big")
        if qos > 2 or (head & codec.DUP and not qos):  # noqa: PLR2004 - QoS 0 to 2
            raise Malformed(f"PUBLISH with flags {head & 15}")
        if len(body) < end + (2 if qos else 0) or len(body) < 2:  # noqa: PLR2004 - a topic's length
            raise Malformed("PUBLISH ends early")
        if qos and body[end : end + 2] == NO_ID:
            raise Malformed("PUBLISH without a packet id")
        topic = body[2:end]
        if topic.startswith(b"$") or not valid_topic(topic, self._settings.max_levels):
            raise Malformed("no topic for a PUBLISH")

    # -- what is not answered yet ----------------------------------------------------------------------------------

    def give_back(self, size: int) -> None:
        """A PUBLISH of ``size`` bytes after its fixed header was answered."""
        if not self.ended.is_set():  # else it was settled as a whole
            self._held -= size
            self._held_all.give_back(size)
            self.look()

    def settle(self) -> None:
        """The connection has ended: nothing of it counts any more."""
        self.ended.set()
        self._held_all.give_back(self._held)
        self._held = 0

    def look(self) -> None:
        """Something that is waited for may have come."""
        self._changed.set()

    async def _room(self) -> None:
        """Wait while too much is not answered, or the device does not read its answers. Raises OSError."""
        limit, of_all = self._settings.uncommitted_bytes, self._held_all
        self.paused = True
        try:
            await self._output.drain()
            if self._held > limit or of_all.bytes > of_all.limit:
                of_all.paused.add(self)
                await self._until(
                    lambda: bool(self.why) or (self._held <= limit // 2 and of_all.bytes <= of_all.limit // 2)
                )
        finally:
            self.paused = False
            of_all.paused.discard(self)

    async def answered(self) -> None:
        """Wait until all that was read is answered."""
        await self._until(lambda: not self._held)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


class Output(StreamWriterAdapter):  # type: ignore[misc] # amqtt ships no types
    """What amqtt writes to one connection. A peer that reads nothing is cut off, where amqtt would wait for ever."""

    def __init__(self, writer: asyncio.StreamWriter, stall_timeout: float) -> None:
        super().__init__(writer)
        self._patience = stall_timeout

    async def drain(self) -> None:
        """Wait until there is room. Raises ConnectionResetError where the peer reads nothing for too long."""
        try:
            async with asyncio.timeout(self._patience):
                await super().drain()
        except TimeoutError as error:
            self.abort()
            raise ConnectionResetError("it does not read what is sent to it") from error

    async def close(self) -> None:
        """Close when the output has left, or when that takes too long."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER):
                await super().close()
        self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        self._writer.transport.abort()

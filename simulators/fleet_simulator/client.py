"""A QoS 1 publisher for thousands of vehicles in one process, which knows exactly what was acknowledged to it.

MQTT 3.1.1 or 5, over TCP or TLS. Messages are sent in the order in which they were offered. What is not acknowledged
when a connection ends is sent again on the next one, with DUP and under the same packet id (3.1.1 and 5.0, section
4.4), before anything new; where MQTT 5 has lost the session, as new messages (4.1). Nothing is sent between CONNECT and
its CONNACK.

A PUBACK that this machine's TCP has acknowledged counts, whatever becomes of the connection, since that is all that a
broker can know: so what lies in the kernel of a connection that broke is read before it is closed. (With TLS that
cannot be: a broker that tells copies from new messages by what TCP says may then store such a message twice.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import Final

from fleet_simulator.devices import Broker
from waybill.mqtt import codec, properties
from waybill.mqtt.properties import variable
from waybill.mqtt.reasons import Malformed
from waybill.pki import client_context

_CONNECT_PATIENCE: Final = 10.0
_LEAVE_PATIENCE: Final = 2.0
_REFUSED_PAUSE: Final = 1.0
_FAILURE: Final = 0x80
_LONGEST: Final = 1 << 20
"""Bytes of a packet that the client takes."""

_NAMES: Final = {"3.1.1": codec.MQTT_3_1_1, "5": codec.MQTT_5}

Acked = Callable[[str, int, int], None]
"""Told of a stream, and the first and last number of it that were acknowledged, in order."""

Order = Callable[[str, bytes], bytes | None]
"""Told of a command's id and payload; returns the answer to publish, None for none."""


class Client(asyncio.Protocol):
    """One vehicle's connection, one after the other; see the module."""

    __slots__ = (
        "_again",
        "_block",
        "_flight",
        "_heard",
        "_next",
        "_on_acked",
        "_on_order",
        "_ready",
        "_rest",
        "_transport",
        "_up",
        "_waiting",
        "_window",
        "broker",
        "closed",
        "connects",
        "error",
        "keepalive",
        "moved",
        "name",
        "queue",
        "refused",
        "resent",
        "sent_at",
        "version",
    )

    def __init__(
        self,
        name: str,
        broker: Broker,
        on_acked: Acked,
        *,
        on_order: Order | None = None,
        version: str = "3.1.1",
        window: int = 100,
        queue: int = 1000,
        keepalive: int = 30,
    ) -> None:
        """``name``: the client id. ``window``: messages on the wire without a PUBACK. ``queue``: all without one."""
        self.name = name
        self.broker = broker
        self.version = _NAMES[version]
        self.queue = queue
        self.keepalive = keepalive
        self.connects = self.resent = self.refused = 0
        self.error = "not connected yet"
        self.closed = asyncio.Event()
        self.sent_at = self.moved = 0.0
        self._window = window
        self._block = b"" if self.version == codec.MQTT_5 else None
        self._on_acked = on_acked
        self._on_order = on_order
        self._flight: dict[int, tuple[bytes, str, int]] = {}
        self._waiting: deque[tuple[bytes, bytes, str, int]] = deque()
        self._again: list[tuple[bytes, str, int]] = []
        self._next = 1
        self._rest = b""
        self._ready = False
        self._up: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    # -- what others call --

    @property
    def connected(self) -> bool:
        """Whether the CONNACK of the current connection came."""
        return self._ready

    @property
    def waiting(self) -> int:
        """Messages that were offered and are not acknowledged."""
        return len(self._flight) + len(self._waiting) + len(self._again)

    @property
    def has_room(self) -> bool:
        """Whether one more may be offered."""
        return len(self._flight) + len(self._waiting) < self.queue

    def offer(self, topic: bytes, payload: bytes, stream: str, number: int) -> None:
        """Take a message; ``flush`` sends it. ``stream`` and ``number`` are what ``on_acked`` is told."""
        self._waiting.append((topic, payload, stream, number))

    def flush(self) -> None:
        """Send what may be sent."""
        if not self._ready or self._transport is None or not self._waiting or self._again:
            return
        out: list[bytes] = []
        flight, waiting, block, pid = self._flight, self._waiting, self._block, self._next
        for _ in range(min(self._window - len(flight), len(waiting))):
            while pid in flight:
                pid = pid % 65_535 + 1
            topic, payload, stream, number = waiting.popleft()
            packet = codec.publish(topic, payload, 2, pid.to_bytes(2, "big"), block)
            flight[pid] = (packet, stream, number)
            out.append(packet)
            pid = pid % 65_535 + 1
        self._next = pid
        self._write(b"".join(out))

    def ping(self, now: float) -> None:
        """Send PINGREQ where nothing was sent for half the keep alive; end a connection that is mute for all of it."""
        if not self._ready or self._transport is None:
            return
        if now - self.moved > 1.5 * self.keepalive:
            self.error = "no answer within the keep alive"
            self._transport.abort()
        elif now - self.sent_at > self.keepalive / 2:
            self._write(bytes((codec.PINGREQ, 0)))

    async def connect(self) -> None:
        """Open a connection and wait for its CONNACK. Raises OSError, with what is wrong."""
        loop = asyncio.get_running_loop()
        self.closed.clear()
        self._rest, self.error = b"", ""
        self._up = loop.create_future()
        broker = self.broker
        tls = client_context(broker.ca) if broker.tls else None
        try:
            async with asyncio.timeout(_CONNECT_PATIENCE):
                transport, _ = await loop.create_connection(lambda: self, broker.host, broker.port, ssl=tls)
                try:
                    await self._up
                except BaseException:
                    transport.abort()
                    raise
        except TimeoutError as error:
            self.error = f"{broker}: no answer within {_CONNECT_PATIENCE:.0f} s"
            raise ConnectionError(self.error) from error
        except OSError as error:
            self.error = str(error)
            raise
        finally:
            self._up = None

    async def leave(self) -> None:
        """End the connection as one that has gone out of reach, without DISCONNECT; what is under way still counts."""
        transport = self._transport
        if transport is None:
            return
        self._ready = False
        with contextlib.suppress(OSError, NotImplementedError):
            transport.write_eof()
        try:
            await asyncio.wait_for(self.closed.wait(), _LEAVE_PATIENCE)
        except TimeoutError:
            transport.abort()
            await self.closed.wait()

    async def disconnect(self) -> None:
        """Say DISCONNECT and close; for the end, when nothing waits any more."""
        if self._transport is not None:
            if self._ready:
                self._write(bytes((codec.DISCONNECT, 0)))
            self._ready = False
            self._transport.close()
            await self.closed.wait()

    # -- the connection --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send CONNECT."""
        self._transport = transport  # type: ignore[assignment] # a protocol of streams is given one
        self._write(self._connect_packet())

    def connection_lost(self, exc: Exception | None) -> None:
        """Take what came before the end, and no more."""
        if self._transport is not None and not self.broker.tls:
            inner = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                while data := os.read(inner.fileno(), 1 << 16):
                    self.data_received(data)
        self._transport = None
        self._ready = False
        self.error = str(exc) if exc else self.error or "the broker closed the connection"
        if self._up is not None and not self._up.done():
            self._up.set_exception(ConnectionError(self.error))
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        """Take PUBACKs in bulk, and the rest one by one."""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        flight = self._flight
        stream, first, last = "", 0, -1
        while end - at >= 4 and data[at] == codec.PUBACK and data[at + 1] == 2:  # noqa: PLR2004
            entry = flight.pop(data[at + 2] << 8 | data[at + 3], None)
            at += 4
            if entry is None:
                continue
            if entry[2] == last + 1 and entry[1] == stream:
                last += 1
                continue
            if last >= first:
                self._on_acked(stream, first, last)
            _, stream, first = entry
            last = first
        if last >= first:
            self._on_acked(stream, first, last)
        self.moved = asyncio.get_running_loop().time()
        try:
            while (found := _packet(data, at, end)) is not None:
                head, body, at = found
                self._take(head, body)
        except Malformed as error:
            self.error = f"not MQTT: {error}"
            if self._transport is not None:
                self._transport.abort()
            return
        self._rest = data[at:]
        self.flush()

    def _take(self, head: int, body: bytes) -> None:
        kind = head & 0xF0
        if kind == codec.PUBACK:
            self._puback(body)
        elif kind == codec.PUBLISH:
            self._command(head, body)
        elif kind == codec.CONNACK:
            self._connack(body)
        elif kind == codec.DISCONNECT:
            self.error = f"the broker said DISCONNECT 0x{body[0] if body else 0:02x}"

    def _puback(self, body: bytes) -> None:
        entry = self._flight.pop(int.from_bytes(body[:2], "big"), None)
        if entry is None:
            return
        if len(body) > 2 and body[2] >= _FAILURE:  # noqa: PLR2004 - a reason after the packet id
            self.refused += 1
            self._again.append(entry)
            if len(self._again) == 1:
                asyncio.get_running_loop().call_later(_REFUSED_PAUSE, self._offer_again)
        else:
            self._on_acked(entry[1], entry[2], entry[2])

    def _offer_again(self) -> None:
        """Send what was refused once more, before all that was not sent yet; the packets keep their order."""
        if not self._ready:
            asyncio.get_running_loop().call_later(_REFUSED_PAUSE, self._offer_again)
            return
        out = []
        again, self._again = self._again, []
        for packet, stream, number in again:
            pid = self._next
            while pid in self._flight:
                pid = pid % 65_535 + 1
            self._next = pid % 65_535 + 1
            fresh = _renumbered(packet, pid)
            self._flight[pid] = (fresh, stream, number)
            out.append(fresh)
        self._write(b"".join(out))
        self.flush()

    def _connack(self, body: bytes) -> None:
        if len(body) < 2:  # noqa: PLR2004 - flags and a code
            raise Malformed("a CONNACK that is too short")
        present, code = bool(body[0] & 1), body[1]
        if code:
            self.error = f"{self.broker} refused the connection: code 0x{code:02x}"
            if self._transport is not None:
                self._transport.abort()
            return
        if self.version == codec.MQTT_5:
            block, _ = properties.block(body, 2)
            said = _numbers(block)
            self._window = min(self._window, said.get(properties.RECEIVE_MAXIMUM, 65_535))
            self.keepalive = said.get(properties.SERVER_KEEP_ALIVE, self.keepalive)
        self.connects += 1
        self.error = ""
        self._ready = True
        out = [self._subscribe_packet()] if self._on_order is not None else []
        if self._flight:
            again = self.version < codec.MQTT_5 or present
            out += [_repeated(entry[0]) if again else entry[0] for entry in self._flight.values()]
            self.resent += len(self._flight)
        self._write(b"".join(out))
        if self._up is not None and not self._up.done():
            self._up.set_result(None)

    def _command(self, head: int, body: bytes) -> None:
        """Answer a command, cmd/DEVICE/ID/req; anything else that comes is acknowledged."""
        size = int.from_bytes(body[:2], "big")
        topic, at = body[2 : 2 + size], 2 + size
        pid = b""
        if head & codec.QOS_BITS:
            pid, at = body[at : at + 2], at + 2
        if self.version == codec.MQTT_5:
            _, at = properties.block(body, at)
        levels = topic.decode(errors="replace").split("/")
        if self._on_order is not None and len(levels) == 4 and levels[0] == "cmd" and levels[3] == "req":  # noqa: PLR2004
            answer = self._on_order(levels[2], body[at:])
            if answer is not None:
                self.offer(f"cmd/{self.name}/{levels[2]}/res".encode(), answer, "", 0)
        if pid:
            self._write(codec.acks(codec.PUBACK, (pid,)))

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)
            self.sent_at = asyncio.get_running_loop().time()

    def _connect_packet(self) -> bytes:
        broker = self.broker
        flags = (0x80 if broker.user is not None else 0) | (0x40 if broker.password is not None else 0)
        body = b"\0\4MQTT" + bytes((self.version, flags)) + self.keepalive.to_bytes(2, "big")
        if self.version == codec.MQTT_5:
            said = bytes((properties.SESSION_EXPIRY,)) + codec.NEVER.to_bytes(4, "big")
            body += variable(len(said)) + said
        for field in (self.name, broker.user, broker.password):
            if field is not None:
                body += _text(field)
        return bytes((codec.CONNECT,)) + variable(len(body)) + body

    def _subscribe_packet(self) -> bytes:
        # Packet ids of SUBSCRIBE and PUBLISH are from one range (2.3.1); what is under way keeps its own.
        pid = next(number for number in range(65_535, 0, -1) if number not in self._flight)
        body = pid.to_bytes(2, "big") + (b"\0" if self.version == codec.MQTT_5 else b"")
        body += _text(f"cmd/{self.name}/+/req") + b"\1"
        return bytes((codec.SUBSCRIBE,)) + variable(len(body)) + body


def _packet(data: bytes, at: int, end: int) -> tuple[int, bytes, int] | None:
    """Return first byte, body and end of the packet at ``at``; None where it is not whole. Raises Malformed."""
    size = shift = 0
    look = at + 1
    while True:
        if look >= end:
            return None
        byte = data[look]
        look += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # noqa: PLR2004 - the last byte of the length
            break
        if shift > 21:  # noqa: PLR2004 - four bytes at most
            raise Malformed("a length that does not end")
    if size > _LONGEST:
        raise Malformed(f"a packet of {size} bytes")
    return (data[at], data[look : look + size], look + size) if look + size <= end else None


_SIZES: Final = {0x11: 4, 0x13: 2, 0x21: 2, 0x22: 2, 0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1}
"""Bytes of the properties of a CONNACK that are numbers (5.0, 3.2.2.3); the others are text, binary or pairs."""


def _numbers(block: bytes) -> dict[int, int]:
    """Return what a CONNACK says in numbers, by identifier."""
    found: dict[int, int] = {}
    at = 0
    while at < len(block):
        kind, at = block[at], at + 1
        if kind in _SIZES:
            found[kind] = int.from_bytes(block[at : at + _SIZES[kind]], "big")
            at += _SIZES[kind]
        else:
            for _ in range(2 if kind == properties.USER_PROPERTY else 1):
                at += 2 + int.from_bytes(block[at : at + 2], "big")
    return found


def _text(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(2, "big") + raw


def _repeated(packet: bytes) -> bytes:
    return bytes((packet[0] | codec.DUP,)) + packet[1:]


def _renumbered(packet: bytes, pid: int) -> bytes:
    """Return a PUBLISH of QoS 1 with another packet id."""
    at = 1
    while packet[at] & 0x80:
        at += 1
    at += 3 + int.from_bytes(packet[at + 1 : at + 3], "big")
    return packet[:at] + pid.to_bytes(2, "big") + packet[at + 2 :]

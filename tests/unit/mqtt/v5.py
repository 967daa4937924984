"""Packets of MQTT 5 for the rig, written from the standard: the server's codec does not test itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.unit.mqtt import rig
from tests.unit.mqtt.rig import Rig, Wire


def variable(n: int) -> bytes:
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def expiry(seconds: int) -> bytes:
    """Session expiry interval."""
    return b"\x11" + seconds.to_bytes(4, "big")


def expires(seconds: int) -> bytes:
    """Message expiry interval."""
    return b"\x02" + seconds.to_bytes(4, "big")


def alias(n: int) -> bytes:
    return b"\x23" + n.to_bytes(2, "big")


def user(name: str, value: str) -> bytes:
    return b"\x26" + rig.text(name) + rig.text(value)


def identifier(n: int) -> bytes:
    return b"\x0b" + variable(n)


def receive_maximum(n: int) -> bytes:
    return b"\x21" + n.to_bytes(2, "big")


def alias_maximum(n: int) -> bytes:
    return b"\x22" + n.to_bytes(2, "big")


def max_packet(n: int) -> bytes:
    return b"\x27" + n.to_bytes(4, "big")


def delay(seconds: int) -> bytes:
    """Will delay interval."""
    return b"\x18" + seconds.to_bytes(4, "big")


FORMAT = b"\x01\x01"
CONTENT = b"\x03" + rig.text("text/plain")
RESPONSE = b"\x08" + rig.text("answers/1")
CORRELATION = b"\x09" + rig.text(b"\0\xff")


def block(properties: bytes) -> bytes:
    return variable(len(properties)) + properties


def connect(
    client: str | bytes = "dev",
    properties: bytes = b"",
    *,
    clean: bool = True,
    keepalive: int = 0,
    will: tuple[str, bytes, int, bool, bytes] | None = None,
    user_name: str | None = None,
    password: bytes | None = None,
    flags: int = 0,
) -> bytes:
    flags |= 2 if clean else 0
    tail = rig.text(client)
    if will is not None:
        topic, payload, qos, retain, said = will
        flags |= 4 | qos << 3 | (0x20 if retain else 0)
        tail += block(said) + rig.text(topic) + rig.text(payload)
    if user_name is not None:
        flags |= 0x80
        tail += rig.text(user_name)
    if password is not None:
        flags |= 0x40
        tail += rig.text(password)
    head = rig.text(b"MQTT") + bytes([5, flags]) + keepalive.to_bytes(2, "big")
    return rig.packet(0x10, head + block(properties) + tail)


def publish(
    topic: str | bytes,
    payload: bytes = b"",
    qos: int = 0,
    pid: int = 0,
    properties: bytes = b"",
    *,
    dup: bool = False,
    retain: bool = False,
) -> bytes:
    head = 0x30 | (8 if dup else 0) | qos << 1 | retain
    ids = pid.to_bytes(2, "big") if qos else b""
    return rig.packet(head, rig.text(topic) + ids + block(properties) + payload)


def subscribe(*filters: tuple[str, int], pid: int = 1, properties: bytes = b"") -> bytes:
    wanted = b"".join(rig.text(each) + bytes([options]) for each, options in filters)
    return rig.packet(0x82, pid.to_bytes(2, "big") + block(properties) + wanted)


def unsubscribe(*filters: str, pid: int = 1) -> bytes:
    return rig.packet(0xA2, pid.to_bytes(2, "big") + b"\0" + b"".join(map(rig.text, filters)))


def suback(*codes: int, pid: int = 1) -> bytes:
    return rig.packet(0x90, pid.to_bytes(2, "big") + b"\0" + bytes(codes))


def unsuback(*codes: int, pid: int = 1) -> bytes:
    return rig.packet(0xB0, pid.to_bytes(2, "big") + b"\0" + bytes(codes))


def ack(kind: int, pid: int, reason: int) -> bytes:
    return rig.packet(kind, pid.to_bytes(2, "big") + bytes([reason]))


def disconnect(reason: int = 0, properties: bytes = b"") -> bytes:
    return rig.packet(0xE0, bytes([reason]) + block(properties))


@dataclass
class Packet:
    """What the server sent. ``body`` without what the other fields hold."""

    kind: int
    flags: int
    body: bytes
    reason: int = 0
    present: bool = False
    topic: bytes = b""
    pid: int = 0
    properties: list[tuple[int, bytes]] = field(default_factory=list)

    def values(self, identifier: int) -> list[bytes]:
        return [value for each, value in self.properties if each == identifier]

    def number(self, identifier: int) -> int | None:
        values = self.values(identifier)
        return int.from_bytes(values[0], "big") if values else None

    @property
    def qos(self) -> int:
        return self.flags >> 1 & 3


_FIXED = {1: 1, 2: 4, 0x11: 4, 0x13: 2, 0x21: 2, 0x22: 2, 0x23: 2, 0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1}


def _take(data: bytes) -> tuple[int, bytes]:
    value = shift = at = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, data[at:]


def _string(data: bytes) -> tuple[bytes, bytes]:
    end = 2 + int.from_bytes(data[:2], "big")
    return data[2:end], data[end:]


def _properties(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    size, data = _take(data)
    here, rest = data[:size], data[size:]
    assert len(here) == size
    found: list[tuple[int, bytes]] = []
    while here:
        kind, here = here[0], here[1:]
        if kind == 0x0B:
            n, here = _take(here)
            value = n.to_bytes(4, "big")
        elif kind in _FIXED:
            value, here = here[: _FIXED[kind]], here[_FIXED[kind] :]
        else:
            value, here = _string(here)
            if kind == 0x26:
                second, here = _string(here)
                value += b"=" + second
        found.append((kind, value))
    return found, rest


def packets(data: bytes) -> list[Packet]:
    """Read what a server of MQTT 5 sent."""
    found: list[Packet] = []
    while data:
        head, data = data[0], data[1:]
        size, data = _take(data)
        body, data = data[:size], data[size:]
        assert len(body) == size
        packet = Packet(head & 0xF0, head & 0xF, body)
        if packet.kind == 0x20:
            packet.present, packet.reason = bool(body[0]), body[1]
            packet.properties, packet.body = _properties(body[2:])
        elif packet.kind == 0x30:
            packet.topic, body = _string(body)
            if packet.qos:
                packet.pid, body = int.from_bytes(body[:2], "big"), body[2:]
            packet.properties, packet.body = _properties(body)
        elif packet.kind == 0xE0:
            packet.reason = body[0]
            packet.properties, packet.body = _properties(body[1:])
        elif packet.kind in (0x90, 0xB0):
            packet.pid = int.from_bytes(body[:2], "big")
            packet.properties, packet.body = _properties(body[2:])
        elif packet.kind in (0x40, 0x50, 0x60, 0x70):
            packet.pid, packet.reason = int.from_bytes(body[:2], "big"), body[2] if len(body) > 2 else 0
        found.append(packet)
    return found


def take(wire: Wire) -> list[Packet]:
    return packets(wire.take())


def client(r: Rig, name: str = "dev", properties: bytes = b"", *, clean: bool = True) -> Wire:
    """A connected client whose CONNACK was taken."""
    wire = r.open(connect(name, properties, clean=clean))
    (answer,) = take(wire)
    assert (answer.kind, answer.reason) == (0x20, 0)
    return wire


def subscriber(
    r: Rig, *filters: tuple[str, int], name: str = "sub", properties: bytes = b"", said: bytes = b"", clean: bool = True
) -> Wire:
    """A connected client with subscriptions. ``said``: properties of the SUBSCRIBE."""
    wire = client(r, name, properties, clean=clean)
    wire.feed(subscribe(*filters, properties=said))
    r.commit()
    assert take(wire)[0].body == bytes(options & 3 for _, options in filters)
    return wire

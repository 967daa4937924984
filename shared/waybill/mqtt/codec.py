"""MQTT 3.1.1 control packets as bytes (OASIS MQTT 3.1.1, sections 2 and 3). No I/O.

What every message costs (PUBLISH, PUBACK) is parsed in :mod:`waybill.mqtt.connection`; here is the rest, and all
encoding. ``version`` is the protocol level of CONNECT (3: MQIsdp, 4: 3.1.1, 5) and travels with every packet, so that
MQTT 5 adds cases, not code paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from waybill.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MQTT_3_1: Final = 3
MQTT_3_1_1: Final = 4
MQTT_5: Final = 5

CONNECT: Final = 0x10
CONNACK: Final = 0x20
PUBLISH: Final = 0x30
PUBACK: Final = 0x40
PUBREC: Final = 0x50
PUBREL: Final = 0x62  # with the flags that the standard demands
PUBCOMP: Final = 0x70
SUBSCRIBE: Final = 0x82
SUBACK: Final = 0x90
UNSUBSCRIBE: Final = 0xA2
UNSUBACK: Final = 0xB0
PINGREQ: Final = 0xC0
DISCONNECT: Final = 0xE0

RETAIN: Final = 1
DUP: Final = 8
QOS_BITS: Final = 6
SUBACK_FAILURE: Final = 0x80

PINGRESP_PACKET: Final = b"\xd0\x00"
CONNACK_5_UNSUPPORTED: Final = b"\x20\x03\x00\x84\x00"
"""CONNACK of MQTT 5: no session, reason 0x84 (unsupported protocol version), no properties."""

_WILL, _WILL_RETAIN, _PASSWORD, _USER = 0x04, 0x20, 0x40, 0x80
_MAX_QOS = 2


class Malformed(Refused):
    """The peer broke the protocol: close its connection, and only that."""


class UnsupportedVersion(Refused):
    """A CONNECT of a protocol level that is not spoken; ``answer`` is the CONNACK to send before closing."""

    def __init__(self, version: int, answer: bytes) -> None:
        """Name the level and the answer."""
        super().__init__(f"protocol level {version} is not spoken")
        self.answer = answer


class ConnackCode(IntEnum):
    """Return codes of CONNACK (3.1.1, table 3.1)."""

    ACCEPTED = 0
    BAD_VERSION = 1
    BAD_CLIENT_ID = 2
    UNAVAILABLE = 3
    BAD_CREDENTIALS = 4
    NOT_AUTHORIZED = 5


@dataclass(frozen=True, slots=True)
class Will:
    """What is published for a client whose connection ends without DISCONNECT."""

    topic: bytes
    payload: bytes
    qos: int
    retain: bool
    properties: bytes = b""


@dataclass(frozen=True, slots=True)
class Connect:
    """A CONNECT packet. ``keepalive``: seconds, 0 for none. ``properties``: the MQTT 5 block, empty before."""

    version: int
    client_id: str
    clean: bool
    keepalive: int
    will: Will | None = None
    user: str | None = None
    password: bytes | None = None
    properties: bytes = b""


class _Reader:
    """Takes fields off a packet's body. Raises Malformed at its end."""

    __slots__ = ("at", "body")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.at = 0

    def u8(self) -> int:
        if self.at >= len(self.body):
            raise Malformed("packet ends early")
        self.at += 1
        return self.body[self.at - 1]

    def u16(self) -> int:
        return self.u8() << 8 | self.u8()

    def binary(self) -> bytes:
        size = self.u16()
        end = self.at + size
        if end > len(self.body):
            raise Malformed("string longer than its packet")
        value = self.body[self.at : end]
        self.at = end
        return value

    def text(self) -> str:
        return utf8(self.binary())

    def packet_id(self) -> bytes:
        pid = self.body[self.at : self.at + 2]
        if self.u16() == 0:
            raise Malformed("packet id 0")
        return pid

    @property
    def more(self) -> bool:
        return self.at < len(self.body)

    def finish(self) -> None:
        if self.more:
            raise Malformed("bytes after the end of a packet")


def utf8(value: bytes) -> str:
    """Decode an MQTT string (3.1.1, 1.5.3). Raises Malformed on ill-formed UTF-8 and U+0000."""
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise Malformed("ill-formed UTF-8") from error
    if "\0" in text:
        raise Malformed("U+0000 in a string")
    return text


def parse_connect(body: bytes) -> Connect:
    """Parse a CONNECT without its fixed header (3.1). Will topics are not checked for wildcards here.

    Raises UnsupportedVersion where a CONNACK is due, Malformed where the connection is just closed.
    """
    read = _Reader(body)
    name, version = read.binary(), read.u8()
    if name not in (b"MQTT", b"MQIsdp"):
        raise Malformed("not MQTT")
    if name == b"MQTT" and version == MQTT_5:
        raise UnsupportedVersion(version, CONNACK_5_UNSUPPORTED)
    if version != (MQTT_3_1_1 if name == b"MQTT" else MQTT_3_1):
        raise UnsupportedVersion(version, connack(MQTT_3_1_1, ConnackCode.BAD_VERSION, present=False))
    flags = read.u8()
    will_qos = flags >> 3 & 3
    if flags & 1 or will_qos > _MAX_QOS or (not flags & _WILL and flags & 0x38):
        raise Malformed("reserved or contradictory connect flags")
    if flags & _PASSWORD and not flags & _USER:
        raise Malformed("a password without a user name")
    keepalive = read.u16()
    client_id = read.text()
    will = None
    if flags & _WILL:
        topic = read.binary()
        will = Will(topic, read.binary(), will_qos, bool(flags & _WILL_RETAIN))
    user = read.text() if flags & _USER else None
    password = read.binary() if flags & _PASSWORD else None
    read.finish()
    return Connect(version, client_id, bool(flags & 2), keepalive, will, user, password)


def parse_subscribe(body: bytes) -> tuple[bytes, list[tuple[str, int]]]:
    """Parse a SUBSCRIBE (3.8) into packet id and (filter, QoS) pairs.

    Filters are not checked here. Raises Malformed.
    """
    read = _Reader(body)
    pid = read.packet_id()
    wanted: list[tuple[str, int]] = []
    while read.more:
        name = read.text()
        qos = read.u8()
        if qos > _MAX_QOS:
            raise Malformed("subscription options with reserved bits")
        wanted.append((name, qos))
    if not wanted:
        raise Malformed("SUBSCRIBE without a filter")
    return pid, wanted


def parse_unsubscribe(body: bytes) -> tuple[bytes, list[str]]:
    """Parse an UNSUBSCRIBE (3.10) into packet id and filters. Raises Malformed."""
    read = _Reader(body)
    pid = read.packet_id()
    filters: list[str] = []
    while read.more:
        filters.append(read.text())
    if not filters:
        raise Malformed("UNSUBSCRIBE without a filter")
    return pid, filters


def parse_ack(body: bytes) -> bytes:
    """Return the packet id of a PUBACK, PUBREC, PUBREL or PUBCOMP (3.4-3.7). Raises Malformed."""
    if len(body) != 2 or body == b"\0\0":
        raise Malformed("an ack that is no packet id")
    return body


def remaining_length(size: int) -> bytes:
    """Encode a remaining length (2.2.3)."""
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def connack(version: int, code: int, *, present: bool) -> bytes:
    """Encode a CONNACK; MQTT 3.1 has no session-present flag."""
    return bytes((CONNACK, 2, 1 if present and version > MQTT_3_1 else 0, code))


def acks(kind: int, packet_ids: Iterable[bytes]) -> bytes:
    """Encode one PUBACK, PUBREC, PUBREL or PUBCOMP (``kind``) for each of at least one packet id."""
    head = bytes((kind, 2))
    return head + head.join(packet_ids)


def suback(packet_id: bytes, codes: Sequence[int]) -> bytes:
    """Encode a SUBACK: per filter the QoS granted or SUBACK_FAILURE."""
    return bytes((SUBACK,)) + remaining_length(2 + len(codes)) + packet_id + bytes(codes)


def unsuback(packet_id: bytes) -> bytes:
    """Encode an UNSUBACK."""
    return bytes((UNSUBACK, 2)) + packet_id


def publish(topic: bytes, payload: bytes, flags: int, packet_id: bytes = b"") -> bytes:
    """Encode a PUBLISH; ``packet_id`` must be given just where ``flags`` say QoS 1 or 2."""
    size = 2 + len(topic) + len(packet_id) + len(payload)
    if size < 0x80:
        head = bytes((PUBLISH | flags, size, len(topic) >> 8, len(topic) & 0xFF))
    else:
        head = bytes((PUBLISH | flags,)) + remaining_length(size) + len(topic).to_bytes(2, "big")
    return b"".join((head, topic, packet_id, payload))


def publish_size(topic: bytes, payload: bytes) -> int:
    """Return what a message takes as a PUBLISH, at most."""
    return 9 + len(topic) + len(payload)

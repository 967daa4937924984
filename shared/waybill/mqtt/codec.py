"""MQTT control packets as bytes (OASIS MQTT 3.1.1 and 5.0, sections 2 and 3). No I/O.

What every message costs (PUBLISH, PUBACK) is parsed in :mod:`waybill.mqtt.connection`; here is the rest, and all
encoding. ``version`` is the protocol level of CONNECT (3: MQIsdp, 4: 3.1.1, 5) and travels with every packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from waybill.mqtt import properties
from waybill.mqtt.properties import Content, Properties, variable
from waybill.mqtt.reasons import Malformed, ProtocolError, Reason, UnsupportedVersion, utf8

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
AUTH: Final = 0xF0

RETAIN: Final = 1
DUP: Final = 8
QOS_BITS: Final = 6
SUBACK_FAILURE: Final = 0x80

PINGRESP_PACKET: Final = b"\xd0\x00"
NEVER: Final = 0xFFFFFFFF
"""A session expiry interval: the session does not expire (5.0, 3.1.2.11.2)."""

_WILL, _WILL_RETAIN, _PASSWORD, _USER = 0x04, 0x20, 0x40, 0x80
_MAX_QOS = 2
_BRIDGE = 0x80


class ConnackCode(IntEnum):
    """Return codes of CONNACK (3.1.1, table 3.1)."""

    ACCEPTED = 0
    BAD_VERSION = 1
    BAD_CLIENT_ID = 2
    UNAVAILABLE = 3
    BAD_CREDENTIALS = 4
    NOT_AUTHORIZED = 5


_REASONS: Final = {
    ConnackCode.ACCEPTED: Reason.SUCCESS,
    ConnackCode.BAD_VERSION: Reason.UNSUPPORTED_VERSION,
    ConnackCode.BAD_CLIENT_ID: Reason.CLIENT_ID_NOT_VALID,
    ConnackCode.UNAVAILABLE: Reason.SERVER_UNAVAILABLE,
    ConnackCode.BAD_CREDENTIALS: Reason.BAD_USER_OR_PASSWORD,
    ConnackCode.NOT_AUTHORIZED: Reason.NOT_AUTHORIZED,
}


@dataclass(frozen=True, slots=True)
class Will:
    """What is published for a client whose connection ends without DISCONNECT."""

    topic: bytes
    payload: bytes
    qos: int
    retain: bool
    content: Content = properties.EMPTY


@dataclass(frozen=True, slots=True)
class Connect:
    """A CONNECT packet. ``keepalive``: seconds, 0 for none. ``clean``: clean session, clean start of MQTT 5.

    ``expiry``: of the session, seconds; before MQTT 5 it follows from ``clean``. ``receive_maximum``, ``max_packet``
    (0: any), ``alias_maximum``: what the client takes. ``method``: whether it asks for enhanced authentication.
    """

    version: int
    client_id: str
    clean: bool
    keepalive: int
    will: Will | None = None
    user: str | None = None
    password: bytes | None = None
    expiry: int = 0
    receive_maximum: int = 65_535
    max_packet: int = 0
    alias_maximum: int = 0
    method: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """One filter of a SUBSCRIBE. ``options``: QoS in the low two bits, then as in 5.0, 3.8.3.1."""

    filter: str
    options: int
    identifier: int = 0


NO_LOCAL: Final = 0x04
RETAIN_AS_PUBLISHED: Final = 0x08
RETAIN_HANDLING: Final = 0x30
RETAIN_IF_NEW: Final = 0x10


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

    def properties(self, allowed: frozenset[int]) -> Properties:
        block, self.at = properties.block(self.body, self.at)
        return properties.parse(block, allowed)

    def content(self, allowed: frozenset[int]) -> Content:
        block, self.at = properties.block(self.body, self.at)
        return Content(block, allowed) if block else properties.EMPTY

    @property
    def more(self) -> bool:
        return self.at < len(self.body)

    def finish(self) -> None:
        if self.more:
            raise Malformed("bytes after the end of a packet")


def level_of(body: bytes) -> int:
    """Return the protocol level that a CONNECT names, 0 where it does not get so far."""
    return body[6] if body[:6] == b"\0\4MQTT" and len(body) > 6 else 0


def parse_connect(body: bytes) -> Connect:
    """Parse a CONNECT without its fixed header (3.1). Will topics are not checked for wildcards here.

    Raises UnsupportedVersion where a CONNACK is due, Malformed where the connection is just closed.
    """
    read = _Reader(body)
    name, version = read.binary(), read.u8()
    if name not in (b"MQTT", b"MQIsdp"):
        raise Malformed("not MQTT", Reason.UNSUPPORTED_VERSION)
    if version not in ((MQTT_3_1_1, MQTT_5) if name == b"MQTT" else (MQTT_3_1,)):
        # A later MQTT understands the words of version 5, an earlier one those of 3.1.1; so does a bridge of mosquitto,
        # which sets the top bit, and comes again without it when that is refused.
        words = MQTT_5 if name == b"MQTT" and MQTT_5 < version < _BRIDGE else MQTT_3_1_1
        raise UnsupportedVersion(version, connack(words, ConnackCode.BAD_VERSION, present=False))
    flags = read.u8()
    will_qos = flags >> 3 & 3
    if flags & 1 or will_qos > _MAX_QOS or (not flags & _WILL and flags & 0x38):
        raise Malformed("reserved or contradictory connect flags")
    if flags & _PASSWORD and not flags & _USER and version < MQTT_5:
        raise Malformed("a password without a user name")
    keepalive = read.u16()
    said = read.properties(properties.OF_CONNECT) if version == MQTT_5 else {}
    if properties.AUTH_DATA in said and properties.AUTH_METHOD not in said:
        raise ProtocolError("authentication data without a method")
    client_id = read.text()
    will = None
    if flags & _WILL:
        content = read.content(properties.OF_WILL) if version == MQTT_5 else properties.EMPTY
        topic = read.binary()
        will = Will(topic, read.binary(), will_qos, bool(flags & _WILL_RETAIN), content)
    user = read.text() if flags & _USER else None
    password = read.binary() if flags & _PASSWORD else None
    read.finish()
    clean = bool(flags & 2)
    expiry = properties.integer(said, properties.SESSION_EXPIRY, 0)
    return Connect(
        version,
        client_id,
        clean,
        keepalive,
        will,
        user,
        password,
        expiry if version == MQTT_5 else 0 if clean else NEVER,
        properties.integer(said, properties.RECEIVE_MAXIMUM, 65_535),
        properties.integer(said, properties.MAXIMUM_PACKET_SIZE, 0),
        properties.integer(said, properties.TOPIC_ALIAS_MAXIMUM, 0),
        properties.AUTH_METHOD in said,
    )


def parse_subscribe(body: bytes, version: int = MQTT_3_1_1) -> tuple[bytes, list[Wanted]]:
    """Parse a SUBSCRIBE (3.8) into packet id and what is wanted. Filters are not checked here. Raises Malformed."""
    read = _Reader(body)
    pid = read.packet_id()
    identifier = 0
    reserved = 0xFC
    if version == MQTT_5:
        identifier = properties.integer(read.properties(properties.OF_SUBSCRIBE), properties.SUBSCRIPTION_ID, 0)
        reserved = 0xC0
    wanted: list[Wanted] = []
    while read.more:
        name = read.text()
        options = read.u8()
        if options & reserved or options & 3 > _MAX_QOS:
            raise Malformed("subscription options with reserved bits")
        if options & RETAIN_HANDLING == RETAIN_HANDLING:
            raise ProtocolError("retain handling 3")
        wanted.append(Wanted(name, options, identifier))
    if not wanted:
        raise ProtocolError("SUBSCRIBE without a filter")
    return pid, wanted


def parse_unsubscribe(body: bytes, version: int = MQTT_3_1_1) -> tuple[bytes, list[str]]:
    """Parse an UNSUBSCRIBE (3.10) into packet id and filters. Raises Malformed."""
    read = _Reader(body)
    pid = read.packet_id()
    if version == MQTT_5:
        read.properties(properties.OF_UNSUBSCRIBE)
    filters: list[str] = []
    while read.more:
        filters.append(read.text())
    if not filters:
        raise ProtocolError("UNSUBSCRIBE without a filter")
    return pid, filters


_ACK_REASONS: Final = frozenset((0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99))
_RELEASE_REASONS: Final = frozenset((0x00, 0x92))
_DISCONNECT_REASONS: Final = frozenset((0x00, 0x04, *range(0x80, 0x84), 0x90, *range(0x93, 0x9A)))
"""What a client may say in PUBACK and PUBREC (3.4.2.1), PUBREL and PUBCOMP (3.6.2.1), DISCONNECT (3.14.2.1)."""


def parse_ack(body: bytes, version: int = MQTT_3_1_1, kind: int = PUBACK) -> tuple[bytes, int]:
    """Return packet id and reason code of a PUBACK, PUBREC, PUBREL or PUBCOMP (3.4-3.7). Raises Malformed."""
    if len(body) == 2 and body != b"\0\0":  # what nearly all are
        return body, 0
    if version != MQTT_5:
        raise Malformed("an ack that is no packet id")
    read = _Reader(body)
    pid = read.packet_id()
    reason = read.u8()
    if reason not in (_ACK_REASONS if kind in (PUBACK, PUBREC) else _RELEASE_REASONS):
        raise ProtocolError(f"reason code 0x{reason:02x} in packet type {kind >> 4}")
    if read.more:
        read.properties(properties.OF_ACK)
    read.finish()
    return pid, reason


def parse_disconnect(body: bytes, version: int = MQTT_3_1_1) -> tuple[int, int | None]:
    """Return reason code and session expiry (None: as before) of a DISCONNECT (3.14). Raises Malformed."""
    if not body:
        return 0, None
    if version != MQTT_5:
        raise Malformed("a DISCONNECT with a body")
    read = _Reader(body)
    reason = read.u8()
    if reason not in _DISCONNECT_REASONS:
        raise ProtocolError(f"reason code 0x{reason:02x} in DISCONNECT")
    said = read.properties(properties.OF_DISCONNECT) if read.more else {}
    read.finish()
    if properties.SESSION_EXPIRY not in said:
        return reason, None
    return reason, properties.integer(said, properties.SESSION_EXPIRY, 0)


def connack(version: int, code: int, *, present: bool, said: bytes = b"") -> bytes:
    """Encode a CONNACK. ``code``: a ConnackCode, or with MQTT 5 also a Reason. ``said``: the properties of MQTT 5."""
    if version < MQTT_5:  # MQTT 3.1 has no session-present flag
        return bytes((CONNACK, 2, 1 if present and version > MQTT_3_1 else 0, code))
    reason = _REASONS[code] if isinstance(code, ConnackCode) else code
    body = bytes((present, reason)) + variable(len(said)) + said
    return bytes((CONNACK,)) + variable(len(body)) + body


_ACK_HEADS: Final = {kind: bytes((kind, 2)) for kind in (PUBACK, PUBREC, PUBREL, PUBCOMP)}


def acks(kind: int, packet_ids: Iterable[bytes]) -> bytes:
    """Encode one PUBACK, PUBREC, PUBREL or PUBCOMP (``kind``) for each of at least one packet id."""
    head = _ACK_HEADS[kind]
    return head + head.join(packet_ids)


def ack(kind: int, packet_id: bytes, reason: int) -> bytes:
    """Encode an ack of MQTT 5 that says why not."""
    return bytes((kind, 3)) + packet_id + bytes((reason,)) if reason else acks(kind, (packet_id,))


def suback(packet_id: bytes, codes: Sequence[int], version: int = MQTT_3_1_1) -> bytes:
    """Encode a SUBACK: per filter the QoS granted, or SUBACK_FAILURE or a Reason."""
    return _answers(SUBACK, packet_id, codes, version)


def unsuback(packet_id: bytes, codes: Sequence[int] = (), version: int = MQTT_3_1_1) -> bytes:
    """Encode an UNSUBACK; only that of MQTT 5 has codes."""
    return _answers(UNSUBACK, packet_id, codes if version == MQTT_5 else (), version)


def _answers(kind: int, packet_id: bytes, codes: Sequence[int], version: int) -> bytes:
    body = packet_id + (b"\0" if version == MQTT_5 else b"") + bytes(codes)
    return bytes((kind,)) + variable(len(body)) + body


def disconnect(reason: int, why: str = "") -> bytes:
    """Encode a DISCONNECT of MQTT 5."""
    said = properties.text(properties.REASON_STRING, why) if why else b""
    body = bytes((reason,)) + variable(len(said)) + said
    return bytes((DISCONNECT,)) + variable(len(body)) + body


def publish(topic: bytes, payload: bytes, flags: int, packet_id: bytes = b"", block: bytes | None = None) -> bytes:
    """Encode a PUBLISH; ``packet_id`` must be given just where ``flags`` say QoS 1 or 2.

    ``block``: the properties, for MQTT 5 only.
    """
    if block is not None:
        packet_id += variable(len(block)) + block
    size = 2 + len(topic) + len(packet_id) + len(payload)
    if size < 0x80:
        head = bytes((PUBLISH | flags, size, len(topic) >> 8, len(topic) & 0xFF))
    elif size < 0x4000:
        head = bytes((PUBLISH | flags, size & 0x7F | 0x80, size >> 7, len(topic) >> 8, len(topic) & 0xFF))
    else:
        head = bytes((PUBLISH | flags,)) + variable(size) + len(topic).to_bytes(2, "big")
    return b"".join((head, topic, packet_id, payload))

"""Properties of MQTT 5 packets (OASIS MQTT 5.0, section 2.2.2). No I/O.

A block is what stands after the property length. Text is checked and kept as the bytes it came in: nothing here is ever
written anew but what this server itself has to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from waybill.mqtt.reasons import Malformed, ProtocolError, utf8

if TYPE_CHECKING:
    from collections.abc import Iterable

PAYLOAD_FORMAT: Final = 0x01
MESSAGE_EXPIRY: Final = 0x02
CONTENT_TYPE: Final = 0x03
RESPONSE_TOPIC: Final = 0x08
CORRELATION_DATA: Final = 0x09
SUBSCRIPTION_ID: Final = 0x0B
SESSION_EXPIRY: Final = 0x11
ASSIGNED_CLIENT_ID: Final = 0x12
SERVER_KEEP_ALIVE: Final = 0x13
AUTH_METHOD: Final = 0x15
AUTH_DATA: Final = 0x16
REQUEST_PROBLEM: Final = 0x17
WILL_DELAY: Final = 0x18
REQUEST_RESPONSE: Final = 0x19
REASON_STRING: Final = 0x1F
RECEIVE_MAXIMUM: Final = 0x21
TOPIC_ALIAS_MAXIMUM: Final = 0x22
TOPIC_ALIAS: Final = 0x23
USER_PROPERTY: Final = 0x26
MAXIMUM_PACKET_SIZE: Final = 0x27

MESSAGE: Final = frozenset(
    (PAYLOAD_FORMAT, MESSAGE_EXPIRY, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION_DATA, USER_PROPERTY)
)
"""What belongs to a message and goes on with it."""

OF_CONNECT: Final = frozenset(
    (
        SESSION_EXPIRY,
        RECEIVE_MAXIMUM,
        MAXIMUM_PACKET_SIZE,
        TOPIC_ALIAS_MAXIMUM,
        REQUEST_RESPONSE,
        REQUEST_PROBLEM,
        USER_PROPERTY,
        AUTH_METHOD,
        AUTH_DATA,
    )
)
OF_WILL: Final = MESSAGE | {WILL_DELAY}
OF_PUBLISH: Final = MESSAGE | {TOPIC_ALIAS}
OF_ACK: Final = frozenset((REASON_STRING, USER_PROPERTY))
OF_SUBSCRIBE: Final = frozenset((SUBSCRIPTION_ID, USER_PROPERTY))
OF_UNSUBSCRIBE: Final = frozenset((USER_PROPERTY,))
OF_DISCONNECT: Final = frozenset((SESSION_EXPIRY, REASON_STRING, USER_PROPERTY))

_BYTE, _TWO, _FOUR, _VARIABLE, _TEXT, _BINARY, _PAIR = range(7)
_KINDS: Final = {
    PAYLOAD_FORMAT: _BYTE,
    MESSAGE_EXPIRY: _FOUR,
    CONTENT_TYPE: _TEXT,
    RESPONSE_TOPIC: _TEXT,
    CORRELATION_DATA: _BINARY,
    SUBSCRIPTION_ID: _VARIABLE,
    SESSION_EXPIRY: _FOUR,
    ASSIGNED_CLIENT_ID: _TEXT,
    SERVER_KEEP_ALIVE: _TWO,
    AUTH_METHOD: _TEXT,
    AUTH_DATA: _BINARY,
    REQUEST_PROBLEM: _BYTE,
    WILL_DELAY: _FOUR,
    REQUEST_RESPONSE: _BYTE,
    REASON_STRING: _TEXT,
    RECEIVE_MAXIMUM: _TWO,
    TOPIC_ALIAS_MAXIMUM: _TWO,
    TOPIC_ALIAS: _TWO,
    USER_PROPERTY: _PAIR,
    MAXIMUM_PACKET_SIZE: _FOUR,
}
_SIZES: Final = {_BYTE: 1, _TWO: 2, _FOUR: 4}
_FLAGS: Final = frozenset((PAYLOAD_FORMAT, REQUEST_PROBLEM, REQUEST_RESPONSE))
_NOT_ZERO: Final = frozenset((RECEIVE_MAXIMUM, MAXIMUM_PACKET_SIZE, SUBSCRIPTION_ID))

Properties: TypeAlias = "dict[int, int | bytes]"
"""Numbers, text and binary by identifier. User properties are checked but not here."""

VARIABLE_BYTES: Final = 4

MOST_BYTES: Final = 64 * 1024
MOST_USER: Final = 256
"""Of the properties, and of the user properties, of one packet."""


def variable(value: int) -> bytes:
    """Encode a variable byte integer (1.5.5; 3.1.1: remaining length, 2.2.3)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_variable(data: bytes, at: int, *, strict: bool = False) -> tuple[int, int]:
    """Return a variable byte integer and where it ends. Raises Malformed past the end, and past four bytes.

    ``strict``: also where it has more bytes than it needs (5.0, 1.5.5).
    """
    value = shift = 0
    while True:
        if at >= len(data) or shift > 7 * (VARIABLE_BYTES - 1):
            raise Malformed("a variable byte integer that does not end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if strict and not byte and shift:
                raise Malformed("a variable byte integer of more bytes than it needs")
            return value, at
        shift += 7


def block(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the property block that begins with its length at ``at``, and where it ends. Raises Malformed."""
    size, at = read_variable(data, at, strict=True)
    end = at + size
    if end > len(data):
        raise Malformed("properties longer than their packet")
    return data[at:end], end


def _fields(data: bytes) -> Iterable[tuple[int, int, bytes, int]]:
    """Yield of each property the identifier, where it begins, its value, and where it ends. Raises Malformed."""
    at, size = 0, len(data)
    users = 0
    if size > MOST_BYTES:
        raise Malformed(f"{size} bytes of properties; the limit is {MOST_BYTES}", 0x95)
    while at < size:
        begin, identifier = at, data[at]
        users += identifier == USER_PROPERTY
        if users > MOST_USER:
            raise Malformed(f"more than {MOST_USER} user properties", 0x95)
        kind = _KINDS.get(identifier)
        if kind is None:
            raise Malformed(f"unknown property 0x{identifier:02x}")
        at += 1
        if kind == _VARIABLE:
            value = at
            _, at = read_variable(data, at)
        elif kind in _SIZES:
            value = at
            at += _SIZES[kind]
        else:
            value, at = at + 2, at + 2 + int.from_bytes(data[at : at + 2], "big")
            if kind == _PAIR:
                utf8(data[value:at])
                value, at = at + 2, at + 2 + int.from_bytes(data[at : at + 2], "big")
            if kind != _BINARY:
                utf8(data[value:at])
        if at > size:
            raise Malformed("a property longer than its block")
        yield identifier, begin, data[value:at], at


def parse(data: bytes, allowed: frozenset[int]) -> Properties:
    """Parse a block. Raises Malformed for what is no property or not allowed there, ProtocolError for what is twice.

    Or has a value that its property cannot have.
    """
    found: Properties = {}
    for identifier, _, value, _ in _fields(data):
        _take(found, identifier, value, allowed)
    return found


def _take(found: Properties, identifier: int, value: bytes, allowed: frozenset[int]) -> None:
    if identifier not in allowed:
        raise (ProtocolError if identifier == SUBSCRIPTION_ID else Malformed)(
            f"property 0x{identifier:02x} does not belong in this packet"
        )
    if identifier == USER_PROPERTY:
        return
    if identifier in found:
        raise ProtocolError(f"property 0x{identifier:02x} twice")
    kind = _KINDS[identifier]
    if kind in (_TEXT, _BINARY):
        found[identifier] = value
        return
    number = read_variable(value, 0)[0] if kind == _VARIABLE else int.from_bytes(value, "big")
    if (identifier in _FLAGS and number > 1) or (identifier in _NOT_ZERO and not number):
        raise ProtocolError(f"property 0x{identifier:02x} cannot be {number}")
    found[identifier] = number


class Content:
    """What a PUBLISH or a will says of its message.

    ``kept``: the block that is stored with the message, without a topic alias. ``onward``: what subscribers get, also
    without the message expiry, which is counted down. ``expiry``: seconds, None for never. ``alias``: 0 for none.
    ``delay``: of a will, seconds.
    """

    __slots__ = ("alias", "delay", "expiry", "kept", "onward")

    def __init__(self, data: bytes, allowed: frozenset[int] = OF_PUBLISH) -> None:
        """Parse a block. Raises as ``parse``; also where a response topic has wildcards (3.3.2.3.5)."""
        found: Properties = {}
        kept: list[bytes] = []
        onward: list[bytes] = []
        for identifier, begin, value, end in _fields(data):
            _take(found, identifier, value, allowed)
            if identifier in MESSAGE:
                kept.append(data[begin:end])
                if identifier != MESSAGE_EXPIRY:
                    onward.append(data[begin:end])
        response = found.get(RESPONSE_TOPIC, b"-")
        if not isinstance(response, bytes) or not response or b"+" in response or b"#" in response:
            raise ProtocolError("the response topic is no topic name")
        alias = found.get(TOPIC_ALIAS)
        if alias == 0:
            raise ProtocolError("topic alias 0", 0x94)
        self.kept = data if len(found) == len(found.keys() & MESSAGE) else b"".join(kept)
        self.onward = self.kept if MESSAGE_EXPIRY not in found else b"".join(onward)
        self.expiry = integer(found, MESSAGE_EXPIRY, -1) if MESSAGE_EXPIRY in found else None
        self.alias = integer(found, TOPIC_ALIAS, 0)
        self.delay = integer(found, WILL_DELAY, 0)

    @classmethod
    def onward_only(cls, block: bytes) -> Content:
        """Return the content of a message that was kept as it goes on to subscribers."""
        content = cls(b"")
        content.kept = content.onward = block
        return content


def integer(found: Properties, identifier: int, default: int) -> int:
    """Return a property that is a number, or ``default``."""
    value = found.get(identifier, default)
    return value if isinstance(value, int) else default


EMPTY: Final = Content(b"")
"""A message without properties."""


def number(identifier: int, value: int) -> bytes:
    """Encode a property whose value is a number."""
    kind = _KINDS[identifier]
    return bytes((identifier,)) + (variable(value) if kind == _VARIABLE else value.to_bytes(_SIZES[kind], "big"))


def text(identifier: int, value: str) -> bytes:
    """Encode a property whose value is text, cut to 1,000 bytes."""
    data = value.encode()[:1000].decode(errors="ignore").encode()
    return bytes((identifier,)) + len(data).to_bytes(2, "big") + data

"""What is wrong with a client's packet, and the reason code of MQTT 5 that says so (OASIS MQTT 5.0, 2.4 and 4.13)."""

from __future__ import annotations

from enum import IntEnum

from waybill.errors import Refused


class Reason(IntEnum):
    """Reason codes of MQTT 5 that this server sends or must understand (2.4)."""

    SUCCESS = 0x00
    DISCONNECT_WITH_WILL = 0x04
    NO_SUBSCRIPTION_EXISTED = 0x11
    UNSPECIFIED = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC = 0x83
    UNSUPPORTED_VERSION = 0x84
    CLIENT_ID_NOT_VALID = 0x85
    BAD_USER_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_ID_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98


class Malformed(Refused):
    """The peer broke the protocol: close its connection, and only that. ``reason``: for the DISCONNECT of MQTT 5."""

    reason = Reason.MALFORMED_PACKET

    def __init__(self, text: str, reason: int | None = None) -> None:
        """Say what is wrong; ``reason`` where another code fits better."""
        super().__init__(text)
        if reason is not None:
            self.reason = Reason(reason)


class ProtocolError(Malformed):
    """A packet that is well formed and must not come like this (4.13)."""

    reason = Reason.PROTOCOL_ERROR


class UnsupportedVersion(Refused):
    """A CONNECT of a protocol level that is not spoken; ``answer`` is the CONNACK to send before closing."""

    def __init__(self, version: int, answer: bytes) -> None:
        """Name the level and the answer."""
        super().__init__(f"protocol level {version} is not spoken")
        self.answer = answer


def utf8(value: bytes) -> str:
    """Decode an MQTT string (1.5.4; 3.1.1: 1.5.3). Raises Malformed on ill-formed UTF-8 and U+0000."""
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise Malformed("ill-formed UTF-8") from error
    if "\0" in text:
        raise Malformed("U+0000 in a string")
    return text

"""The record of ``waybill.commands``: JSON that a producer writes, with the gateway as its key.

::

    {"id": "c-17", "gateway": "depot-4", "device": "V7", "name": "unlock",
     "payload": {"door": 2}, "expires_at": "2026-11-21T10:00:00Z"}

Without ``gateway`` the command is for a device that connects to the cloud itself, and the record's key is the device.
``payload`` is any JSON value and reaches the device as it is written here; ``payload_base64`` holds bytes instead;
without both the device gets an empty payload. ``expires_at``: RFC 3339 with its offset from UTC, or milliseconds since
1970 UTC. Unknown fields are ignored.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
from dataclasses import dataclass
from typing import Final

import msgspec

from cloud_ingest.journal.port import OutRecord
from waybill.errors import Refused
from waybill.wire import GATEWAY_ID, Envelope

MAX_PAYLOAD: Final = 128 << 10
"""Bytes; a command is sent whole in one MQTT packet, to gateways with little memory."""

_MAX_MS: Final = 253_402_300_799_999  # the end of the year 9999, the last that RFC 3339 can write
COMMAND_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_DEVICE = re.compile(r"[^/+#\x00-\x1f\x7f]{1,128}")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")


DIRECT: Final = "device:"
"""Stands before the name of a device without a gateway, where it receives for itself: no gateway's id has a colon."""


def recipient(gateway: str, device: str) -> str:
    """Return who receives a command: its gateway, or the device itself."""
    return gateway or f"{DIRECT}{device}"


class MalformedCommand(Refused):
    """A record that is no command; ``id``, ``gateway`` and ``device`` as far as they could be read, else empty."""

    def __init__(self, reason: str, id: str = "", gateway: str = "", device: str = "") -> None:  # noqa: A002 - the field's name
        """Say why, and whose it was."""
        super().__init__(reason)
        self.id = id
        self.gateway = gateway
        self.device = device


@dataclass(frozen=True, slots=True)
class Command:
    """A well-formed command. ``gateway``: empty for a device without one. ``expires_ms``: since 1970 UTC."""

    id: str
    gateway: str
    device: str
    name: str
    payload: bytes
    expires_ms: int

    def envelope(self) -> Envelope:
        """Return it as it travels to its gateway."""
        return Envelope(self.id, "command", self.device, self.name, self.payload, self.expires_ms)


class _Json(msgspec.Struct, frozen=True):
    id: str
    device: str
    name: str
    expires_at: str | int
    payload: msgspec.Raw = msgspec.Raw()
    payload_base64: str | None = None
    gateway: str = ""


class _Ids(msgspec.Struct, frozen=True):
    """What of a malformed record may still be readable."""

    id: object = ""
    gateway: object = ""
    device: object = ""


_decode = msgspec.json.Decoder(_Json).decode
_decode_ids = msgspec.json.Decoder(_Ids).decode


def parse(value: bytes | None) -> Command:
    """Read the value of a record of ``waybill.commands``. Raises MalformedCommand."""
    data = value or b""
    try:
        record = _decode(data)
        return Command(
            _match(COMMAND_ID, record.id, "id", "1 to 64 letters, digits, '.', '_', ':' or '-'"),
            _gateway(record.gateway),
            _match(_DEVICE, record.device, "device", "1 to 128 characters, none of them '/', '+' or '#'"),
            _match(_NAME, record.name, "name", "1 to 128 characters"),
            _payload(record),
            expiry_ms(record.expires_at),
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedCommand(str(error), *_readable_ids(data)) from error


def record(fields: object, topic: str) -> OutRecord:
    """Return a command, as a JSON object's ``fields``, as a record of ``topic``. Raises MalformedCommand."""
    value = msgspec.json.encode(fields)
    command = parse(value)
    key = command.gateway or command.device
    return OutRecord(topic, key.encode(), value, [("content-type", b"application/json")])


def expiry_ms(value: str | int) -> int:
    """Read ``expires_at`` as milliseconds since 1970 UTC. Raises ValueError."""
    if isinstance(value, str):
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"expires_at {value!r} is neither RFC 3339 nor milliseconds since 1970") from error
        if moment.tzinfo is None:
            raise ValueError(f"expires_at {value!r} has no offset from UTC: write ...Z or ...+02:00")
        value = int(moment.timestamp() * 1000)
    if not 0 < value <= _MAX_MS:
        raise ValueError(f"expires_at {value} is out of range: milliseconds since 1970 UTC")
    return value


def _gateway(text: str) -> str:
    return _match(GATEWAY_ID, text, "gateway", "1 to 64 letters, digits, '.', '_' or '-'") if text else ""


def _payload(record: _Json) -> bytes:
    raw = bytes(record.payload)
    if record.payload_base64 is not None:
        if raw:
            raise ValueError("payload and payload_base64 exclude each other: leave one out")
        try:
            raw = base64.b64decode(record.payload_base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"payload_base64: {error}") from error
    if len(raw) > MAX_PAYLOAD:
        raise ValueError(f"payload of {len(raw)} bytes: at most {MAX_PAYLOAD}")
    return raw


def _match(pattern: re.Pattern[str], text: str, field: str, rule: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{field} {text[:80]!r}: use {rule}")
    return text


def _readable_ids(data: bytes) -> tuple[str, str, str]:
    try:
        found = _decode_ids(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return "", "", ""
    values = (found.id, found.gateway, found.device)
    one, two, three = (value[:128] if isinstance(value, str) else "" for value in values)
    return one, two, three

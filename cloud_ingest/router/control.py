"""What the router makes of the messages of the control lane, before it acts on them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from cloud_ingest.journal.port import OutRecord
from cloud_ingest.presence import Here
from waybill import health
from waybill.errors import Corrupt, UnknownVersion
from waybill.frames import decode
from waybill.frames.header import MAX_EPOCH
from waybill.wire import DICTIONARY_TOPIC, LANE_NAME, CommandStatus, DevicePresence, Receipt, is_node

_decode_receipt = msgspec.json.Decoder(Receipt).decode
_decode_status = msgspec.json.Decoder(CommandStatus).decode
_encode = msgspec.json.Encoder().encode
_decode_presence = msgspec.json.Decoder(DevicePresence).decode

MAX_DEVICE: Final = 1024
"""Characters of a device's name, and of why it went, in the presence topic."""

MALFORMED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the decoders raise besides Rejected."""


class Rejected(Exception):
    """A message of the control lane that becomes a dead letter; the text says why."""


def parse_receipt(payload: bytes) -> Receipt:
    """Return a receipt (E5). Raises Rejected, MALFORMED."""
    receipt = _decode_receipt(payload)
    if not (
        1 <= receipt.epoch <= MAX_EPOCH
        and 0 <= receipt.prev_epoch <= MAX_EPOCH
        and receipt.prev_epoch != receipt.epoch
        and (receipt.prev_epoch == 0) == (receipt.prev_last == 0)
        and 1 <= receipt.first <= receipt.last <= MAX_EPOCH
        and 0 <= receipt.prev_last <= MAX_EPOCH
        and LANE_NAME.fullmatch(receipt.lane)
        and 0 <= receipt.bytes <= MAX_EPOCH
    ):
        raise Rejected("a receipt whose numbers do not agree")
    return receipt


def parse_status(payload: bytes, gateway: str) -> CommandStatus:
    """Return the state of a command that ``gateway`` reports (C1). Raises Rejected, MALFORMED."""
    status = _decode_status(payload)
    if status.gateway != ("" if is_node(gateway) else gateway):
        raise Rejected(f"the state of a command of gateway {status.gateway[:64]!r}, sent by {gateway!r}")
    if status.state not in {"delivered", "done"}:
        raise Rejected(f"the state {status.state!r} is not a gateway's to report")
    return status


def parse_presence(payload: bytes, gateway: str, epoch: int) -> Here:
    """Return a device's coming or going as ``gateway`` reports it (C3). Raises Rejected, MALFORMED."""
    said = _decode_presence(payload)
    if not 0 < len(said.device) <= MAX_DEVICE:
        raise Rejected(f"a device of {len(said.device)} characters; 1 to {MAX_DEVICE}")
    return Here(said.state, said.at_ms, gateway, said.device, connection=str(epoch), reason=said.reason[:MAX_DEVICE])


def health_record(topic: str, payload: bytes, gateway: str) -> OutRecord:
    """Return what ``gateway`` says of itself as a record of the health topic. Raises Rejected, Corrupt."""
    if is_node(gateway):
        raise Rejected("a node tells its health itself")
    value = _encode(health.unpack(payload))
    return OutRecord(topic, gateway.encode(), value, [("content-type", b"application/json")])


def dictionaries_in(frame: bytes) -> Iterator[bytes]:
    """Yield the dictionaries that a frame of the control lane brings; none where it does not decode."""
    try:
        found = decode(frame)
    except (Corrupt, UnknownVersion):
        return
    for source, _, _, payload, _ in found.rows:
        if found.sources[source][0] == DICTIONARY_TOPIC:
            yield payload

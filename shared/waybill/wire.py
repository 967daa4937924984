"""What passes between a gateway and the cloud besides frames: topics, acks, envelopes, control messages.

======================  =========  ==========================================================
topic                   direction  holds
======================  =========  ==========================================================
``wb/v1/{gw}/up``       up         frames (:mod:`waybill.frames`), QoS 0
``wb/v1/{gw}/ack``      down       :class:`Ack`, MessagePack, QoS 0
``wb/v1/{gw}/down``     down       :class:`Envelope`, MessagePack, QoS 0
``wb/v1/{gw}/state``    up         :class:`State`, JSON, retained; also the will
======================  =========  ==========================================================

Receivers ignore unknown fields of these messages (forward compatibility within v1).
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from waybill.errors import Corrupt

CONTROL_LANE: Final = "control"
"""The built-in lane of the agent's own messages: receipts, command statuses, health."""

TELEMETRY_LANE: Final = "telemetry"
"""The default lane of what devices publish."""

RECEIPT_TOPIC: Final = "$waybill/receipt"
"""Topic of a :class:`Receipt` (JSON) within the control lane."""

COMMAND_STATUS_TOPIC: Final = "$waybill/command-status"
"""Topic of a :class:`CommandStatus` (JSON) within the control lane."""

DICTIONARY_TOPIC: Final = "$waybill/dictionary"
"""Topic of a zstd dictionary (:class:`waybill.frames.Dictionary`), its bytes as they are, within the control lane."""
PRESENCE_TOPIC: Final = "$waybill/presence"
"""Topic of a :class:`DevicePresence` (JSON) within the control lane."""

HEALTH_TOPIC: Final = "$waybill/health"
"""Topic of a health record (:mod:`waybill.health`) within the control lane."""

NODE: Final = "node:"
"""What the names begin with under which the cloud's nodes journal what devices without a gateway sent: one a start."""

LANE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
GATEWAY_ID: Final = re.compile(r"(?!node:)[A-Za-z0-9._-]{1,64}")
"""What a gateway may be called; ``node:`` is reserved for the cloud's own nodes."""


TRIAL: Final = "~check"
"""What the client id ends with of a connection that only tries the way out; no gateway can be called so."""


def trial_id(gateway: str) -> str:
    """Return the client id under which ``gateway`` tries the way to the cloud while its agent is connected."""
    return gateway + TRIAL


def is_node(gateway: str) -> bool:
    """Tell whether frames of ``gateway`` were made by a node: a hole in their seqs is no loss."""
    return gateway.startswith(NODE)


def is_control(gateway: str, lane: str) -> bool:
    """Tell whether ``lane`` holds control messages; a node has such a lane for each frames partition."""
    return lane == CONTROL_LANE or (is_node(gateway) and lane.startswith(f"{CONTROL_LANE}."))


def up_topic(gateway: str) -> str:
    """Return the topic on which ``gateway`` sends frames."""
    return f"wb/v1/{gateway}/up"


def ack_topic(gateway: str) -> str:
    """Return the topic on which ``gateway`` receives acks and credit."""
    return f"wb/v1/{gateway}/ack"


def down_topic(gateway: str) -> str:
    """Return the topic on which ``gateway`` receives envelopes."""
    return f"wb/v1/{gateway}/down"


def state_topic(gateway: str) -> str:
    """Return the retained topic on which ``gateway`` says whether it is online."""
    return f"wb/v1/{gateway}/state"


class Span(msgspec.Struct, frozen=True, array_like=True):
    """A closed range of sequence numbers ``first..last`` in one epoch's lane."""

    epoch: int
    lane: str
    first: int
    last: int


class RefusedSpan(msgspec.Struct, frozen=True, array_like=True):
    """A span that will never be journaled as it was sent, and why (U4)."""

    epoch: int
    lane: str
    first: int
    last: int
    reason: str


class Ack(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    rename={"journaled": "j", "credit": "c", "refused": "r", "retry": "t", "versions": "v", "log": "l"},
):
    """The cloud's answer to frames, MessagePack map; each key is one letter, because it comes with every frame.

    ``journaled``: spans that are durable in the journal: the gateway may delete them.
    ``credit``: bytes of frames that may be in flight from now on (U3: absolute, the last one wins).
    ``refused``: never decodable as sent. ``retry``: could not be journaled now, send again.
    ``versions``: the frame versions spoken, when a frame of an unknown version came; the gateway keeps the frame.
    ``log``: which log this cloud journals to (R10): comes with the credit; 0: not said.
    """

    journaled: tuple[Span, ...] = ()
    credit: int | None = None
    refused: tuple[RefusedSpan, ...] = ()
    retry: tuple[Span, ...] = ()
    versions: tuple[int, ...] = ()
    log: int = 0


class Envelope(msgspec.Struct, frozen=True):
    """Something for a gateway, MessagePack map (U5): arrived when its ``delivered`` status is on the control lane.

    ``expires_ms``: wall time, milliseconds since 1970 UTC; after it the gateway ignores the envelope.
    """

    id: str
    kind: Literal["command"]
    device: str
    name: str
    payload: bytes
    expires_ms: int


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether a gateway is online (JSON)."""

    state: Literal["online", "offline"]
    reason: str = ""
    version: str = ""


class Receipt(msgspec.Struct, frozen=True):
    """A declared loss (E5), JSON in the control lane. To the ledger it is a frame header of ``epoch``."""

    epoch: int
    lane: str
    prev_epoch: int
    prev_last: int
    first: int
    last: int
    count: int
    bytes: int
    reason: str


class CommandStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One state of one command, JSON: on the control lane, and as a record of ``waybill.command-status``.

    ``gateway``: empty for a device without one.
    ``state``: ``delivered`` (durable in the gateway's outbox), ``done`` (the device answered: ``result`` is its
    payload, base64 in JSON), ``expired`` (written by the cloud), ``rejected`` (the command record itself was
    malformed).
    ``at_ms``: milliseconds since 1970 UTC by the writer's clock.
    """

    id: str
    gateway: str
    device: str
    state: Literal["delivered", "done", "expired", "rejected"]
    at_ms: int
    result: bytes | None = None
    reason: str = ""


class DevicePresence(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device has connected to its gateway, or its connection has ended (JSON, in the control lane).

    ``at_ms``: milliseconds since 1970 UTC by the gateway's clock. ``reason``: why it ended; empty: it said good-bye.
    """

    device: str
    state: Literal["online", "offline"]
    at_ms: int
    reason: str = ""


_ack_encoder = msgspec.msgpack.Encoder()
_ack_decoder = msgspec.msgpack.Decoder(Ack)
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)


def encode(message: Ack | Envelope) -> bytes:
    """Encode an ack or an envelope as MessagePack."""
    return _ack_encoder.encode(message)


def decode_ack(data: bytes) -> Ack:
    """Decode an ack. Raises Corrupt."""
    try:
        return _ack_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"ack: {error}"
        raise Corrupt(msg) from error


def decode_envelope(data: bytes) -> Envelope:
    """Decode an envelope. Raises Corrupt."""
    try:
        return _envelope_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"envelope: {error}"
        raise Corrupt(msg) from error

"""The buffer's settings, with their defaults: the table ``[buffer]`` of the agent's configuration."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from waybill.mqtt.state import DUP_WINDOW

MIB: Final = 1 << 20

_Bytes = Annotated[int, msgspec.Meta(ge=0)]


class BufferSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of the buffer; sizes in bytes.

    ``max_bytes``: database, write-ahead log and ballast together; at it commits wait, and devices with them.
    ``min_free_bytes``: what stays free on the file system whatever happens; below it commits wait likewise.
    ``ballast_bytes``: a file that is given up when the disk is full, so that settling (which makes room) still works.
    ``gather_ms``: how long a commit of few messages waits for more before it is written, and acknowledgements with it:
    fewer writes for the flash; milliseconds.
    ``dup_window``: remembered messages a client (O3); at least what the MQTT server remembers.
    ``outbox_limit``: command ids kept, open or done; at it further commands are not accepted.
    ``outbox_margin_ms``: how long an id is kept after its expiry (C2), milliseconds.
    """

    max_bytes: Annotated[int, msgspec.Meta(ge=MIB)] = 8 << 30
    min_free_bytes: _Bytes = 64 * MIB
    ballast_bytes: _Bytes = 4 * MIB
    gather_ms: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    dup_window: Annotated[int, msgspec.Meta(ge=1)] = DUP_WINDOW
    outbox_limit: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    outbox_margin_ms: _Bytes = 24 * 3600 * 1000

"""A command on its way: checked as far as a person can mend it, and handed to the ingest on this machine."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from waybill import snapshot
from waybill.config import milliseconds
from waybill.errors import ConfigError


def checked(given: Mapping[str, str]) -> dict[str, Any]:
    """Return what a person wrote as the fields of a command without id and expiry (``lasts_ms`` instead).

    What else is wrong the ingest says. Raises ConfigError.
    """
    for name in ("device", "name"):
        if not given[name]:
            raise ConfigError(f"{name} is empty: fill it in")
    fields: dict[str, Any] = {
        "gateway": given["gateway"],
        "device": given["device"],
        "name": given["name"],
        "lasts_ms": milliseconds(given["expires"]),
    }
    if given["payload"]:
        try:
            msgspec.json.decode(given["payload"])
        except msgspec.DecodeError as error:
            raise ConfigError(f'payload is not JSON: {error}; a text needs its quotes: "text"') from error
        # As bytes, so that the device gets it as it was written.
        fields["payload_base64"] = base64.b64encode(given["payload"].encode()).decode()
    return fields


class Sender:
    """The ingest on this machine. ``socket``: its socket for tools."""

    def __init__(self, socket: Path) -> None:
        """Nothing is opened until something is sent."""
        self._socket = socket

    async def send(self, id_: str, fields: Mapping[str, Any]) -> None:
        """Hand over what :func:`checked` returned. Raises Unavailable, with what the ingest says."""
        rest = dict(fields)
        expires = time.time_ns() // 1_000_000 + rest.pop("lasts_ms")
        await snapshot.request(self._socket, "command", command={"id": id_, "expires_at": expires, **rest})

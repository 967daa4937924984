"""What a vehicle can be told: the payload of a command is a JSON object such as ``{"command":"horn","times":2}``.

==================  =========================  =================================================
``command``         takes                      result
==================  =========================  =================================================
``lock``, ``unlock``  nothing                    ``locked``
``horn``            ``times``: 1 to 10, 1      ``times``
``charging-limit``  ``percent``: 30 to 100     ``percent``, ``was``
``locate``          nothing                    latitude, longitude, heading under their VSS names
``diagnostics``     nothing                    ``codes``, ``odometer`` (km), ``level`` (percent)
``clear-codes``     nothing                    ``cleared``: the codes
==================  =========================  =================================================
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from fleet_simulator.vehicles.electric import LEAST_LIMIT

REMEMBERED: Final = 1000
"""Command ids that a vehicle remembers; the oldest is forgotten first."""

EXAMPLE: Final = '{"command":"horn","times":2}'
"""A payload that a person can learn from."""

Result = dict[str, object]


class _Command(msgspec.Struct, frozen=True, tag_field="command", forbid_unknown_fields=True):
    """What all have in common: the name is the tag."""


class Lock(_Command, frozen=True, tag="lock"):
    """Lock the doors."""


class Unlock(_Command, frozen=True, tag="unlock"):
    """Unlock the doors."""


class Horn(_Command, frozen=True, tag="horn"):
    """Sound the horn."""

    times: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1


class ChargingLimit(_Command, frozen=True, tag="charging-limit"):
    """Charge up to ``percent``."""

    percent: Annotated[int, msgspec.Meta(ge=LEAST_LIMIT, le=100)]


class Locate(_Command, frozen=True, tag="locate"):
    """Say where you are."""


class Diagnostics(_Command, frozen=True, tag="diagnostics"):
    """Say how you are."""


class ClearCodes(_Command, frozen=True, tag="clear-codes"):
    """Forget the trouble codes."""


Command = Lock | Unlock | Horn | ChargingLimit | Locate | Diagnostics | ClearCodes

_decoder = msgspec.json.Decoder(Command)


class Done(msgspec.Struct, frozen=True):
    """What came of a command. ``command``: empty where it could not be read. ``error``: why not, None if ``ok``."""

    command: str
    ok: bool
    result: Result | None = None
    error: str | None = None


def parse(payload: bytes) -> Command:
    """Read a payload. Raises msgspec.MsgspecError, whose text says what is wrong with which field."""
    command: Command = _decoder.decode(payload)
    return command


def name_of(command: Command) -> str:
    """Return a command's name."""
    return str(command.__struct_config__.tag)

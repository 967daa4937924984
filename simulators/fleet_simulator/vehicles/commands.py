"""What a vehicle can be told: the payload of a command is a JSON object such as ``{"command":"horn","times":2}``.

==================  =========================  =================================================
``command``         takes                      result
==================  =========================  =================================================
``lock``, ``unlock``  nothing                    ``locked``
``horn``            ``times``: 1 to 10, 1      ``times``
``charging-limit``  ``percent``: 30 to 100     ``percent``, ``was``
``locate``          nothing                    where it is, under the VSS names
``diagnostics``     nothing                    trouble codes and what telemetry says, under the VSS names
``clear-codes``     nothing                    ``cleared``: the codes
==================  =========================  =================================================
"""

from __future__ import annotations

from typing import Annotated, Final, Protocol

import msgspec

from fleet_simulator.vehicles import signals
from fleet_simulator.vehicles.combustion import Engine
from fleet_simulator.vehicles.electric import LEAST_LIMIT, Battery
from fleet_simulator.vehicles.profiles import Profile
from fleet_simulator.vehicles.signals import Signal

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


class Commanded(Protocol):
    """What a command has its effect on: a vehicle."""

    locked: bool
    codes: list[str]

    @property
    def profile(self) -> Profile:
        """What kind it is."""

    @property
    def power(self) -> Battery | Engine | None:
        """What drives it."""

    def shown(self, *shown: Signal) -> Result:
        """Return signals as they are now, by name."""


def understood(profile: Profile, payload: bytes) -> Command | Done:
    """Return the command that ``payload`` is to a vehicle of this profile, or why it is none."""
    try:
        command: Command = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Done("", ok=False, error=f"{error}: write, for example, {EXAMPLE}")
    name = _name(command)
    if name not in profile.commands:
        return Done(name, ok=False, error=f"a {profile.name} can only {', '.join(sorted(profile.commands))}")
    return command


def carry_out(vehicle: Commanded, payload: bytes) -> Done:
    """Do what ``payload`` says and return what came of it; what cannot be done is said, not raised."""
    command = understood(vehicle.profile, payload)
    return command if isinstance(command, Done) else Done(_name(command), ok=True, result=_effect(vehicle, command))


def _name(command: Command) -> str:
    return str(command.__struct_config__.tag)


def _effect(vehicle: Commanded, command: Command) -> Result:
    match command:
        case Lock() | Unlock():
            vehicle.locked = isinstance(command, Lock)
            return {"locked": vehicle.locked}
        case Horn():
            return {"times": command.times}
        case ChargingLimit() if isinstance(vehicle.power, Battery):
            was, vehicle.power.limit = vehicle.power.limit, float(command.percent)
            return {"percent": command.percent, "was": round(was)}
        case ClearCodes():
            cleared, vehicle.codes = vehicle.codes, []
            return {"cleared": cleared}
        case Diagnostics():
            return vehicle.shown(signals.CODES, *vehicle.profile.says)
        case Locate():
            return vehicle.shown(*signals.PLACE)
        case _:
            raise AssertionError(command)  # a profile that names what it cannot do

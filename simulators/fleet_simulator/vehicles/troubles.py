"""Trouble codes as SAE J2012 writes them: a letter for the system, a digit for who defines it, three hex digits.

P powertrain, B body, C chassis, U network; 0 and 2 (of P also 3) are defined by SAE. The codes here are such ones; what
they mean is said in our words.
"""

from __future__ import annotations

import re
from typing import Final

from fleet_simulator.vehicles.profiles import Combustion, Electric

CODE: Final = re.compile(r"[PCBU][0-3][0-9A-F]{3}")
"""The format."""

MOST: Final = 8
"""Codes that a vehicle has at a time; while it has so many, nothing else breaks."""

MEANINGS: Final = {
    "P0101": "air mass meter: implausible",
    "P0128": "coolant stays below the thermostat's temperature",
    "P0217": "engine too hot",
    "P0299": "turbocharger: too little pressure",
    "P0401": "exhaust gas recirculation: too little flow",
    "P0562": "low voltage system: too low",
    "P0A1F": "battery energy control module",
    "P0A7E": "traction battery too hot",
    "P0A80": "traction battery worn out",
    "P0AA6": "traction battery: insulation fault",
    "P2002": "particle filter: efficiency too low",
    "C0035": "wheel speed sensor, front left",
    "C0040": "wheel speed sensor, front right",
    "U0100": "engine control unit does not answer",
    "U0121": "anti-lock brake control unit does not answer",
}

_ALL: Final = ("P0562", "C0035", "C0040", "U0121")
_ENGINE: Final = (*_ALL, "P0101", "P0128", "P0299", "P0401", "P2002", "U0100")
_BATTERY: Final = (*_ALL, "P0A1F", "P0A80", "P0AA6")


def possible(power: Electric | Combustion | None) -> tuple[str, ...]:
    """Return what can break by chance; nothing on what has no control units."""
    if power is None:
        return ()
    return _BATTERY if isinstance(power, Electric) else _ENGINE

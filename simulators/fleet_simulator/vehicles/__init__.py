"""Simulated vehicles: how they move, what that costs, and what they say of it.

::

    cycle (cycles, drives)  speed wanted ─▶ vehicle ─▶ force ─▶ electric, combustion   energy, gears, temperatures
    route                   grade, place ─▶    │
    commands                payload ───────▶   └──▶ Said: telemetry, events, replies

A :class:`Vehicle` is a function of its arguments: its name, profile, seed, cycle and route, and the times at which it
is asked. The same calls give the same bytes in every process. Nothing here does I/O but the reading of drives that come
with the package.
"""

from fleet_simulator.vehicles.cycles import PARKED
from fleet_simulator.vehicles.drives import Drive
from fleet_simulator.vehicles.profiles import PROFILES, Profile
from fleet_simulator.vehicles.route import Route
from fleet_simulator.vehicles.vehicle import EVENTS, REPLIES, TELEMETRY, Said, Vehicle

__all__ = ["EVENTS", "PARKED", "PROFILES", "REPLIES", "TELEMETRY", "Drive", "Profile", "Route", "Said", "Vehicle"]

"""What a vehicle says, signal by signal: names, units and types as in COVESA's Vehicle Signal Specification 5.1.

Each signal knows which attribute of :class:`~fleet_simulator.vehicles.vehicle.Vehicle` holds it and how it is written,
so that a telemetry message is one formatting of one template. https://covesa.github.io/vehicle_signal_specification/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec


@dataclass(frozen=True, slots=True)
class Signal:
    """``attribute``: path from the vehicle. ``form``: printf conversion. ``unit``: as VSS has it, empty for none."""

    name: str
    attribute: str
    form: str
    unit: str


_BATTERY: Final = "Vehicle.Powertrain.TractionBattery."
_ENGINE: Final = "Vehicle.Powertrain.CombustionEngine."
_FUEL: Final = "Vehicle.Powertrain.FuelSystem."
_MOTOR: Final = "Vehicle.Powertrain.ElectricMotor."

SPEED: Final = Signal("Vehicle.Speed", "kmh", "%.1f", "km/h")
ACCELERATION: Final = Signal("Vehicle.Acceleration.Longitudinal", "acceleration", "%.2f", "m/s^2")
DISTANCE: Final = Signal("Vehicle.TraveledDistance", "odometer_km", "%.3f", "km")
LATITUDE: Final = Signal("Vehicle.CurrentLocation.Latitude", "seen_latitude", "%.6f", "degrees")
LONGITUDE: Final = Signal("Vehicle.CurrentLocation.Longitude", "seen_longitude", "%.6f", "degrees")
HEADING: Final = Signal("Vehicle.CurrentLocation.Heading", "heading", "%.1f", "degrees")
ALTITUDE: Final = Signal("Vehicle.CurrentLocation.Altitude", "altitude", "%.1f", "m")
AIR: Final = Signal("Vehicle.Exterior.AirTemperature", "ambient", "%.1f", "celsius")
LOCKED: Final = Signal("Vehicle.Cabin.Door.Row1.DriverSide.IsLocked", "locked_json", "%s", "")
TROUBLES: Final = Signal("Vehicle.Diagnostics.DTCCount", "trouble_count", "%d", "")
CODES: Final = Signal("Vehicle.Diagnostics.DTCList", "codes_json", "%s", "")

CHARGE: Final = Signal(_BATTERY + "StateOfCharge.Current", "power.level", "%.2f", "percent")
BATTERY_POWER: Final = Signal(_BATTERY + "CurrentPower", "power.battery_power", "%.0f", "W")
BATTERY_TEMPERATURE: Final = Signal(_BATTERY + "Temperature.Average", "power.battery_temperature", "%.1f", "celsius")
CHARGING: Final = Signal(_BATTERY + "Charging.IsCharging", "power.filling_json", "%s", "")
MOTOR_SPEED: Final = Signal(_MOTOR + "Speed", "power.rpm", "%.0f", "rpm")
MOTOR_TEMPERATURE: Final = Signal(_MOTOR + "Temperature", "power.motor_temperature", "%.1f", "celsius")

ENGINE_SPEED: Final = Signal(_ENGINE + "Speed", "power.rpm", "%.0f", "rpm")
COOLANT: Final = Signal(_ENGINE + "EngineCoolant.Temperature", "power.coolant_temperature", "%.1f", "celsius")
GEAR: Final = Signal("Vehicle.Powertrain.Transmission.CurrentGear", "power.gear", "%d", "")
FUEL: Final = Signal(_FUEL + "AbsoluteLevel", "power.litres", "%.2f", "l")
CONSUMED: Final = Signal(_FUEL + "ConsumptionSinceStart", "power.used", "%.3f", "l")
ENGINE_POWER: Final = Signal(_ENGINE + "Power", "power.kilowatts", "%.0f", "kW")

READING: Final = (Signal("t", "ambient", "%.1f", "celsius"), Signal("v", "cell_voltage", "%.2f", "V"))
"""What the constrained sensor says: names of one letter, because on its link each byte counts."""

PLACE: Final = (LATITUDE, LONGITUDE, HEADING, ALTITUDE)
VEHICLE: Final = (SPEED, ACCELERATION, DISTANCE, *PLACE, AIR, LOCKED, TROUBLES)
ELECTRIC: Final = (CHARGE, BATTERY_POWER, BATTERY_TEMPERATURE, CHARGING, MOTOR_SPEED, MOTOR_TEMPERATURE)
COMBUSTION: Final = (ENGINE_SPEED, COOLANT, ENGINE_POWER, GEAR, FUEL, CONSUMED)
SCOOTER: Final = (SPEED, DISTANCE, LATITUDE, LONGITUDE, CHARGE, CHARGING, BATTERY_TEMPERATURE)


def template(vehicle: str, stream: str, signals: Sequence[Signal]) -> bytes:
    """Return a printf template for bytes: it takes seq, ts and a value for each signal."""
    name = msgspec.json.encode(vehicle).replace(b"%", b"%%")
    head = b'{"vehicle":%s,"stream":"%s","seq":%%d,"ts":%%d' % (name, stream.encode())
    return head + b"".join(b',"%s":%s' % (one.name.encode(), one.form.encode()) for one in signals) + b"}"

"""What vehicles say: VSS signals, events, trouble codes, charging, and what comes of commands."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from fleet_simulator.vehicles import EVENTS, PARKED, PROFILES, REPLIES, TELEMETRY, Drive, Profile, Vehicle
from fleet_simulator.vehicles.combustion import Engine
from fleet_simulator.vehicles.commands import REMEMBERED
from fleet_simulator.vehicles.cycles import named
from fleet_simulator.vehicles.electric import Battery
from fleet_simulator.vehicles.troubles import CODE, MEANINGS, MOST, possible
from waybill.errors import ConfigError

NOW = 1_700_000_000_000
POWER = "Vehicle.Powertrain."
BATTERY = f"{POWER}TractionBattery."

# As release 5.1 of COVESA's Vehicle Signal Specification has them: type, unit, least and most where it names them.
VSS: dict[str, tuple[str, str, float, float]] = {
    "Vehicle.Acceleration.Longitudinal": ("float", "m/s^2", -12, 12),
    "Vehicle.Cabin.Door.Row1.DriverSide.IsLocked": ("boolean", "", 0, 1),
    "Vehicle.CurrentLocation.Altitude": ("double", "m", -500, 9000),
    "Vehicle.CurrentLocation.Heading": ("double", "degrees", 0, 360),
    "Vehicle.CurrentLocation.Latitude": ("double", "degrees", -90, 90),
    "Vehicle.CurrentLocation.Longitude": ("double", "degrees", -180, 180),
    "Vehicle.Diagnostics.DTCCount": ("uint8", "", 0, 255),
    "Vehicle.Diagnostics.DTCList": ("string[]", "", 0, 0),
    "Vehicle.Exterior.AirTemperature": ("float", "celsius", -40, 60),
    f"{POWER}CombustionEngine.EngineCoolant.Temperature": ("float", "celsius", -40, 130),
    f"{POWER}CombustionEngine.Power": ("uint16", "kW", 0, 1000),
    f"{POWER}CombustionEngine.Speed": ("uint16", "rpm", 0, 10_000),
    f"{POWER}ElectricMotor.Speed": ("int32", "rpm", 0, 20_000),
    f"{POWER}ElectricMotor.Temperature": ("float", "celsius", -40, 200),
    f"{POWER}FuelSystem.AbsoluteLevel": ("float", "l", 0, 1000),
    f"{POWER}FuelSystem.ConsumptionSinceStart": ("float", "l", 0, 1e6),
    f"{BATTERY}Charging.IsCharging": ("boolean", "", 0, 1),
    f"{BATTERY}CurrentPower": ("float", "W", -1e6, 1e6),
    f"{BATTERY}StateOfCharge.Current": ("float", "percent", 0, 100),
    f"{BATTERY}Temperature.Average": ("float", "celsius", -40, 100),
    f"{POWER}Transmission.CurrentGear": ("int8", "", 0, 16),
    "Vehicle.Speed": ("float", "km/h", 0, 250),
    "Vehicle.TraveledDistance": ("float", "km", 0, 1e7),
}


def run(vehicle: Vehicle, seconds: int, begin: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    for n in range(begin, begin + seconds):
        for said in vehicle.step(NOW + 1000 * (n + 1), 1.0):
            yield said.stream, json.loads(said.payload)


def events(vehicle: Vehicle, seconds: int, begin: int = 0) -> list[dict[str, Any]]:
    return [message for stream, message in run(vehicle, seconds, begin) if stream == EVENTS]


def tell(vehicle: Vehicle, command: str, payload: object) -> dict[str, Any]:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    said = vehicle.command(command, body, NOW)
    assert said.stream == REPLIES
    reply: dict[str, Any] = json.loads(said.payload)
    return reply


def battery(vehicle: Vehicle) -> Battery:
    assert isinstance(vehicle.power, Battery)
    return vehicle.power


def with_charge(level: float, cycle: str = "urban") -> Vehicle:
    vehicle = Vehicle("V1", cycle=named(cycle))
    vehicle._chance = lambda: 0.5
    battery(vehicle).stored = battery(vehicle).energy * level / 100
    battery(vehicle).level = level
    return vehicle


@pytest.mark.parametrize("name", [one for one in PROFILES if one != "sensor"])
def test_signals_are_those_of_vss(name: str) -> None:
    profile = PROFILES[name]
    units = {one.name: one.unit for one in profile.says}
    assert units == {one: VSS[one][1] for one in units}
    for stream, message in run(Vehicle("V1", profile, 2), 1200):
        signals = {key: value for key, value in message.items() if key.startswith("Vehicle.")}
        if stream == TELEMETRY:
            assert set(signals) == set(units) == set(message) - {"vehicle", "stream", "seq", "ts"}
        for key, value in signals.items():
            kind, _, least, most = VSS[key]
            if kind == "string[]":
                assert all(isinstance(one, str) for one in value)
                continue
            wanted = bool if kind == "boolean" else float if kind in ("float", "double") else int
            assert type(value) in ((int, float) if wanted is float else (wanted,)), key
            assert least <= value <= most, key


def test_the_constrained_sensor_says_twenty_bytes() -> None:
    """Beside vehicle, stream, seq and ts, without which nobody could tell what has arrived."""
    said = [one for n in range(4) for one in Vehicle(f"S{n}", PROFILES["sensor"], n).step(NOW, 43_200)]
    for one in said:
        reading = b"{" + one.payload.split(b",", 4)[4]
        assert len(reading) <= 20
        assert set(json.loads(reading)) == {"t", "v"}
        assert len(one.payload) <= 90


def test_the_scooter_says_less_and_less_often() -> None:
    scooter, car = (Vehicle("V1", PROFILES[name]).step(NOW, 600) for name in ("scooter", "car"))
    assert len(scooter) * 8 < len(car)
    assert max(len(one.payload) for one in scooter if one.stream == TELEMETRY) < 450


def test_harsh_braking_is_one_event_each_time() -> None:
    stops = Drive("stops", (*([20.0] * 30), *(max(20.0 - 6 * n, 0) for n in range(10)), *([0.0] * 20)))
    vehicle = Vehicle("V1", cycle=stops)
    vehicle._chance = lambda: 0.5
    vehicle._at, vehicle._pace = 0.0, 1.0
    told = events(vehicle, 240)
    assert [one["event"] for one in told] == ["harsh-braking"] * 4
    assert all(one["Vehicle.Acceleration.Longitudinal"] <= -4.5 for one in told)
    assert all("Vehicle.CurrentLocation.Latitude" in one for one in told)


def test_drivers_get_scared_and_things_break() -> None:
    told = Counter(one["event"] for n in range(12) for one in events(Vehicle(f"V{n}", cycle=named("highway")), 3600))
    assert 12 < told["harsh-braking"] < 120
    assert 0 < told["trouble-code"] < 10


def test_trouble_codes_are_those_of_sae() -> None:
    assert all(CODE.fullmatch(code) for code in MEANINGS)
    for profile in PROFILES.values():
        assert set(possible(profile.power)) <= set(MEANINGS)
        vehicle = Vehicle("V1", profile)
        vehicle._chance = lambda: 1e-9  # whatever can break breaks, the first first
        told = events(vehicle, 100)
        codes = [one["code"] for one in told if one["event"] == "trouble-code"]
        assert codes == (list(possible(profile.power)[:1]))
        assert all(one["Vehicle.Diagnostics.DTCList"] == codes and one["meaning"] for one in told if "code" in one)


def test_no_more_codes_than_there_is_room_for() -> None:
    vehicle = Vehicle("V1", PROFILES["van"])
    draws = itertools.cycle([0.0, *(0.0 if n % 2 else n / 22 for n in range(22))])  # something breaks; which one
    vehicle._chance = lambda: next(draws)
    list(run(vehicle, 300))
    assert len(vehicle.codes) == len(set(vehicle.codes)) == MOST


def test_a_low_battery_is_charged_at_the_next_stop_up_to_the_limit() -> None:
    vehicle = with_charge(19)
    told = events(vehicle, 5000)
    assert [one["event"] for one in told] == ["charging-begins", "charging-ends"]
    begin, end = told
    assert begin[f"{BATTERY}StateOfCharge.Current"] < 20
    assert 80 <= end[f"{BATTERY}StateOfCharge.Current"] < 81
    # 60 % of 60 kWh at 90 kW
    assert (end["ts"] - begin["ts"]) / 60_000 == pytest.approx(24.4, abs=1)
    assert begin["Vehicle.CurrentLocation.Latitude"] == end["Vehicle.CurrentLocation.Latitude"]


def test_while_charging_it_stands_and_says_so() -> None:
    vehicle = with_charge(19)
    while not battery(vehicle).filling:
        vehicle.step(NOW, 1.0)
    where = vehicle.travelled
    (_, message), *_ = run(vehicle, 1)
    assert message[f"{BATTERY}Charging.IsCharging"] is True
    assert message[f"{BATTERY}CurrentPower"] == 90_000
    assert message["Vehicle.Speed"] == 0
    assert vehicle.travelled == where


def test_an_empty_battery_stops_wherever_it_is() -> None:
    vehicle = with_charge(3.9, "highway")
    told = events(vehicle, 600)
    assert told[0]["event"] == "charging-begins"


def test_a_parked_car_is_plugged_in_and_charged_once() -> None:
    vehicle = with_charge(50, PARKED)
    assert [one["event"] for one in events(vehicle, 7200)] == ["charging-begins", "charging-ends"]
    assert (vehicle.travelled, vehicle.speed) == (0, 0)
    assert tell(vehicle, "c1", {"command": "charging-limit", "percent": 90})["ok"]
    told = events(vehicle, 7200, 7200)
    assert [one["event"] for one in told] == ["charging-begins", "charging-ends"]
    assert 90 <= told[-1][f"{BATTERY}StateOfCharge.Current"] < 91


def test_a_parked_truck_burns_nothing() -> None:
    vehicle = Vehicle("V1", PROFILES["truck"], cycle=named(PARKED))
    assert isinstance(vehicle.power, Engine)
    before = vehicle.power.litres
    assert not events(vehicle, 3600)
    assert (vehicle.power.litres, vehicle.power.rpm) == (before, 0)


def test_a_low_tank_is_filled() -> None:
    vehicle = Vehicle("V1", PROFILES["van"], cycle=named("urban"))
    vehicle._chance = lambda: 0.5
    assert isinstance(vehicle.power, Engine)
    vehicle.power.litres = 8.0
    told = events(vehicle, 900)
    assert [one["event"] for one in told] == ["refuelling-begins", "refuelling-ends"]
    assert told[1][f"{POWER}FuelSystem.AbsoluteLevel"] > 70


# -- commands --


def test_lock_and_unlock_are_seen_in_telemetry() -> None:
    vehicle = Vehicle("V1")
    for command, locked in (("lock", True), ("unlock", False)):
        reply = tell(vehicle, command, {"command": command})
        assert reply["ok"]
        assert reply["result"] == {"locked": locked}
        (_, message), *_ = run(vehicle, 1)
        assert message["Vehicle.Cabin.Door.Row1.DriverSide.IsLocked"] is locked


def test_a_charging_limit_ends_charging_there() -> None:
    vehicle = with_charge(40, PARKED)
    assert tell(vehicle, "c1", {"command": "charging-limit", "percent": 60})["result"] == {"percent": 60, "was": 80}
    told = events(vehicle, 7200)
    assert 60 <= told[-1][f"{BATTERY}StateOfCharge.Current"] < 61


def test_diagnostics_clear_codes_and_locate() -> None:
    vehicle = Vehicle("V1", PROFILES["truck"], seed=4)
    vehicle.codes = ["P0401"]
    found = tell(vehicle, "c1", {"command": "diagnostics"})["result"]
    assert found["Vehicle.Diagnostics.DTCList"] == ["P0401"]
    assert set(found) <= set(VSS)
    assert tell(vehicle, "c2", {"command": "clear-codes"})["result"] == {"cleared": ["P0401"]}
    assert tell(vehicle, "c3", {"command": "diagnostics"})["result"]["Vehicle.Diagnostics.DTCCount"] == 0
    assert set(tell(vehicle, "c4", {"command": "locate"})["result"]) <= set(VSS)
    assert tell(vehicle, "c5", {"command": "horn"})["result"] == {"times": 1}


def test_a_command_that_comes_again_has_no_second_effect() -> None:
    vehicle = Vehicle("V1")
    vehicle.codes = ["P0A80"]
    first = tell(vehicle, "c1", {"command": "clear-codes"})
    vehicle.codes = ["P0562"]
    second = tell(vehicle, "c1", {"command": "clear-codes"})
    assert vehicle.codes == ["P0562"]
    assert (first["seq"], second["seq"]) == (1, 2)
    assert {**second, "seq": 1} == first
    assert first["times"] == 1
    assert vehicle.acted == {"c1": 1}


def test_ids_are_remembered_up_to_a_bound() -> None:
    vehicle = Vehicle("V1")
    for n in range(REMEMBERED + 10):
        tell(vehicle, f"c{n}", {"command": "horn"})
    assert len(vehicle.acted) == REMEMBERED
    assert "c9" not in vehicle.acted
    assert "c10" in vehicle.acted


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"", "Input data was truncated"),
        (b"horn", "JSON is malformed"),
        (b"\xff\xfe", "JSON is malformed"),
        (b'{"command":"\xff"}', "utf-8"),
        ([], "Expected `object`, got `array`"),
        ({}, "missing required field `command`"),
        ({"command": "fly"}, "Invalid value 'fly'"),
        ({"command": "horn", "times": 11}, "Expected `int` <= 10 - at `$.times`"),
        ({"command": "horn", "how": "loud"}, "unknown field `how`"),
        ({"command": "charging-limit"}, "missing required field `percent`"),
        ({"command": "charging-limit", "percent": 20}, "Expected `int` >= 30 - at `$.percent`"),
        (b'{"command":' + b"[" * 100_000, ""),
    ],
)
def test_what_cannot_be_read_is_answered(payload: object, told: str) -> None:
    vehicle = Vehicle("V1")
    reply = tell(vehicle, "c1", payload)
    assert (reply["ok"], reply["times"], reply["result"]) == (False, 0, None)
    assert told.lower() in reply["error"].lower()
    assert 'write, for example, {"command":"horn","times":2}' in reply["error"]
    assert vehicle.acted == {"c1": 0}


def test_what_a_vehicle_cannot_do_is_said() -> None:
    reply = tell(Vehicle("S1", PROFILES["sensor"]), "c1", {"command": "horn"})
    assert reply["error"] == "a sensor can only diagnostics, locate"


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda one: one.name)
def test_every_profile_can_do_what_it_names(profile: Profile) -> None:
    vehicle = Vehicle("V1", profile)
    for command in profile.commands:
        more = {"percent": 70} if command == "charging-limit" else {}
        assert tell(vehicle, command, {"command": command, **more})["ok"], command


def test_a_profile_of_ones_own() -> None:
    light = dataclasses.replace(PROFILES["van"], name="light van", mass=1500.0)
    assert Vehicle("V1", light).step(NOW, 10)


def test_a_cycle_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"cycle 'nurburgring' is not known; there are: urban, .*, wltc_3b"):
        named("nurburgring")

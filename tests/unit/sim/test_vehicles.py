"""Simulated vehicles are reproducible, number what they say, and do possible things."""

import hashlib
import itertools
import json
import subprocess
import sys
from typing import Any

import pytest

from fleet_simulator.vehicles import EVENTS, PROFILES, TELEMETRY, Said, Vehicle
from fleet_simulator.vehicles.cycles import named
from waybill.errors import ConfigError

NOW = 1_700_000_000_000

PINNED = (
    b'{"vehicle":"V7","stream":"telemetry","seq":1,"ts":1700000000000,"Vehicle.Speed":0.0,"Vehicle.Acceler'
    b'ation.Longitudinal":0.00,"Vehicle.TraveledDistance":39003.703,"Vehicle.CurrentLocation.Latitude":41.'
    b'845258,"Vehicle.CurrentLocation.Longitude":-87.997836,"Vehicle.CurrentLocation.Heading":174.3,"Vehic'
    b'le.CurrentLocation.Altitude":194.7,"Vehicle.Exterior.AirTemperature":22.7,"Vehicle.Cabin.Door.Row1.D'
    b'riverSide.IsLocked":false,"Vehicle.Diagnostics.DTCCount":0,"Vehicle.Powertrain.TractionBattery.State'
    b'OfCharge.Current":75.01,"Vehicle.Powertrain.TractionBattery.CurrentPower":-450,"Vehicle.Powertrain.T'
    b'ractionBattery.Temperature.Average":18.2,"Vehicle.Powertrain.TractionBattery.Charging.IsCharging":fa'
    b'lse,"Vehicle.Powertrain.ElectricMotor.Speed":0,"Vehicle.Powertrain.ElectricMotor.Temperature":18.2}'
)

DIGESTS = """
import hashlib, json
from fleet_simulator.vehicles import PROFILES, Vehicle
said = {}
for name, profile in PROFILES.items():
    vehicle = Vehicle("V7", profile, 3)
    messages = vehicle.step(1_700_000_000_000, 1800)
    messages.append(vehicle.command("c1", b'{"command":"locate"}', 1_700_000_000_000))
    said[name] = hashlib.sha256(b"\\n".join(one.payload for one in messages)).hexdigest()
print(json.dumps(said))
"""


def drive(vehicle: Vehicle, seconds: int, dt: float = 1.0) -> list[Said]:
    return [one for n in range(seconds) for one in vehicle.step(NOW + int(1000 * dt * (n + 1)), dt)]


def telemetry(said: list[Said]) -> list[dict[str, Any]]:
    return [json.loads(one.payload) for one in said if one.stream == TELEMETRY]


def test_the_same_seed_says_the_same_in_another_process() -> None:
    # Sets and hashes differ from one process to the next; what a vehicle says does not.
    command = [sys.executable, "-c", DIGESTS]
    first, second = (subprocess.run(command, capture_output=True, check=True, timeout=60).stdout for _ in range(2))
    assert first == second
    assert len(set(json.loads(first).values())) == len(PROFILES)


def test_the_first_message_is_what_it_was_in_every_release() -> None:
    # Pinned: a recorded run can be made again with a later release, another Python, another machine.
    (first,) = Vehicle("V7", seed=1).step(NOW, 1.0)
    assert first.payload == PINNED


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda one: one.name)
def test_seed_and_name_make_the_difference(profile: Any) -> None:
    def said(name: str, seed: int) -> str:
        messages = Vehicle(name, profile, seed).step(NOW, 600)
        return hashlib.sha256(b"".join(one.payload.partition(b'"stream"')[2] for one in messages)).hexdigest()

    assert said("V1", 7) == said("V1", 7)
    assert len({said("V1", 7), said("V1", 8), said("V2", 7)}) == 3


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda one: one.name)
def test_every_message_has_its_envelope_and_counts_by_stream(profile: Any) -> None:
    vehicle = Vehicle('V"7%s', profile, 1)
    seqs: dict[str, int] = {}
    last = 0
    said = drive(vehicle, 2000)
    said.append(vehicle.command("c1", b"{}", NOW + 2_000_000))
    for one in said:
        message = json.loads(one.payload)
        assert list(message)[:4] == ["vehicle", "stream", "seq", "ts"]
        assert (message["vehicle"], message["stream"], message["seq"]) == ('V"7%s', one.stream, one.seq)
        assert one.seq == seqs.get(one.stream, 0) + 1
        seqs[one.stream] = one.seq
        assert last <= message["ts"] <= NOW + 2_000_000
        last = message["ts"]
    assert abs(seqs[TELEMETRY] - 2000 / profile.period) <= 1


def test_one_long_step_says_as_much_as_many_short_ones() -> None:
    short = telemetry(drive(Vehicle("V7"), 600))
    long = telemetry(Vehicle("V7").step(NOW + 600_000, 600))
    assert short == long


def test_a_mute_vehicle_drives_on_and_leaves_no_gap() -> None:
    heard, mute = (Vehicle("V7", cycle=named("highway")) for _ in range(2))
    before = drive(mute, 100)
    assert [one.payload for one in before] == [one.payload for one in drive(heard, 100)]
    hard = 0
    for n in range(100, 3000):
        hard += sum(one.stream == EVENTS for one in heard.step(NOW + 1000 * (n + 1), 1.0))
        assert mute.step(NOW + 1000 * (n + 1), 1.0, mute=True) == []
    assert hard > 0, "nothing that could leave a gap"
    assert (mute.travelled, mute.speed) == (heard.travelled, heard.speed)
    seqs = {
        stream: max((one.seq for one in before if one.stream == stream), default=0) for stream in (TELEMETRY, EVENTS)
    }
    for one in drive(mute, 3000):
        seqs[one.stream] += 1
        assert one.seq == seqs[one.stream]
    assert seqs[TELEMETRY] == 3100


def test_a_period_shorter_than_a_second() -> None:
    vehicle = Vehicle("V7", period=0.2)
    for n in range(100):
        assert [one.stream for one in vehicle.step(NOW + 200 * n, 0.2) if one.stream != EVENTS] == [TELEMETRY]


def test_an_hour_is_plausible() -> None:
    said = telemetry(drive(Vehicle("V3", seed=1), 3600))
    assert any(one["Vehicle.Speed"] > 30 for one in said)
    for before, after in itertools.pairwise(said):
        moved = abs(after["Vehicle.CurrentLocation.Latitude"] - before["Vehicle.CurrentLocation.Latitude"])
        assert moved < 0.001, "a hundred metres in a second"
        assert after["Vehicle.TraveledDistance"] >= before["Vehicle.TraveledDistance"]


@pytest.mark.parametrize("name", ["", "a/b", "+", "a#", "a\0"])
def test_a_name_that_is_no_level_of_a_topic(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a vehicle: it is a level of an MQTT topic"):
        Vehicle(name)


def test_a_period_or_step_that_makes_no_sense() -> None:
    for period in (0, 0.0001, 1e6, float("nan")):
        with pytest.raises(ConfigError, match="vehicle V7: period .*: give seconds between two messages"):
            Vehicle("V7", period=period)
    with pytest.raises(ConfigError, match="vehicle V7: start inf: give metres along the route"):
        Vehicle("V7", start=float("inf"))
    for seconds in (0, -1, 1e9, float("nan")):
        with pytest.raises(ValueError, match="a step of"):
            Vehicle("V7").step(NOW, seconds)

"""Whatever is driven where, vehicles stay possible: numbers, places, energy, and every byte the same again."""

import json
import math
import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_simulator.vehicles import PROFILES, TELEMETRY, Drive, Profile, Route, Vehicle
from fleet_simulator.vehicles.electric import Battery

NOW = 1_700_000_000_000
EXAMPLES = 2_000 if os.environ.get("WAYBILL_LONG") else 60

profiles = st.sampled_from(list(PROFILES.values()))
traces = st.lists(st.floats(0, 70), min_size=1, max_size=60).map(lambda speeds: Drive("drawn", tuple(speeds)))
steps = st.lists(st.floats(0.01, 90), min_size=1, max_size=12)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    """Draw a polyline anywhere but at the poles, with legs of 200 m and more and hills of up to 20 %."""
    latitude, longitude = draw(st.floats(-80, 80)), draw(st.floats(-180, 180))
    points = [(latitude, longitude, 100.0)]
    for _ in range(draw(st.integers(1, 6))):
        north = draw(st.floats(0.002, 0.02)) * draw(st.sampled_from((-1, 1)))
        latitude, longitude = latitude + north, longitude + draw(st.floats(-0.02, 0.02))
        points.append(
            (latitude, (longitude + 180) % 360 - 180, points[-1][2] + abs(north) * draw(st.floats(-2e4, 2e4)))
        )
    return Route(points, closed=False)


def driven(vehicle: Vehicle, lengths: list[float]) -> list[dict[str, Any]]:
    said, now = [], NOW
    for seconds in lengths:
        now += int(1000 * seconds)
        said += vehicle.step(now, seconds)
        assert vehicle.speed >= 0
        said.append(vehicle.command(f"c{now}", b'{"command":"diagnostics"}', now))
    return [json.loads(one.payload) for one in said]


@settings(max_examples=EXAMPLES, deadline=None)
@given(profiles, st.integers(), traces, routes(), steps, st.floats(-1e6, 1e6), st.floats(0.1, 100))
def test_whatever_is_driven(
    profile: Profile, seed: int, trace: Drive, route: Route, lengths: list[float], start: float, period: float
) -> None:
    def vehicle() -> Vehicle:
        return Vehicle("V1", profile, seed, cycle=trace, route=route, start=start, period=period)

    one = vehicle()
    said = driven(one, lengths)
    assert said == driven(vehicle(), lengths)
    seqs: dict[str, int] = {}
    for message in said:
        stream = message["stream"]
        assert message["seq"] == seqs.get(stream, 0) + 1
        seqs[stream] = message["seq"]
        for value in message.values():
            assert not isinstance(value, float) or math.isfinite(value)
    assert abs(seqs.get(TELEMETRY, 0) - sum(lengths) / period) <= 1
    assert 0 <= one.travelled <= profile.top_speed * sum(lengths) * (1 + 1e-9)
    assert 0 <= one.speed <= profile.top_speed * (1 + 1e-9)
    assert 0 <= one.metre <= route.length * (1 + 1e-9)
    assert -180 <= one.longitude <= 180
    if one.power is not None:
        assert 0 <= one.power.level <= 100


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.floats(0.05, 1.0), st.sampled_from(["car", "van"]))
def test_whatever_the_step_a_vehicle_comes_to_rest_and_charges_or_fills(dt: float, name: str) -> None:
    stop = Drive("stop", (*([12.0] * 20), *([0.0] * 20)))
    vehicle = Vehicle("V1", PROFILES[name], cycle=stop, start=0)
    assert vehicle.power is not None
    if isinstance(vehicle.power, Battery):
        vehicle.power.stored = 0.15 * vehicle.power.energy
    else:
        vehicle.power.litres = 6.0
    for n in range(int(90 / dt)):
        vehicle.step(NOW + int(1000 * dt * n), dt)
        if vehicle.power.filling:
            break
    assert vehicle.power.filling
    assert vehicle.speed == 0


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.sampled_from(["car", "bus", "scooter"]), st.integers(0, 99), traces, routes(), st.integers(1, 600))
def test_energy_comes_from_the_charger_alone(name: str, seed: int, trace: Drive, route: Route, seconds: int) -> None:
    """Stored energy, height and motion together never grow while nothing is charged."""
    profile = PROFILES[name]
    vehicle = Vehicle("V1", profile, seed, cycle=trace, route=route)
    battery = vehicle.power
    assert isinstance(battery, Battery)

    def energy() -> float:
        moving = 0.5 * 1.05 * profile.mass * vehicle.speed**2  # with what turns
        return battery.stored + profile.mass * 9.81 * vehicle.altitude + moving

    before = energy()
    for n in range(seconds):
        vehicle.step(NOW + 1000 * n, 1.0)
        after = energy()
        if battery.filling:
            break
        # a leg's end in the middle of a second: its grade is counted for the whole of it
        assert after <= before + profile.mass * 9.81 * 0.45 * vehicle.speed, n
        before = after


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=20).map(json.dumps))
def test_any_payload_of_a_command_is_answered(payload: bytes | str) -> None:
    vehicle = Vehicle("V1")
    body = payload if isinstance(payload, bytes) else payload.encode(errors="replace")
    reply = json.loads(vehicle.command("c1", body, NOW).payload)
    assert (reply["ok"], reply["id"], reply["seq"]) == (False, "c1", 1)
    assert reply["error"]

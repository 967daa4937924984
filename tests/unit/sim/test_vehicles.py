"""Simulated vehicles are reproducible and say possible things."""

import itertools

import msgspec

from fleet_simulator.vehicles import Telemetry, Vehicle

PINNED = (
    b'{"vehicle":"V7","seq":1,"ts":1700000000000,"speed":10.39,"rpm":2852,"lat":41.911381,"lon":-87.62034,"soc":59.38}'
)


def drive(vehicle: str, seed: int, steps: int) -> list[Telemetry]:
    one = Vehicle(vehicle, seed)
    return [one.step(1_700_000_000_000 + 1000 * n) for n in range(steps)]


def test_the_same_seed_says_the_same() -> None:
    assert drive("V1", 7, 300) == drive("V1", 7, 300)
    assert drive("V1", 7, 300) != drive("V1", 8, 300)
    assert [t.speed for t in drive("V1", 7, 300)] != [t.speed for t in drive("V2", 7, 300)]


def test_the_first_message_is_what_it_was_in_every_release() -> None:
    # Pinned: a recorded run can be made again with a later release, another Python, another machine.
    assert msgspec.json.encode(drive("V7", 1, 1)[0]) == PINNED


def test_an_hour_is_plausible() -> None:
    said = drive("V3", 1, 3600)
    assert [t.seq for t in said] == list(range(1, 3601))
    assert any(t.speed > 5 for t in said)
    assert said[-1].soc < said[0].soc
    for before, after in itertools.pairwise(said):
        moved = abs(after.lat - before.lat) + abs(after.lon - before.lon)
        assert moved < 0.001, "a hundred metres in a second"
        assert 0 <= after.soc <= 100
        assert (after.rpm == 0) is (after.speed == 0) or after.speed < 0.01

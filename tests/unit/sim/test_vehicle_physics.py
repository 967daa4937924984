"""What vehicles do is possible: energy, power, braking, gears and temperatures of the size that real ones have."""

import dataclasses
from collections.abc import Iterator
from itertools import pairwise

import pytest

from fleet_simulator.vehicles import PROFILES, Drive, Route, Vehicle
from fleet_simulator.vehicles.combustion import LITRE, Engine
from fleet_simulator.vehicles.cycles import named, names
from fleet_simulator.vehicles.electric import Battery
from fleet_simulator.vehicles.profiles import Combustion, Electric, Profile

NOW = 1_700_000_000_000
FLAT = Route([(48.0, 9.0), (48.02, 9.0), (48.02, 9.02), (48.0, 9.02)])
HILLS = Route([(48.0, 9.0, 200), (48.02, 9.0, 300), (48.02, 9.02, 250), (48.0, 9.02, 320)])


def seconds(vehicle: Vehicle, count: int) -> Iterator[Vehicle]:
    for n in range(1, count + 1):
        vehicle.step(NOW + 1000 * n, 1.0)
        yield vehicle


def calm(profile: str | Profile, cycle: str | Drive, route: Route = FLAT, *, level: float = 70.0) -> Vehicle:
    """Make a vehicle that begins at standstill at the start of cycle and route, with so much energy."""
    kind = PROFILES[profile] if isinstance(profile, str) else profile
    drive = named(cycle) if isinstance(cycle, str) else cycle
    vehicle = Vehicle("V1", kind, 1, cycle=drive, route=route, start=0)
    vehicle._at, vehicle._pace = 0.0, 1.0
    vehicle._chance = lambda: 0.5  # nothing breaks and nobody is scared
    vehicle.power = type(vehicle.power)(kind.power, kind.wheel, level, 15.0)  # type: ignore[arg-type,misc]
    return vehicle


def battery(vehicle: Vehicle) -> Battery:
    assert isinstance(vehicle.power, Battery)
    return vehicle.power


def engine(vehicle: Vehicle) -> Engine:
    assert isinstance(vehicle.power, Engine)
    return vehicle.power


def hold(kmh: float, count: int = 3600) -> Drive:
    return Drive("held", tuple([kmh / 3.6] * count))


@pytest.mark.parametrize(
    ("profile", "cycle", "least", "most"),
    [
        ("car", "urban", 80, 140),
        ("car", "commute", 110, 190),
        ("car", "wltc_3b", 110, 180),
        ("car", "udds", 90, 150),
        ("car", "hwfet", 110, 170),
        ("car", "highway", 160, 260),
        ("bus", "bus-stops", 700, 1500),
        ("scooter", "urban", 18, 45),
    ],
)
def test_watt_hours_a_kilometre(profile: str, cycle: str, least: float, most: float) -> None:
    vehicle = calm(profile, cycle, level=95)
    before = battery(vehicle).stored
    for _ in seconds(vehicle, 1800):
        pass
    used = (before - battery(vehicle).stored) / 3600 / (vehicle.travelled / 1000)
    assert least < used < most


@pytest.mark.parametrize(
    ("profile", "cycle", "least", "most"),
    [("van", "delivery", 8, 16), ("van", "highway", 8, 14), ("van", "commute", 6, 12), ("truck", "long-haul", 22, 40)],
)
def test_litres_a_hundred_kilometres(profile: str, cycle: str, least: float, most: float) -> None:
    vehicle = calm(profile, cycle)
    before = engine(vehicle).litres
    for _ in seconds(vehicle, 3600):
        pass
    used = engine(vehicle).used
    assert before - used == pytest.approx(engine(vehicle).litres)
    assert least < 100_000 * used / vehicle.travelled < most


@pytest.mark.parametrize("profile", ["car", "bus", "scooter"])
@pytest.mark.parametrize("route", [FLAT, HILLS], ids=["flat", "hills"])
def test_no_round_gains_energy(profile: str, route: Route) -> None:
    """After whole laps height and, at standstill, speed are what they were: what is missing went into the road."""
    kind = dataclasses.replace(PROFILES[profile], auxiliary=0.0)
    vehicle = calm(kind, "urban", route, level=95)
    before, lap, used = battery(vehicle).stored, 0, []
    for _ in seconds(vehicle, 3 * int(route.lap / 6)):
        if vehicle.lap > lap and vehicle.speed == 0:
            lap = vehicle.lap
            used.append(before - battery(vehicle).stored)
            before = battery(vehicle).stored
    assert used
    rolling = kind.mass * 9.81 * kind.rolling * route.lap
    assert all(one > 0.7 * rolling for one in used)


def test_the_battery_pays_for_height_and_gets_part_of_it_back() -> None:
    up = Route([(48.0, 9.0, 0), (48.02, 9.0, 150)], closed=False)
    vehicle = calm(dataclasses.replace(PROFILES["car"], auxiliary=0.0), hold(50), up)
    start = battery(vehicle).stored
    while vehicle.travelled < up.length:
        vehicle.step(NOW, 1.0)
    top = battery(vehicle).stored
    while vehicle.travelled < up.lap:
        vehicle.step(NOW, 1.0)
    lifted = PROFILES["car"].mass * 9.81 * 150
    assert start - top > lifted
    assert 0 < battery(vehicle).stored - top < lifted


def test_braking_regenerates_up_to_what_the_motor_takes() -> None:
    kind = PROFILES["car"]
    assert isinstance(kind.power, Electric)
    shares = []
    for down in (0.6, 3.0, 8.0):
        falling = (max(30.0 - down * n, 0.0) for n in range(100))
        vehicle = calm(kind, Drive("stop", (*([30.0] * 40), *falling)))
        for _ in seconds(vehicle, 40):
            pass
        before, moving = battery(vehicle).stored, kind.mass * vehicle.speed**2 / 2
        while vehicle.speed > 0:
            vehicle.step(NOW, 1.0)
            assert battery(vehicle).battery_power <= kind.power.regeneration
        shares.append((battery(vehicle).stored - before) / moving)
    # The harder, the more goes into the friction brake; the gentler, the more into the air.
    assert 0.4 < shares[0] < 0.9
    assert 0.4 < shares[1] < 0.9
    assert 0.05 < shares[2] < 0.35


def test_a_battery_is_not_filled_beyond_its_capacity() -> None:
    vehicle = calm("car", Drive("stop", (0.0, 0.0)), level=99.999)
    vehicle._parked = False
    vehicle.speed = 30.0
    for _ in seconds(vehicle, 10):
        assert battery(vehicle).stored <= battery(vehicle).energy
        assert battery(vehicle).level <= 100
    assert vehicle.speed == 0
    assert battery(vehicle).level > 99.99


def test_a_stop_is_a_stop_whatever_the_step() -> None:
    for thousandth in range(100, 1000):
        vehicle = calm("car", Drive("stop", (0.0, 0.0)))
        vehicle._parked = False
        vehicle.speed = 0.1
        vehicle.step(NOW, thousandth / 1000)
        assert vehicle.speed == 0


@pytest.mark.parametrize("profile", [one for one in PROFILES.values() if one.power], ids=lambda one: one.name)
def test_top_speed_and_pull(profile: Profile) -> None:
    vehicle = calm(profile, hold(300))
    speeds = [0.0, *(one.speed for one in seconds(vehicle, 400))]
    assert speeds[-1] == pytest.approx(profile.top_speed, rel=0.03)
    assert max(speeds) <= profile.top_speed * 1.0001
    assert max(after - before for before, after in pairwise(speeds)) <= profile.pull * 1.0001
    assert all(after >= before - 1e-9 for before, after in pairwise(speeds))


@pytest.mark.parametrize("profile", ["car", "van", "truck", "bus", "scooter"])
def test_power_is_what_the_motor_has(profile: str) -> None:
    """Kinetic energy grows by no more than power times time."""
    kind = PROFILES[profile]
    assert kind.power is not None
    vehicle = calm(kind, hold(200))
    before = 0.0
    for _ in seconds(vehicle, 120):
        after = kind.mass * vehicle.speed**2 / 2
        assert after - before <= kind.power.power * 1.0001
        before = after


def test_a_truck_slows_down_uphill() -> None:
    steep = Route([(48.0, 9.0, 0), (48.05, 9.0, 400)], closed=False)  # 7 %
    vehicle = calm("truck", hold(85), steep)
    while vehicle.travelled < steep.length - 100:
        vehicle.step(NOW, 1.0)
    assert 25 < 3.6 * vehicle.speed < 60
    assert engine(vehicle).gear < 12


@pytest.mark.parametrize("profile", ["van", "truck"])
def test_gears(profile: str) -> None:
    kind = PROFILES[profile].power
    assert isinstance(kind, Combustion)
    vehicle = calm(profile, "commute" if profile == "van" else "long-haul")
    used, shifts, last = set(), 0, 0
    for _ in seconds(vehicle, 1800):
        now = engine(vehicle)
        used.add(now.gear)
        shifts += now.gear != last
        last = now.gear
        assert kind.idle <= now.rpm <= kind.most
        assert (now.gear == 0) is (vehicle.speed == 0)
    assert used == set(range(len(kind.gears) + 1))
    assert shifts < 700, "a gearbox that hunts"


def test_a_held_speed_holds_its_gear() -> None:
    for kmh in range(8, 86, 3):
        vehicle = calm("truck", hold(kmh))
        gears = [engine(one).gear for one in seconds(vehicle, 180)][150:]
        assert len(set(gears)) == 1, f"{kmh} km/h"


def test_slowing_down_shifts_down() -> None:
    vehicle = calm("truck", Drive("slower", (*([22.0] * 300), *([8.0] * 60))))
    gears = [engine(one).gear for one in seconds(vehicle, 350)]
    assert gears[290] == 12
    assert 1 < gears[-1] < 10


def test_gears_that_are_far_apart_do_not_hunt() -> None:
    kind = PROFILES["van"]
    assert isinstance(kind.power, Combustion)
    wide = dataclasses.replace(kind, power=dataclasses.replace(kind.power, gears=(16.0, 5.0, 1.6)))
    for kmh in range(8, 100, 3):
        vehicle = calm(wide, hold(kmh))
        gears = [engine(one).gear for one in seconds(vehicle, 100)][80:]
        assert len(set(gears)) == 1, f"{kmh} km/h"


def test_an_engine_idles_on_fuel_and_brakes_without() -> None:
    standing = calm("van", hold(0))
    standing._parked = False
    for _ in seconds(standing, 3600):
        pass
    assert 0.3 < engine(standing).used < 1.5, "litres in an hour"
    rolling = calm("van", Drive("stop", (*([20.0] * 60), *([0.0] * 30))))
    for _ in seconds(rolling, 58):
        pass
    before = engine(rolling).used
    rolling.step(NOW, 1.0)
    assert engine(rolling).used > before
    before = engine(rolling).used
    rolling.step(NOW, 1.0)
    assert 0 < rolling.speed < 18
    assert engine(rolling).used == before


def test_fuel_holds_the_energy_that_was_needed() -> None:
    vehicle = calm("truck", hold(80))
    for _ in seconds(vehicle, 3600):
        pass
    kind = PROFILES["truck"]
    needed = (kind.mass * 9.81 * kind.rolling + 0.6 * kind.drag_area * 22**2) * vehicle.travelled
    assert 0.3 < needed / (engine(vehicle).used * LITRE) < 0.45


def test_temperatures() -> None:
    van = calm("van", "commute")
    for _ in seconds(van, 900):
        pass
    assert 70 < engine(van).coolant_temperature < 105
    for _ in seconds(van, 7200):
        assert engine(van).coolant_temperature < 105
    assert not van.codes
    car = calm("car", "highway", level=95)
    for _ in seconds(car, 3000):
        pass
    assert car.ambient + 2 < battery(car).battery_temperature < 45
    assert car.ambient + 5 < battery(car).motor_temperature < 120


def test_what_is_too_hot_says_so() -> None:
    van = calm("van", "urban")
    engine(van).coolant_temperature = 130.0
    van.step(NOW, 2.0)
    assert van.codes == ["P0217"]
    car = calm("car", "urban")
    battery(car).battery_temperature = 70.0
    car.step(NOW, 2.0)
    assert car.codes == ["P0A7E"]


@pytest.mark.parametrize("name", names())
def test_cycles(name: str) -> None:
    speeds = named(name).speeds
    assert len(speeds) >= 60
    assert all(0 <= speed < 40 for speed in speeds)
    if name in ("urban", "highway", "commute", "delivery", "bus-stops", "long-haul"):
        assert speeds[0] == 0
        assert max(abs(after - before) for before, after in pairwise(speeds)) < 1.5
    assert any(speeds) is (name != "parked")

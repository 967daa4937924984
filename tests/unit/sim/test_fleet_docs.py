"""What docs/fleet.md says of vehicles is what they are."""

import re
from pathlib import Path

import pytest

from fleet_simulator.vehicles import PROFILES, Profile, Vehicle
from fleet_simulator.vehicles.cycles import named, names
from fleet_simulator.vehicles.electric import Battery
from fleet_simulator.vehicles.profiles import Combustion, Electric
from fleet_simulator.vehicles.route import made_up

TEXT = (
    (Path(__file__).parents[3] / "docs" / "fleet.md").read_text().partition("\n## Vehicles\n")[2].partition("\n## ")[0]
)
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| `")]


def test_every_signal_is_there_with_its_unit_and_who_says_it() -> None:
    told = {row[0].strip("`"): (row[1], row[2].partition(";")[0]) for row in ROWS if row[0].startswith("`Vehicle.")}
    said: dict[str, tuple[str, list[str]]] = {}
    for profile in PROFILES.values():
        if profile.name != "sensor":
            for one in profile.says:
                said.setdefault(one.name, (one.unit, []))[1].append(profile.name)
    everybody = [name for name in PROFILES if name != "sensor"]
    assert told == {
        name: (unit, "all but the sensor" if who == everybody else ", ".join(who)) for name, (unit, who) in said.items()
    }


def test_every_command_is_there() -> None:
    told = set(re.findall(r'`\{"command":"([a-z-]+)"', TEXT))
    assert told == {command for profile in PROFILES.values() for command in profile.commands}


def test_every_cycle_is_there_as_it_is() -> None:
    rows = {row[0].strip("`"): row[1:5] for row in ROWS if len(row) == 6}
    for name in names():
        speeds = named(name).speeds
        metres = sum(speeds)
        if name in rows:
            mean, top = 3.6 * metres / len(speeds), 3.6 * max(speeds)
            assert rows[name] == [f"{len(speeds)}", f"{metres / 1000:.1f}", f"{mean:.0f}", f"{top:.0f}"]
        else:
            assert f"`{name}`" in TEXT or re.match(r"\d{7}_1_2007", name)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda one: one.name)
def test_every_profile_is_there_as_it_is(profile: Profile) -> None:
    (row,) = (row for row in ROWS if row[0] == f"`{profile.name}`" and len(row) == 5)
    if profile.power is not None:
        assert f"{profile.mass:,.0f} kg" in row[1]
        assert f"{profile.power.power / 1000:g} kW" in row[1]
    if isinstance(profile.power, Electric):
        assert row[2] == f"{profile.power.capacity:g} kWh, charges with {profile.power.charger / 1000:g} kW"
    if isinstance(profile.power, Combustion):
        assert f"{len(profile.power.gears)} gears" in row[1]
        assert row[2] == f"{profile.power.tank:g} l"
    assert row[3] == f"{profile.period:g} s"
    said = Vehicle("V1", profile).step(1_700_000_000_000, 300)[-1]
    about = int(re.sub(r"\D", "", row[4].partition(":")[0]))
    assert len(said.payload) == pytest.approx(about, rel=0.05)


@pytest.mark.parametrize("row", [row for row in ROWS if len(row) == 4], ids=lambda row: "-".join(row[:2]))
def test_what_is_used_is_what_a_drive_of_two_hours_uses(row: list[str]) -> None:
    profile, cycle = PROFILES[row[0].strip("`")], named(row[1].strip("`"))
    vehicle = Vehicle("V1", profile, 1, cycle=cycle, route=made_up(3))
    power = vehicle.power
    assert power is not None
    used = 0.0
    for second in range(7200):
        before = power.stored if isinstance(power, Battery) else power.litres
        vehicle.step(1_700_000_000_000 + 1000 * second, 1.0)
        if not power.filling:
            used += before - (power.stored if isinstance(power, Battery) else power.litres)
    a_km = used / vehicle.travelled * 1000
    told, unit = row[2].split(" ", 1)
    if isinstance(power, Battery):
        assert unit == "kWh/100 km"
        assert 100 * a_km / 3.6e6 == pytest.approx(float(told), rel=0.02)
        far = power.energy / a_km
    else:
        assert isinstance(profile.power, Combustion)
        assert unit == "l/100 km"
        assert 100 * a_km == pytest.approx(float(told), rel=0.02)
        far = profile.power.tank / a_km
    assert far == pytest.approx(float(row[3].removesuffix(" km").replace(",", "")), rel=0.02)

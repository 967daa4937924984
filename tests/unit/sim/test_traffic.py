"""Vehicles in the scenario's time: what they drive where, and what they do when their queue is full."""

from pathlib import Path

from fleet_simulator.devices import Broker
from fleet_simulator.ledger import Ledger
from fleet_simulator.run.traffic import Traffic
from fleet_simulator.scenarios import parse

SCENARIO = """
[[gateway]]
name = "g"
[[vehicle]]
name = "v"
gateway = "g"
interval = 1
queue = 5
window = 5
"""


async def test_a_vehicle_without_room_drives_on_in_silence_and_makes_up_for_nothing(tmp_path: Path) -> None:
    scenario = parse(SCENARIO, "x.toml", "x")
    with Ledger(tmp_path / "ledger") as ledger:
        placed = [("v-1", scenario.vehicle[0], "g-1", Broker("127.0.0.1", 1))]
        traffic = Traffic(scenario, placed, ledger, on_zone=lambda _: None, commands=False)
        car = traffic.cars["v-1"]
        travelled = [0.0]
        for second in range(1, 601):
            traffic._speak(float(second), float(second), 1000.0)
            travelled.append(car.vehicle.travelled)
        assert car.client.waiting <= 6  # an event may come with the last one
        assert car.silent >= 590
        assert travelled[600] > travelled[300] > travelled[10], "it stands where its queue became full"
        car.client._waiting.clear()
        before = traffic.published
        traffic._speak(601.0, 601.0, 1000.0)
        assert 1 <= traffic.published - before <= 2


async def test_vehicles_drive_the_cycle_and_route_of_their_table(tmp_path: Path) -> None:
    more = 'count = 2\ncycle = "bus-stops"\nroute = [[48.1, 11.5], [48.14, 11.5]]\nclosed = false\n'
    scenario = parse(SCENARIO + more, "x.toml", "x")
    with Ledger(tmp_path / "ledger") as ledger:
        placed = [(f"v-{n}", scenario.vehicle[0], "g-1", Broker("127.0.0.1", 1)) for n in (1, 2)]
        traffic = Traffic(scenario, placed, ledger, on_zone=lambda _: None, commands=False)
        one, two = (traffic.cars[f"v-{n}"].vehicle for n in (1, 2))
    assert one.cycle.name == two.cycle.name == "bus-stops"
    assert one.route is two.route
    assert (one.route.length, one.route.lap) == (two.route.lap / 2, two.route.lap)
    assert 48.1 <= one.latitude <= 48.14
    assert one.longitude == 11.5

"""Routes: lengths on the ellipsoid, headings, laps, and what an error says."""

import math
from itertools import pairwise

import pytest

from fleet_simulator.vehicles import Route
from fleet_simulator.vehicles.route import MADE, made_up
from waybill.errors import ConfigError

SQUARE = [(48.0, 9.0), (48.01, 9.0), (48.01, 9.01), (48.0, 9.01)]


def metres(here: tuple[float, ...], there: tuple[float, ...]) -> float:
    """Give the distance by the haversine, on a sphere, which is right to half a percent."""
    north = math.radians(there[0] - here[0])
    east = math.radians(there[1] - here[1])
    part = math.sin(north / 2) ** 2 + (
        math.cos(math.radians(here[0])) * math.cos(math.radians(there[0])) * math.sin(east / 2) ** 2
    )
    return 2 * 6_371_000 * math.asin(math.sqrt(part))


def test_lengths_are_those_of_the_ellipsoid() -> None:
    # WGS 84: a degree of latitude about 0° is 110,574 m, about 45° 111,132 m; one of longitude at 0° 111,320 m.
    assert Route([(-0.005, 0), (0.005, 0)], closed=False).length == pytest.approx(1105.74, abs=0.02)
    assert Route([(44.995, 7), (45.005, 7)], closed=False).length == pytest.approx(1111.32, abs=0.02)
    assert Route([(0, 0), (0, 0.01)], closed=False).length == pytest.approx(1113.20, abs=0.02)


def test_a_closed_route_is_driven_round() -> None:
    route = Route(SQUARE)
    assert route.length == route.lap == pytest.approx(2 * 1112 + 2 * 745, rel=0.01)
    headings = [route.at(route.lap * share)[3] for share in (0.1, 0.4, 0.7, 0.9)]
    assert headings == pytest.approx([0, 90, 180, 270], abs=0.01)
    for laps in (0, 1, 7):
        assert route.at(laps * route.lap)[:2] == pytest.approx((48.0, 9.0), abs=1e-9)
    assert route.metre(3 * route.lap + 500) == pytest.approx(500)


def test_an_open_route_is_driven_there_and_back() -> None:
    route = Route([(48.0, 9.0, 100), (48.01, 9.0, 120)], closed=False)
    assert route.lap == 2 * route.length
    assert route.at(route.length)[0] == pytest.approx(48.01)
    assert route.at(route.lap - 1e-6)[0] == pytest.approx(48.0)
    assert route.at(300)[:3] == pytest.approx(route.at(route.lap - 300)[:3])
    assert (route.at(300)[3], route.at(route.lap - 300)[3]) == (0, 180)
    assert route.grade(300) == -route.grade(route.lap - 300) == pytest.approx(20 / route.length)
    # A tunnel lies at the same metres in both directions.
    assert route.metre(300) == pytest.approx(route.metre(route.lap - 300))


def test_going_on_by_a_metre_is_a_metre_on_the_ground() -> None:
    for route in (*map(made_up, range(MADE)), Route(SQUARE), Route([(-18, 179.99), (-18.01, -179.99)], closed=False)):
        step = route.lap / 500
        places = [route.at(n * step) for n in range(501)]
        for here, there in pairwise(places):
            assert metres(here, there) <= 1.006 * step
        assert sum(metres(here, there) for here, there in pairwise(places)) == pytest.approx(route.lap, rel=0.01)
        assert all(-180 <= place[1] <= 180 and 0 <= place[3] <= 360 for place in places)


def test_made_up_routes_are_of_a_size_to_drive() -> None:
    assert len({made_up(n).length for n in range(MADE)}) == MADE
    for n in range(MADE):
        route = made_up(n)
        assert 10_000 < route.length < 50_000
        assert all(abs(route.grade(metre)) < 0.06 for metre in range(0, int(route.length), 100))
        assert made_up(n + MADE).length == route.length


def test_points_that_are_there_twice_do_no_harm() -> None:
    assert Route([SQUARE[0], *SQUARE, SQUARE[-1], SQUARE[0]]).length == Route(SQUARE).length


def test_the_end_of_a_lap_is_its_beginning() -> None:
    route = Route(SQUARE)
    for near in (-1e-12, route.lap, math.nextafter(route.lap, 0)):
        assert route.at(near)[:2] == pytest.approx((48.0, 9.0), abs=1e-6)
        route.grade(near)


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ([], "it is 0 m long; give two points or more, 100 m apart"),
        ([(48.0, 9.0)], "it is 0 m long"),
        ([(48.0, 9.0), (48.0, 9.0)], "it is 0 m long"),
        ([(48.0, 9.0), (48.0001, 9.0)], "it is 22 m long"),
        ([(9.0, 48.0), (9.0, 148.0), (9.0, 248.0)], r"point 3 is \(9.0, 248.0\): write latitude .* longitude"),
        ([(90, 0), (80, 0)], r"point 1 is \(90, 0\)"),
        ([(48.0,), (48.1,)], r"point 1 is \(48.0,\)"),
        ([(48.0, 9.0), (48.1, 9.0, 1, 1)], r"point 2 is \(48.1, 9.0, 1, 1\)"),
        ([(), ()], r"point 1 is \(\)"),
        ([(math.nan, 0), (80, 0)], r"point 1 is \(nan, 0\)"),
        ([(48.0, 9.0, 0), (48.001, 9.0, 100)], "100 m up in 111 m after point 1 is steeper than 30%: mend the alt"),
        ([(48.0, 9.0)] * 100_001, "100001 points are too many"),
    ],
)
def test_what_is_wrong_names_the_point(points: list[tuple[float, ...]], told: str) -> None:
    with pytest.raises(ConfigError, match=f"route: {told}"):
        Route(points)

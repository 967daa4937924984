"""Replay: what a file becomes, what is refused before anything is sent, and how it ends."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet_simulator.devices import Broker
from fleet_simulator.ledger import ACKED, PUBLISHED, Ledger, read
from fleet_simulator.replay import Replay, check, messages, run
from fleet_simulator.vehicles.drives import trips
from tests.unit.sim.peer import Peer
from waybill.errors import ConfigError

TRIP = "time,speed,note\n10,1.50,a\n11,2,\n15,3e0,\n"


@pytest.fixture
def trip(tmp_path: Path) -> Path:
    path = tmp_path / "V1.csv"
    path.write_text(TRIP)
    return path


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    one = Peer()
    await one.start()
    yield one
    await one.stop()


def test_rows_become_messages(trip: Path) -> None:
    said = list(messages(Replay((trip,), time_column="time"), trip))
    assert [m.at for m in said] == [0, 1, 5]
    assert [m.payload for m in said] == [
        b'{"time":10,"speed":1.50,"note":"a","vehicle":"V1","seq":1}',
        b'{"time":11,"speed":2,"note":null,"vehicle":"V1","seq":2}',
        b'{"time":15,"speed":3e0,"note":null,"vehicle":"V1","seq":3}',
    ]


def test_columns_and_ids_from_a_column(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text("vehicle,speed\nA,1\nB,2\nA,3\n")
    plan = Replay((path,), None, id_from="vehicle", columns=("speed",))
    assert [(m.vehicle, m.seq, m.payload) for m in messages(plan, path)] == [
        ("A", 1, b'{"speed":1,"vehicle":"A","seq":1}'),
        ("B", 1, b'{"speed":2,"vehicle":"B","seq":1}'),
        ("A", 2, b'{"speed":3,"vehicle":"A","seq":2}'),
    ]
    assert check(plan).vehicles == {"A": 2, "B": 1}


def test_the_recorded_trips_are_right(tmp_path: Path) -> None:
    for trip in trips():
        (tmp_path / trip.name).write_bytes(trip.read_bytes())
    checked = check(Replay(tuple(sorted(tmp_path.iterdir()))))
    assert sum(checked.vehicles.values()) == 18_559
    assert len(checked.vehicles) == 6


@pytest.mark.parametrize(
    ("content", "change", "told"),
    [
        ("a,b\n1,2\n", {}, r"V1\.csv:1: none of the columns a, b is known as the time: name it with --time-column"),
        ("a,b\n1,2\n", {"time_column": "c"}, r"V1\.csv:1: no column 'c' for --time-column; there are: a, b"),
        ("a,b\n1,2\n", {"columns": ("a", "x")}, r"V1\.csv:1: no column 'x' for --columns; there are: a, b"),
        ("a,b\n1,2\n", {"speed": None, "id_from": "x"}, r"V1\.csv:1: no column 'x' for --id-from"),
        ("timestamp\n5\n4\n", {}, r"V1\.csv:3: timestamp goes back from 5 to 4: sort the rows"),
        ("timestamp\nx\n", {}, r"V1\.csv:2: timestamp is 'x', neither seconds nor a date"),
        ("seq,a\n1,2\n", {"speed": None}, r"V1\.csv:1: a column is named 'seq', .* leave it out with --columns a"),
        ("vehicle,a\n1,2\n", {"speed": None}, r"or take the id from it with --id-from vehicle"),
        ("i,a\nx/y,2\n", {"speed": None, "id_from": "i"}, r"V1\.csv:2: 'x/y' cannot name a vehicle"),
        ("i,a\n,2\n", {"speed": None, "id_from": "i"}, r"V1\.csv:2: '' cannot name a vehicle"),
        ("a\n", {"speed": None}, r"V1\.csv: there is no row below the column names"),
        ("a\n1\n", {"topic": "same/for/all"}, r"topic 'same/for/all': write \{vehicle\}"),
        ("a\n1\n", {"topic": "{vehicle}/#"}, r"no wildcard"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(
    trip: Path, content: str, change: dict[str, object], told: str
) -> None:
    trip.write_text(content)
    with pytest.raises(ConfigError, match=told):
        check(replace(Replay((trip,)), **change))  # type: ignore[arg-type]


def test_a_file_that_is_named_twice_is_refused(trip: Path) -> None:
    """Its vehicle would have every seq twice, and the replay would never be complete."""
    with pytest.raises(ConfigError, match=r"V1\.csv is named twice: name it once"):
        check(Replay((trip, trip.parent / ".." / trip.parent.name / trip.name), speed=None))


def test_one_vehicle_in_two_files_has_no_order(trip: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "V1.csv"
    other.write_text(TRIP)
    with pytest.raises(ConfigError, match=r"b/V1\.csv: vehicle 'V1' is in .* too"):
        check(Replay((trip, other), None))


async def test_sends_each_row_once_and_notes_what_was_acknowledged(trip: Path, tmp_path: Path, peer: Peer) -> None:
    checked = check(Replay((trip,), None))
    with Ledger(tmp_path / "noted") as ledger:
        done = await run(checked, Broker(*peer.address[:2]), ledger=ledger)
    assert done.complete
    assert [(p.topic, p.payload) for p in peer.publishes()] == [
        ("vehicles/V1/telemetry", m.payload) for m in messages(checked.replay, trip)
    ]
    noted = [
        (tag, number)
        for block in read(tmp_path / "noted")
        for tag, count, first, _ in block.spans()
        for number in range(first, first + count)
    ]
    assert sorted(noted) == [(kind, number) for kind in (PUBLISHED, ACKED) for number in (1, 2, 3)]


async def test_keeps_the_pace_of_the_recording(trip: Path, peer: Peer) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    done = await run(check(Replay((trip,), 10.0, time_column="time")), Broker(*peer.address[:2]))
    assert done.complete
    assert loop.time() - start >= 0.5, "five seconds, ten times as fast"


async def test_gives_up_when_nothing_is_acknowledged(trip: Path, peer: Peer) -> None:
    peer.acks = False
    done = await run(check(Replay((trip,), None)), Broker(*peer.address[:2]), patience=2.0)
    assert (done.complete, done.acked, done.published) == (False, 0, 3)


async def test_gives_up_when_there_is_no_broker_and_says_so(trip: Path, free_port: int) -> None:
    done = await run(check(Replay((trip,), None)), Broker("127.0.0.1", free_port), patience=2.0)
    assert (done.complete, done.published) == (False, 0)
    assert "refused" in done.why().lower()


async def test_a_pause_in_the_recording_is_not_an_outage(trip: Path, peer: Peer) -> None:
    trip.write_text("timestamp\n0\n4\n")
    done = await run(check(Replay((trip,))), Broker(*peer.address[:2]), patience=3.0)
    assert done.complete

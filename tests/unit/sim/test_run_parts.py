"""Parts of a run: links on which several things are wrong at once, and a Kafka that commands start."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet_simulator.link import Link
from fleet_simulator.network.profiles import PROFILES, Model
from fleet_simulator.processes import until
from fleet_simulator.run.kafka import StartedKafka
from fleet_simulator.run.links import BLACK_HOLE, CUT, HALF_OPEN, NETWORK, Links
from fleet_simulator.scenarios import Kafka
from waybill.errors import Unavailable


@pytest.fixture
async def links() -> AsyncIterator[Links]:
    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    async with Link(server.sockets[0].getsockname(), network=PROFILES["lte"]) as one:
        yield Links({"a": one})
    server.close()


async def test_each_thing_that_is_wrong_ends_by_itself(links: Links) -> None:
    await links.begin("a", "1", CUT)
    await links.begin("a", "2", BLACK_HOLE)
    assert links.state("a") == CUT
    await links.end("a", "1")
    assert links.state("a") == BLACK_HOLE, "the tunnel is still there when the cut is over"
    await links.begin("a", "3", CUT)
    await links.end("a", "2")
    assert links.state("a") == CUT
    await links.end("a", "3")
    await links.end("a", "3")
    assert links.state("a") == ""
    assert links.counts == {(CUT, "a"): 2, (BLACK_HOLE, "a"): 1}


async def test_the_network_of_its_own_comes_back(links: Links) -> None:
    poor = Model(delay_ms=500)
    await links.begin("a", "1", NETWORK, poor)
    await links.begin("a", "2", NETWORK, PROFILES["2g"])
    assert links.links["a"].network is PROFILES["2g"]
    await links.end("a", "2")
    assert links.links["a"].network is poor
    await links.begin("a", "3", BLACK_HOLE)
    await links.end_all()
    assert links.links["a"].network is PROFILES["lte"]
    assert links.state("a") == ""


async def test_half_open_counts_only_where_there_was_a_connection(links: Links) -> None:
    await links.begin("a", "1", HALF_OPEN)
    assert links.counts[HALF_OPEN, "a"] == 0
    _, writer = await asyncio.open_connection(*links.links["a"].address)
    await until("connected", lambda: links.links["a"].connections, 60)
    await links.begin("a", "2", HALF_OPEN)
    assert links.counts[HALF_OPEN, "a"] == 1
    writer.transport.abort()


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, "{directory}", "{node}")


async def test_a_kafka_is_what_its_commands_make_it(tmp_path: Path) -> None:
    note = (
        "import sys, pathlib; pathlib.Path(sys.argv[1]).with_suffix('.' + '%s' + sys.argv[2]).touch(); print('h:1,h:2')"
    )
    start, stop, down, up = (python(note % name) for name in ("start", "stop", "down", "up"))
    kafka = Kafka(start=start, stop=stop, down=down, up=up, nodes=2)
    async with StartedKafka(kafka, tmp_path / "k") as started:
        assert (started.bootstrap, started.nodes) == ("h:1,h:2", 2)
        await started.down(2)
        await started.up(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.down2", "k.start1", "k.stop1", "k.up2"]


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (python("print('no address')"), "it printed no HOST:PORT"),
        (python("raise SystemExit('no room')"), "ended with 1: no room"),
        (("/nowhere/kafka",), "/nowhere/kafka: No such file"),
    ],
)
async def test_a_kafka_that_does_not_start_is_told(tmp_path: Path, start: tuple[str, ...], said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        async with StartedKafka(Kafka(start=start, stop=python("")), tmp_path / "k"):
            pass

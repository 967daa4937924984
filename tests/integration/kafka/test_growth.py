"""More frames partitions while messages flow: every message once and in order, and the audit clean after it (R4)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from cloud_ingest.audit import audit
from cloud_ingest.config import Route, Topics
from cloud_ingest.journal.kafka import KafkaLog
from cloud_ingest.journal.kafka_growth import Count, children, count_key, count_of, counts, handed_over
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.node_frames import Item, NodeFrames
from cloud_ingest.router.routes import Routes
from cloud_ingest.router.state import Limits
from cloud_ingest.router.worker import Router
from tests.support.gateway import Epoch, control, trained
from tests.support.kafka_log import OpenLog
from tests.support.logs import read_to_end
from waybill.errors import ConfigError, Unavailable
from waybill.wire import DICTIONARY_TOPIC

GATEWAYS = [f"gw-{number}" for number in range(12)]
EPOCH = Epoch(1, oldest=1)
SOON = {"metadata.max.age.ms": 500}


@contextlib.asynccontextmanager
async def _routing(log: KafkaLog, unique: str, limits: Limits | None = None) -> AsyncIterator[None]:
    routes = Routes([Route(topic=f"{unique}.fleet")])
    router = Router(log, Topics(prefix=f"{unique}.", partitions=2), routes, limits=limits)
    task = asyncio.create_task(log.own_partitions(router.route))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@contextlib.asynccontextmanager
async def _owning(log: KafkaLog, unique: str, *numbers: int) -> AsyncIterator[Router]:
    """Route these partitions while the context is open; what waits for order there has always waited long enough."""
    routes = Routes([Route(topic=f"{unique}.fleet")])
    router = Router(log, Topics(prefix=f"{unique}.", partitions=2), routes, limits=Limits(hold_ms=1))
    opened = [log.open_partition(number) for number in numbers]
    tasks = [asyncio.create_task(router.route(each)) for each in opened]
    try:
        yield router
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for each in opened:
            await each.close()


async def _say(router: Router, said: dict[int, tuple[str, str]]) -> None:
    """Wait until partitions have these states and reasons."""
    async with asyncio.timeout(300):
        while {n: (status.state, status.reason) for n, status in router.partitions.items()} != said:  # noqa: ASYNC110 - it asks the routers
            await asyncio.sleep(0.05)


async def _ids(log: KafkaLog, unique: str) -> list[str]:
    return [dict(r.headers)["ce_id"].decode() for r in await read_to_end(log, [f"{unique}.fleet"])]


async def _all_once(log: KafkaLog, unique: str, last: int, restarted: int = 0) -> None:
    """Wait for messages 1 to ``last`` of each gateway; each is there once and in order, and the audit is clean.

    ``restarted``: so many of its next epoch come after them.
    """
    async with asyncio.timeout(300):
        while len(await _ids(log, unique)) < (last + restarted) * len(GATEWAYS):  # noqa: ASYNC110 - it asks the log
            await asyncio.sleep(0.2)
        report = await audit(log, Topics(prefix=f"{unique}."))
        while any(lane.pending for lane in report.lanes):
            report = await audit(log, Topics(prefix=f"{unique}."))
    found = await _ids(log, unique)
    for gateway in GATEWAYS:
        mine = [name for name in found if name.startswith(f"{gateway}/")]
        assert mine == [
            *(f"{gateway}/1/telemetry/{seq}" for seq in range(1, last + 1)),
            *(f"{gateway}/2/telemetry/{seq}" for seq in range(1, restarted + 1)),
        ]
    lanes = {lane.gateway: lane.delivered for lane in report.lanes if (lane.lane, lane.epoch) == ("telemetry", 1)}
    assert (report.missing, lanes) == (0, dict.fromkeys(GATEWAYS, last))
    assert await read_to_end(log, [f"{unique}.waybill.dlq"]) == []


async def test_r4_partitions_grow_while_messages_flow(open_log: OpenLog, unique: str) -> None:
    router, old_node, tool = await open_log(**SOON), await open_log(), await open_log()
    known = trained()
    for gateway in GATEWAYS:
        await old_node.append_frame(gateway, control(9, 1, (DICTIONARY_TOPIC, known.content)))
        await old_node.append_frame(gateway, EPOCH.frame(1, 10))
    said: list[str] = []
    async with _routing(router, unique):
        await _all_once(router, unique, 10)
        growing = asyncio.create_task(tool.grow(6, said.append))
        for first in range(11, 61, 10):  # by a node that does not know yet
            for gateway in GATEWAYS:
                await old_node.append_frame(gateway, EPOCH.frame(first, first + 9, dictionary=known))
        async with asyncio.timeout(300):
            await growing
        assert said[-1] == "6 of 6 partitions are ready"
        assert (old_node.partitions, router.partitions) == (2, 6)
        for gateway in GATEWAYS:
            await old_node.append_frame(gateway, EPOCH.frame(61, 65))
            await router.append_frame(gateway, EPOCH.frame(51, 70, dictionary=known))  # some of it is a copy
            await old_node.append_frame(gateway, EPOCH.frame(1, 10))
        await _all_once(router, unique, 70)
    assert {count.partitions for count in (await counts(tool)).values()} == {6}
    restarted = await open_log(**SOON)
    assert restarted.partitions == 6
    async with _routing(restarted, unique):
        for gateway in GATEWAYS:
            await restarted.append_frame(gateway, EPOCH.frame(71, 72, dictionary=known))
            await old_node.append_frame(gateway, EPOCH.frame(73, 74))  # again in the journal: by a transaction
        await _all_once(restarted, unique, 74)
        async with asyncio.timeout(300):
            await (await open_log()).grow(12, said.append)  # of partitions that end with its mark
        await _all_once(restarted, unique, 74)


async def test_r4_a_growth_that_is_stopped_midway_goes_on(open_log: OpenLog, unique: str) -> None:
    log, tool = await open_log(), await open_log()
    for gateway in GATEWAYS:
        await log.append_frame(gateway, EPOCH.frame(1, 5))
    async with _routing(log, unique):
        await _all_once(log, unique, 5)
    said: asyncio.Queue[str] = asyncio.Queue()
    growing = asyncio.create_task(tool.grow(4, said.put_nowait))  # nobody routes: it cannot end
    async with asyncio.timeout(300):
        while await said.get() != "0 of 4 partitions are ready":
            pass
    growing.cancel()
    await asyncio.wait({growing})
    node = await open_log()
    assert node.partitions == 4
    for gateway in GATEWAYS:
        await node.append_frame(gateway, EPOCH.frame(4, 9))  # where the ledger is not yet
    waiting = node.open_partition(3)
    with pytest.raises(Unavailable, match="not handed over yet"):
        await waiting.load()
    await waiting.close()
    again = await open_log()
    with pytest.raises(ConfigError, match="have not handed their gateways over"):
        await again.grow(8, said.put_nowait)
    with pytest.raises(ConfigError, match="multiple"):
        await again.grow(6, said.put_nowait)
    async with _routing(node, unique), asyncio.timeout(300):
        await again.grow(4, said.put_nowait)
        await _all_once(node, unique, 9)


async def test_r7_what_the_old_partition_had_goes_before_what_comes_to_the_new_one(
    open_log: OpenLog, unique: str
) -> None:
    old_node, tool = await open_log(), await open_log()
    running = NodeFrames(old_node, lambda: "")
    devices = [f"dev-{number}" for number in range(12)]
    last = 40
    for seq in range(1, last - 1):  # more than one read of the router
        await asyncio.gather(*(old_node.append_frame(gateway, EPOCH.frame(seq, seq)) for gateway in GATEWAYS))
        await running.write([Item(device, f"{device}/moves", device, seq, 1, b"%d" % seq) for device in devices])
    said: asyncio.Queue[str] = asyncio.Queue()
    growing = asyncio.create_task(tool.grow(4, said.put_nowait))  # nobody routes
    async with asyncio.timeout(300):
        while await said.get() != "0 of 4 partitions are ready":
            pass
    node = await open_log(**SOON)
    starting = NodeFrames(node, lambda: "")
    for seq in (last - 1, last):
        await asyncio.gather(*(node.append_frame(gateway, EPOCH.frame(seq, seq)) for gateway in GATEWAYS))
        await starting.write([Item(device, f"{device}/moves", device, seq, 1, b"%d" % seq) for device in devices])
    old_node.grown(4)
    for seq in (last + 1, last + 2):  # the node that learns of it keeps devices where they are
        await running.write([Item(device, f"{device}/stays", device, seq, 1, b"%d" % seq) for device in devices])
    new = {partition_of(device.encode(), 4) for device in devices}
    assert new == {0, 1, 2, 3}
    async with _routing(node, unique, Limits(hold_ms=1)):  # what is held is given up at once
        async with asyncio.timeout(300):
            await growing
            records = await read_to_end(node, [f"{unique}.fleet"])
            while len(records) < last * len(GATEWAYS) + (last + 2) * len(devices):
                await asyncio.sleep(0.2)
                records = await read_to_end(node, [f"{unique}.fleet"])
        await _all_once(node, unique, last)
    for device in devices:
        values = {
            kind: [r.value for r in records if dict(r.headers)["mqtt_topic"] == f"{device}/{kind}".encode()]
            for kind in ("moves", "stays")
        }
        assert values["moves"] == [b"%d" % seq for seq in range(1, last + 1)]
        assert values["stays"] == [b"%d" % seq for seq in (last + 1, last + 2)]
    frames = await read_to_end(node, [f"{unique}.waybill.frames"])
    assert {record.partition for record in frames if record.key == running.name.encode()} == {0, 1}


def _behind(number: int) -> tuple[str, str]:
    return "waiting", f"frames of its gateways are in partition {number}, which is behind"


async def test_r7_no_gap_is_given_up_while_the_partitions_before_have_what_is_missing(
    open_log: OpenLog, unique: str
) -> None:
    """Grown twice; nodes know of neither, of one, of both; the former partitions' routers are dead meanwhile."""
    oldest, router = await open_log(), await open_log(**SOON)
    for gateway in GATEWAYS:
        await oldest.append_frame(gateway, EPOCH.frame(1, 2))
    said: list[str] = []
    async with _routing(router, unique), asyncio.timeout(300):
        await (await open_log()).grow(4, said.append)
        older = await open_log()
        await (await open_log()).grow(8, said.append)
        await _all_once(router, unique, 2)
    newest = await open_log()
    assert (oldest.partitions, older.partitions, newest.partitions) == (2, 4, 8)
    assert (await counts(newest))[6].ancestors == (2, 0)
    for first, node in ((3, oldest), (5, older), (7, oldest), (9, newest)):
        for gateway in GATEWAYS:
            await node.append_frame(gateway, EPOCH.frame(first, first + 1))
    for gateway in GATEWAYS:  # all before is settled: in the journal, but not in this partition
        await newest.append_frame(gateway, Epoch(2, prev=1, prev_last=10, oldest=2).frame(1, 2))
    async with _owning(newest, unique, 4, 5, 6, 7) as young:
        await _say(young, {4: _behind(0), 5: _behind(1), 6: _behind(0), 7: _behind(1)})
        assert (await audit(newest, Topics(prefix=f"{unique}."))).missing == 0
        async with _owning(newest, unique, 0, 1):
            await _say(young, {4: ("ready", ""), 5: ("ready", ""), 6: _behind(2), 7: _behind(3)})
            async with _owning(newest, unique, 2, 3):
                await _all_once(newest, unique, 10, restarted=2)
                await _say(young, dict.fromkeys(range(4, 8), ("ready", "")))
                assert sum(status.counters.given_up for status in young.partitions.values()) == 0


async def test_r7_a_gap_is_given_up_though_the_partition_before_is_not_routed_where_that_has_nothing_of_it(
    open_log: OpenLog, unique: str
) -> None:
    oldest, router = await open_log(), await open_log(**SOON)
    stays, moves = (next(g for g in GATEWAYS if partition_of(g.encode(), 4) == number) for number in (0, 2))
    said: list[str] = []
    async with _routing(router, unique), asyncio.timeout(300):
        await (await open_log()).grow(4, said.append)
    node = await open_log()
    await oldest.append_frame(stays, EPOCH.frame(1, 2))
    for first, last in ((1, 2), (5, 6)):
        await node.append_frame(moves, EPOCH.frame(first, last))
    async with _owning(node, unique, 2), asyncio.timeout(300):
        while len(found := await _ids(node, unique)) < 4:  # noqa: ASYNC110 - it asks the log
            await asyncio.sleep(0.2)
    assert found == [f"{moves}/1/telemetry/{seq}" for seq in (1, 2, 5, 6)]


def test_r4_each_entry_has_one_new_place_and_nodes_stay() -> None:
    ledger = {f"{gateway}/1/telemetry".encode(): b"1" for gateway in GATEWAYS if partition_of(gateway.encode(), 2) == 1}
    own = {b"#1": b"own", b"#reroute/x/gw/1/l": b"job", b"node:a/1/up": b"node"}
    tables = {"ledger": {**ledger, **own}, "dictionaries": {b"gw-1/7": b"content"}}
    written = handed_over(tables, 1, 2, Count(6, 40))
    assert own.items() <= tables["ledger"].items()
    assert list(children(1, 2, 6)) == [3, 5]
    assert set(written["ledger"]) == {1, 3, 5}
    assert written["ledger"][1][count_key(1)] == b"6@40"
    assert {written["ledger"][child][count_key(child)] for child in (3, 5)} == {b"6@0<1"}
    assert count_of(b"6@0<1", 3, 2) == Count(6, ancestors=(1,))
    again = handed_over({"ledger": {}, "dictionaries": {}}, 3, 6, Count(12, 7, (1,)))
    assert again["ledger"][3][count_key(3)] == b"12@7<1"
    assert again["ledger"][9][count_key(9)] == b"12@0<3<1"
    for key in ledger:
        place = partition_of(key.partition(b"/")[0], 6)
        assert [number for number in (1, 3, 5) if written["ledger"][number].get(key)] == ([place] if place != 1 else [])
        assert (key in tables["ledger"]) == (place == 1)
        assert (key in written["ledger"][1]) == (place != 1)

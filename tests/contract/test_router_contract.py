"""The whole router over every log: each message once, in order, over restarts, with ledger and states of commands."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import msgspec

from cloud_ingest.audit import audit
from cloud_ingest.config import Route, Topics
from cloud_ingest.journal.port import Log, OutRecord
from cloud_ingest.router.routes import Routes
from cloud_ingest.router.worker import Router
from tests.support.gateway import Epoch, control, expected, header, receipt, trained
from tests.support.logs import read_to_end
from waybill.frames import in_columns, read_header
from waybill.frames.header import COLUMNS
from waybill.wire import DICTIONARY_TOPIC, CommandStatus

GATEWAYS = ("gw-1", "gw-2", "gw-3")


@contextlib.asynccontextmanager
async def routing(log: Log, topics: Topics, fleet: str) -> AsyncIterator[Router]:
    router = Router(log, topics, Routes([Route(topic=fleet)]))
    task = asyncio.create_task(log.own_partitions(router.route))
    try:
        yield router
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_each_message_once_and_in_order_over_restarts(log: Log, topics: Topics, fleet: str) -> None:
    rng = random.Random(7)
    one, two = Epoch(1, oldest=1), Epoch(2, prev=1, prev_last=60, oldest=1)
    value = {"id": "c-1", "gateway": "gw-1", "device": "V7", "name": "unlock", "expires_at": 1_000}
    await log.append(OutRecord(topics.commands, b"gw-1", msgspec.json.encode(value), []))
    for start in range(3):
        async with routing(log, topics, fleet):
            for gateway in GATEWAYS:
                firsts = range(1 + 20 * start, 20 * start + 20, 5)
                frames = [one.frame(max(1, first - rng.randrange(3)), first + 4) for first in firsts]
                rng.shuffle(frames)
                for frame in frames:
                    await log.append_frame(gateway, frame)
                if start == 1:
                    await log.append_frame(gateway, two.frame(1, 4))  # ahead of most of epoch 1
                    await log.append_frame(gateway, control(9, 1, receipt(two, 5, 9)))

            async def enough(count: int = (20 * (start + 1) + 4 * (start == 2)) * len(GATEWAYS)) -> bool:
                # In the ledger, too: a step that is cut off before that comes again where delivery is at least once.
                return len(await read_to_end(log, [fleet])) >= count <= await in_ledger(log, topics)

            async with asyncio.timeout(180):
                while not await enough():  # noqa: ASYNC110 - it asks the log
                    await asyncio.sleep(0.05)
    async with routing(log, topics, fleet):
        async with asyncio.timeout(180):
            while len(await read_to_end(log, [fleet])) < 64 * len(GATEWAYS):  # noqa: ASYNC110 - it asks the log
                await asyncio.sleep(0.05)
    found = await read_to_end(log, [fleet])
    for gateway in GATEWAYS:
        ids = [dict(record.headers)["ce_id"].decode() for record in found]
        mine = [identity.split("/") for identity in ids if identity.startswith(f"{gateway}/")]
        assert [f"{epoch}:{seq}" for _, epoch, _, seq in mine] == expected(1, 1, 60) + expected(2, 1, 4)
    report = await audit(log, topics, "gw-2")
    assert {(lane.lane, lane.epoch, lane.delivered, lane.dropped, lane.missing_count) for lane in report.lanes} == {
        ("telemetry", 1, 60, 0, 0),
        ("telemetry", 2, 4, 5, 0),
        ("control", 9, 1, 0, 0),
    }
    states = [
        msgspec.json.decode(r.value or b"", type=CommandStatus) for r in await read_to_end(log, [topics.command_status])
    ]
    assert [(each.id, each.state) for each in states] == [("c-1", "expired")]


async def test_what_is_journaled_and_not_routed_is_pending_in_the_audit(log: Log, topics: Topics, fleet: str) -> None:
    epoch = Epoch(1, oldest=1)
    await log.append_frame("gw-1", epoch.frame(1, 20))
    async with routing(log, topics, fleet), asyncio.timeout(180):
        while await in_ledger(log, topics) < 20:  # noqa: ASYNC110 - it asks the log; records may be there before
            await asyncio.sleep(0.05)
    await log.append_frame("gw-1", epoch.frame(11, 30))  # the first half of it is a copy
    await log.append_frame("gw-2", epoch.frame(1, 5))
    await log.append_frame("gw-2", b"nonsense")
    found = {
        lane.gateway: (lane.last, lane.delivered, lane.pending, lane.journaled, lane.missing)
        for lane in (await audit(log, topics)).lanes
    }
    assert found == {"gw-1": (30, 20, 10, 10, ()), "gw-2": (5, 0, 5, 5, ())}


async def test_a_frame_in_columns_leaves_the_records_that_the_plain_frame_leaves(
    log: Log, topics: Topics, fleet: str
) -> None:
    payloads = [b'{"ts":%d,"speed":%.2f}' % (1_790_000_000_000 + n * 50, n / 7) for n in range(200)]
    plain = Epoch(1).frame(1, 200, payloads=payloads)
    columns = in_columns(plain)
    assert read_header(columns).codec == COLUMNS
    await log.append_frame("plain", plain)
    await log.append_frame("columns", columns)
    await log.append_frame("columns", plain)  # to the ledger the one is a copy of the other
    await log.append_frame("columns", Epoch(1).frame(201, 201))
    async with routing(log, topics, fleet), asyncio.timeout(180):
        while len(await read_to_end(log, [fleet])) < 401:  # noqa: ASYNC110 - it asks the log
            await asyncio.sleep(0.05)
    found: dict[str, list[object]] = {"plain": [], "columns": []}
    for record in await read_to_end(log, [fleet]):
        headers = dict(record.headers)
        gateway, _, seq = headers.pop("ce_id").partition(b"/")
        del headers["ce_source"], headers["waybill_journaled"]  # the gateway's name, and when
        found[gateway.decode()].append((seq, record.key, record.value, headers))
    assert len(found["plain"]) == 200
    assert found["columns"][:-1] == found["plain"]


async def in_ledger(log: Log, topics: Topics) -> int:
    return sum(lane.delivered for lane in (await audit(log, topics)).lanes if lane.lane == "telemetry")


async def test_r10_a_dictionary_serves_the_frames_of_its_gateway_over_restarts(
    log: Log, topics: Topics, fleet: str
) -> None:
    known, epoch = trained(), Epoch(1, oldest=1)
    await log.append_frame("gw", epoch.frame(1, 1, dictionary=known))  # it overtook its dictionary
    await log.append_frame("gw", control(9, 1, (DICTIONARY_TOPIC, known.content)))
    for start in range(1, 4):
        async with routing(log, topics, fleet), asyncio.timeout(180):
            await log.append_frame("gw", epoch.frame(start + 1, start + 1, dictionary=known))
            # In the ledger, too: a step that is cut off before that comes again where delivery is at least once.
            while await in_ledger(log, topics) < start + 1:  # noqa: ASYNC110 - it asks the log
                await asyncio.sleep(0.05)
    assert [(record.value or b"").decode() for record in await read_to_end(log, [fleet])] == expected(1, 1, 4)
    assert await read_to_end(log, [topics.dead_letters]) == []
    (stored,) = await read_to_end(log, [topics.dictionaries])
    assert stored.key == b"gw/%d" % known.id


async def test_what_cannot_be_routed_is_a_dead_letter_and_stops_nobody(log: Log, topics: Topics, fleet: str) -> None:
    await log.append_frame("gw", b"nonsense")
    await log.append_frame("gw", Epoch(1, oldest=1).frame(1, 2, topics=["$waybill/x", "a/b"]))
    async with routing(log, topics, fleet), asyncio.timeout(180):
        while len(await read_to_end(log, [topics.dead_letters, fleet])) < 3:  # noqa: ASYNC110 - it asks the log
            await asyncio.sleep(0.05)
    letters = await read_to_end(log, [topics.dead_letters])
    errors = {header(OutRecord(r.topic, r.key, r.value, list(r.headers)), "waybill_error") for r in letters}
    assert errors == {b"frame: it does not begin with 'WB'", b"not a frame: it does not begin with 'WB'"} & errors | {
        b"no route"
    }
    assert [record.value for record in await read_to_end(log, [fleet])] == [b"1:1"]

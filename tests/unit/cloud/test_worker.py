"""The router's shell over the embedded log: what each error makes it do (R3, R5, R8, C1)."""

import asyncio
import contextlib
import dataclasses
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from cloud_ingest.config import Route, Topics
from cloud_ingest.journal.embedded import EmbeddedLog
from cloud_ingest.journal.embedded_partition import EmbeddedPartition
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.journal.port import Cleared, Loaded, OutRecord, PartitionLog, Step
from cloud_ingest.router import worker
from cloud_ingest.router.routes import Routes
from cloud_ingest.router.state import Limits
from cloud_ingest.router.worker import Router, Status
from tests.support.gateway import Epoch, control, expected, header, values
from tests.support.logs import read_to_end
from waybill.errors import RecordRefused, TopicRefused, Unavailable
from waybill.wire import CommandStatus

TOPICS = Topics(partitions=2)
ONE = Epoch(1, oldest=1)
ROUTES = Routes([Route(topic="a", filter="a/#"), Route(topic="fleet.telemetry")])
GATEWAY = next(name for name in map("gw-{}".format, range(99)) if partition_of(name.encode(), 2) == 0)
OTHER = next(name for name in map("gw-{}".format, range(99)) if partition_of(name.encode(), 2) == 1)

Fault = Callable[[Step], Awaitable[None]]


class Faulty(EmbeddedPartition):
    """A partition of the embedded log: ``fault`` runs before each commit, ``after`` when it has returned."""

    fault: Fault | None = None
    after: Fault | None = None

    async def commit(self, step: Step) -> None:
        if self.fault is not None:
            await self.fault(step)
        await super().commit(step)
        if self.after is not None:
            await self.after(step)


class Behind(EmbeddedPartition):
    """A partition that gives ``answer`` while there is one, and counts how often it was ``asked``."""

    answer: Cleared | None = Cleared(0, "another one is behind")
    asked = 0

    async def load(self) -> Loaded:
        return dataclasses.replace(await super().load(), cleared=0)

    def cleared(self) -> Cleared:
        self.asked += 1
        return self.answer or super().cleared()


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EmbeddedLog]:
    made = EmbeddedLog(tmp_path / "log.db", TOPICS)
    await made.start()
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(worker, "READ_WAIT", 0.02)
    monkeypatch.setattr(worker, "STOPPED_FOR", 0.05)


@contextlib.asynccontextmanager
async def routing(router: Router, *partitions: PartitionLog) -> AsyncIterator[dict[int, Status]]:
    tasks = [asyncio.create_task(router.route(each)) for each in partitions]
    try:
        await asyncio.sleep(0)
        yield router.partitions
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - it may ask the file
            await asyncio.sleep(0.01)


async def records(log: EmbeddedLog, *topics: str) -> list[OutRecord]:
    return [OutRecord(r.topic, r.key, r.value, list(r.headers)) for r in await read_to_end(log, topics)]


async def written(log: EmbeddedLog, topic: str, count: int) -> list[OutRecord]:
    """Return the records of ``topic`` when there are ``count``."""

    async def enough() -> bool:
        return len(await records(log, topic)) >= count

    await until(enough)
    return await records(log, topic)


async def test_frames_become_records_and_the_status_tells(log: EmbeddedLog) -> None:
    router = Router(log, TOPICS, ROUTES)
    task = asyncio.create_task(log.own_partitions(router.route))
    await log.append_frame(GATEWAY, ONE.frame(1, 10))
    await log.append_frame(OTHER, ONE.frame(1, 5))
    await log.append_frame(GATEWAY, ONE.frame(6, 20))
    found = await written(log, "fleet.telemetry", 25)
    assert sorted(values(found)) == sorted(expected(1, 1, 20) + expected(1, 1, 5))
    status = router.partitions[0]
    assert (status.state, status.position, status.counters.routed, status.counters.copies) == ("ready", 2, 20, 5)
    task.cancel()
    await asyncio.wait({task})
    assert router.partitions == {}


async def test_a_backlog_that_is_routed_leaves_nobody_behind(log: EmbeddedLog) -> None:
    await log.append_frame(GATEWAY, ONE.frame(1, 10))
    router = Router(log, TOPICS, ROUTES, clock_ms=lambda: time.time_ns() // 1_000_000 + 3_600_000)
    async with routing(router, EmbeddedPartition(log, 0)) as partitions:
        await written(log, "fleet.telemetry", 10)

        async def caught_up() -> bool:
            return partitions[0].behind_ms == 0 and partitions[0].commits > 0

        await until(caught_up)


async def test_r7_a_node_whose_clock_is_ahead_gives_up_no_gap_too_soon(log: EmbeddedLog) -> None:
    clock = lambda: time.time_ns() // 1_000_000 + 3_600_000  # noqa: E731
    router = Router(log, TOPICS, ROUTES, limits=Limits(hold_ms=600_000), clock_ms=clock)
    async with routing(router, EmbeddedPartition(log, 0)) as partitions:
        await log.append_frame(GATEWAY, ONE.frame(1, 1))
        await log.append_frame(GATEWAY, ONE.frame(3, 3))

        async def waits() -> bool:
            return partitions[0].held_frames == 1

        await until(waits)
        await log.append_frame(GATEWAY, ONE.frame(2, 2))
        assert values(await written(log, "fleet.telemetry", 3)) == expected(1, 1, 3)


async def test_r7_a_node_whose_clock_is_behind_gives_a_gap_up_in_time(log: EmbeddedLog) -> None:
    clock = lambda: time.time_ns() // 1_000_000 - 3_600_000  # noqa: E731
    router = Router(log, TOPICS, ROUTES, limits=Limits(hold_ms=200), clock_ms=clock)
    async with routing(router, EmbeddedPartition(log, 0)):
        await log.append_frame(GATEWAY, ONE.frame(1, 1))
        await log.append_frame(GATEWAY, ONE.frame(3, 3))
        found = await written(log, "fleet.telemetry", 2)
        assert values(found) == [*expected(1, 1, 1), *expected(1, 3, 3)]


async def test_r7_a_gap_that_may_not_be_given_up_yet_is_said_in_the_status(log: EmbeddedLog) -> None:
    partition = Behind(log, 0)
    async with routing(Router(log, TOPICS, ROUTES, limits=Limits(hold_ms=0)), partition) as partitions:

        async def waits() -> bool:
            return (partitions[0].state, partitions[0].reason) == ("waiting", "another one is behind")

        await log.append_frame(GATEWAY, ONE.frame(1, 1))
        assert values(await written(log, "fleet.telemetry", 1)) == expected(1, 1, 1)
        assert (partitions[0].state, partition.asked) == ("ready", 0)
        await log.append_frame(GATEWAY, ONE.frame(3, 3))
        await until(waits)
        await log.append_frame(OTHER, ONE.frame(1, 1), 0)
        assert values(await written(log, "fleet.telemetry", 2)) == expected(1, 1, 1) * 2
        assert await waits()
        partition.answer = None
        assert values(await written(log, "fleet.telemetry", 3)) == [*expected(1, 1, 1) * 2, *expected(1, 3, 3)]

        async def is_ready() -> bool:
            return (partitions[0].state, partitions[0].reason) == ("ready", "")

        await until(is_ready)


async def test_r3_an_unknown_outcome_is_found_out_by_loading_anew(log: EmbeddedLog) -> None:
    """A third of the commits fail before they were written, a third after: each message comes once."""
    partition = Faulty(log, 0)
    calls = 0

    async def fault(_: Step) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            raise Unavailable("the answer did not come")

    async def after(_: Step) -> None:
        if calls % 3 == 2:
            raise Unavailable("the answer did not come, but it was written")

    partition.fault, partition.after = fault, after
    router = Router(log, TOPICS, ROUTES, limits=Limits(step_messages=3))
    async with routing(router, partition):
        for first in range(1, 31, 3):
            await log.append_frame(GATEWAY, ONE.frame(first, first + 2))
        found = await written(log, "fleet.telemetry", 30)
    assert values(found) == expected(1, 1, 30)
    assert calls > 10


async def test_r3_who_is_fenced_lets_go_and_the_new_owner_goes_on(log: EmbeddedLog) -> None:
    router = Router(log, TOPICS, ROUTES)
    old = asyncio.create_task(router.route(EmbeddedPartition(log, 0)))
    await log.append_frame(GATEWAY, ONE.frame(1, 3))
    await written(log, "fleet.telemetry", 3)
    async with routing(Router(log, TOPICS, ROUTES), EmbeddedPartition(log, 0)):
        async with asyncio.timeout(60):
            await old
        await log.append_frame(GATEWAY, ONE.frame(2, 6))
        assert values(await written(log, "fleet.telemetry", 6)) == expected(1, 1, 6)


def refuses_large(calls: list[int]) -> Fault:
    async def fault(step: Step) -> None:
        calls.append(len(step.records))
        if any(r.topic == "fleet.telemetry" and len(r.value or b"") > 1_000 for r in step.records):
            raise RecordRefused("a record is too large")

    return fault


async def test_r5_one_poisonous_record_is_found_and_becomes_a_dead_letter_with_the_error(log: EmbeddedLog) -> None:
    partition = Faulty(log, 0)
    calls: list[int] = []
    partition.fault = refuses_large(calls)
    payloads = [b"%d" % seq if seq != 137 else bytes(2_000) for seq in range(1, 301)]
    await log.append_frame(GATEWAY, ONE.frame(1, 100, payloads=payloads[:100]))
    await log.append_frame(GATEWAY, ONE.frame(101, 300, payloads=payloads[100:]))
    async with routing(Router(log, TOPICS, ROUTES), partition) as statuses:
        found = await written(log, "fleet.telemetry", 299)
        (letter,) = await written(log, "fleet.telemetry.dlq", 1)
        assert statuses[0].counters.dead == 1
    assert values(found) == [str(seq) for seq in range(1, 301) if seq != 137]
    assert (letter.key, letter.value) == (b"V7", bytes(2_000))
    assert header(letter, "waybill_error") == b"a record is too large"
    assert header(letter, "waybill_error_topic") == b"fleet.telemetry"
    assert header(letter, "ce_id") == f"{GATEWAY}/1/telemetry/137".encode()
    assert len(calls) < 40, "the poisonous record is found by bisecting"


async def test_r5_a_refused_topic_goes_to_its_dead_letters_without_bisecting(log: EmbeddedLog) -> None:
    partition = Faulty(log, 0)
    calls: list[int] = []

    async def fault(step: Step) -> None:
        calls.append(len(step.records))
        if any(record.topic == "a" for record in step.records):
            raise TopicRefused("a", "not authorized")

    partition.fault = fault
    await log.append_frame(GATEWAY, ONE.frame(1, 40, topics=["b/1", "a/1"]))
    async with routing(Router(log, TOPICS, ROUTES), partition) as statuses:
        letters = await written(log, "a.dlq", 20)
        found = await written(log, "fleet.telemetry", 20)
        assert any("a: not authorized" in alarm.text for alarm in statuses[0].alarms)
    assert (len(letters), len(found)) == (20, 20)
    assert header(letters[0], "waybill_error") == b"a: not authorized"
    assert calls == [40, 40]


async def test_r5_a_refused_topic_is_tried_again_after_a_while(
    log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "REFUSED_FOR", 0.0)
    partition = Faulty(log, 0)
    refusals = 0

    async def fault(step: Step) -> None:
        nonlocal refusals
        if refusals < 3 and any(record.topic == "a" for record in step.records):
            refusals += 1
            raise TopicRefused("a", "unknown topic")

    partition.fault = fault
    await log.append_frame(GATEWAY, ONE.frame(1, 4, topics=["a/1"]))
    async with routing(Router(log, TOPICS, ROUTES), partition):
        assert values(await written(log, "a", 4), "a") == expected(1, 1, 4)


@pytest.mark.parametrize("refusal", [TopicRefused("fleet.telemetry.dlq", "unknown topic"), RecordRefused("too large")])
async def test_r5_refused_dead_letters_stop_this_partition_with_an_alarm_and_no_other(
    log: EmbeddedLog, refusal: Exception
) -> None:
    partition = Faulty(log, 0)
    mended = False

    async def fault(step: Step) -> None:
        if not mended and any(record.topic == "fleet.telemetry.dlq" for record in step.records):
            raise refusal
        await refuses_large([])(step)

    partition.fault = fault
    payloads = [b"x", bytes(2_000), b"y"]
    await log.append_frame(GATEWAY, ONE.frame(1, 3, payloads=payloads))
    await log.append_frame(OTHER, ONE.frame(1, 3))
    async with routing(Router(log, TOPICS, ROUTES), partition, EmbeddedPartition(log, 1)) as statuses:

        async def stopped() -> bool:
            return statuses[0].state == "stopped" and any("is stopped" in alarm.text for alarm in statuses[0].alarms)

        await until(stopped)
        assert values(await records(log, "fleet.telemetry")).count("y") == 0
        assert set(expected(1, 1, 3)) <= set(values(await written(log, "fleet.telemetry", 4)))
        assert statuses[1].state == "ready"
        mended = True
        await written(log, "fleet.telemetry.dlq", 1)
        assert sorted(values(await written(log, "fleet.telemetry", 5))) == sorted(["x", "y", *expected(1, 1, 3)])


async def test_r8_frames_deleted_before_they_were_routed_are_an_alarm_and_a_declared_loss(log: EmbeddedLog) -> None:
    router = Router(log, TOPICS, ROUTES)
    await log.append_frame(GATEWAY, ONE.frame(1, 2))
    async with routing(router, EmbeddedPartition(log, 0)):
        await written(log, "fleet.telemetry", 2)
    for first in (3, 5, 7):
        await log.append_frame(GATEWAY, ONE.frame(first, first + 1))
    with contextlib.closing(sqlite3.connect(log.path)) as db:
        db.execute(
            "DELETE FROM record WHERE id IN (SELECT id FROM record WHERE key = ? ORDER BY id LIMIT 3)",
            (GATEWAY.encode(),),
        )
        db.commit()
    router = Router(log, TOPICS, ROUTES)
    async with routing(router, EmbeddedPartition(log, 0)) as statuses:

        async def told() -> bool:
            return any("2 frames before offset 3 were deleted" in alarm.text for alarm in statuses[0].alarms)

        await until(told)

        async def declared() -> bool:
            return any(record.key == b"#0" for record in await records(log, TOPICS.ledger))

        await until(declared)


async def test_c1_expired_is_written_by_the_router_once_over_restarts(log: EmbeddedLog) -> None:
    value = {"id": "c-1", "gateway": GATEWAY, "device": "V7", "name": "unlock", "expires_at": 1_000}
    await log.append(OutRecord(TOPICS.commands, GATEWAY.encode(), msgspec.json.encode(value), []))
    await log.append(
        OutRecord(TOPICS.commands, GATEWAY.encode(), b'{"id": "c-2", "gateway": "' + GATEWAY.encode() + b'"}', [])
    )
    for _ in range(3):
        async with routing(Router(log, TOPICS, ROUTES), EmbeddedPartition(log, 0), EmbeddedPartition(log, 1)):
            await written(log, TOPICS.command_status, 2)
            await log.append_frame(GATEWAY, ONE.frame(1, 1))
            await asyncio.sleep(0.1)
    found = [msgspec.json.decode(r.value or b"", type=CommandStatus) for r in await records(log, TOPICS.command_status)]
    assert sorted((each.id, each.state) for each in found) == [("c-1", "expired"), ("c-2", "rejected")]


async def test_c1_nothing_is_routed_before_all_states_written_earlier_are_known(log: EmbeddedLog) -> None:
    def states(name: str, state: Literal["delivered", "expired"]) -> CommandStatus:
        return CommandStatus(name, GATEWAY, "V7", state, 5)

    old = [states(f"c-{n}", "expired") for n in range(3_000)]
    rows = [OutRecord(TOPICS.command_status, each.id.encode(), msgspec.json.encode(each), []) for each in old]
    partition = EmbeddedPartition(log, 0)
    await partition.load()
    await partition.commit(Step(rows, {}, 0))
    await log.append_frame(GATEWAY, control(5, 1, states("c-2999", "delivered")))
    async with routing(Router(log, TOPICS, ROUTES), EmbeddedPartition(log, 0)):
        (letter,) = await written(log, TOPICS.dead_letters, 1)
    assert header(letter, "waybill_error") == b"the command's state is expired already"


async def test_c1_states_of_gateways_are_written_in_the_frames_transaction(log: EmbeddedLog) -> None:
    status = CommandStatus("c-9", GATEWAY, "V7", "done", 5, b"\x00result")
    await log.append_frame(GATEWAY, control(5, 1, status))
    async with routing(Router(log, TOPICS, ROUTES), EmbeddedPartition(log, 0)):
        (found,) = await written(log, TOPICS.command_status, 1)
    assert msgspec.json.decode(found.value or b"", type=CommandStatus) == status


async def test_a_step_waits_for_more_as_long_as_all_routes_allow(log: EmbeddedLog) -> None:
    patient = Route(topic="a", filter="a/#", linger_ms=60_000)
    for other, commits in ((patient, 1), (Route(topic="b", linger_ms=0), 2)):
        router = Router(log, TOPICS, Routes([patient, other]), limits=Limits(read_frames=2))
        partition, start = EmbeddedPartition(log, 0), log.head(TOPICS.frames, 0)
        async with routing(router, partition) as status:
            for number in range(2):  # the next one comes once the one before was read
                await log.append_frame(GATEWAY, ONE.frame(start + number + 1, start + number + 1, topics=["a/b"]))

                async def read(one: EmbeddedPartition = partition, end: int = start + number + 1) -> bool:
                    return one._position == end

                async def routed(end: int = start + number + 1) -> bool:
                    return status[0].position == end

                await until(read)
                if commits == 2 or number:
                    await until(routed)
            assert status[0].commits == commits

"""C1: which command is sent to whom and when; the limits of what a node holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from cloud_ingest.command_record import Command
from cloud_ingest.commands import ID_MARGIN_MS, Dispatch, Dispatcher, Limits
from cloud_ingest.config import Topics
from cloud_ingest.journal.port import CaughtUp, TopicRecord
from waybill.errors import Unavailable
from waybill.wire import CommandStatus, Envelope

NOW = 1_000_000
LATE = NOW + 3_600_000


def command(id_: str, gateway: str = "g", *, expires_ms: int = LATE, payload: bytes = b"{}") -> Command:
    return Command(id_, gateway, "V1", "lock", payload, expires_ms)


def status(id_: str, state: Any = "delivered", gateway: str = "g") -> CommandStatus:
    return CommandStatus(id_, gateway, "V1", state, NOW)


def ready(*commands: Command, limits: Limits | None = None) -> Dispatch:
    core = Dispatch(limits or Limits(), ready=True)
    for item in commands:
        core.command(item, NOW, NOW)
    return core


def sent(core: Dispatch, now: float = 0.0, now_ms: int = NOW) -> list[str]:
    return [envelope.id for _, envelope in core.due(now_ms, now)]


def test_c1_sent_in_order_to_connected_gateways_only() -> None:
    core = ready(command("1"), command("2"), command("x", "other"))
    assert sent(core) == []
    core.attach("g")
    assert list(core.due(NOW, 0.0)) == [
        ("g", Envelope("1", "command", "V1", "lock", b"{}", LATE)),
        ("g", Envelope("2", "command", "V1", "lock", b"{}", LATE)),
    ]
    core.detach("g")
    assert sent(core, 100.0) == []


def test_c1_nothing_is_sent_before_the_states_are_known() -> None:
    core = ready(command("1"))
    core.ready = False
    core.attach("g")
    assert sent(core) == []


def test_c1_sent_again_after_5_seconds_doubling_to_60() -> None:
    core = ready(command("1"))
    core.attach("g")
    times = [now for now in range(200) if sent(core, float(now))]
    assert times == [0, 5, 15, 35, 75, 135, 195]
    assert core.counters.sent == 7
    assert core.counters.sent_again == 6


@pytest.mark.parametrize("state", ["delivered", "done", "expired", "rejected"])
def test_c1_not_sent_any_more_once_a_state_was_read(state: str) -> None:
    core = ready(command("1"), command("2"))
    core.attach("g")
    core.status(status("1", state))
    assert sent(core) == ["2"]
    assert core.open == 1


@pytest.mark.parametrize("state", ["delivered", "done"])
def test_c1_a_gateway_cannot_stop_another_gateways_command(state: str) -> None:
    told = status("1", state, "rogue")
    known_first, told_first = ready(command("1")), ready()
    known_first.status(told)
    told_first.status(told)
    told_first.command(command("1"), NOW, NOW)
    for core in (known_first, told_first):
        core.attach("g")
        assert sent(core) == ["1"]


def test_c1_not_sent_after_its_expiry_and_no_state_is_made_up() -> None:
    core = ready(command("1", expires_ms=NOW + 1000))
    core.attach("g")
    assert sent(core, now_ms=NOW + 999) == ["1"]
    assert sent(core, 5.0, now_ms=NOW + 1000) == []
    assert core.open == 0


def test_c1_a_reconnected_gateway_gets_all_at_once() -> None:
    core = ready(command("1"))
    core.attach("g")
    sent(core, 0.0)
    core.detach("g")
    core.attach("g")
    assert sent(core, 1.0) == ["1"]


def test_c1_a_state_can_be_read_before_its_command() -> None:
    core = ready()
    core.attach("g")
    core.status(status("1"))
    core.command(command("1"), NOW, NOW)
    assert sent(core) == []


def test_the_first_record_of_an_id_wins() -> None:
    core = ready(command("1", payload=b"first"))
    core.command(command("1", payload=b"second"), NOW, NOW)
    core.attach("g")
    assert [envelope.payload for _, envelope in core.due(NOW, 0.0)] == [b"first"]
    core.status(status("1"))
    core.command(command("1", payload=b"third"), LATE + ID_MARGIN_MS, NOW)
    assert sent(core, 99.0) == []
    assert core.counters.repeated == 2


def test_an_id_is_free_a_day_after_its_expiry() -> None:
    core = ready(command("1"))
    core.forget(LATE + ID_MARGIN_MS + 1)
    later = LATE + ID_MARGIN_MS + 1
    core.command(command("1", expires_ms=later + 10), later, later)
    core.attach("g")
    assert sent(core, now_ms=later) == ["1"]


def test_a_window_of_commands_is_under_way_at_a_gateway() -> None:
    core = ready(*(command(str(n)) for n in range(5)), limits=Limits(window=2))
    core.attach("g")
    assert sent(core) == ["0", "1"]
    core.status(status("0"))
    assert sent(core) == ["2"]


def test_what_is_beyond_the_limit_stays_in_the_log_until_half_is_done() -> None:
    core = ready(*(command(str(n)) for n in range(6)), command("x", "other"), limits=Limits(per_gateway=4))
    assert core.open == 5
    assert core.counters.postponed == 2
    assert not core.wants_reload()
    core.status(status("0"))
    assert not core.wants_reload()
    core.status(status("1"))
    assert core.wants_reload()
    core.reload()
    assert core.open == 0
    assert not core.wants_reload()


def test_the_memory_of_all_payloads_is_bounded() -> None:
    core = ready(*(command(str(n), f"g{n}", payload=b"x" * 100) for n in range(9)), limits=Limits(memory=400))
    assert core.open == 4
    assert not core.wants_reload()
    core.status(status("0", gateway="g0"))
    core.status(status("1", gateway="g1"))
    assert core.wants_reload()


def test_memory_of_early_states_is_bounded() -> None:
    core = ready(limits=Limits(early_statuses=2))
    for id_ in "abc":
        core.status(status(id_))
    for id_ in "abc":
        core.command(command(id_), NOW, NOW)
    core.attach("g")
    assert sent(core) == ["a"]


class Records:
    """A source of records that a test feeds; ``away`` makes the next reads fail."""

    def __init__(self) -> None:
        self.records: list[TopicRecord] = []
        self.changed = asyncio.Event()
        self.away = ""
        self.follows = 0

    def add(self, topic: str, value: object) -> None:
        data = value if isinstance(value, bytes) else msgspec.json.encode(value)
        self.records.append(TopicRecord(topic, 0, len(self.records), NOW, None, data, ()))
        self.changed.set()

    async def follow(
        self, topics: Sequence[str], *, only: int | None = None, end: bool = False
    ) -> AsyncIterator[TopicRecord | CaughtUp]:
        assert only is None
        self.follows += 1
        position = 0
        caught_up = False
        while True:
            if self.away:
                raise Unavailable(self.away)
            for record in self.records[position:]:
                if record.topic in topics:
                    yield record
            position = len(self.records)
            if not caught_up:
                yield CaughtUp()
                caught_up = True
            if end:
                return
            self.changed.clear()
            await self.changed.wait()


def record_of(id_: str) -> bytes:
    return json.dumps(
        {"id": id_, "gateway": "g", "device": "d", "name": "n", "expires_at": "2999-01-01T00:00:00Z"}
    ).encode()


@contextlib.asynccontextmanager
async def running(dispatcher: Dispatcher) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(dispatcher.read()), asyncio.create_task(dispatcher.send())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError)


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def test_the_dispatcher_reads_states_before_it_sends() -> None:
    topics = Topics(prefix="t.")
    source = Records()
    source.add(topics.commands, record_of("old"))
    source.add(topics.commands, b"{")
    source.add(topics.commands, record_of("new"))
    source.add(topics.command_status, status("old"))
    seen: list[str] = []
    dispatcher = Dispatcher(source, topics, lambda gateway, envelope: seen.append(f"{gateway} {envelope.id}"))
    dispatcher.attach("g")
    async with running(dispatcher):
        await until(lambda: seen)
        source.add(topics.commands, record_of("newer"))
        await until(lambda: len(seen) > 1)
        assert seen == ["g new", "g newer"]
        source.add(topics.command_status, status("newer"))
        await until(lambda: dispatcher.open == 1)
    assert dispatcher.counters.malformed == 1


async def test_a_log_that_is_away_is_said_and_tried_again() -> None:
    topics = Topics()
    source = Records()
    source.away = "no broker"
    seen: list[str] = []
    dispatcher = Dispatcher(source, topics, lambda _, envelope: seen.append(envelope.id))
    dispatcher.attach("g")
    async with running(dispatcher):
        await until(lambda: dispatcher.fault == "no broker")
        source.away = ""
        source.add(topics.commands, record_of("1"))
        await until(lambda: seen == ["1"])
        assert dispatcher.fault == ""


async def test_commands_beyond_the_limit_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_ingest.commands.RELOAD_PAUSE", 0.0)
    topics = Topics()
    source = Records()
    for n in range(4):
        source.add(topics.commands, record_of(str(n)))
    seen: list[str] = []
    dispatcher = Dispatcher(source, topics, lambda _, envelope: seen.append(envelope.id), Limits(per_gateway=2))
    dispatcher.attach("g")
    async with running(dispatcher):
        await until(lambda: seen == ["0", "1"])
        source.add(topics.command_status, status("0"))
        source.add(topics.command_status, status("1"))
        await until(lambda: seen[2:] == ["2", "3"])

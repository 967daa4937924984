"""Commands at the gateway (C2), over a buffer in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from edge_agent import commands as module
from edge_agent.buffer.port import CommandResult, Commit, OutboxEntry
from edge_agent.buffer.testing import MemoryBuffer
from edge_agent.clock import Clock
from edge_agent.commands import MAX_FILTERS, Commands
from waybill.errors import Unavailable
from waybill.wire import Envelope

FUTURE = 1 << 50


class Devices:
    """What was published to devices; ``failures`` are raised first."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.failures: list[Exception] = []

    async def publish(self, topic: str, payload: bytes) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.heard.append((topic, payload))


def envelope(command: str, device: str = "V7", expires: int = FUTURE) -> Envelope:
    return Envelope(command, "command", device, "lock", command.encode(), expires)


@contextlib.asynccontextmanager
async def working(buffer: MemoryBuffer, devices: Devices) -> AsyncIterator[Commands]:
    commands = Commands(buffer, devices.publish, Clock())
    task = asyncio.create_task(commands.publish())
    await settled()
    try:
        yield commands
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_known_or_expired_envelope_is_not_published() -> None:
    devices = Devices()
    async with working(MemoryBuffer("gw1"), devices) as commands:
        for each in (envelope("a"), envelope("a"), envelope("b", expires=1)):
            await commands.receive(each)
        await settled()
    assert devices.heard == [("cmd/V7/a/req", b"a")]
    assert (commands.counters.received, commands.counters.known) == (1, 2)


async def test_open_commands_are_published_at_the_start_and_for_a_new_subscription_that_matches() -> None:
    buffer, devices = MemoryBuffer("gw1"), Devices()
    for each in (envelope("a"), envelope("b", "V8"), envelope("c", "V8"), envelope("done")):
        await buffer.receive(each, 0)
    await buffer.commit(Commit(results=[CommandResult("done", "V7", b"", 1)]))
    async with working(buffer, devices) as commands:
        assert [topic for topic, _ in devices.heard] == ["cmd/V7/a/req", "cmd/V8/b/req", "cmd/V8/c/req"]
        devices.heard.clear()
        commands.on_subscribed("vehicles/#")
        await settled()
        assert not devices.heard
        commands.on_subscribed("cmd/V8/+/req")
        await settled()
        assert [topic for topic, _ in devices.heard] == ["cmd/V8/b/req", "cmd/V8/c/req"]


async def test_a_command_taken_in_while_its_device_subscribes_goes_once() -> None:
    class Slow(MemoryBuffer):
        reading, go = asyncio.Event(), asyncio.Event()

        async def outbox(self, now_ms: int) -> Sequence[OutboxEntry]:
            self.reading.set()
            await self.go.wait()
            return await super().outbox(now_ms)

    buffer, devices = Slow("gw1"), Devices()
    buffer.go.set()
    async with working(buffer, devices) as commands:
        buffer.reading.clear()
        buffer.go.clear()
        commands.on_subscribed("cmd/V7/+/req")
        await buffer.reading.wait()
        await commands.receive(envelope("a"))
        buffer.go.set()
        await settled()
    assert devices.heard == [("cmd/V7/a/req", b"a")]


async def test_a_storm_of_subscriptions_is_bounded_and_loses_none() -> None:
    buffer, devices = MemoryBuffer("gw1"), Devices()
    await buffer.receive(envelope("a"), 0)
    async with working(buffer, devices) as commands:
        devices.heard.clear()
        for n in range(3 * MAX_FILTERS):
            commands.on_subscribed(f"cmd/other{n}/+/req" if n != 5 else "cmd/V7/+/req")
            assert len(commands._filters) <= MAX_FILTERS
        await settled()
    assert devices.heard == [("cmd/V7/a/req", b"a")]


async def test_what_could_not_be_published_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_PAUSE", 0)
    devices = Devices()
    async with working(MemoryBuffer("gw1"), devices) as commands:
        devices.failures = [Unavailable("disk full")] * 2
        await commands.receive(envelope("a"))
        await settled()
    assert devices.heard == [("cmd/V7/a/req", b"a")]


async def test_what_the_buffer_cannot_take_now_is_not_delivered_and_comes_again() -> None:
    class Full(MemoryBuffer):
        full = True

        async def receive(self, envelope: Envelope, now_ms: int) -> bool:
            if self.full:
                raise Unavailable("disk full")
            return await super().receive(envelope, now_ms)

    buffer, devices = Full("gw1"), Devices()
    async with working(buffer, devices) as commands:
        await commands.receive(envelope("a"))
        await settled()
        assert not devices.heard
        buffer.full = False
        await commands.receive(envelope("a"))
        await settled()
    assert devices.heard == [("cmd/V7/a/req", b"a")]


@pytest.mark.parametrize(
    "bad", [envelope("a/b"), envelope("a", "V+"), envelope("a", "#"), envelope(""), envelope("a", "")]
)
async def test_an_id_or_device_that_is_no_topic_level_is_ignored(bad: Envelope) -> None:
    devices = Devices()
    async with working(MemoryBuffer("gw1"), devices) as commands:
        await commands.receive(bad)
        await settled()
    assert not devices.heard
    assert commands.counters.received == 0

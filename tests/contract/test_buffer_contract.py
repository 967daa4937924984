"""One suite over both implementations of the buffer's port: on SQLite, and in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from edge_agent.buffer.port import LOCAL, Buffer, Chunk, CommandResult, Commit, Own
from edge_agent.buffer.testing import MemoryBuffer
from tests.support.buffer import chunk, commit, drain, messages, open_sqlite, packet, payloads, span_of
from waybill.errors import Unavailable
from waybill.mqtt.resend import entries_of
from waybill.mqtt.state import (
    Change,
    Dequeued,
    InboundHeld,
    InboundReleased,
    Queued,
    Received,
    ResendFrozen,
    RetainCleared,
    Retained,
    SavedMessage,
    SessionDeleted,
    SessionLeft,
    SessionOpened,
    Subscribed,
    Unsubscribed,
)
from waybill.wire import CONTROL_LANE, TELEMETRY_LANE, CommandStatus, Envelope, Receipt, Span

Restart = Callable[[], Awaitable[Buffer]]


class Bench:
    """A buffer and how to restart it."""

    def __init__(self, buffer: Buffer, restart: Callable[[Buffer], Awaitable[Buffer]]) -> None:
        self.buffer = buffer
        self._restart = restart

    async def restart(self) -> Buffer:
        self.buffer = await self._restart(self.buffer)
        return self.buffer


@pytest.fixture(params=["sqlite", "memory"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async def sqlite(old: Buffer | None) -> Buffer:
        if old is not None:
            await old.close()
        return await open_sqlite(tmp_path / "data")

    async def memory(old: Buffer | None) -> Buffer:
        assert isinstance(old, MemoryBuffer)
        old.restart()
        return old

    made = Bench(await sqlite(None), sqlite) if request.param == "sqlite" else Bench(MemoryBuffer("g"), memory)
    yield made
    await made.buffer.close()


@pytest.fixture
def buffer(bench: Bench) -> Buffer:
    return bench.buffer


async def test_b1_seq_counts_from_1_without_a_gap(buffer: Buffer) -> None:
    for at in range(5):
        await buffer.commit(commit(*[b"%d.%d" % (at, each) for each in range(at + 1)]))
    leases = await drain(buffer, count=4)
    assert leases[0].first == 1
    assert [lease.first for lease in leases[1:]] == [lease.first + len(lease.messages) for lease in leases[:-1]]
    assert [message.payload for message in messages(leases)] == [
        b"%d.%d" % (at, each) for at in range(5) for each in range(at + 1)
    ]


async def test_a_lease_has_what_the_device_sent(buffer: Buffer) -> None:
    raw = packet(b"zero", topic="a/b") + packet(b"", 7, "a/ü") + packet(b"two" * 100, 9, "a/b", 2 << 1 | 8 | 1)
    await buffer.commit(Commit([Chunk(TELEMETRY_LANE, "cliént", 4, 123456, 99, 0, 3, raw, 2)]))
    lease = await buffer.lease(TELEMETRY_LANE, None, 10, 1 << 20)
    assert lease is not None
    found = [(m.topic, m.client, m.wall_ms, m.mono_ns, m.flags, m.payload, m.properties) for m in lease.messages]
    assert found == [
        ("a/b", "cliént", 123456, 99, 0, b"zero", b""),
        ("a/ü", "cliént", 123456, 99, 1, b"", b""),
        ("a/b", "cliént", 123456, 99, 2 | 4 | 8, b"two" * 100, b""),
    ]
    assert (lease.lane, lease.epoch, lease.first, lease.boot) == (TELEMETRY_LANE, buffer.epoch, 1, "boot-1")


async def test_mqtt_5_properties_are_kept_as_they_came(buffer: Buffer) -> None:
    properties = b"\x26\0\1a\0\1b"
    body = b"\0\1t" + bytes([len(properties)]) + properties + b"payload"
    raw = bytes([0x30, len(body)]) + body
    await buffer.commit(Commit([Chunk(TELEMETRY_LANE, "c", 5, 0, 0, 0, 1, raw)]))
    (message,) = messages(await drain(buffer))
    assert (message.payload, message.properties) == (b"payload", properties)


async def test_a_lease_is_bounded_by_count_and_bytes_and_has_one_message_at_least(buffer: Buffer) -> None:
    await buffer.commit(commit(*[b"x" * 100] * 10))
    by_count = await buffer.lease(TELEMETRY_LANE, None, 3, 1 << 20)
    assert by_count is not None
    assert len(by_count.messages) == 3
    by_size = await buffer.lease(TELEMETRY_LANE, by_count.end, 10, 250)
    assert by_size is not None
    assert (by_size.first, len(by_size.messages)) == (4, 3)
    one = await buffer.lease(TELEMETRY_LANE, by_size.end, 10, 1)
    assert one is not None
    assert len(one.messages) == 1


async def test_nothing_waits_nothing_is_leased(buffer: Buffer) -> None:
    assert await buffer.lease(TELEMETRY_LANE, None, 10, 1000) is None
    assert await buffer.lease("unheard-of", None, 10, 1000) is None
    await buffer.commit(commit(b"a"))
    (lease,) = await drain(buffer)
    assert await buffer.lease(TELEMETRY_LANE, lease.end, 10, 1000) is None
    await buffer.commit(commit(b"b"))
    following = await buffer.lease(TELEMETRY_LANE, lease.end, 10, 1000)
    assert following is not None
    assert (following.first, following.messages[0].payload) == (2, b"b")


async def test_settled_messages_are_not_leased_again(buffer: Buffer) -> None:
    await buffer.commit(commit(*[b"%d" % at for at in range(1, 11)]))
    spans = [Span(buffer.epoch, TELEMETRY_LANE, 1, 2), Span(buffer.epoch, TELEMETRY_LANE, 5, 6)]
    assert await buffer.settle(spans) == 4
    assert await buffer.settle(spans) == 0
    leases = await drain(buffer)
    assert [(lease.first, len(lease.messages)) for lease in leases] == [(3, 2), (7, 4)]
    assert await payloads(buffer) == [b"3", b"4", b"7", b"8", b"9", b"10"]
    assert await buffer.settle([Span(buffer.epoch, TELEMETRY_LANE, 1, 1 << 62)]) == 6
    assert await payloads(buffer) == []
    (backlog,) = [each for each in buffer.backlog() if each.lane == TELEMETRY_LANE]
    assert (backlog.count, backlog.bytes, backlog.oldest_ms) == (0, 0, None)


async def test_unknown_spans_are_ignored(buffer: Buffer) -> None:
    await buffer.commit(commit(b"a", b"b"))
    await buffer.settle(
        [
            Span(buffer.epoch ^ 1, TELEMETRY_LANE, 1, 2),
            Span(buffer.epoch, "other", 1, 2),
            Span(buffer.epoch, TELEMETRY_LANE, 3, 900),
        ]
    )
    await buffer.commit(commit(b"c"))
    assert await payloads(buffer) == [b"a", b"b", b"c"]


async def test_backlog_counts(buffer: Buffer) -> None:
    await buffer.commit(Commit([chunk(b"a", b"b", wall_ms=5000)]))
    await buffer.commit(Commit([chunk(b"c", wall_ms=6000)]))
    await buffer.settle([Span(buffer.epoch, TELEMETRY_LANE, 1, 1)])
    (backlog,) = [each for each in buffer.backlog() if each.lane == TELEMETRY_LANE]
    assert (backlog.count, backlog.oldest_ms) == (2, 5000)
    assert backlog.bytes > 0


async def test_changed_waits_for_an_append(buffer: Buffer) -> None:
    waiting = asyncio.ensure_future(buffer.changed())
    await asyncio.sleep(0)
    assert not waiting.done()
    await buffer.commit(commit(b"a"))
    await waiting
    again = asyncio.ensure_future(buffer.changed())
    await asyncio.sleep(0)
    assert not again.done()
    await buffer.commit(Commit(own=[Own("$waybill/x", b"1")]))
    await again


async def test_e1_each_start_has_an_epoch_of_its_own(bench: Bench) -> None:
    epochs = {bench.buffer.epoch}
    for _ in range(4):
        epochs.add((await bench.restart()).epoch)
    assert len(epochs) == 5
    assert all(0 < epoch < 2**63 for epoch in epochs)


async def test_e2_a_lease_names_the_epoch_before_it_in_its_lane(bench: Bench) -> None:
    first = bench.buffer.epoch
    await bench.buffer.commit(commit(b"1", b"2", b"3"))
    await bench.buffer.commit(Commit(own=[Own("$waybill/x", b"1")]))
    await bench.restart()  # assigns nothing, so nobody names it
    second = (await bench.restart()).epoch
    await bench.buffer.commit(commit(b"4"))
    old, new = await drain(bench.buffer)
    assert (old.epoch, old.prev_epoch, old.prev_last, old.first) == (first, 0, 0, 1)
    assert (new.epoch, new.prev_epoch, new.prev_last, new.first) == (second, first, 3, 1)
    assert old.end.ordinal < new.end.ordinal


async def test_e2_the_last_seq_is_known_when_its_blocks_are_gone(bench: Bench) -> None:
    first = bench.buffer.epoch
    await bench.buffer.commit(commit(b"1", b"2", b"3"))
    await drain(bench.buffer, settle=True)
    for _ in range(3):
        await bench.restart()
    await bench.buffer.commit(commit(b"4"))
    (lease,) = await drain(bench.buffer)
    assert (lease.prev_epoch, lease.prev_last) == (first, 3)
    assert lease.oldest_epoch == bench.buffer.epoch  # E4: what is settled is not named


async def test_e4_a_lease_names_the_oldest_epoch_with_unsettled_messages(bench: Bench) -> None:
    first = bench.buffer.epoch
    await bench.buffer.commit(commit(b"1"))
    second = (await bench.restart()).epoch
    await bench.buffer.commit(commit(b"2"))
    old, new = await drain(bench.buffer)
    assert (old.oldest_epoch, new.oldest_epoch) == (first, first)
    await bench.buffer.settle([span_of(old)])
    (new,) = await drain(bench.buffer)
    assert (new.epoch, new.oldest_epoch) == (second, second)


async def test_what_is_not_settled_outlives_a_restart(bench: Bench) -> None:
    await bench.buffer.commit(commit(b"1", b"2"))
    await bench.buffer.commit(commit(b"3"))
    (lease,) = await drain(bench.buffer)
    await bench.buffer.settle([Span(lease.epoch, TELEMETRY_LANE, 1, 2)])
    await bench.restart()
    assert await payloads(bench.buffer) == [b"3"]


async def test_b5_giving_up_leaves_a_receipt_and_settles(bench: Bench) -> None:
    epoch = bench.buffer.epoch
    await bench.buffer.commit(commit(b"1", b"2", b"3"))
    receipt = Receipt(epoch, TELEMETRY_LANE, 0, 0, 2, 2, 1, 1, "refused")
    await bench.buffer.give_up(receipt)
    assert await payloads(bench.buffer) == [b"1", b"3"]
    (message,) = messages(await drain(bench.buffer, CONTROL_LANE))
    assert message.topic == "$waybill/receipt"
    assert msgspec.json.decode(message.payload, type=Receipt) == receipt


def statuses(found: list[bytes]) -> list[tuple[str, str, str, str, int, bytes | None]]:
    decoded = [msgspec.json.decode(each, type=CommandStatus) for each in found]
    return [(s.id, s.gateway, s.device, s.state, s.at_ms, s.result) for s in decoded]


async def test_c2_a_command_is_taken_in_once_with_its_delivered_status(bench: Bench) -> None:
    envelope = Envelope("id-1", "command", "V1", "unlock", b"{}", 10_000)
    assert await bench.buffer.receive(envelope, 1000)
    assert not await bench.buffer.receive(envelope, 1001)
    await bench.restart()
    assert not await bench.buffer.receive(envelope, 1002)
    assert statuses(await payloads(bench.buffer, CONTROL_LANE)) == [("id-1", "g", "V1", "delivered", 1000, None)]
    (entry,) = await bench.buffer.outbox(1003)
    assert (entry.id, entry.device, entry.name, entry.payload, entry.expires_ms) == (
        "id-1",
        "V1",
        "unlock",
        b"{}",
        10_000,
    )


async def test_c2_an_expired_command_changes_nothing(buffer: Buffer) -> None:
    assert not await buffer.receive(Envelope("id-1", "command", "V1", "unlock", b"", 1000), 1000)
    assert await buffer.outbox(0) == []
    assert await payloads(buffer, CONTROL_LANE) == []
    assert await buffer.receive(Envelope("id-1", "command", "V1", "unlock", b"", 3000), 1000)


async def test_c2_an_answer_closes_a_command_once(bench: Bench) -> None:
    await bench.buffer.receive(Envelope("id-1", "command", "V1", "unlock", b"{}", 10_000), 1000)
    for result in (
        CommandResult("id-9", "V1", b"no such command", 2000),
        CommandResult("id-1", "V2", b"another device", 2001),
        CommandResult("id-1", "V1", b"ok", 2002),
        CommandResult("id-1", "V1", b"again", 2003),
    ):
        await bench.buffer.commit(Commit(results=[result]))
    assert await bench.buffer.outbox(3000) == []
    assert statuses(await payloads(bench.buffer, CONTROL_LANE))[1:] == [("id-1", "g", "V1", "done", 2002, b"ok")]
    assert not await bench.buffer.receive(Envelope("id-1", "command", "V1", "unlock", b"{}", 10_000), 4000)


async def test_c2_an_id_is_kept_until_its_expiry_and_a_margin(bench: Bench) -> None:
    day = 24 * 3600 * 1000
    early = Envelope("id-1", "command", "V1", "unlock", b"{}", 10_000)
    await bench.buffer.receive(early, 1000)
    assert await bench.buffer.outbox(10_000) == []
    assert not await bench.buffer.receive(msgspec.structs.replace(early, expires_ms=day), 10_001)
    assert await bench.buffer.outbox(10_000 + day) == []
    assert await bench.buffer.receive(msgspec.structs.replace(early, expires_ms=3 * day), 10_000 + day)


async def test_open_commands_come_oldest_first(buffer: Buffer) -> None:
    for name in ("z", "a", "m"):
        await buffer.receive(Envelope(name, "command", "V1", "x", b"", 10_000), 0)
    assert [entry.id for entry in await buffer.outbox(1)] == ["z", "a", "m"]


async def test_sessions_come_back_as_they_were(bench: Bench) -> None:
    await bench.buffer.commit(
        Commit(
            changes=[
                SessionOpened("gone", 4),
                Subscribed("gone", "x", 0),
                Queued("gone", 1, 1, retain=False, topic=b"x", payload=b""),
                SessionOpened("a", 3),
                Subscribed("a", "x/#", 1),
                Subscribed("a", "y", 2 | 4 | 0x20, 268_435_455),
                Subscribed("a", "x/#", 2),
                Subscribed("a", "z", 0),
                Unsubscribed("a", "z"),
                Queued("a", 10, 1, retain=True, topic=b"x/10", payload=b"ten"),
                Queued("a", 9, 2, retain=False, topic=b"x/9", payload=b"nine", properties=b"p", expires_ms=77),
                Queued("a", 8, 1, retain=False, topic=b"x/8", payload=b"eight"),
                Received("a", 9),
                InboundHeld("a", 7),
                InboundHeld("a", 3),
                InboundHeld("a", 5),
                Retained(b"r/1", 1, b"old"),
                Retained(b"r/1", 0, b"new", b"p", 99),
                Retained(b"r/2", 0, b"gone"),
            ]
        )
    )
    await bench.buffer.commit(
        Commit(
            changes=[
                SessionOpened("a", 4),
                SessionDeleted("gone"),
                Dequeued("a", 8),
                InboundReleased("a", 5),
                RetainCleared(b"r/2"),
            ]
        )
    )
    await bench.restart()
    state = await bench.buffer.restore()
    assert set(state.sessions) == {"a"}
    session = state.sessions["a"]
    assert session.version == 4
    assert dict(session.subscriptions) == {"x/#": (2, 0), "y": (2 | 4 | 0x20, 268_435_455)}
    assert sorted(session.queue, key=lambda each: each.n) == [
        SavedMessage(9, 2, retain=False, topic=b"x/9", payload=b"nine", properties=b"p", received=True, expires_ms=77),
        SavedMessage(10, 1, retain=True, topic=b"x/10", payload=b"ten"),
    ]
    assert set(session.inbound) == {3, 7}
    assert dict(state.retained) == {b"r/1": Retained(b"r/1", 0, b"new", b"p", 99)}


async def test_when_sessions_expire_comes_back(bench: Bench) -> None:
    changes: list[Change] = [
        SessionOpened("online", 5, 60),
        SessionOpened("away", 5, 60),
        SessionLeft("away", 30, 1_000),
        SessionOpened("back", 5, 60),
        SessionLeft("back", 60, 1_000),
        SessionOpened("back", 5, 90),
        SessionOpened("old", 4),
    ]
    await bench.buffer.commit(Commit(changes=changes))
    await bench.restart()
    sessions = (await bench.buffer.restore()).sessions
    assert {client: (each.expiry, each.expires_ms) for client, each in sessions.items()} == {
        "online": (60, 0),
        "away": (30, 1_000),
        "back": (90, 0),
        "old": (0xFFFFFFFF, 0),
    }


def entries(*chunks: Chunk) -> list[tuple[int, bytes]]:
    return [entry for each in chunks for entry in entries_of(each.raw, each.version)]


async def memory_of(bench: Bench, client: str = "c") -> list[tuple[int, bytes]]:
    await bench.restart()
    return list((await bench.buffer.restore()).memories.get(client, ()))


async def test_o3_the_resend_memory_is_computed_from_the_blocks(bench: Bench) -> None:
    one, two = chunk(b"1", b"2", b"3", pid=1), chunk(b"4", b"5", pid=4, keep=2)
    await bench.buffer.commit(Commit([one]))
    await bench.buffer.commit(Commit([two]))
    assert await memory_of(bench) == entries(one, two)[1:]


async def test_o3_the_resend_memory_outlives_its_blocks(bench: Bench) -> None:
    one, two = chunk(b"1", b"2", b"3", pid=1), chunk(b"4", b"5", pid=4, keep=2)
    await bench.buffer.commit(Commit([one, two, chunk(b"x", client="other", pid=1)]))
    await drain(bench.buffer, settle=True)
    assert await payloads(bench.buffer) == []
    assert await memory_of(bench) == entries(one, two)[1:]
    assert await memory_of(bench) == entries(one, two)[1:]  # and a second restart


async def test_o3_what_was_proven_after_its_block_was_settled_is_forgotten(bench: Bench) -> None:
    one, two = chunk(b"1", b"2", b"3", pid=1), chunk(b"4", pid=4, keep=1)
    await bench.buffer.commit(Commit([one]))
    await drain(bench.buffer, settle=True)
    await bench.buffer.commit(Commit([two]))
    assert await memory_of(bench) == entries(one, two)[2:]


async def test_o3_what_was_proven_stays_forgotten_when_the_block_that_proved_it_goes(bench: Bench) -> None:
    one, two = chunk(b"1", b"2", b"3", pid=1), chunk(b"4", pid=4, keep=1)
    for each in (one, two):
        await bench.buffer.commit(Commit([each]))
        await drain(bench.buffer, settle=True)
        await bench.buffer.commit(Commit())
    assert await memory_of(bench) == entries(one, two)[2:]


async def test_o3_what_was_proven_stays_forgotten_when_blocks_go_out_of_order(bench: Bench) -> None:
    one, two = chunk(b"1", b"2", b"3", pid=1), chunk(b"4", pid=4, keep=1)
    await bench.buffer.commit(Commit([one]))
    await bench.buffer.commit(Commit([two]))
    await bench.buffer.settle([Span(bench.buffer.epoch, TELEMETRY_LANE, 4, 4)])
    assert await memory_of(bench) == entries(one, two)[2:]


async def test_o3_a_publish_of_qos_0_proves_too(bench: Bench) -> None:
    one = chunk(b"1", b"2", pid=1)
    await bench.buffer.commit(Commit([one]))
    await bench.buffer.commit(Commit([chunk(b"qos 0", keep=1)]))
    assert await memory_of(bench) == entries(one)[1:]


async def test_o3_a_frozen_memory_replaces_what_was_before(bench: Bench) -> None:
    one, two, three = (chunk(b"%d" % n, pid=n) for n in (1, 2, 3))
    frozen = entries(one)
    await bench.buffer.commit(Commit([one, two, three], [ResendFrozen("c", frozen, 2)]))
    assert await memory_of(bench) == frozen + entries(three)
    await bench.buffer.commit(Commit([], [ResendFrozen("c", (), 0)]))
    assert await memory_of(bench) == []


async def test_o3_a_frozen_memory_is_not_trimmed_by_keep(bench: Bench) -> None:
    one, two = chunk(b"1", pid=1), chunk(b"2", pid=2)
    await bench.buffer.commit(Commit([one], [ResendFrozen("c", entries(one), 1)]))
    await bench.buffer.commit(Commit([two]))
    await drain(bench.buffer, settle=True)
    assert await memory_of(bench) == entries(one, two)


async def test_o3_restored_memory_counts_as_frozen(bench: Bench) -> None:
    one, two = chunk(b"1", pid=1), chunk(b"2", pid=2, keep=0)
    await bench.buffer.commit(Commit([one]))
    await bench.restart()
    await bench.buffer.commit(Commit([two]))  # keep counts this connection's alone
    assert await memory_of(bench) == entries(one, two)


async def test_o3_blocks_of_an_earlier_start_leave_nothing_behind(bench: Bench) -> None:
    one = chunk(b"1", b"2", pid=1)
    await bench.buffer.commit(Commit([one]))
    await bench.restart()
    await drain(bench.buffer, settle=True)  # its entries are frozen by now
    assert await memory_of(bench) == entries(one)


async def test_o3_what_stays_at_the_gateway_is_remembered_in_its_place(bench: Bench) -> None:
    one, stays, two = chunk(b"1", pid=1), chunk(b"2", pid=2, keep=1, lane=LOCAL), chunk(b"3", pid=3, keep=1)
    await bench.buffer.commit(Commit([one, stays]))
    await bench.buffer.commit(Commit([two]))
    assert await payloads(bench.buffer) == [b"1", b"3"]
    assert await memory_of(bench) == entries(stays, two)


@pytest.mark.parametrize("pid", [0, 2], ids=["QoS 0", "QoS 1"])
async def test_o3_what_stays_at_the_gateway_proves_too(bench: Bench, pid: int) -> None:
    one = chunk(b"1", pid=1)
    stays = chunk(b"2", pid=2, lane=LOCAL) if pid else Chunk(LOCAL, "c", 4, 0, 0, 0, 0, b"")
    await bench.buffer.commit(Commit([one]))
    await bench.buffer.commit(Commit([stays]))
    assert await memory_of(bench) == entries(stays)


async def test_o3_the_memory_is_bounded_by_the_window(bench: Bench) -> None:
    many = [chunk(*[b"%d" % n] * 500, pid=1 + 500 * n, keep=500 * n) for n in range(10)]
    for each in many[:5]:
        await bench.buffer.commit(Commit([each]))
    await drain(bench.buffer, settle=True)
    for each in many[5:]:
        await bench.buffer.commit(Commit([each]))
    assert await memory_of(bench) == entries(*many)[-4096:]


async def test_a_closed_buffer_commits_nothing(buffer: Buffer) -> None:
    await buffer.close()
    with pytest.raises(Unavailable):
        await buffer.commit(commit(b"a"))

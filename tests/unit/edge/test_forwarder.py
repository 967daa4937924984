"""The forwarder over a buffer in memory: what is framed, when, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import pytest

from edge_agent.buffer.port import Chunk, Commit, Lease, Own, Position
from edge_agent.buffer.testing import MemoryBuffer
from edge_agent.clock import Clock
from edge_agent.config import ForwardSettings
from edge_agent.forward import forwarder as module
from edge_agent.forward.bodies import Body
from edge_agent.forward.forwarder import MAX_FRAME, Forwarder
from edge_agent.lanes import CONTROL, Lane, complete
from waybill.errors import Unavailable
from waybill.frames import Dictionary, Frame, decode
from waybill.frames import in_columns as encode_columns
from waybill.frames.header import COLUMNS, PLAIN
from waybill.mqtt.codec import publish
from waybill.wire import RECEIPT_TOPIC, Ack, Receipt, RefusedSpan, Span


class Wire:
    """A connection that keeps what is sent. ``gate``: while it is cleared, sending waits."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.sizes: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, frame: bytes) -> int:
        await self.gate.wait()
        self.frames.append(decode(frame))
        self.sizes.append(len(frame))
        return 0

    def has_left(self, mark: int) -> bool:
        return mark == 0


def chunk(payloads: list[bytes], topic: bytes = b"vehicles/V7/t", wall_ms: int = 1000) -> Commit:
    raw = b"".join(publish(topic, payload, 0) for payload in payloads)
    return Commit(chunks=[Chunk("telemetry", "V7", 4, wall_ms, 0, 0, len(payloads), raw)])


def forwarder(
    buffer: MemoryBuffer,
    *,
    linger_ms: int = 0,
    frame_messages: int = 1000,
    body: Body = "plain",
    clock: Clock | None = None,
) -> Forwarder:
    settings = ForwardSettings(linger_ms=linger_ms, frame_messages=frame_messages, body=body)
    return Forwarder(buffer, complete(()), settings, clock or Clock(synced=lambda: False))


class SetClock(Clock):
    """A clock that a test sets."""

    now = 1000.0

    def mono(self) -> float:
        return self.now

    def processor(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def sending(made: Forwarder, wire: Wire) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(made.watch()), asyncio.create_task(made.send_over(wire))]
    await settled()
    await made.on_ack(Ack(credit=1 << 20))
    try:
        await settled()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - the condition is somebody else's state
            await asyncio.sleep(0.005)


async def test_a_frame_carries_what_the_lease_says() -> None:
    buffer, wire = MemoryBuffer("gw1"), Wire()
    await buffer.commit(chunk([b"1", b"2"], wall_ms=5000))
    first = buffer.epoch
    buffer.restart()
    await buffer.commit(chunk([b"3"], wall_ms=4000))
    async with sending(forwarder(buffer), wire):
        await until(lambda: len(wire.frames) == 2)
    old, new = wire.frames
    assert (old.header.epoch, old.header.first, old.header.count, old.header.prev_epoch) == (first, 1, 2, 0)
    assert (new.header.epoch, new.header.prev_epoch, new.header.prev_last) == (buffer.epoch, first, 2)
    assert new.header.oldest_epoch == first
    assert (old.header.lane, old.header.order, old.header.durability) == ("telemetry", "fifo", "every-commit")
    assert (old.header.clock, old.header.base_ms) == ("unknown", 5000)
    assert old.sources == [("vehicles/V7/t", "V7")]
    assert old.rows == [(0, 0, 0, b"1", b""), (0, 0, 0, b"2", b"")]


class Slow(MemoryBuffer):
    """A buffer whose answer takes a moment; what is appended in that moment is not in it."""

    async def lease(self, lane: str, after: Position | None, count: int, size: int) -> Lease | None:
        found = await super().lease(lane, after, count, size)
        if found is None and lane == "telemetry" and not self.backlog()[1].count:
            await self.commit(chunk([b"late"]))
            await settled()  # watch() hears of it
        return found


async def test_what_is_appended_while_a_lane_is_found_empty_is_sent() -> None:
    wire = Wire()
    async with sending(forwarder(Slow("gw1")), wire):
        await until(lambda: wire.frames)
    assert wire.frames[0].rows[0][3] == b"late"


async def test_the_control_lane_goes_first_and_does_not_linger() -> None:
    buffer, wire = MemoryBuffer("gw1"), Wire()
    wire.gate.clear()
    made = forwarder(buffer, linger_ms=60_000, frame_messages=2)
    async with sending(made, wire):
        await buffer.commit(chunk([b"1", b"2", b"3"]))
        await until(lambda: made.window.frames("telemetry"))  # the first waits in the socket
        await buffer.commit(Commit(own=[Own("$waybill/health", b"{}")]))
        wire.gate.set()
        await until(lambda: len(wire.frames) == 2)
    assert [frame.header.lane for frame in wire.frames] == ["telemetry", "control"]


async def test_a_lane_that_is_shut_waits_and_goes_on_when_every_reason_is_gone() -> None:
    buffer = MemoryBuffer("gw")
    made, wire = forwarder(buffer), Wire()
    made.shut("plan", ["telemetry"])
    made.shut("uplink", ["telemetry"])
    async with sending(made, wire):
        await buffer.commit(chunk([b"1"]))
        await buffer.commit(Commit(own=[Own("$waybill/note", b"{}")]))
        await settled()
        assert [frame.header.lane for frame in wire.frames] == ["control"]
        made.shut("plan", ())
        await settled()
        assert made.why_shut("telemetry") == ["uplink"]
        assert [frame.header.lane for frame in wire.frames] == ["control"]
        made.shut("uplink", ())
        await settled()
        assert [frame.header.lane for frame in wire.frames] == ["control", "telemetry"]


async def test_what_a_connection_left_unacknowledged_goes_back_while_its_lane_is_shut() -> None:
    buffer = MemoryBuffer("gw")
    made, first, second = forwarder(buffer), Wire(), Wire()
    async with sending(made, first):
        await buffer.commit(chunk([b"1"]))
        await until(lambda: first.frames)
        made.shut("plan", ["telemetry"])
        await settled()
        assert made.window.held  # its ack may still come
    assert not made.window.held
    async with sending(made, second):
        await buffer.commit(Commit(own=[Own("$waybill/note", b"{}")]))
        await until(lambda: second.frames)
        await settled()
        assert [frame.header.lane for frame in second.frames] == ["control"]
        made.shut("plan", ())
        await until(lambda: len(second.frames) == 2)
    assert [row[3] for row in second.frames[1].rows] == [b"1"]


async def test_u2_what_a_fast_link_left_unacknowledged_is_cut_anew_for_the_next_one() -> None:
    buffer = MemoryBuffer("gw")
    made, fast, slow = forwarder(buffer), Wire(), Wire()
    payloads = [random.Random(n).randbytes(500) for n in range(1000)]
    await buffer.commit(chunk(payloads))
    async with sending(made, fast):
        await made.on_ack(Ack(credit=1 << 30))
        while max(fast.sizes) < 20_000:
            header = fast.frames[-1].header
            await made.on_ack(Ack((Span(header.epoch, header.lane, 1, header.last),)))
            await settled()
        acked = fast.frames[-1].header.first - 1
        await made.on_ack(Ack((Span(buffer.epoch, "telemetry", 1, acked),)))
        await settled()
    async with sending(made, slow):
        await made.on_ack(Ack(credit=1 << 30))
        while slow.frames[-1].header.last < fast.frames[-1].header.last:
            seen = len(slow.frames)
            header = slow.frames[-1].header
            await made.on_ack(Ack((Span(header.epoch, header.lane, 1, header.last),)))
            await until(lambda: len(slow.frames) > seen)  # noqa: B023 - called at once
    assert slow.sizes[0] < 5_000
    assert slow.frames[0].header.first == acked + 1
    rows = [row[3] for frame in slow.frames for row in frame.rows]
    assert rows == payloads[acked : acked + len(rows)]


async def test_a_frame_without_an_answer_is_not_sent_again_while_its_lane_is_shut() -> None:
    buffer, wire, clock = MemoryBuffer("gw"), Wire(), SetClock(synced=lambda: False)
    made = forwarder(buffer, clock=clock)
    async with sending(made, wire):
        await buffer.commit(chunk([b"1"]))
        await until(lambda: wire.frames)
        await settled()
        made.shut("plan", ["telemetry"])
        clock.now += 60
        await buffer.commit(Commit(own=[Own("$waybill/note", b"{}")]))
        await until(lambda: len(wire.frames) == 2)
        await settled()
        made.shut("plan", ())
        await until(lambda: len(wire.frames) == 3)
    assert [frame.header.lane for frame in wire.frames] == ["telemetry", "control", "telemetry"]


async def test_u2_a_lost_ack_of_a_lane_that_is_shut_holds_up_nobody_and_is_sent_again_when_it_opens() -> None:
    buffer, wire, clock = MemoryBuffer("gw"), Wire(), SetClock(synced=lambda: False)
    made = forwarder(buffer, clock=clock)
    async with sending(made, wire):
        await buffer.commit(chunk([b"1"]))
        await until(lambda: wire.frames)
        await made.on_ack(Ack(credit=1))  # one frame at a time
        made.shut("plan", ["telemetry"])
        await buffer.commit(Commit(own=[Own("$waybill/note", b"{}")]))
        await settled()
        assert len(wire.frames) == 1
        clock.now += 6
        made._wake.set()
        await until(lambda: len(wire.frames) == 2)
        note = wire.frames[1].header
        await made.on_ack(Ack((Span(note.epoch, "control", 1, 1),)))
        await settled()
        assert len(wire.frames) == 2
        made.shut("plan", ())
        await until(lambda: len(wire.frames) == 3)
    assert [frame.header.lane for frame in wire.frames] == ["telemetry", "control", "telemetry"]
    assert wire.frames[2].rows == wire.frames[0].rows


async def test_a_frame_waits_for_its_linger_unless_it_is_full() -> None:
    buffer, wire = MemoryBuffer("gw1"), Wire()
    made = forwarder(buffer, linger_ms=60_000, frame_messages=10)
    async with sending(made, wire):
        await until(lambda: not made._readers[1].more)
        await buffer.commit(chunk([b"x"] * 9))
        await asyncio.sleep(0.1)
        assert not wire.frames
        await buffer.commit(chunk([b"x"]))
        await until(lambda: wire.frames)
    assert [frame.header.count for frame in wire.frames] == [10]


async def test_nothing_is_leased_while_there_is_no_link() -> None:
    buffer = MemoryBuffer("gw1")
    made = forwarder(buffer)
    watching = asyncio.create_task(made.watch())
    await buffer.commit(chunk([b"x"] * 5000))
    await settled()
    assert made.window.held == 0
    watching.cancel()


async def test_b4_a_frame_of_long_topics_is_cut_below_the_largest() -> None:
    buffer, wire = MemoryBuffer("gw1"), Wire()
    rng = random.Random(5)
    for n in range(100):
        topic = f"{n}/" + "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(20_000))
        await buffer.commit(chunk([b""], topic.encode()))
    made = forwarder(buffer)
    async with sending(made, wire):
        await made.on_ack(Ack(credit=1 << 30))
        acked = 0
        while acked < 100:
            await until(lambda: sum(frame.header.count for frame in wire.frames) > acked)  # noqa: B023 - called at once
            acked = wire.frames[-1].header.last
            await made.on_ack(Ack((Span(buffer.epoch, "telemetry", 1, acked),)))
    assert max(wire.sizes) <= MAX_FRAME
    assert [frame.header.first for frame in wire.frames] == sorted(frame.header.first for frame in wire.frames)


async def test_acks_settle_the_buffer_and_what_is_owed_survives_the_connection() -> None:
    class Slow(MemoryBuffer):
        hang = True

        async def settle(self, spans: Sequence[Span]) -> int:
            if self.hang:
                await asyncio.sleep(3600)
            return await super().settle(spans)

    buffer, wire = Slow("gw1"), Wire()
    await buffer.commit(chunk([b"x"] * 5))
    made = forwarder(buffer)
    async with sending(made, wire):
        await until(lambda: wire.frames)
        acking = asyncio.create_task(made.on_ack(Ack((Span(buffer.epoch, "telemetry", 1, 5),))))
        await settled()
    acking.cancel()  # the link was lost while the buffer was settling
    await asyncio.wait([acking])
    assert sum(one.count for one in buffer.backlog()) == 5
    buffer.hang = False
    async with sending(made, Wire()):
        await until(lambda: sum(one.count for one in buffer.backlog()) == 0)
    assert made.counters.acked == 5


async def test_what_was_not_there_or_was_acked_before_is_not_counted() -> None:
    buffer, wire = MemoryBuffer("gw1"), Wire()
    await buffer.commit(chunk([b"x"] * 5))
    made = forwarder(buffer)
    async with sending(made, wire):
        await until(lambda: wire.frames)
        for span in (Span(buffer.epoch, "telemetry", 1, 1 << 62), Span(7, "telemetry", 1, 9), Span(7, "?", 1, 9)):
            await made.on_ack(Ack((span,)))
        await made.on_ack(Ack((Span(buffer.epoch, "telemetry", 1, 5),)))
    assert made.counters.acked == 5


async def test_u4_a_refused_frame_is_encoded_anew_then_halved_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(MemoryBuffer):
        failures = 2

        async def give_up(self, receipt: Receipt) -> None:
            if self.failures:
                self.failures -= 1
                raise Unavailable("disk full")
            await super().give_up(receipt)

    monkeypatch.setattr(module, "PAUSE", 0)
    buffer, wire = Failing("gw1"), Wire()
    await buffer.commit(chunk([b"%d" % n for n in range(1, 6)]))
    clock = SetClock(synced=lambda: False)
    made = forwarder(buffer, clock=clock)
    async with sending(made, wire):
        judged = 0
        while made.counters.given_up < 5:
            await settled()
            if len(wire.frames) == judged:  # the lane rests
                clock.now += 1
                made._wake.set()
                continue
            header = wire.frames[judged].header
            judged += 1
            if header.lane == "telemetry":
                span = RefusedSpan(header.epoch, header.lane, header.first, header.last, "bad")
                await made.on_ack(Ack(refused=(span,)))
            else:
                await made.on_ack(Ack((Span(header.epoch, header.lane, header.first, header.last),)))
        await until(lambda: sum(f.header.count for f in wire.frames if f.header.lane == "control") == 5)
    cuts = [(f.header.first, f.header.count) for f in wire.frames if f.header.lane == "telemetry"]
    assert cuts[:3] == [(1, 5), (1, 5), (1, 3)]
    assert sorted({first for first, count in cuts if count == 1}) == [1, 2, 3, 4, 5]
    receipts = [
        msgspec.json.decode(row[3], type=Receipt)
        for frame in wire.frames
        if frame.header.lane == "control"
        for row in frame.rows
    ]
    assert {frame.sources[0][0] for frame in wire.frames if frame.header.lane == "control"} == {RECEIPT_TOPIC}
    assert sorted((r.first, r.last, r.bytes, r.reason) for r in receipts) == [
        (seq, seq, 1, "refused: bad") for seq in range(1, 6)
    ]
    assert made.counters.given_up == 5


async def test_u4_a_cloud_that_refuses_everything_costs_a_frame_a_minute_and_no_receipt_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    buffer, wire, clock = MemoryBuffer("gw1"), Wire(), SetClock(synced=lambda: False)
    await buffer.commit(chunk([b"%d" % n for n in range(1, 301)]))
    made = forwarder(buffer, clock=clock)
    async with sending(made, wire):
        began, judged, counts = clock.now, 0, list[int]()
        while clock.now < began + 3600:
            await settled()
            for frame in wire.frames[judged:]:
                judged += 1
                header = frame.header
                span = RefusedSpan(header.epoch, header.lane, header.first, header.last, "no")
                await made.on_ack(Ack(refused=(span,)))
            if made._wake.is_set():
                continue
            counts.append(judged)
            clock.now += 10
            made._wake.set()
        kept = sum(one.count for one in buffer.backlog())
    assert 55 <= made.counters.given_up <= 75
    assert kept == 300  # each is there, or its receipt is
    assert judged < 1000
    assert counts[-1] - counts[-61] <= 10 * 12  # in ten minutes: each a message, how it is found, and one for control
    assert sum(record.levelname in {"WARNING", "ERROR"} for record in caplog.records) <= 6 * 62


def telemetry(count: int, start: int = 0) -> list[bytes]:
    return [b'{"ts":%d,"speed":%.2f}' % (1_700_000_000_000 + 50 * n, n / 7) for n in range(start, start + count)]


async def test_a_frame_in_columns_carries_what_a_plain_one_does() -> None:
    wires: dict[Body, Wire] = {"plain": Wire(), "columns": Wire()}
    for body, wire in wires.items():
        buffer = MemoryBuffer("gw1")
        await buffer.commit(chunk(telemetry(100)))
        made = forwarder(buffer, body=body)
        async with sending(made, wire):
            await until(lambda wire=wire: wire.frames)  # type: ignore[misc]
        assert made.counters.columns == (body == "columns")
    (plain,), (columns,) = wires["plain"].frames, wires["columns"].frames
    assert (plain.header.codec, columns.header.codec) == (PLAIN, COLUMNS)
    assert (columns.sources, columns.rows) == (plain.sources, plain.rows)
    assert wires["columns"].sizes[0] < wires["plain"].sizes[0] / 2


async def test_auto_takes_columns_while_the_link_makes_it_wait_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Wire):
        seconds = 0.0

        async def send(self, frame: bytes) -> int:
            clock.now += self.seconds
            mark = await super().send(frame)
            header = self.frames[-1].header
            await made.on_ack(Ack((Span(header.epoch, header.lane, header.first, header.last),)))
            return mark

    def working(frame: bytes, _dictionary: Dictionary | None, **_: bool) -> bytes:
        clock.now += 0.002
        return encode_columns(frame)

    monkeypatch.setattr(module, "in_columns", working)
    clock, buffer, wire = SetClock(synced=lambda: False), MemoryBuffer("gw1"), Slow()
    made = forwarder(buffer, frame_messages=50, body="auto", clock=clock)
    codecs = []
    async with sending(made, wire):
        await made.on_ack(Ack(credit=1 << 30))
        for seconds in (0.0, 0.5, 0.0):
            wire.seconds = seconds
            wire.frames.clear()
            await buffer.commit(chunk(telemetry(5000)))
            await until(lambda: len(wire.frames) == 100)
            codecs.append([frame.header.codec for frame in wire.frames])
    fast, slow, again = codecs
    assert (fast[0], set(fast[-50:])) == (COLUMNS, {PLAIN})
    assert slow == [PLAIN] * 2 + [COLUMNS] * 98
    assert again[-1] == PLAIN


async def test_auto_takes_columns_while_it_waits_for_credit() -> None:
    clock, buffer, wire = SetClock(synced=lambda: False), MemoryBuffer("gw1"), Wire()
    made = forwarder(buffer, frame_messages=100, body="auto", clock=clock)
    async with sending(made, wire):
        await made.on_ack(Ack(credit=1))
        await buffer.commit(chunk(telemetry(500)))
        for number in range(5):
            await until(lambda: len(wire.frames) > number)  # noqa: B023 - called at once
            await until(lambda: made._is_held_up() and not made._wake.is_set())
            clock.now += 0.5
            header = wire.frames[-1].header
            await made.on_ack(Ack((Span(header.epoch, header.lane, header.first, header.last),)))
    assert [frame.header.codec for frame in wire.frames] == [COLUMNS] * 5


async def test_a_slow_encoder_holds_up_nobody_and_what_a_lost_link_cuts_off_is_sent_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, go_on, waited = threading.Event(), threading.Event(), list[bool]()

    def slow(frame: bytes, _dictionary: Dictionary | None, **_: bool) -> bytes:
        entered.set()
        waited.append(go_on.wait(60))
        return encode_columns(frame)

    monkeypatch.setattr(module, "in_columns", slow)
    buffer, wire = MemoryBuffer("gw1"), Wire()
    await buffer.commit(chunk(telemetry(100)))
    made = forwarder(buffer, body="columns")
    async with sending(made, wire):
        await until(entered.is_set)
        await buffer.commit(chunk(telemetry(50, 100)))  # devices are served meanwhile
        await made.on_ack(Ack(credit=1 << 20))
    assert not wire.frames
    go_on.set()
    wire = Wire()
    async with sending(made, wire):
        await until(lambda: sum(frame.header.count for frame in wire.frames) == 150)
    assert [row[3] for frame in wire.frames for row in frame.rows] == telemetry(150)
    assert all(waited)


async def test_u4_columns_that_are_refused_come_again_as_plain_and_no_more_until_the_next_connection() -> None:
    buffer, wire = MemoryBuffer("gw1"), Wire()
    await buffer.commit(chunk(telemetry(100)))
    made = forwarder(buffer, body="columns")
    async with sending(made, wire):
        await until(lambda: wire.frames)
        header = wire.frames[0].header
        span = RefusedSpan(header.epoch, header.lane, header.first, header.last, "body codec 2 is not known")
        await made.on_ack(Ack(refused=(span,)))
        await until(lambda: len(wire.frames) == 2)
        await buffer.commit(chunk(telemetry(100, 100)))
        await until(lambda: len(wire.frames) == 3)
    assert [(frame.header.codec, frame.header.first) for frame in wire.frames] == [
        (COLUMNS, 1),
        (PLAIN, 1),
        (PLAIN, 101),
    ]
    assert wire.frames[1].rows == wire.frames[0].rows
    await buffer.commit(chunk(telemetry(100, 200)))
    wire = Wire()
    async with sending(made, wire):
        await until(lambda: sum(frame.header.count for frame in wire.frames) == 300)
    assert {frame.header.codec for frame in wire.frames} == {COLUMNS}


async def test_fresh_first_sends_what_comes_before_the_backlog_and_the_backlog_from_its_end() -> None:
    buffer, wire = MemoryBuffer("gw1"), Wire()
    settings = ForwardSettings(linger_ms=0, frame_messages=10, body="plain")
    lane = Lane("telemetry", order="fresh-first")
    made = Forwarder(buffer, [CONTROL, lane], settings, Clock(synced=lambda: False))
    await buffer.commit(chunk([b"%d" % n for n in range(1, 31)]))
    wire.gate.clear()
    async with sending(made, wire):
        await until(lambda: made.window.frames("telemetry"))  # the first waits in the socket
        await buffer.commit(chunk([b"31", b"32"]))
        wire.gate.set()
        await until(lambda: sum(frame.header.count for frame in wire.frames) == 32)
    order = [(frame.header.first, frame.header.last) for frame in wire.frames]
    assert order == [(21, 30), (31, 32), (11, 20), (1, 10)]
    assert {frame.header.order for frame in wire.frames} == {"fresh-first"}
    for frame in wire.frames:
        assert [row[3] for row in frame.rows] == [b"%d" % n for n in range(frame.header.first, frame.header.last + 1)]


async def test_a_lane_with_a_share_gets_it_while_a_more_urgent_one_has_more_than_the_link_takes() -> None:
    buffer, wire = MemoryBuffer("gw1"), Wire()
    settings = ForwardSettings(linger_ms=0, frame_messages=50, body="plain")
    lanes = [CONTROL, Lane("alarms", 5), Lane("telemetry", 10, share=25), Lane("bulk", 20)]
    made = Forwarder(buffer, lanes, settings, Clock(synced=lambda: False))
    for lane in ("alarms", "telemetry", "bulk"):
        raw = b"".join(publish(b"t", random.Random(n).randbytes(100), 0) for n in range(3000))
        await buffer.commit(Commit(chunks=[Chunk(lane, "c", 4, 0, 0, 0, 3000, raw)]))
    async with sending(made, wire):
        await made.on_ack(Ack(credit=1 << 30))
        seen = 0
        while sum(frame.header.lane == "alarms" for frame in wire.frames) < 40:
            await until(lambda: len(wire.frames) > seen)  # noqa: B023 - called at once
            header = wire.frames[seen].header
            seen += 1
            await made.on_ack(Ack((Span(header.epoch, header.lane, header.first, header.last),)))
    sent = [frame.header.lane for frame in wire.frames]
    assert "bulk" not in sent
    assert 0.2 < sent.count("telemetry") / len(sent) < 0.3

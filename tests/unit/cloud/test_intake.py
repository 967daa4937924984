"""U3, U4 and B1 of the uplink: what is journaled, what is answered, and what never is."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

import pytest

from cloud_ingest import intake as module
from cloud_ingest.intake import ONE_FRAME, Intake, judge, merged
from waybill.errors import Corrupt, Refused, TopicRefused, Unavailable
from waybill.frames import encode_plain
from waybill.mqtt.state import Arrival, Batch, Publish
from waybill.wire import Ack, RefusedSpan, Span, up_topic


def frame(first: int = 1, count: int = 1, lane: str = "telemetry", payload: bytes = b"x") -> bytes:
    return encode_plain(
        epoch=7,
        prev_epoch=0,
        prev_last=0,
        oldest_epoch=7,
        lane=lane,
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=first,
        base_ms=0,
        sources=[("t", "c")],
        rows=[(0, 0, 1, payload, b"")] * count,
    )


def versioned(data: bytes, version: int) -> bytes:
    return data[:2] + bytes([version]) + data[3:]


def batch(*frames: bytes, gateway: str = "g", qos: int = 0, topic: str = "") -> Batch:
    name = (topic or up_topic(gateway)).encode()
    publishes: list[Publish] = [(name, data, qos << 1, b"\0\1" if qos else None, 0, 0, b"") for data in frames]
    return Batch([Arrival(gateway, gateway, 4, 0, 0, b"", publishes)])


class Bench:
    """An intake with a journal that a test can hold, break and read."""

    def __init__(self, **limits: int) -> None:
        self.journal: list[tuple[str, bytes]] = []
        self.errors: dict[bytes, Exception] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.holding: dict[str, asyncio.Event] = {}
        self.acks: list[tuple[str, Ack]] = []
        self.hung_up: list[str] = []
        self.closed = ""
        self.log_id = 7
        self.intake = Intake(
            self,
            send=lambda gateway, ack: self.acks.append((gateway, ack)),
            hang_up=self.hung_up.append,
            closed=lambda: self.closed,
            **{"max_frame": 1 << 20, "memory": 1 << 22, "credit": 1 << 21} | limits,
        )

    async def append_frame(self, gateway: str, frame: bytes) -> None:
        await self.holding.get(gateway, self.gate).wait()
        if error := self.errors.get(frame):
            raise error
        self.journal.append((gateway, frame))

    async def idle(self) -> None:
        """Wait until everything that was taken is answered."""
        async with asyncio.timeout(60):
            while self.intake._queues:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def answer(self, what: Batch) -> Ack:
        """Commit ``what`` and return the one ack that it leads to."""
        before = len(self.acks)
        await self.intake.commit(what)
        await self.idle()
        assert len(self.acks) == before + 1
        return self.acks[-1][1]


async def test_b1_an_ack_leaves_only_after_the_journal_has_the_frame() -> None:
    bench = Bench()
    bench.gate.clear()
    await bench.intake.commit(batch(frame()))
    await asyncio.sleep(0)
    assert bench.acks == []
    bench.gate.set()
    await bench.idle()
    assert [ack.journaled for _, ack in bench.acks] == [(Span(7, "telemetry", 1, 1),)]
    assert bench.journal == [("g", frame())]


async def test_b1_a_puback_waits_for_the_journal() -> None:
    bench = Bench()
    bench.gate.clear()
    commit = asyncio.create_task(bench.intake.commit(batch(frame(), qos=1)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not commit.done()
    bench.gate.set()
    await commit
    assert bench.hung_up == []


async def test_b1_no_puback_for_a_frame_that_is_not_journaled() -> None:
    bench = Bench()
    bench.errors[frame()] = Unavailable("no broker")
    assert (await bench.answer(batch(frame(), qos=1))).retry == (Span(7, "telemetry", 1, 1),)
    assert bench.hung_up == ["g"]


async def test_frames_that_came_together_are_answered_together_and_in_order() -> None:
    bench = Bench()
    frames = [frame(1, 3), frame(4, 2), frame(6, 1, "control"), frame(6, 1), frame(9, 1)]
    ack = await bench.answer(batch(*frames))
    assert ack.journaled == (
        Span(7, "telemetry", 1, 5),
        Span(7, "control", 6, 6),
        Span(7, "telemetry", 6, 6),
        Span(7, "telemetry", 9, 9),
    )
    assert [data for _, data in bench.journal] == frames


async def test_gateways_do_not_wait_for_each_other() -> None:
    bench = Bench()
    held = bench.holding["slow"] = asyncio.Event()
    await bench.intake.commit(batch(frame(), gateway="slow"))
    await bench.intake.commit(batch(frame(), gateway="quick"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert [gateway for gateway, _ in bench.acks] == ["quick"]
    held.set()
    await bench.idle()
    assert [gateway for gateway, _ in bench.acks] == ["quick", "slow"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "WB"),
        (b"hello", "WB"),
        (frame()[:-1], "checksum"),
        (frame(lane="a lane"), "lane"),
        (frame()[:3] + b"\x09" + frame()[4:], "body codec 9 is not known"),
        (frame(payload=bytes(range(256)) * 9)[:200], "checksum"),
    ],
)
async def test_u4_a_frame_that_can_never_be_decoded_is_refused_and_not_journaled(data: bytes, reason: str) -> None:
    bench = Bench()
    ack = await bench.answer(batch(data, frame(2)))
    assert [span.reason for span in ack.refused if reason in span.reason]
    assert ack.journaled == (Span(7, "telemetry", 2, 2),)
    assert bench.journal == [("g", frame(2))]
    assert bench.intake.counters.refused == 1


async def test_u4_a_corrupt_frame_is_named_as_far_as_it_can_be_read() -> None:
    bench = Bench()
    ack = await bench.answer(batch(frame(5, 2)[:-1] + b"!"))
    assert ack.refused == (RefusedSpan(7, "telemetry", 5, 6, "frame: the checksum does not match"),)
    ack = await bench.answer(batch(b"?"))
    assert ack.refused[0].epoch == 0


async def test_u4_a_frame_too_large_here_or_for_the_topic_is_refused() -> None:
    large = frame(payload=b"".join(zlib.crc32(bytes([n % 256, n // 256])).to_bytes(4) for n in range(500)))
    bench = Bench(max_frame=1000)
    assert "over the limit of 1000" in (await bench.answer(batch(large))).refused[0].reason
    bench = Bench()
    bench.errors[large] = Refused("larger than max.message.bytes")
    ack = await bench.answer(batch(large))
    assert ack.refused == (RefusedSpan(7, "telemetry", 1, 1, "larger than max.message.bytes"),)


async def test_u4_an_unknown_version_is_answered_with_those_spoken_and_kept_by_the_gateway() -> None:
    bench = Bench()
    ack = await bench.answer(batch(versioned(frame(), 9)))
    assert ack.versions == (1,)
    assert (ack.journaled, ack.refused, ack.retry) == ((), (), ())
    assert bench.intake.counters.unknown_versions == 1


async def test_u4_a_journal_that_is_gone_or_forbidden_refuses_no_frame() -> None:
    """Refused would have the gateway drop it with a receipt; a person can bring the topic back."""
    bench = Bench()
    bench.errors[frame()] = TopicRefused("waybill.frames", "no such topic")
    ack = await bench.answer(batch(frame()))
    assert (ack.refused, ack.retry) == ((), (Span(7, "telemetry", 1, 1),))
    assert bench.intake.fault == "waybill.frames: no such topic"


async def test_u4_what_cannot_be_journaled_is_retried_and_nothing_else() -> None:
    bench = Bench()
    bench.errors[frame(2)] = Unavailable("no broker")
    ack = await bench.answer(batch(frame(1), frame(2), frame(3), b"?"))
    assert ack.journaled == (Span(7, "telemetry", 1, 1), Span(7, "telemetry", 3, 3))
    assert ack.retry == (Span(7, "telemetry", 2, 2),)
    assert len(ack.refused) == 1
    assert (await bench.answer(batch(frame(2)))).retry == (Span(7, "telemetry", 2, 2),)
    assert bench.intake.fault == "no broker"
    bench.errors.clear()
    assert (await bench.answer(batch(frame(2)))).journaled == (Span(7, "telemetry", 2, 2),)
    assert bench.intake.fault == ""


async def test_frames_that_came_together_are_journaled_in_order_and_do_not_wait_for_each_other() -> None:
    bench = Bench()
    bench.gate.clear()
    began: list[bytes] = []
    hold = bench.append_frame

    async def noted(gateway: str, data: bytes) -> None:
        began.append(data)
        await hold(gateway, data)

    bench.append_frame = noted  # type: ignore[assignment]
    frames = [frame(1), frame(2), frame(3)]
    await bench.intake.commit(batch(*frames))
    async with asyncio.timeout(60):
        while len(began) < 3:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)
    bench.gate.set()
    await bench.idle()
    assert began == frames
    assert [data for _, data in bench.journal] == frames
    assert bench.acks[-1][1].journaled == (Span(7, "telemetry", 1, 3),)


async def test_r8_nothing_is_journaled_while_the_router_lags_too_far() -> None:
    bench = Bench()
    bench.closed = "the router lags"
    assert (await bench.answer(batch(frame()))).retry == (Span(7, "telemetry", 1, 1),)
    assert bench.journal == []
    bench.closed = ""
    assert (await bench.answer(batch(frame()))).journaled


async def test_only_the_gateways_own_up_topic_is_journaled() -> None:
    bench = Bench()
    await bench.intake.commit(batch(frame(), topic="wb/v1/other/up"))
    await bench.intake.commit(batch(b'{"state":"online"}', topic="wb/v1/g/state"))
    await bench.idle()
    assert bench.journal == []
    assert bench.acks == []


async def test_u3_credit_is_told_when_the_gateway_listens_when_it_changes_and_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(memory=8 << 20, credit=4 << 20)
    bench.intake.listening("g")
    assert bench.acks == [("g", Ack(credit=4 << 20, log=7))]
    assert (await bench.answer(batch(frame()))).credit is None
    monkeypatch.setattr(module, "AGAIN", 0.0)
    assert (await bench.answer(batch(frame()))).credit == 4 << 20
    renewing = asyncio.create_task(bench.intake.renew_credit(0.001))
    for n in range(3):
        bench.intake.listening(f"h{n}")
    async with asyncio.timeout(60):
        while ("g", Ack(credit=2 << 20, log=7)) not in bench.acks:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)
    bench.intake.gone("g")
    told = len([one for one in bench.acks if one[0] == "g"])
    for n in range(2):
        bench.intake.gone(f"h{n}")
    async with asyncio.timeout(60):
        while ("h2", Ack(credit=4 << 20, log=7)) not in bench.acks:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)
    assert len([one for one in bench.acks if one[0] == "g"]) == told
    renewing.cancel()


async def test_r10_a_log_that_becomes_known_later_is_named_with_the_next_credit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.log_id = 0
    bench.intake.listening("g")
    assert bench.acks[-1][1].log == 0
    bench.log_id = 8
    assert (await bench.answer(batch(frame()))).log == 0, "bytes: not with every ack"
    monkeypatch.setattr(module, "AGAIN", 0.0)
    assert (await bench.answer(batch(frame()))).log == 8


async def test_u3_credit_is_a_share_of_the_free_memory_and_never_below_one_frame() -> None:
    bench = Bench(memory=8 << 20, credit=4 << 20)
    for n in range(4):
        bench.intake.listening(f"g{n}")
    assert bench.intake.credit() == 2 << 20
    bench.gate.clear()
    await bench.intake.commit(batch(bytes(4 << 20)))
    assert bench.intake.credit() == ONE_FRAME
    for n in range(100):
        bench.intake.listening(f"h{n}")
    assert bench.intake.credit() == ONE_FRAME
    bench.gate.set()
    await bench.idle()
    assert bench.intake.pending == 0


async def test_beyond_the_memory_nothing_more_is_read() -> None:
    bench = Bench(memory=1000)
    bench.gate.clear()
    one = frame()
    commit = asyncio.create_task(bench.intake.commit(batch(*[one] * (1000 // len(one) + 1))))
    await asyncio.sleep(0.01)
    assert not commit.done()
    bench.gate.set()
    async with asyncio.timeout(60):
        await commit
    await bench.idle()
    assert bench.intake.pending == 0


async def test_a_fault_of_the_program_costs_that_gateway_its_connection_and_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.errors[frame(1)] = ZeroDivisionError("a bug")
    await bench.intake.commit(batch(frame(1), qos=1))
    await bench.idle()
    assert bench.hung_up.count("g") >= 1
    assert bench.acks == []
    assert bench.intake.pending == 0
    assert "could not be handled" in caplog.text
    assert (await bench.answer(batch(frame(2)))).journaled == (Span(7, "telemetry", 2, 2),)


async def test_closing_gives_up_after_its_patience_and_acks_nothing() -> None:
    bench = Bench()
    bench.gate.clear()
    await bench.intake.commit(batch(frame()))
    await bench.intake.close(0.01)
    assert bench.acks == []
    assert bench.intake.pending == 0


async def test_what_comes_after_closing_is_neither_journaled_nor_answered() -> None:
    bench = Bench()
    bench.gate.clear()
    await bench.intake.commit(batch(frame(1)))
    closing = asyncio.create_task(bench.intake.close(5))
    await asyncio.sleep(0)
    await bench.intake.commit(batch(frame(2)))
    await bench.intake.commit(batch(frame(3), qos=1))
    bench.gate.set()
    await closing
    assert [ack.journaled for _, ack in bench.acks] == [(Span(7, "telemetry", 1, 1),)]
    assert bench.hung_up == ["g"]


def test_judge_takes_what_the_wire_contract_allows() -> None:
    assert judge(frame(3, 2, lane="Lane-1.a_b"), 1 << 20).last == 4
    with pytest.raises(Corrupt, match="over the limit"):
        judge(frame(), 10)


def test_merged_joins_only_what_follows_in_one_lane() -> None:
    a: list[Any] = [Span(1, "a", 1, 2), Span(1, "a", 3, 3), Span(1, "b", 4, 4), Span(2, "b", 5, 5), Span(2, "b", 7, 7)]
    assert merged(a) == (Span(1, "a", 1, 3), Span(1, "b", 4, 4), Span(2, "b", 5, 5), Span(2, "b", 7, 7))
    assert merged([]) == ()

"""A link that is away for seven days, in simulated time, with a restart a day; then everything drains in order."""

from __future__ import annotations

import asyncio
from pathlib import Path

from edge_agent.buffer.port import Chunk, Commit
from edge_agent.buffer.sqlite import SqliteBuffer
from edge_agent.clock import Clock
from edge_agent.config import ForwardSettings
from edge_agent.forward.forwarder import Forwarder
from edge_agent.lanes import complete
from tests.support.buffer import SMALL
from waybill.frames import Frame, decode
from waybill.mqtt.codec import publish
from waybill.wire import TELEMETRY_LANE, Ack, Span

DAYS, EVERY_S = 7, 15
DAY_MS = 86_400_000
START_MS = 1_790_000_000_000


class Cloud:
    """A connection whose frames are acknowledged as they come."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.came = asyncio.Event()

    async def send(self, frame: bytes) -> int:
        self.frames.append(decode(frame))
        self.came.set()
        return 0

    def has_left(self, mark: int) -> bool:
        return mark == 0


async def test_everything_of_a_week_arrives_once_and_in_order(tmp_path: Path) -> None:
    now_ms, number, epochs = START_MS, 0, list[int]()

    async def opened(day: int) -> SqliteBuffer:
        clock = lambda: (now_ms, (now_ms - START_MS) * 1_000_000)  # noqa: E731 - the time as it is then
        return await SqliteBuffer.open(tmp_path / "data", SMALL, gateway="g", boot=f"boot-{day}", clock=clock)

    for day in range(DAYS):
        buffer = await opened(day)
        epochs.append(buffer.epoch)
        for _ in range(24):
            commit = Commit()
            for _ in range(3600 // EVERY_S):
                number += 1
                raw = publish(b"plant/press", b"%d" % number, 0)
                commit.chunks.append(Chunk(TELEMETRY_LANE, "press", 4, now_ms, 0, 0, 1, raw))
                now_ms += EVERY_S * 1000
            await buffer.commit(commit)
        await buffer.close()
    assert now_ms == START_MS + DAYS * DAY_MS

    buffer, cloud = await opened(DAYS), Cloud()
    made = Forwarder(buffer, complete(()), ForwardSettings(linger_ms=0), Clock(synced=lambda: False))
    tasks = [asyncio.create_task(made.watch()), asyncio.create_task(made.send_over(cloud))]
    await made.on_ack(Ack(credit=1 << 22))
    answered = 0
    async with asyncio.timeout(180):
        while sum(frame.header.count for frame in cloud.frames) < number or answered < len(cloud.frames):
            await cloud.came.wait()
            cloud.came.clear()
            while answered < len(cloud.frames):
                header = cloud.frames[answered].header
                answered += 1
                await made.on_ack(Ack((Span(header.epoch, header.lane, header.first, header.last),)))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    got = [(frame.header.base_ms + row[1], row[3]) for frame in cloud.frames for row in frame.rows]
    assert got == [(START_MS + (n - 1) * EVERY_S * 1000, b"%d" % n) for n in range(1, number + 1)]
    assert list(dict.fromkeys(frame.header.epoch for frame in cloud.frames)) == epochs
    a_day = number // DAYS
    for frame in cloud.frames:
        day = epochs.index(frame.header.epoch)
        assert (frame.header.prev_epoch, frame.header.prev_last) == ((epochs[day - 1], a_day) if day else (0, 0))
    assert made.window.resent == 0
    assert sum(one.count for one in buffer.backlog()) == 0
    await buffer.close()

"""Agent and ingest over links that are slow, long, lossy, or change: all arrives, and commands are quick."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fleet_simulator.processes import waybill
from tests.bench.test_frames import rows
from tests.support.emulated_site import Site, site
from tests.support.link_emulator import EmulatedLink, emulated_link
from waybill import snapshot

pytestmark = pytest.mark.system

FRAME = 1.0
"""Seconds of other bytes that what is urgent finds before it, about (:mod:`edge_agent.forward.pace`)."""

OURS = 5.0
"""Seconds that the processes at both ends may take besides the link, on a machine with other work."""

TRIES = 12
"""Commands of which some must be quick: the machine's other work may slow any of them, and the link's hits all."""


def messages(count: int) -> Iterator[tuple[bytes, bytes]]:
    made = [(f"vehicles/V{source:06d}/telemetry".encode(), payload) for source, _, _, payload, _ in rows()]
    return itertools.islice(itertools.cycle(made), count)


@asynccontextmanager
async def draining(
    directory: Path, count: int, *, keepalive: int = 20, **values: float
) -> AsyncIterator[tuple[Site, EmulatedLink]]:
    """An agent that has ``count`` messages and is connected since just now."""
    async with emulated_link(**values) as link, site(directory, link, keepalive=keepalive) as ends:
        await ends.buffer(messages(count))
        await ends.cloud.start()
        await ends.start_agent()
        await ends.until_online(60)
        yield ends, link


async def until_sent(ends: Site, frames: int) -> None:
    async with asyncio.timeout(180):
        while (await ends.snapshot())["counters"]["forwarder_sent_frames"] < frames:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def all_routed(ends: Site, count: int, patience: float) -> dict[str, float]:
    """Wait until the cloud has routed every message, each once; return the agent's counters."""
    await ends.drained(patience)
    async with asyncio.timeout(180):
        while True:
            cloud = await snapshot.request(ends.directory / "cloud" / "cloud.sock", "snapshot")
            routed = sum(int(partition["routed"]) for partition in cloud["partitions"])
            if routed >= count:
                break
            await asyncio.sleep(0.1)
    assert routed == count
    counters: dict[str, float] = (await ends.snapshot())["counters"]
    return counters


async def command(ends: Site, name: str) -> float:
    """Send a command; return the seconds from its record until its ``delivered`` status is in the cloud."""
    config = ["--config", str(ends.directory / "cloud.toml")]
    watching = await asyncio.create_subprocess_exec(
        *waybill("command", "watch", name, "--json", *config), stdout=asyncio.subprocess.PIPE
    )
    assert watching.stdout is not None
    sending = await asyncio.create_subprocess_exec(
        *waybill("command", "send", "--gateway", "gw1", "--device", "V1", "--name", "ping", "--id", name, *config),
        stdout=asyncio.subprocess.PIPE,
    )
    assert sending.stdout is not None
    try:
        async with asyncio.timeout(180):
            await sending.stdout.readline()
            began = time.monotonic()
            while json.loads(await watching.stdout.readline())["state"] != "delivered":
                pass
            return time.monotonic() - began
    finally:
        watching.terminate()
        await watching.wait()
        await sending.wait()


async def quick(ends: Site, wanted: int, seconds: float) -> None:
    """See so many commands take less than ``seconds`` while a backlog waits."""
    took: list[float] = []
    while sum(one < seconds for one in took) < wanted:
        assert len(took) < TRIES, took
        took.append(await command(ends, f"c{len(took)}"))
        assert await ends.waiting(), "the backlog was gone too soon for this to say anything"


@pytest.mark.parametrize(
    ("values", "count"),
    [
        pytest.param({"rate": 32e3, "delay": 0.05}, 16_000, id="32 kbit/s"),
        pytest.param({"rate": 1e6, "delay": 1.0}, 200_000, id="2 s round trip"),
        pytest.param({"rate": 1e6, "delay": 0.05, "loss": 0.05}, 200_000, id="5 % loss"),
        pytest.param({"rate": 256e3, "delay": 0.1, "jitter": 0.2}, 60_000, id="jitter"),
    ],
)
async def test_a_backlog_drains_over_one_connection_and_commands_pass_it(
    values: dict[str, float], count: int, tmp_path: Path
) -> None:
    async with draining(tmp_path, count, keepalive=20, **values) as (ends, link):
        await until_sent(ends, 10)
        trip = 2 * (values["delay"] + values.get("jitter", 0.0))
        await quick(ends, 3, 2 * trip + FRAME + OURS)
        await link.set("both", rate=1e6)
        counters = await all_routed(ends, count, 600)
        assert counters["uplink_connects"] == 1
        # A probe, where a process at an end had to wait for a processor.
        assert counters["forwarder_resent"] <= max(1, counters["forwarder_sent_frames"] / 50)


async def test_u2_a_rate_that_falls_wastes_nothing_and_the_connection_stays(tmp_path: Path) -> None:
    count = 100_000
    async with draining(tmp_path, count, rate=1e6, delay=0.05) as (ends, link):
        async with asyncio.timeout(180):  # until the window is as large as the link asks for
            while (await ends.snapshot())["counters"]["forwarder_sent_bytes"] < 250_000:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await link.set("both", rate=32e3)
        before = await ends.waiting()
        async with asyncio.timeout(120):
            while await ends.waiting() > before - 15_000:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.2)
        await quick(ends, 1, 2 * 0.1 + FRAME + OURS)
        await link.set("both", rate=1e6)
        counters = await all_routed(ends, count, 600)
        assert counters["uplink_connects"] == 1
        # A probe: the cloud's TCP may hold an ack back while what acknowledges its bytes waits in the full queue.
        assert counters["forwarder_resent"] <= max(1, counters["forwarder_sent_frames"] / 50)
        up = (await link.count())["up"]
        assert up["bytes"] < 1.1 * counters["forwarder_sent_bytes"] + 50_000


async def test_a_link_on_which_everything_vanishes_is_known_to_be_dead_within_1_5_keepalives(tmp_path: Path) -> None:
    count, keepalive = 100_000, 6
    async with draining(tmp_path, count, rate=1e6, delay=0.05, keepalive=keepalive) as (ends, link):
        await until_sent(ends, 5)
        await link.set("both", hole=1)
        began = time.monotonic()
        async with asyncio.timeout(180):
            while (await ends.snapshot())["link"]["state"] == "online":  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.05)
        assert time.monotonic() - began < 1.5 * keepalive + OURS
        await link.set("both", hole=0)
        counters = await all_routed(ends, count, 600)
        assert counters["forwarder_resent"] < counters["forwarder_sent_frames"] / 2


async def test_u2_a_link_that_becomes_300_times_slower_loses_one_connection_and_goes_on(tmp_path: Path) -> None:
    count, rng = 6000, random.Random(16)
    payloads = [(b"vehicles/V1/image", rng.randbytes(3000)) for _ in range(count)]
    async with emulated_link(rate=20e6, delay=0.01) as link, site(tmp_path, link, keepalive=10) as ends:
        await ends.buffer(payloads)
        await ends.cloud.start()
        await ends.start_agent()
        async with asyncio.timeout(180):
            while await ends.waiting() > count - 1500:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.05)
        await link.set("both", rate=64e3)  # a frame of 256 KiB takes half a minute now
        async with asyncio.timeout(180):
            while (await ends.snapshot())["counters"]["uplink_connects"] < 2:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.2)
        before = await ends.waiting()
        assert before
        async with asyncio.timeout(180):
            while await ends.waiting() > before - 40:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.2)
        await link.set("both", rate=20e6)
        counters = await all_routed(ends, count, 600)
        assert counters["uplink_connects"] == 2

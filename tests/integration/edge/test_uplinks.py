"""Several uplinks: which is used, when one fails, when a better one is back."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.config import ForwardSettings
from edge_agent.lanes import Lane
from edge_agent.uplink import dial
from edge_agent.uplink import link as link_module
from edge_agent.uplink import uplinks as module
from edge_agent.uplink.config import UplinkSettings
from edge_agent.uplink.link import Link
from edge_agent.uplink.uplinks import Uplinks, return_delay
from fleet_simulator.link import Link as Relay
from tests.integration.edge import agents
from tests.integration.edge.peer import GATEWAY, Cloud, listening, until, url


def named(name: str, address: tuple[str, int], **more: Any) -> UplinkSettings:
    return msgspec.structs.replace(url(address), name=name, **{"return_s": 1, **more})


class Served:
    """Which links were served, in order, and which of them is served now."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.now: list[str] = []

    async def serve(self, link: Link) -> None:
        self.names.append(link.uplink)
        self.now.append(link.uplink)
        try:
            async for _ in link.received():
                pass
        finally:
            self.now.remove(link.uplink)


@contextlib.asynccontextmanager
async def running(
    settings: list[UplinkSettings], serve: Callable[[Link], Awaitable[None]], rng: random.Random | None = None
) -> AsyncIterator[Uplinks]:
    uplinks = Uplinks(settings, GATEWAY, "1.2.3", rng or random.Random(1))
    task = asyncio.create_task(uplinks.run(serve))
    try:
        yield uplinks
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_the_second_takes_over_and_the_first_comes_back_with_every_message_once_and_in_order(
    tmp_path: Path,
) -> None:
    async with (
        listening(Cloud()) as cloud,
        Relay(cloud.address) as wifi,
        Relay(cloud.address) as lte,
        agents.running(
            tmp_path,
            (named("wifi", wifi.address), named("lte", lte.address, metered=True)),
            ForwardSettings(frame_messages=5, linger_ms=0),
        ) as agent,
    ):

        def used() -> str:
            return agent.agent.status().link.uplink

        await until(lambda: used() == "wifi")
        await agents.publish(agent.port, [b"%d" % n for n in range(100)])
        await wifi.cut()
        await agents.publish(agent.port, [b"%d" % n for n in range(100, 200)])
        await until(lambda: used() == "lte")
        assert lte.connections == 1
        states = {one.name: one for one in agent.agent.status().uplinks}
        assert (states["wifi"].state, states["lte"].state) == ("offline", "online")
        assert states["wifi"].error in {
            f"127.0.0.1:{wifi.address[1]} refuses the connection",
            "Connection reset by peer",
        }
        await agents.publish(agent.port, [b"%d" % n for n in range(200, 300)])
        await wifi.restore()
        await agents.publish(agent.port, [b"%d" % n for n in range(300, 400)])
        await until(lambda: used() == "wifi")
        await agents.publish(agent.port, [b"%d" % n for n in range(400, 500)])
        await until(lambda: not agent.waiting())
        assert lte.connections == 1
        states = {one.name: one for one in agent.agent.status().uplinks}
        assert (states["wifi"].state, states["lte"].state) == ("online", "unused")
        assert min(states["lte"].sent, states["wifi"].sent) > 1000
    assert list(cloud.by_seq("telemetry").values()) == [b"%d" % n for n in range(500)]
    # The last word of each connection that was left is not the state of the gateway.
    assert [state.state for state in cloud.states][-2:] == ["online", "offline"]
    assert cloud.states[-1].reason == "stopped"


async def test_the_better_link_is_made_before_the_other_one_is_left() -> None:
    served = Served()
    async with listening(Cloud()) as near, listening(Cloud()) as far, Relay(near.address) as relay:
        await relay.cut()
        async with running([named("a", relay.address), named("b", far.address)], served.serve) as uplinks:
            await until(lambda: served.now == ["b"])
            await relay.restore()
            await until(lambda: served.now == ["a"])
            assert served.names == ["b", "a"]
            assert uplinks.state.uplink == "a"
            await until(lambda: far.reasons)
            assert near.subscribed == 1
        # No will where another node has taken over: it said good-bye there.
        assert far.reasons == [""]
        assert [state.state for state in far.states] == ["online"]


async def test_a_better_link_that_answers_and_accepts_nobody_costs_the_other_one_nothing() -> None:
    served, tried = Served(), asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(b"\x20\x02\x00\x05")  # CONNACK: not authorized
        await writer.drain()
        writer.close()
        tried.set()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    bad = named("a", server.sockets[0].getsockname())
    async with (
        server,
        listening(Cloud()) as cloud,
        running([bad, named("b", cloud.address)], served.serve) as uplinks,
    ):
        await until(lambda: served.now == ["b"])
        tried.clear()
        await until(tried.is_set)
        await until(lambda: uplinks.states[0].state == "offline")
        assert uplinks.states[0].error == "the cloud refuses this gateway: not authorized"
        assert (served.names, served.now, cloud.reasons) == (["b"], ["b"], [])


@pytest.mark.parametrize("tls", [True, False], ids=["in its handshake", "before CONNACK"])
async def test_a_lost_link_is_noticed_while_a_return_to_a_better_one_hangs(
    tls: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (dial, link_module):
        monkeypatch.setattr(name, "PATIENCE", 1000.0)
    served, hangs, tried, ended = Served(), False, asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(module, "TAKING_OVER", 0.1)
    monkeypatch.setattr(module, "backoff", lambda attempt, _: 0.01 * attempt)

    async def better(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        if hangs:
            tried.set()
            await reader.read()
            ended.set()
        writer.close()

    server = await asyncio.start_server(better, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    first = named("a", address, return_s=0.1, keepalive=600)
    if tls:
        first = msgspec.structs.replace(first, url=f"mqtts://{address[0]}:{address[1]}")
    async with (
        server,
        listening(Cloud()) as cloud,
        running([first, named("b", cloud.address)], served.serve) as uplinks,
    ):
        await until(lambda: served.now == ["b"])
        hangs = True
        await until(tried.is_set)
        cloud.server.disconnect(GATEWAY)
        await until(ended.is_set)
        hangs = False
        await until(lambda: served.names[:2] == ["b", "b"])
        assert uplinks.state.uplink == "b"


async def test_a_link_that_does_not_hold_is_come_back_to_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served()
    asked: list[int] = []

    def soon(return_s: float, flaps: int, _: random.Random) -> float:
        assert return_s == 300
        asked.append(flaps)
        return 0.05

    monkeypatch.setattr(module, "return_delay", soon)
    async with listening(Cloud()) as cloud, listening(Cloud()) as other:
        settings = [named("a", cloud.address, return_s=300), named("b", other.address)]
        async with running(settings, served.serve):
            for number in range(1, 5):
                await until(lambda n=number: served.names.count("a") == n and served.now == ["a"])  # type: ignore[misc]
                cloud.server.disconnect(GATEWAY)
                await until(lambda: served.now != ["a"])
            await until(lambda: asked[-1] == 4)
    assert asked == sorted(asked)


def test_a_return_is_later_for_what_does_not_hold_and_differs_between_gateways() -> None:
    rng = random.Random(4)
    for flaps, times in ((0, 1), (1, 2), (2, 4), (9, 4)):
        delays = [return_delay(300, flaps, rng) for _ in range(300)]
        assert 225 * times <= min(delays) < 240 * times
        assert 360 * times < max(delays) <= 375 * times


async def test_what_is_lost_after_a_stable_time_is_tried_again_before_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STABLE", 0.0)
    served = Served()
    async with listening(Cloud()) as cloud, Relay(cloud.address) as dead, Relay(cloud.address) as late:
        await dead.cut()
        settings = [named("a", dead.address, return_s=3600), named("b", late.address), named("c", cloud.address)]
        async with running(settings, served.serve) as uplinks:
            await until(lambda: served.now == ["b"])
            assert uplinks.states[0].error
            await dead.restore()
            for number in range(2, 5):
                cloud.server.disconnect(GATEWAY)
                await until(lambda n=number: served.names == ["b"] * n)  # type: ignore[misc]
            assert dead.connections == 0


async def test_a_lane_goes_only_over_the_uplinks_that_it_may_use(tmp_path: Path) -> None:
    lanes = (Lane("bulk", filters=("bulk/#",), only_on=("wifi",)),)
    async with (
        listening(Cloud()) as cloud,
        Relay(cloud.address) as wifi,
    ):
        await wifi.cut()
        uplinks = (named("wifi", wifi.address), named("lte", cloud.address))
        async with agents.running(tmp_path, uplinks, lanes=lanes) as agent:
            await until(lambda: agent.agent.status().link.uplink == "lte")
            await agents.publish(agent.port, [b"%d" % n for n in range(50)], "bulk/1")
            await agents.publish(agent.port, [b"%d" % n for n in range(50)])
            await until(lambda: not agent.waiting())
            held = {one.lane: one.held for one in agent.agent.status().lanes}
            assert held == {"control": (), "telemetry": (), "bulk": ("uplink",)}
            assert (agent.waiting("bulk"), cloud.by_seq("bulk")) == (50, {})
            await wifi.restore()
            await until(lambda: not agent.waiting("bulk"))
            assert list(cloud.by_seq("bulk").values()) == [b"%d" % n for n in range(50)]
            assert all(not one.held for one in agent.agent.status().lanes)


async def test_all_are_tried_in_turn_and_one_that_hangs_is_said() -> None:
    served = Served()
    async with listening(Cloud()) as cloud, Relay(cloud.address) as dead, Relay(cloud.address) as late:
        await dead.cut()
        await late.cut()
        async with running([named("a", dead.address), named("b", late.address)], served.serve) as uplinks:
            await until(lambda: all(one.error for one in uplinks.states))
            assert uplinks.state.state == "offline"
            assert uplinks.state.error.split(":")[0] in {"a", "b"}
            await late.restore()
            await until(lambda: served.now == ["b"])
            assert [one.state for one in uplinks.states] == ["offline", "online"]

"""From a device to the terminal: an agent, an ingest and the monitor of both, on the cloud's API and on the sockets."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

from tests.integration.edge.agents import publish
from tests.integration.test_fleet_state import TOKEN, Relay, agent_file, cloud_file, process
from tests.support.terminal import terminal
from waybill.monitor import places
from waybill.monitor.app import Monitor


async def test_a_gateway_comes_tells_of_itself_and_is_red_when_its_link_is_reset(tmp_path: Path) -> None:
    file = cloud_file(tmp_path / "cloud", 'kind = "embedded"')
    (tmp_path / "token").write_text(TOKEN)
    async with contextlib.AsyncExitStack() as stack:
        ingest, (front, api) = await stack.enter_async_context(process("cloud", "run", "--config", file))
        relay = Relay(front)
        server = await stack.enter_async_context(await asyncio.start_server(relay.serve, "127.0.0.1", 0))
        gateway = agent_file(tmp_path / "edge", server.sockets[0].getsockname()[1])
        _, (devices,) = await stack.enter_async_context(process("edge", "run", "--config", gateway))
        source = places.cloud(f"http://{api}", tmp_path / "token", None)
        async with terminal(Monitor(source, interval=0.2)) as screen:
            await screen.shows("gw1", "1 online")
            await publish(int(devices.rpartition(":")[2]), [b"x" * 100] * 20)
            await screen.press("enter")
            await screen.shows("[Gateway]", "online for", "Lanes")
            await screen.press("escape")
            await screen.shows("[Fleet]")
            relay.reset()
            await screen.shows("✖ 1 offline", "gw1", "✖ offline")
            await screen.press("3")
            await screen.shows("the embedded log", "watch.telemetry")
            await screen.press("4")
            await screen.shows("[Log]", "gw1", "offline")

            # what the gateway says of itself, and a command that waits for it
            own, none = places.local(gateway, None)
            assert none is None
            async with terminal(Monitor(own, interval=0.2), 120, 40) as at_the_gateway:
                await at_the_gateway.shows("[Gateway]", "2 Log", "gw1", "Who eats")
            here, sender = places.local(file, None)
            async with terminal(Monitor(here, sender=sender, interval=0.2)) as at_the_ingest:
                await at_the_ingest.shows("gw1")
                await at_the_ingest.press("n")
                for words in ("V1", "honk", "", ""):
                    await at_the_ingest.write(words)
                    await at_the_ingest.press("enter")
                await at_the_ingest.shows("Send honk to device V1 behind gateway gw1")
                await at_the_ingest.press("y")
                await at_the_ingest.shows("is on its way")
                await at_the_ingest.press("2")
                await at_the_ingest.shows("○ open", "gw1", "honk")
                assert "▲" not in at_the_ingest.text.split("\n")[1]  # nothing is wrong with commands

            ingest.kill()
            await screen.shows("LOST", "offline")


async def test_a_gateway_that_is_killed_or_falls_silent_is_red_and_green_again_when_it_is_back(tmp_path: Path) -> None:
    """How soon the ingest knows is tested with its API (test_fleet_state.py); here, that a person sees it."""
    file = cloud_file(tmp_path / "cloud", 'kind = "embedded"')
    (tmp_path / "token").write_text(TOKEN)
    async with contextlib.AsyncExitStack() as stack:
        _, (front, api) = await stack.enter_async_context(process("cloud", "run", "--config", file))
        gateway = agent_file(tmp_path / "edge", int(front.rpartition(":")[2]), keepalive=3)
        source = places.cloud(f"http://{api}", tmp_path / "token", None)
        screen = await stack.enter_async_context(terminal(Monitor(source, interval=0.2), 160, 24))
        async with process("edge", "run", "--config", gateway) as (agent, _):
            await screen.shows("gw1", "● 1 online")
            agent.kill()
            await screen.shows("✖ 1 offline", "✖ gw1 offline since", "connection lost")
        async with process("edge", "run", "--config", gateway) as (agent, _):
            await screen.shows("● 1 online")
            agent.send_signal(signal.SIGSTOP)
            await screen.shows("✖ 1 offline", "✖ gw1 offline since", "keepalive")
            agent.send_signal(signal.SIGCONT)
            await screen.shows("● 1 online")

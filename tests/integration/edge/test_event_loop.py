"""The agent on either event loop: nothing that a device or the cloud can see differs."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from edge_agent.app import event_loop
from edge_agent.status import SOCKET
from tests.integration.edge.agents import process, publish
from tests.unit.mqtt import rig
from waybill import snapshot
from waybill.errors import ConfigError
from waybill.mqtt.server import MqttServer
from waybill.mqtt.testing import MemorySink

LOOPS = ["asyncio", "uvloop"]


def written(directory: Path, loop: str) -> str:
    path = directory / "agent.toml"
    path.write_text(f'gateway = "gw1"\ndata = "data"\nevent_loop = "{loop}"\n[[listener]]\nport = 0\n')
    return str(path)


@pytest.mark.parametrize("loop", LOOPS)
async def test_what_was_acknowledged_outlives_sigkill(loop: str, tmp_path: Path) -> None:
    config = written(tmp_path, loop)
    for number in (1, 2):
        async with process("run", "--config", config) as agent:
            await agent.ready()
            await publish(agent.port, [b"%d" % n for n in range(100)], qos=1 if number == 1 else 2)
            await agent.end(signal.SIGKILL)
    async with process("run", "--config", config) as agent:
        await agent.ready()
        answer = await snapshot.request(tmp_path / "data" / SOCKET, "snapshot")
        assert {lane["lane"]: lane["count"] for lane in answer["lanes"]}["telemetry"] == 200
        assert await agent.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_o1_tcp_says_which_acks_have_arrived(loop: str) -> None:
    async def acks() -> list[int]:
        sink = MemorySink()
        server = MqttServer(sink)
        await server.start()
        _, port = await server.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(rig.connect("d1"))
        await reader.readexactly(4)
        for n in range(1, 4):
            writer.write(rig.publish("a", b"m", 1, n))  # TCP acknowledges with it what came before
            await reader.readexactly(4)
        writer.close()
        await server.close()
        return [arrival.keep for arrival in sink.arrivals]

    chosen = event_loop(loop)
    try:
        assert chosen.run_until_complete(asyncio.wait_for(acks(), 60)) == [0, 0, 0]
    finally:
        chosen.close()


def test_a_loop_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvloop", None)
    with pytest.raises(ConfigError, match=r"event_loop: uvloop is not installed: pip install 'waybill\[uvloop\]'"):
        event_loop("uvloop")

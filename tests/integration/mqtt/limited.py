"""An MQTT server as a process, with small limits and a store that keeps nothing; told what to do by lines on stdin.

``hold``: commits wait from now on. ``go``: no longer. ``stats``: one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict

from waybill.mqtt.limits import KIB, MIB
from waybill.mqtt.server import MqttServer
from waybill.mqtt.settings import Settings
from waybill.mqtt.state import Batch, SavedState

SETTINGS = Settings(
    max_packet=256 * KIB,
    max_connections=100,
    max_sessions=40,
    topic_aliases=4,
    queue_messages=2_000,
    queue_bytes=2 * MIB,
    queue_bytes_all=8 * MIB,
    output_bytes=64 * KIB,
    buffer_bytes_all=4 * MIB,
    uncommitted_bytes=MIB,
    uncommitted_bytes_all=4 * MIB,
    retained_messages=2_000,
    retained_bytes=4 * MIB,
    will_bytes=MIB,
    subscription_bytes=4 * MIB,
    max_held_all=5_000,
    route_bytes=2 * MIB,
    memory_clients=50,
    memory_entries=2_000,
    memory_entries_all=5_000,
)


class Sink:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()

    async def restore(self) -> SavedState:
        return SavedState()

    async def commit(self, _: Batch) -> None:
        await self.gate.wait()


async def main() -> None:
    sink = Sink()
    server = MqttServer(sink, SETTINGS)
    await server.start()
    _, port = await server.listen("127.0.0.1", 0)
    print(port, flush=True)  # noqa: T201 - a program that prints
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        match line.strip():
            case b"hold":
                sink.gate.clear()
            case b"go":
                sink.gate.set()
        print(json.dumps(asdict(server.counters) | {"paused": len(server.broker.paused)}), flush=True)  # noqa: T201
    await server.close()


if __name__ == "__main__":
    asyncio.run(main())

"""A load generator for MQTT 3.1.1 brokers: QoS 1, a window of unacknowledged publishes a connection.

::

    python tests/bench/load.py --port 1883 --clients 50 --window 100 --size 100 --messages 400000

Prints one JSON object: ``messages`` acknowledged, ``seconds`` from the first publish to the last PUBACK, ``rate``,
``cpu`` seconds of this process. All packets are encoded before the clock starts, and sent as slices of one buffer, so
that a few hundred nanoseconds a message are this program's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import cast

_PUBACK = 4  # bytes
_RING = 1000  # packet ids that a connection goes through; more than any window


class Client(asyncio.Protocol):
    """One connection that publishes ``count`` messages."""

    def __init__(self, name: str, window: int, size: int, count: int, connected: asyncio.Semaphore) -> None:
        topic = f"vehicles/{name}/telemetry".encode()
        packets = [_publish(topic, pid, b"x" * size) for pid in range(1, _RING + 1)]
        self.length = len(packets[0])
        self.ring = memoryview(b"".join(packets * 2))
        self.name = name
        self.window = window
        self.unsent = count
        self.unacked = count
        self.at = 0
        self.extra = 0
        self.connected = connected
        self.up = False
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        name = self.name.encode()
        body = b"\0\4MQTT\4\2\0\0" + len(name).to_bytes(2, "big") + name
        self.transport.write(bytes([0x10, len(body)]) + body)

    def data_received(self, data: bytes) -> None:
        if not self.up:
            if data[:4] != b"\x20\2\0\0":
                self.finished.set_exception(RuntimeError(f"{self.name}: refused: {data[:4]!r}"))
                return
            self.up = True
            data = data[4:]
            self.connected.release()
            if not data:
                return
        # Only PUBACKs come, all of one size: counting bytes counts messages.
        count, self.extra = divmod(self.extra + len(data), _PUBACK)
        self.unacked -= count
        self.send(count)
        if self.unacked == 0 and not self.finished.done():
            self.finished.set_result(None)

    def send(self, count: int) -> None:
        count = min(count, self.unsent)
        if count and self.transport is not None:
            start = self.at * self.length
            self.transport.write(self.ring[start : start + count * self.length])
            self.at = (self.at + count) % _RING
            self.unsent -= count

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.finished.set_exception(ConnectionError(f"{self.name}: lost with {self.unacked} unacknowledged: {exc}"))


def _publish(topic: bytes, pid: int, payload: bytes) -> bytes:
    rest = len(topic).to_bytes(2, "big") + topic + pid.to_bytes(2, "big") + payload
    size = bytearray()
    left = len(rest)
    while left > 127:
        size.append(left & 127 | 128)
        left >>= 7
    size.append(left)
    return b"\x32" + bytes(size) + rest


async def load(host: str, port: int, clients: int, window: int, size: int, messages: int) -> dict[str, float]:
    """Publish ``messages`` in all over ``clients`` connections; return the figures."""
    loop = asyncio.get_running_loop()
    connected = asyncio.Semaphore(0)
    each = messages // clients
    all_clients = [Client(f"load-{number}", window, size, each, connected) for number in range(clients)]
    for one in all_clients:
        await loop.create_connection(lambda one=one: one, host, port)  # type: ignore[misc]
    for _ in all_clients:
        await connected.acquire()
    start, cpu = time.perf_counter(), time.process_time()
    for one in all_clients:
        one.send(window)
    await asyncio.gather(*(one.finished for one in all_clients))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    for one in all_clients:
        if one.transport is not None:
            one.transport.close()
    total = each * clients
    return {"messages": total, "seconds": seconds, "rate": total / seconds, "cpu": cpu}


def main() -> None:
    """Parse the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--window", type=int, default=100)
    parser.add_argument("--size", type=int, default=100, help="bytes of payload")
    parser.add_argument("--messages", type=int, default=400_000)
    given = parser.parse_args()
    if not 0 < given.window < _RING:
        parser.error(f"--window must be from 1 to {_RING - 1}")
    print(json.dumps(asyncio.run(load(**vars(given)))))


if __name__ == "__main__":
    main()

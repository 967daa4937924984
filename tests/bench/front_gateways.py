"""Many gateways in one process: front_gateways.py PKI PORT FIRST COUNT SOURCE.

Each has a certificate of its own (PKI/gN) and comes from the address SOURCE. A line on standard input is an order:
``send`` makes a frame at each of them, ``told`` asks to say ``idle`` once all that was made is acked. What is said on
standard output: ``connected`` when all are, ``idle``, and at the end of the input the acked frames of each gateway.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.support.windowed import Dial, Gateway
from waybill import pki
from waybill.lifecycle import allow_connections

PATIENCE = 120.0
AT_ONCE = 50
"""Handshakes that this process has under way: more of them would only wait for each other."""


def _say(line: str) -> None:
    print(line, flush=True)


def _dial(directory: Path, port: int, source: str, gate: asyncio.Semaphore) -> Dial:
    async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with gate:
            # Made for each connection: ten thousand contexts would be most of this process.
            context = pki.client_context(directory / "ca.pem", directory / "gateway.pem", directory / "gateway.key")
            return await asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=(source, 0))

    return dial


async def main(files: Path, port: int, first: int, count: int, source: str) -> None:
    """Run until the input ends."""
    gate = asyncio.Semaphore(AT_ONCE)
    gateways = [
        Gateway(f"g{number}", port, dial=_dial(files / f"g{number}", port, source, gate), patience=PATIENCE)
        for number in range(first, first + count)
    ]
    running = [asyncio.create_task(gateway.run()) for gateway in gateways]
    while not all(gateway.connections for gateway in gateways):  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.1)
    _say("connected")
    while order := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if order == "send":
            for gateway in gateways:
                gateway.make()
            await asyncio.sleep(1.0)  # they are on their way
            _say("sent")
        else:
            while not all(gateway.idle for gateway in gateways):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.1)
            _say("idle")
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    _say(f"connections {sum(gateway.connections for gateway in gateways)}")
    for gateway in gateways:
        _say(f"{gateway.name} {gateway.acked} {gateway.messages}")


if __name__ == "__main__":
    allow_connections(int(sys.argv[4]))
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))

"""A TCP relay that can be a bad link, without root: cut, black hole, half-open connections, and any network's pace.

It works on whole connections. It neither loses nor reorders bytes within one (TCP would mend that anyway): what it
does is what applications see of a bad link; how late bytes come is worked out in :mod:`fleet_simulator.network.path`.

===============  =====================================================  =============================================
call             connections that exist                                 new connections
===============  =====================================================  =============================================
``cut()``        reset, both sides                                      refused
``black_hole()`` stay; nothing passes, either way                       accepted by the kernel, nothing passes
``half_open()``  the target's side is reset, the client's stays mute    as before
``restore()``    what waited in a black hole passes                     pass
===============  =====================================================  =============================================
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from types import TracebackType
from typing import Final, Self

from fleet_simulator.network.path import PACKET, Path, Weather
from fleet_simulator.network.profiles import Model
from fleet_simulator.ports import free_port

_CHUNK: Final = 1 << 16
_CHUNKS: Final = 64
"""Chunks that a delay may hold for one direction of a connection; then the sender waits, as with any full pipe."""

_QUEUE: Final = 0.25
"""Seconds that bytes may wait for their turn on a slow link before no more are taken: what a modem's buffer holds."""


class _Pair:
    """One connection through the link: the two streams and the tasks between them."""

    def __init__(self, client: asyncio.StreamWriter, weather: Weather, chance: random.Random) -> None:
        self.client = client
        self.target: asyncio.StreamWriter | None = None
        self.muted = False
        self.up = Path(weather, chance.random, up=True)
        self.down = Path(weather, chance.random, up=False)


class Link:
    """Relays ``listen`` to ``target`` while started; all addresses are ``(host, port)``.

    Port 0 to listen: one that is free, and stays so over a cut.
    """

    def __init__(
        self,
        target: tuple[str, int],
        listen: tuple[str, int] = ("127.0.0.1", 0),
        *,
        network: Model | None = None,
        seed: str = "",
    ) -> None:
        """``network``: how it behaves while it is whole; ``change`` sets another one. ``seed``: of its chances."""
        self.target = target
        self.address = listen if listen[1] else (listen[0], free_port())
        self.bytes_up = 0
        self.bytes_down = 0
        self.connections = 0
        self._lost = 0
        self._chance = random.Random(seed)  # noqa: S311 - the same for the same seed is the point
        self._weather = self._weather_of(network or Model())
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._pairs: dict[_Pair, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        """Start to listen; ``address`` then holds the port. Raises OSError where it is taken."""
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop: refuse and reset everything."""
        await self.cut()

    @property
    def network(self) -> Model:
        """How it behaves while it is whole."""
        return self._weather.model

    def change(self, network: Model) -> None:
        """Behave like ``network`` from now on, for connections that exist, too."""
        self._weather = self._weather_of(network)
        for pair in self._pairs:
            pair.up.change(self._weather)
            pair.down.change(self._weather)

    @property
    def packets_lost(self) -> int:
        """Packets whose loss held something up."""
        return self._lost + sum(pair.up.lost + pair.down.lost for pair in self._pairs)

    @property
    def is_holding(self) -> bool:
        """Whether it is a black hole."""
        return not self._open.is_set()

    @property
    def is_cut(self) -> bool:
        """Whether new connections are refused."""
        return self._server is None

    async def cut(self) -> None:
        """Refuse new connections and reset those that exist."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._pairs.values())
        for pair in list(self._pairs):
            _reset(pair.client)
            _reset(pair.target)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def black_hole(self) -> None:
        """Let nothing pass, and say so to nobody."""
        self._open.clear()

    def half_open(self) -> int:
        """Reset the target's side of every connection; the client's side stays open and hears nothing any more.

        Return how many connections there were.
        """
        for pair in self._pairs:
            pair.muted = True
            _reset(pair.target)
        return len(self._pairs)

    async def restore(self) -> None:
        """End a cut or a black hole."""
        self._open.set()
        if self._server is None:
            await self._listen()

    def _weather_of(self, network: Model) -> Weather:
        return Weather(network, self._chance.random, self._chance.expovariate)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, *self.address)
        # What the kernel holds is part of no network: little, or a slow link would look like a fast one.
        for each in self._server.sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = (host, port)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer, self._weather, self._chance)
        task = asyncio.current_task()
        if self._server is None or task is None:  # cut while this connection was on its way through the kernel
            _reset(writer)
            return
        self._pairs[pair] = task
        self.connections += 1
        # A task that ends by an error of its connection, or by cut(), has nothing more to say.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                await self._relay(pair, reader)
            finally:
                self._lost += pair.up.lost + pair.down.lost
                del self._pairs[pair]
                _reset(pair.client)
                _reset(pair.target)

    async def _relay(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        await self._open.wait()
        back, pair.target = await asyncio.open_connection(*self.target)
        pumps = {
            asyncio.create_task(self._pump(pair, reader, pair.target, pair.up), name="link up"),
            asyncio.create_task(self._pump(pair, back, pair.client, pair.down), name="link down"),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
            if pair.muted:
                await asyncio.Event().wait()  # until cut(): the client gets neither data nor an end
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> None:
        """Pass one direction on: bytes, then the end of the stream as such."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes | OSError]] = asyncio.Queue(_CHUNKS)

        async def read() -> None:
            item: bytes | OSError = b"more"
            while item and not isinstance(item, OSError):
                await asyncio.sleep(path.queued(loop.time()) - _QUEUE)
                try:
                    item = await reader.read(min(_CHUNK, max(PACKET, int(path.rate * _QUEUE))) if path.rate else _CHUNK)
                except OSError as error:
                    item = error
                size = 0 if isinstance(item, OSError) else len(item)
                await waiting.put((path.arrival(loop.time(), size), item))

        reading = asyncio.create_task(read(), name="link read")
        try:
            while True:
                due, item = await waiting.get()
                await asyncio.sleep(due - loop.time())
                await self._open.wait()
                if isinstance(item, OSError):
                    raise item
                if not item:
                    if not pair.muted:
                        writer.write_eof()
                    return
                writer.write(item)
                await writer.drain()
                if path is pair.up:
                    self.bytes_up += len(item)
                else:
                    self.bytes_down += len(item)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _reset(writer: asyncio.StreamWriter | None) -> None:
    """Close with an RST, as a link that goes away often looks like from the nearer end."""
    if writer is None or writer.transport.is_closing():
        return
    inner = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

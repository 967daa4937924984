"""A TCP relay that can be a bad link, without root: cut, black hole, half-open connections, delay.

It works on whole connections. It neither loses nor reorders bytes within one (TCP would mend that anyway): what it
does is what applications see of a bad link.

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
import socket
import struct
from types import TracebackType
from typing import Final, Self

_CHUNK: Final = 1 << 16
_CHUNKS: Final = 64
"""Chunks that a delay may hold for one direction of a connection; then the sender waits, as with any full pipe."""


class _Pair:
    """One connection through the link: the two streams and the tasks between them."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.target: asyncio.StreamWriter | None = None
        self.muted = False


class Link:
    """Relays ``listen`` to ``target`` while started; all addresses are ``(host, port)``, port 0 for any free one."""

    def __init__(
        self, target: tuple[str, int], listen: tuple[str, int] = ("127.0.0.1", 0), *, delay: float = 0.0
    ) -> None:
        """``delay``: seconds each way; may be set at any time."""
        self.target = target
        self.address = listen
        self.delay = delay
        self.bytes_up = 0
        self.bytes_down = 0
        self.connections = 0
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

    def half_open(self) -> None:
        """Reset the target's side of every connection; the client's side stays open and hears nothing any more."""
        for pair in self._pairs:
            pair.muted = True
            _reset(pair.target)

    async def restore(self) -> None:
        """End a cut or a black hole."""
        self._open.set()
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, *self.address)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = (host, port)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer)
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
                del self._pairs[pair]
                _reset(pair.client)
                _reset(pair.target)

    async def _relay(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        await self._open.wait()
        back, pair.target = await asyncio.open_connection(*self.target)
        pumps = {
            asyncio.create_task(self._pump(pair, reader, pair.target, up=True), name="link up"),
            asyncio.create_task(self._pump(pair, back, pair.client, up=False), name="link down"),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
            if pair.muted:
                await asyncio.Event().wait()  # until cut(): the client gets neither data nor an end
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        """Pass one direction on: bytes, then the end of the stream as such."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes | OSError]] = asyncio.Queue(_CHUNKS)

        async def read() -> None:
            item: bytes | OSError = b"more"
            while item and not isinstance(item, OSError):
                try:
                    item = await reader.read(_CHUNK)
                except OSError as error:
                    item = error
                await waiting.put((loop.time() + self.delay, item))

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
                if up:
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

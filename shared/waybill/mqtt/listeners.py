"""Where connections come in: what a listener is, the TLS handshake, and the files of Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
from typing import TYPE_CHECKING, Final, cast

from waybill.errors import Unavailable
from waybill.mqtt.transport import Wire, address_of, ip_of

if TYPE_CHECKING:
    from waybill.mqtt.limits import Limits
    from waybill.mqtt.server import MqttServer

BACKLOG: Final = 4096


class Listener:
    """One address that connections come to. ``wire``: what they are there.

    ``connections``: those of now, also by IP address (``addresses``).
    """

    def __init__(self, name: str, limits: Limits, wire: type[Wire] = Wire, tls: ssl.SSLContext | None = None) -> None:
        self.name = name
        self.limits = limits
        self.wire = wire
        self.tls = tls
        self.connections = 0
        self.addresses: dict[str, int] = {}
        self.server: asyncio.Server | None = None
        self._file: tuple[str, int] | None = None  # path and inode of a Unix socket

    def admits(self, address: str) -> str:
        """Say why a connection from an IP address (or ``unix``) is too many here; empty: it is not. Then count it."""
        limits = self.limits
        if self.connections >= limits.max_connections:
            return f"too many connections at listener {self.name!r}"
        mine = self.addresses.get(address, 0)
        if address != "unix" and mine >= (limits.max_connections_per_address or limits.max_connections):
            return f"too many connections from {address}"
        self.connections += 1
        self.addresses[address] = mine + 1
        return ""

    def leaves(self, address: str) -> None:
        """A connection that was counted has ended."""
        self.connections -= 1
        self.addresses[address] -= 1
        if not self.addresses[address]:
            del self.addresses[address]

    async def open(self, server: MqttServer, host: str, port: int) -> tuple[str, int]:
        """Accept connections on an address; returns the one bound. Raises Unavailable where it is taken."""

        def accept() -> asyncio.Protocol:
            return self.wire(server, self) if self.tls is None else Handshake(server, self, self.tls)

        try:
            self.server = await asyncio.get_running_loop().create_server(accept, host, port, backlog=BACKLOG)
        except OSError as error:
            why = error.strerror or error
            raise Unavailable(f"cannot listen on {host}:{port}: {why}; free it or choose another") from error
        bound = self.server.sockets[0].getsockname()
        return bound[0], bound[1]

    async def open_unix(self, server: MqttServer, path: str, mode: int) -> None:
        """Accept connections on a Unix socket. Raises Unavailable where the path is taken or cannot be."""
        _clear(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(path)
            self._file = path, os.stat(path).st_ino  # noqa: PTH116 - beside bind
            os.chmod(path, mode)  # noqa: PTH101 - before listen: nobody has come in under another mode
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            self.server = await loop.create_unix_server(lambda: self.wire(server, self), sock=sock, backlog=BACKLOG)
        except OSError as error:
            sock.close()
            self.close()
            raise Unavailable(
                f"cannot listen on {path}: {error.strerror or error}; mend that or choose another path"
            ) from error

    def close(self) -> None:
        """Accept no more; the file of a Unix socket goes."""
        if self.server is not None:
            self.server.close()
        if self._file is not None:
            (path, inode), self._file = self._file, None
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:  # noqa: PTH116 - as above; not where somebody has replaced it
                    os.unlink(path)  # noqa: PTH108


def _clear(path: str) -> None:
    """Remove a socket's file that nobody listens on. Raises Unavailable where there is something else."""
    try:
        there = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise Unavailable(f"cannot listen on {path}: there is something that is no socket; move it or choose another")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        code = sock.connect_ex(path)
    if code == errno.ECONNREFUSED:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108
    elif code != errno.ENOENT:
        raise Unavailable(f"cannot listen on {path}: something listens there already; stop it or choose another")


class Handshake(asyncio.Protocol):
    """A connection that is to speak TLS: counted, and closed at a limit, before that costs anything.

    What the peer sends right after its handshake can be here before ``start_tls`` has returned: it waits.
    """

    def __init__(self, server: MqttServer, listener: Listener, context: ssl.SSLContext) -> None:
        self._server = server
        self._listener = listener
        self._context = context
        self._early = b""
        self._lost = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection, or close it at a limit."""
        raw = cast("asyncio.Transport", transport)  # as asyncio promises for a stream
        if not self._server.admit(self._listener, raw):
            raw.abort()
            return
        raw.pause_reading()
        wire = self._listener.wire(self._server, self._listener)
        self._task = asyncio.get_running_loop().create_task(self._shake(raw, wire), name="mqtt-tls")
        self._server.handshakes.add(self._task)
        self._task.add_done_callback(self._server.handshakes.discard)

    def data_received(self, data: bytes) -> None:
        """Keep what came early."""
        self._early += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Note an end that came early."""
        self._lost = True

    async def _shake(self, raw: asyncio.Transport, wire: Wire) -> None:
        address, shown = ip_of(raw), address_of(raw)
        tls: asyncio.Transport | None = None
        error: Exception | None = None
        try:
            tls = await asyncio.get_running_loop().start_tls(
                raw,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._listener.limits.connect_timeout,
            )
        except (OSError, EOFError) as failure:  # an SSLError is an OSError
            error = failure
        finally:
            if tls is None or self._lost:
                raw.abort()
                self._server.leave(self._listener, address)
        if tls is None or self._lost:
            self._server.handshake_failed(shown, error)
            return
        tls.set_protocol(wire)
        wire.begin(tls)
        if self._early:
            wire.data_received(self._early)

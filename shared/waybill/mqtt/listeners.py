"""Where connections come in: what a listener is, the TLS handshake, and the files of Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
import stat
from typing import TYPE_CHECKING, Final

from waybill.errors import Unavailable
from waybill.mqtt import greeting, proxy
from waybill.mqtt.transport import Wire, address_of, ip_of

if TYPE_CHECKING:
    from waybill.mqtt.limits import Limits
    from waybill.mqtt.proxy import Network
    from waybill.mqtt.server import MqttServer

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096

STEP: Final = 0.02
"""Seconds by which more may be accepted than ``accept_rate`` allows."""

RETRY: Final = 1.0
"""Seconds to wait where no connection can be accepted."""


class Listener:
    """One address that connections come to. ``wire``: what they are there.

    ``proxies``: whose connections begin with a header of the PROXY protocol, which says who the client is.
    ``accept_rate``: TLS handshakes begun a second; 0: any number.

    ``connections``: those of now, also by IP address (``addresses``).
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        wire: type[Wire] = Wire,
        tls: ssl.SSLContext | None = None,
        proxies: tuple[Network, ...] = (),
        accept_rate: float = 0.0,
    ) -> None:
        self.name = name
        self.limits = limits
        self.wire = wire
        self.tls = tls
        self.proxies = proxies
        self.accept_rate = accept_rate
        self.connections = 0
        self.addresses: dict[str, int] = {}
        self.server: asyncio.Server | None = None
        self._accepting: list[asyncio.Task[None]] = []
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
        loop = asyncio.get_running_loop()
        try:
            if self.tls is None and not self.proxies:
                self.server = await loop.create_server(lambda: self.wire(server, self), host, port, backlog=BACKLOG)
                bound = self.server.sockets[0].getsockname()
            else:
                sockets = await _bind(host, port)
                bound = sockets[0].getsockname()
                for sock in sockets:
                    self._accepting.append(loop.create_task(self._accept(server, sock, self.tls), name="mqtt-accept"))
        except OSError as error:
            why = error.strerror or error
            raise Unavailable(f"cannot listen on {host}:{port}: {why}; free it or choose another") from error
        return bound[0], bound[1]

    async def _accept(self, server: MqttServer, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Accept connections that are to speak TLS, or may come through a proxy.

        They are counted, or closed at a limit, before that costs anything: behind a proxy as the client that it names.
        """
        loop = asyncio.get_running_loop()
        due = 0.0
        with sock:
            while True:
                if self.accept_rate:
                    due = max(due, loop.time()) + 1 / self.accept_rate
                    if due - loop.time() > STEP:
                        await asyncio.sleep(due - loop.time())
                try:
                    peer, name = await loop.sock_accept(sock)
                except ConnectionError:
                    continue  # it is gone already
                except OSError as error:  # no more files, no memory: as asyncio does it
                    logger.error("cannot accept connections: %s; trying again", error)  # noqa: TRY400 - that says it
                    await asyncio.sleep(RETRY)
                    continue
                behind = proxy.trusts(self.proxies, name)
                if len(server.handshakes) >= self.limits.max_connections if behind else not server.admit(self, name):
                    peer.close()
                    continue
                make = self._behind if behind else self._handshake
                task = loop.create_task(make(server, peer, name, tls), name="mqtt-handshake")
                server.handshakes.add(task)
                task.add_done_callback(server.handshakes.discard)

    async def _behind(self, server: MqttServer, peer: socket.socket, name: object, tls: ssl.SSLContext | None) -> None:
        """Begin a connection of a proxy: its header first."""
        admitted, client = False, name
        try:
            async with asyncio.timeout(self.limits.connect_timeout):
                client = await greeting.client_of(peer, name)
            admitted = server.admit(self, client)
        except greeting.NoByteError:
            server.counters.probes += 1
        except (OSError, TimeoutError) as error:
            server.handshake_failed(address_of(name), str(error) or "no PROXY header in time")
        finally:
            if not admitted:
                peer.close()
        if admitted:
            await self._handshake(server, peer, client, tls)

    async def _handshake(
        self, server: MqttServer, peer: socket.socket, name: object, tls: ssl.SSLContext | None
    ) -> None:
        """Begin a connection that was counted; ``name``: the client, as a socket names its peer."""
        wire = self.wire(server, self)
        wire.admitted = ip_of(name)
        wire.client_name = name
        try:
            if tls is not None:
                await self._begun(peer)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: wire, peer, ssl=tls, ssl_handshake_timeout=self.limits.connect_timeout if tls else None
            )
        except greeting.NoByteError:
            server.counters.probes += 1
        except (OSError, EOFError, TimeoutError) as error:  # an SSLError is an OSError
            if not wire.begun:
                why = getattr(error, "reason", None) or str(error) or "connection lost"
                server.handshake_failed(address_of(name), f"the TLS handshake failed: {why}")
        finally:
            if not wire.begun:
                server.leave(self, wire.admitted)

    async def _begun(self, peer: socket.socket) -> None:
        """Wait for the first byte of a handshake; close where none comes. Raises NoByteError, TimeoutError, OSError."""
        try:
            async with asyncio.timeout(self.limits.connect_timeout):
                await greeting.first_byte(peer)
        except BaseException:
            peer.close()
            raise

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
        for task in self._accepting:
            task.cancel()
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


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each address of a host. Raises OSError."""
    flags = socket.AI_PASSIVE
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.bind(address)
            sock.listen(BACKLOG)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets

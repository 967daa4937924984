"""From a URL to a connection on which MQTT can begin, step by step; each step that fails says so in its own words.

::

    name look-up ─▶ TCP (interface) ─▶ proxy ─▶ TLS ─▶ WebSocket

Each step has ``PATIENCE`` seconds. All of it can be cancelled but for the name look-up, which the C library does in a
thread: there is one at a time, and it holds up neither another uplink nor the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import fcntl
import logging
import os
import socket
import ssl
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_agent.uplink import proxy, traffic
from edge_agent.uplink.config import WEBSOCKET_PATH, Proxy, UplinkSettings
from edge_agent.uplink.traffic import Traffic
from waybill.errors import Unavailable

if TYPE_CHECKING:
    from edge_agent.uplink.web_socket import WebSocket

log = logging.getLogger(__name__)

PATIENCE: Final = 15.0
"""Seconds for each step. Two seconds of round-trip time and a lost segment must fit in."""

ADDRESSES: Final = 4
"""Addresses of a name that are tried, in the order in which they come; each has its part of ``PATIENCE``."""

UNSENT_BYTES: Final = 64 << 10

SIOCGIFADDR: Final = 0x8915
IFREQ: Final = struct.Struct("=16s2x2x4s16x")

_PROXY: Final = "; check [[uplink]] proxy"

REFUSED: Final = (
    "certificate refused by the cloud, most likely: it closed the connection right after the handshake; "
    "check [[uplink]] certificate and key"
)
"""Under TLS 1.3 this side's handshake is done before the other side has looked at the certificate."""

Address = tuple[int, int, int, str, Any]
"""As ``getaddrinfo`` has it."""

Passed = Callable[[str, socket.socket], None]
"""Told of each step that is done: ``proxy``, ``tls``, ``websocket``, ``connect`` (MQTT's), and its connection."""


class LinkLost(Unavailable):
    """The connection is gone, or could not be made; the text says why."""


class Stream:
    """A connected socket that does not block."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    async def send(self, data: bytes) -> None:
        """Write all of it. Raises OSError."""
        while data:
            data = data[await self._do(lambda data=data: self.socket.send(data), write=True) :]  # type: ignore[misc]

    async def read(self, most: int) -> bytes:
        """Read what there is, nothing at the end. Raises OSError."""
        read: bytes = await self._do(lambda: self.socket.recv(most))
        return read

    async def receive(self, count: int) -> bytes:
        """Read exactly ``count`` bytes. Raises ConnectionResetError at the end, OSError."""
        data = b""
        while len(data) < count:
            part = await self.read(count - len(data))
            if not part:
                raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
            data += part
        return data

    async def handshake(self, context: ssl.SSLContext, host: str) -> None:
        """Go over to TLS. Raises OSError, of which SSLError is one."""
        tls = context.wrap_socket(self.socket, server_hostname=host, do_handshake_on_connect=False)
        self.socket = tls
        await self._do(tls.do_handshake)

    async def _do(self, call: Callable[[], Any], *, write: bool = False) -> Any:  # noqa: ANN401 - what the call returns
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                await _ready(self.socket, write=False)
            except ssl.SSLWantWriteError:
                await _ready(self.socket, write=True)
            except BlockingIOError:
                await _ready(self.socket, write=write)


class Dialer:
    """Makes the connections of one uplink, one at a time."""

    def __init__(self, settings: UplinkSettings, context: ssl.SSLContext | None) -> None:
        """``context``: for TLS, None without."""
        self._settings = settings
        self._context = context
        self._looking: asyncio.Future[list[Address]] | None = None
        self._said = ""

    async def dial(
        self, spent: Callable[[Traffic], None], passed: Passed = lambda _step, _sock: None
    ) -> socket.socket | WebSocket:
        """Connect. ``spent`` hears what an attempt that failed has cost. Raises LinkLost."""
        settings = self._settings
        via = settings.through()
        stream = Stream(await self._tcp(spent))
        try:
            if via is not None:
                async with _step(f"the proxy {via.host}:{via.port}", "answer"):
                    await proxy.tunnel(stream, self._with_password(via), settings.host, settings.port)
                passed("proxy", stream.socket)
            if self._context is not None:
                async with _step(f"{settings.host}:{settings.port}", "finish the TLS handshake"):
                    await stream.handshake(self._context, settings.host)
                passed("tls", stream.socket)
            if settings.websocket:
                from edge_agent.uplink import web_socket  # only where it is used

                who = f"{settings.host}:{settings.port}"
                async with _step(who, "answer the WebSocket's request", judged=self._context is not None):
                    upgraded = await web_socket.upgrade(stream, _with_path(settings.url))
                passed("websocket", stream.socket)
                return upgraded
        except BaseException:
            _close(stream.socket, spent)
            raise
        return stream.socket

    def _with_password(self, via: Proxy) -> Proxy:
        path = self._settings.proxy_password_file
        if path is None:
            return via
        try:
            password = path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise LinkLost(f"[[uplink]] proxy_password_file {path} cannot be read: {error}") from error
        return Proxy(via.kind, via.host, via.port, via.user, password)

    async def _tcp(self, spent: Callable[[Traffic], None]) -> socket.socket:
        found = (await self.addresses())[:ADDRESSES]
        reason = LinkLost("the name has no address")
        for each in found:
            try:
                return await self.reach(each, PATIENCE / len(found), spent)
            except LinkLost as lost:
                reason = lost
        raise reason

    async def addresses(self) -> list[Address]:
        """Return the addresses of the first host on the way, the proxy's or the cloud's. Raises LinkLost."""
        via = self._settings.through()
        host, port, whose = (self._settings.host, self._settings.port, "")
        if via is not None:
            host, port, whose = via.host, via.port, " of the proxy"
        return await self._look_up(host, port, whose, _PROXY if via is not None else "")

    async def reach(self, to: Address, seconds: float, spent: Callable[[Traffic], None]) -> socket.socket:
        """Connect to one of the addresses. Raises LinkLost."""
        via = self._settings.through()
        host, port = (self._settings.host, self._settings.port) if via is None else (via.host, via.port)
        where, mend = (f"{host}:{port}", "") if via is None else (f"the proxy {host}:{port}", _PROXY)
        family, kind, protocol, _, address = to
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            self._tune(sock)
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().sock_connect(sock, address)
            return sock
        except TimeoutError:
            reason = f"{where} does not answer{mend}"
        except OSError as error:
            reason = _no_tcp(error, where, self._settings.interface) + mend
        except BaseException:
            _close(sock, spent)
            raise
        _close(sock, spent)
        raise LinkLost(reason)

    def _tune(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in (
            ("TCP_USER_TIMEOUT", 1500 * self._settings.keepalive),
            ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
        ):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if self._settings.interface:
            self._bind(sock, self._settings.interface)

    def _bind(self, sock: socket.socket, interface: str) -> None:
        """Use one interface alone: its device, or where only root may do that (before Linux 5.7) its address."""
        if sys.platform != "linux":
            raise OSError(errno.ENODEV, "binding to an interface needs Linux")
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            said = f"its connections are bound to the device {interface}"
        except PermissionError:
            address = _address_of(sock, interface)
            sock.bind((address, 0))
            said = (
                f"its connections are bound to {address}, the address of {interface}: this kernel lets only root bind "
                "to a device, so a rule must route by that address (ip rule add from ADDRESS)"
            )
        if said != self._said:
            self._said = said
            log.info("uplink %s: %s", self._settings.name or self._settings.url, said)

    async def _look_up(self, host: str, port: int, whose: str, mend: str) -> list[Address]:
        """Return the addresses of a host."""
        if self._looking is None or self._looking.done():
            self._looking = _look_up(host, port)
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(self._looking)
        except TimeoutError as error:
            raise LinkLost(
                f"the name {host!r}{whose} is not known: no name server answers within {PATIENCE:.0f} s{mend}"
            ) from error
        except OSError as error:
            raise LinkLost(f"the name {host!r}{whose} is not known: {error.strerror or error}{mend}") from error


def _look_up(host: str, port: int) -> asyncio.Future[list[Address]]:
    """Look a name up in a thread that nobody waits for at the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[Address]] = loop.create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may come when nobody asks

    def work() -> None:
        try:
            found: list[Address] = [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
            tell = partial(future.set_result, found)
        except OSError as error:
            tell = partial(future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=work, name=f"look up {host}", daemon=True).start()
    return future


@contextlib.asynccontextmanager
async def _step(who: str, does_not: str, *, judged: bool = False) -> AsyncIterator[None]:
    """Bound a step, and say in its words how it failed. Raises LinkLost.

    ``judged``: the other side may not have looked at our certificate before.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except LinkLost:
        raise
    except TimeoutError as error:
        raise LinkLost(f"{who} does not {does_not} within {PATIENCE:.0f} s") from error
    except ssl.SSLCertVerificationError as error:
        why = str(error).rpartition("certificate verify failed: ")[2].partition(" (_ssl.c")[0].rstrip(".")
        raise LinkLost(f"the cloud's certificate is not trusted: {why}; {_mend(why)}") from error
    except (ssl.SSLError, ConnectionError) as error:
        if judged:
            raise LinkLost(REFUSED) from error
        if not isinstance(error, ssl.SSLError):
            raise LinkLost(f"{who} does not {does_not}: {_words(error)}") from error
        raise LinkLost(f"no TLS with {who}: {error.reason or error}; check the port in [[uplink]] url") from error
    except OSError as error:
        raise LinkLost(f"{who} does not {does_not}: {_words(error)}") from error
    except Unavailable as error:  # it has said all
        raise LinkLost(str(error)) from error


def _mend(why: str) -> str:
    """Return what to do about a certificate that is not trusted; in OpenSSL's words it has expired, or is too new."""
    if "expired" in why or "not yet valid" in why:
        now = dt.datetime.now(dt.UTC)
        return f"check this machine's clock, which says {now:%Y-%m-%d %H:%M} UTC, then the certificate"
    return "check [[uplink]] ca, and the host in url"


def _no_tcp(error: OSError, where: str, interface: str) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"{where} refuses the connection"
    if error.errno in {errno.ENODEV, errno.EADDRNOTAVAIL} and interface:
        return (
            f"the interface {interface!r} is not there or has no address: {_words(error)}; check [[uplink]] interface"
        )
    return f"no way to {where}{f' by {interface}' if interface else ''}: {_words(error)}"


def _words(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _close(sock: socket.socket, spent: Callable[[Traffic], None]) -> None:
    spent(traffic.of(sock, closing=True))
    sock.close()


def _with_path(url: str) -> str:
    """Return a WebSocket's URL with a path."""
    rest = url.split("://", 1)[1]
    return url if "/" in rest or "?" in rest else url + WEBSOCKET_PATH


def _address_of(sock: socket.socket, interface: str) -> str:
    """Return an interface's address of a socket's family. Raises OSError where it has none."""
    if sock.family == socket.AF_INET:
        said = fcntl.ioctl(sock, SIOCGIFADDR, IFREQ.pack(interface.encode(), bytes(4)))
        return socket.inet_ntop(socket.AF_INET, IFREQ.unpack(said)[1])
    for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
        address, _, _, scope, _, name = line.split()
        if name == interface and scope == "00":  # global
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


async def _ready(sock: socket.socket, *, write: bool) -> None:
    """Wait until a socket can be read, or written."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    fd = sock.fileno()
    (loop.add_writer if write else loop.add_reader)(fd, tell)
    try:
        await ready
    finally:
        (loop.remove_writer if write else loop.remove_reader)(fd)

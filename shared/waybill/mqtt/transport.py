"""A connection on an asyncio transport: TCP, TLS or a Unix socket.

Whether a PUBACK arrived (O1) is asked of TCP itself: ``TCP_INFO.tcpi_bytes_acked``. It stays exact after a reset and
for a peer that vanished, and needs no account of what waits in the process. (``SIOCOUTQ`` does not: after a reset the
kernel's queue and asyncio's buffer are emptied, and bytes that were never sent look acknowledged.) What a Unix socket
has taken has arrived. Under TLS and where the kernel does not tell it is unknown, and that counts as not acknowledged.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Final, cast

from waybill.mqtt.budget import SMALL
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from waybill.mqtt.listeners import Listener
    from waybill.mqtt.server import MqttServer
    from waybill.mqtt.settings import Answer

logger = logging.getLogger(__name__)

LINGER: Final = 5.0
"""Seconds that a closed connection has to take its last output."""

TCP_BYTES_ACKED: Final = struct.Struct("=Q")
TCP_BYTES_ACKED_AT: Final = 120  # of tcpi_bytes_acked in struct tcp_info, linux/tcp.h, since Linux 4.1
TCP_INFO_SIZE: Final = TCP_BYTES_ACKED_AT + TCP_BYTES_ACKED.size

READ: Final = 64 * 1024
"""Bytes read at once, at most."""

KEEPALIVE: Final = (60, 15, 4)
"""TCP looks for a peer that has been silent for so many seconds, so often (s), and gives it up after so many times:
a peer that vanished does not hold its connection for ever, whatever its MQTT keep alive."""


def bytes_acked(sock: socket.socket) -> int | None:
    """Return how many bytes the peer's TCP has acknowledged; None where the system does not tell."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    except OSError:
        return None
    return TCP_BYTES_ACKED.unpack_from(info, TCP_BYTES_ACKED_AT)[0] if len(info) == TCP_INFO_SIZE else None


def ip_of(name: object) -> str:
    """Return the IP address of a peer (a socket's name for it) as it is counted, ``unix`` where it has none."""
    return counted(str(name[0])) if isinstance(name, tuple) else "unix"


def counted(host: str) -> str:
    """Return what an IP address counts as: of version 6 the network of 64 bits, all of which one peer may have."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def address_of(name: object) -> str:
    """Return a peer's address as it is shown: host and port, or ``unix``."""
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unix"


class Wire(Reader, asyncio.Protocol):
    """A connection on an asyncio transport, at a listener of ``server``."""

    __slots__ = (
        "_answer",
        "_base",
        "_crowded",
        "_listener",
        "_local",
        "_server",
        "_socket",
        "_transport",
        "admitted",
        "begun",
        "client_name",
        "close_at",
    )

    def __init__(self, server: MqttServer, listener: Listener) -> None:
        server.tick()
        super().__init__(server.broker, listener.limits, listener.name)
        self._server = server
        self._listener = listener
        self._transport: asyncio.Transport
        self.admitted = ""  # the address that counts in its listener, where it was counted already
        self.client_name: object = None  # as a socket names its peer, where something stands in between
        self.begun = False
        self._answer: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self._local = False
        self._base = 0
        self._crowded = ""
        self.close_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection, or close it at a limit."""
        self._transport = stream = cast("asyncio.Transport", transport)  # as asyncio promises for a stream
        name = stream.get_extra_info("peername")
        if not self.admitted and not self._server.admit(self._listener, name):
            self.closed = True
            stream.abort()
            return
        self.admitted = self.admitted or ip_of(name)
        self.begun = True
        self._server.wires.add(self)
        self._tune(stream)

    def _tune(self, transport: asyncio.Transport) -> None:
        """Set what is to be set on a new connection's socket, and begin to follow what its TCP acknowledges."""
        transport.set_write_buffer_limits(high=self.broker.settings.output_bytes)
        if hasattr(transport, "max_size"):  # asyncio's 256 KiB are mapped and unmapped by the C library at each read
            transport.max_size = READ
        sock = transport.get_extra_info("socket")
        self._local = sock.family == socket.AF_UNIX
        behind = self.client_name not in {None, transport.get_extra_info("peername")}  # whose TCP is not the client's
        if not self._local:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if sys.platform == "linux":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in zip(
                    (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT), KEEPALIVE, strict=True
                ):
                    sock.setsockopt(socket.IPPROTO_TCP, option, value)
                if transport.get_extra_info("ssl_object") is None and not behind:
                    # asyncio's and uvloop's own make a new one for each question, or ask for the address too
                    real = socket.socket(sock.family, socket.SOCK_STREAM, sock.proto, sock.fileno())
                    base = bytes_acked(real)
                    if base is not None:
                        self._socket, self._base = real, base
                    else:
                        real.detach()

    def data_received(self, data: bytes) -> None:
        """Feed what was read."""
        broker = self.broker
        broker.wall_ms, broker.mono_ns = time.time_ns() // 1_000_000, time.monotonic_ns()  # tick(), without the calls
        self.feed(data)

    def eof_received(self) -> bool:
        """The peer will send no more: close."""
        return False

    def pause_writing(self) -> None:
        """More output waits than ``output_bytes``."""
        self.output_full()

    def resume_writing(self) -> None:
        """The output has drained."""
        if self.weight:
            self.weigh()
        if not self.closed:
            self._server.tick()
            self.output_free()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; the socket is still open here, so what it acknowledged can be read."""
        self._server.tick()
        if not self.closed:
            self.broker.detach(self, self._crowded or (f"connection lost: {exc}" if exc else "connection lost"))
            self.lost()
        if self._socket is not None:
            self._socket.detach()  # the transport closes it
            self._socket = None
        self.gone()
        if self.begun:
            self._server.leave(self._listener, self.admitted)
            self._server.forget(self)

    def lost(self) -> None:
        """The connection is gone; nothing more is written, and no answer is waited for."""
        super().lost()
        if self._answer is not None:
            self._answer.cancel()

    def ask(self, answer: Awaitable[Answer]) -> None:
        """Await an answer of ``authorize_connect``."""
        self._answer = asyncio.get_running_loop().create_task(self._ask_for(answer), name="mqtt-authorize")

    async def _ask_for(self, awaited: Awaitable[Answer]) -> None:
        answer: Answer = ConnackCode.UNAVAILABLE
        try:
            answer = await awaited
        except asyncio.CancelledError:
            if self.closed:
                raise
            logger.warning("authorize_connect was cancelled; the client is refused")  # by others than this connection
        except Exception:
            logger.exception("authorize_connect failed; the client is refused")
        self._answer = None
        self._server.tick()
        self.answered(answer)

    def peer(self) -> tuple[bytes | None, str]:
        """Return certificate and address."""
        tls, name = map(self._transport.get_extra_info, ("ssl_object", "peername"))
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        return certificate, address_of(self.client_name or name)

    def write(self, data: bytes) -> None:
        """Send; a connection that leaves more than its share unread is cut off."""
        self._transport.write(data)
        if (self.weight or self._transport.get_write_buffer_size() > SMALL) and not self.weigh():
            self._crowded = "it leaves too much unread, and so do others"
            self._transport.abort()

    def shut(self) -> None:
        """Close when the output has left, or when it takes too long."""
        self.close_at = time.monotonic() + LINGER
        self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def buffered(self) -> int:
        """Return the bytes of output that wait."""
        return self._transport.get_write_buffer_size()

    def acknowledged(self) -> int | None:
        """Return how many bytes of the output have been acknowledged."""
        if self._local:  # what the kernel took is the peer's
            if not self._transport.is_closing():  # an error empties the buffer
                self._base = self.written - self._transport.get_write_buffer_size()
            return self._base
        if self._socket is None:
            return None
        acked = bytes_acked(self._socket)
        return None if acked is None else acked - self._base

"""MQTT in a WebSocket on the gateway's side (RFC 6455; OASIS MQTT 3.1.1, section 6), with the interface of a socket.

The client library reads and writes it like a socket that does not block. Its own WebSocket masks byte by byte in
Python; here that is done by ``websockets``, whose protocol does no I/O of its own. Nothing is compressed: frames are.
"""

from __future__ import annotations

import errno
import logging
import ssl
from typing import TYPE_CHECKING, Final

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from waybill.errors import Unavailable

if TYPE_CHECKING:
    import socket

    from edge_agent.uplink.dial import Stream

PART: Final = 16 << 10
"""Bytes of one WebSocket frame at most, as of a TLS record: what is masked and not taken by the socket is small."""

READ: Final = 16 << 10
"""Bytes read at once."""

LARGEST: Final = 1 << 20
"""Bytes of a message from the cloud at most; it sends acks and commands."""

_logger = logging.getLogger(f"{__name__}.frames")
_logger.setLevel(logging.WARNING)  # not a line for each frame


class UpgradeRefused(Unavailable):
    """The other end makes no WebSocket of the connection; the text says why, and the mend."""


class WebSocket:
    """An open WebSocket."""

    def __init__(self, sock: socket.socket, protocol: ClientProtocol) -> None:
        self.socket = sock
        self._protocol = protocol
        self._input = bytearray()
        self._output = b""
        self._taken = 0  # bytes given to ``send`` that are in ``_output``
        self._ended = False

    def recv(self, count: int) -> bytes:
        """Return at most ``count`` bytes, none at the end. Raises BlockingIOError where there are none yet, OSError."""
        while not self._input:
            if self._ended:
                return b""
            self._take(self.socket.recv(READ))
        data = bytes(self._input[:count])
        del self._input[:count]
        return data

    def _take(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
            self._ended = True
        for frame in self._protocol.events_received():
            if isinstance(frame, Frame) and frame.opcode in (Opcode.BINARY, Opcode.CONT):
                self._input += frame.data
        self._ended = self._ended or self._protocol.state is not OPEN
        # The answer to a ping; one that does not fit waits for the next frame.
        self._output += b"".join(self._protocol.data_to_send())
        if self._output and not self._taken:
            try:
                self._flush()
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return

    def send(self, data: bytes | bytearray) -> int:
        """Write, and return how many bytes were taken. Raises BlockingIOError where none can be now, OSError.

        After a BlockingIOError it must be called again with the same bytes, as it is for TLS.
        """
        if not self._taken:
            part = bytes(data[:PART])
            self._protocol.send_binary(part)
            self._output += b"".join(self._protocol.data_to_send())
            self._taken = len(part)
        self._flush()
        taken, self._taken = self._taken, 0
        return taken

    def _flush(self) -> None:
        """Write what waits. Raises BlockingIOError, or TLS's own, where that is not all of it."""
        while self._output:
            self._output = self._output[self.socket.send(self._output) :]

    def pending(self) -> int:
        """Return the bytes that can be read although the socket itself has none."""
        held = self.socket.pending() if isinstance(self.socket, ssl.SSLSocket) else 0
        return len(self._input) + held

    def fileno(self) -> int:
        """Return the socket's."""
        return self.socket.fileno()

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - a socket's
        """Do as a socket; it never blocks."""
        self.socket.setblocking(flag)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


async def upgrade(stream: Stream, url: str) -> WebSocket:
    """Make a WebSocket of a connection to the host of ``url``. Raises UpgradeRefused, OSError."""
    protocol = ClientProtocol(parse_uri(url), subprotocols=[Subprotocol("mqtt")], max_size=LARGEST, logger=_logger)
    protocol.send_request(protocol.connect())
    await stream.send(b"".join(protocol.data_to_send()))
    said = False
    while protocol.state is not OPEN:
        data = await stream.read(READ)
        if data:
            protocol.receive_data(data)
        elif said:
            protocol.receive_eof()
        else:
            raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
        said = True
        error = protocol.handshake_exc
        if isinstance(error, InvalidStatus):
            answer = error.response
            raise UpgradeRefused(
                f"no WebSocket: HTTP {answer.status_code} {answer.reason_phrase}; check host, port and path of "
                "[[uplink]] url, and what stands before the ingest"
            )
        if error is not None:
            raise UpgradeRefused(
                f"no WebSocket: {error}; is there a WebSocket listener of the ingest at [[uplink]] url?"
            )
    if protocol.subprotocol != "mqtt":
        raise UpgradeRefused("no WebSocket: what answers speaks no MQTT; check host, port and path of [[uplink]] url")
    made = WebSocket(stream.socket, protocol)
    protocol.events_received()  # the answer itself
    return made

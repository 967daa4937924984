"""MQTT over WebSockets (RFC 6455; OASIS MQTT 3.1.1 and 5.0, section 6).

The packets are one stream of bytes in binary frames, which need not begin or end with a packet. The subprotocol is
``mqtt``, any path will do, nothing is compressed. Bounds: an HTTP request of ``REQUEST_LIMIT`` bytes within
``connect_timeout``, a message of ``max_packet`` and ``MESSAGE_ROOM`` more. Pings are answered; who does not read the
answers is not read.
"""

from __future__ import annotations

import http
import logging
from typing import TYPE_CHECKING, Final

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from waybill.mqtt.budget import SMALL
from waybill.mqtt.limits import KIB
from waybill.mqtt.reader import CONNECT_LIMIT, CROWDED
from waybill.mqtt.reasons import Reason
from waybill.mqtt.terms import SECOND
from waybill.mqtt.transport import Wire

if TYPE_CHECKING:
    from waybill.mqtt.listeners import Listener
    from waybill.mqtt.server import MqttServer

REQUEST_LIMIT: Final = 16 * KIB
"""Bytes of the HTTP request at most."""

MESSAGE_ROOM: Final = 64 * KIB
"""Bytes that a WebSocket message may be larger than an MQTT packet."""

_frames_logger = logging.getLogger(f"{__name__}.frames")
_frames_logger.setLevel(logging.WARNING)  # not a line for each connection


class WebSocketWire(Wire):
    """A connection over a WebSocket."""

    __slots__ = ("_part", "_requested", "_ws")

    def __init__(self, server: MqttServer, listener: Listener) -> None:
        super().__init__(server, listener)
        most = max(listener.limits.max_packet, CONNECT_LIMIT) + MESSAGE_ROOM
        self._ws = ServerProtocol(subprotocols=[Subprotocol("mqtt")], max_size=most, logger=_frames_logger)
        self._requested = 0  # bytes of the HTTP request so far
        self._part: tuple[int, int] | None = None  # of an unfinished frame: since when, and how much of it, there is

    def data_received(self, data: bytes) -> None:
        """Take frames apart and feed what is in them."""
        self._server.tick()
        if self.closed:
            return
        ws = self._ws
        if ws.state is OPEN:
            ws.receive_data(data)
            self._frames()
        else:
            self._handshake(data)
        self._hold(len(ws.reader.buffer))

    def _hold(self, held: int) -> None:
        """So many bytes of a frame wait for its rest."""
        if (self.weight or held > SMALL) and not self.closed and not self.weigh():
            self.close(CROWDED, Reason.QUOTA_EXCEEDED)
        if not held:
            self._part = None
        elif self._part is None or not 0 <= held - self._part[1] < KIB:
            self._part = (self.broker.mono_ns, held)

    def _handshake(self, data: bytes) -> None:
        """Take what came of the HTTP request, and answer it when it is whole."""
        ws = self._ws
        self._requested += len(data)
        ws.receive_data(data)
        events = ws.events_received()
        if len(events) == 1 and isinstance(events[0], Request):
            ws.send_response(ws.accept(events[0]))
            self._send()
        elif events:  # RFC 6455, 4.1: frames before the answer
            self._transport.write(ws.reject(http.HTTPStatus.BAD_REQUEST, "frames came too early.\n").serialize())
        elif ws.handshake_exc is not None:
            self._transport.write(ws.reject(http.HTTPStatus.BAD_REQUEST, f"{ws.handshake_exc}.\n").serialize())
        elif self._requested > REQUEST_LIMIT:
            status = http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._transport.write(ws.reject(status, f"at most {REQUEST_LIMIT} bytes.\n").serialize())
        else:
            return
        if ws.state is not OPEN:
            self.broker.counters.handshakes_failed += 1
            self.close(f"no WebSocket handshake: {ws.handshake_exc or 'too much was sent'}")

    def _frames(self) -> None:
        """Feed the frames that have come, and answer those that are for the WebSocket."""
        ws = self._ws
        stream: list[bytes] = []
        text = False
        for frame in ws.events_received():
            if isinstance(frame, Frame):
                text = frame.opcode is Opcode.TEXT
                if text:
                    break
                if frame.opcode in (Opcode.BINARY, Opcode.CONT):
                    stream.append(bytes(frame.data))
        if stream:
            self.feed(stream[0] if len(stream) == 1 else b"".join(stream))
        if text and ws.state is OPEN:  # 6.0: the connection must be closed
            ws.fail(CloseCode.UNSUPPORTED_DATA, "MQTT comes in binary frames")
        self._send()
        if ws.state is not OPEN and not self.closed:
            if text or ws.parser_exc is not None:
                self.broker.counters.malformed += 1
                self.close(f"WebSocket: {ws.parser_exc or 'a text frame'}")
            else:
                self.close("connection lost: the WebSocket was closed")

    def _send(self) -> None:
        """Write what the WebSocket has to say; its end is told by closing."""
        data = b"".join(self._ws.data_to_send())
        if data:
            self.written += len(data)
            self._transport.write(data)

    def write(self, data: bytes) -> None:
        """Send in one frame."""
        if self._ws.state is OPEN:
            self._ws.send_binary(data)
            framed = b"".join(self._ws.data_to_send())
            self.written += len(framed) - len(data)  # ``flush`` has counted these
            super().write(framed)

    def unfinished(self) -> int:
        """Return how many bytes of input wait for the rest of their frame, or packet."""
        return super().unfinished() + len(self._ws.reader.buffer)

    def shut(self) -> None:
        """Say the WebSocket's good-bye, then close."""
        if self._ws.state is OPEN:
            self._ws.send_close(CloseCode.NORMAL_CLOSURE)
            self._send()
        super().shut()

    def overdue(self, now_ns: int) -> str:
        """Say why this connection has to end now, by the clock; a frame that does not end is an unfinished packet."""
        if self.paused:
            self._part = None if self._part is None else (now_ns, self._part[1])
        elif self._part and now_ns - self._part[0] > self.broker.settings.stall_timeout * SECOND:
            return "unfinished packet"
        return super().overdue(now_ns)

"""One connection to the cloud over one uplink, by aiomqtt (guarantee U1).

Each connection is a fresh client with a clean session, and frames go with QoS 0: what the client library had queued
dies with its connection, because what is unacked is sent again by the window, and by nobody else. Through a broker of
others it is QoS 1, one frame at a time, so that nothing is queued either. Connected means CONNACK: under TLS 1.3 the
handshake of a refused certificate succeeds on this side.

**When a frame's last byte has left the socket's queue** (U2). :meth:`Link.send` hands over one frame at a time and
returns when its last byte was written to the socket. At that moment the kernel says how many bytes the peer's TCP has
acknowledged so far (``tcpi_bytes_acked``, RFC 4898) and how many it holds unacknowledged (``SIOCOUTQ``); the frame has
left when the first reaches their sum. Both count what is on the wire, so this is exact under TLS too. Where the
kernel does not tell, a frame counts as gone once it is written. Behind a proxy it has left when the proxy has it.

**An interface that is gone** or switched off is noticed within three seconds (:mod:`edge_agent.uplink.interface`).

**A dead link** is noticed within 1.5 × ``keepalive``: by MQTT's ping, which the cloud itself answers, and by
TCP_USER_TIMEOUT where there is one. The socket's queue of unsent bytes is kept short, so that a ping does not wait
behind megabytes on a slow link.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import math
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any, Final

import aiomqtt
import msgspec
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.uplink import interface, traffic
from edge_agent.uplink.config import UplinkSettings
from edge_agent.uplink.dial import PATIENCE, REFUSED, Dialer, LinkLost, Passed
from edge_agent.uplink.traffic import Traffic
from waybill import wire
from waybill.errors import Corrupt
from waybill.mqtt.transport import bytes_acked
from waybill.pki import FloorMs, client_context

if TYPE_CHECKING:
    from edge_agent.uplink.web_socket import WebSocket

log = logging.getLogger(__name__)

FAREWELL: Final = 1.0
"""Seconds for saying offline, and again for closing."""

MAX_WAITING: Final = 1000
"""Received messages that wait to be handled; more are dropped, and the cloud sends them again (U2, U5)."""

LOOK: Final = 1.0
"""Seconds between two looks at the interface: one that is gone for a moment costs no connection."""

SIOCOUTQ: Final = 0x5411

KEEP_ALIVE_TIMEOUT: Final = 0x8D
"""What paho calls it where nothing comes, also before the CONNACK."""


class Link:
    """One established connection. ``uplink``: what its uplink is called.

    ``qos``: of frames, acks and commands: 0, or 1 through a broker of others, which may drop QoS 0 as it likes (U1).
    """

    def __init__(self, client: _Client, gateway: str, uplink: str, qos: int = 0) -> None:
        self._client = client
        self._gateway = gateway
        self._up = wire.up_topic(gateway)
        self._ack = wire.ack_topic(gateway)
        self._down = wire.down_topic(gateway)
        self.uplink = uplink
        self._qos = qos

    async def send(self, frame: bytes) -> int:
        """Write a frame to the socket, and return its mark for :meth:`has_left`. Raises LinkLost.

        Waits as long as the link takes, behind a broker of others until that has the frame; the end of the connection
        cancels it (:meth:`Uplink.run`).
        """
        try:
            await self._client.publish(self._up, frame, qos=self._qos, timeout=math.inf)
        except aiomqtt.MqttError as error:
            raise LinkLost(self._client.why(error)) from error
        acked = self._client.acknowledged()  # first: what is acked between the two is then counted in both, not missed
        return 0 if acked is None else acked + self._client.unacknowledged()

    def has_left(self, mark: int) -> bool:
        """Tell whether the frame of this mark has left the socket's queue."""
        acked = self._client.acknowledged()
        return acked is None or acked >= mark

    def traffic(self) -> Traffic:
        """Return what this connection has cost on the wire so far: (sent, received), bytes; it never falls.

        Handshakes, keepalives and retransmissions are counted. After the end it stays what it was.
        """
        return self._client.traffic()

    async def received(self) -> AsyncIterator[wire.Ack | wire.Envelope]:
        """Yield what the cloud sends, until the link is lost. Raises LinkLost then."""
        try:
            async for message in self._client.messages:
                topic, payload = message.topic.value, message.payload
                if not isinstance(payload, bytes):
                    continue
                try:
                    if topic == self._ack:
                        yield wire.decode_ack(payload)
                    elif topic == self._down:
                        yield wire.decode_envelope(payload)
                except Corrupt as error:
                    log.warning("uplink: ignored a message on %s: %s", topic, error)
        except aiomqtt.MqttError as error:
            raise LinkLost(self._client.why(error)) from error

    async def watch(self) -> None:
        """Look every second whether its interface is there, until that is gone for two looks. Raises LinkLost then."""
        before = ""
        while True:
            await asyncio.sleep(LOOK)
            reason = self._client.trouble()
            if reason and before:
                raise LinkLost(reason)
            before = reason

    # --- its beginning and end ---

    async def subscribe(self) -> None:
        """Subscribe to acks and commands, before the first frame: its ack must not be missed (U3). Raises LinkLost."""
        try:
            codes = await self._client.subscribe([(self._ack, self._qos), (self._down, self._qos)])
        except aiomqtt.MqttError as error:
            raise LinkLost(self._client.why(error)) from error
        for code in codes:
            if (code if isinstance(code, int) else code.value) >= 0x80:  # noqa: PLR2004 - OASIS MQTT 3.1.1, 3.9.3
                raise LinkLost(f"the cloud refuses gateway {self._gateway!r}: is this the certificate's own id?")

    async def say(self, state: wire.State) -> None:
        """Publish a state; returns when the cloud has it, however long that takes, or the link is lost."""
        with contextlib.suppress(aiomqtt.MqttError):  # the reader of the link says it better
            said = msgspec.json.encode(state)
            await self._client.publish(wire.state_topic(self._gateway), said, qos=1, retain=True, timeout=math.inf)

    async def leave(self, state: wire.State | None = None) -> None:
        """Say ``state``, and disconnect so that the will does not speak, within a bounded time: the link may hang."""
        if state is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    await self.say(state)
        with contextlib.suppress(TimeoutError, aiomqtt.MqttError):
            async with asyncio.timeout(FAREWELL):
                await self._client.__aexit__(None, None, None)
        self.close()

    def close(self) -> None:
        """Close the socket now; nothing is sent."""
        self._client.abort()


class Uplink:
    """Makes the connections over one uplink."""

    def __init__(
        self,
        settings: UplinkSettings,
        label: str,
        gateway: str,
        version: str,
        *,
        floor_ms: FloorMs | None = None,
        trial: bool = False,
    ) -> None:
        """Raise ConfigError where the certificate files cannot be used.

        ``label``: what it is called; ``version``: the agent's, for its will; ``floor_ms``: of the agent's clock.
        ``trial``: beside the agent's own connection, which stays (:func:`waybill.wire.trial_id`); without a will.
        """
        self.settings = settings
        self.label = label
        self._gateway = wire.trial_id(gateway) if trial else gateway
        self._trial = trial
        self._version = version
        files = settings.ca, settings.certificate, settings.key
        self.dialer = Dialer(settings, client_context(*files, floor_ms=floor_ms) if settings.tls else None)
        self._password = settings.password()
        self._past = Traffic()
        self._now: _Client | None = None
        self.introduced = False
        """Whether the cloud may know of the newest connection: from then on it may end the one before."""

    def traffic(self) -> Traffic:
        """Return what all connections since the start have cost on the wire: (sent, received), bytes; it never falls.

        Attempts that failed are counted too; name look-ups are not.
        """
        return self._past if self._now is None else self._past.plus(self._now.traffic())

    async def connect(self, passed: Passed = lambda _step, _sock: None) -> Link:
        """Make a connection that the cloud has accepted. Raises LinkLost. The one before must be closed."""
        self.introduced = False
        sock = await self.dialer.dial(self._spent, passed)
        self._spent(Traffic())
        self._now = client = self._client(sock)
        link = Link(client, self._gateway, self.label, 1 if self.settings.broker == "foreign" else 0)
        try:
            try:
                self.introduced = True
                await client.open()
            except (aiomqtt.MqttError, ValueError) as error:
                raise LinkLost(client.why(error)) from error
            passed("connect", sock if isinstance(sock, socket.socket) else sock.socket)
            await link.subscribe()
        except BaseException:
            client.abort()
            raise
        return link

    def _spent(self, on: Traffic) -> None:
        """Count what is over: ``on`` and the connection before."""
        self._past, self._now = self.traffic().plus(on), None

    def _client(self, sock: socket.socket | WebSocket) -> _Client:
        settings = self.settings
        will = wire.State(state="offline", reason="connection lost", version=self._version)
        return _Client(
            sock,
            settings,
            identifier=self._gateway,
            username=settings.user or None,
            password=self._password,
            clean_session=True,
            keepalive=settings.ping,
            timeout=PATIENCE,
            will=None
            if self._trial
            else aiomqtt.Will(wire.state_topic(self._gateway), msgspec.json.encode(will), qos=1, retain=True),
            max_queued_incoming_messages=MAX_WAITING,
        )


class _Client(aiomqtt.Client):
    """aiomqtt's client on a connection that is there, and what it lacks: a failure's reason, its socket's state."""

    def __init__(self, sock: socket.socket | WebSocket, settings: UplinkSettings, **options: Any) -> None:  # noqa: ANN401 - passed on
        self._words = _LastWords()
        self._tls = settings.tls
        self._closed_early = False
        self._traffic = Traffic()
        self._unused: socket.socket | WebSocket | None = sock
        self._raw = sock if isinstance(sock, socket.socket) else sock.socket
        logger = logging.Logger("uplink")  # noqa: LOG001 - not in the tree: its lines become the state
        logger.addHandler(self._words)
        super().__init__(settings.host, settings.port, logger=logger, **options)
        # paho makes its sockets itself, blocking a thread, and has no other way to be given one.
        self._client._create_socket = self._take  # type: ignore[method-assign] # noqa: SLF001

    def _take(self) -> Any:  # noqa: ANN401 - what paho calls a SocketLike
        sock, self._unused = self._unused, None
        return sock

    async def open(self) -> None:
        """Send CONNECT and wait until it is accepted. Raises MqttError.

        Not aiomqtt's way to enter: that is a thread's work, because sockets are made there.
        """
        try:
            self._client_connect()
        except OSError as error:
            raise aiomqtt.MqttError(str(error)) from None
        await self._wait_for(self._connected, timeout=None)

    async def _wait_for(self, fut: Awaitable[Any], timeout: float | None) -> Any:  # noqa: ANN401, ASYNC109 - aiomqtt's
        # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation, and the agent would never end.
        seconds = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                return await fut
        except TimeoutError:
            raise aiomqtt.MqttError("Operation timed out") from None

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ANN401, ARG002 - paho's
        # At once: aiomqtt puts it off, and by then the socket may be closed, and its number another's.
        self._loop.add_writer(sock.fileno(), self._write)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as error:  # noqa: BLE001 - as aiomqtt has it
            if not self._disconnected.done():
                self._disconnected.set_exception(error)

    def _on_disconnect(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        # aiomqtt would wait for the CONNACK until its time-out, although the connection is closed.
        if not self._connected.done():
            reason = args[3] if len(args) > 3 else None  # noqa: PLR2004 - client, userdata, flags, reason
            mute = isinstance(reason, ReasonCode) and reason.value == KEEP_ALIVE_TIMEOUT
            self._closed_early = not mute
            why = str(reason) if mute else "the connection was closed before it was accepted"
            self._connected.set_exception(aiomqtt.MqttError(why))
            return
        super()._on_disconnect(*args, **kwargs)

    def _on_socket_close(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ANN401 - passed on
        self._traffic = max(
            self._traffic, traffic.of(self._raw, closing=True)
        )  # the last look: it is closed after this
        super()._on_socket_close(client, userdata, sock)

    async def _misc_loop(self) -> None:
        # aiomqtt looks once a second: with a short keepalive a ping would come when the cloud has given us up.
        while not self._client.loop_misc():  # noqa: ASYNC110 - paho tells nobody when a ping is due
            await asyncio.sleep(min(1.0, self._keepalive / 4))

    def trouble(self) -> str:
        """Return why nothing can pass through its interface, or an empty string."""
        return interface.trouble(self._raw)

    def traffic(self) -> Traffic:
        """Return what the connection has cost on the wire."""
        self._traffic = max(self._traffic, traffic.of(self._raw))
        return self._traffic

    def why(self, error: BaseException) -> str:
        """Return the reason of a failure in one line."""
        if self._closed_early and self._tls and "ALERT" not in self._words.last:
            return REFUSED
        return explain(self._words.last or str(error.__cause__ or error))

    def abort(self) -> None:
        """Close the socket now, if it is open; nothing is sent."""
        self._traffic = max(self._traffic, traffic.of(self._raw, closing=True))
        # paho offers no such thing; shutting the socket down would leave its closing to a loop that may have ended.
        self._client._sock_close()  # noqa: SLF001
        self._raw.close()
        if self._connected.done() and not self._connected.cancelled():
            self._connected.exception()
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()

    def acknowledged(self) -> int | None:
        """Return how many bytes the peer's TCP has acknowledged; None where the kernel does not tell."""
        return bytes_acked(self._raw) if sys.platform == "linux" else None

    def unacknowledged(self) -> int:
        """Return how many bytes written to the socket the peer's TCP has not acknowledged."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._raw, SIOCOUTQ, bytes(4)))[0])
        except (OSError, ValueError):  # it is closed
            return 0


class _LastWords(logging.Handler):
    """Keeps the last error that the client library logged: its callbacks carry codes only."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        self.last = record.getMessage()


def explain(text: str) -> str:
    """Say a failure of the client library in the words of the person who has to mend it."""
    text = text.strip() or "connection lost"
    short = text.split("] ", 1)[-1].split(" (_ssl.c", 1)[0]
    lower = text.lower()
    if "alert" in lower and "[ssl" in lower:
        return f"certificate refused by the cloud: {short}; check [[uplink]] certificate and key"
    if "unspecified error" in lower:  # what paho says of an end of file
        return "connection lost"
    if "keep alive" in lower:
        return "no answer from the cloud within the keepalive"
    if "timed out" in lower and "operation" in lower:
        return f"the cloud does not accept the connection within {PATIENCE:.0f} s"
    if "code:5" in lower or "not authorized" in lower or "code:135" in lower:
        return "the cloud refuses this gateway: not authorized"
    if "code:2" in lower or "identifier" in lower:
        return "the cloud refuses this gateway: its certificate names another; check gateway and [[uplink]] certificate"
    return short.removeprefix("failed to receive on socket: ")

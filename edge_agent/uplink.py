"""The uplink: one MQTT connection to the cloud after another, by aiomqtt (guarantee U1).

Each connection is a fresh client with a clean session, and frames go with QoS 0: what the client library had queued
dies with its connection, because what is unacked is sent again by the window, and by nobody else. Connected means
CONNACK: under TLS 1.3 the handshake of a refused certificate succeeds on this side.

**When a frame's last byte has left the socket's queue** (U2). :meth:`Link.send` hands over one frame at a time and
returns when its last byte was written to the socket. At that moment the kernel says how many bytes the peer's TCP has
acknowledged so far (``tcpi_bytes_acked``, RFC 4898) and how many it holds unacknowledged (``SIOCOUTQ``); the frame has
left when the first reaches their sum. Both count what is on the wire, so this is exact under TLS too. Where the
kernel does not tell, a frame counts as gone once it is written.

**A dead link** is noticed within 1.5 × ``keepalive``: by MQTT's ping, and by TCP_USER_TIMEOUT where there is one. The
socket's queue of unsent bytes is kept short, so that a ping does not wait behind megabytes on a slow link.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import math
import random
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Literal

import aiomqtt
import msgspec

from edge_agent import traffic
from edge_agent.config import UplinkSettings
from edge_agent.status import LinkState
from edge_agent.traffic import Traffic
from waybill import wire
from waybill.errors import Corrupt, Unavailable
from waybill.mqtt.transport import bytes_acked
from waybill.pki import FloorMs, client_context

log = logging.getLogger(__name__)

BASE_DELAY: Final = 0.5
MAX_DELAY: Final = 60.0
STABLE: Final = 60.0
"""Seconds after which a connection counts as stable: the next reconnect begins with short delays again."""

PATIENCE: Final = 10.0
"""Seconds for CONNACK and for SUBACK."""

FAREWELL: Final = 1.0
"""Seconds for saying offline, and again for closing, at a shutdown."""

MAX_WAITING: Final = 1000
"""Received messages that wait to be handled; more are dropped, and the cloud sends them again (U2, U5)."""

UNSENT_BYTES: Final = 64 << 10
SIOCOUTQ: Final = 0x5411


class LinkLost(Unavailable):
    """The connection is gone, or could not be made; the text says why."""


class Link:
    """One established connection."""

    def __init__(self, client: _Client, gateway: str) -> None:
        self._client = client
        self._up = wire.up_topic(gateway)
        self._ack = wire.ack_topic(gateway)
        self._down = wire.down_topic(gateway)

    async def send(self, frame: bytes) -> int:
        """Write a frame to the socket, and return its mark for :meth:`has_left`. Raises LinkLost.

        Waits as long as the link takes; the end of the connection cancels it (:meth:`Uplink.run`).
        """
        try:
            await self._client.publish(self._up, frame, qos=0, timeout=math.inf)
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


class Uplink:
    """Keeps a connection to the cloud for as long as :meth:`run` runs."""

    def __init__(
        self,
        settings: UplinkSettings,
        gateway: str,
        version: str,
        rng: random.Random | None = None,
        *,
        floor_ms: FloorMs | None = None,
    ) -> None:
        """Raise ConfigError where the certificate files cannot be used.

        ``version``: the agent's, for its state. ``rng``: for the jitter. ``floor_ms``: of the agent's clock.
        """
        self._settings = settings
        self._gateway = gateway
        self._version = version
        self._rng = rng or random.SystemRandom()
        files = settings.ca, settings.certificate, settings.key
        self._context = client_context(*files, floor_ms=floor_ms) if settings.tls else None
        self.state = LinkState("connecting", _wall_ms())
        self.connects = 0
        """Connections made since the start."""
        self._past = Traffic()
        self._now: _Client | None = None

    def traffic(self) -> Traffic:
        """Return what all connections since the start have cost on the wire: (sent, received), bytes; it never falls.

        Attempts that failed are counted too; name look-ups are not.
        """
        return self._past if self._now is None else self._past.plus(self._now.traffic())

    async def run(self, serve: Callable[[Link], Awaitable[None]]) -> None:
        """Connect, run ``serve`` on the link until it is lost, and again; until cancelled, which says offline first."""
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                await self._once(serve)
                reason = "closed"
            except* LinkLost as lost:
                reason = _first(lost)
            if self.state.state == "online" and time.monotonic() - started >= STABLE:
                attempt = 0
            delay = backoff(attempt, self._rng)
            attempt += 1
            self._offline(reason, delay)
            await asyncio.sleep(delay)

    async def _once(self, serve: Callable[[Link], Awaitable[None]]) -> None:
        self._now = client = self._client()
        try:
            try:
                await client.__aenter__()
                await self._subscribe(client)
            except (aiomqtt.MqttError, ValueError) as error:
                raise LinkLost(client.why(error)) from error
            self.connects += 1
            self._say("online", "")
            log.info("uplink: online at %s", self._settings.url)
            link = Link(client, self._gateway)
            async with asyncio.TaskGroup() as group:
                # Not awaited: a journal that is away would hold its PUBACK, and the link is up all the same.
                online = group.create_task(self._publish_state(client, "online"), name="uplink state")
                await serve(link)
                online.cancel()
        except asyncio.CancelledError:
            await self._farewell(client)
            raise
        finally:
            client.abort()
            self._past, self._now = self.traffic(), None

    def _client(self) -> _Client:
        will = wire.State(state="offline", reason="connection lost", version=self._version)
        # Pings go after this many seconds of silence, and the answer may take as long: 1.5 × keepalive in all.
        ping = max(1, int((1.5 * self._settings.keepalive - 2) / 2))
        options: list[tuple[int, int, int]] = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
        for name, value in (
            ("TCP_USER_TIMEOUT", 1500 * self._settings.keepalive),
            ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
        ):
            if hasattr(socket, name):
                options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
        return _Client(
            self._settings.host,
            self._settings.port,
            identifier=self._gateway,
            clean_session=True,
            keepalive=ping,
            timeout=PATIENCE,
            tls_context=self._context,
            will=aiomqtt.Will(wire.state_topic(self._gateway), msgspec.json.encode(will), qos=1, retain=True),
            max_queued_incoming_messages=MAX_WAITING,
            socket_options=options,
        )

    async def _subscribe(self, client: _Client) -> None:
        # Before the first frame: its ack must not be missed (U3).
        topics = [wire.ack_topic(self._gateway), wire.down_topic(self._gateway)]
        for code in await client.subscribe([(topic, 0) for topic in topics]):
            if (code if isinstance(code, int) else code.value) >= 0x80:  # noqa: PLR2004 - OASIS MQTT 3.1.1, 3.9.3
                raise LinkLost(f"the cloud refuses gateway {self._gateway!r}: is this the certificate's own id?")

    async def _publish_state(self, client: _Client, state: Literal["online", "offline"], reason: str = "") -> None:
        said = msgspec.json.encode(wire.State(state=state, reason=reason, version=self._version))
        with contextlib.suppress(aiomqtt.MqttError):  # the reader of the link says it better
            await client.publish(wire.state_topic(self._gateway), said, qos=1, retain=True, timeout=math.inf)

    async def _farewell(self, client: _Client) -> None:
        """Say offline, and disconnect, within a bounded time: the link may hang."""
        if self.state.state != "online":
            return
        with contextlib.suppress(TimeoutError, aiomqtt.MqttError):
            async with asyncio.timeout(FAREWELL):
                await self._publish_state(client, "offline", "stopped")
        with contextlib.suppress(TimeoutError, aiomqtt.MqttError):
            async with asyncio.timeout(FAREWELL):
                await client.__aexit__(None, None, None)
        self._say("offline", "stopped")

    def _say(self, state: Literal["connecting", "online", "offline"], error: str) -> None:
        since = self.state.since_ms if self.state.state == state else _wall_ms()
        self.state = LinkState(state, since, error or self.state.error)

    def _offline(self, reason: str, delay: float) -> None:
        # The same reason again and again is one event.
        again = self.state.state == "offline" and self.state.error == reason
        level = logging.DEBUG if again else logging.WARNING
        log.log(level, "uplink: offline: %s; next attempt in %.1f s", reason, delay)
        self._say("offline", reason)


def backoff(attempt: int, rng: random.Random) -> float:
    """Return the delay before reconnect number ``attempt`` (from 0), seconds: full jitter, 0.5 s doubling up to 60 s.

    Jitter over the whole interval spreads a fleet best after an outage that hit all of it (Brooker, "Exponential
    Backoff And Jitter", 2015).
    """
    return rng.uniform(0, min(MAX_DELAY, BASE_DELAY * 2 ** min(attempt, 10)))


class _Client(aiomqtt.Client):
    """aiomqtt's client and what it lacks: the reason of a failure, its socket's state, a close that cannot hang."""

    def __init__(self, hostname: str, port: int, **options: Any) -> None:  # noqa: ANN401 - passed on
        self._words = _LastWords()
        self._tls = options.get("tls_context") is not None
        self._closed_early = False
        self._traffic = Traffic()
        logger = logging.Logger("uplink")  # noqa: LOG001 - not in the tree: its lines become the state
        logger.addHandler(self._words)
        super().__init__(hostname, port, logger=logger, **options)

    def _on_disconnect(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        # aiomqtt would wait for the CONNACK until its time-out, although the connection is closed.
        if not self._connected.done():
            self._closed_early = True
            self._connected.set_exception(aiomqtt.MqttError("the connection was closed before it was accepted"))
            return
        super()._on_disconnect(*args, **kwargs)

    def _on_socket_close(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ANN401 - passed on
        self._traffic = max(self._traffic, traffic.of(sock, closing=True))  # the last look: it is closed after this
        super()._on_socket_close(client, userdata, sock)

    def traffic(self) -> Traffic:
        """Return what the connection has cost on the wire."""
        if isinstance(sock := self._client.socket(), socket.socket):
            self._traffic = max(self._traffic, traffic.of(sock))
        return self._traffic

    def why(self, error: BaseException) -> str:
        """Return the reason of a failure in one line."""
        if self._closed_early and self._tls and "ALERT" not in self._words.last:
            # TLS 1.3: this side's handshake is done before the other side has looked at the certificate.
            return (
                "certificate refused by the cloud, most likely: it closed the connection right after the handshake; "
                "check [uplink] certificate and key"
            )
        return explain(self._words.last or str(error.__cause__ or error), self._hostname, self._port)

    def abort(self) -> None:
        """Close the socket now, if it is open; nothing is sent."""
        # paho offers no such thing; shutting the socket down would leave its closing to a loop that may have ended.
        self._client._sock_close()  # noqa: SLF001
        if self._connected.done() and not self._connected.cancelled():
            self._connected.exception()
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()

    def acknowledged(self) -> int | None:
        """Return how many bytes the peer's TCP has acknowledged; None where the kernel does not tell."""
        sock = self._client.socket()
        return bytes_acked(sock) if isinstance(sock, socket.socket) and sys.platform == "linux" else None

    def unacknowledged(self) -> int:
        """Return how many bytes written to the socket the peer's TCP has not acknowledged."""
        sock = self._client.socket()
        try:
            return int(struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQ, bytes(4)))[0]) if sock is not None else 0
        except OSError:
            return 0


class _LastWords(logging.Handler):
    """Keeps the last error that the client library logged: its callbacks carry codes only."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        self.last = record.getMessage()


def explain(text: str, host: str, port: int) -> str:
    """Say a failure of the client library in the words of the person who has to mend it."""
    text = text.strip() or "connection lost"
    short = text.split("] ", 1)[-1].split(" (_ssl.c", 1)[0]
    lower = text.lower()
    if "certificate_verify_failed" in lower:
        return f"the cloud's certificate is not trusted: {short}; check [uplink] ca, and the host in url"
    if "alert" in lower and "[ssl" in lower:
        return f"certificate refused by the cloud: {short}; check [uplink] certificate and key"
    if "connection refused" in lower:
        return f"{host}:{port} refuses the connection"
    if "name or service not known" in lower or "name resolution" in lower or "nodename nor servname" in lower:
        return f"the name {host!r} is not known: {short}"
    if "unspecified error" in lower:  # what paho says of an end of file
        return "connection lost"
    if "keep alive" in lower:
        return "no answer from the cloud within the keepalive"
    if "code:5" in lower or "not authorized" in lower or "code:135" in lower:
        return "the cloud refuses this gateway: not authorized"
    return short.removeprefix("failed to receive on socket: ")


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    """Return the text of the first error in a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000

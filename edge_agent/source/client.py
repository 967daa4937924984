"""One connection to a broker that is already there: paho on its own socket, driven by the event loop.

paho, because it can leave the ack of a message to its user (``manual_ack``); without its thread, because what it reads
then is in the loop at once, and can be paused. Connecting alone, with name look-up and TLS, happens in a thread.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.source.config import SourceSettings
from waybill.errors import Unavailable
from waybill.mqtt.codec import NEVER, SUBACK_FAILURE
from waybill.mqtt.properties import block

PATIENCE: Final = 10.0
"""Seconds for the connection, for CONNACK and for SUBACK."""

READS: Final = 256
"""Packets that are read before the loop has its turn."""

RECEIVE_MAXIMUM: Final = 1000
"""Messages that a broker of MQTT 5 may send before it has their acks."""

MAX_PACKET: Final = 512 << 10
"""The largest packet that is asked for (MQTT 5), and taken: what a device at a listener may send at most (B4)."""

MAX_COMMANDS: Final = 1000
"""Commands on their way to the broker; the rest is published after the next connect."""

NOTHING: Final = "$waybill/nothing"
"""A filter that no source has: those with $ are refused."""


class SourceLost(Unavailable):
    """The connection is gone, or could not be made; the text says why."""


class Message(NamedTuple):
    """What the broker sent. ``topic``: empty where it is no UTF-8.

    ``block``: its MQTT 5 properties without their length, and without the expiry: that counts down at the broker, and a
    copy would differ from its original.
    """

    packet_id: int
    qos: int
    retain: bool
    dup: bool
    topic: bytes
    payload: bytes
    block: bytes


class Connection:
    """One connection; made anew for each."""

    def __init__(
        self,
        settings: SourceSettings,
        context: ssl.SSLContext | None,
        password: str | None,
        on_messages: Callable[[Connection, list[Message]], None],
    ) -> None:
        """``on_messages`` hears what one read brought, in order, in the event loop."""
        self._settings = settings
        self._on_messages = on_messages
        self.five = settings.version == "5"
        version = MQTTProtocolVersion.MQTTv5 if self.five else MQTTProtocolVersion.MQTTv311
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2,
            settings.client_id,
            clean_session=None if self.five else False,
            protocol=version,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = PATIENCE
        client.max_queued_messages_set(MAX_COMMANDS)
        if settings.username:
            client.username_pw_set(settings.username, password)
        if context is not None:
            client.tls_set_context(context)
        self._loop = asyncio.get_running_loop()
        self._present: asyncio.Future[bool] = self._loop.create_future()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._answers: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._run: list[Message] = []
        self._abandoned = False
        self._paused = False
        self._socket: Any = None
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = lambda _client, _data, message: self._run.append(_message(message))
        client.on_subscribe = client.on_unsubscribe = self._answered

    # --- its life ---

    async def open(self) -> bool:
        """Connect; return whether the broker still had the session. Raises SourceLost."""
        settings = self._settings
        try:
            await self._loop.run_in_executor(None, self._connect)
            self._watch()
        except (OSError, ValueError) as error:
            raise SourceLost(explain(error, settings)) from error
        either: set[asyncio.Future[Any]] = {self._present, self._ended}
        await asyncio.wait(either, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if self._present.done():
            return self._present.result()
        if self._ended.done():
            raise SourceLost(self._ended.result())
        raise SourceLost(f"{settings.host}:{settings.port} does not answer as an MQTT broker does")

    def _connect(self) -> None:
        """Connect and send CONNECT; in a thread."""
        more: dict[str, Any] = {}
        if self.five:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = NEVER
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = MAX_PACKET
            more = {"clean_start": False, "properties": properties}
        self._client.connect(self._settings.host, self._settings.port, self._settings.keepalive, **more)
        if self._abandoned:
            self._client._sock_close()  # noqa: SLF001 - nobody is left to read it, and paho offers no such thing

    def _watch(self) -> None:
        """Let the loop read and write; in the loop."""
        client = self._client
        self._socket = client.socket()
        if self._socket is None:
            raise ConnectionResetError("connection lost")
        client.on_socket_close = lambda *_: self._unwatch()
        client.on_socket_register_write = lambda *_: self._loop.add_writer(self._socket, client.loop_write)
        client.on_socket_unregister_write = lambda *_: self._unwrite()
        client.loop_write()  # CONNECT, if it has not left; asks for the writer where there is still more
        if not self._paused:
            self._loop.add_reader(self._socket, self._read)

    def _unwrite(self) -> None:
        self._loop.remove_writer(self._socket)

    def _unwatch(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)

    async def ended(self) -> NoReturn:
        """Wait for the end of the connection, and see to its keepalive. Raises SourceLost."""
        while not self._ended.done():
            await asyncio.wait({self._ended}, timeout=1)
            self._client.loop_misc()
        raise SourceLost(self._ended.result())

    @property
    def alive(self) -> bool:
        """Whether acks can be sent."""
        return self._socket is not None and not self._ended.done()

    def disconnect(self) -> None:
        """Say good-bye, as far as the socket takes it, and close."""
        if self.alive:
            self._client.disconnect()
        self.abort()

    def abort(self) -> None:
        """Close the socket now, if it is open."""
        self._abandoned = True
        self._client._sock_close()  # noqa: SLF001 - as above
        if not self._ended.done():
            self._ended.set_result("closed")

    # --- subscriptions ---

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1. Raises SourceLost, also where the broker refuses one of them."""
        if not filters:
            return
        if self.five:  # its own commands do not come back; the publisher's retain flag stays
            options = SubscribeOptions(1, noLocal=True, retainAsPublished=True, retainHandling=1)
            asked = self._client.subscribe([(each, options) for each in filters])
        else:
            asked = self._client.subscribe([(each, 1) for each in filters])
        codes = await self._answer(*asked)
        refused = [each for each, code in zip(filters, codes, strict=False) if code.value >= SUBACK_FAILURE]
        if refused:
            raise SourceLost(f"the broker refuses {refused[0]!r} to {self._settings.client_id!r}; look at its rules")

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """End subscriptions. Raises SourceLost."""
        if filters:
            await self._answer(*self._client.unsubscribe(list(filters)))

    async def _answer(self, code: MQTTErrorCode, packet_id: int | None) -> list[ReasonCode]:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or packet_id is None:
            raise SourceLost("connection lost")
        answer = self._answers[packet_id] = self._loop.create_future()
        await asyncio.wait({answer, self._ended}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            codes: list[ReasonCode] = answer.result()
            return codes
        raise SourceLost(self._ended.result() if self._ended.done() else "no answer to SUBSCRIBE")

    # --- messages ---

    def pause(self) -> None:
        """Read nothing more."""
        self._paused = True
        if self._socket is not None:
            self._loop.remove_reader(self._socket)

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        if self._socket is not None:
            self._loop.add_reader(self._socket, self._read)
            if self._pending():
                self._loop.call_soon(self._read)

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """Send a PUBACK for each."""
        for packet_id in packet_ids:
            if self.alive:
                self._client.ack(packet_id, 1)

    def publish(self, topic: str, payload: bytes) -> bool:
        """Publish with QoS 1. False where that is not possible now."""
        return self.alive and self._client.publish(topic, payload, 1).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    async def settled(self) -> bool:
        """Wait until the broker has taken note of every ack sent so far; False where it does not say.

        It reads in order, so the answer to any question proves it. To unsubscribe from what nobody subscribed to is one
        that changes nothing and has to be answered (3.10.4). That its TCP has the acks proves less: what it has not
        read when this end dies with unread input, which is a reset, it never reads.
        """
        try:
            await self._answer(*self._client.unsubscribe(NOTHING))
        except SourceLost:
            return False
        return True

    def _read(self) -> None:
        """Read what is there, up to a bound: everything but the first packet is most likely in the buffer of TLS."""
        try:
            for _ in range(READS):
                before = len(self._run)
                if self._paused or self._client.loop_read() or not self.alive:
                    return
                if len(self._run) == before and not self._pending():
                    return
        finally:
            if self._run:
                run, self._run = self._run, []
                self._on_messages(self, run)
        if self._pending():
            self._loop.call_soon(self._read)

    def _pending(self) -> bool:
        """Tell whether TLS has decrypted something that select cannot see."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    # --- what paho says ---

    def _connected(
        self, _client: paho.Client, _data: object, flags: paho.ConnectFlags, code: ReasonCode, *_: object
    ) -> None:
        if code.is_failure:
            self._end(f"{self._settings.host}:{self._settings.port} refuses the connection: {code}; {_mend(code)}")
        elif not self._present.done():
            self._present.set_result(flags.session_present)

    def _disconnected(
        self, _client: paho.Client, _data: object, _flags: object, code: ReasonCode | None, *_: object
    ) -> None:
        said = str(code) if code is not None else ""
        if said == "Session taken over":
            said += (
                f": something else connects there as {self._settings.client_id!r}; give one of them another client_id"
            )
        self._end("connection lost" if said in ("", "Unspecified error", "Success", "Normal disconnection") else said)

    def _answered(
        self, _client: paho.Client, _data: object, packet_id: int, codes: list[ReasonCode], *_: object
    ) -> None:
        answer = self._answers.pop(packet_id, None)
        if answer is not None and not answer.done():
            answer.set_result(codes)

    def _end(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_result(why)


def _message(one: paho.MQTTMessage) -> Message:
    try:
        topic = one.topic.encode()
    except UnicodeDecodeError:
        topic = b""
    return Message(one.mid, one.qos, one.retain, one.dup, topic, bytes(one.payload), _block(one.properties))


def _block(properties: Properties | None) -> bytes:
    if properties is None:
        return b""
    if hasattr(properties, "MessageExpiryInterval"):
        del properties.MessageExpiryInterval
    packed = bytes(properties.pack())  # type: ignore[no-untyped-call]
    return block(packed, 0)[0]


def _mend(code: ReasonCode) -> str:
    if str(code) in ("Not authorized", "Bad user name or password"):
        return "check username and password_file"
    if str(code) == "Unsupported protocol version":
        return 'give version = "3.1.1" or "5", whichever it speaks'
    return "look at that broker's own log"


def explain(error: Exception, settings: SourceSettings) -> str:
    """Say why a connection could not be made, in the words of the person who has to mend it."""
    where = f"{settings.host}:{settings.port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {where} is not trusted: {error.verify_message or error}; check ca, and the host in url"
        )
    if isinstance(error, ssl.SSLError):
        return f"no TLS with {where}: {error.reason or error}; check url, certificate and key"
    if isinstance(error, socket.gaierror):
        return f"the name {settings.host!r} is not known: {error.strerror}"
    if isinstance(error, ConnectionRefusedError):
        return f"{where} refuses the connection: no broker listens there"
    if isinstance(error, TimeoutError):
        return f"{where} does not answer"
    return f"{where}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"

"""Devices: MQTT clients that know what was acknowledged to them.

A :class:`Device` is one paho client for as long as the device lives, because paho alone knows what it has to send again
(facts of QoS 1: with DUP, under the same packet id). So nothing here ever publishes a message twice, and nothing is
published between a connection's start and its CONNACK: paho would send it ahead of what it has to repeat, and the order
would be the device's own fault.

A device reads before it writes. A write to a connection that is gone makes paho close it, and with it what lies unread
in the kernel: PUBACKs that this machine's TCP has acknowledged, which is all a broker can know. The device would send
again what the broker has every reason to call a new message.

paho's socket is driven by the asyncio loop, so that some hundreds of devices share one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleet_simulator.numbers import Ranges
from waybill.config import address
from waybill.errors import ConfigError
from waybill.pki import client_context

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_COMMANDS: Final = 1000
"""Command ids a device remembers; the oldest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where devices connect. ``ca``: PEM file to believe, None for the system's; only with ``tls``."""

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str | None = None
    ca: Path | None = None

    @classmethod
    def parse(cls, text: str, ca: Path | None = None) -> Broker:
        """Read ``HOST:PORT``, ``mqtt://[USER[:PASSWORD]@]HOST[:PORT]`` or ``mqtts://…``. Raises ConfigError."""
        if "://" not in text:
            return cls(*address(text, "broker"))
        url = urlsplit(text)
        if url.scheme not in {"mqtt", "mqtts"} or url.path.strip("/") or url.query or url.fragment:
            raise ConfigError(f"broker {text!r}: write HOST:PORT, mqtt://HOST:PORT or mqtts://HOST:PORT")
        tls = url.scheme == "mqtts"
        try:
            host, port = url.hostname, url.port or (8883 if tls else 1883)
        except ValueError as error:
            raise ConfigError(f"broker {text!r}: {error}") from error
        if not host:
            raise ConfigError(f"broker {text!r}: the host is missing")
        user, password = (None if part is None else unquote(part) for part in (url.username, url.password))
        return cls(host, port, tls, user, password, ca if tls else None)

    def __str__(self) -> str:
        """HOST:PORT, as people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Reply(msgspec.Struct, frozen=True):
    """What a device answers to a command, JSON. ``times``: how often it acted on this id (more than 1 never)."""

    ok: bool
    vehicle: str
    times: int


@dataclass(slots=True)
class Effects:
    """What came to one device as commands, by command id: how often it arrived, and how often it had an effect."""

    arrived: dict[str, int] = field(default_factory=dict)
    acted: dict[str, int] = field(default_factory=dict)
    payloads: dict[str, bytes] = field(default_factory=dict)

    def take(self, command: str, payload: bytes) -> int:
        """Act on ``command`` if it is new (a command may come again, C2). Return how often it was acted on."""
        while len(self.arrived) >= _COMMANDS and command not in self.arrived:
            oldest = next(iter(self.arrived))
            for table in (self.arrived, self.acted, self.payloads):
                table.pop(oldest)
        self.arrived[command] = self.arrived.get(command, 0) + 1
        if command not in self.acted:
            self.acted[command] = 1
            self.payloads[command] = payload
        return self.acted[command]


class Device:
    """One device: a QoS 1 publisher with numbers of its own, and a taker of commands.

    ``acked`` holds the numbers whose PUBACK came; ``published`` the highest number given to the client.
    """

    def __init__(
        self,
        name: str,
        broker: Broker,
        *,
        window: int = 100,
        keepalive: int = 30,
        commands: bool = True,
        on_acked: Callable[[str, int], None] | None = None,
        seed: int = 0,
    ) -> None:
        """``name``: the device and its client id. ``window``: publishes that may await their PUBACK at a time.

        ``on_acked``: called with name and number at each PUBACK, before anything else can happen.
        """
        self.name = name
        self.broker = broker
        self.acked = Ranges()
        self.published = 0
        self.effects = Effects()
        self.connects = 0
        self.error = "not connected yet"
        self._window = window
        self._on_acked = on_acked
        self._commands = commands
        self._random = random.Random(f"{seed}/{name}")  # noqa: S311 - jitter
        self._pause = _FIRST_PAUSE
        self._numbers: dict[int, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: int | None = None
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._room = asyncio.Event()
        self._client = self._make_client(keepalive)

    def _make_client(self, keepalive: int) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.name,
            clean_session=False,
            protocol=MQTTv311,
            reconnect_on_failure=False,
        )
        broker = self.broker
        if broker.user is not None:
            client.username_pw_set(broker.user, broker.password)
        if broker.tls:
            client.tls_set_context(client_context(broker.ca))
        client.max_inflight_messages_set(self._window)
        client.connect_timeout = 5.0
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_want_write
        client.on_socket_unregister_write = self._on_wrote
        client.connect_async(broker.host, broker.port, keepalive)
        return client

    # -- what others call --

    @property
    def connected(self) -> bool:
        """Whether the CONNACK of the current connection came."""
        return self._connected.is_set()

    @property
    def waiting(self) -> int:
        """How many publishes await their PUBACK."""
        return len(self._numbers)

    async def publish(self, topic: str, payload: bytes, number: int) -> None:
        """Give message ``number`` to the client, once; waits while disconnected or while the window is full."""
        while not (self._connected.is_set() and len(self._numbers) < self._window):
            await self._connected.wait()
            if len(self._numbers) >= self._window:
                self._room.clear()
                await self._room.wait()
        self._read()
        sent = self._client.publish(topic, payload, qos=1)
        # Once in its hands the client keeps it whatever becomes of the connection.
        if sent.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            raise RuntimeError(f"{self.name}: the MQTT client did not take message {number}: {sent.rc!r}")
        self._numbers[sent.mid] = number
        self.published = max(self.published, number)

    async def run(self) -> None:
        """Stay connected until cancelled, then disconnect; what is not acknowledged by then stays so."""
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                if await self._connect():
                    while not self._lost.is_set():
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(self._lost.wait(), 1.0)
                        self._read()
                        self._client.loop_misc()
                self._connected.clear()
                await asyncio.sleep(self._random.uniform(0, self._pause))
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        finally:
            self._connected.clear()
            self._client.disconnect()
            self._client.loop_write()
            self._unwatch()
            if (sock := self._client.socket()) is not None:
                sock.close()

    # -- the connection --

    async def _connect(self) -> bool:
        """Open a TCP (and TLS) connection and send CONNECT; False where there is none."""
        loop = asyncio.get_running_loop()
        self._lost.clear()
        connecting = loop.run_in_executor(None, self._client.reconnect)
        try:
            await asyncio.shield(connecting)
        except OSError as error:
            self.error = str(error)
            return False
        except asyncio.CancelledError:
            await asyncio.wait({connecting})  # the thread uses the client; it ends within its time-out
            raise
        sock = self._client.socket()
        if sock is None:
            return False
        self._watched = sock.fileno()
        loop.add_reader(self._watched, self._read)
        if self._client.want_write():
            loop.add_writer(self._watched, self._write)
        return True

    def _read(self) -> None:
        self._client.loop_read()
        # What TLS has decrypted already makes no socket readable.
        while isinstance(sock := self._client.socket(), ssl.SSLSocket) and sock.pending():
            self._client.loop_read()

    def _write(self) -> None:
        self._read()
        self._client.loop_write()

    def _unwatch(self) -> None:
        if self._watched is not None and self._loop is not None:
            self._loop.remove_reader(self._watched)
            self._loop.remove_writer(self._watched)
            self._watched = None

    # -- paho's callbacks; in the loop's thread, but for the socket ones during _connect, when nothing is watched --

    def _on_socket_close(self, *_: object) -> None:
        self._unwatch()

    def _on_want_write(self, *_: object) -> None:
        if self._watched is not None and self._loop is not None:
            self._loop.add_writer(self._watched, self._write)

    def _on_wrote(self, *_: object) -> None:
        if self._watched is not None and self._loop is not None:
            self._loop.remove_writer(self._watched)

    def _on_connect(
        self,
        client: Client,
        _data: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self.error = f"refused: {reason}"
            self._lost.set()
            return
        self.error = ""
        self.connects += 1
        self._pause = _FIRST_PAUSE
        if self._commands:
            client.subscribe(f"cmd/{self.name}/+/req", qos=1)
        # paho repeats what is unacknowledged right after this callback, in the same call; publish() wakes later.
        self._connected.set()

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._connected.clear()
        self.error = self.error or f"connection lost: {reason}"
        self._lost.set()

    def _on_publish(
        self,
        _client: Client,
        _data: object,
        mid: int,
        _reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        number = self._numbers.pop(mid, None)
        if number is not None:  # else the answer to a command
            self.acked.add(number)
            if self._on_acked is not None:
                self._on_acked(self.name, number)
            self._room.set()

    def _on_message(self, client: Client, _data: object, message: MQTTMessage) -> None:
        levels = message.topic.split("/")
        if len(levels) != 4 or levels[0] != "cmd" or levels[3] != "req":  # noqa: PLR2004 - cmd/DEVICE/ID/req
            return
        times = self.effects.take(levels[2], bytes(message.payload))
        reply = Reply(ok=True, vehicle=self.name, times=times)
        client.publish(f"cmd/{self.name}/{levels[2]}/res", msgspec.json.encode(reply), qos=1)

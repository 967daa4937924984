"""A device on a client that others wrote: paho-mqtt with a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Any, Self

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

PATIENCE = 60.0


class Device:
    """Connected while it is open. ``heard``: topic, payload, QoS, retain and DUP of what came, in order."""

    def __init__(
        self, port: int, name: str, *, clean: bool = True, manual: bool = False, v5: bool = False, keepalive: int = 30
    ) -> None:
        version = MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311
        clean_session = None if v5 else clean
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, name, clean_session=clean_session, protocol=version, manual_ack=manual
        )
        self.client.max_inflight_messages_set(500)
        self.connected = threading.Event()
        self.gone = threading.Event()
        self.subscribed = threading.Event()
        self.code = -1
        self.present = False
        self.heard: list[tuple[str, bytes, int, bool, bool]] = []
        self.ids: list[int] = []
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = lambda *_: self.gone.set()
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = self._on_message
        self._port = port
        self._keepalive = keepalive

    def _on_connect(self, _client: paho.Client, _data: object, flags: paho.ConnectFlags, code: Any, *_: object) -> None:
        self.code = code.value
        self.present = flags.session_present
        self.connected.set()

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        self.ids.append(message.mid)
        self.heard.append((message.topic, bytes(message.payload), message.qos, message.retain, message.dup))

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.client.connect, "127.0.0.1", self._port, self._keepalive)
        self.client.loop_start()
        assert await asyncio.to_thread(self.connected.wait, PATIENCE)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)

    async def subscribe(self, *filters: tuple[str, int]) -> None:
        """Return after the SUBACK."""
        self.subscribed.clear()
        self.client.subscribe(list(filters))
        assert await asyncio.to_thread(self.subscribed.wait, PATIENCE)

    async def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False) -> None:
        """Return after the ack; with QoS 0 after it was sent."""
        info = self.client.publish(topic, payload, qos, retain)
        await asyncio.to_thread(info.wait_for_publish, PATIENCE)
        assert info.is_published()

    async def drop(self) -> None:
        """Lose the connection, without DISCONNECT, and for good."""
        sock = self.client.socket()
        assert sock is not None
        await asyncio.to_thread(self._drop, sock)

    def _drop(self, sock: Any) -> None:
        self.client.on_disconnect = None
        self.client._thread_terminate = True  # else paho connects again
        sock.shutdown(2)
        self.client.loop_stop()
        sock.close()

    @property
    def payloads(self) -> list[bytes]:
        """What came."""
        return [one[1] for one in self.heard]

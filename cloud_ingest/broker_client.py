"""One connection to an MQTT broker that others run, by paho in a thread of its own: received by hand, acked by hand.

What was received is acknowledged when its handler says so, and never before, and on the connection that it came on. How
much may be received and not acknowledged is told to the broker (Receive Maximum); messages of QoS 0 know no such limit
and are dropped beyond ``memory`` bytes. What was to be sent dies with its connection (U1).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from cloud_ingest.external_config import Broker
from waybill.mqtt.properties import block
from waybill.pki import client_context

log = logging.getLogger(__name__)

SESSION: Final = 86_400
"""Seconds that the broker keeps the session of a node with a client id of its own."""

PAUSES: Final = (1, 30)
"""Seconds between two attempts to connect: at first, and at most."""

ASK_AGAIN: Final = 10.0

LARGEST: Final = (1 << 28) + 4
"""Bytes of the largest packet that there is (OASIS MQTT 5.0, 2.1.4), where a broker names no smaller one."""

AROUND: Final = 10
"""Bytes of a PUBLISH of QoS 1 without properties beside its topic and payload, at most."""

INFLIGHT: Final = 20
"""Messages sent and not acknowledged, or fewer where the broker takes fewer."""

WAITING: Final = 10_000
"""Messages that wait to be sent; more are dropped."""


class Received(NamedTuple):
    """A message. ``ack``: says that it is done with. ``properties``: the block of MQTT 5 without its length."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    properties: bytes
    ack: Callable[[], None]


class BrokerClient:
    """A connection that is made again whenever it is lost."""

    def __init__(
        self,
        broker: Broker,
        name: str,
        filters: list[str],
        *,
        window: int,
        memory: int,
        received: Callable[[Received], None],
    ) -> None:
        """``name``: the client id, empty for a random one. ``window``: messages received and not acknowledged.

        ``received`` is called in the event loop. Raises ConfigError (files).
        """
        self.fault = "not connected yet"
        self.connects = 0
        self.disconnects = 0
        self.dropped = 0
        self._broker = broker
        self._filters = filters
        self._received = received
        self._memory = memory
        self._waiting = 0
        self._refused = 0.0  # when a subscription was; 0: none
        self._turned_away = False
        self._largest = LARGEST
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop
        self._properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        self._properties.ReceiveMaximum = window
        self._properties.MaximumPacketSize = min(memory, LARGEST)
        self._properties.SessionExpiryInterval = SESSION if name else 0
        self._clean = not name
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5, manual_ack=True
        )
        if broker.user:
            client.username_pw_set(broker.user, broker.password())
        if broker.tls:
            client.tls_set_context(client_context(broker.ca, broker.certificate, broker.key))
        client.suppress_exceptions = True  # what the broker says that none of the below can read ends no thread
        client.enable_logger(log)
        client.reconnect_delay_set(*PAUSES)
        client.max_queued_messages_set(WAITING)
        client.on_connect = self._on_connect
        client.on_connect_fail = lambda *_: self._say("cannot be reached")
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message

    def start(self) -> None:
        """Connect, in the background, again and again."""
        self._loop = asyncio.get_running_loop()
        broker = self._broker
        self._client.connect_async(
            broker.host, broker.port, broker.keepalive, clean_start=self._clean, properties=self._properties
        )
        self._client.loop_start()

    def publish(self, topic: str, payload: bytes) -> None:
        """Send with QoS 1; while there is no connection, or too much waits, it is dropped.

        So is what the broker would not take: it would end the connection.
        """
        size = len(topic.encode()) + len(payload) + AROUND
        if size > self._largest:
            log.warning("the broker takes packets of %d bytes, no %d for %s: not sent", self._largest, size, topic)
        elif self._client.is_connected():
            self._client.publish(topic, payload, 1)

    def ask_again(self) -> None:
        """Ask again for subscriptions that the broker refused ``ASK_AGAIN`` ago: its ACL may have been mended."""
        if self._refused and time.monotonic() - self._refused > ASK_AGAIN and self._client.is_connected():
            self._refused = time.monotonic()
            self._subscribe(self._client)

    async def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    # --- in paho's thread ---

    def _on_connect(self, client: paho.Client, _u: object, _f: object, code: Any, told: Properties | None) -> None:  # noqa: ANN401
        self._turned_away = code.is_failure
        if code.is_failure:
            self._say(f"refuses this node: {code}; look at user, password and certificate in [listener.broker]")
            return
        self._largest = getattr(told, "MaximumPacketSize", LARGEST)
        with client._out_message_mutex:  # noqa: SLF001 - else paho sends it now (U1), were it what ended the connection
            client._out_messages.clear()  # noqa: SLF001
            client._inflight_messages = 0  # noqa: SLF001
            # no public way on a connection; never 0, and none is under way
            client._max_inflight_messages = min(INFLIGHT, getattr(told, "ReceiveMaximum", INFLIGHT))  # noqa: SLF001
        self._subscribe(client)

    def _subscribe(self, client: paho.Client) -> None:
        options = SubscribeOptions(1, retainAsPublished=True)
        client.subscribe([(each, options) for each in self._filters])

    def _on_subscribe(self, _c: object, _u: object, _m: object, codes: list[Any], _p: object) -> None:
        refused = [name for name, code in zip(self._filters, codes, strict=False) if code.is_failure]
        self._refused = time.monotonic() if refused else 0.0
        if refused:
            self._say(f"refuses the subscription to {', '.join(refused)}; allow it in the broker's ACL")
        else:
            self.connects += 1
            self._say("")

    def _on_disconnect(self, _c: object, _u: object, _f: object, code: Any, _p: object) -> None:  # noqa: ANN401
        self.disconnects += 1
        if not self._turned_away:  # else that was said, and why
            self._say(f"connection lost: {code}")

    def _on_message(self, client: paho.Client, _: object, message: paho.MQTTMessage) -> None:
        size = len(message.payload)
        with self._lock:
            if not message.qos and self._waiting + size > self._memory:
                self.dropped += 1
                return
            self._waiting += size
        connection = self.disconnects
        self._loop.call_soon_threadsafe(
            self._hand,
            Received(
                message.topic,
                bytes(message.payload),
                message.qos,
                message.retain,
                message.dup,
                _block(message.properties),
                lambda: self._ack(client, message.mid, message.qos, size, connection),
            ),
        )

    def _say(self, fault: str) -> None:
        if fault != self.fault:
            where = f"{self._broker.host}:{self._broker.port}"
            if fault:
                log.warning("the broker %s %s", where, fault)
            else:
                log.info("the broker %s has this node's subscriptions", where)
        self.fault = fault

    # --- in the event loop ---

    def _hand(self, message: Received) -> None:
        try:
            self._received(message)
        except Exception:
            log.exception("a message on %r could not be handled", message.topic)

    def _ack(self, client: paho.Client, mid: int, qos: int, size: int, connection: int) -> None:
        with self._lock:
            self._waiting -= size
        if qos and connection == self.disconnects:  # on another one the id may be another message's
            client.ack(mid, qos)


def _block(properties: Properties | None) -> bytes:
    """Return a message's properties without their length (OASIS MQTT 5.0, 2.2.2)."""
    packed: bytes = properties.pack() if properties is not None else b"\0"  # type: ignore[no-untyped-call]
    return block(bytes(packed), 0)[0]

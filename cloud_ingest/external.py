"""``[listener] mode = "external"``: nodes are clients of an MQTT broker that others run, on a shared subscription.

::

    gateways ─▶ broker ─▶ $share/{share}/wb/v1/+/up ─▶ Intake ─▶ journal;  then the ack on wb/v1/{gateway}/ack
    devices ──▶ broker ─▶ $share/{share}/{plain} ────▶ NodeFrames ─▶ journal;  then the PUBACK to the broker

For gateways all promises hold: what is not acked end to end is sent again, to whichever node the broker chooses. Who a
gateway is says its topic, under the broker's ACL (wire contract, principle 4). Of plain topics the broker has sent its
PUBACK before a node has the message: it counts from when the broker hands it over.

Commands are sent by the node that owns the gateway's frames partition: one of all nodes, whichever the broker chose.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from cloud_ingest import config
from cloud_ingest.broker_client import BrokerClient, Received
from cloud_ingest.intake import Intake, Journal
from cloud_ingest.listener import STATE_BYTES, Connected
from cloud_ingest.node_frames import Item, NodeFrames
from cloud_ingest.presence_keeper import Keeper
from cloud_ingest.wall import now_ms
from waybill import wire
from waybill.errors import ConfigError, Unavailable
from waybill.mqtt.settings import Counters
from waybill.wire import Ack, Envelope, State

log = logging.getLogger(__name__)

MAX_ONLINE: Final = 100_000
"""Gateways whose state is known; of others the commands wait."""

FORGET: Final = 60.0
"""Seconds after its last frame at which a gateway no longer has a share of the credit."""

PLAIN_WINDOW: Final = 1_000
BATCH: Final = 1_000
"""Plain messages that are journaled at once."""

MAX_PLAIN: Final = 3 << 20
"""Bytes of topic, payload and properties of a plain message: what every journal takes in one frame."""

_decode_state = msgspec.json.Decoder(State).decode


@dataclass(slots=True)
class ExternalCounters:
    """Since the start. ``nameless``: frames on topics that name no gateway; ``too_large``: plain messages left out."""

    nameless: int = 0
    plain: int = 0
    too_large: int = 0


class External:
    """A node's place behind a broker."""

    def __init__(
        self,
        settings: config.Listener,
        journal: Journal,
        frames: NodeFrames,
        *,
        presence: Keeper,
        closed: Callable[[], str],
        owns: Callable[[str], bool],
        attached: Callable[[str], None],
        detached: Callable[[str], None],
    ) -> None:
        """``closed``: why nothing can be journaled at present, or empty.

        ``owns(gateway)``: whether its frames are routed here, and so its commands sent from here. Raises ConfigError
        (files of ``broker``).
        """
        broker = settings.broker
        if broker is None:
            raise ConfigError('[listener] mode = "external" needs [listener.broker]')
        self._frames = frames
        self._presence = presence
        self._owns = owns
        self._attached, self._detached = attached, detached
        self._serving: set[str] = set()
        self._heard: dict[str, float] = {}
        self._plain: list[Received] = []
        self.plain_waiting = 0
        """Messages of plain topics that are not journaled yet."""
        self._something = asyncio.Event()
        self.connected: dict[str, Connected] = {}
        self.counters = Counters()
        self.own = ExternalCounters()
        self.address = broker.url
        self.websocket_address = ""
        half = settings.memory // 2
        self.intake = Intake(
            journal,
            send=self._send_ack,
            hang_up=lambda _: None,  # what was not journaled has its ``retry``
            closed=closed,
            max_frame=settings.max_frame,
            memory=half,
            credit=settings.credit,
        )
        share = f"$share/{broker.share}/"
        name = broker.client_id
        self.client = BrokerClient(
            broker,
            name,
            [share + wire.up_topic("+"), wire.state_topic("+")],
            window=max(2, min(1_000, half // settings.max_frame)),
            memory=half,
            received=self._received,
        )
        self.bridge: BrokerClient | None = None
        if settings.plain:
            self.bridge = BrokerClient(
                broker,
                f"{name}-plain",
                [share + each for each in settings.plain],
                window=PLAIN_WINDOW,
                memory=half,
                received=self._received_plain,
            )

    @property
    def fault(self) -> str:
        """Why nothing comes from the broker, or empty."""
        return self.client.fault or (self.bridge.fault if self.bridge is not None else "")

    @property
    def plain_fault(self) -> str:
        """Why no plain topics come, or empty."""
        return self.bridge.fault if self.bridge is not None else ""

    async def start(self) -> None:
        """Connect, in the background; a broker that is away holds nobody up."""
        self.client.start()
        if self.bridge is not None:
            self.bridge.start()

    async def close(self, patience: float) -> None:
        """Answer what was taken, within ``patience`` seconds, then disconnect."""
        await self.intake.close(patience)
        self._frames.end()
        await self.client.close()
        if self.bridge is not None:
            await self.bridge.close()

    def send_envelope(self, gateway: str, envelope: Envelope) -> None:
        """Send ``envelope`` to ``gateway`` (QoS 1, U1)."""
        self.client.publish(wire.down_topic(gateway), wire.encode(envelope))

    def _send_ack(self, gateway: str, ack: Ack) -> None:
        self.client.publish(wire.ack_topic(gateway), wire.encode(ack))

    # --- gateways ---

    def _received(self, message: Received) -> None:
        _, _, gateway, kind = message.topic.split("/", 3)
        if not wire.GATEWAY_ID.fullmatch(gateway):
            self.own.nameless += 1
            message.ack()
        elif kind == "state":
            self._state(gateway, message.payload)
            message.ack()
        else:
            if gateway not in self._heard:
                self.intake.listening(gateway)
            self._heard[gateway] = time.monotonic()
            # Whatever the answer is, the gateway has it or sends again; the broker need not keep the frame.
            self.intake.take(gateway, message.payload).add_done_callback(lambda _: message.ack())

    def _state(self, gateway: str, payload: bytes) -> None:
        try:
            if len(payload) > STATE_BYTES:
                raise msgspec.ValidationError(f"{len(payload)} bytes, at most {STATE_BYTES}")
            state = _decode_state(payload) if payload else State("offline")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("its state is not readable: %s", error, extra={"gateway": gateway})
            return
        if state.state == "offline":
            if self.connected.pop(gateway, None) is not None:
                self._presence.went(state.reason, gateway=gateway)
        elif gateway in self.connected or len(self.connected) < MAX_ONLINE:
            self.connected[gateway] = Connected("the broker", now_ms(), state)
        self._serve()

    def _serve(self) -> None:
        """Take over the commands of gateways that are online and routed here, and let go of the others."""
        mine = {gateway for gateway in self.connected if self._owns(gateway)}
        for gateway in self._serving - mine:
            self._detached(gateway)
            self._presence.leave(gateway)
        for gateway in mine - self._serving:
            self._attached(gateway)
            self._presence.came(gateway=gateway, address="the broker", version=self._version_of(gateway))
        self._serving = mine

    def _version_of(self, gateway: str) -> str:
        state = self.connected[gateway].state
        return state.version if state is not None else ""

    def end(self, gateway: str, reason: str) -> None:
        """Let go of ``gateway``: another node says that it is there."""
        log.info("%s", reason, extra={"gateway": gateway})

    async def look_around(self) -> None:
        """See which partitions are routed here by now, and forget who is silent, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            self._serve()
            for client in (self.client, self.bridge):
                if client is not None:
                    client.ask_again()
            silent = time.monotonic() - FORGET
            for gateway in [gateway for gateway, at in self._heard.items() if at < silent]:
                del self._heard[gateway]
                self.intake.gone(gateway)

    # --- plain topics ---

    def _received_plain(self, message: Received) -> None:
        size = len(message.topic.encode()) + len(message.payload) + len(message.properties)
        if size > MAX_PLAIN:  # no journal takes it, ever: all others would wait behind it
            log.warning("a message of %d bytes on %r is left out; the journal takes %d", size, message.topic, MAX_PLAIN)
            self.own.too_large += 1
            message.ack()
            return
        self.plain_waiting += 1
        self._plain.append(message)
        self._something.set()

    async def journal_plain(self) -> None:
        """Journal plain messages, batch after batch, until cancelled or the node ends."""
        while True:
            await self._something.wait()
            self._something.clear()
            while self._plain:
                batch, self._plain = self._plain[:BATCH], self._plain[BATCH:]
                now = now_ms()
                try:
                    await self._frames.write(_item(message, now) for message in batch)
                except Unavailable:
                    return  # not acknowledged: the broker gives it to another node, or keeps it for this one
                for message in batch:
                    message.ack()
                self.own.plain += len(batch)
                self.plain_waiting -= len(batch)


def _item(message: Received, wall_ms: int) -> Item:
    """Return a message as it is journaled: its device is not known, so its order is that of its topic."""
    flags = message.qos | message.retain << 2 | message.dup << 3
    return Item(message.topic, message.topic, "", wall_ms, flags, message.payload, message.properties)

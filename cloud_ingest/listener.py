"""Where gateways connect: who they are, what they may do, and the wiring of the MQTT server to the intake.

A gateway is who its certificate says (wire contract, principle 4); its client id must be the same, so that a second
connection of a gateway takes over from the first and no gateway can end another's. It may publish to its own ``up`` and
``state`` topics and subscribe to its own ``ack`` and ``down``: any other publish closes the connection, any other
subscription is answered with 0x80, and both are counted. Sessions are clean (U1): what was under way is sent again.

A client id that ends with ``~check`` is a gateway that tries its way here (``waybill edge check``): it takes nothing
over, is told its credit, and may publish nothing.

Without certificates (plain TCP on loopback) a gateway is who its client id says.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cloud_ingest import config
from cloud_ingest.intake import ONE_FRAME, Intake, Journal
from cloud_ingest.presence_keeper import Keeper
from waybill import pki, wire
from waybill.config import address
from waybill.errors import Refused
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.proxy import networks
from waybill.mqtt.server import MqttServer
from waybill.mqtt.settings import Client, ConnectInfo, Counters, Hooks, Message, Settings
from waybill.wire import Ack, Envelope, State

log = logging.getLogger(__name__)

TOPIC_ROOM: Final = 1024
"""Bytes of an MQTT packet besides its frame."""

OUTPUT: Final = 1 << 20
"""Unsent bytes of one gateway; beyond it acks and commands are dropped, and sent again later."""

STATE_BYTES: Final = 4096
"""Of a gateway's state message at most; it is kept while the gateway is connected."""

_decode_state = msgspec.json.Decoder(State).decode


@dataclass(slots=True)
class Connected:
    """A gateway's connection. ``since_ms``: milliseconds since 1970 UTC; ``state``: the last one it said.

    ``farewell``: why it goes, as it said itself.
    """

    address: str
    since_ms: int
    state: State | None = None
    farewell: str = ""


class Listener:
    """The listener of one node."""

    def __init__(
        self,
        settings: config.Listener,
        journal: Journal,
        *,
        websocket: config.WebSocket | None = None,
        presence: Keeper,
        closed: Callable[[], str],
        attached: Callable[[str], None],
        detached: Callable[[str], None],
    ) -> None:
        """``websocket``: where else it listens. ``closed``: why nothing can be journaled at present, or empty.

        ``attached``, ``detached``: told when a gateway listens on its ``down`` topic, and when it no longer does.
        """
        self._settings = settings
        self._websocket = websocket
        self._presence = presence
        self._attached = attached
        self._detached = detached
        # Half of the memory is for frames on their way to the journal, half for what was read and not looked at yet.
        half = settings.memory // 2
        self.intake = Intake(
            journal,
            send=self._send_ack,
            hang_up=lambda gateway: self._drop(gateway, "a frame could not be journaled"),
            closed=closed,
            max_frame=settings.max_frame,
            memory=half,
            credit=settings.credit,
        )
        self.server = MqttServer(
            self.intake,
            Settings(
                # Over the limit a frame is still read, and answered: cut off, a gateway would send the same one again.
                max_packet=max(settings.max_frame, ONE_FRAME) + TOPIC_ROOM,
                max_connections=settings.connections,
                connect_timeout=settings.connect_timeout,
                output_bytes=OUTPUT,
                uncommitted_bytes=settings.max_frame,
                uncommitted_bytes_all=half,
                max_subscriptions=8,
                # Copies are told by seq in the router (D7): every arrival is journaled and answered.
                dup_window=0,
            ),
            Hooks(
                authorize_connect=self._authorize_connect,
                authorize_publish=self._authorize_publish,
                authorize_subscribe=self._authorize_subscribe,
                on_connected=self._on_connected,
                on_disconnected=self._on_disconnected,
                on_subscribed=self._on_subscribed,
                on_turned_away=self._on_turned_away,
            ),
        )
        self.connected: dict[str, Connected] = {}
        self.address = ""
        self.websocket_address = ""
        self._running = False

    async def start(self) -> None:
        """Listen. Raises ConfigError (certificates), Unavailable (the address is taken)."""
        settings, websocket = self._settings, self._websocket
        contexts = [self._context(settings)]
        if websocket is not None:
            contexts.append(self._context(websocket if websocket.certificate else settings))
        await self.server.start()
        self._running = True
        self.server.subscribe(wire.state_topic("+"), self._on_state)
        self.address = await self._listen(settings.address, contexts[0])
        if websocket is not None:
            self.websocket_address = await self._listen(websocket.address, contexts[1], websocket=True)
        if not settings.tls:
            log.warning(
                "plain TCP on %s: a client may call itself any gateway; this is for a first look on one machine, "
                "anywhere else use certificates",
                self.address,
            )

    def _context(self, files: config.Listener | config.WebSocket) -> ssl.SSLContext | None:
        if not self._settings.tls:
            return None
        return pki.server_context(Path(files.certificate), Path(files.key), Path(self._settings.ca))

    async def _listen(self, where: str, context: ssl.SSLContext | None, *, websocket: bool = False) -> str:
        host, port = address(where)
        proxies = networks(self._settings.proxies, "[listener] proxies")
        rate = self._settings.accept_rate
        bound, port = await self.server.listen(
            host, port, context, websocket=websocket, proxies=proxies, accept_rate=rate
        )
        return f"[{bound}]:{port}" if ":" in bound else f"{bound}:{port}"

    @property
    def counters(self) -> Counters:
        """The server's, live."""
        return self.server.counters

    @property
    def fault(self) -> str:
        """Why nobody can connect, or empty."""
        return ""

    async def close(self, patience: float) -> None:
        """Let go of the gateways one by one (``drain``), answer what was taken within ``patience`` seconds, then stop.

        What is not answered is sent again.
        """
        if self._running:
            await self.server.drain(self._settings.drain, answered=self.intake.answered)
        await self.intake.close(patience)
        if self._running:
            self._running = False
            await self.server.close()

    def end(self, gateway: str, reason: str) -> None:
        """End the connection of ``gateway``."""
        self._drop(gateway, reason)

    def send_envelope(self, gateway: str, envelope: Envelope) -> None:
        """Send ``envelope`` to ``gateway`` where it is connected here (QoS 0, U1)."""
        self.server.send(wire.down_topic(gateway), wire.encode(envelope))

    def _send_ack(self, gateway: str, ack: Ack) -> None:
        self.server.send(wire.ack_topic(gateway), wire.encode(ack))

    def _drop(self, gateway: str, reason: str) -> None:
        self.server.disconnect(gateway, reason)

    # --- who, and what they may do ---

    def _authorize_connect(self, info: ConnectInfo) -> ConnackCode | None:
        if self._settings.tls:
            try:
                gateway = pki.gateway_of(info.peer_certificate or b"")
            except Refused as error:
                return _refuse(info, ConnackCode.NOT_AUTHORIZED, str(error))
            if info.client_id.removesuffix(wire.TRIAL) != gateway:
                return _refuse(
                    info,
                    ConnackCode.BAD_CLIENT_ID,
                    f"the certificate is of {gateway!r}, the client id is {info.client_id!r}; they must be the same",
                )
        if not wire.GATEWAY_ID.fullmatch(info.client_id.removesuffix(wire.TRIAL)):
            return _refuse(info, ConnackCode.BAD_CLIENT_ID, f"client id {info.client_id!r} cannot name a gateway")
        if not info.clean:
            return _refuse(info, ConnackCode.NOT_AUTHORIZED, "a gateway connects with a clean session")
        return None

    def _authorize_publish(self, client: Client, topic: str) -> bool:
        own = {wire.up_topic(client.client_id), wire.state_topic(client.client_id)}
        allowed = topic in own and not client.client_id.endswith(wire.TRIAL)
        if not allowed:
            log.warning("%s may not publish to %r", client.address, topic, extra={"gateway": client.client_id})
        return allowed

    def _authorize_subscribe(self, client: Client, pattern: str) -> bool:
        allowed = pattern in {wire.ack_topic(client.client_id), wire.down_topic(client.client_id)}
        if not allowed:
            log.warning("%s may not subscribe to %r", client.address, pattern, extra={"gateway": client.client_id})
        return allowed

    # --- what happens to them ---

    def _on_connected(self, client: Client) -> None:
        if client.client_id.endswith(wire.TRIAL):
            gateway = client.client_id.removesuffix(wire.TRIAL)
            log.info("tries its way here, from %s", client.address, extra={"gateway": gateway})
            return
        log.info("connected from %s", client.address, extra={"gateway": client.client_id})
        self.connected[client.client_id] = Connected(client.address, time.time_ns() // 1_000_000)
        self._presence.came(gateway=client.client_id, address=client.address)

    def _on_turned_away(self, address: str, reason: str) -> None:
        if reason.startswith("refused"):
            return  # _refuse has said why
        log.warning("a connection from %s is closed: %s", address, reason)

    def _on_disconnected(self, client: Client, reason: str) -> None:
        if client.client_id.endswith(wire.TRIAL):
            self.intake.gone(client.client_id)
            return
        log.info("gone: %s", reason or "it said so", extra={"gateway": client.client_id})
        known = self.connected.pop(client.client_id, None)
        self._presence.went(reason or (known.farewell if known else ""), gateway=client.client_id)
        self.intake.gone(client.client_id)
        self._detached(client.client_id)

    def _on_subscribed(self, client: Client, pattern: str, _: int) -> None:
        if pattern == wire.ack_topic(client.client_id):
            self.intake.listening(client.client_id)
        elif not client.client_id.endswith(wire.TRIAL):
            self._attached(client.client_id)

    def _on_state(self, message: Message) -> None:
        gateway = self.connected.get(message.client_id)
        if gateway is not None:
            try:
                if len(message.payload) > STATE_BYTES:
                    raise msgspec.ValidationError(f"{len(message.payload)} bytes, at most {STATE_BYTES}")
                state = _decode_state(message.payload)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                log.warning("its state is not readable: %s", error, extra={"gateway": message.client_id})
                return
            # The will of a connection that this one has replaced comes after the new one was accepted.
            if state.state == "online":
                gateway.state = state
                self._presence.told(message.client_id, state.version)
            else:
                gateway.farewell = state.reason


def _refuse(info: ConnectInfo, code: ConnackCode, reason: str) -> ConnackCode:
    log.warning("a connection from %s is refused: %s", info.address, reason)
    return code

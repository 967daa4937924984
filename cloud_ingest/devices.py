"""Devices without a gateway: plain clients of MQTT 3.1.1 and 5, whose messages this node journals in frames of its own.

::

    PUBLISH ─▶ commit ─▶ NodeFrames.write ─▶ journal;  then the PUBACK
    command ─▶ cmd/{device}/{id}/req, QoS 1 ─▶ PUBACK of the device ─▶ control message ``delivered``
    PUBLISH on cmd/{device}/{id}/res ─▶ control message ``done``, as any other message before its PUBACK

It is no general broker. Sessions and QoS 2 state end with the connection, nothing is retained, and the only
subscriptions are to a device's own commands (``cmd/{device}/…``); so from device to node it is at least once.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Final

from cloud_ingest.command_record import COMMAND_ID, DIRECT
from cloud_ingest.device_config import MAX_LEVELS
from cloud_ingest.device_config import Devices as DeviceSettings
from cloud_ingest.node_frames import Item, NodeFrames, item, status_item
from cloud_ingest.presence_keeper import Keeper
from cloud_ingest.wall import now_ms
from waybill import pki
from waybill.acl import Acl, AclRule
from waybill.auth import Auth, Door
from waybill.config import address
from waybill.errors import Unavailable
from waybill.mqtt.proxy import networks
from waybill.mqtt.server import MqttServer
from waybill.mqtt.settings import Client, Hooks, Settings
from waybill.mqtt.state import Arrival, Batch, Publish, SavedState
from waybill.wire import CommandStatus, Envelope

log = logging.getLogger(__name__)

NAME: Final = "devices"
REMEMBERED: Final = 10_000
"""Ids of commands that a device has acknowledged here and that are not sent again, the newest."""

_REQUEST: Final = 3
_LEVELS: Final = 4


class Devices:
    """The devices of one node; a store behind its MQTT server (:class:`waybill.mqtt.state.Sink`)."""

    def __init__(
        self,
        settings: DeviceSettings,
        rules: tuple[AclRule, ...],
        frames: NodeFrames,
        *,
        presence: Keeper,
        attached: Callable[[str], None],
        detached: Callable[[str], None],
    ) -> None:
        """``attached``, ``detached``: told when a recipient of commands listens here, and when it no longer does.

        Raises ConfigError (the password file).
        """
        self._settings = settings
        self._frames = frames
        self._presence = presence
        self._attached = attached
        self._detached = detached
        door = Door(settings.passwords, settings.certificates, bound=settings.client_ids == "user")
        self.auth = Auth({NAME: door}, Acl(rules))
        self.server = MqttServer(
            self,
            Settings(
                max_packet=settings.max_packet,
                max_connections=settings.connections,
                max_connections_per_address=settings.connections_per_address,
                connect_timeout=settings.connect_timeout,
                publish_rate=settings.publish_rate,
                ephemeral=True,
                max_session_expiry=0,
                uncommitted_bytes=min(settings.memory, 4 << 20),
                uncommitted_bytes_all=settings.memory,
                queue_bytes=1 << 20,
                max_subscriptions=16,
                max_levels=MAX_LEVELS,
                retained_messages=0,
                retained_bytes=0,
                dup_window=0,
            ),
            Hooks(
                authorize_connect=self.auth.authorize_connect,
                authorize_publish=self._authorize_publish,
                authorize_subscribe=self._authorize_subscribe,
                on_connected=self._on_connected,
                on_disconnected=self._on_disconnected,
                on_subscribed=self._on_subscribed,
                on_acknowledged=self._on_acknowledged,
                on_turned_away=self._on_turned_away,
            ),
        )
        self.address = ""
        self.connected = 0
        self.commands = 0
        self._listening: dict[str, set[str]] = {}  # clients by the device whose commands they asked for
        self._asked: dict[str, set[str]] = {}  # those devices by client
        self._sent: dict[str, set[str]] = {}  # commands on their way, by the device, which is connected here
        self._known: dict[str, None] = {}
        self._reports: list[Item] = []
        self._reported = asyncio.Event()
        self._running = False

    async def start(self) -> None:
        """Listen. Raises ConfigError (certificates), Unavailable (the address is taken)."""
        settings = self._settings
        context = None
        if settings.certificate is not None and settings.key is not None:
            context = pki.server_context(settings.certificate, settings.key, settings.client_ca)
            if settings.certificates == "optional":
                context.verify_mode = ssl.CERT_OPTIONAL
        await self.server.start()
        self._running = True
        host, port = address(settings.address)
        proxies = networks(settings.proxies, "[devices] proxies")
        bound, port = await self.server.listen(host, port, context, name=NAME, proxies=proxies)
        self.address = f"[{bound}]:{port}" if ":" in bound else f"{bound}:{port}"

    async def close(self, drain: float) -> None:
        """Let go of the devices one by one, within ``drain`` seconds.

        What was read is journaled and acknowledged, within the server's ``close_timeout``.
        """
        if self._running:
            self._running = False
            await self.server.drain(drain)
            await self.server.close()
        self._frames.end()
        self.auth.close()

    # --- messages ---

    async def restore(self) -> SavedState:
        """Nothing outlives a restart: sessions end with their connections."""
        return SavedState()

    async def commit(self, batch: Batch) -> None:
        """Journal the messages of ``batch``. Raises Unavailable when the node ends before that was possible."""
        items = [self._item(arrival, publish) for arrival in batch.arrivals for publish in arrival.publishes]
        if items:
            await self._frames.write(items)

    def _item(self, arrival: Arrival, publish: Publish) -> Item:
        levels = publish[0].split(b"/") if publish[0].startswith(b"cmd/") else []
        if len(levels) == _LEVELS and levels[3] == b"res":
            device, command = levels[1].decode(), levels[2].decode()
            if COMMAND_ID.fullmatch(command):
                if command in self._sent.get(device, ()):
                    self._known_now(command)
                result = bytes(publish[1])
                return status_item(CommandStatus(command, "", device, "done", arrival.wall_ms, result=result))
        return item(arrival.client_id, arrival.wall_ms, publish)

    # --- commands ---

    def send(self, envelope: Envelope) -> None:
        """Send a command to its device where that listens here, unless it is on its way to it or was taken."""
        if envelope.id in self._sent.get(envelope.device, ()) or envelope.id in self._known:
            return
        if self.server.send(f"cmd/{envelope.device}/{envelope.id}/req", envelope.payload, 1):
            self._sent.setdefault(envelope.device, set()).add(envelope.id)
            self.commands += 1

    async def report(self) -> None:
        """Journal what devices have acknowledged, until cancelled."""
        while True:
            await self._reported.wait()
            self._reported.clear()
            reports, self._reports = self._reports, []
            try:
                await self._frames.write(reports)
            except Unavailable:
                return  # the node ends; who takes the device over sends the command again

    def _on_acknowledged(self, _: Client, topic: bytes) -> None:
        device, command = topic.decode().split("/")[1:3]
        sent = self._sent.get(device, set())
        if command in sent:
            sent.discard(command)
            self._known_now(command)
            self._reports.append(status_item(CommandStatus(command, "", device, "delivered", now_ms())))
            self._reported.set()

    def _known_now(self, command: str) -> None:
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[command] = None

    def _on_subscribed(self, client: Client, pattern: str, qos: int) -> None:
        device = _device_of(pattern)
        if not qos:  # nothing comes back for what it is sent
            log.warning(
                "device %r subscribes to %r with QoS 0: commands that it does not answer count as expired; use QoS 1",
                client.client_id,
                pattern,
            )
        self._listening.setdefault(device, set()).add(client.client_id)
        self._asked.setdefault(client.client_id, set()).add(device)
        self._attached(f"{DIRECT}{device}")

    # --- who, and what they may do ---

    def _authorize_publish(self, client: Client, topic: str) -> bool:
        allowed = not topic.startswith("$") and not (topic.startswith("cmd/") and not topic.endswith("/res"))
        if not allowed:
            log.warning("device %r may not publish to %r: that is the cloud's", client.client_id, topic)
        return allowed and self.auth.authorize_publish(client, topic)

    def _authorize_subscribe(self, client: Client, pattern: str) -> bool:
        allowed = bool(_device_of(pattern))
        if not allowed:
            log.warning("device %r may not subscribe to %r: only to cmd/DEVICE/+/req", client.client_id, pattern)
        return allowed and self.auth.authorize_subscribe(client, pattern)

    def _on_connected(self, client: Client) -> None:
        self.connected += 1
        self._presence.came(device=client.client_id, address=client.address)
        self.auth.on_connected(client)

    def _on_disconnected(self, client: Client, reason: str) -> None:
        self.connected -= 1
        self._presence.went(reason, device=client.client_id)
        self.auth.on_disconnected(client)
        for device in self._asked.pop(client.client_id, ()):
            self._listening[device].discard(client.client_id)
            if not self._listening[device]:
                del self._listening[device]
                self._detached(f"{DIRECT}{device}")
                self._sent.pop(device, None)
        if reason and not reason.startswith(("connection lost", "the server shuts down")):
            log.warning("device %r is cut off: %s", client.client_id, reason)

    def _on_turned_away(self, where: str, reason: str) -> None:
        if not reason.startswith("refused"):  # else it was said already
            log.warning("a connection from %s is closed: %s", where, reason)


def _device_of(pattern: str) -> str:
    """Return whose commands a subscription asks for: ``cmd/{device}/+/req``, ``cmd/{device}/#``; empty for others."""
    levels = pattern.split("/")
    if levels[0] != "cmd" or len(levels) < _REQUEST or levels[1] in {"", "+", "#"}:
        return ""
    return levels[1] if levels[2:] == ["#"] or levels[3:] in (["req"], ["+"], ["#"]) else ""

"""One connection of amqtt's broker: what it publishes is acknowledged after the commit."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from amqtt.errors import AMQTTError, ProtocolHandlerError
from amqtt.mqtt.constants import QOS_1, QOS_2
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.pubcomp import PubcompPacket
from amqtt.mqtt.pubrec import PubrecPacket
from amqtt.session import IncomingApplicationMessage, OutgoingApplicationMessage

from waybill.errors import Unavailable

if TYPE_CHECKING:
    from amqtt.mqtt.publish import PublishPacket
    from amqtt.mqtt.pubrel import PubrelPacket
    from amqtt.session import ApplicationMessage, Session

    from edge_agent.amqtt_engine.broker import Broker
    from edge_agent.amqtt_engine.engine import AmqttEngine
    from edge_agent.amqtt_engine.packets import Packets

log = logging.getLogger(__name__)


class Handler(BrokerProtocolHandler):  # type: ignore[misc] # amqtt ships no types
    """One connection."""

    engine: AmqttEngine
    broker: Broker
    session: Session | None
    reader: Packets

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - amqtt's own
        super().__init__(*arguments, **options)
        self._turn = asyncio.Lock()
        self._delivery = asyncio.Lock()
        self._unacked = 0
        self._unacked_bytes = 0
        self._broken = False
        self._over = False

    async def mqtt_connack_authorize(self, authorize: bool) -> None:  # noqa: FBT001 - amqtt's own
        """Accept the connection, and say so."""
        await super().mqtt_connack_authorize(authorize)
        self.engine.counters.connects += 1
        if self.engine.hooks.on_connected is not None:
            self.engine.hooks.on_connected(self.reader.client)

    async def handle_publish(self, publish_packet: PublishPacket) -> None:
        """Permit, commit, deliver, acknowledge. What is not committed ends the connection."""
        packets = self.reader
        try:
            await self._publish(publish_packet, packets)
        except Unavailable as error:
            self._break(str(error))
        except Exception:
            log.exception("a message of %r is not acknowledged", packets.client.client_id)
            self._break("an error of the server or of a plug-in")
        finally:
            packets.give_back(publish_packet.fixed_header.remaining_length)

    def _break(self, why: str) -> None:
        """End the connection; what is not in a commit yet goes into none, and comes again."""
        self._broken = True
        self.reader.end(why)

    async def _publish(self, packet: PublishPacket, packets: Packets) -> None:
        session, client, broker, counters = self.session, packets.client, self.broker, self.engine.counters
        topic, payload, pid, qos = packet.topic_name, packet.data, packet.packet_id, packet.qos
        held = broker.held_of(session)
        async with self._turn:  # commits are asked for in the order of arrival, however long a plug-in thinks
            if self._broken:
                return
            copy = qos == QOS_2 and pid in held
            if copy:
                committed = held[pid]
                counters.duplicates += 1
            elif await broker.permitted(session, client, topic):
                if qos and not await self.engine.room_for(client, topic):
                    self._break(f"no room for {topic}")
                    return
                self.engine.count("received", qos)
                committed = self.engine.commit(client, topic, payload, packet.fixed_header.flags, pid)
            else:
                counters.denied += 1
                self._break(f"not authorized to publish on {topic!r}")
                return
            if qos == QOS_2:
                held[pid] = committed
                if len(held) > self.engine.settings.dup_window:
                    self._break("too many messages of QoS 2 that it does not release")
        try:
            await asyncio.shield(committed)
        except Unavailable:
            held.pop(pid, None)
            raise
        if not copy:
            message = IncomingApplicationMessage(pid, topic, qos, payload, packet.retain_flag)
            message.publish_packet = packet
            async with self._delivery:
                await broker.deliver(session, self, message)
        if qos:
            counters.acked += 1
            await self._send_packet(PubackPacket.build(pid) if qos == QOS_1 else PubrecPacket.build(pid))

    async def handle_pubrel(self, pubrel: PubrelPacket) -> None:
        """Let the packet id be used for another message."""
        self.broker.held_of(self.session).pop(pubrel.packet_id, None)
        await self._send_packet(PubcompPacket.build(pubrel.packet_id))

    async def handle_disconnect(self, disconnect: Any) -> None:  # noqa: ANN401 - amqtt's own
        """End when all that was published before is acknowledged."""
        if disconnect is not None:
            await self.reader.answered()
        self._over = True
        await super().handle_disconnect(disconnect)

    async def wait_disconnect(self) -> Any:  # noqa: ANN401 - amqtt's own
        """Return when the connection ends, or has ended already while amqtt was still starting this handler."""
        return None if self._over else await super().wait_disconnect()

    def handle_read_timeout(self) -> None:
        """Nothing was heard for 1.5 times the keepalive (3.1.2.10)."""
        if not self.reader.paused:
            self.engine.counters.timed_out += 1
            self.reader.end("keepalive")

    async def mqtt_publish(
        self,
        topic: str,
        data: bytes,
        qos: int,
        retain: bool,  # noqa: FBT001 - amqtt's own
        ack_timeout: int | None = None,
    ) -> OutgoingApplicationMessage:
        """Send a message to this client.

        Without an ack (amqtt waits 5 s for it) it goes to those that wait for the client's next connection.
        """
        settings, counters, size = self.engine.settings, self.engine.counters, len(topic) + len(data)
        message = OutgoingApplicationMessage(None, topic, qos, data, retain)
        if self._unacked >= settings.queue_messages or self._unacked_bytes + size > settings.queue_bytes:
            counters.dropped += 1
            return message
        session = self.session
        if self._over or self.reader.why:  # nobody would answer
            await self._later(session, message)
            return message
        self._unacked += 1
        self._unacked_bytes += size
        try:
            sent = await super().mqtt_publish(topic, data, qos, retain, ack_timeout)
        except (AMQTTError, ProtocolHandlerError, OSError, TimeoutError):  # not acknowledged
            await self._later(session, message)
            return message
        except asyncio.CancelledError:
            await self._later(session, message)
            raise
        finally:
            self._unacked -= 1
            self._unacked_bytes -= size
        self.engine.count("sent", qos)
        return sent

    async def _later(self, session: Session | None, message: ApplicationMessage) -> None:
        if message.qos and session is not None and not session.clean_session:
            await session.retained_messages.put(message)
        else:
            self.engine.counters.dropped += 1

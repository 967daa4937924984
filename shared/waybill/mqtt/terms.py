"""What one connection takes, as its CONNECT said, and a PUBLISH encoded for it (OASIS MQTT 5.0, 3.1.2.11). No I/O."""

from __future__ import annotations

from typing import Final

from waybill.mqtt import codec, properties
from waybill.mqtt.codec import MQTT_3_1_1, MQTT_5, Connect
from waybill.mqtt.reasons import Malformed, Reason

SECOND: Final = 1_000_000_000


class Terms:
    """The limits that a client named. ``max_packet``: bytes of a whole packet, 0 for any.

    ``aliases``: topics that it has been told a number for (3.3.2.3.4); the first ones to come, as many as it takes.
    """

    __slots__ = ("_aliases", "_most_aliases", "max_packet", "receive_maximum", "version")

    def __init__(self, packet: Connect | None = None, most_aliases: int = 0) -> None:
        """Take the terms of a CONNECT; without one those of MQTT 3.1.1."""
        self.version = MQTT_3_1_1 if packet is None else packet.version
        self.receive_maximum = 65_535 if packet is None else packet.receive_maximum
        self.max_packet = 0 if packet is None else packet.max_packet
        self._most_aliases = 0 if packet is None else min(packet.alias_maximum, most_aliases)
        self._aliases: dict[bytes, int] = {}

    def publish(
        self, topic: bytes, payload: bytes, flags: int, packet_id: bytes, block: bytes, remaining: int | None
    ) -> bytes | None:
        """Encode a PUBLISH; None where it is larger than this client takes: then it is as if it had been sent.

        ``remaining``: seconds until the message expires, None for never. Not to be called for what is not sent: the
        client is told the topic's alias with it.
        """
        if self.version < MQTT_5:
            return codec.publish(topic, payload, flags, packet_id)
        if remaining is not None:
            block += properties.number(properties.MESSAGE_EXPIRY, remaining)
        if not self._most_aliases:
            return self._fit(codec.publish(topic, payload, flags, packet_id, block))
        alias = self._aliases.get(topic)
        if alias is not None:
            return self._fit(codec.publish(b"", payload, flags, packet_id, block + _alias(alias)))
        if len(self._aliases) < self._most_aliases and len(topic) > len(_alias(1)):
            alias = len(self._aliases) + 1
            packet = self._fit(codec.publish(topic, payload, flags, packet_id, block + _alias(alias)))
            if packet is not None:
                self._aliases[topic] = alias
                return packet
        return self._fit(codec.publish(topic, payload, flags, packet_id, block))

    def _fit(self, packet: bytes) -> bytes | None:
        return packet if self.takes(packet) else None

    def takes(self, packet: bytes) -> bool:
        """Say whether a packet is within the client's Maximum Packet Size (5.0, 3.1.2.11.4)."""
        return not self.max_packet or len(packet) <= self.max_packet

    def check(self, packet: bytes) -> bytes:
        """Return an answer that the client takes. Raises Malformed: it asked for one that it does not."""
        if not self.takes(packet):
            raise Malformed("the answer is larger than the client takes", Reason.PACKET_TOO_LARGE)
        return packet


def _alias(alias: int) -> bytes:
    return properties.number(properties.TOPIC_ALIAS, alias)


PLAIN: Final = Terms()
"""MQTT 3.1.1."""


def remaining(expires_ns: int, now_ns: int) -> int | None:
    """Return the message expiry interval to be sent (3.3.2.3.3): the time left; None where ``expires_ns`` is 0."""
    return max(0, -((now_ns - expires_ns) // SECOND)) if expires_ns else None

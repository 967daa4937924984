"""What the server keeps of one client: subscriptions, messages on their way to it, QoS 2 ids from it. No I/O.

Outgoing messages (OASIS MQTT 3.1.1, 4.3 and 4.4): numbered ``n`` upwards; the packet id follows from ``n`` and so
needs no commit of its own. A message waits (``waiting``) until the window has room, is then in flight (``flight``, by
packet id, in order) until PUBACK or PUBCOMP. On a reconnect what is in flight goes first, in order, with DUP or as
PUBREL.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from waybill.mqtt import codec
from waybill.mqtt.codec import DUP, QOS_BITS, RETAIN

if TYPE_CHECKING:
    from waybill.mqtt.connection import Connection
    from waybill.mqtt.state import SavedSession

IDS: Final = 65535
QOS_1: Final = 1
QOS_2: Final = 2


def packet_id(n: int) -> bytes:
    """Return the packet id of message ``n``."""
    return ((n - 1) % IDS + 1).to_bytes(2, "big")


class Outgoing:
    """A message of QoS 1 or 2 on its way to a client. ``flags``: of the PUBLISH; ``received``: PUBREC has come."""

    __slots__ = ("flags", "n", "payload", "properties", "received", "size", "topic")

    def __init__(self, n: int, flags: int, topic: bytes, payload: bytes, properties: bytes = b"") -> None:
        self.n = n
        self.flags = flags
        self.topic = topic
        self.payload = payload
        self.properties = properties
        self.received = False
        self.size = codec.publish_size(topic, payload) + len(properties)

    @property
    def qos(self) -> int:
        """1 or 2."""
        return (self.flags & QOS_BITS) >> 1

    @property
    def retain(self) -> bool:
        """Whether it goes out as a retained message."""
        return bool(self.flags & RETAIN)


class Session:
    """The state of one client id. ``persistent``: it outlives the connection and is in the store (clean session 0)."""

    __slots__ = (
        "client_id",
        "connection",
        "flight",
        "held",
        "next_n",
        "persistent",
        "queued",
        "queued_bytes",
        "subscriptions",
        "version",
        "waiting",
    )

    def __init__(self, client_id: str, version: int, *, persistent: bool) -> None:
        self.client_id = client_id
        self.version = version
        self.persistent = persistent
        self.connection: Connection | None = None
        self.subscriptions: dict[str, int] = {}
        self.held: set[bytes] = set()
        self.flight: dict[bytes, Outgoing] = {}
        self.waiting: deque[Outgoing] = deque()
        self.next_n = 1
        self.queued = 0  # uncommitted, waiting and in flight
        self.queued_bytes = 0

    @classmethod
    def restored(cls, client_id: str, saved: SavedSession, window: int) -> Session:
        """Rebuild a persistent session. What may have been sent before carries DUP (3.3.1.1)."""
        session = cls(client_id, saved.version, persistent=True)
        session.subscriptions.update(saved.subscriptions)
        session.held.update(pid.to_bytes(2, "big") for pid in saved.inbound)
        for index, message in enumerate(saved.queue):
            flags = message.qos << 1 | message.retain | (DUP if index < window else 0)
            out = Outgoing(message.n, flags, message.topic, message.payload, message.properties)
            if message.received:
                out.received = True
                session.flight[packet_id(out.n)] = out
            else:
                session.waiting.append(out)
            session.queued += 1
            session.queued_bytes += out.size
            session.next_n = out.n + 1
        return session

    def enqueue(self, flags: int, topic: bytes, payload: bytes, limit: tuple[int, int]) -> Outgoing | None:
        """Number a new message; None where ``limit`` (messages.

        Bytes) is reached. It is sent once it is in ``waiting``.
        """
        out = Outgoing(self.next_n, flags, topic, payload)
        if self.queued >= limit[0] or self.queued_bytes + out.size > limit[1]:
            return None
        self.next_n += 1
        self.queued += 1
        self.queued_bytes += out.size
        return out

    def cancel(self, out: Outgoing) -> None:
        """Take back a message that never got into ``waiting``."""
        self.queued -= 1
        self.queued_bytes -= out.size

    def send(self, buffer: list[bytes], window: int, room: int) -> tuple[int, int]:
        """Move what the window and ``room`` (bytes) allow from waiting to flight; returns how many of QoS 1 and 2."""
        sent_1 = sent_2 = 0
        waiting, flight = self.waiting, self.flight
        while waiting and len(flight) < window and room > 0:
            out = waiting[0]
            pid = packet_id(out.n)
            if pid in flight:
                break  # the ids went round and met a message that is still open
            waiting.popleft()
            flight[pid] = out
            buffer.append(codec.publish(out.topic, out.payload, out.flags, pid))
            room -= out.size
            if out.flags & QOS_BITS == QOS_1 << 1:
                sent_1 += 1
            else:
                sent_2 += 1
        return sent_1, sent_2

    def resend(self, buffer: list[bytes]) -> None:
        """Send again what was in flight when the last connection ended, in order (4.4)."""
        for pid, out in self.flight.items():
            if out.received:
                buffer.append(codec.acks(codec.PUBREL, (pid,)))
            else:
                out.flags |= DUP
                buffer.append(codec.publish(out.topic, out.payload, out.flags, pid))

    def acknowledged(self, pid: bytes) -> Outgoing | None:
        """PUBACK. Returns what is done with it; None for an id that was not waiting for it."""
        out = self.flight.get(pid)
        return self._done(pid, out) if out is not None and out.qos == QOS_1 else None

    def received(self, pid: bytes) -> Outgoing | None:
        """PUBREC. Returns the message if this is news."""
        out = self.flight.get(pid)
        if out is None or out.qos != QOS_2 or out.received:
            return None
        out.received = True
        return out

    def completed(self, pid: bytes) -> Outgoing | None:
        """PUBCOMP. Returns what is done with it; None for an id that was not waiting for it."""
        out = self.flight.get(pid)
        return self._done(pid, out) if out is not None and out.received else None

    def _done(self, pid: bytes, out: Outgoing) -> Outgoing:
        del self.flight[pid]
        self.queued -= 1
        self.queued_bytes -= out.size
        return out

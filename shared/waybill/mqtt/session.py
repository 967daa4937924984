"""What the server keeps of one client: subscriptions, messages on their way to it, QoS 2 ids from it. No I/O.

Outgoing messages (OASIS MQTT 3.1.1, 4.3 and 4.4): numbered ``n`` upwards; the packet id follows from ``n`` and so
needs no commit of its own. A message waits (``waiting``) until the window has room, is then in flight (``flight``, by
packet id, in order) until PUBACK or PUBCOMP. On a reconnect what is in flight goes first, in order, with DUP or as
PUBREL. A message of MQTT 5 that expires while it waits is dropped (5.0, 3.3.2.3.3).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from waybill.mqtt import budget, codec
from waybill.mqtt.budget import Budget
from waybill.mqtt.codec import DUP, MQTT_5, QOS_BITS, RETAIN
from waybill.mqtt.terms import Terms, remaining

if TYPE_CHECKING:
    from collections.abc import Callable

    from waybill.mqtt.connection import Connection
    from waybill.mqtt.groups import Group
    from waybill.mqtt.properties import Content
    from waybill.mqtt.state import SavedSession, Subscription

IDS: Final = 65535
ENDLESS: Final = 1 << 62
WINDOW_2: Final = 20
"""In flight to a client of MQTT 3.1.1 when one more of QoS 2 may be sent. It cannot say how many it takes, and some
(mosquitto, as a bridge) keep 20 and drop the rest."""

QOS_1: Final = 1
QOS_2: Final = 2


def packet_id(n: int) -> bytes:
    """Return the packet id of message ``n``."""
    return ((n - 1) % IDS + 1).to_bytes(2, "big")


class Outgoing:
    """A message of QoS 1 or 2 on its way to a client. ``flags``: of the PUBLISH; ``received``: PUBREC has come.

    ``block``: its properties, with the subscription identifiers and without the expiry, which is ``expires_ns`` (on
    the broker's clock, 0: never). ``chosen``: where a shared subscription chose this session, that
    and what the message says of itself.
    """

    __slots__ = ("block", "chosen", "expires_ns", "flags", "n", "payload", "received", "size", "topic")

    def __init__(
        self,
        n: int,
        flags: int,
        topic: bytes,
        payload: bytes,
        block: bytes = b"",
        expires_ns: int = 0,
        chosen: tuple[Group, Content] | None = None,
    ) -> None:
        self.n = n
        self.flags = flags
        self.topic = topic
        self.payload = payload
        self.block = block
        self.expires_ns = expires_ns
        self.chosen = chosen
        self.received = False
        self.size = 9 + len(topic) + len(payload) + (len(block) + 12 if block else 0)  # at most: with expiry and alias

    @property
    def qos(self) -> int:
        """1 or 2."""
        return (self.flags & QOS_BITS) >> 1

    @property
    def retain(self) -> bool:
        """Whether it goes out as a retained message."""
        return bool(self.flags & RETAIN)


class Session:
    """The state of one client id. ``persistent``: it is in the store, because it outlives its connection.

    ``expiry``: how long after that, seconds; 0: it ends with the connection, NEVER: it does not expire.
    ``room``: what the queues of all sessions share, in bytes with what a message costs. ``subscribed``: what the
    subscriptions cost.
    """

    __slots__ = (
        "client_id",
        "connection",
        "ended",
        "expiry",
        "flight",
        "held",
        "next_n",
        "persistent",
        "queued",
        "queued_bytes",
        "room",
        "subscribed",
        "subscriptions",
        "version",
        "waiting",
    )

    def __init__(self, client_id: str, version: int, expiry: int, room: Budget | None = None) -> None:
        self.client_id = client_id
        self.version = version
        self.expiry = expiry
        self.persistent = expiry > 0
        self.connection: Connection | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.held: set[bytes] = set()
        self.flight: dict[bytes, Outgoing] = {}
        self.waiting: deque[Outgoing] = deque()
        self.next_n = 1
        self.queued = 0  # uncommitted, waiting and in flight
        self.queued_bytes = 0
        self.room = room or Budget(ENDLESS)
        self.subscribed = 0
        self.ended = False

    @classmethod
    def restored(
        cls, client_id: str, saved: SavedSession, window: int, now: tuple[int, int], room: Budget | None = None
    ) -> Session:
        """Rebuild a persistent session. What may have been sent before carries DUP (3.3.1.1).

        ``now``: wall time in ms and the broker's clock in ns.
        """
        session = cls(client_id, saved.version, saved.expiry, room)
        session.persistent = True
        session.held.update(pid.to_bytes(2, "big") for pid in saved.inbound)
        for index, message in enumerate(saved.queue):
            flags = message.qos << 1 | message.retain | (DUP if index < window else 0)
            expires_ns = on_clock(message.expires_ms, now)
            out = Outgoing(message.n, flags, message.topic, message.payload, message.properties, expires_ns)
            if message.received:
                out.received = True
                session.flight[packet_id(out.n)] = out
            else:
                session.waiting.append(out)
            session._add(out)
            session.next_n = out.n + 1
        return session

    def enqueue(
        self,
        flags: int,
        topic: bytes,
        payload: bytes,
        limit: tuple[int, int],
        block: bytes = b"",
        expires_ns: int = 0,
        chosen: tuple[Group, Content] | None = None,
    ) -> Outgoing | None:
        """Number a new message; None where ``limit`` (messages, bytes) or what all share is reached.

        It is sent once it is in ``waiting``.
        """
        out = Outgoing(self.next_n, flags, topic, payload, block, expires_ns, chosen)
        size = self.queued_bytes + out.size
        if self.queued >= limit[0] or size > limit[1] or not self.room.fits(out.size + budget.QUEUED, self.cost):
            return None
        self.next_n += 1
        self._add(out)
        return out

    def _add(self, out: Outgoing) -> None:
        self.queued += 1
        self.queued_bytes += out.size
        self.room.used += out.size + budget.QUEUED

    def cancel(self, out: Outgoing) -> None:
        """Take back a message that is not in ``waiting``."""
        self.queued -= 1
        self.queued_bytes -= out.size
        self.room.used -= out.size + budget.QUEUED

    @property
    def cost(self) -> int:
        """What the queue costs of ``room``."""
        return self.queued_bytes + budget.QUEUED * self.queued

    def end(self) -> None:
        """Give back what is shared; what may still be in the making is on its own account."""
        self.ended = True
        self.room.used -= self.cost
        self.room = Budget(ENDLESS)
        self.room.used = self.cost

    def send(
        self, buffer: list[bytes], window: int, room: int, terms: Terms, now_ns: int
    ) -> tuple[int, int, list[Outgoing]]:
        """Move what the window and ``room`` (bytes) allow from waiting to flight.

        Returns how many of QoS 1 and 2, and what was dropped: it had expired, or is larger than the client takes.
        """
        sent_1 = sent_2 = 0
        dropped: list[Outgoing] = []
        waiting, flight = self.waiting, self.flight
        plain = terms.version < MQTT_5
        while waiting and len(flight) < window and room > 0:
            out = waiting[0]
            pid = ((out.n - 1) % IDS + 1).to_bytes(2, "big")  # packet_id()
            if pid in flight:
                break  # the ids went round and met a message that is still open
            if plain and len(flight) >= WINDOW_2 and out.flags & QOS_BITS == QOS_2 << 1:
                break
            waiting.popleft()
            packet = None
            if plain and not out.expires_ns:
                packet = codec.publish(out.topic, out.payload, out.flags, pid)
            # what was sent before may be wanted still: the client could have it in hand
            elif not out.expires_ns or out.expires_ns > now_ns or out.flags & DUP:
                left = remaining(out.expires_ns, now_ns)
                packet = terms.publish(out.topic, out.payload, out.flags, pid, out.block, left)
            if packet is None:
                self.cancel(out)
                dropped.append(out)
                continue
            flight[pid] = out
            buffer.append(packet)
            room -= out.size
            if out.flags & QOS_BITS == QOS_1 << 1:
                sent_1 += 1
            else:
                sent_2 += 1
        return sent_1, sent_2, dropped

    def resend(self, buffer: list[bytes], window: int, terms: Terms, now_ns: int) -> list[Outgoing]:
        """Send again what was in flight when the last connection ended, in order (4.4), as far as the window goes.

        The rest waits, in front of all else. Returns what is now larger than the client takes, and dropped.
        """
        before, self.flight = self.flight, {}
        later: list[Outgoing] = []
        dropped: list[Outgoing] = []
        for pid, out in before.items():
            if out.received:
                buffer.append(codec.acks(codec.PUBREL, (pid,)))
                self.flight[pid] = out
                continue
            out.flags |= DUP
            if later or len(self.flight) >= window:
                later.append(out)
                continue
            left = remaining(out.expires_ns, now_ns)
            packet = terms.publish(out.topic, out.payload, out.flags, pid, out.block, left)
            if packet is None:
                self.cancel(out)
                dropped.append(out)
            else:
                buffer.append(packet)
                self.flight[pid] = out
        self.waiting.extendleft(reversed(later))
        return dropped

    def expire(self, now_ns: int) -> list[Outgoing]:
        """Drop what has expired while it waited; return it."""
        expired = [out for out in self.waiting if out.expires_ns and out.expires_ns <= now_ns and not out.flags & DUP]
        if expired:
            gone = set(map(id, expired))
            self.waiting = deque(out for out in self.waiting if id(out) not in gone)
            for out in expired:
                self.cancel(out)
        return expired

    def withdraw(self, goes: Callable[[Outgoing], bool]) -> list[Outgoing]:
        """Drop what waits and what is in flight, but for QoS 2 that the client has said it has; return it."""
        flight = [pid for pid, out in self.flight.items() if not out.received and goes(out)]
        dropped = [self._done(pid, self.flight[pid]) for pid in flight]
        waiting = [out for out in self.waiting if goes(out)]
        if waiting:
            gone = set(map(id, waiting))
            self.waiting = deque(out for out in self.waiting if id(out) not in gone)
            for out in waiting:
                self.cancel(out)
        return dropped + waiting

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

    def refused(self, pid: bytes) -> Outgoing | None:
        """PUBREC that says no (5.0, 4.3.3). Returns what is done with it."""
        out = self.flight.get(pid)
        return self._done(pid, out) if out is not None and out.qos == QOS_2 and not out.received else None

    def completed(self, pid: bytes) -> Outgoing | None:
        """PUBCOMP. Returns what is done with it; None for an id that was not waiting for it."""
        out = self.flight.get(pid)
        return self._done(pid, out) if out is not None and out.received else None

    def _done(self, pid: bytes, out: Outgoing) -> Outgoing:
        del self.flight[pid]
        self.cancel(out)
        return out


def on_clock(wall_ms: int, now: tuple[int, int]) -> int:
    """Return a wall time (ms, 0: never) as one of the broker's clock (ns); ``now``: both of them."""
    return max(1, now[1] + (wall_ms - now[0]) * 1_000_000) if wall_ms else 0

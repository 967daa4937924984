"""Who gets what: routes, retained messages, and the batch that all of it waits in. No I/O."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from waybill.mqtt import codec, topics
from waybill.mqtt.codec import QOS_BITS, RETAIN, Malformed
from waybill.mqtt.pending import QUIET, Pending, Route
from waybill.mqtt.retained import RetainedMessage, RetainedMessages
from waybill.mqtt.session import Session
from waybill.mqtt.settings import Counters, Message
from waybill.mqtt.state import Queued, RetainCleared, Retained

if TYPE_CHECKING:
    from collections.abc import Callable

    from waybill.mqtt.connection import Connection
    from waybill.mqtt.settings import OnMessage, Settings
    from waybill.mqtt.state import SavedState

logger = logging.getLogger(__name__)

ROUTES: Final = 65_536
"""Topics whose routes are remembered."""


class Listener:
    """A subscription of the program itself."""

    __slots__ = ("callback",)

    def __init__(self, callback: OnMessage) -> None:
        self.callback = callback


class Exchange:
    """Routes of topics to sessions and to subscriptions of the program; retained messages; the batch in the making.

    ``wake`` is called when the batch gets its first content.
    """

    def __init__(self, settings: Settings, saved: SavedState, wake: Callable[[], None]) -> None:
        self.settings = settings
        self.counters = Counters()
        self.pending = Pending()
        self.routes: dict[bytes, Route] = {}
        self.retained = RetainedMessages(settings.retained_messages, settings.retained_bytes, saved.retained)
        self._wake = wake
        self._tree: topics.Tree[Session | Listener] = topics.Tree()

    def resolve(self, topic: bytes) -> Route:
        """Check a topic name and find who gets it. Raises Malformed."""
        if not topics.valid_topic(topic, self.settings.max_levels):
            raise Malformed(f"not a topic name: {topic[:64]!r}")
        found = self._tree.match(topic)
        route = QUIET
        if found:
            route = Route(
                tuple((each, qos) for each, qos in found.items() if isinstance(each, Session)),
                tuple(each.callback for each in found if isinstance(each, Listener)),
            )
        if len(self.routes) >= ROUTES:
            self.routes.clear()
        self.routes[topic] = route
        return route

    def touch(self) -> Pending:
        """Return the batch in the making; there is something for it."""
        pending = self.pending
        if not pending.woken:
            pending.woken = True
            self._wake()
        return pending

    def _route(self, hit: tuple[Route, bytes, bytes, int], client_id: str) -> None:
        """Put copies for persistent sessions into the batch, and the rest on the list for after the commit."""
        route, topic, payload, flags = hit
        pending = self.pending
        if flags & RETAIN:
            self._retain(topic, payload, flags)
        later = bool(route.callbacks)
        for session, granted in route.targets:
            qos = min(granted, flags >> 1 & 3)
            if qos and session.persistent:
                self._queue(session, qos << 1, topic, payload)
            else:
                later = True
        if later:
            pending.deliveries.append((route, topic, payload, flags, client_id))

    def _queue(self, session: Session, flags: int, topic: bytes, payload: bytes) -> None:
        """Queue a message for a persistent session: durable in this batch, sent after it."""
        limit = (self.settings.queue_messages, self.settings.queue_bytes)
        out = session.enqueue(flags, topic, payload, limit)
        if out is None:
            self.counters.dropped += 1
            return
        pending = self.pending
        pending.batch.changes.append(Queued(session.client_id, out.n, out.qos, out.retain, topic, payload))
        pending.queued.append((session, out))

    def _retain(self, topic: bytes, payload: bytes, flags: int) -> None:
        pending, kept = self.pending, self.retained
        message = RetainedMessage(flags >> 1 & 3, payload) if payload else None
        if message is not None and not kept.fits(topic, payload):
            self.counters.unretained += 1
            message = None  # what was there is no longer the last one either
        if message is None and kept.get(topic) is None:
            return
        old = kept.put(topic, message)
        pending.batch.changes.append(
            RetainCleared(topic) if message is None else Retained(topic, message.qos, message.payload)
        )
        pending.undo.append(lambda: kept.get(topic) is message and kept.put(topic, old))

    def publish(
        self, topic: str, payload: bytes, qos: int, *, retain: bool, after: Callable[[Exception | None], None]
    ) -> int:
        """Publish for the program itself; ``after`` is called when it is durable. Returns how many sessions match.

        QoS 0 that is not retained goes out at once. Raises Malformed for a topic name that is none.
        """
        name = topic.encode()
        route = self.routes.get(name) or self.resolve(name)
        flags = qos << 1 | retain
        if not flags:
            dirty: set[Connection] = set()
            self._deliver(route, name, payload, 0, "", dirty)
            for connection in dirty:
                connection.pump()
            after(None)
        else:
            self.touch().after.append(after)
            self._route((route, name, payload, flags), "")
        return len(route.targets)

    def listen(self, pattern: str, callback: OnMessage) -> Callable[[], None]:
        """Subscribe the program itself; ``callback`` hears each message after its commit. Returns how to end it."""
        if not topics.valid_filter(pattern, self.settings.max_levels):
            raise Malformed(f"not a topic filter: {pattern[:64]!r}")
        listener = Listener(callback)
        self._tree.add(pattern, listener, 2)
        self.routes.clear()

        def end() -> None:
            self._tree.remove(pattern, listener)
            self.routes.clear()

        return end

    def _deliver(
        self, route: Route, topic: bytes, payload: bytes, flags: int, client_id: str, dirty: set[Connection]
    ) -> None:
        """Send a message to online subscribers, but for what waits in the queues of persistent sessions."""
        for session, granted in route.targets:
            qos = min(granted, flags >> 1 & 3)
            connection = session.connection
            if connection is not None and not (qos and session.persistent):
                self._send(session, qos << 1, topic, payload, self.settings.output_bytes)
                dirty.add(connection)
        for callback in route.callbacks:
            try:
                callback(Message(client_id, topic.decode(), payload, flags >> 1 & 3, bool(flags & RETAIN)))
            except Exception:
                logger.exception("a subscriber of the program failed on %r", topic)

    def _send(self, session: Session, flags: int, topic: bytes, payload: bytes, room: int) -> None:
        """Send to a session that is online, without durable state; QoS 0 only while less than ``room`` bytes wait."""
        connection = session.connection
        if connection is None:
            return
        if not flags & QOS_BITS:
            if connection.offer(codec.publish(topic, payload, flags), room):
                self.counters.sent_0 += 1
            else:
                self.counters.dropped += 1
            return
        out = session.enqueue(flags, topic, payload, (self.settings.queue_messages, self.settings.queue_bytes))
        if out is None:
            self.counters.dropped += 1
        else:
            session.waiting.append(out)

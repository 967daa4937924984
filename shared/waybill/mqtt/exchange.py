"""Who gets what: routes, retained messages, and the batch that all of it waits in. No I/O."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeAlias

from waybill.mqtt import budget, groups, topics
from waybill.mqtt.budget import Budget
from waybill.mqtt.codec import DUP, NO_LOCAL, RETAIN
from waybill.mqtt.groups import Grant, Group
from waybill.mqtt.notices import Notices
from waybill.mqtt.pending import QUIET, Pending, Route
from waybill.mqtt.properties import EMPTY
from waybill.mqtt.reasons import Malformed, ProtocolError, Reason
from waybill.mqtt.retained import RetainedMessage, RetainedMessages
from waybill.mqtt.session import Session, on_clock
from waybill.mqtt.settings import Counters, Message
from waybill.mqtt.state import Dequeued, Queued, RetainCleared, Retained
from waybill.mqtt.terms import SECOND, remaining

if TYPE_CHECKING:
    from collections.abc import Callable

    from waybill.mqtt.connection import Connection
    from waybill.mqtt.pending import Delivery, Target
    from waybill.mqtt.properties import Content
    from waybill.mqtt.session import Outgoing
    from waybill.mqtt.settings import OnMessage, Settings
    from waybill.mqtt.state import SavedState, Subscription

Hit: TypeAlias = "tuple[Route, bytes, bytes, int, Content]"
"""A message that somebody gets or that is retained: route, topic, payload, flags, properties."""

logger = logging.getLogger(__name__)


class Listener:
    """A subscription of the program itself."""

    __slots__ = ("callback",)

    def __init__(self, callback: OnMessage) -> None:
        self.callback = callback


class Exchange:
    """Routes of topics to sessions and to subscriptions of the program; retained messages; the batch in the making.

    ``wake`` is called when the batch gets its first content.
    """

    def __init__(self, settings: Settings, saved: SavedState, wake: Callable[[], None], now: tuple[int, int]) -> None:
        self.settings = settings
        self.counters = Counters()
        self.pending = Pending()
        self.wall_ms, self.mono_ns = now
        self.notices = Notices()
        self.routes: dict[bytes, Route] = {}
        self.route_bytes = 0
        self.queues = Budget(settings.queue_bytes_all)
        self.filters = Budget(settings.subscription_bytes)
        kept = {
            topic: RetainedMessage(each.qos, each.payload, each.properties, on_clock(each.expires_ms, now))
            for topic, each in saved.retained.items()
        }
        self.retained = RetainedMessages(settings.retained_messages, settings.retained_bytes, kept)
        self._wake = wake
        self._tree: topics.Tree[Session | Group | Listener, Subscription] = topics.Tree()
        self._groups: dict[str, Group] = {}

    def _fault(self, topic: bytes) -> str:
        """Say what is wrong with a topic name that is none, with the limit that it passes."""
        most, levels = self.settings.max_topic, self.settings.max_levels
        if len(topic) > most:
            return f"a topic of {len(topic)} bytes, at most {most} are taken: {topic[:16]!r}…"
        if topic.count(b"/") >= levels:
            return f"a topic of more than {levels} levels: {topic[:64]!r}"
        return f"not a topic name: {topic[:64]!r}"

    def resolve(self, topic: bytes) -> Route:
        """Check a topic name and find who gets it. Raises Malformed."""
        if not topics.valid_topic(topic, self.settings.max_levels, self.settings.max_topic):
            raise Malformed(self._fault(topic), Reason.TOPIC_NAME_INVALID)
        found = self._tree.match(topic)
        route = QUIET
        if found:
            route = Route(
                tuple((each, Grant(values), None) for each, values in found.items() if isinstance(each, Session)),
                tuple(each for each in found if isinstance(each, Group)),
                tuple(each.callback for each in found if isinstance(each, Listener)),
            )
        cost = budget.ROUTE + len(topic) + budget.TARGET * len(found)
        if self.route_bytes + cost > self.settings.route_bytes:
            self.forget_routes()
        self.route_bytes += cost
        self.routes[topic] = route
        return route

    def forget_routes(self) -> None:
        """Find the routes of all topics anew."""
        self.routes.clear()
        self.route_bytes = 0

    def _subscribe(self, session: Session, pattern: str, subscription: Subscription) -> None:
        """Make or replace a subscription of a session."""
        if pattern not in session.subscriptions:
            cost = budget.subscription(pattern)
            session.subscribed += cost
            self.filters.used += cost
        session.subscriptions[pattern] = subscription
        self.forget_routes()
        share, rest = groups.split(pattern)
        if not share:
            self._tree.add(pattern, session, subscription)
            return
        group = self._groups.get(pattern)
        if group is None:
            group = self._groups[pattern] = Group(pattern)
            self._tree.add(rest, group, (0, 0))
        group.members[session] = Grant([subscription])

    def _unsubscribe(self, session: Session, pattern: str) -> None:
        """End a subscription of a session."""
        del session.subscriptions[pattern]
        cost = budget.subscription(pattern)
        session.subscribed -= cost
        self.filters.used -= cost
        self.forget_routes()
        share, rest = groups.split(pattern)
        if not share:
            self._tree.remove(pattern, session)
            return
        group = self._groups[pattern]
        group.members.pop(session, None)
        if not group.members:
            del self._groups[pattern]
            self._tree.remove(rest, group)

    def check_filter(self, pattern: str, options: int = 0) -> None:
        """Check what somebody wants to subscribe to. Raises Malformed."""
        settings = self.settings
        if (
            not groups.valid_share(pattern)
            or not topics.valid_filter(groups.split(pattern)[1], settings.max_levels, settings.max_topic)
            or len(pattern.encode()) > settings.max_topic
        ):
            raise Malformed(f"not a topic filter: {pattern[:64]!r}", Reason.TOPIC_FILTER_INVALID)
        if options & NO_LOCAL and pattern.startswith(groups.SHARE):
            raise ProtocolError("No Local in a shared subscription")

    def touch(self) -> Pending:
        """Return the batch in the making; there is something for it."""
        pending = self.pending
        if not pending.woken:
            pending.woken = True
            self._wake()
        return pending

    def _expires(self, content: Content) -> int:
        """Return when a message that came just now expires, on the broker's clock; 0 for never."""
        return 0 if content.expiry is None else self.mono_ns + content.expiry * SECOND

    def _on_wall(self, expires_ns: int) -> int:
        """Return a time of the broker's clock as wall time, ms; 0 stays 0."""
        return max(1, self.wall_ms + (expires_ns - self.mono_ns) // 1_000_000) if expires_ns else 0

    def _route(self, hit: Hit, client_id: str) -> None:
        """Put copies for persistent sessions into the batch, and the rest on the list for after the commit."""
        route, topic, payload, flags, content = hit
        expires_ns = self._expires(content) if content.expiry is not None else 0
        if flags & RETAIN:
            self._retain(topic, payload, flags, content, expires_ns)
        targets = route.targets if route.plain else self._targets(route, flags, client_id)
        self._give((targets, route.callbacks, topic, payload, flags, content, expires_ns, client_id))

    def _give(self, message: Delivery) -> None:
        """Queue or put off a message for its targets."""
        targets, callbacks, _, _, flags, _, _, _ = message
        later = bool(callbacks)
        published = flags >> 1 & 3
        for target in targets:
            session, grant, _ = target
            if published and grant.qos and session.persistent:
                self._queue(target, min(grant.qos, published) << 1 | (flags & RETAIN if grant.retain else 0), message)
            else:
                later = True
        if later:
            self.pending.deliveries.append(message)

    def _targets(self, route: Route, flags: int, client_id: str) -> tuple[Target, ...]:
        """Leave out who does not want to hear himself, and let shared subscriptions choose."""
        targets: list[Target] = []
        for session, grant, group in route.targets:
            mine = grant.own if session.client_id == client_id else grant
            if mine is not None:
                targets.append((session, mine, group))
        for group in route.groups:
            chosen = group.choose(flags >> 1 & 3)
            if chosen is not None:
                targets.append((*chosen, group))
        return tuple(targets)

    def _queue(self, target: Target, flags: int, message: Delivery) -> None:
        """Queue a message for a persistent session: durable in this batch, sent after it."""
        session = target[0]
        out = self._enqueue(target, flags, message)
        if out is None:
            return
        pending = self.pending
        until_ms = self._on_wall(out.expires_ns)
        pending.batch.changes.append(
            Queued(session.client_id, out.n, out.qos, out.retain, out.topic, out.payload, out.block, until_ms)
        )
        pending.queued.append((session, out))

    def _enqueue(self, target: Target, flags: int, message: Delivery) -> Outgoing | None:
        """Number a message in its session; None where that is full: then it is dropped and counted."""
        session, grant, group = target
        _, _, topic, payload, _, content, expires_ns, _ = message
        limit = (self.settings.queue_messages, self.settings.queue_bytes)
        chosen = (group, content) if group is not None else None
        args = (flags, topic, payload, limit, content.onward + grant.block, expires_ns, chosen)
        out = session.enqueue(*args)
        if out is None and self._expire(session):
            out = session.enqueue(*args)
        if out is None:
            self.counters.dropped += 1
            text = "the queue of %r is full with %d messages of %d bytes; what comes for it is dropped"
            self.notices.warn(self.mono_ns, text, session.client_id, session.queued, session.queued_bytes)
        return out

    def _expire(self, session: Session) -> bool:
        """Drop what expired in a session's queue; says whether anything had."""
        expired = session.expire(self.mono_ns)
        self.dropped(session, expired)
        return bool(expired)

    def dropped(self, session: Session, outs: list[Outgoing]) -> None:
        """Messages left a session's queue unsent: they had expired, or were too large for the client."""
        self.counters.expired += len(outs)
        if outs and session.persistent:
            self.touch().batch.changes += [Dequeued(session.client_id, out.n) for out in outs]

    def _hand_on(self, session: Session) -> None:
        """A session ends: what shared subscriptions had chosen it for goes to another member (5.0, 4.8.2).

        But for QoS 2 that may have been sent.
        """
        outs = [out for out in session.flight.values() if out.qos == 1]
        outs += [out for out in session.waiting if out.qos == 1 or not out.flags & DUP]
        outs += self.pending.withdraw(session, lambda _: True)
        for out in outs:
            self._pass_on(session, out)

    def _pass_on(self, session: Session, out: Outgoing) -> None:
        """A message of a session that has ended goes to another member of the shared subscription that chose it."""
        if out.chosen is not None:
            group, content = out.chosen
            group.members.pop(session, None)
            flags = out.flags & ~DUP
            self._to_another(group, ((), (), out.topic, out.payload, flags, content, out.expires_ns, ""))

    def _to_another(self, group: Group, message: Delivery) -> None:
        """Give a message to a member of a shared subscription; ``message`` has no targets yet."""
        chosen = group.choose(message[4] >> 1 & 3)
        if chosen is not None:
            self.touch()
            self._give((((*chosen, group),), *message[1:]))

    def _retain(self, topic: bytes, payload: bytes, flags: int, content: Content, expires_ns: int) -> None:
        pending, kept = self.pending, self.retained
        message = RetainedMessage(flags >> 1 & 3, payload, content.onward, expires_ns) if payload else None
        if message is not None and not kept.fits(topic, message):
            self.counters.unretained += 1
            message = None  # what was there is no longer the last one either
        if message is None and kept.get(topic) is None:
            return
        old = kept.put(topic, message)
        if message is None:
            pending.batch.changes.append(RetainCleared(topic))
        else:
            until_ms = self._on_wall(expires_ns)
            pending.batch.changes.append(Retained(topic, message.qos, message.payload, message.properties, until_ms))
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
        hit = (route, name, payload, flags, EMPTY)
        if not flags:
            dirty: set[Connection] = set()
            targets = route.targets if route.plain else self._targets(route, flags, "")
            self._deliver((targets, route.callbacks, *hit[1:], 0, ""), dirty)
            for connection in dirty:
                connection.pump()
            after(None)
        else:
            self.touch().after.append(after)
            self._route(hit, "")
        return len(route.targets) + len(route.groups)

    def listen(self, pattern: str, callback: OnMessage) -> Callable[[], None]:
        """Subscribe the program itself; ``callback`` hears each message after its commit. Returns how to end it."""
        if not topics.valid_filter(pattern, self.settings.max_levels):
            raise Malformed(f"not a topic filter: {pattern[:64]!r}")
        listener = Listener(callback)
        self._tree.add(pattern, listener, (2, 0))
        self.forget_routes()

        def end() -> None:
            self._tree.remove(pattern, listener)
            self.forget_routes()

        return end

    def _deliver(self, message: Delivery, dirty: set[Connection]) -> None:
        """Send a message to online subscribers, but for what waits in the queues of persistent sessions."""
        targets, callbacks, topic, payload, flags, content, _, client_id = message
        published, room = flags >> 1 & 3, self.settings.output_bytes
        for target in targets:
            session, grant, group = target
            connection = session.connection
            if connection is None:
                if session.ended and group is not None and published:  # while the commit was under way
                    self._to_another(group, ((), (), *message[2:]))
                continue
            kept = flags & RETAIN if grant.retain else 0
            if not (published and grant.qos):
                self._offer(connection, grant, kept, message, room)
            elif session.persistent:
                continue
            else:
                self._send(target, min(grant.qos, published) << 1 | kept, message)
            dirty.add(connection)
        for callback in callbacks:
            try:
                callback(Message(client_id, topic.decode(), payload, published, bool(flags & RETAIN), content.kept))
            except Exception:
                logger.exception("a subscriber of the program failed on %r", topic)

    def _offer(self, connection: Connection, grant: Grant, flags: int, message: Delivery, room: int) -> None:
        """Send a message of QoS 0, while less than ``room`` bytes wait."""
        _, _, topic, payload, _, content, expires_ns, _ = message
        left = None
        if expires_ns:
            if expires_ns <= self.mono_ns:
                self.counters.expired += 1
                return
            left = remaining(expires_ns, self.mono_ns)
        if connection.offer(topic, payload, flags, content.onward + grant.block, left, room):
            self.counters.sent_0 += 1
        else:
            self.counters.dropped += 1

    def _send(self, target: Target, flags: int, message: Delivery) -> None:
        """Send a message of QoS 1 or 2 to a session that is online, without durable state."""
        out = self._enqueue(target, flags, message)
        if out is not None:
            target[0].waiting.append(out)

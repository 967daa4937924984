"""The life of sessions: CONNECT, the end of a connection, wills, and what expires. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, ParamSpec

from waybill.mqtt import budget, codec, groups, properties, topics
from waybill.mqtt.budget import Budget
from waybill.mqtt.codec import MQTT_5, NEVER, ConnackCode, Connect
from waybill.mqtt.exchange import Exchange
from waybill.mqtt.memories import Memories
from waybill.mqtt.reasons import Malformed, Reason
from waybill.mqtt.session import Session
from waybill.mqtt.settings import Client, ConnectInfo
from waybill.mqtt.state import (
    Arrival,
    Dequeued,
    RetainCleared,
    SavedState,
    SessionDeleted,
    SessionLeft,
    SessionOpened,
    Unsubscribed,
)
from waybill.mqtt.terms import PLAIN, SECOND, Terms

if TYPE_CHECKING:
    from collections.abc import Callable

    from waybill.mqtt.codec import Will
    from waybill.mqtt.connection import Connection
    from waybill.mqtt.limits import Limits
    from waybill.mqtt.pending import Pending
    from waybill.mqtt.session import Outgoing
    from waybill.mqtt.settings import Answer, Hooks, Settings

P = ParamSpec("P")

logger = logging.getLogger(__name__)

CLIENT_ID_BYTES: Final = 1024
USER_BYTES: Final = 1024
"""Of a client id and of a user name; a longer one is refused."""


class Sessions(Exchange):
    """All sessions of a server; its connections begin and end here. ``new_id``, ``now``: see the broker."""

    def __init__(
        self,
        settings: Settings,
        hooks: Hooks,
        saved: SavedState,
        *,
        new_id: Callable[[], str],
        wake: Callable[[], None],
        now: tuple[int, int],
    ) -> None:
        super().__init__(settings, saved, wake, now)
        self.hooks = hooks
        self.new_id = new_id
        self.committing: Pending | None = None
        self.uncommitted = 0
        self.full = False  # more than uncommitted_bytes_all
        self.paused: set[Connection] = set()
        self.buffers = Budget(settings.buffer_bytes_all)
        self.sessions: dict[str, Session] = {}
        self.memories = Memories(
            settings.dup_window,
            settings.memory_clients,
            settings.memory_entries,
            saved.memories,
            settings.memory_entries_all,
        )
        self._persistent = 0
        self._expiring: dict[str, int] = {}
        self._delayed: dict[str, tuple[int, Client, Will]] = {}
        self.wills = Budget(settings.will_bytes)
        self.held = Budget(settings.max_held_all)
        for client_id, each in saved.sessions.items():
            session = self.sessions[client_id] = Session.restored(client_id, each, settings.inflight, now, self.queues)
            self._persistent += 1
            self.held.used += len(session.held)
            for pattern, subscription in each.subscriptions.items():
                self._subscribe(session, pattern, subscription)
            if each.expiry != NEVER:
                left = min(each.expires_ms - now[0], each.expiry * 1000)
                if not each.expires_ms:  # it had a connection when the last run ended: counted from now, and only once
                    left = each.expiry * 1000
                    self.touch().batch.changes.append(SessionLeft(client_id, each.expiry, now[0] + left))
                self._expiring[client_id] = now[1] + max(0, left) * 1_000_000

    def _tell(self, hook: Callable[P, None] | None, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a hook that only hears; its failure is its own."""
        if hook is not None:
            try:
                hook(*args, **kwargs)
            except Exception:
                logger.exception("a hook failed")

    def connect(self, connection: Connection, packet: Connect) -> None:
        """Handle a CONNECT (3.1): refuse it, or ask who it is. Raises Malformed."""
        self.counters.connects += 1
        client_id, will = packet.client_id, packet.will
        code: ConnackCode | Reason | None = None
        if packet.method:
            code = Reason.BAD_AUTHENTICATION_METHOD
        elif (not client_id and not packet.clean and packet.version < MQTT_5) or (
            len(client_id.encode()) > CLIENT_ID_BYTES
        ):
            code = ConnackCode.BAD_CLIENT_ID
        elif packet.user is not None and len(packet.user.encode()) > USER_BYTES:
            code = ConnackCode.BAD_CREDENTIALS
        client_id = client_id or self.new_id()
        if will is not None and not topics.valid_topic(will.topic, self.settings.max_levels, self.settings.max_topic):
            raise Malformed("the will's topic is no topic name", Reason.TOPIC_NAME_INVALID)
        if code is not None:
            self._refuse(connection, packet, code)
            return
        certificate, address = connection.peer()
        user, password, version, clean = packet.user, packet.password, packet.version, packet.clean
        info = ConnectInfo(client_id, user, password, certificate, address, version, clean, connection.listener)
        answer: Answer | Awaitable[Answer] = None
        if self.hooks.authorize_connect is not None:
            try:
                answer = self.hooks.authorize_connect(info)
            except Exception:
                logger.exception("authorize_connect failed; the client is refused")
                answer = ConnackCode.UNAVAILABLE
        if isinstance(answer, Awaitable):
            connection.wait(packet, info, answer)
        else:
            self.admit(connection, packet, info, answer)

    def admit(self, connection: Connection, packet: Connect, info: ConnectInfo, answer: Answer) -> None:
        """Go on with a CONNECT: refuse it, or bind the connection to its session. ``answer``: authorize_connect's."""
        client_id, will = info.client_id, packet.will
        code: ConnackCode | Reason = answer if isinstance(answer, ConnackCode) else ConnackCode.ACCEPTED
        user = (answer or None) if isinstance(answer, str) else packet.user
        client = Client(client_id, user, packet.version, info.address, info.listener)
        allow = self.hooks.authorize_publish
        if not code and will is not None and allow and not self.allowed(allow, client, will.topic.decode()):
            code = ConnackCode.NOT_AUTHORIZED
        terms = PLAIN if packet.version < MQTT_5 else Terms(packet, self.settings.topic_aliases)
        expiry = min(packet.expiry, self.settings.max_session_expiry) if packet.version == MQTT_5 else packet.expiry
        expiry = 0 if self.settings.ephemeral else expiry
        keepalive, said = self._answer(packet, client_id, expiry, connection.limits)
        if not code:
            known = self.sessions.get(client_id)
            new = expiry > 0 and (known is None or not known.persistent)
            full = will is not None and not self.wills.fits(_cost(will))
            if full or (new and self._persistent >= self.settings.max_sessions):
                self.counters.over_quota += 1
                text = "%r is refused: there is no room for its %s"
                self.notices.warn(self.mono_ns, text, client_id, "will" if full else "session")
                code = Reason.QUOTA_EXCEEDED if packet.version == MQTT_5 else ConnackCode.UNAVAILABLE
            elif not terms.takes(codec.connack(packet.version, ConnackCode.ACCEPTED, present=False, said=said)):
                code = Reason.PACKET_TOO_LARGE
        if code:
            self._refuse(connection, packet, code)
            return
        connection.client, connection.terms, connection.will = client, terms, will
        self.wills.used += _cost(will) if will is not None else 0
        connection.keepalive_ns = keepalive * SECOND
        connection.seen_ns = self.mono_ns
        self._bind(connection, packet.clean, expiry, said)

    def _refuse(self, connection: Connection, packet: Connect, code: ConnackCode | Reason) -> None:
        self.counters.refused += 1
        answer = codec.connack(packet.version, code, present=False)
        if packet.max_packet and len(answer) > packet.max_packet:
            answer = b""  # then it is closed without a word (5.0, 3.1.2.11.4)
        connection.refuse(answer, f"refused: {code.name}")

    def allowed(self, hook: Callable[[Client, str], bool], client: Client, what: str) -> bool:
        """Ask a hook; one that raises says no."""
        try:
            return hook(client, what)
        except Exception:
            logger.exception("a hook failed; %r is refused to %r", what, client.client_id)
            return False

    def _bind(self, connection: Connection, clean: bool, expiry: int, said: bytes) -> None:  # noqa: FBT001 - a field
        """Give a connection its session, and answer. ``said``: the properties of CONNACK."""
        client = connection.client
        if client is None:
            return
        client_id, version = client.client_id, client.version
        session, present = self._session(client, clean, expiry)
        connection.resumed = present
        session.connection = connection
        connection.session = session
        connection.memory = memory = self.memories.enter(client_id)
        memory.window = self.settings.dup_window
        if version == MQTT_5:
            memory.window = min(memory.window, self.settings.receive_maximum)
            if not present:  # 5.0, 4.4: nothing of an earlier session is sent again, so a DUP is no copy of it
                memory.clear()
        if memory.freeze():
            self._freeze(client_id)
        if self.full:
            connection.hold()
        answer = codec.connack(version, ConnackCode.ACCEPTED, present=present, said=said)
        if any(client_id in each.sessions for each in (self.pending, self.committing) if each is not None):
            # a state that is not durable yet must not be promised, nor PUBREL be sent from it
            connection.owe().out.append(answer)
            self.pending.after.append(lambda error: self._welcome(connection) if error is None else None)
        else:
            connection.push(answer)
            self._welcome(connection)

    def _session(self, client: Client, clean: bool, expiry: int) -> tuple[Session, bool]:  # noqa: FBT001 - a field
        """Return the session for a new connection of a client, and whether it was there before (3.2.2.2)."""
        client_id, version = client.client_id, client.version
        self._due(client_id)
        session = self.sessions.get(client_id)
        if session is not None and session.connection is not None:
            self.counters.taken_over += 1
            session.connection.close("taken over", Reason.SESSION_TAKEN_OVER)
            session = self.sessions.get(client_id)
        if clean and session is not None:
            self._end(session)
            session = None
        present = session is not None
        changed = False
        if session is None:
            session = self.sessions[client_id] = Session(client_id, version, expiry, self.queues)
            self._persistent += session.persistent
            changed = session.persistent
        else:  # what its deadline was is no longer so; nor will the will come (5.0, 3.1.3.2.2)
            left = self._expiring.pop(client_id, None)
            changed = left is not None or (session.version, session.expiry) != (version, expiry)
            waiting = self._delayed.pop(client_id, None)
            self.wills.used -= _cost(waiting[2]) if waiting is not None else 0
            session.version, session.expiry = version, expiry
            changed = self._recheck(session, client) or changed
        if changed:
            self.touch().batch.changes.append(SessionOpened(client_id, version, expiry))
            self.pending.sessions.add(client_id)
        return session, present

    def _recheck(self, session: Session, client: Client) -> bool:
        """Take from a session that goes on what its client may no longer have; says whether there was any.

        Subscriptions that are not allowed now, and waiting messages of topics that it could not subscribe to.
        """
        allow = self.hooks.authorize_subscribe
        if allow is None:
            return False
        rest = {pattern: groups.split(pattern)[1] for pattern in session.subscriptions}
        lost = [pattern for pattern, name in rest.items() if not self.allowed(allow, client, name)]
        theirs = [topics.matcher(rest[pattern]).fullmatch for pattern in lost]
        kept = [topics.matcher(name).fullmatch for pattern, name in rest.items() if pattern not in lost]
        heard: dict[bytes, bool] = {}  # a topic, and whether its messages may be had

        def goes(out: Outgoing) -> bool:
            topic = out.topic
            if topic not in heard:
                heard[topic] = any(each(topic) for each in kept) or (
                    not any(each(topic) for each in theirs) and self.allowed(allow, client, topic.decode())
                )
            return not heard[topic]

        outs = session.withdraw(goes) + self.pending.withdraw(session, goes)
        if self.committing is not None:
            outs += self.committing.withdraw(session, goes)
        if not lost and not outs:
            return False
        changes = self.touch().batch.changes
        for pattern in lost:
            self._unsubscribe(session, pattern)
            if session.persistent:
                changes.append(Unsubscribed(session.client_id, pattern))
        changes += [Dequeued(session.client_id, out.n) for out in outs]
        self.counters.removed += len(lost) + len(outs)
        text = "%r may no longer subscribe to %r: that is ended, and %d messages are dropped"
        self.notices.warn(self.mono_ns, text, client.client_id, lost, len(outs))
        return True

    def _answer(self, packet: Connect, client_id: str, expiry: int, limits: Limits) -> tuple[int, bytes]:
        """Return the keepalive in force, and what CONNACK tells a client of MQTT 5 besides success (3.2.2.3).

        What is not said is so: QoS 2, retained messages, wildcards, subscription identifiers and shared subscriptions.
        """
        settings, keepalive = self.settings, packet.keepalive
        if packet.version < MQTT_5:
            return keepalive, b""
        said = [
            properties.number(properties.RECEIVE_MAXIMUM, min(settings.receive_maximum, settings.dup_window or 65_535)),
            properties.number(properties.MAXIMUM_PACKET_SIZE, limits.max_packet),
        ]
        if settings.topic_aliases:
            said.append(properties.number(properties.TOPIC_ALIAS_MAXIMUM, settings.topic_aliases))
        if expiry != packet.expiry:
            said.append(properties.number(properties.SESSION_EXPIRY, expiry))
        if not packet.client_id:
            said.append(properties.text(properties.ASSIGNED_CLIENT_ID, client_id))
        if limits.max_keepalive and not 0 < keepalive <= limits.max_keepalive:
            keepalive = limits.max_keepalive
            said.append(properties.number(properties.SERVER_KEEP_ALIVE, keepalive))
        return keepalive, b"".join(said)

    def _welcome(self, connection: Connection) -> None:
        """CONNACK is out: send what waited, and go on with live messages."""
        session, client = connection.session, connection.client
        connection.ready = True
        if session is not None and client is not None:
            dropped = session.resend(connection.obuf, connection.window, connection.terms, self.mono_ns)
            self.dropped(session, dropped)
            connection.pump()
            self._tell(self.hooks.on_connected, client)

    def _end(self, session: Session) -> None:
        """A session ends (5.0, 4.1): its will, if one waits, comes now."""
        client_id = session.client_id
        self._hand_on(session)
        for pattern in list(session.subscriptions):
            self._unsubscribe(session, pattern)
        session.end()
        self.held.used -= len(session.held)
        session.held.clear()
        if self.sessions.get(client_id) is session:
            del self.sessions[client_id]
        self._expiring.pop(client_id, None)
        self._persistent -= session.persistent
        if session.persistent:
            self.touch().batch.changes.append(SessionDeleted(client_id))
            self.pending.sessions.add(client_id)
        waiting = self._delayed.pop(client_id, None)
        if waiting is not None:
            self._will(*waiting[1:])

    def detach(self, connection: Connection, reason: str) -> None:
        """Unbind a connection from its session: its memory is frozen, its will fires unless it was taken off."""
        session, client, memory = connection.session, connection.client, connection.memory
        if session is None or client is None or memory is None:
            return
        connection.prove()
        if not reason:
            memory.disconnected()
        connection.session = connection.memory = None
        session.connection = None
        if memory.freeze():
            self._freeze(client.client_id)
        for forgotten in self.memories.leave(client.client_id, memory):
            self._freeze(forgotten)
        if not session.expiry:
            self._end(session)
        elif session.expiry != NEVER:
            self._expiring[client.client_id] = self.mono_ns + session.expiry * SECOND
            until_ms = self.wall_ms + session.expiry * 1000
            self.touch().batch.changes.append(SessionLeft(client.client_id, session.expiry, until_ms))
        will, connection.will = connection.will, None
        if will is not None and will.content.delay and session.expiry:
            self._delayed[client.client_id] = (self.mono_ns + will.content.delay * SECOND, client, will)
        elif will is not None:
            self._will(client, will)
        self._tell(self.hooks.on_disconnected, client, reason)

    def no_will(self, connection: Connection) -> None:
        """A client takes its will off."""
        will, connection.will = connection.will, None
        if will is not None:
            self.wills.used -= _cost(will)

    def turned_away(self, address: str, reason: str) -> None:
        """A connection is closed that never was accepted."""
        self._tell(self.hooks.on_turned_away, address, reason)

    def sweep(self) -> None:
        """Do what is due by the clock: sessions and retained messages expire, wills come that were to wait."""
        now = self.mono_ns
        for client_id in [client_id for client_id, at in self._expiring.items() if at <= now]:
            self._due(client_id)
        for client_id in [client_id for client_id, waiting in self._delayed.items() if waiting[0] <= now]:
            self._due(client_id)
        for topic in self.retained.expired(now):
            self.retained.put(topic, None)
            self.touch().batch.changes.append(RetainCleared(topic))

    def _due(self, client_id: str) -> None:
        """Do what the clock says of one client that is not connected."""
        at, waiting = self._expiring.get(client_id), self._delayed.get(client_id)
        if at is not None and at <= self.mono_ns:
            self._end(self.sessions[client_id])
        elif waiting is not None and waiting[0] <= self.mono_ns:
            self._will(*self._delayed.pop(client_id)[1:])

    def last_wills(self) -> None:
        """The server ends: wills that were to wait come now, since the next start does not know them."""
        while self._delayed:
            _, (_, client, will) = self._delayed.popitem()
            self._will(client, will)

    def _freeze(self, client_id: str) -> None:
        pending = self.touch()
        pending.frozen[client_id] = len(pending.batch.arrivals)

    def _will(self, client: Client, will: Will) -> None:
        self.counters.wills += 1
        self.wills.used -= _cost(will)
        content = will.content
        flags = will.qos << 1 | will.retain
        pid = b"\0\0" if will.qos else b""
        block = content.kept if client.version == MQTT_5 else None
        raw = codec.publish(will.topic, will.payload, flags, pid, block)
        publish = (will.topic, will.payload, flags, pid or None, 0, len(raw), content.kept)
        self.touch().batch.arrivals.append(
            Arrival(client.client_id, client.user, client.version, self.wall_ms, self.mono_ns, raw, [publish])
        )
        route = self.routes.get(will.topic) or self.resolve(will.topic)
        self._route((route, will.topic, will.payload, flags, content), client.client_id)


def _cost(will: Will) -> int:
    return budget.will(will.topic, will.payload, will.content.kept)

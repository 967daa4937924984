"""The broker: sessions, routing, retained messages, wills, and the batch that every ack waits for. No I/O.

A shell owns one Broker. It sets ``wall_ms`` and ``mono_ns`` before each call, calls ``cut`` when ``wake`` was called
and no commit is under way, and then ``committed`` or ``failed``. Nothing here blocks, and nothing here is called from
another thread.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, ParamSpec

from waybill.mqtt import codec, topics
from waybill.mqtt.codec import RETAIN, ConnackCode, Connect, Malformed
from waybill.mqtt.exchange import Exchange
from waybill.mqtt.pending import Pending
from waybill.mqtt.resend import Memories
from waybill.mqtt.session import Session
from waybill.mqtt.settings import Client, ConnectInfo
from waybill.mqtt.state import (
    Arrival,
    Dequeued,
    InboundHeld,
    InboundReleased,
    Received,
    ResendFrozen,
    SavedState,
    SessionDeleted,
    SessionOpened,
    Subscribed,
    Unsubscribed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from waybill.mqtt.codec import Will
    from waybill.mqtt.connection import Connection, Run
    from waybill.mqtt.pending import Ticket
    from waybill.mqtt.resend import ClientMemory, Entry
    from waybill.mqtt.session import Outgoing
    from waybill.mqtt.settings import Hooks, Settings

P = ParamSpec("P")

logger = logging.getLogger(__name__)

CLIENT_ID_BYTES: Final = 1024
SECOND: Final = 1_000_000_000


class Broker(Exchange):
    """All state of a server. ``new_id`` makes client ids for those that bring none."""

    def __init__(
        self,
        settings: Settings,
        hooks: Hooks,
        saved: SavedState,
        *,
        new_id: Callable[[], str],
        wake: Callable[[], None],
    ) -> None:
        super().__init__(settings, saved, wake)
        self.hooks = hooks
        self.new_id = new_id
        self.wall_ms = 0
        self.mono_ns = 0
        self.uncommitted = 0
        self.paused: set[Connection] = set()
        self.committing: Pending | None = None
        self.sessions: dict[str, Session] = {}
        self.memories = Memories(settings.dup_window, settings.memory_clients, settings.memory_entries, saved.memories)
        self._persistent = 0
        for client_id, each in saved.sessions.items():
            session = self.sessions[client_id] = Session.restored(client_id, each, settings.inflight)
            self._persistent += 1
            for pattern, qos in each.subscriptions.items():
                self._tree.add(pattern, session, qos)

    # -- publish -------------------------------------------------------------------------------------------------

    def store(self, connection: Connection, raw: bytes, run: Run) -> Ticket:
        """Take a run of PUBLISH packets; returns the ticket on which its acks are owed."""
        client, memory, counters = connection.client, connection.memory, self.counters
        if client is None or memory is None:
            raise RuntimeError("a PUBLISH without a session")  # the parser has seen a CONNECT
        ticket = connection.owe()
        pending = self.pending
        publishes = run.publishes
        count = len(run.pubacks) + len(run.pubrecs)
        if len(memory):
            connection.prove()
        keep = memory.tail_count
        pending.batch.arrivals.append(
            Arrival(client.client_id, client.user, client.version, self.wall_ms, self.mono_ns, raw, publishes, keep)
        )
        if count:
            chunk = memory.add(publishes, count, len(raw), pending.mark)
            if run.pubrecs:
                memory.hold(chunk, run.pubrecs)
            else:
                ticket.chunks.append(chunk)
            pending.clients.add(client.client_id)
            ticket.acks += count
            counters.received_1 += len(run.pubacks)
            counters.received_2 += len(run.pubrecs)
        counters.received_0 += len(publishes) - count
        for hit in run.hits:
            self._route(hit, client.client_id)
        connection.charge(ticket, len(raw))
        return ticket

    def _tell(self, hook: Callable[P, None] | None, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a hook that only hears; its failure is its own."""
        if hook is not None:
            try:
                hook(*args, **kwargs)
            except Exception:
                logger.exception("a hook failed")

    # -- sessions ------------------------------------------------------------------------------------------------

    def connect(self, connection: Connection, packet: Connect) -> None:
        """Handle a CONNECT (3.1): refuse it, or bind the connection to its session."""
        self.counters.connects += 1
        client_id, will = packet.client_id, packet.will
        code: ConnackCode | str | None = None
        if (not client_id and not packet.clean) or len(client_id.encode()) > CLIENT_ID_BYTES:
            code = ConnackCode.BAD_CLIENT_ID
        client_id = client_id or self.new_id()
        if will is not None and not topics.valid_topic(will.topic, self.settings.max_levels):
            raise Malformed("the will's topic is no topic name")
        certificate, address = connection.peer()
        info = ConnectInfo(client_id, packet.user, packet.password, certificate, address, packet.version, packet.clean)
        if code is None and self.hooks.authorize_connect is not None:
            code = self.hooks.authorize_connect(info)
        user = code if isinstance(code, str) else packet.user
        client = Client(client_id, user, packet.version, info.address)
        allow = self.hooks.authorize_publish
        if will is not None and allow is not None and not isinstance(code, ConnackCode):
            code = code if allow(client, will.topic.decode()) else ConnackCode.NOT_AUTHORIZED
        known = self.sessions.get(client_id)
        new = not packet.clean and (known is None or not known.persistent)
        if new and self._persistent >= self.settings.max_sessions:
            code = ConnackCode.UNAVAILABLE
        if isinstance(code, ConnackCode) and code is not ConnackCode.ACCEPTED:
            self.counters.refused += 1
            connection.refuse(codec.connack(packet.version, code, present=False), f"refused: {code.name}")
            return
        self._bind(connection, packet, client)

    def _bind(self, connection: Connection, packet: Connect, client: Client) -> None:
        client_id = client.client_id
        session = self.sessions.get(client_id)
        if session is not None and session.connection is not None:
            self.counters.taken_over += 1
            session.connection.close("taken over")
            session = self.sessions.get(client_id)
        changes = self.pending.batch.changes
        present = False
        if packet.clean:
            if session is not None:
                self._forget(session)
                changes.append(SessionDeleted(client_id))
                self.pending.sessions.add(client_id)
            session = self.sessions[client_id] = Session(client_id, packet.version, persistent=False)
        elif session is None:
            session = self.sessions[client_id] = Session(client_id, packet.version, persistent=True)
            self._persistent += 1
            changes.append(SessionOpened(client_id, packet.version))
            self.pending.sessions.add(client_id)
        else:
            present = True
            if session.version != packet.version:
                session.version = packet.version
                changes.append(SessionOpened(client_id, packet.version))
                self.pending.sessions.add(client_id)
        session.connection = connection
        connection.session = session
        connection.client = client
        connection.will = packet.will
        connection.keepalive_ns = packet.keepalive * SECOND
        connection.memory = memory = self.memories.enter(client_id)
        if memory.freeze():
            self._freeze(client_id)
        answer = codec.connack(packet.version, ConnackCode.ACCEPTED, present=present)
        if any(client_id in each.sessions for each in (self.pending, self.committing) if each is not None):
            # a state that is not durable yet must not be promised, nor PUBREL be sent from it
            connection.owe().out.append(answer)
            self.pending.after.append(lambda error: self._welcome(connection) if error is None else None)
        else:
            connection.push(answer)
            self._welcome(connection)

    def _welcome(self, connection: Connection) -> None:
        """CONNACK is out: send what waited, and go on with live messages."""
        session, client = connection.session, connection.client
        connection.ready = True
        if session is not None and client is not None:
            session.resend(connection.obuf)
            connection.pump()
            self._tell(self.hooks.on_connected, client)

    def _forget(self, session: Session) -> None:
        """Drop a session from memory."""
        for pattern in session.subscriptions:
            self._tree.remove(pattern, session)
        if session.subscriptions:
            self.routes.clear()
        session.subscriptions.clear()
        if self.sessions.get(session.client_id) is session:
            del self.sessions[session.client_id]
        self._persistent -= session.persistent

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
        if not session.persistent:
            self._forget(session)
        if connection.will is not None:
            self._will(client, connection.will)
            connection.will = None
        self._tell(self.hooks.on_disconnected, client, reason)

    def turned_away(self, connection: Connection, reason: str) -> None:
        """A connection is closed that never was accepted."""
        self._tell(self.hooks.on_turned_away, connection.peer()[1], reason)

    def _freeze(self, client_id: str) -> None:
        pending = self.touch()
        pending.frozen[client_id] = len(pending.batch.arrivals)

    def _will(self, client: Client, will: Will) -> None:
        self.counters.wills += 1
        flags = will.qos << 1 | will.retain
        raw = codec.publish(will.topic, will.payload, flags, b"\0\0" if will.qos else b"")
        publish = (will.topic, will.payload, flags, b"\0\0" if will.qos else None, 0, len(raw), will.properties)
        self.touch().batch.arrivals.append(
            Arrival(client.client_id, client.user, client.version, self.wall_ms, self.mono_ns, raw, [publish])
        )
        route = self.routes.get(will.topic) or self.resolve(will.topic)
        self._route((route, will.topic, will.payload, flags), client.client_id)

    # -- subscriptions and acks ----------------------------------------------------------------------------------

    def subscribe(self, connection: Connection, pid: bytes, wanted: list[tuple[str, int]]) -> None:
        """Handle a SUBSCRIBE (3.8). Raises Malformed for a filter that is none."""
        session, client = connection.session, connection.client
        if session is None or client is None:
            return
        if not all(topics.valid_filter(pattern, self.settings.max_levels) for pattern, _ in wanted):
            raise Malformed("not a topic filter")
        codes = [qos if self._grant(session, client, pattern, qos) else codec.SUBACK_FAILURE for pattern, qos in wanted]
        granted = [(pattern, qos) for (pattern, qos), code in zip(wanted, codes, strict=True) if code == qos]
        self.routes.clear()
        connection.answer(codec.suback(pid, codes), sum(len(pattern) for pattern, _ in wanted))
        kept: list[tuple[int, bytes, bytes]] = []
        for pattern, qos in granted:
            for topic, message in self.retained.matching(pattern):
                to = min(qos, message.qos)
                if to and session.persistent:
                    self._queue(session, to << 1 | RETAIN, topic, message.payload)
                else:
                    kept.append((to, topic, message.payload))

        def after(error: Exception | None) -> None:
            if error is None and connection.session is session:
                for to, topic, payload in kept:
                    self._send(session, to << 1 | RETAIN, topic, payload, self.settings.queue_bytes)
                connection.pump()
                for pattern, qos in granted:
                    self._tell(self.hooks.on_subscribed, client, pattern, qos)

        self.pending.after.append(after)

    def _grant(self, session: Session, client: Client, pattern: str, qos: int) -> bool:
        """Subscribe a session, if it may and has room."""
        allow, mine = self.hooks.authorize_subscribe, session.subscriptions
        full = pattern not in mine and len(mine) >= self.settings.max_subscriptions
        if full or (allow is not None and not allow(client, pattern)):
            self.counters.denied += 1
            return False
        mine[pattern] = qos
        self._tree.add(pattern, session, qos)
        if session.persistent:
            self.pending.batch.changes.append(Subscribed(session.client_id, pattern, qos))
        return True

    def unsubscribe(self, connection: Connection, pid: bytes, patterns: list[str]) -> None:
        """Handle an UNSUBSCRIBE (3.10)."""
        session = connection.session
        if session is None:
            return
        for pattern in patterns:
            if session.subscriptions.pop(pattern, None) is not None:
                self._tree.remove(pattern, session)
                self.routes.clear()
                if session.persistent:
                    self.pending.batch.changes.append(Unsubscribed(session.client_id, pattern))
        connection.answer(codec.unsuback(pid), sum(map(len, patterns)))

    def done(self, session: Session, out: Outgoing | None) -> None:
        """A client acknowledged a message for good."""
        if out is not None:
            if session.persistent:
                self.touch().batch.changes.append(Dequeued(session.client_id, out.n))
            if session.waiting and session.connection is not None:
                session.connection.pump()

    def received(self, session: Session, out: Outgoing | None) -> None:
        """A client answered QoS 2 with PUBREC; PUBREL must wait until that is durable."""
        if out is not None and session.persistent:
            pending = self.touch()
            pending.batch.changes.append(Received(session.client_id, out.n))
            pending.sessions.add(session.client_id)

    def hold(self, session: Session, pid: bytes) -> None:
        """A client published QoS 2 under this id."""
        session.held.add(pid)
        pending = self.touch()
        if session.persistent:
            pending.batch.changes.append(InboundHeld(session.client_id, int.from_bytes(pid, "big")))

        def undo() -> None:
            session.held.discard(pid)
            if session.connection is not None:
                pending.concerned.add(session.connection)

        pending.undo.append(undo)

    def release(self, session: Session, pid: bytes) -> None:
        """A client released an id with PUBREL."""
        if pid in session.held:
            session.held.discard(pid)
            if session.persistent:
                self.touch().batch.changes.append(InboundReleased(session.client_id, int.from_bytes(pid, "big")))

    def concern(self, copy: Entry, connection: Connection) -> None:
        """The copy of a message that is being committed: if that fails its ack must not leave (O2)."""
        for pending in (self.committing, self.pending):
            if pending is not None and pending.mark is copy.commit:
                pending.concerned.add(connection)

    # -- commit --------------------------------------------------------------------------------------------------

    def cut(self) -> Pending:
        """Take the batch in the making; the next one begins."""
        pending = self.committing = self.pending
        self.pending = Pending()
        for client_id, at in pending.frozen.items():
            memory = self._memory(client_id)
            pending.batch.changes.append(ResendFrozen(client_id, memory.saved() if memory else (), at))
        return pending

    def _memory(self, client_id: str) -> ClientMemory | None:
        session = self.sessions.get(client_id)
        if session is not None and session.connection is not None:
            return session.connection.memory
        return self.memories.get(client_id)

    def committed(self, pending: Pending) -> None:
        """The commit returned: acks leave, then messages go to those who are online."""
        self.committing = None
        pending.mark.open = False
        if pending.batch.arrivals or pending.batch.changes:
            self.counters.commits += 1
        for ticket in pending.tickets:
            ticket.connection.settle(ticket)
            if not ticket.connection.closed:
                ticket.connection.pay(ticket)
        for after in pending.after:
            after(None)
        dirty: set[Connection] = set()
        for session, out in pending.queued:
            session.waiting.append(out)
            if session.connection is not None:
                dirty.add(session.connection)
        for delivery in pending.deliveries:
            self._deliver(*delivery, dirty)
        for connection in dirty:
            connection.pump()
        if self.paused:
            self.relieve()

    def failed(self, pending: Pending, error: Exception) -> None:
        """The commit raised: no ack of it ever leaves, what it was to store was never there (O2)."""
        self.committing = None
        self.counters.commits_failed += 1
        self._unremember(pending)
        for undo in reversed(pending.undo):
            undo()
        for session, out in pending.queued:
            session.cancel(out)
        pending.mark.open = False
        for ticket in pending.tickets:
            ticket.connection.settle(ticket)
            pending.concerned.add(ticket.connection)
        if pending.batch.changes or pending.frozen:
            self.touch().inherit(pending)
        for connection in pending.concerned:
            connection.close("commit failed")
        for after in pending.after:
            after(error)
        self.relieve()
        self._tell(self.hooks.on_commit_failed, error)

    def _unremember(self, pending: Pending) -> None:
        """Take the messages of a failed commit out of the resend memories."""
        for client_id in pending.clients:
            session = self.sessions.get(client_id)
            if session is not None and session.connection is not None and session.connection.memory is not None:
                session.connection.memory.failed(pending.mark)
            else:
                self.memories.failed(client_id, pending.mark)

    def relieve(self) -> None:
        """Let connections read again that were held back and need not be any more."""
        settings = self.settings
        if self.uncommitted <= settings.uncommitted_bytes_all // 2:
            for connection in [each for each in self.paused if not each.choked]:
                if connection.uncommitted <= settings.uncommitted_bytes // 2:
                    connection.paused = False
                    self.paused.discard(connection)
                    connection.resume()

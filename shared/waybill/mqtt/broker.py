"""The broker: what clients publish, subscribe to and acknowledge, and the batch that every ack waits for. No I/O.

A shell owns one Broker. It sets ``wall_ms`` and ``mono_ns`` before each call, calls ``sweep`` now and then, calls
``cut`` when ``wake`` was called and no commit is under way, and then ``committed`` or ``failed``. Nothing here blocks,
and nothing here is called from another thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from waybill.mqtt import budget, codec, groups, properties, topics
from waybill.mqtt.budget import PUBLISH
from waybill.mqtt.codec import MQTT_5, RETAIN, Wanted
from waybill.mqtt.groups import Grant
from waybill.mqtt.pending import Pending
from waybill.mqtt.properties import Content
from waybill.mqtt.reasons import Malformed, Reason
from waybill.mqtt.sessions import Sessions
from waybill.mqtt.state import (
    Arrival,
    Dequeued,
    InboundHeld,
    InboundReleased,
    Received,
    ResendFrozen,
    SavedState,
    Subscribed,
    Unsubscribed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from waybill.mqtt.connection import Connection
    from waybill.mqtt.pending import Delivery, Ticket
    from waybill.mqtt.reader import Run
    from waybill.mqtt.resend import ClientMemory, Entry
    from waybill.mqtt.session import Outgoing, Session
    from waybill.mqtt.settings import Client, Hooks, Settings

MOST_FILTERS: Final = 1024
"""In one SUBSCRIBE."""

LOOKS: Final = 200_000
LOOK_NS: Final = 20_000
"""Retained messages that the wildcards of one SUBSCRIBE may be compared with, and for how long its client is then not
read, for each: ten times of what it takes, and more."""

BLOCKS: Final = 4096
BLOCK_BYTES: Final = 256
"""Property blocks that are remembered as understood, and how large one may be."""


class Broker(Sessions):
    """All state of a server. ``new_id`` makes client ids for those that bring none.

    ``now``: wall time in ms and monotonic time in ns, at the start.
    """

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
        super().__init__(settings, hooks, saved, new_id=new_id, wake=wake, now=now)
        self.blocks: dict[bytes, Content] = {b"": properties.EMPTY}
        self.shut: Callable[[bytes], bool] | None = None
        """Topics for which the program has no room now; None: it has for all."""

    # -- publish -------------------------------------------------------------------------------------------------

    def store(self, connection: Connection, raw: bytes, run: Run) -> Ticket:
        """Take a run of PUBLISH packets; returns the ticket on which its acks are owed."""
        client, memory, counters = connection.client, connection.memory, self.counters
        if client is None or memory is None:
            raise RuntimeError("a PUBLISH without a session")  # the parser has seen a CONNECT
        pending = self.pending
        ticket = connection.ticket
        if ticket is None or connection.ticket_of is not pending:
            ticket = connection.owe()
        publishes = run.publishes
        pubacks, pubrecs = len(run.pubacks), len(run.pubrecs or ())
        count = pubacks + pubrecs
        if memory.tail_count or memory.frozen:
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
                ticket.prove(chunk)
            ticket.acks += count
            counters.received_1 += pubacks
            counters.received_2 += pubrecs
        counters.received_0 += len(publishes) - count
        for hit in run.hits or ():
            route, topic, payload, flags, content = hit
            if route.late and not flags & RETAIN and content.expiry is None:  # as _route does it, without the calls
                later = (route.targets, route.callbacks, topic, payload, flags, content, 0, client.client_id)
                pending.deliveries.append(later)
            else:
                self._route(hit, client.client_id)
        connection.charge(ticket, len(raw) + PUBLISH * len(publishes))
        return ticket

    def turn_down(self, client: Client, topic: bytes) -> None:
        """A PUBLISH is not taken: there is no room."""
        self.counters.no_room += 1
        self.notices.warn(self.mono_ns, "%r: there is no room for what it publishes", client.client_id)
        self._tell(self.hooks.on_no_room, client, topic.decode())

    def content(self, block: bytes) -> Content:
        """Understand the properties of a PUBLISH. Raises Malformed."""
        content = self.blocks.get(block)
        if content is None:
            content = Content(block)
            if len(block) <= BLOCK_BYTES:
                if len(self.blocks) >= BLOCKS:
                    self.blocks.clear()
                self.blocks[block] = content
        return content

    # -- subscriptions and acks ----------------------------------------------------------------------------------

    def subscribe(self, connection: Connection, pid: bytes, wanted: list[Wanted]) -> None:
        """Handle a SUBSCRIBE (3.8). Raises Malformed for a filter that is none."""
        session, client = connection.session, connection.client
        if session is None or client is None:
            return
        self._check(wanted)
        codes: list[int] = []
        owed: list[Wanted] = []  # whose retained messages are to be sent
        looks = 0
        for each in wanted:
            new = each.filter not in session.subscriptions
            if topics.wild(each.filter):
                looks += len(self.retained)
            codes.append(self._grant(session, client, each, fits=looks <= max(LOOKS, len(self.retained))))
            handling = each.options & codec.RETAIN_HANDLING
            if codes[-1] < codec.SUBACK_FAILURE and (not handling or (handling == codec.RETAIN_IF_NEW and new)):
                owed.append(each)
        granted = [each for each, code in zip(wanted, codes, strict=True) if code < codec.SUBACK_FAILURE]
        answer = connection.terms.check(codec.suback(pid, codes, client.version))
        kept = self._kept_for(session, owed)
        connection.owe_time(looks * LOOK_NS)
        connection.answer(answer, sum(len(each.filter) for each in wanted) + PUBLISH * len(kept))

        def after(error: Exception | None) -> None:
            if error is None and connection.session is session:
                for message in kept:
                    self._send_kept(connection, message)
                connection.pump()
                for each in granted:
                    self._tell(self.hooks.on_subscribed, client, each.filter, each.options & 3)

        self.pending.after.append(after)

    def _check(self, wanted: list[Wanted]) -> None:
        if len(wanted) > MOST_FILTERS:
            raise Malformed(f"{len(wanted)} filters in one SUBSCRIBE", Reason.QUOTA_EXCEEDED)
        for each in wanted:
            self.check_filter(each.filter, each.options)

    def _kept_for(self, session: Session, owed: list[Wanted]) -> list[Delivery]:
        """Queue the retained messages for new subscriptions; return those that are sent without, not too many."""
        online: list[Delivery] = []
        for wanted in owed:
            if groups.split(wanted.filter)[0]:  # 5.0, 4.8.2: none for a shared one
                continue
            grant = Grant([(wanted.options, wanted.identifier)])
            target = (session, grant, None)
            for topic, message in self.retained.matching(wanted.filter, self.mono_ns):
                flags = min(grant.qos, message.qos) << 1 | RETAIN
                content = Content.onward_only(message.properties)
                delivery: Delivery = ((target,), (), topic, message.payload, flags, content, message.expires_ns, "")
                if flags > RETAIN and session.persistent:
                    self._queue(target, flags, delivery)
                elif len(online) < self.settings.queue_messages:
                    online.append(delivery)
                else:
                    self.counters.dropped += 1
        return online

    def _send_kept(self, connection: Connection, message: Delivery) -> None:
        """Send a retained message that is not queued."""
        target, flags = message[0][0], message[4]
        if flags > RETAIN:
            self._send(target, flags, message)
        else:
            self._offer(connection, target[1], flags, message, self.settings.queue_bytes)

    def _grant(self, session: Session, client: Client, wanted: Wanted, *, fits: bool) -> int:
        """Subscribe a session, if it may and has room. Returns the code for SUBACK."""
        allow, mine, pattern = self.hooks.authorize_subscribe, session.subscriptions, wanted.filter
        code = wanted.options & 3
        if not fits or (
            pattern not in mine
            and (
                len(mine) >= self.settings.max_subscriptions
                or not self.filters.fits(budget.subscription(pattern), session.subscribed)
            )
        ):
            code = Reason.QUOTA_EXCEEDED
            self.counters.over_quota += 1
            self.notices.warn(
                self.mono_ns,
                "%r is refused %r: too many subscriptions, or wildcards at once",
                client.client_id,
                pattern,
            )
        elif allow is not None and not self.allowed(allow, client, groups.split(pattern)[1]):
            code = Reason.NOT_AUTHORIZED
            self.counters.denied += 1
        if code >= codec.SUBACK_FAILURE:
            return code if client.version == MQTT_5 else codec.SUBACK_FAILURE
        self._subscribe(session, pattern, (wanted.options, wanted.identifier))
        if session.persistent:
            change = Subscribed(session.client_id, pattern, wanted.options, wanted.identifier)
            self.pending.batch.changes.append(change)
        return code

    def unsubscribe(self, connection: Connection, pid: bytes, patterns: list[str]) -> None:
        """Handle an UNSUBSCRIBE (3.10)."""
        session = connection.session
        if session is None:
            return
        codes: list[int] = []
        for pattern in patterns:
            if pattern not in session.subscriptions:
                codes.append(Reason.NO_SUBSCRIPTION_EXISTED)
                continue
            codes.append(Reason.SUCCESS)
            self._unsubscribe(session, pattern)
            if session.persistent:
                self.pending.batch.changes.append(Unsubscribed(session.client_id, pattern))
        answer = connection.terms.check(codec.unsuback(pid, codes, connection.terms.version))
        connection.answer(answer, sum(map(len, patterns)))

    def done(self, session: Session, out: Outgoing | None) -> None:
        """A client acknowledged a message for good."""
        if out is not None:
            if session.persistent:
                self.touch().batch.changes.append(Dequeued(session.client_id, out.n))
            connection = session.connection
            if connection is None:
                return
            if session.waiting:
                connection.due = True
            if self.hooks.on_acknowledged is not None and connection.client is not None:
                self._tell(self.hooks.on_acknowledged, connection.client, out.topic)

    def received(self, session: Session, out: Outgoing | None) -> None:
        """A client answered QoS 2 with PUBREC; PUBREL must wait until that is durable."""
        if out is not None and session.persistent:
            pending = self.touch()
            pending.batch.changes.append(Received(session.client_id, out.n))
            pending.sessions.add(session.client_id)

    def hold(self, session: Session, pid: bytes) -> None:
        """A client published QoS 2 under this id."""
        session.held.add(pid)
        self.held.used += 1
        pending = self.touch()
        if session.persistent:
            pending.batch.changes.append(InboundHeld(session.client_id, int.from_bytes(pid, "big")))

        def undo() -> None:
            if pid in session.held:
                session.held.discard(pid)
                self.held.used -= 1
            if session.connection is not None:
                pending.concerned.add(session.connection)

        pending.undo.append(undo)

    def may_hold(self, session: Session) -> bool:
        """Say whether one more id of QoS 2 has room."""
        held = len(session.held)
        if held < self.settings.max_held and self.held.fits(1, held):
            return True
        self.counters.over_quota += 1
        self.notices.warn(self.mono_ns, "%r is refused QoS 2: %d of its ids wait for PUBREL", session.client_id, held)
        return False

    def release(self, session: Session, pid: bytes) -> bool:
        """A client released an id with PUBREL. Says whether it was held."""
        if pid not in session.held:
            return False
        session.held.discard(pid)
        self.held.used -= 1
        if session.persistent:
            self.touch().batch.changes.append(InboundReleased(session.client_id, int.from_bytes(pid, "big")))
        return True

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
        pending.undo.clear()  # they refer to the batch, and it to them
        pending.mark.open = False
        if pending.batch.arrivals or pending.batch.changes:
            self.counters.commits += 1
        for ticket in pending.tickets:
            ticket.connection.settle(ticket)
            if not ticket.connection.closed:
                ticket.connection.pay(ticket)
        for after in pending.after:
            after(None)
        self._hand_out(pending)
        if self.paused:
            self.relieve()

    def _hand_out(self, pending: Pending) -> None:
        """Send what a commit has stored, or need not store, to those who are online."""
        dirty: set[Connection] = set()
        for session, out in pending.queued:
            if session.ended:
                self._pass_on(session, out)
                continue
            session.waiting.append(out)
            if session.connection is not None:
                dirty.add(session.connection)
        for delivery in pending.deliveries:
            self._deliver(delivery, dirty)
        for connection in dirty:
            connection.pump()

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
            connection.close("commit failed", Reason.IMPLEMENTATION_SPECIFIC)
        for after in pending.after:
            after(error)
        self.relieve()
        self._tell(self.hooks.on_commit_failed, error)

    def _unremember(self, pending: Pending) -> None:
        """Take the messages of a failed commit out of the resend memories."""
        for client_id in {arrival.client_id for arrival in pending.batch.arrivals}:
            session = self.sessions.get(client_id)
            if session is not None and session.connection is not None and session.connection.memory is not None:
                session.connection.memory.failed(pending.mark)
            else:
                self.memories.failed(client_id, pending.mark)

    def hold_all(self) -> None:
        """More is uncommitted than there is room for in all: nobody is read any more."""
        if not self.full:
            self.full = True
            for session in self.sessions.values():
                if session.connection is not None:
                    session.connection.hold()

    def relieve(self) -> None:
        """Let connections read again that were held back and need not be any more."""
        settings = self.settings
        if self.uncommitted <= settings.uncommitted_bytes_all // 2:
            self.full = False
            for connection in [each for each in self.paused if each.may_read()]:
                if connection in self.paused:  # none of those before has closed it
                    self.paused.discard(connection)
                    connection.paused = False
                    connection.go_on()

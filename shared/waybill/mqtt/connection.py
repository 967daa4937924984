"""One connection of a client: packets understood, answers out, its end. No I/O.

A shell fills in the methods that :class:`waybill.mqtt.output.Output` leaves open; it derives from
:class:`waybill.mqtt.reader.Reader`, which adds the bytes that come in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from waybill.mqtt import codec
from waybill.mqtt.budget import SMALL
from waybill.mqtt.codec import DUP, MQTT_3_1, MQTT_5, NEVER
from waybill.mqtt.output import Output
from waybill.mqtt.pending import Ticket
from waybill.mqtt.reasons import Malformed, ProtocolError, Reason
from waybill.mqtt.resend import Chunk
from waybill.mqtt.settings import Client
from waybill.mqtt.state import SessionOpened
from waybill.mqtt.terms import PLAIN, SECOND, Terms

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from waybill.mqtt.broker import Broker
    from waybill.mqtt.codec import Connect, Will
    from waybill.mqtt.limits import Limits
    from waybill.mqtt.resend import ClientMemory
    from waybill.mqtt.session import Session
    from waybill.mqtt.settings import Answer, ConnectInfo

AGAIN_3_1: Final = (codec.PUBREL | DUP, codec.SUBSCRIBE | DUP, codec.UNSUBSCRIBE | DUP)
"""What clients of MQTT 3.1 send again with DUP (its 3.6, 3.8 and 3.10)."""

OVERDUE: Final = {"keepalive": Reason.KEEP_ALIVE_TIMEOUT}
"""What a client of MQTT 5 is told for the answers of ``Connection.overdue``, where that is not just 0x80."""


class Connection(Output):
    """The server's end of one connection. ``session`` is None before CONNECT and after the end.

    ``limits``, ``listener``: of where it came in.
    """

    __slots__ = (
        "ahead_ns",
        "asking",
        "barred",
        "barred_ns",
        "choked",
        "client",
        "due",
        "farewell",
        "finishing",
        "keepalive_ns",
        "limits",
        "listener",
        "memory",
        "open",
        "opened_ns",
        "ready",
        "rest",
        "resumed",
        "second",
        "seen_ns",
        "session",
        "stuck",
        "terms",
        "weight",
        "will",
    )

    def __init__(self, broker: Broker, limits: Limits | None = None, listener: str = "") -> None:
        super().__init__(broker)
        self.limits: Limits = limits or broker.settings
        self.listener = listener
        self.asking: tuple[Connect, ConnectInfo] | None = None  # until authorize_connect has answered
        self.opened_ns = self.seen_ns = broker.mono_ns
        self.session: Session | None = None
        self.client: Client | None = None
        self.memory: ClientMemory | None = None
        self.terms: Terms = PLAIN
        self.will: Will | None = None
        self.keepalive_ns = 0
        self.open = 0  # messages of MQTT 5 that the client has out: QoS 1 to PUBACK, QoS 2 to PUBCOMP (Receive Maximum)
        self.second: set[bytes] | None = None  # those of QoS 2 among them
        self.ready = False  # CONNACK was written
        self.resumed = False  # its session was there before
        self.finishing = False  # to be closed when the last ack is out
        self.farewell: int = Reason.SUCCESS  # what is said then
        self.due = False  # acks have made room for what waits; ``feed`` sends it when all is parsed
        self.choked = False  # more output waits than output_bytes
        self.barred: bytes | None = None  # the topic for which there is no room, while nothing is read because of it
        self.barred_ns = 0  # since when
        self.stuck: tuple[int, int] | None = None  # since when, and with how much output, nothing was read
        self.rest: bytearray | None = None
        self.weight = 0  # what it has of the broker's ``buffers``
        self.ahead_ns = broker.mono_ns  # when what it published would have been due at its rate

    def prove(self) -> None:
        """Let the peer's TCP say which acks have arrived."""
        memory = self.memory
        if memory is not None and (memory.tail_count or memory.frozen):
            acknowledged = self.acknowledged()
            if acknowledged is not None:
                memory.prove(acknowledged)

    def packet(self, h: int, body: bytes) -> None:  # noqa: C901, PLR0912 - a case a packet type
        """Handle any packet but PUBLISH."""
        session, broker, version = self.session, self.broker, self.terms.version
        if session is None:
            self._connect(h, body)
        elif h == codec.PUBACK:
            broker.done(session, session.acknowledged(codec.parse_ack(body, version, h)[0]))
        elif h == codec.PUBREC:
            self._received(session, *codec.parse_ack(body, version, h))
        elif h == codec.PUBREL:
            self._release(session, codec.parse_ack(body, version, h)[0])
        elif h == codec.PUBCOMP:
            broker.done(session, session.completed(codec.parse_ack(body, version, h)[0]))
        elif h == codec.SUBSCRIBE:
            broker.subscribe(self, *codec.parse_subscribe(body, version))
        elif h == codec.UNSUBSCRIBE:
            broker.unsubscribe(self, *codec.parse_unsubscribe(body, version))
        elif h == codec.PINGREQ and not body:
            if self.ready:
                self.push(codec.PINGRESP_PACKET)
            else:
                self.answer(codec.PINGRESP_PACKET)
        elif h == codec.DISCONNECT:
            self._disconnect(session, *codec.parse_disconnect(body, version))
        elif h == codec.CONNECT:
            raise ProtocolError("a second CONNECT")
        elif h == codec.AUTH and version == MQTT_5:
            raise ProtocolError("enhanced authentication is not spoken", Reason.BAD_AUTHENTICATION_METHOD)
        elif h in AGAIN_3_1 and self.client is not None and self.client.version == MQTT_3_1:
            self.packet(h & ~DUP, body)
        else:
            raise Malformed(f"packet type {h >> 4} with flags {h & 15} and {len(body)} bytes is not for a server")

    def _connect(self, h: int, body: bytes) -> None:
        """Handle the first packet."""
        if h != codec.CONNECT:
            raise Malformed("the first packet is not CONNECT")
        try:
            self.broker.connect(self, codec.parse_connect(body))
        except Malformed as error:
            if codec.level_of(body) != MQTT_5:
                raise
            self.broker.counters.malformed += 1
            self.refuse(codec.connack(MQTT_5, error.reason, present=False), str(error))

    def wait(self, packet: Connect, info: ConnectInfo, answer: Awaitable[Answer]) -> None:
        """Go on with a CONNECT when ``authorize_connect`` has answered; until then nothing is read."""
        self.asking = packet, info
        self.hold()
        self.ask(answer)

    def answered(self, answer: Answer) -> None:
        """``authorize_connect`` has answered."""
        asking, self.asking = self.asking, None
        if asking is not None and not self.closed:
            self.broker.admit(self, *asking, answer)
            self.flush()
            self.broker.relieve()

    def _received(self, session: Session, pid: bytes, reason: int) -> None:
        """Handle a PUBREC."""
        broker = self.broker
        if reason >= Reason.UNSPECIFIED:  # 4.3.3: the client will not have it
            broker.done(session, session.refused(pid))
            return
        broker.received(session, session.received(pid))
        unknown = self.terms.version == MQTT_5 and pid not in session.flight
        self.answer(codec.ack(codec.PUBREL, pid, Reason.PACKET_ID_NOT_FOUND if unknown else Reason.SUCCESS))

    def _release(self, session: Session, pid: bytes) -> None:
        """Handle a PUBREL."""
        # in a session that goes on it may be a repetition, no mismatch (5.0, 3.7.2.1); MQTT.js takes 0x92 for a failure
        known = self.broker.release(session, pid) or self.terms.version < MQTT_5 or self.resumed
        ticket = self.answer(codec.ack(codec.PUBCOMP, pid, Reason.SUCCESS if known else Reason.PACKET_ID_NOT_FOUND))
        if self.second is not None and pid in self.second:
            self.second.discard(pid)
            ticket.quota += 1
        proven = self.memory.release(pid) if self.memory is not None else None
        if proven is not None:
            ticket.prove(proven)

    def _disconnect(self, session: Session, reason: int, expiry: int | None) -> None:
        """Handle a DISCONNECT (3.14): the will is off, unless the client says otherwise."""
        if expiry is not None:
            if expiry and not session.expiry:
                raise ProtocolError("a session that ends with its connection cannot be kept by DISCONNECT")
            session.expiry = min(expiry, self.broker.settings.max_session_expiry)
            if session.expiry == NEVER:  # other ends are said when the connection is taken off (SessionLeft)
                change = SessionOpened(session.client_id, session.version, NEVER)
                self.broker.touch().batch.changes.append(change)
        if reason == Reason.SUCCESS:
            self.broker.no_will(self)
        self.broker.detach(self, "")
        self.finish()

    # -- out -----------------------------------------------------------------------------------------------------

    def owe(self) -> Ticket:
        """Return what this connection is owed at the next commit."""
        pending = self.broker.touch()
        if self.ticket_of is not pending or self.ticket is None:
            self.ticket = Ticket(self)
            self.ticket_of = pending
            self.open_tickets += 1
            pending.tickets.append(self.ticket)
        return self.ticket

    def pay(self, ticket: Ticket) -> None:
        """Write what a ticket owes, and remember where it ends (O1)."""
        if ticket.out:
            self.obuf += ticket.out
            self.flush()
            self.broker.counters.acked += ticket.acks
            self.open -= ticket.quota
            for each in ticket.proves or ():
                if isinstance(each, Chunk):
                    each.end = self.written
                elif self.memory is not None:
                    self.memory.reacknowledged(each, self.written)
        if self.finishing:
            self.finish(self.farewell)

    def offer(self, topic: bytes, payload: bytes, flags: int, block: bytes, remaining: int | None, limit: int) -> bool:
        """Add a PUBLISH of QoS 0, unless over ``limit`` bytes wait already or it is larger than the client takes."""
        if not self.ready or self.choked or self.obuf_bytes > limit:
            return False
        terms = self.terms
        if terms.version < MQTT_5:
            packet: bytes | None = codec.publish(topic, payload, flags)
        else:
            packet = terms.publish(topic, payload, flags, b"", block, remaining)
        if packet is None:
            return False
        self.push(packet)
        return True

    @property
    def window(self) -> int:
        """How many messages of QoS 1 and 2 may be in flight to this client."""
        return min(self.limits.inflight, self.terms.receive_maximum)

    def pump(self) -> None:
        """Send what waits for this client, as far as the window and its reading allow."""
        session, broker = self.session, self.broker
        if session is not None and self.ready and not self.choked and session.waiting:
            settings, terms = broker.settings, self.terms
            sent_1, sent_2, dropped = session.send(self.obuf, self.window, settings.output_bytes, terms, broker.mono_ns)
            broker.counters.sent_1 += sent_1
            broker.counters.sent_2 += sent_2
            if dropped:
                broker.dropped(session, dropped)
        self.flush()

    def hold(self) -> None:
        """Stop reading until ``Broker.relieve`` finds that it may go on."""
        if not self.paused and not self.closed:
            self.paused = True
            self.broker.paused.add(self)
            self.pause()

    def may_read(self) -> bool:
        """Whether nothing is left of why reading was to stop, but for what the server has uncommitted in all."""
        shut = self.broker.shut
        return (
            not self.choked
            and self.asking is None
            and (self.barred is None or shut is None or not shut(self.barred))
            and self.uncommitted <= self.broker.settings.uncommitted_bytes // 2
            and self.ahead_ns - self.broker.mono_ns <= SECOND
        )

    def pace(self, count: int) -> None:
        """Stop reading where so many messages more put the client over its rate by what it may publish in a second."""
        self.owe_time(int(count * SECOND / self.limits.publish_rate))

    def owe_time(self, ns: int) -> None:
        """Count so much time more that the client took of the others'; it is not read while it owes over a second."""
        now = self.broker.mono_ns
        self.ahead_ns = max(self.ahead_ns, now) + ns
        if self.ahead_ns - now > SECOND:
            self.broker.counters.throttled += 1
            self.hold()

    def unfinished(self) -> int:
        """Return how many bytes of input wait for the rest of their packet."""
        return 0 if self.rest is None else len(self.rest)

    def weigh(self) -> bool:
        """Count what waits in memory, output and input. False where it is more than its share: it has to be closed."""
        buffers = self.broker.buffers
        weight = self.buffered() + self.unfinished()
        if weight <= SMALL:
            weight = 0
        more = weight - self.weight
        if more > 0 and not buffers.fits(more, self.weight):
            self.broker.counters.crowded += 1
            return False
        buffers.used += more
        self.weight = weight
        return True

    def output_full(self) -> None:
        """The shell holds more than ``output_bytes`` that the peer does not take: do not read from it either."""
        self.choked = True
        self.hold()

    def output_free(self) -> None:
        """The peer takes output again."""
        self.choked = False
        self.stuck = None
        self.broker.relieve()
        self.pump()

    # -- end -----------------------------------------------------------------------------------------------------

    def overdue(self, now_ns: int) -> str:
        """Say why this connection has to end now, by the clock; empty: it has not."""
        settings = self.broker.settings
        if self.session is None:
            if now_ns - self.opened_ns <= self.limits.connect_timeout * SECOND:
                return ""
            return "no CONNECT in time" if self.asking is None else "who it is was not known in time"
        if self.paused:
            self.seen_ns = now_ns  # it cannot be heard
            if self.barred is not None and now_ns - self.barred_ns > settings.full_timeout * SECOND:
                return f"no room for {self.barred.decode()}"
            waiting = self.buffered() if self.choked else 0
            if not waiting:
                self.stuck = None
            elif self.stuck is None or waiting < self.stuck[1]:
                self.stuck = (now_ns, waiting)
            elif now_ns - self.stuck[0] > settings.stall_timeout * SECOND:
                return "reads nothing"
            return ""
        silent = now_ns - self.seen_ns
        if self.keepalive_ns and silent > self.keepalive_ns * 3 // 2:  # 3.1.2.10
            return "keepalive"
        if self.rest is not None and silent > settings.stall_timeout * SECOND:
            return "unfinished packet"
        return ""

    def refuse(self, answer: bytes, reason: str) -> None:
        """Answer a CONNECT that is not accepted, unless ``answer`` is empty, and close."""
        self.obuf.clear()
        if answer:
            self.push(answer)
            self.flush()
        self.close(reason)

    def finish(self, code: int = Reason.SUCCESS) -> None:
        """Close when every ack that is owed has been written; ``code``: as of ``close``."""
        self.finishing = True
        self.farewell = code
        if not self.closed and self.open_tickets == 0:
            self.flush()
            self.close("", code)

    def close(self, reason: str, code: int = Reason.SUCCESS) -> None:
        """End the connection; ``reason`` is for the log, and for a client of MQTT 5 with a ``code`` that is an error.

        Empty after a DISCONNECT. Fires the will unless that was so.
        """
        if not self.closed:
            self.broker.detach(self, reason)
            if self.client is None:
                self.broker.turned_away(self.peer()[1], reason)
            if code and self.ready and self.terms.version == MQTT_5:
                packet = codec.disconnect(code, reason)
                if not self.terms.takes(packet):
                    packet = codec.disconnect(code)
                if self.terms.takes(packet):
                    self.push(packet)
                self.flush()
            self.lost()
            self.shut()

    def lost(self) -> None:
        """The connection is gone; nothing more is written."""
        self.closed = True
        self.asking = None
        self.rest = None
        self.broker.paused.discard(self)
        self.obuf.clear()

    def gone(self) -> None:
        """What was still in the transport is no longer in memory."""
        self.broker.buffers.used -= self.weight
        self.weight = 0

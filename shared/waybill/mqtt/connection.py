"""One connection of a client: bytes in, packets understood, answers out. No I/O.

A shell fills in the methods that :class:`waybill.mqtt.output.Output` leaves open.

``feed`` is the hot path. A read is parsed in one loop; runs of consecutive PUBLISH packets become one arrival, sliced
whole out of what was read. Everything else goes through ``_packet``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from waybill.mqtt import codec, properties
from waybill.mqtt.codec import MQTT_5
from waybill.mqtt.output import Output
from waybill.mqtt.pending import QUIET, Ticket
from waybill.mqtt.properties import EMPTY
from waybill.mqtt.reasons import Malformed, ProtocolError, Reason, UnsupportedVersion
from waybill.mqtt.resend import Chunk
from waybill.mqtt.settings import KIB, Client
from waybill.mqtt.terms import PLAIN, SECOND, Terms

if TYPE_CHECKING:
    from waybill.mqtt.broker import Broker
    from waybill.mqtt.codec import Will
    from waybill.mqtt.exchange import Hit
    from waybill.mqtt.resend import ClientMemory, Entry
    from waybill.mqtt.session import Session
    from waybill.mqtt.state import Publish

CONNECT_LIMIT: Final = 256 * KIB
"""The largest first packet: nobody is known yet who might be allowed more."""

OVERDUE: Final = {"keepalive": Reason.KEEP_ALIVE_TIMEOUT}
"""What a client of MQTT 5 is told for the answers of ``Connection.overdue``, where that is not just 0x80."""

TOPICS_ASKED: Final = 1024
"""Topics a connection, for which the answer of ``authorize_publish`` is remembered."""

NO_ID: Final = b"\0\0"


class Run:
    """Consecutive PUBLISH packets of one read. ``hits``: those that somebody gets or that are retained.

    ``pieces``: the packets, where one had to be encoded anew (topic alias); ``size``: their bytes. Else they are
    sliced whole out of what was read.
    """

    __slots__ = ("hits", "pieces", "pubacks", "publishes", "pubrecs", "size")

    def __init__(self) -> None:
        self.publishes: list[Publish] = []
        self.pubacks: list[bytes] = []
        self.pubrecs: list[bytes] = []
        self.hits: list[Hit] = []
        self.pieces: list[bytes] | None = None
        self.size = 0


class Connection(Output):
    """The server's end of one connection. ``session`` is None before CONNECT and after the end."""

    __slots__ = (
        "_aliases",
        "_asked",
        "_mark",
        "_need",
        "_rest",
        "_second",
        "choked",
        "client",
        "farewell",
        "finishing",
        "keepalive_ns",
        "memory",
        "open",
        "opened_ns",
        "ready",
        "seen_ns",
        "session",
        "stuck",
        "terms",
        "will",
    )

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self.opened_ns = self.seen_ns = broker.mono_ns
        self.session: Session | None = None
        self.client: Client | None = None
        self.memory: ClientMemory | None = None
        self.terms: Terms = PLAIN
        self.will: Will | None = None
        self.keepalive_ns = 0
        self.open = 0  # messages of MQTT 5 that the client has out: QoS 1 to PUBACK, QoS 2 to PUBCOMP (Receive Maximum)
        self._second: set[bytes] | None = None  # those of QoS 2 among them
        self._aliases: dict[int, bytes] | None = None
        self.ready = False  # CONNACK was written
        self.finishing = False  # to be closed when the last ack is out
        self.farewell: int = Reason.SUCCESS  # what is said then
        self.choked = False  # more output waits than output_bytes
        self.stuck: tuple[int, int] | None = None  # since when, and with how much output, nothing was read
        self._rest: bytearray | None = None
        self._need = 0
        self._mark = 0
        self._asked: set[bytes] | None = set() if broker.hooks.authorize_publish else None

    # -- in ------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take what was read, at the time that the broker was told. Closes the connection where it is malformed."""
        if self.closed or self.finishing:
            return
        self.broker.counters.bytes_in += len(data)
        try:
            if self._rest is not None:
                self._rest += data
                if len(self._rest) < self._need:
                    if len(self._rest) - self._mark >= KIB:
                        self._mark = len(self._rest)
                        self.seen_ns = self.broker.mono_ns
                    return
                data = bytes(self._rest)
                self._rest = None
            self._parse(data)
        except Malformed as error:
            self.broker.counters.malformed += 1
            self.close(str(error), error.reason)
        except UnsupportedVersion as error:
            self.broker.counters.refused += 1
            self.refuse(error.answer, str(error))
        if self.obuf:
            self.flush()

    def _parse(self, data: bytes) -> None:  # noqa: C901, PLR0912, PLR0915 - one loop, no call for what every message costs
        broker = self.broker
        routes = broker.routes
        blocks = broker.blocks
        asked = self._asked
        limit = broker.settings.max_packet if self.session is not None else CONNECT_LIMIT
        five = self.terms.version == MQTT_5
        content = EMPTY
        packet: bytes | None = None  # encoded anew
        n = len(data)
        i = 0
        need = 2
        start = -1  # of the run of PUBLISH packets
        run = Run()
        publishes, pubacks = run.publishes, run.pubacks
        try:
            while n - i >= 2:
                h = data[i]
                size = data[i + 1]
                j = i + 2
                if size > 127:  # more than one byte of remaining length (2.2.3)
                    size &= 127
                    shift = 7
                    while j < n:
                        b = data[j]
                        j += 1
                        size |= (b & 127) << shift
                        if b < 128:
                            break
                        shift += 7
                        if shift > 21:
                            raise Malformed("remaining length of more than four bytes")
                    else:
                        need = n - i + 1
                        break
                    if size > limit:
                        text = f"packet of {size} bytes; the limit is {limit}"
                        raise Malformed(text, Reason.PACKET_TOO_LARGE)
                e = j + size
                if e > n:
                    need = e - i
                    break
                if h & 0xF0 != 0x30 or self.session is None:  # anything but PUBLISH
                    if start >= 0:
                        self._run(data[start:i], run)
                        run = Run()
                        publishes, pubacks = run.publishes, run.pubacks
                        start = -1
                    self._packet(h, data[j:e])
                    if self.closed or self.finishing:
                        return
                    limit = broker.settings.max_packet
                    five = self.terms.version == MQTT_5
                    i = e
                    continue
                k = j + 2 + (data[j] << 8 | data[j + 1]) if size > 2 else n + 1
                if k > e:
                    raise Malformed("PUBLISH ends within its topic")
                topic = data[j + 2 : k]
                pid = b""
                if h & 6:
                    pid = data[k : k + 2]
                    k += 2
                    if k > e or pid == NO_ID:
                        raise Malformed("PUBLISH without a packet id")
                if five:
                    packet = None
                    if k < e and not data[k]:  # no properties
                        k += 1
                        content = EMPTY
                    else:
                        block, k = properties.block(data, k)
                        if k > e:
                            raise Malformed("properties longer than their PUBLISH")
                        content = blocks.get(block) or broker.content(block)
                        if content.alias:
                            topic = self._alias(topic, content.alias)
                            packet = codec.publish(topic, data[k:e], h & 15, pid, content.kept)
                    if not topic:
                        raise ProtocolError("PUBLISH with neither topic nor alias")
                payload = data[k:e]
                route = routes.get(topic)
                if route is None:
                    route = broker.resolve(topic)
                if asked is not None and topic not in asked and not self._ask(topic):
                    if start >= 0:
                        self._run(data[start:i], run)
                        run = Run()
                        publishes, pubacks = run.publishes, run.pubacks
                        start = -1
                    self._deny(h, pid, topic)
                    i = e
                    continue
                if h & 6:
                    if h & 12:  # DUP or QoS 2
                        if start >= 0 and h & 8:
                            self._run(data[start:i], run)  # the copy may be of one of these
                            run = Run()
                            publishes, pubacks = run.publishes, run.pubacks
                            start = -1
                        copy = self._copy(h, pid, topic, payload, content.kept)
                        if copy is not None:
                            if start >= 0:
                                self._run(data[start:i], run)
                                run = Run()
                                publishes, pubacks = run.publishes, run.pubacks
                                start = -1
                            self._answer_copy(h, pid, copy)
                            i = e
                            continue
                    if h & 4:
                        run.pubrecs.append(pid)
                    else:
                        pubacks.append(pid)
                elif h & 8:
                    raise Malformed("DUP with QoS 0")
                if packet is not None and run.pieces is None:
                    run.pieces = [data[start:i]] if start >= 0 else []
                    run.size = i - start if start >= 0 else 0
                if start < 0:
                    start = i
                if run.pieces is None:
                    publishes.append((topic, payload, h & 15, pid or None, i - start, e - start, content.kept))
                else:
                    packet = packet or data[i:e]
                    at = run.size
                    run.size += len(packet)
                    run.pieces.append(packet)
                    publishes.append((topic, payload, h & 15, pid or None, at, run.size, content.kept))
                if route is not QUIET or h & 1:
                    run.hits.append((route, topic, payload, h, content))
                i = e
        finally:  # what came before a malformed packet is as good as ever
            if start >= 0:
                self._run(data[start:i], run)
        if i:
            self.seen_ns = broker.mono_ns
        if i < n:
            self._rest = bytearray(data[i:])
            self._need = need
            self._mark = n - i

    def _run(self, raw: bytes, run: Run) -> None:
        """Hand a run of PUBLISH packets over; its acks are owed. Raises Malformed past the Receive Maximum."""
        if self.terms.version == MQTT_5:
            settings = self.broker.settings
            if run.pubrecs:
                if self._second is None:
                    self._second = set()
                self._second.update(run.pubrecs)
            self.open += len(run.pubacks) + len(run.pubrecs)
            if self.open > min(settings.receive_maximum, settings.dup_window or 65_535):
                raise Malformed("more messages than the Receive Maximum", Reason.RECEIVE_MAXIMUM_EXCEEDED)
        ticket = self.broker.store(self, raw if run.pieces is None else b"".join(run.pieces), run)
        if run.pubacks:
            ticket.out.append(codec.acks(codec.PUBACK, run.pubacks))
            ticket.quota += len(run.pubacks)
        if run.pubrecs:
            ticket.out.append(codec.acks(codec.PUBREC, run.pubrecs))

    def _alias(self, topic: bytes, alias: int) -> bytes:
        """Return the topic that an alias stands for, from now on ``topic`` where that is given (5.0, 3.3.2.3.4)."""
        if alias > self.broker.settings.topic_aliases:
            raise Malformed(f"topic alias {alias}; the most is what CONNACK said", Reason.TOPIC_ALIAS_INVALID)
        if self._aliases is None:
            self._aliases = {}
        if topic:
            self._aliases[alias] = topic
        elif alias not in self._aliases:
            raise ProtocolError(f"topic alias {alias} stands for nothing", Reason.TOPIC_ALIAS_INVALID)
        return self._aliases[alias]

    def _ask(self, topic: bytes) -> bool:
        """Ask whether this client may publish here."""
        allow, asked = self.broker.hooks.authorize_publish, self._asked
        if allow is None or asked is None or self.client is None:
            return True
        if not allow(self.client, topic.decode()):
            return False
        if len(asked) >= TOPICS_ASKED:
            asked.clear()
        asked.add(topic)
        return True

    def _deny(self, h: int, pid: bytes, topic: bytes) -> None:
        """Answer a PUBLISH that is not allowed, and not stored.

        Raises Malformed: 3.1.1 knows no answer but closing (3.3.5).
        """
        self.broker.counters.denied += 1
        if self.terms.version < MQTT_5:
            raise Malformed(f"may not publish to {topic.decode()}")
        if h & 6:
            self.answer(codec.ack(codec.PUBREC if h & 4 else codec.PUBACK, pid, Reason.NOT_AUTHORIZED))

    def _copy(self, h: int, pid: bytes, topic: bytes, payload: bytes, block: bytes) -> Entry | bool | None:
        """Judge a PUBLISH with DUP or of QoS 2.

        None if it is to be stored, True if its id is held (QoS 2), or what it repeats (O1).
        """
        session, memory = self.session, self.memory
        if session is None or memory is None:
            return True
        if h & 6 == 6:
            raise Malformed("QoS 3")
        if h & 4 and pid in session.held:  # 4.3.3: the id says it all, whatever the content
            return True
        copy = None
        if h & 8:
            self.prove()
            copy = memory.judge(pid, topic, payload, h, block)
        if h & 4:
            self.broker.hold(session, pid)
        return copy

    def _answer_copy(self, h: int, pid: bytes, copy: Entry | bool) -> None:  # noqa: FBT001 - see _copy
        """Owe the ack of a copy; it waits for the commit of the original (O2)."""
        broker = self.broker
        broker.counters.duplicates += 1
        if h & 4:
            broker.counters.received_2 += 1
        else:
            broker.counters.received_1 += 1
        ticket = self.answer(codec.acks(codec.PUBREC if h & 4 else codec.PUBACK, (pid,)))
        ticket.acks += 1
        if not isinstance(copy, bool):
            if not h & 4:
                ticket.copies.append(copy)
            if not copy.stored:
                broker.concern(copy, self)

    def prove(self) -> None:
        """Let the peer's TCP say which acks have arrived."""
        memory = self.memory
        if memory is not None and len(memory):
            acknowledged = self.acknowledged()
            if acknowledged is not None:
                memory.prove(acknowledged)

    def _packet(self, h: int, body: bytes) -> None:  # noqa: C901, PLR0912 - a case a packet type
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
        known = self.broker.release(session, pid) or self.terms.version < MQTT_5
        ticket = self.answer(codec.ack(codec.PUBCOMP, pid, Reason.SUCCESS if known else Reason.PACKET_ID_NOT_FOUND))
        if self._second is not None and pid in self._second:
            self._second.discard(pid)
            ticket.quota += 1
        proven = self.memory.release(pid) if self.memory is not None else None
        if isinstance(proven, Chunk):
            ticket.chunks.append(proven)
        elif proven is not None:
            ticket.copies.append(proven)

    def _disconnect(self, session: Session, reason: int, expiry: int | None) -> None:
        """Handle a DISCONNECT (3.14): the will is off, unless the client says otherwise."""
        if expiry is not None:
            if expiry and not session.expiry:
                raise ProtocolError("a session that ends with its connection cannot be kept by DISCONNECT")
            session.expiry = min(expiry, self.broker.settings.max_session_expiry)
        if reason == Reason.SUCCESS:
            self.will = None
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
            memory = self.memory
            self.open -= ticket.quota
            for chunk in ticket.chunks:
                chunk.end = self.written
            if memory is not None:
                for entry in ticket.copies:
                    memory.reacknowledged(entry, self.written)
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
        return min(self.broker.settings.inflight, self.terms.receive_maximum)

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
            return "no CONNECT in time" if now_ns - self.opened_ns > settings.connect_timeout * SECOND else ""
        if self.paused:
            self.seen_ns = now_ns  # it cannot be heard
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
        if self._rest is not None and silent > settings.stall_timeout * SECOND:
            return "unfinished packet"
        return ""

    def refuse(self, answer: bytes, reason: str) -> None:
        """Answer a CONNECT that is not accepted, and close."""
        self.obuf.clear()
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
                self.broker.turned_away(self, reason)
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
        self.broker.paused.discard(self)
        self.obuf.clear()

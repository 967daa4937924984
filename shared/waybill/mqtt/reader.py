"""What a client sends: bytes to packets, PUBLISH above all. No I/O.

``feed`` is the hot path. A read is parsed in one loop; runs of consecutive PUBLISH packets become one arrival, sliced
whole out of what was read. Everything else goes through ``packet``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from waybill.mqtt import budget, codec, properties
from waybill.mqtt.budget import SMALL
from waybill.mqtt.codec import MQTT_5
from waybill.mqtt.connection import Connection
from waybill.mqtt.limits import KIB
from waybill.mqtt.pending import QUIET
from waybill.mqtt.properties import EMPTY
from waybill.mqtt.reasons import Malformed, ProtocolError, Reason, UnsupportedVersion

if TYPE_CHECKING:
    from waybill.mqtt.broker import Broker
    from waybill.mqtt.exchange import Hit
    from waybill.mqtt.limits import Limits
    from waybill.mqtt.resend import Entry
    from waybill.mqtt.state import Publish

CONNECT_LIMIT: Final = 256 * KIB
"""The largest first packet: nobody is known yet who might be allowed more."""

CROWDED: Final = "too much of too many unfinished packets"

NO_ID: Final = b"\0\0"

LATER: Final = 1 << 62
"""More than any packet needs: what was read waits until reading goes on."""


class Run:
    """Consecutive PUBLISH packets of one read. ``hits``: those that somebody gets or that are retained.

    ``hits`` and ``pubrecs``: None for none, since most reads have neither.
    ``pieces``: the packets, where one had to be encoded anew (topic alias); ``size``: their bytes. Else they are
    sliced whole out of what was read.
    """

    __slots__ = ("hits", "pieces", "pubacks", "publishes", "pubrecs", "size")

    def __init__(self) -> None:
        self.publishes: list[Publish] = []
        self.pubacks: list[bytes] = []
        self.pubrecs: list[bytes] | None = None
        self.hits: list[Hit] | None = None
        self.pieces: list[bytes] | None = None
        self.size = 0


class Reader(Connection):
    """The reading half of a connection."""

    __slots__ = ("_aliases", "_asked", "_asked_bytes", "_mark", "_need")

    def __init__(self, broker: Broker, limits: Limits | None = None, listener: str = "") -> None:
        super().__init__(broker, limits, listener)
        self._need = 0
        self._mark = 0
        self._aliases: dict[int, bytes] | None = None
        self._asked: set[bytes] | None = set() if broker.hooks.authorize_publish else None
        self._asked_bytes = 0

    def feed(self, data: bytes) -> None:  # noqa: C901 - for every read, no call that need not be
        """Take what was read, at the time that the broker was told. Closes the connection where it is malformed."""
        if self.closed or self.finishing:
            return
        self.broker.counters.bytes_in += len(data)
        if self.rest is not None:
            self.rest += data
            if len(self.rest) < self._need:
                if len(self.rest) > SMALL and not self.weigh():
                    self.close(CROWDED, Reason.QUOTA_EXCEEDED)
                    return
                if len(self.rest) - self._mark >= KIB:
                    self._mark = len(self.rest)
                    self.seen_ns = self.broker.mono_ns
                return
            data = bytes(self.rest)
            self.rest = None
        try:
            self._parse(data)
        except Malformed as error:
            self.broker.counters.malformed += 1
            self.close(str(error), error.reason)
        except UnsupportedVersion as error:
            self.broker.counters.refused += 1
            self.refuse(error.answer, str(error))
        if self.due:
            self.due = False
            self.pump()
        elif self.obuf:
            self.flush()
        if (self.weight or (self.rest is not None and len(self.rest) > SMALL)) and not self.weigh():
            self.close(CROWDED, Reason.QUOTA_EXCEEDED)

    def go_on(self) -> None:
        """Read again, beginning with what was read already."""
        self.barred = None
        if self._need == LATER:
            self._need = 0
            self.feed(b"")
        if not self.paused and not self.closed:
            self.resume()

    def _parse(self, data: bytes) -> None:  # noqa: C901, PLR0912, PLR0915 - one loop, no call for what every message costs
        broker = self.broker
        routes = broker.routes
        blocks = broker.blocks
        asked = self._asked
        shut = broker.shut
        limit = self.limits.max_packet if self.session is not None else CONNECT_LIMIT
        five = self.terms.version == MQTT_5
        content = EMPTY
        packet: bytes | None = None  # encoded anew
        n = len(data)
        i = 0
        need = 2
        start = -1  # of the run of PUBLISH packets
        run = Run()
        publishes, pubacks = run.publishes, run.pubacks
        if self.session is None and n and data[0] != codec.CONNECT:
            self.packet(data[0], b"")  # at once: what speaks another protocol may never send what looks like its rest
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
                    if five and not data[j - 1]:
                        raise Malformed("remaining length of more bytes than it needs")
                    if size + j - i > limit:  # of the whole packet (5.0, 2.1.4)
                        text = f"packet of {size + j - i} bytes; the limit is {limit}"
                        raise Malformed(text, Reason.PACKET_TOO_LARGE)
                e = j + size
                if e > n:
                    need = e - i
                    break
                if h == 0x40 and size == 2 and start < 0 and self.session is not None:
                    # PUBACK comes as often as a message is sent
                    out = self.session.acknowledged(data[j:e])
                    if out is not None:
                        broker.done(self.session, out)
                        i = e
                        continue
                if h & 0xF0 != 0x30 or self.session is None:  # anything but PUBLISH
                    if start >= 0:
                        self._run(data[start:i], run)
                        run = Run()
                        publishes, pubacks = run.publishes, run.pubacks
                        start = -1
                    self.packet(h, data[j:e])
                    if self.closed or self.finishing:
                        return
                    if self.paused:
                        self.rest, self._need = bytearray(data[e:]), LATER
                        return
                    limit = self.limits.max_packet
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
                    if shut is not None and shut(topic):
                        if start >= 0:
                            self._run(data[start:i], run)
                            run = Run()
                            publishes, pubacks = run.publishes, run.pubacks
                            start = -1
                        if self._turn_down(h, pid, topic, payload, content.kept):
                            if self.barred is not None:
                                self.rest, self._need = bytearray(data[i:]), LATER
                                return
                            i = e
                            continue
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
                        if run.pubrecs is None:
                            run.pubrecs = []
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
                    if run.hits is None:
                        run.hits = []
                    run.hits.append((route, topic, payload, h, content))
                i = e
        finally:  # what came before a malformed packet is as good as ever
            if start >= 0:
                self._run(data[start:i], run)
        if i:
            self.seen_ns = broker.mono_ns
        if i < n:
            self.rest = bytearray(data[i:])
            self._need = need
            self._mark = n - i

    def _run(self, raw: bytes, run: Run) -> None:
        """Hand a run of PUBLISH packets over; its acks are owed. Raises Malformed past the Receive Maximum."""
        if self.terms.version == MQTT_5:
            settings = self.broker.settings
            if run.pubrecs:
                if self.second is None:
                    self.second = set()
                self.second.update(run.pubrecs)
            self.open += len(run.pubacks) + len(run.pubrecs or ())
            if self.open > min(settings.receive_maximum, settings.dup_window or 65_535):
                raise Malformed("more messages than the Receive Maximum", Reason.RECEIVE_MAXIMUM_EXCEEDED)
        if self.limits.publish_rate:
            self.pace(len(run.publishes))
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
        if not self.broker.allowed(allow, self.client, topic.decode()):
            return False
        cost = budget.ASKED + len(topic)
        if self._asked_bytes + cost > budget.ASKED_BYTES:
            asked.clear()
            self._asked_bytes = 0
        self._asked_bytes += cost
        asked.add(topic)
        return True

    def _deny(self, h: int, pid: bytes, topic: bytes) -> None:
        """Answer a PUBLISH that is not allowed, and not stored.

        Raises Malformed: 3.1.1 knows no answer but closing (3.3.5).
        """
        if h & 6 == 6 or h & 14 == 8:
            raise Malformed("QoS 3, or DUP with QoS 0")
        if self.limits.publish_rate:
            self.pace(1)
        self.broker.counters.denied += 1
        if self.terms.version < MQTT_5:
            raise Malformed(f"may not publish to {topic.decode()}")
        if h & 6:
            self.answer(codec.ack(codec.PUBREC if h & 4 else codec.PUBACK, pid, Reason.NOT_AUTHORIZED))

    def _turn_down(self, h: int, pid: bytes, topic: bytes, payload: bytes, block: bytes) -> bool:
        """Do not take a PUBLISH for which there is no room, unless it is a copy of what was taken.

        MQTT 5 is told so (0x97). 3.1.1 has no answer that says it: the client is read again when there is room.
        """
        session, memory, client, broker = self.session, self.memory, self.client, self.broker
        if session is None or memory is None or client is None or h & 6 == 6:
            return False
        if h & 4 and pid in session.held:
            return False
        if h & 8:
            self.prove()
            if memory.judge(pid, topic, payload, h, block) is not None:
                return False
        broker.turn_down(client, topic)
        if self.terms.version < MQTT_5:
            self.barred, self.barred_ns = topic, broker.mono_ns
            self.hold()
        else:
            if self.limits.publish_rate:
                self.pace(1)
            self.answer(codec.ack(codec.PUBREC if h & 4 else codec.PUBACK, pid, Reason.QUOTA_EXCEEDED))
        return True

    def _copy(self, h: int, pid: bytes, topic: bytes, payload: bytes, block: bytes) -> Entry | bool | None:
        """Judge a PUBLISH with DUP or of QoS 2.

        None if it is to be stored, True if its id is held (QoS 2), or what it repeats (O1); False if its id cannot be
        held. Raises Malformed for that before MQTT 5, which alone can say it.
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
            if self.broker.may_hold(session):
                self.broker.hold(session, pid)
            elif copy is None:  # a copy is answered, and judged again should it come again
                if self.terms.version < MQTT_5:
                    raise Malformed("too many messages of QoS 2 without PUBREL", Reason.QUOTA_EXCEEDED)
                return False
        return copy

    def _answer_copy(self, h: int, pid: bytes, copy: Entry | bool) -> None:  # noqa: FBT001 - see _copy
        """Owe the ack of a copy; it waits for the commit of the original (O2)."""
        broker = self.broker
        if self.limits.publish_rate:
            self.pace(1)
        if copy is False:
            self.answer(codec.ack(codec.PUBREC, pid, Reason.QUOTA_EXCEEDED))
            return
        broker.counters.duplicates += 1
        if h & 4:
            broker.counters.received_2 += 1
        else:
            broker.counters.received_1 += 1
        ticket = self.answer(codec.acks(codec.PUBREC if h & 4 else codec.PUBACK, (pid,)))
        ticket.acks += 1
        if not isinstance(copy, bool):
            if not h & 4:
                ticket.prove(copy)
            if not copy.stored:
                broker.concern(copy, self)

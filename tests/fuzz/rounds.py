"""Rounds of mutated packets against the broker without sockets; a well-behaved client among them."""

from __future__ import annotations

from collections import Counter
from random import Random

from tests.fuzz.corpus import Corpus, cut, mutate
from tests.fuzz.reachable import reachable
from tests.property.test_mqtt_server import packets_of
from tests.unit.mqtt import rig, v5
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt.limits import KIB
from waybill.mqtt.settings import Settings
from waybill.mqtt.state import SavedState
from waybill.mqtt.testing import MemorySink

SMALL = Settings(
    max_packet=4 * KIB,
    inflight=2,
    receive_maximum=5,
    topic_aliases=2,
    max_session_expiry=20,
    queue_messages=5,
    queue_bytes=8 * KIB,
    output_bytes=4 * KIB,
    uncommitted_bytes=KIB,
    retained_messages=3,
    retained_bytes=KIB,
    max_sessions=4,
    max_subscriptions=4,
    max_levels=3,
    dup_window=8,
    memory_clients=3,
    memory_entries=10,
)
"""Limits that are met all the time."""

OPEN = 6
"""Connections that send mutated packets, at a time."""


class Good:
    """A client that does all by the book: what it publishes must come back to it, in order and once a QoS."""

    def __init__(self, r: Rig, level: int) -> None:
        self.rig = r
        self.level = level
        self.wire = Wire(r)
        self.said = 0
        self.pid = 0
        self.heard: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
        self.acked: Counter[int] = Counter()
        connect, subscribe = (v5.connect, v5.subscribe) if level == 5 else (rig.connect, rig.subscribe)
        self.wire.feed(connect("well-behaved") + subscribe(("own/+", 2)))
        self.commit()
        self.listen()

    def commit(self) -> None:
        self.rig.commit()

    def listen(self) -> None:
        """Take and answer everything that came."""
        for _ in range(4):
            for head, body in packets_of(self.wire.take()):
                if head & 0xF0 == 0x30:
                    self._publish(head >> 1 & 3, body)
                elif head in (0x40, 0x70):
                    self.acked[head] += 1
                elif head == 0x50:
                    self.wire.feed(rig.pubrel(int.from_bytes(body[:2], "big")))
                elif head == 0x62:
                    self.wire.feed(rig.pubcomp(int.from_bytes(body[:2], "big")))
            self.commit()

    def _publish(self, qos: int, body: bytes) -> None:
        end = 2 + int.from_bytes(body[:2], "big")
        assert body[2:end] == b"own/%d" % qos
        if qos:
            self.wire.feed((rig.puback if qos == 1 else rig.pubrec)(int.from_bytes(body[end : end + 2], "big")))
            end += 2
        self.heard[qos].append(body[end + (self.level == 5) :])

    def talk(self) -> None:
        """Publish once at each QoS; all of it must have come back, and nothing else."""
        publish = v5.publish if self.level == 5 else rig.publish
        for qos in (0, 1, 2):
            self.said += 1
            self.pid = self.pid % 60_000 + 1
            self.wire.feed(publish(f"own/{qos}", b"%d" % self.said, qos, self.pid))
        self.commit()
        self.listen()
        assert not self.wire.closed
        assert self.heard == {qos: [b"%d" % (self.said - 2 + qos)] for qos in (0, 1, 2)}, self.heard
        assert self.acked == {0x40: 1, 0x70: 1}
        for each in self.heard.values():
            each.clear()
        self.acked.clear()


class Round:
    """One seed: a broker of its own, ``count`` mutated packets, and what is left of them afterwards: nothing."""

    def __init__(self, seed: int, count: int) -> None:
        self.chance = Random(seed)
        self.left = count
        self.outcomes: Counter[str] = Counter()
        self.rig = Rig(self.chance.choice((None, SMALL)))
        self.sink: MemorySink = self.rig.sink
        self.good = Good(self.rig, self.chance.choice((4, 5)))
        self.wires: list[tuple[Wire, Corpus]] = []

    def run(self) -> Counter[str]:
        """Do it; returns how often each outcome was."""
        self.good.talk()
        self._forget_stored()
        before = reachable(self.rig.broker)
        while self.left > 0:
            self._one()
        self._restores()
        self._clean()
        self.good.talk()
        self._forget_stored()
        after = reachable(self.rig.broker)
        assert after == before, after - before
        return self.outcomes

    def _forget_stored(self) -> None:
        self.sink.arrivals.clear()
        self.sink.changes.clear()

    def _one(self) -> None:
        """One packet on one of the connections; now and then time passes, or others speak."""
        chance = self.chance
        if len(self.wires) < OPEN and (not self.wires or chance.random() < 0.2):
            wire, corpus = Wire(self.rig), Corpus(chance, chance.choice((3, 4, 4, 5, 5, 5)))
            self.wires.append((wire, corpus))
            packet = corpus.connect()
            if chance.random() < 0.15:
                self._send(wire, mutate(chance, packet, corpus.packet()), mutated=True)
            else:
                self._send(wire, packet, mutated=False)
        else:
            wire, corpus = chance.choice(self.wires)
            packet = corpus.packet()
            if chance.random() < 0.5:
                self._send(wire, packet, mutated=False)  # so that there is a state to harm
            else:
                self._send(wire, mutate(chance, packet, corpus.packet()), mutated=True)
        some = chance.random()
        if some < 0.4:
            self.rig.commit()
        if some < 0.02:
            self.good.talk()
            self._agrees()
            self._forget_stored()
        elif some < 0.05:
            self._time()
        elif some < 0.07:
            wire = chance.choice(self.wires)[0]
            if not wire.closed:
                wire.drop()
        self.wires = [each for each in self.wires if not each[0].closed]

    def _send(self, wire: Wire, packet: bytes, *, mutated: bool) -> None:
        accepted = wire.client is not None
        for piece in cut(self.chance, packet):
            wire.feed(piece)
        if self.chance.random() < 0.5:
            wire.all_acknowledged()
        said = wire.take()
        answers = v5.packets(said) if wire.terms.version == 5 or (said[:1] == b"\x20" and said[1] > 2) else []
        heads = packets_of(said)
        assert all(head >> 4 in (2, 3, 4, 5, 6, 7, 9, 11, 13, 14) for head, _ in heads)
        if mutated:
            self.left -= 1
            self.outcomes[self._outcome(wire, accepted, answers)] += 1

    @staticmethod
    def _outcome(wire: Wire, accepted: bool, answers: list[v5.Packet]) -> str:  # noqa: FBT001 - a fact
        if wire.closed or wire.finishing:
            codes = [each.reason for each in answers if each.kind in (0x20, 0xE0) and each.reason]
            why = f"0x{codes[-1]:02x}" if codes else "no words"
            return f"{'closed' if accepted else 'refused'}: {why}"
        return "unfinished" if wire.rest is not None else "taken"

    def _time(self) -> None:
        self.rig.pass_time(self.chance.choice((0.1, 2, 30, 1_000)))
        for wire, _ in self.wires:
            reason = "" if wire.closed else wire.overdue(self.rig.broker.mono_ns)
            if reason:
                wire.close(reason)
        self.rig.broker.sweep()

    def _agrees(self) -> set[str]:
        """What is in the store is what the broker has in its memory; returns whose sessions."""
        self.rig.commit()
        broker, store = self.rig.broker, self.sink._sessions
        live = {name: each for name, each in broker.sessions.items() if each.persistent}
        assert live.keys() == store.keys()
        for name, session in live.items():
            saved = store[name]
            assert saved.subscriptions == session.subscriptions
            assert set(saved.queue) == {out.n for out in (*session.flight.values(), *session.waiting)}
            assert {pid.to_bytes(2, "big") for pid in saved.inbound} == session.held
            assert saved.expiry == session.expiry
        assert self.sink._retained.keys() == broker.retained._messages.keys()
        return set(live)

    def _restores(self) -> None:
        """A broker that begins with what is stored has the same sessions."""
        for wire, _ in self.wires:
            if not wire.closed:
                wire.drop()
        names = self._agrees()
        again = Rig(self.rig.settings, saved=_done(self.sink))
        assert again.broker.sessions.keys() == names

    def _clean(self) -> None:
        """Everybody comes once more, says that his session may go, and goes; retained messages are cleared."""
        r = self.rig
        self.wires.clear()
        r.pass_time(2**33)
        r.broker.sweep()
        r.commit()
        for name in [each for each in r.broker.sessions if each != "well-behaved"]:
            wire = Wire(r)
            wire.feed(rig.connect(name))
            r.commit()
            wire.drop()
            r.commit()
        for topic in list(self.sink._retained):
            r.broker.publish(topic.decode(), b"", 0, retain=True, after=lambda _: None)
        r.commit()
        broker = r.broker
        assert broker.sessions.keys() == {"well-behaved"}
        assert (broker.uncommitted, broker.paused, len(broker.retained)) == (0, set(), 0)
        assert self.sink._sessions == {}


def _done(sink: MemorySink) -> SavedState:
    try:
        sink.restore().send(None)
    except StopIteration as stop:
        state: SavedState = stop.value
        return state
    raise AssertionError("the store waits")

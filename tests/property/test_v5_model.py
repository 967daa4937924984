"""The broker against a model of its sessions, with clients of 3.1.1 and 5 and a clock that the test sets.

Session expiry, clean start, take-over, Receive Maximum, QoS 2 both ways, message expiry, wills with a delay, failed
commits, and a SIGKILL at any moment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.property.mqtt_model import INFLIGHT, NEVER, Model, Sent, Will
from tests.support.mqtt import read
from tests.unit.mqtt import rig, v5
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt.settings import Settings

LONG = bool(os.environ.get("WAYBILL_LONG"))
FILTERS = ("t", "+", "w/x", "w/+")
BY = st.sampled_from(("x", "y"))
somebody = precondition(lambda self: self.clients)
in_hand = precondition(lambda self: any(each.hand for each in self.clients.values()))
freed = precondition(lambda self: any(each.freed for each in self.clients.values()))
unreleased = precondition(lambda self: any(self.open[name] for name in self.clients))


@dataclass
class Client:
    """A client: what it has in hand.

    ``hand``: QoS and payload by packet id, in order; ``known``: the same, of the whole session; ``freed``: payloads
    that were released.
    """

    level: int
    wire: Wire
    hand: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    freed: dict[int, bytes] = field(default_factory=dict)
    known: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    acks: list[tuple[int, int]] = field(default_factory=list)

    def read(self) -> tuple[list[v5.Packet], list[Sent], list[bytes]]:
        """Take what the server wrote: CONNACK and DISCONNECT, PUBLISH, and what PUBREL is of."""
        other: list[v5.Packet] = []
        sent: list[Sent] = []
        released: list[bytes] = []
        for packet in read(self.level, self.wire.take()):
            if packet.kind == 0x30:
                sent.append(Sent(packet.body, packet.qos, bool(packet.flags & 8), packet.number(2)))
                if packet.qos:
                    assert packet.pid not in self.hand
                    self.hand[packet.pid] = self.known[packet.pid] = (packet.qos, packet.body)
            elif packet.kind == 0x60:
                released.append(self.known[packet.pid][1])
                self.freed[packet.pid] = self.known[packet.pid][1]
            elif packet.kind in (0x40, 0x50, 0x70, 0x90, 0xB0):
                self.acks.append((packet.kind, packet.pid))
            else:
                other.append(packet)
        return other, sent, released


class SessionMachine(RuleBasedStateMachine):
    """Two clients that come and go, and one that publishes."""

    @initialize()
    def begin(self) -> None:
        self.rig = Rig(Settings(inflight=INFLIGHT))
        self.model = Model()
        self.clients: dict[str, Client] = {}
        self.memory: dict[str, dict[int, tuple[int, bytes]]] = {"x": {}, "y": {}}
        self.open: dict[str, dict[int, bytes]] = {"x": {}, "y": {}}  # QoS 2 from a client, not released
        self.count = 0
        self.pub: Wire | None = None

    def text(self) -> bytes:
        self.count += 1
        return b"%d" % self.count

    def settle(self) -> None:
        """Commit, and compare what every client got with what the model says."""
        self.rig.commit()
        for name, client in self.clients.items():
            other, sent, released = client.read()
            assert other == []
            self.compare(name, sent, released)

    def compare(self, name: str, sent: list[Sent], released: list[bytes]) -> None:
        expected, freed = self.model.sent[name], self.model.released[name]
        old = self.clients[name].level < 5
        for quality in ((0,), (1, 2)):  # nothing says how QoS 0 goes in between
            assert [each for each in sent if each.qos in quality] == [
                Sent(each.payload, each.qos, each.dup, None) if old else each
                for each in expected
                if each.qos in quality
            ]
        assert released == freed
        expected.clear()
        freed.clear()

    # -- connections ---------------------------------------------------------------------------------------------

    @rule(
        name=BY,
        level=st.sampled_from((4, 5, 5, 5)),
        clean=st.sampled_from((False, False, False, True)),
        expiry=st.sampled_from((0, 3, 10, NEVER)),
        window=st.sampled_from((1, 2, 65_535)),
        delay=st.sampled_from((None, None, 0, 2, 6)),
    )
    def connect(self, name: str, level: int, clean: bool, expiry: int, window: int, delay: int | None) -> None:  # noqa: FBT001
        wire = Wire(self.rig)
        if level < 5:
            expiry, window, delay = 0 if clean else NEVER, 65_535, None if delay is None else 0
        will = None if delay is None else Will(self.text(), delay)
        if level < 5:
            said = (f"w/{name}", will.payload, 1, False) if will else None
            wire.feed(rig.connect(name, clean=clean, will=said))
        else:
            block = v5.delay(will.delay) if will and will.delay else b""
            last = (f"w/{name}", will.payload, 1, False, block) if will else None
            wants = v5.expiry(expiry) + v5.receive_maximum(window)
            wire.feed(v5.connect(name, wants, clean=clean, will=last))
        self.rig.commit()
        old = self.clients.pop(name, None)
        if old is not None:
            other, *_ = old.read()
            assert old.wire.closed
            assert [(each.kind, each.reason) for each in other] == ([(0xE0, 0x8E)] if old.level == 5 else [])
        present = self.model.connect(name, expiry, window, will, clean=clean)
        if not present:
            self.open[name].clear()
            self.memory[name].clear()
        client = self.clients[name] = Client(level, wire, known=self.memory[name])
        (answer, *more), sent, released = client.read()
        assert (answer.kind, answer.reason, answer.present, more) == (0x20, 0, present, [])
        self.compare(name, sent, released)

    def leave(self, name: str) -> None:
        self.clients.pop(name).wire.drop()

    @somebody
    @rule(name=BY)
    def lose(self, name: str) -> None:
        """What was on its way to the client is lost with its connection."""
        if name in self.clients:
            self.leave(name)
            self.model.lose(name)
            self.settle()

    @somebody
    @rule(name=BY, expiry=st.sampled_from((None, None, 0, 3, NEVER)), will=st.booleans())
    def disconnect(self, name: str, expiry: int | None, will: bool) -> None:  # noqa: FBT001
        client = self.clients.get(name)
        if client is None:
            return
        if client.level < 5:
            client.wire.feed(rig.DISCONNECT)
            self.model.disconnect(name, None, will=False)
        else:
            if not self.model.sessions[name].expiry:
                expiry = None  # 3.14.2.2.2
            said = b"" if expiry is None else v5.expiry(expiry)
            client.wire.feed(v5.disconnect(4 if will else 0, said))
            self.model.disconnect(name, expiry, will=will)
        del self.clients[name]
        self.settle()

    @rule(seconds=st.sampled_from((1, 1, 2, 4, 8)))
    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.rig.pass_time(1)
            self.rig.broker.sweep()
            self.model.second()
            self.settle()

    @rule()
    def kill(self) -> None:
        self.rig.restart()
        self.model.restart()
        self.clients.clear()
        self.pub = None
        self.rig.broker.sweep()
        self.settle()

    # -- subscriptions and messages to clients -------------------------------------------------------------------

    @somebody
    @rule(name=BY, pattern=st.sampled_from(FILTERS), qos=st.integers(0, 2))
    def subscribe(self, name: str, pattern: str, qos: int) -> None:
        client = self.clients.get(name)
        if client is not None:
            client.wire.feed((rig if client.level < 5 else v5).subscribe((pattern, qos), pid=9))
            self.model.sessions[name].subscriptions[pattern] = qos
            self.settle()
            assert client.acks.pop() == (0x90, 9)

    @somebody
    @rule(name=BY, pattern=st.sampled_from(FILTERS))
    def unsubscribe(self, name: str, pattern: str) -> None:
        client = self.clients.get(name)
        if client is not None:
            client.wire.feed((rig if client.level < 5 else v5).unsubscribe(pattern, pid=9))
            self.model.sessions[name].subscriptions.pop(pattern, None)
            self.settle()
            assert client.acks.pop() == (0xB0, 9)

    def publisher(self) -> Wire:
        if self.pub is None or self.pub.closed:
            self.pub = Wire(self.rig)
            self.pub.feed(v5.connect("pub"))
            self.rig.commit()
        self.pub.take()
        return self.pub

    def of_pub(self, payload: bytes, qos: int, expiry: int | None = None) -> bytes:
        said = b"" if expiry is None else v5.expires(expiry)
        ends = rig.pubrel(self.count) if qos == 2 else b""
        return v5.publish("t", payload, qos, self.count, said) + ends

    @rule(qos=st.integers(0, 2), expiry=st.sampled_from((None, None, 0, 2, 9)), count=st.integers(1, 4))
    def publish(self, qos: int, expiry: int | None, count: int) -> None:
        wire = self.publisher()
        for _ in range(count):
            text = self.text()
            wire.feed(self.of_pub(text, qos, expiry))
            self.model.publish("t", text, qos, expiry)
        self.settle()
        heads = [packet.kind for packet in v5.packets(wire.take())]
        assert (
            sorted(heads) == [[], [0x40], [0x50, 0x70]][qos] * count or sorted(heads) == [0x50] * count + [0x70] * count
        )

    @rule(qos=st.integers(0, 2))
    def publish_and_fail(self, qos: int) -> None:
        """The commit fails: it is as if nothing had been published."""
        wire = self.publisher()
        wire.feed(self.of_pub(self.text(), qos))
        self.rig.commit_one(OSError("disk"))
        assert wire.closed
        assert [each.kind for each in v5.packets(wire.take())] == [0xE0]
        self.settle()

    @rule(qos=st.integers(0, 2))
    def publish_and_kill(self, qos: int) -> None:
        """The same, killed before the commit."""
        self.publisher().feed(self.of_pub(self.text(), qos))
        self.kill()

    @in_hand
    @rule(name=BY, refuse=st.booleans())
    def answer(self, name: str, refuse: bool) -> None:  # noqa: FBT001
        """The client answers the oldest PUBLISH in its hand."""
        client = self.clients.get(name)
        if client is None or not client.hand:
            return
        pid = next(iter(client.hand))
        qos, payload = client.hand.pop(pid)
        if qos == 1:
            client.wire.feed(rig.puback(pid))
            self.model.done(name, payload)
        elif refuse and client.level == 5:
            client.wire.feed(v5.ack(0x50, pid, 0x80))
            self.model.done(name, payload)
        else:
            client.wire.feed(rig.pubrec(pid))
            self.model.received(name, payload)
        self.settle()

    @freed
    @rule(name=BY)
    def complete(self, name: str) -> None:
        client = self.clients.get(name)
        if client is not None and client.freed:
            pid, payload = client.freed.popitem()
            client.wire.feed(rig.pubcomp(pid))
            self.model.done(name, payload)
            self.settle()

    # -- QoS 2 from clients --------------------------------------------------------------------------------------

    @somebody
    @rule(name=BY)
    def send(self, name: str) -> None:
        """A new message of QoS 2."""
        client = self.clients.get(name)
        if client is not None:
            text = self.text()
            self.open[name][self.count] = text
            self.model.publish("t", text, 2, None)
            self.say(client, self.count, text, dup=False)

    @unreleased
    @rule(name=BY)
    def send_again(self, name: str) -> None:
        """A copy of one that was not released, in the same session: never stored again."""
        client = self.clients.get(name)
        if client is not None and self.open[name]:
            pid, text = next(iter(self.open[name].items()))
            self.say(client, pid, text, dup=True)

    def say(self, client: Client, pid: int, text: bytes, *, dup: bool) -> None:
        client.wire.feed((rig if client.level < 5 else v5).publish("t", text, 2, pid, dup=dup))
        self.settle()
        assert client.acks.pop() == (0x50, pid)

    @unreleased
    @rule(name=BY)
    def release(self, name: str) -> None:
        client = self.clients.get(name)
        if client is not None and self.open[name]:
            pid, _ = self.open[name].popitem()
            client.wire.feed(rig.pubrel(pid))
            self.settle()
            assert client.acks.pop() == (0x70, pid)

    # -- at any time ---------------------------------------------------------------------------------------------

    @invariant()
    def stored_is_what_was_published(self) -> None:
        if hasattr(self, "rig"):
            assert self.rig.stored == self.model.stored

    @invariant()
    def sessions_are_those_of_the_model(self) -> None:
        if hasattr(self, "rig"):
            broker = self.rig.broker
            assert broker.sessions.keys() - {"pub"} == self.model.sessions.keys()
            for name, session in self.model.sessions.items():
                there = broker.sessions[name]
                assert {pattern: options & 3 for pattern, (options, _) in there.subscriptions.items()} == (
                    session.subscriptions
                )
                assert there.held == {pid.to_bytes(2, "big") for pid in self.open[name]}
                assert there.queued == len(session.due)
                if there.persistent:
                    assert self.rig.sink._sessions[name].expiry == session.expiry
            assert (broker.uncommitted, broker.paused) == (0, set())


SessionMachine.TestCase.settings = settings(max_examples=3_000 if LONG else 120, stateful_step_count=50)
TestSessions = SessionMachine.TestCase

"""The broker under random lives of clients, lost connections, failed commits and restarts, and under any chunking.

What must hold, whatever happens: a QoS 1 or 2 message that a device saw acknowledged is stored exactly once; nothing
is stored that was not sent; what a persistent subscriber acknowledged or still has to get is every stored message of
its topic, in order, QoS 2 once.
"""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.mqtt import rig, tallies, v5
from tests.unit.mqtt.rig import Rig, Wire

LONG = bool(os.environ.get("WAYBILL_LONG"))
FAULT = OSError("disk")


def packets_of(stream: bytes) -> list[tuple[int, bytes]]:
    """Split what a server wrote into (first byte, body)."""
    found = []
    at = 0
    while at < len(stream):
        head, size, shift = stream[at], 0, 0
        at += 1
        while True:
            byte = stream[at]
            at += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        found.append((head, stream[at : at + size]))
        at += size
    return found


@dataclass
class Device:
    """A well-behaved publisher: it sends again, in order and with DUP, what was not acknowledged."""

    name: str
    clean: bool
    wire: Wire | None = None
    pid: int = 0
    open: dict[int, tuple[int, bytes, bool]] = field(default_factory=dict)  # id: QoS, payload, PUBREC seen
    acked: list[bytes] = field(default_factory=list)

    def read(self) -> None:
        """Take the server's answers; a broken connection's are lost."""
        if self.wire is None:
            return
        for head, body in packets_of(self.wire.take()):
            pid = int.from_bytes(body[:2], "big")
            if head == 0x40:
                self.acked.append(self.open.pop(pid)[1])
            elif head == 0x50 and pid in self.open:
                qos, payload, _ = self.open[pid]
                self.open[pid] = (qos, payload, True)
                self.wire.feed(rig.pubrel(pid))
            elif head == 0x70 and pid in self.open:
                self.acked.append(self.open.pop(pid)[1])
        if self.wire.shut_down:
            self.wire = None


class BrokerMachine(RuleBasedStateMachine):
    """Two devices and one persistent subscriber."""

    @initialize()
    def begin(self) -> None:
        self.rig = Rig()
        self.devices = [Device("clean", True), Device("persistent", False)]
        self.count = 0
        self.sub: Wire | None = None
        self.heard: list[tuple[int, bytes]] = []
        self.held: dict[int, bytes] = {}
        self.sub_connects()
        assert self.sub is not None
        self.sub.feed(rig.subscribe(("t", 2)))
        self.rig.commit()
        self.sub_reads()

    def now(self, device: Device) -> None:
        """What the device's TCP has taken so far counts as acknowledged: it reads at once or never."""
        device.read()
        if device.wire is not None:
            device.wire.all_acknowledged()

    @rule(which=st.integers(0, 1))
    def connect(self, which: int) -> None:
        device = self.devices[which]
        device.wire = Wire(self.rig)
        device.wire.feed(rig.connect(device.name, clean=device.clean))
        for pid, (qos, payload, received) in device.open.items():
            if received and not device.clean:
                device.wire.feed(rig.pubrel(pid))
            else:
                device.wire.feed(rig.publish("t", payload, qos, pid, dup=True))

    @rule(which=st.integers(0, 1), qos=st.sampled_from([1, 2]), count=st.integers(1, 3))
    def publish(self, which: int, qos: int, count: int) -> None:
        device = self.devices[which]
        if device.wire is None:
            return
        stream = b""
        for _ in range(count):
            device.pid += 1
            self.count += 1
            device.open[device.pid] = (qos, b"%d" % self.count, False)
            stream += rig.publish("t", b"%d" % self.count, qos, device.pid)
        device.wire.feed(stream)

    @rule()
    def commit(self) -> None:
        if self.rig.broker.pending.woken:
            self.rig.commit_one()

    @rule()
    def read(self) -> None:
        for device in self.devices:
            self.now(device)

    @rule()
    def fail(self) -> None:
        if self.rig.broker.pending.woken:
            self.rig.commit_one(FAULT)
        if self.sub is not None and self.sub.shut_down:
            self.sub = None
        for device in self.devices:
            self.now(device)

    @rule(which=st.integers(0, 1))
    def lose(self, which: int) -> None:
        """The connection breaks; what the server wrote meanwhile never arrives."""
        device = self.devices[which]
        if device.wire is not None:
            device.wire.drop()
            device.wire = None

    @rule()
    def restart(self) -> None:
        self.rig.restart()
        self.sub = None
        for device in self.devices:
            device.wire = None

    @precondition(lambda self: self.sub is None)
    @rule()
    def sub_connects(self) -> None:
        self.sub = Wire(self.rig)
        self.sub.feed(rig.connect("sub", clean=False))

    @precondition(lambda self: self.sub is not None)
    @rule()
    def sub_reads(self) -> None:
        """The subscriber takes and answers everything."""
        assert self.sub is not None
        for head, body in packets_of(self.sub.take()):
            if head & 0xF0 == 0x30:
                qos, pid, payload = head >> 1 & 3, int.from_bytes(body[3:5], "big"), body[5:]
                if qos == 1:
                    self.heard.append((1, payload))
                    self.sub.feed(rig.puback(pid))
                else:
                    if pid not in self.held:
                        self.heard.append((2, payload))
                    assert self.held.setdefault(pid, payload) == payload
                    self.sub.feed(rig.pubrec(pid))
            elif head == 0x62:
                self.held.pop(int.from_bytes(body, "big"), None)
                self.sub.feed(rig.pubcomp(int.from_bytes(body, "big")))

    @precondition(lambda self: self.sub is not None)
    @rule()
    def sub_is_lost(self) -> None:
        assert self.sub is not None
        self.sub.drop()
        self.sub = None

    @invariant()
    def acknowledged_is_stored_once(self) -> None:
        if not hasattr(self, "rig"):
            return
        stored = self.rig.stored
        assert len(stored) == len(set(stored))
        for device in self.devices:
            assert set(device.acked) <= set(stored)
            assert len(device.acked) == len(set(device.acked))

    @invariant()
    def nothing_is_left_uncounted(self) -> None:
        if hasattr(self, "rig"):
            tallies.check(self.rig.broker)

    def teardown(self) -> None:
        """In the end everybody connects, and everything arrives."""
        if not hasattr(self, "rig"):
            return
        self.rig.restart()
        for which, device in enumerate(self.devices):
            device.wire = None
            self.connect(which)
        self.sub_connects()
        for _ in range(8):
            self.rig.commit()
            self.read()
            self.sub_reads()
        stored = self.rig.stored
        assert all(not device.open for device in self.devices)
        assert sorted(map(int, stored)) == sorted(int(each) for device in self.devices for each in device.acked)
        second = [payload for qos, payload in self.heard if qos == 2]
        assert len(second) == len(set(second))
        assert {payload for _, payload in self.heard} == set(stored)
        firsts = list(dict.fromkeys(payload for _, payload in self.heard))
        for qos in (1, 2):
            of_qos = {payload for each, payload in self.heard if each == qos}
            assert [each for each in firsts if each in of_qos] == [each for each in stored if each in of_qos]


BrokerMachine.TestCase.settings = settings(max_examples=1_500 if LONG else 100, stateful_step_count=40, deadline=None)
TestBroker = BrokerMachine.TestCase


@settings(max_examples=1_000 if LONG else 60, deadline=None)
@given(
    messages=st.lists(
        st.tuples(
            st.sampled_from(["t", "a/b", "ä/ö"]),
            st.integers(0, 300).map(lambda size: b"x" * size),
            st.integers(0, 2),
            st.booleans(),
            st.sampled_from([b"", rig.PING, rig.pubrel(999)]),
        ),
        max_size=12,
    ),
    cuts=st.integers(0, 2**32),
)
def test_any_chunking_stores_and_answers_the_same(
    messages: list[tuple[str, bytes, int, bool, bytes]], cuts: int
) -> None:
    stream = rig.connect() + b"".join(
        rig.publish(topic, payload, qos, n, retain=retain) + extra
        for n, (topic, payload, qos, retain, extra) in enumerate(messages, 1)
    )
    whole, parts = Rig(), Rig()
    one, other = Wire(whole), Wire(parts)
    one.feed(stream)
    rest = deque(stream)
    chance = random.Random(cuts)
    while rest:
        other.feed(bytes(rest.popleft() for _ in range(min(len(rest), chance.randint(1, 40)))))
    whole.commit()
    parts.commit()
    assert sorted(packets_of(one.take())) == sorted(packets_of(other.take()))
    assert parts.sink.messages == whole.sink.messages == [("dev", t.encode(), p) for t, p, *_ in messages]
    assert b"".join(each.raw for each in parts.sink.arrivals) == b"".join(each.raw for each in whole.sink.arrivals)


STREAMS = {
    4: (
        rig.connect(will=("w", b"gone", 1, True))
        + rig.subscribe(("a/#", 1))
        + rig.publish("a/b", b"payload", 1, 1)
        + rig.publish("a/b", b"payload", 2, 2, retain=True)
        + rig.pubrel(2)
        + rig.puback(1)
        + rig.unsubscribe("a/#")
        + rig.PING
    ),
    5: (
        v5.connect("dev", v5.expiry(5) + v5.alias_maximum(3), will=("w", b"gone", 1, True, v5.delay(1) + v5.CONTENT))
        + v5.subscribe(("a/#", 1 | 8), ("$share/g/b", 2), properties=v5.identifier(300))
        + v5.publish("a/b", b"payload", 1, 1, v5.alias(1) + v5.expires(9) + v5.user("a", "b"))
        + v5.publish("", b"payload", 2, 2, v5.alias(1) + v5.RESPONSE + v5.CORRELATION, retain=True)
        + rig.pubrel(2)
        + v5.ack(0x40, 1, 0x80)
        + v5.unsubscribe("a/#")
        + rig.PING
        + v5.disconnect(4, v5.expiry(9))
    ),
}


@pytest.mark.parametrize("version", [4, 5])
@settings(max_examples=20_000 if LONG else 300, deadline=None)
@given(data=st.data())
def test_mutated_streams_harm_nobody_else(version: int, data: st.DataObject) -> None:
    stream = bytearray(STREAMS[version])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                stream[at] = data.draw(st.integers(0, 255))
            case 1:
                del stream[at]
            case _:
                stream.insert(at, data.draw(st.integers(0, 255)))
    r = Rig()
    other = r.client("other")
    victim = Wire(r)
    victim.feed(bytes(stream))
    r.commit()
    victim.drop()
    r.commit()
    r.pass_time(100)
    r.broker.sweep()
    r.commit()
    assert other(rig.PING) == rig.PONG
    tallies.check(r.broker, [victim, other])
    assert r.broker.uncommitted == r.broker.buffers.used == 0
    assert all(session.connection is None for name, session in r.broker.sessions.items() if name != "other")
    r.restart()
    r.broker.sweep()
    r.commit()

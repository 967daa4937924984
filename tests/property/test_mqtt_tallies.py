"""What is counted as used of a limit is there, and what is there is counted, whatever clients and the store do."""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.mqtt import rig, tallies, v5
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt import budget
from waybill.mqtt.settings import Client, Hooks, Settings

LONG = bool(os.environ.get("WAYBILL_LONG"))
NAMES = ("a", "b", "c")
FILTERS = ("t/1", "t/+", "#", "$share/g/t/#", "w")

who = st.sampled_from(NAMES)
topics = st.sampled_from(["t/1", "t/2", "w"])


class Tallies(RuleBasedStateMachine):
    """Three clients of either version, limits that are soon reached."""

    @initialize()
    def begin(self) -> None:
        self.denied: set[str] = set()
        self.wires: list[Wire] = []
        self.on: dict[str, Wire] = {}
        self.pid = 0
        self.rig = Rig(
            Settings(
                queue_messages=6,
                queue_bytes_all=12 * (budget.QUEUED + 30),
                subscription_bytes=6 * budget.subscription("t/1"),
                max_subscriptions=3,
                max_held=4,
                max_held_all=8,
                will_bytes=2 * budget.will(b"w", b"x" * 100, b""),
                route_bytes=3 * budget.ROUTE,
                retained_messages=2,
                dup_window=6,
                memory_clients=1,
                memory_entries=4,
                memory_entries_all=40,
                buffer_bytes_all=12_000,
                inflight=3,
            ),
            Hooks(authorize_subscribe=self.allow),
        )

    def allow(self, _: Client, pattern: str) -> bool:
        return pattern not in self.denied

    def feed(self, name: str, packet: bytes) -> None:
        wire = self.on.get(name)
        if wire is not None and not wire.shut_down:
            wire.feed(packet)

    def packet_id(self) -> int:
        self.pid = self.pid % 65_535 + 1
        return self.pid

    @rule(
        name=who, five=st.booleans(), clean=st.booleans(), delay=st.sampled_from([None, 0, 5]), size=st.integers(0, 200)
    )
    def connect(self, name: str, *, five: bool, clean: bool, delay: int | None, size: int) -> None:
        wire = self.on[name] = Wire(self.rig)
        wire.tcp = None  # nothing proves an ack: memories grow
        self.wires.append(wire)
        will = None if delay is None else ("w", b"x" * size, 1, False)
        if five:
            five_will = None if will is None else (*will, v5.delay(delay or 0))
            wire.feed(v5.connect(name, v5.expiry(10), clean=clean, will=five_will))
        else:
            wire.feed(rig.connect(name, clean=clean, will=will))

    @rule(name=who, pattern=st.sampled_from(FILTERS), qos=st.integers(0, 2))
    def subscribe(self, name: str, pattern: str, qos: int) -> None:
        five = name in self.on and self.on[name].terms.version == 5
        self.feed(name, v5.subscribe((pattern, qos)) if five else rig.subscribe((pattern, qos)))

    @rule(name=who, pattern=st.sampled_from(FILTERS))
    def unsubscribe(self, name: str, pattern: str) -> None:
        five = name in self.on and self.on[name].terms.version == 5
        self.feed(name, v5.unsubscribe(pattern) if five else rig.unsubscribe(pattern))

    @rule(pattern=st.sampled_from(FILTERS))
    def forbid(self, pattern: str) -> None:
        self.denied ^= {pattern.removeprefix("$share/g/")}

    @rule(name=who, topic=topics, qos=st.integers(0, 2), retain=st.booleans(), again=st.booleans())
    def publish(self, name: str, topic: str, qos: int, *, retain: bool, again: bool) -> None:
        five = name in self.on and self.on[name].terms.version == 5
        pid = (self.pid or 1) if again else self.packet_id()
        make = v5.publish if five else rig.publish
        self.feed(name, make(topic, b"x" * (pid % 9), qos, pid, retain=retain, dup=again and qos > 0))

    @rule(name=who, back=st.integers(0, 8))
    def release(self, name: str, back: int) -> None:
        self.feed(name, rig.pubrel(max(1, self.pid - back)))

    @rule(name=who, kind=st.sampled_from([0x40, 0x50, 0x70]), pid=st.integers(1, 12))
    def acknowledge(self, name: str, kind: int, pid: int) -> None:
        self.feed(name, rig.ack(kind, pid))

    @rule(name=who, size=st.integers(1, 9_000))
    def begin_a_packet(self, name: str, size: int) -> None:
        self.feed(name, rig.packet(0x30, rig.text("t/1") + b"\0" + b"x" * 10_000)[:size])

    @rule(name=who)
    def disconnect(self, name: str) -> None:
        self.feed(name, rig.DISCONNECT)
        self.on.pop(name, None)

    @rule(name=who)
    def lose(self, name: str) -> None:
        wire = self.on.pop(name, None)
        if wire is not None:
            wire.drop()

    @rule(seconds=st.sampled_from([1, 6, 11]))
    def wait(self, seconds: int) -> None:
        self.rig.pass_time(seconds)
        self.rig.broker.sweep()
        self.rig.broker.relieve()

    @rule(fails=st.booleans())
    def commit(self, *, fails: bool) -> None:
        broker = self.rig.broker
        if broker.committing is not None:
            if fails:
                broker.failed(broker.committing, OSError("disk"))
            else:
                self.store()
        elif broker.pending.woken:
            broker.cut()

    def store(self) -> None:
        pending = self.rig.broker.committing
        assert pending is not None
        try:
            self.rig.sink.commit(pending.batch).send(None)
        except StopIteration:
            self.rig.broker.committed(pending)

    @rule()
    def restart(self) -> None:
        self.rig.restart()
        self.wires.clear()
        self.on.clear()

    @invariant()
    def what_is_counted_is_there(self) -> None:
        if hasattr(self, "rig"):
            self.wires = [wire for wire in self.wires if not wire.closed]
            tallies.check(self.rig.broker, self.wires)

    def teardown(self) -> None:
        """In the end everybody leaves for good."""
        if not hasattr(self, "rig"):
            return
        self.denied.clear()
        for name in NAMES:
            self.connect(name, five=False, clean=True, delay=None, size=0)
            self.disconnect(name)
        while self.rig.broker.committing is not None or self.rig.broker.pending.woken:
            self.commit(fails=False)
        for wire in self.wires:
            wire.drop()
        self.what_is_counted_is_there()
        broker = self.rig.broker
        used = (broker.queues, broker.filters, broker.held, broker.wills, broker.buffers)
        assert [each.used for each in used] == [0] * 5
        assert not broker.sessions
        assert broker.uncommitted == 0


Tallies.TestCase.settings = settings(max_examples=1_500 if LONG else 150, stateful_step_count=60, deadline=None)
TestTallies = Tallies.TestCase

"""The resend memory against a model that keeps every message in a list and applies O1-O3 word by word."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from waybill.mqtt import resend
from waybill.mqtt.resend import ClientMemory, Commit

PIDS = st.integers(1, 4)
PAYLOADS = st.sampled_from([b"a", b"b", b"c"])


@dataclass(eq=False)
class Message:
    pid: int
    payload: bytes
    commit: Commit
    end: int | None = None
    frozen: bool = False
    reacked: int | None = None


class ResendMachine(RuleBasedStateMachine):
    """Random life of one client: reads, commits, acks, proofs, lost and ended connections, failed commits."""

    @initialize(window=st.sampled_from([3, 6, 1000]), fold=st.booleans())
    def begin(self, window: int, fold: bool) -> None:  # noqa: FBT001 - drawn
        self.window = window
        self.memory = ClientMemory(window)
        self.size = resend.FOLD_BYTES + 1 if fold else 10
        self.model: list[Message] = []
        self.open: list[tuple[Commit, list[resend.Chunk]]] = [(Commit(), [])]
        self.written = 0
        self.acked = 0

    def forget(self, gone: list[Message]) -> None:
        self.model = [each for each in self.model if each not in gone]

    @rule(messages=st.lists(st.tuples(PIDS, PAYLOADS), min_size=1, max_size=4))
    def publish(self, messages: list[tuple[int, bytes]]) -> None:
        commit, chunks = self.open[-1]
        publishes = [(b"t", payload, 2, pid.to_bytes(2, "big"), 0, 0, b"") for pid, payload in messages]
        chunks.append(self.memory.add(publishes, len(publishes), self.size, commit))
        for pid, payload in messages:
            self.forget([each for each in self.model if each.frozen and each.pid == pid])
            self.model.append(Message(pid, payload, commit))
        del self.model[: max(0, len(self.model) - self.window)]

    @rule()
    def commit(self) -> None:
        """The commit returns and its acks are written."""
        commit, chunks = self.open.pop(0)
        commit.open = False
        self.open = self.open or [(Commit(), [])]
        self.written += 4
        for chunk in chunks:
            chunk.end = self.written
        for each in self.model:
            if each.commit is commit and not each.frozen:
                each.end = self.written

    @rule()
    def next_batch(self) -> None:
        if len(self.open) < 2:
            self.open.append((Commit(), []))

    @rule()
    def fail(self) -> None:
        commit, _ = self.open.pop(0)
        self.open = self.open or [(Commit(), [])]
        self.memory.failed(commit)
        self.forget([each for each in self.model if each.commit is commit])

    @rule(part=st.integers(0, 4))
    def prove(self, part: int) -> None:
        self.acked = max(self.acked, self.written * part // 4)
        self.memory.prove(self.acked)
        self.forget(
            [
                each
                for each in self.model
                if (not each.frozen and each.end is not None and each.end <= self.acked)
                or (each.frozen and each.reacked is not None and each.reacked <= self.acked)
            ]
        )

    @rule(pid=PIDS, payload=PAYLOADS)
    def resend(self, pid: int, payload: bytes) -> None:
        copy = self.memory.judge(pid.to_bytes(2, "big"), b"t", payload, 10)
        same_id = [each for each in self.model if each.pid == pid]
        same_content = [each for each in self.model if each.payload == payload]
        expected = same_id[-1] if same_id and same_content == [same_id[-1]] else None
        assert (copy is None) == (expected is None)
        if copy is not None and expected is not None:
            assert copy.stored is not expected.commit.open
            if copy.stored:
                self.written += 4
                self.memory.reacknowledged(copy, self.written)
                if expected.frozen and expected.reacked is None:
                    expected.reacked = self.written

    @rule(disconnect=st.booleans())
    def connection_ends(self, disconnect: bool) -> None:  # noqa: FBT001 - drawn
        if disconnect:
            self.memory.disconnected()
            self.forget([each for each in self.model if not each.commit.open])
        self.memory.freeze()
        self.written = self.acked = 0
        for _, chunks in self.open:
            chunks.clear()
        for each in self.model:
            each.frozen, each.end, each.reacked = True, None, None
        newest = {each.pid: each for each in self.model}
        self.model = [each for each in self.model if newest[each.pid] is each]
        assert self.memory.saved() == tuple(
            (each.pid, resend.fingerprint(b"t", each.payload, 2)) for each in self.model
        )

    @invariant()
    def same_size(self) -> None:
        if hasattr(self, "memory"):
            assert len(self.memory) == len(self.model) <= self.window


ResendMachine.TestCase.settings = settings(
    max_examples=2_000 if os.environ.get("WAYBILL_LONG") else 150, stateful_step_count=40, deadline=None
)
TestResend = ResendMachine.TestCase

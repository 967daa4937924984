"""Any journal through the router: each message once, in order within its fifo lane, or declared (R3, R4, R7, E2, B5).

A gateway of several starts sends its messages in frames that are cut anew at each sending, lost on the way, doubled
and overtaken; some messages are declared by receipts, some frames do not decode; the router is killed before and
after commits and plans with any limit. What is lost on the way is sent again until it is journaled, as a gateway
does.
"""

import os
import random
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_ingest.audit import report
from cloud_ingest.journal.port import JournalRecord
from cloud_ingest.router.ledger import Ledger
from tests.support.gateway import Bench, Epoch, control, expected, receipt, values
from waybill.frames import Order

LONG = os.environ.get("WAYBILL_LONG") == "1"
EXAMPLES = 5_000 if LONG else 250


@dataclass
class Journal:
    """What the listener journaled of one gateway, in order, and what is true of it."""

    frames: list[bytes] = field(default_factory=list)
    sent: list[tuple[int, int]] = field(default_factory=list)
    declared: set[tuple[int, int]] = field(default_factory=set)
    broken: set[tuple[int, int]] = field(default_factory=set)


def spoil(frame: bytes) -> bytes:
    """Give a frame a body of an unknown codec: its header stays readable, its checksum right."""
    return frame[:3] + b"\x63" + frame[4:]


def cut(rng: random.Random, first: int, last: int) -> list[tuple[int, int]]:
    parts = []
    while first <= last:
        end = min(last, first + rng.randrange(1, 5) - 1)
        parts.append((first, end))
        first = end + 1
    return parts


def journal_of(rng: random.Random, epochs: int, order: Order, *, receipts: bool, broken: bool, clone: bool) -> Journal:
    """Journal all messages of ``epochs`` starts, in a random and wasteful way."""
    made = Journal()
    lengths = [rng.randrange(1, 9) for _ in range(epochs)]
    control_seq = 0
    for number, length in enumerate(lengths):
        prev, prev_last = (number, lengths[number - 1]) if number else (0, 0)
        if clone and number == epochs - 1 and number > 1:
            prev, prev_last = number - 1, lengths[number - 2]  # a second successor of one epoch
        epoch = Epoch(number + 1, prev, prev_last, oldest=1, order=order)
        made.sent += [(epoch.epoch, seq) for seq in range(1, length + 1)]
        frames = []
        for _ in range(rng.randrange(1, 4)):
            frames += [epoch.frame(*part) for part in cut(rng, 1, length) if rng.random() < 0.7]
        frames += [epoch.frame(*part) for part in cut(rng, 1, length)]  # the last sending is complete
        if receipts and rng.random() < 0.5:
            first = rng.randrange(1, length + 1)
            last = rng.randrange(first, length + 1)
            control_seq += 1
            frames.append(control(100, control_seq, receipt(epoch, first, last)))
            made.declared |= {(epoch.epoch, seq) for seq in range(first, last + 1)}
        if broken and rng.random() < 0.3:
            at = rng.randrange(1, length + 1)
            frames.append(spoil(epoch.frame(at, at)))
            made.broken.add((epoch.epoch, at))
        made.frames += frames
    reach = rng.choice([0, 2, 5, 50])
    keyed = [(at + rng.uniform(0, reach), frame) for at, frame in enumerate(made.frames)]
    made.frames = [frame for _, frame in sorted(keyed, key=lambda pair: pair[0])]
    return made


def run(rng: random.Random, journal: Journal) -> Bench:
    """Route ``journal`` with crashes before and after commits; then let all bounds pass."""
    bench = Bench()
    fed = 0
    for _ in range(20 * len(journal.frames)):
        if fed == len(journal.frames) and bench.state.position == fed and not bench.state.unfinished:
            break
        for _ in range(min(rng.randrange(0, 4), len(journal.frames) - fed)):
            bench.journal.append(JournalRecord(0, fed, bench.now, "gw", journal.frames[fed]))
            fed += 1
        bench.now += 1
        limit = rng.choice([None, None, 1, 2, 5])
        plan = bench.plan(at_end=True, limit=limit)
        if plan is not None and rng.random() < 0.8:  # else: killed before the commit
            bench.commit(plan)
            assert Ledger.load(bench.ledger, 0).entries == bench.state.ledger.entries
        if rng.random() < 0.2:
            bench.restart()
    bench.step(at_end=True)
    return bench


SEEDS = st.integers(0, 2**32)
COMMON = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@COMMON
@given(SEEDS, st.integers(1, 4))
def test_each_message_once_and_in_order_within_a_fifo_lane(seed: int, epochs: int) -> None:
    rng = random.Random(seed)
    journal = journal_of(rng, epochs, "fifo", receipts=False, broken=False, clone=False)
    bench = run(rng, journal)
    assert values(bench.written) == [f"{epoch}:{seq}" for epoch, seq in journal.sent]
    assert bench.state.counters.given_up == 0
    assert bench.state.committed == len(journal.frames)


@COMMON
@given(SEEDS, st.integers(1, 4), st.sampled_from(["fifo", "fresh-first", "arrival"]))
def test_each_message_once_or_declared_whatever_happens(seed: int, epochs: int, order: Order) -> None:
    rng = random.Random(seed)
    journal = journal_of(rng, epochs, order, receipts=True, broken=True, clone=True)
    bench = run(rng, journal)
    bench.now += 60_000
    bench.step(at_end=True)
    delivered = values(bench.written)
    assert len(delivered) == len(set(delivered)), "a message came twice"
    gone = {f"{epoch}:{seq}" for epoch, seq in journal.sent} - set(delivered)
    assert gone <= {f"{epoch}:{seq}" for epoch, seq in journal.declared | journal.broken}, "lost and not declared"
    found = report(bench.ledger)
    assert found.missing == 0
    lanes = [lane for lane in found.lanes if lane.lane == "telemetry"]
    assert sum(lane.delivered for lane in lanes) == len(delivered)
    assert sum(lane.dropped + lane.dead for lane in lanes) == len(gone)
    assert sum(lane.pending for lane in lanes) == 0
    assert bench.state.held.frames == {}
    assert bench.state.held.size == 0
    assert bench.state.committed == len(journal.frames)


@COMMON
@given(SEEDS)
def test_order_holds_on_both_sides_of_what_was_given_up(seed: int) -> None:
    """Frames that never come: their gap is given up, what follows keeps its order, and the audit names the gap."""
    rng = random.Random(seed)
    epoch = Epoch(1, oldest=1)
    parts = cut(rng, 1, 20)
    lost = {part for part in parts if rng.random() < 0.3}
    journal = Journal([epoch.frame(*part) for part in parts if part not in lost])
    bench = run(rng, journal)
    bench.now += 60_000
    bench.step(at_end=True)
    there = [seq for part in parts if part not in lost for seq in expected(1, *part)]
    assert values(bench.written) == there
    highest = max((part[1] for part in parts if part not in lost), default=0)
    assert report(bench.ledger).missing == sum(b - a + 1 for a, b in lost if b < highest)

"""Judging a run: its ledger is read, the topics are read back, the cloud's ledger is asked, a report is made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from fleet_simulator import checks
from fleet_simulator.accounts import LaneAudit
from fleet_simulator.ledger import (
    ACKED,
    About,
    Asked,
    Behind,
    Command,
    Content,
    Counted,
    End,
    Item,
    Note,
    Sample,
    Stream,
    Torn,
    read,
)
from fleet_simulator.processes import waybill
from fleet_simulator.readback import read_audit, read_line, read_topic
from fleet_simulator.report.model import VERSION, Counts, Event, Latency, Report
from fleet_simulator.report.series import Latencies, Line, Samples
from fleet_simulator.verdict import Comparison, Verdict, VerdictCounts
from waybill.errors import ConfigError, Unavailable

LEDGER: Final = "ledger"
"""The ledger's file in the directory of a run."""

EVENTS: Final = 2000
"""Events of a report at most; the rest is counted in ``left_out``."""

STREAMS: Final = 100_000
"""Streams of a report at most, the worst first."""

LINES: Final = 200
"""Lines of samples at most."""

_PAUSE: Final = 0.5


class Facts(msgspec.Struct, frozen=True):
    """What :meth:`fleet_simulator.ledger.Ledger.about` said, as far as a verdict needs it."""

    scenario: str = ""
    topics: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    waybill: bool = True
    unordered: tuple[str, ...] = ()
    real_time: bool = True


@dataclass(slots=True)
class Run:
    """What a ledger says besides its messages."""

    facts: Facts
    said: dict[str, str]
    events: list[Event] = field(default_factory=list)
    samples: dict[tuple[str, str], Samples] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    counted: dict[tuple[str, str], Counted] = field(default_factory=dict)
    commands: checks.Sent = field(default_factory=checks.Sent)
    left_out: dict[str, int] = field(default_factory=dict)
    began_ns: int = 0
    ended_ns: int = 0
    ended: bool = False
    torn: Torn | None = None

    def take(self, item: Item) -> None:
        """Note one item."""
        match item:
            case Note():
                self._note(item)
            case Sample():
                self._sample(item)
            case Asked():
                self.asked.append(item)
            case Counted(counter, subject, _):
                self.counted[counter, subject] = item
            case Command():
                self.commands.take(item)
            case End():
                self.ended = True
            case Torn():
                self.torn = item
            case _:
                pass

    def _note(self, note: Note) -> None:
        self._at(note.at_ns)
        if len(self.events) < EVENTS:
            self.events.append(Event(note.at_ns // 1_000_000, note.kind, note.subject, note.text))
        else:
            self.left_out["events"] = self.left_out.get("events", 0) + 1

    def _sample(self, sample: Sample) -> None:
        self._at(sample.at_ns)
        samples = self.samples.get((sample.name, sample.subject))
        if samples is None and len(self.samples) < LINES:
            samples = self.samples[sample.name, sample.subject] = Samples()
        if samples is None:
            self.left_out["samples"] = self.left_out.get("samples", 0) + 1
        else:
            samples.add(sample.at_ns // 1_000_000, sample.value)

    def _at(self, at_ns: int) -> None:
        self.began_ns = self.began_ns or at_ns
        self.ended_ns = max(self.ended_ns, at_ns)


def ledger_of(path: Path) -> Path:
    """Return the ledger that ``path`` means: itself, or the one in that directory."""
    return path / LEDGER if path.is_dir() else path


def facts_of(path: Path) -> Facts:
    """Return what a ledger says of its run. Raises ConfigError, Corrupt."""
    return _facts(path, _said(path))


def _said(path: Path) -> dict[str, object]:
    said: dict[str, object] = {}
    for block in read(path):
        said |= {item.name: msgspec.msgpack.decode(item.value) for item in block.items if isinstance(item, About)}
    return said


def _facts(path: Path, said: dict[str, object]) -> Facts:
    try:
        return msgspec.convert(said, Facts)
    except msgspec.ValidationError as error:
        raise ConfigError(f"ledger {path}: what it says of the run: {error}") from error


def load(path: Path) -> tuple[Run, Comparison]:
    """Read a ledger. Raises ConfigError, Corrupt, Refused."""
    said = _said(path)
    facts = _facts(path, said)
    run = Run(facts, {name: value if isinstance(value, str) else _json(value) for name, value in said.items()})
    comparison = Comparison(waybill=facts.waybill, unordered=facts.unordered)
    streams: list[tuple[str, str]] = []
    for block in read(path):
        for item in block.items:
            if isinstance(item, Stream):
                streams.append((item.vehicle, item.stream))
            elif isinstance(item, Behind):
                comparison.behind(item.vehicle, item.gateway)
            elif not isinstance(item, Content):
                run.take(item)
        for tag, count, first, _ in block.spans():
            mark = comparison.acked if tag & 1 == ACKED else comparison.published
            mark(*streams[tag >> 1], first, first + count - 1)
        for item in block.items:
            if isinstance(item, Content):
                comparison.content(*streams[item.number], item.first, item.digests)
    return run, comparison


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


class Source:
    """Where the records are: the topics of a deployment, or of any Kafka."""

    def __init__(self, where: Sequence[str], topics: Sequence[str], *, audited: bool) -> None:
        """``where``: the options of ``waybill cloud tail`` that say which deployment. ``audited``: it is Waybill's."""
        self._where = tuple(where)
        self._topics = tuple(topics)
        self._audited = audited

    async def read(self, comparison: Comparison, latencies: Latencies, patience: float) -> int:
        """Read all topics to their ends; return the number of records. Raises Unavailable."""
        count = 0
        for topic in self._topics:
            tail = waybill("cloud", "tail", topic, "--json", "--end", "--header", "ce_id", *self._where)
            count += await read_topic(comparison, tail, patience, latencies.add)
        return count

    async def audit(self, patience: float) -> tuple[LaneAudit, ...] | None:
        """Ask the cloud's own ledger. Raises Unavailable."""
        if not self._audited:
            return None
        return await read_audit(waybill("cloud", "audit", "--json", *self._where), patience)


class Lines:
    """Records as ``waybill cloud tail --json`` has printed them, from a file."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        """``lines``: gone through each time that they are read."""
        self._lines = lines

    async def read(self, comparison: Comparison, latencies: Latencies, _patience: float) -> int:
        """Read all lines; return how many there were."""
        count = 0
        for line in self._lines:
            read_line(comparison, line, latencies.add)
            count += 1
        return count

    async def audit(self, _patience: float) -> None:
        """Return nothing: a file cannot be asked."""


async def judge(
    path: Path, source: Source | Lines | None = None, *, drain: float = 0.0, silence: float = 120.0
) -> Report:
    """Judge the run whose ledger or directory ``path`` is.

    ``source``: where the records are, by default where the ledger says. ``drain``: seconds in which it is read again
    while something is missing, or more comes; the last time begins when they are over. ``silence``: seconds that a
    reader may say nothing.
    Raises ConfigError, Corrupt, Refused, Unavailable.
    """
    run, comparison = await asyncio.to_thread(load, ledger_of(path))
    if source is None:
        if not (run.facts.source and run.facts.topics):
            raise ConfigError(
                f"{path}: the ledger does not say where the records are: give RECORDS, or --topic and --bootstrap"
            )
        source = Source(run.facts.source, run.facts.topics, audited=run.facts.waybill)
    end = time.monotonic() + drain
    before = -1
    while True:
        # Reading takes its time. A look that began before the end has not seen what came while it lasted.
        last = time.monotonic() >= end
        latencies = Latencies(real_time=run.facts.real_time)
        try:
            count = await source.read(comparison, latencies, silence)
            audits = await source.audit(silence)
        except Unavailable:
            if last:
                raise
        else:
            verdict = comparison.verdict(audits, whole=run.ended and run.torn is None)
            waiting = verdict.lost or verdict.disagreeing or any(one.pending for one in audits or ())
            # The cloud's ledger knows of all that is there; elsewhere only a second look tells that nothing more comes.
            if last or (not waiting and (audits is not None or count == before)):
                return report(run, verdict, audits, latencies, count)
            before = count
        await asyncio.sleep(_PAUSE)
        comparison.again()


def report(
    run: Run, verdict: Verdict, audits: Sequence[LaneAudit] | None, latencies: Latencies, records: int
) -> Report:
    """Make the report of a run."""
    effects = run.commands.effects()
    faults = checks.counters(run.asked, run.counted.values())
    found = checks.checks(verdict, audits, effects, faults, ended=run.ended, torn=run.torn)
    word = checks.outcome(found)
    streams = sorted(verdict.streams, key=lambda one: (-one.wrong, -one.declared, one.gateway, one.vehicle, one.stream))
    left_out = dict(run.left_out)
    if len(streams) > STREAMS:
        left_out["streams"] = len(streams) - STREAMS
    commands = ""
    if effects.sent:
        commands = f" commands={effects.done + effects.expired}/{effects.sent}"
    latency = None
    if shares := latencies.overall(0.5, 0.95, 0.99, 1.0):
        p50, p95, p99, longest = shares
        latency = Latency(p50, p95, p99, longest, latencies.negative)
    return Report(
        version=VERSION,
        outcome=word,
        line=f"verdict: {word} {verdict.counts()}{commands}",
        scenario=run.facts.scenario,
        facts=run.said,
        began_ms=run.began_ns // 1_000_000,
        ended_ms=run.ended_ns // 1_000_000,
        counts=Counts(**{name: getattr(verdict, name) for name in VerdictCounts.__struct_fields__}, records=records),
        checks=found,
        accounts=verdict.accounts,
        commands=effects,
        faults=faults,
        latency=latency,
        streams=tuple(streams[:STREAMS]),
        lines=tuple(_lines(run, latencies)),
        events=tuple(run.events),
        left_out=left_out,
    )


def _lines(run: Run, latencies: Latencies) -> list[Line]:
    sums = {"published", "acked", "routed", "bytes_up", "bytes_down"}
    found = [
        samples.rates(name, subject) if name in sums else samples.values(name, subject)
        for (name, subject), samples in run.samples.items()
    ]
    found += [latencies.arrivals("delivered"), *latencies.percentiles(0.5, 0.95, 0.99, 1.0)]
    return [line for line in found if line.points]

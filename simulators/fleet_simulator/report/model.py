"""What a report holds; as JSON it is ``report.json``. Counts are messages where nothing else is said."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fleet_simulator.accounts import Account
from fleet_simulator.checks import Check, Commands, Counter, Word
from fleet_simulator.report.series import Line
from fleet_simulator.verdict import StreamTally, VerdictCounts
from waybill.errors import ConfigError, UnknownVersion

VERSION = 1


class Counts(VerdictCounts, frozen=True):
    """The verdict's numbers.

    ``published``: given to MQTT clients; ``acked`` of these were acknowledged. ``delivered``: in the topics, each
    counted once; ``unacked`` of these were never acknowledged. ``declared``: acknowledged, missing, and declared lost;
    ``lost``: the same and not declared. ``duplicated``, ``out_of_order``, ``misplaced``, ``unknown``, ``reused``,
    ``disagreeing``: findings of these checks. ``records``: read back, of all kinds.
    """

    records: int


class Event(msgspec.Struct, frozen=True):
    """Something that happened. ``at_ms``: since 1970 UTC.

    ``kind``: ``fault``, ``down``, ``up``, ``link`` or ``phase``. ``subject``: whom it happened to.
    """

    at_ms: int
    kind: str
    subject: str
    text: str


class Latency(msgspec.Struct, frozen=True):
    """From ``ts`` in the payload to the record's timestamp, in milliseconds. ``early``: messages that came before."""

    p50: float
    p95: float
    p99: float
    longest: float
    early: int


class Report(msgspec.Struct, frozen=True):
    """A run and its verdict. ``began_ms``, ``ended_ms``: of what is noted, since 1970 UTC; 0 where nothing is.

    ``facts``: what the ledger says of the run. ``streams``: the worst first. ``lines``: what the charts draw.
    ``left_out``: how many streams, events and samples were too many for a report.
    """

    version: int
    outcome: Word
    line: str
    scenario: str
    facts: dict[str, str]
    began_ms: int
    ended_ms: int
    counts: Counts
    checks: tuple[Check, ...]
    accounts: tuple[Account, ...]
    commands: Commands
    faults: tuple[Counter, ...]
    latency: Latency | None
    streams: tuple[StreamTally, ...]
    lines: tuple[Line, ...]
    events: tuple[Event, ...]
    left_out: dict[str, int] = {}


def to_json(report: Report) -> bytes:
    """Return ``report`` as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1)


def from_file(path: Path) -> Report:
    """Read what ``to_json`` made. Raises ConfigError, UnknownVersion."""
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Version).version
        if version != VERSION:
            raise UnknownVersion(str(path), version, (VERSION,))
        return msgspec.json.decode(data, type=Report)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; waybill fleet verdict DIRECTORY makes it"
        ) from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: not a report: {error}") from error


class _Version(msgspec.Struct):
    version: int

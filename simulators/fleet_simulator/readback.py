"""Reading topics back, and the cloud's ledger: what ``waybill cloud tail --json`` and ``audit --json`` print.

A line of the tail is an object with ``topic``, ``partition``, ``offset``, ``timestamp``, ``key``, ``headers`` (an
object of text) and ``value`` (text). The value of a vehicle's message is a JSON object with ``vehicle``, ``seq`` and,
where it is not ``telemetry``, ``stream``; ``ts`` is when the vehicle made it, milliseconds since 1970 UTC.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

import msgspec

from fleet_simulator.accounts import LaneAudit
from fleet_simulator.ledger import digest
from fleet_simulator.vehicles import TELEMETRY
from fleet_simulator.verdict import Comparison
from waybill.errors import Unavailable

_LONGEST_LINE: Final = 16 << 20
_CHUNK: Final = 1 << 18


class _Headers(msgspec.Struct, frozen=True, gc=False):
    ce_id: str = ""


class Record(msgspec.Struct, frozen=True, gc=False):
    """What matters of a record."""

    partition: int
    offset: int
    topic: str = ""
    timestamp: int = 0
    key: str | None = None
    value: str | None = None
    headers: _Headers = _Headers()


class _Said(msgspec.Struct, frozen=True, gc=False):
    vehicle: str
    seq: int
    stream: str = TELEMETRY
    ts: int = 0


class _Audit(msgspec.Struct, frozen=True):
    lanes: tuple[LaneAudit, ...]


Seen = Callable[[int, int], None]
"""Called with ``ts`` (0 where it says none) and the record's timestamp of each message."""

_record = msgspec.json.Decoder(Record).decode
_said = msgspec.json.Decoder(_Said).decode
_audit = msgspec.json.Decoder(_Audit).decode


def read_line(comparison: Comparison, line: bytes | bytearray | str, seen: Seen | None = None) -> None:
    """Tell ``comparison`` of one line of the tail; what is not a vehicle's message is unreadable to it."""
    try:
        record = _record(line)
    except msgspec.MsgspecError as error:
        comparison.unreadable(f"not a record: {error}")
        return
    try:
        said = _said(record.value or "")
    except msgspec.MsgspecError as error:
        comparison.unreadable(f"{record.topic} partition {record.partition} offset {record.offset}: {error}")
        return
    place = record.topic, record.partition
    content = digest((record.value or "").encode())
    comparison.read(
        said.vehicle, said.stream, said.seq, key=record.key, place=place, ce_id=record.headers.ce_id, content=content
    )
    if seen is not None:
        seen(said.ts, record.timestamp)


async def read_topic(
    comparison: Comparison, tail: Sequence[str], patience: float = 120.0, seen: Seen | None = None
) -> int:
    """Run ``tail`` (a command that ends at the topic's end) into ``comparison``; return the number of records.

    Raises Unavailable with its last words where it fails, or says nothing for ``patience`` seconds.
    """
    count = 0
    async with contextlib.aclosing(_output(tail, patience)) as output:
        async for lines in output:
            for line in lines:
                read_line(comparison, line, seen)
            count += len(lines)
    return count


async def read_audit(audit: Sequence[str], patience: float = 120.0) -> tuple[LaneAudit, ...]:
    """Run ``audit`` (``waybill cloud audit --json …``) and return what it says of each lane. Raises Unavailable."""
    text = b""
    # 1: something is missing; the verdict says what
    async with contextlib.aclosing(_output(audit, patience, may_end_with=1)) as output:
        async for lines in output:
            text += b"".join(lines)
    try:
        return _audit(text).lanes
    except msgspec.MsgspecError as error:
        raise Unavailable(f"{' '.join(audit)}: not what an audit says: {error}") from error


async def _output(command: Sequence[str], patience: float, may_end_with: int = 0) -> AsyncGenerator[list[bytes], None]:
    """Yield whole lines of what a command prints. Raises Unavailable."""
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, limit=_CHUNK)
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("pipes were asked for")
    words = asyncio.create_task(process.stderr.read(), name=f"{command[0]}'s stderr")
    rest, count = b"", 0
    try:
        while True:
            async with asyncio.timeout(patience):
                chunk = await process.stdout.read(_CHUNK)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                raise Unavailable(f"{' '.join(command)}: a line of more than {_LONGEST_LINE} bytes")
            count += len(lines)
            yield lines
        if rest:
            yield [rest]
        async with asyncio.timeout(patience):
            code = await process.wait()
            said = (await words).decode(errors="replace").strip()
    except TimeoutError as error:
        raise Unavailable(f"{' '.join(command)}: no end after {patience:.0f} s and {count} lines") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        words.cancel()
        await asyncio.gather(words, return_exceptions=True)
    if code not in (0, may_end_with):
        raise Unavailable(f"{' '.join(command)} ended with {code}: {said}")

"""Reading a topic back: the JSON lines of ``waybill cloud tail --json``, and what they say to the verdict.

A line is an object with ``topic``, ``partition``, ``offset``, ``key``, ``headers`` (an object of text) and ``value``
(text). The value of a vehicle's message is a JSON object with ``vehicle`` and ``seq``.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from fleet_simulator.verdict import Comparison
from waybill.errors import ConfigError, Unavailable

_LONGEST_LINE: Final = 16 << 20


class Record(msgspec.Struct, frozen=True):
    """What matters of a record."""

    partition: int
    offset: int
    key: str | None = None
    value: str | None = None
    headers: dict[str, str | None] = {}


class _Said(msgspec.Struct, frozen=True):
    vehicle: str
    seq: int


class Acked(msgspec.Struct, frozen=True):
    """One line of a file of acknowledgements: ``{"vehicle":"V7","seq":12}``."""

    vehicle: str
    seq: int


_record = msgspec.json.Decoder(Record)
_said = msgspec.json.Decoder(_Said)
_acked = msgspec.json.Decoder(Acked)


def read_line(comparison: Comparison, line: bytes | str) -> None:
    """Tell ``comparison`` of one line of the tail; what is not a vehicle's message is unreadable to it."""
    try:
        record = _record.decode(line)
    except msgspec.MsgspecError as error:
        comparison.unreadable(f"not a record: {error}")
        return
    try:
        said = _said.decode(record.value or "")
    except msgspec.MsgspecError as error:
        comparison.unreadable(f"partition {record.partition} offset {record.offset}: {error}")
        return
    ce_id = record.headers.get("ce_id") or ""
    comparison.read(said.vehicle, said.seq, key=record.key, partition=record.partition, ce_id=ce_id)


async def read_topic(comparison: Comparison, tail: Sequence[str], patience: float = 120.0) -> int:
    """Run ``tail`` (a command that ends at the topic's end) into ``comparison``; return the number of records.

    Raises Unavailable with its last words where it fails or takes longer than ``patience`` seconds.
    """
    process = await asyncio.create_subprocess_exec(*tail, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, limit=_LONGEST_LINE)
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("pipes were asked for")
    words = asyncio.create_task(process.stderr.read(), name="tail's stderr")
    count = 0
    try:
        async with asyncio.timeout(patience):
            async for line in process.stdout:
                read_line(comparison, line)
                count += 1
            code = await process.wait()
            said = (await words).decode(errors="replace").strip()
    except TimeoutError as error:
        raise Unavailable(f"{' '.join(tail)}: no end after {patience:.0f} s and {count} records") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        words.cancel()
        await asyncio.gather(words, return_exceptions=True)
    if code != 0:
        raise Unavailable(f"{' '.join(tail)} ended with {code}: {said}")
    return count


def read_acked(comparison: Comparison, path: Path) -> None:
    """Tell ``comparison`` of a file of acknowledgements. Raises ConfigError with file, line and mend."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    one = _acked.decode(line)
                except msgspec.MsgspecError as error:
                    raise ConfigError(
                        f'{path}:{number}: {error}: each line must be like {{"vehicle":"V7","seq":12}}, '
                        "as waybill fleet replay --acked writes it"
                    ) from error
                comparison.acked(one.vehicle, one.seq)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error

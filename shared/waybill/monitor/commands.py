"""The screen *Commands*: what was sent, and what became of it. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from waybill.fleet_state import CommandRow, CommandsState
from waybill.monitor.table import Column
from waybill.monitor.words import GLYPHS, NEVER, Bit, Line, Tone, bit, brief, many, moment

TONES: Final[dict[str, Tone]] = {"open": "quiet", "delivered": "", "done": "good", "expired": "bad", "rejected": "bad"}
"""States in their order, and what they mean."""


class Command(NamedTuple):
    """A command and the time it is seen at."""

    row: CommandRow
    at_ms: int


def rows(state: CommandsState) -> list[Command]:
    """Return what the table's rows are made of, the newest first."""
    return [Command(row, state.at_ms) for row in state.commands]


def _tone(row: CommandRow) -> Tone:
    return TONES.get(row.state, "")


def _until(one: Command) -> Bit:
    if not one.row.expires_ms:
        return Bit(NEVER, "quiet")
    left = (one.row.expires_ms - one.at_ms) / 1000
    if one.row.state not in {"open", "delivered"}:
        return Bit("")
    return Bit(brief(left)) if left > 0 else Bit("over", "look")


def _ago(at_ms: int, moment_ms: int) -> Bit:
    return Bit(brief((at_ms - moment_ms) / 1000)) if moment_ms else Bit(NEVER, "quiet")


COLUMNS: Final[tuple[Column[Command], ...]] = (
    Column(
        "state",
        12,
        lambda one: bit(f"{GLYPHS[_tone(one.row)]} {one.row.state}", _tone(one.row)),
        lambda one: list(TONES).index(one.row.state) if one.row.state in TONES else len(TONES),
    ),
    Column("gateway", 12, lambda one: bit(one.row.gateway or NEVER), lambda one: one.row.gateway, grow=1),
    Column("device", 12, lambda one: bit(one.row.device), lambda one: one.row.device, grow=1),
    Column("name", 10, lambda one: bit(one.row.name or NEVER), lambda one: one.row.name, grow=1),
    Column("sent", 5, lambda one: _ago(one.at_ms, one.row.written_ms), lambda one: -one.row.written_ms, right=True),
    Column("left", 5, _until, lambda one: one.row.expires_ms, right=True, rank=2),
    Column("told", 5, lambda one: _ago(one.at_ms, one.row.at_ms), lambda one: -one.row.at_ms, right=True, rank=3),
    Column("id", 17, lambda one: bit(one.row.id), lambda one: one.row.id, rank=1),
    Column(
        "answer",
        20,
        lambda one: bit(one.row.result or one.row.reason, _tone(one.row)),
        None,
        rank=4,
        grow=3,
        prose=True,
    ),
)


def summary(state: CommandsState) -> Line:
    """Say how many commands are in which state."""
    numbers = Counter(row.state for row in state.commands)
    bits = [Bit(f"{many(len(state.commands), 'command')}  ", "head")]
    for name, tone in TONES.items():
        if numbers[name]:  # type: ignore[index] # the names are those of the states
            bits.append(Bit(f"{GLYPHS[tone]} {numbers[name]:,} {name}  ", tone))  # type: ignore[index]
    if state.fault:
        bits.append(bit(f"{GLYPHS['look']} {state.fault}", "look"))
    return tuple(bits)


def about(one: Command) -> Line:
    """Say in one line what a row has no room for."""
    row = one.row
    sent = f" sent {moment(row.written_ms)}" if row.written_ms else ""
    ends = f", expires {moment(row.expires_ms)}" if row.expires_ms else ""
    answer = f": {row.result or row.reason}" if row.result or row.reason else ""
    return bit(f"{row.id} ", "head"), bit(f"{row.name or 'a command'}{sent}{ends}, {row.state}{answer}", _tone(row))

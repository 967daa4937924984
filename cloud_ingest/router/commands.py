"""States of commands, as the owner of a gateway's frames partition decides them (C1). Pure.

``delivered`` and ``done`` come up from the gateway, ``rejected`` and ``expired`` are decided here, and all are
written by this one fenced writer. So the first terminal state (``done``, ``expired``, ``rejected``) is the only one:
what comes after it becomes a dead letter, and each state of a command is written once.

``expired`` is written in the partition's own time: when a frame stamped past the expiry was read, or the partition is
read to its end and the clock is past it. So a ``delivered`` that was in the journal before is never overtaken. Where
a command was delivered, the answer of its device may still be on its way: it has ``ANSWER_MS`` more.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from cloud_ingest.command_record import Command, MalformedCommand, parse
from cloud_ingest.journal.port import OutRecord, TopicRecord
from waybill.wire import CommandStatus

ANSWER_MS: Final = 30_000
"""How long after its expiry a delivered command waits for the answer of its device."""

REMEMBERED: Final = 100_000
"""Ids whose states are remembered; beyond it the oldest are forgotten."""

MAX_OPEN: Final = 100_000
"""Commands that are watched for their expiry at once; what is beyond is overlooked until the topics are read again."""

TERMINAL: Final = frozenset({"done", "expired", "rejected"})

_decode_status = msgspec.json.Decoder(CommandStatus).decode
_encode = msgspec.json.Encoder().encode


class Open(NamedTuple):
    """What expiry needs of a command without a terminal state."""

    gateway: str
    device: str
    expires_ms: int


class Commands:
    """The commands of this partition's gateways, as of the last commit."""

    def __init__(self, owns: Callable[[str], bool]) -> None:
        """Start with none.

        ``owns(name)``: whether frames of this gateway, or of this device without one, are in this partition.
        """
        self._owns = owns
        self._open: dict[str, Open] = {}
        self._states: dict[str, str] = {}
        self._due: list[tuple[int, str]] = []
        self._rejected: dict[str, CommandStatus] = {}
        self._overlooked = False

    def __len__(self) -> int:
        """How many commands have no terminal state."""
        return len(self._open)

    @property
    def stale(self) -> bool:
        """Whether commands were overlooked, and there is room for them by now: read the topics again."""
        return self._overlooked and len(self._open) <= MAX_OPEN // 2

    def learn(self, record: TopicRecord, topic: str) -> None:
        """Take in a record of the commands topic (where it is of ``topic``) or of the statuses topic."""
        if record.topic == topic:
            self._learn_command(record)
        else:
            self._learn_status(record)

    def _learn_command(self, record: TopicRecord) -> None:
        try:
            command: Command | MalformedCommand = parse(record.value)
        except MalformedCommand as error:
            command = error
        key = (record.key or b"").decode(errors="replace")
        if not self._owns(command.gateway or (key if isinstance(command, MalformedCommand) else command.device)):
            return
        name = command.id or f"{record.topic}/{record.partition}/{record.offset}"
        if name in self._open or name in self._rejected or self._states.get(name) in TERMINAL:
            return  # the first record of an id wins
        if isinstance(command, MalformedCommand):
            self._rejected[name] = CommandStatus(
                name, command.gateway or key, command.device, "rejected", record.stamp_ms, reason=str(command)
            )
            return
        if len(self._open) >= MAX_OPEN:
            self._overlooked = True
            return
        self._open[name] = Open(command.gateway, command.device, command.expires_ms)
        late = ANSWER_MS if name in self._states else 0
        heapq.heappush(self._due, (command.expires_ms + late, name))

    def _learn_status(self, record: TopicRecord) -> None:
        try:
            status = _decode_status(record.value or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if self._owns(status.gateway or status.device):
            self.note(status)

    def note(self, status: CommandStatus) -> None:
        """Note a state that is in the topic."""
        if self._states.get(status.id) in TERMINAL:
            return
        if status.id not in self._states and len(self._states) >= REMEMBERED:
            del self._states[next(iter(self._states))]
        self._states[status.id] = status.state
        self._rejected.pop(status.id, None)
        if status.state in TERMINAL:
            self._open.pop(status.id, None)
        elif found := self._open.get(status.id):
            heapq.heappush(self._due, (found.expires_ms + ANSWER_MS, status.id))

    def verdict(self, status: CommandStatus, fresh: dict[str, str]) -> str:
        """Say what to do with a state that a gateway reports: ``write``, ``copy``, or why it comes too late.

        ``fresh``: states of the step being made, which are not noted yet.
        """
        known = self._open.get(status.id)
        if known and known.gateway != status.gateway:
            return "the command is of another gateway"
        if known and not known.gateway and known.device != status.device:
            return "the command is of another device"
        seen = fresh.get(status.id) or self._states.get(status.id)
        if seen == status.state or (seen == "done" and status.state == "delivered"):
            return "copy"
        return f"the command's state is {seen} already" if seen in TERMINAL else "write"

    def due(self, now_ms: int, limit: int, busy: Callable[[str], bool]) -> list[CommandStatus]:
        """Return at most ``limit`` states to be written now, ``now_ms`` in the partition's time. Changes nothing.

        ``busy(gateway)``: whether reports of that gateway are held; its commands do not expire meanwhile.
        """
        found = list(self._rejected.values())[:limit]
        while self._due and self._due[0][0] <= now_ms and not self._current(*self._due[0]):
            heapq.heappop(self._due)  # of a command that has its terminal state, or a later time by now
        if not self._due or self._due[0][0] > now_ms:
            return found
        for at, name in heapq.nsmallest(limit, self._due):
            if at > now_ms or len(found) >= limit:
                break
            known = self._open.get(name)
            if known and self._current(at, name) and not busy(known.gateway):
                delivered = name in self._states
                reason = "delivered, but its device did not answer" if delivered else "not delivered before it expired"
                found.append(CommandStatus(name, known.gateway, known.device, "expired", now_ms, reason=reason))
        return found

    def _current(self, at: int, name: str) -> bool:
        known = self._open.get(name)
        return known is not None and at == known.expires_ms + (ANSWER_MS if name in self._states else 0)


def status_record(topic: str, status: CommandStatus) -> OutRecord:
    """Return a state as a record of the statuses topic, keyed by the command's id."""
    return OutRecord(topic, status.id.encode(), _encode(status), [("content-type", b"application/json")])

"""The newest commands and their states, in bounded memory. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from cloud_ingest.command_record import MalformedCommand, parse
from cloud_ingest.journal.port import TopicRecord
from waybill.fleet_state import CommandRow
from waybill.wire import CommandStatus

KEPT: Final = 1_000
RESULT: Final = 200
"""Characters of a device's answer."""

TERMINAL: Final = frozenset({"done", "expired", "rejected"})

_decode = msgspec.json.Decoder(CommandStatus).decode


class Recent:
    """The last ``KEPT`` commands by when they were written, or were last heard of; up to twice as many meanwhile."""

    def __init__(self) -> None:
        self._rows: dict[str, CommandRow] = {}

    def command(self, record: TopicRecord) -> None:
        """Take a record of the commands topic; the first of an id wins."""
        try:
            command = parse(record.value)
        except MalformedCommand:
            return  # its state says so
        known = self._rows.get(command.id)
        if known is not None and known.name:
            return
        row = known or CommandRow(command.id, command.gateway, command.device)
        self._keep(
            msgspec.structs.replace(row, name=command.name, written_ms=record.stamp_ms, expires_ms=command.expires_ms)
        )

    def status(self, record: TopicRecord) -> None:
        """Take a record of the states' topic."""
        try:
            said = _decode(record.value or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        known = self._rows.get(said.id)
        if known is not None and known.state in TERMINAL:
            return
        row = known or CommandRow(said.id, said.gateway, said.device)
        result = said.result.decode(errors="replace")[:RESULT] if said.result is not None else ""
        self._keep(
            msgspec.structs.replace(row, state=said.state, at_ms=said.at_ms, reason=said.reason[:RESULT], result=result)
        )

    def _keep(self, row: CommandRow) -> None:
        self._rows[row.id] = row
        if len(self._rows) > 2 * KEPT:
            self._rows = {one.id: one for one in reversed(self.newest())}

    def newest(self) -> tuple[CommandRow, ...]:
        """Return them, the newest first."""
        return tuple(sorted(self._rows.values(), key=_when, reverse=True)[:KEPT])


def _when(row: CommandRow) -> int:
    return row.written_ms or row.at_ms

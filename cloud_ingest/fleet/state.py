"""All gateways in one table, from what ``waybill.presence`` and ``waybill.health`` say. Pure: records and time come in.

A gateway takes less than 2 kB: its row as it is sent (JSON), and its last health record, compressed. ``LIMIT`` gateways
are held; what is beyond is counted and left out. Each change gets a number, so who has asked before is told only what
has changed since.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Literal, cast

import msgspec

from cloud_ingest.presence import Here
from waybill.errors import Refused
from waybill.fleet_state import FleetSnapshot, GatewayDetail, GatewayRow, Health
from waybill.health_row import row_of
from waybill.wire import NODE

LIMIT: Final = 20_000
FORGOTTEN: Final = 1_000
"""Gateways that were forgotten, whose names are kept for those who know them still."""

REASON: Final = 200
"""Characters of why a gateway went."""

Level = Literal["info", "warning", "error"]
Tell = Callable[[Level, str, str, int], None]
"""``tell(level, gateway, text, at_ms)``: something happened that a person may want to read."""

_decode_row = msgspec.json.Decoder(GatewayRow).decode
_decode_health = msgspec.json.Decoder(Health).decode
_encode = msgspec.json.Encoder().encode


class _Gateway:
    """``row``: a :class:`GatewayRow` in JSON. ``health``: a record's value, compressed. ``changed``: its number."""

    __slots__ = ("changed", "connection", "health", "row", "state")

    def __init__(self, row: GatewayRow) -> None:
        self.row = _encode(row)
        self.health = b""
        self.connection = ""
        self.state = row.state
        self.changed = 0


class Fleet:
    """The table of one node. ``start``: names this start of it; ``partition_of``: of a gateway's frames."""

    def __init__(self, start: str, partition_of: Callable[[str], int], tell: Tell, limit: int = LIMIT) -> None:
        self._start = start
        self._partition_of = partition_of
        self._tell = tell
        self._limit = limit
        self._gateways: dict[str, _Gateway] = {}
        self._left_out: set[str] = set()
        self._gone: deque[tuple[int, str]] = deque(maxlen=FORGOTTEN)
        self._number = 0
        self._complete_from = 0  # who knows less than this must be told all

    def __len__(self) -> int:
        """How many gateways there are."""
        return len(self._gateways)

    # --- what the topics say ---

    def presence(self, gateway: str, here: Here | None, *, live: bool) -> None:
        """Take a record of the presence topic about a gateway; None: it is forgotten. ``live``: it is new."""
        if here is None:
            self._forget(gateway)
            return
        one = self._gateway(gateway)
        if one is None:
            return
        if here.state == "offline" and one.state == "online" and here.connection != one.connection:
            return  # of an older connection (C3)
        before = one.state
        one.state, one.connection = here.state, here.connection
        row = msgspec.structs.replace(
            _decode_row(one.row),
            state=here.state,
            since_ms=here.at_ms,
            reason=here.reason[:REASON] if here.state == "offline" else "",
            node=here.node,
            address=here.address[:REASON],
            version=here.version[:REASON],
        )
        self._set(one, row)
        if live and before != here.state:
            if here.state == "online":
                self._tell("info", gateway, f"online from {row.address}", here.at_ms)
            else:
                self._tell("warning", gateway, f"offline: {row.reason or 'it said so'}", here.at_ms)

    def health(self, gateway: str, value: bytes | None, stamp_ms: int, *, live: bool) -> None:
        """Take a record of the health topic about a gateway; None: there is none any more.

        Raises msgspec.MsgspecError where it is malformed.
        """
        health = _decode_health(value) if value is not None else None
        one = self._gateway(gateway)
        if one is None:
            return
        row = _decode_row(one.row)
        before = row.trouble
        if health is None or value is None:
            one.health = b""
            row = GatewayRow(
                gateway=gateway,
                state=row.state,
                since_ms=row.since_ms,
                reason=row.reason,
                node=row.node,
                address=row.address,
                version=row.version,
                partition=row.partition,
            )
        else:
            one.health = zlib.compress(value)
            row = row_of(row, health, stamp_ms)
        self._set(one, row)
        if live and row.trouble != before:
            text = row.trouble or f"no longer: {before}"
            self._tell("warning" if row.trouble else "info", gateway, text, stamp_ms)

    def _gateway(self, name: str) -> _Gateway | None:
        one = self._gateways.get(name)
        if one is None:
            if len(self._gateways) >= self._limit:
                if len(self._left_out) < self._limit:
                    self._left_out.add(name)
                return None
            one = self._gateways[name] = _Gateway(GatewayRow(name, partition=self._partition_of(name)))
        return one

    def _set(self, one: _Gateway, row: GatewayRow) -> None:
        data = _encode(row)
        if data != one.row or not one.changed:
            self._number += 1
            one.changed, one.row = self._number, data

    def _forget(self, name: str) -> None:
        self._left_out.discard(name)
        if self._gateways.pop(name, None) is None:
            return
        self._number += 1
        if len(self._gone) == FORGOTTEN:
            self._complete_from = self._gone[0][0]
        self._gone.append((self._number, name))

    # --- what is asked ---

    @property
    def revision(self) -> str:
        """What to give as ``since`` to be told what changes from now on."""
        return f"{self._start}-{self._number}"

    def snapshot(self, since: str, blank: FleetSnapshot) -> FleetSnapshot:
        """Return ``blank`` with what has changed since; with all, where ``since`` is of another start, or empty.

        Its rows are :class:`msgspec.Raw`: to be encoded, and nothing else.
        """
        start, _, text = since.partition("-")
        number = int(text) if text.isdecimal() and len(text) <= len(str(1 << 63)) else -1
        full = start != self._start or not self._complete_from <= number <= self._number
        rows = (msgspec.Raw(one.row) for one in self._gateways.values() if full or one.changed > number)
        states = [one.state for one in self._gateways.values()]
        return msgspec.structs.replace(
            blank,
            revision=self.revision,
            full=full,
            gateways=cast("tuple[GatewayRow, ...]", tuple(rows)),
            gone=() if full else tuple(name for at, name in self._gone if at > number and name not in self._gateways),
            total=len(states),
            online=states.count("online"),
            offline=states.count("offline"),
            left_out=len(self._left_out),
        )

    def detail(self, gateway: str, at_ms: int) -> GatewayDetail:
        """Return all that is known of one. Raises Refused where nothing is."""
        one = self._gateways.get(gateway)
        if one is None:
            known = " (this node has no room for all gateways)" if self._left_out else ""
            raise Refused(f"nothing is known of gateway {gateway[:REASON]!r}{known}")
        health = _decode_health(zlib.decompress(one.health)) if one.health else None
        return GatewayDetail(at_ms, _decode_row(one.row), health)


def is_gateway(key: str) -> bool:
    """Tell whether a key of the presence topic, or of the health topic, is a gateway's."""
    return bool(key) and "/" not in key and not key.startswith(NODE)


def lags(behind: Iterable[tuple[int, int | None]], partitions: int) -> tuple[int | None, ...]:
    """Return how far each partition is behind, by its number; ``behind``: what is known of some."""
    known = dict(behind)
    return tuple(known.get(number) for number in range(partitions))

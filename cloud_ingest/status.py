"""The ingest's snapshot: frozen, served on the socket for tools, drawn with rich. Rendering is pure."""

from __future__ import annotations

import datetime as dt
from collections import deque
from typing import Final

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from waybill.printable import printable

MAX_GATEWAYS: Final = 1_000
"""So many gateways are listed; ``connected`` counts all."""


class GatewaySnapshot(msgspec.Struct, frozen=True):
    """A gateway connected to this node. ``state``: as it said itself; ``since_ms``: when it connected."""

    gateway: str
    address: str
    since_ms: int
    state: str = ""
    version: str = ""


class FramesSnapshot(msgspec.Struct, frozen=True):
    """Frames since the start. ``pending``: bytes that are not journaled yet; ``fault``: why nothing is, or empty.

    ``per_second``, ``bytes_per_second``: journaled, over the last few seconds.
    """

    journaled: int = 0
    bytes: int = 0
    refused: int = 0
    retried: int = 0
    unknown_versions: int = 0
    pending: int = 0
    per_second: float = 0.0
    bytes_per_second: float = 0.0
    fault: str = ""


class PartitionSnapshot(msgspec.Struct, frozen=True):
    """A frames partition that this node routes. Counts are messages; ``behind_ms``: 0 where it is read to its end."""

    partition: int
    state: str
    reason: str
    position: int
    behind_ms: int
    held_frames: int
    held_bytes: int
    routed: int
    copies: int
    dead: int
    dropped: int


class CommandsSnapshot(msgspec.Struct, frozen=True):
    """Commands without a state, and what was sent. ``fault``: why they are not read, or empty."""

    open: int = 0
    sent: int = 0
    sent_again: int = 0
    malformed: int = 0
    postponed: int = 0
    fault: str = ""


class DevicesSnapshot(msgspec.Struct, frozen=True):
    """Devices without a gateway. ``messages``, ``frames``: journaled since the start; ``commands``: sent to them.

    ``refused``, ``denied``, ``handshakes``: as of gateways. ``fault``: why nothing is journaled, or empty.
    """

    address: str
    connected: int = 0
    messages: int = 0
    frames: int = 0
    commands: int = 0
    refused: int = 0
    denied: int = 0
    handshakes: int = 0
    fault: str = ""


class PlainSnapshot(msgspec.Struct, frozen=True):
    """Plain topics of the broker in front. ``messages``: journaled since the start. ``waiting``: not journaled yet.

    ``nameless``: messages on topics of gateways that name none. ``too_large``: left out, because no journal takes them.
    ``fault``: why nothing comes, or empty.
    """

    messages: int = 0
    waiting: int = 0
    nameless: int = 0
    too_large: int = 0
    fault: str = ""


class AlarmSnapshot(msgspec.Struct, frozen=True):
    """Something a person should look at. ``at_ms``: milliseconds since 1970 UTC."""

    at_ms: int
    text: str


class CloudSnapshot(msgspec.Struct, frozen=True):
    """One ingest process. ``state``: ``running``, or ``waiting`` for its log, and ``fault`` says why.

    ``denied``: publishes and subscriptions under another's topics; ``refused``: connections; ``handshakes``: failed
    TLS handshakes. ``routed_per_second``: messages, over the last few seconds. ``websocket``: the address of that
    listener, empty without; ``api``: likewise. ``plain``: None without a broker in front. ``presence``: why
    that may not be true, or empty. Times: milliseconds since 1970 UTC.
    """

    deployment: str
    version: str
    log: str
    address: str
    started_ms: int
    now_ms: int
    state: str
    fault: str = ""
    connected: int = 0
    denied: int = 0
    refused: int = 0
    handshakes: int = 0
    gateways: tuple[GatewaySnapshot, ...] = ()
    frames: FramesSnapshot = FramesSnapshot()
    routed_per_second: float = 0.0
    partitions: tuple[PartitionSnapshot, ...] = ()
    commands: CommandsSnapshot = CommandsSnapshot()
    alarms: tuple[AlarmSnapshot, ...] = ()
    websocket: str = ""
    devices: DevicesSnapshot | None = None
    plain: PlainSnapshot | None = None
    presence: str = ""
    api: str = ""


class Rates:
    """Counters as rates over the last few samples."""

    def __init__(self, samples: int = 6) -> None:
        """Keep ``samples`` of them."""
        self._samples: deque[tuple[float, tuple[int, ...]]] = deque(maxlen=samples)

    def sample(self, now: float, *counts: int) -> None:
        """Note the counters at ``now`` (seconds)."""
        self._samples.append((now, counts))

    def per_second(self, index: int) -> float:
        """Return the rate of the counter ``index``; 0 before there are two samples."""
        if len(self._samples) < 2:  # noqa: PLR2004 - two ends
            return 0.0
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return max(0.0, (last[index] - first[index]) / (end - start)) if end > start else 0.0


def render(shot: CloudSnapshot) -> RenderableType:
    """Draw ``shot``."""
    now = shot.now_ms
    head = Text.assemble(
        (f"{shot.deployment} ", "bold"),
        (shot.state, "green" if shot.state == "running" else "yellow"),
        f" on {shot.address}, {shot.log} log, version {shot.version}, up {_span(now - shot.started_ms)}",
        f", WebSockets on {shot.websocket}" if shot.websocket else "",
        f", API on {shot.api}" if shot.api else "",
    )
    parts: list[RenderableType] = [head]
    parts += [
        Text(text, style="yellow")
        for text in dict.fromkeys((shot.fault, shot.frames.fault, shot.commands.fault, _presence(shot)))
        if text
    ]
    frames = shot.frames
    parts.append(
        Text(
            f"frames {frames.journaled:,} journaled ({frames.per_second:,.1f}/s, {frames.bytes:,} bytes), "
            f"{frames.refused:,} refused, {frames.retried:,} put off; messages routed {shot.routed_per_second:,.0f}/s"
        )
    )
    parts.append(
        Text(
            f"commands {shot.commands.open:,} open, {shot.commands.sent:,} sent; "
            f"turned away: {shot.refused:,} connections, {shot.handshakes:,} handshakes, {shot.denied:,} denied"
        )
    )
    if shot.devices is not None:
        parts.append(_devices(shot.devices))
    if shot.plain is not None:
        parts.append(_plain(shot.plain))
    parts.append(_gateways(shot))
    if shot.partitions:
        parts.append(_partitions(shot))
    parts += [Text(f"{_time(alarm.at_ms)} {alarm.text}", style="red") for alarm in shot.alarms[-5:]]
    return Group(*parts)


def _devices(one: DevicesSnapshot) -> Text:
    fault = f"; {one.fault}" if one.fault else ""
    return Text(
        f"devices {one.connected:,} connected on {one.address}, {one.messages:,} messages journaled, "
        f"{one.commands:,} commands sent; turned away: {one.refused:,} connections, {one.handshakes:,} handshakes, "
        f"{one.denied:,} denied{fault}"
    )


def _plain(one: PlainSnapshot) -> Text:
    fault = f"; {one.fault}" if one.fault else ""
    return Text(
        f"plain topics {one.messages:,} messages journaled, {one.waiting:,} waiting, {one.too_large:,} too large; "
        f"{one.nameless:,} without a gateway's name{fault}",
        style="yellow" if one.fault else "",
    )


def _presence(shot: CloudSnapshot) -> str:
    known = {shot.fault, shot.frames.fault, shot.commands.fault}
    return f"presence waits: {shot.presence}" if shot.presence and shot.presence not in known else ""


def _gateways(shot: CloudSnapshot) -> Table:
    table = Table(
        title=f"{shot.connected} gateway{'' if shot.connected == 1 else 's'} connected",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("gateway", "from", "connected for", "state", "version"):
        table.add_column(column)
    for one in shot.gateways:
        table.add_row(
            one.gateway, one.address, _span(shot.now_ms - one.since_ms), one.state or "-", printable(one.version) or "-"
        )
    return table


def _partitions(shot: CloudSnapshot) -> Table:
    table = Table(title="partitions routed here", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("no")
    table.add_column("state")
    for column in ("offset", "behind", "routed", "copies", "dead", "dropped", "held"):
        table.add_column(column, justify="right")
    for one in shot.partitions:
        state = f"{one.state}: {one.reason}" if one.reason and one.state != "ready" else one.state
        counts = (one.routed, one.copies, one.dead, one.dropped, one.held_frames)
        table.add_row(
            str(one.partition), state, f"{one.position:,}", _span(one.behind_ms), *(f"{count:,}" for count in counts)
        )
    return table


def _span(milliseconds: int) -> str:
    """Return a time span in its two largest units."""
    seconds = max(0, milliseconds) // 1000
    for size, unit, smaller, name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller} {name}"
    return f"{seconds} s"


def _time(at_ms: int) -> str:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

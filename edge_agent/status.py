"""The agent's snapshot, and how a terminal draws it. Pure: counters come in, a frozen struct or a table goes out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from edge_agent.flash import FlashState
from edge_agent.plan.plan import PlanState
from waybill.printable import say_bytes, say_span

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SOCKET: Final = "agent.sock"
"""Name of the snapshot's socket within the data directory."""

SPAN: Final = 5
"""Seconds that a rate is the mean of."""


class LinkState(msgspec.Struct, frozen=True):
    """How the uplink stands; ``off``: none is configured.

    ``since_ms``: wall time of the last change of ``state``. ``error``: why it is not online, or why it last was not.
    ``uplink``: what the one in use is called.
    """

    state: Literal["off", "connecting", "online", "offline"]
    since_ms: int
    error: str = ""
    uplink: str = ""


class UplinkState(msgspec.Struct, frozen=True):
    """One uplink. ``way``: its URL, and what is between. ``error``: why its last attempt or connection failed.

    ``sent``, ``received``: bytes on the wire since the start, all headers from IP upwards counted.
    """

    name: str
    way: str
    state: Literal["online", "connecting", "offline", "unused"]
    metered: bool
    error: str
    sent: int
    received: int


class ListenerState(msgspec.Struct, frozen=True):
    """Where devices connect. ``name``: empty where it has none. ``kind``: with an ``s`` at its end, over TLS."""

    name: str
    kind: str
    address: str


class SourceState(msgspec.Struct, frozen=True):
    """A broker that the agent subscribes to.

    ``received``, ``forgotten``, ``dropped``: since the start; see :class:`edge_agent.source.source.Counters`.
    """

    name: str
    url: str
    link: LinkState
    received: int = 0
    forgotten: int = 0
    dropped: int = 0


class LaneState(msgspec.Struct, frozen=True):
    """What waits in a lane: messages, bytes as stored, and the wall time of the oldest (None where it is empty).

    ``held``: why none of it is sent at present (``Forwarder.shut``). ``cap``: most bytes, 0:
    those of the buffer. ``dropped``, ``expired``: messages since the start that left with a receipt. ``refused``:
    messages since the start that were not taken for want of room; ``full``: none are now. ``holds_s``: seconds
    until it is at ``cap``; ``drained_s``: until its backlog is gone. None: never as it goes, or not known yet.
    """

    lane: str
    count: int
    bytes: int
    oldest_ms: int | None
    held: tuple[str, ...] = ()
    cap: int = 0
    dropped: int = 0
    expired: int = 0
    refused: int = 0
    full: bool = False
    holds_s: float | None = None
    drained_s: float | None = 0.0


class EdgeStatus(msgspec.Struct, frozen=True):
    """The agent at one moment. Times: milliseconds since 1970 UTC; rates: messages a second over the last few.

    ``rate_in``: from devices; ``rate_out``: acknowledged by the cloud. ``in_flight``: bytes sent and unacked;
    ``credit``: what the cloud allows of them, None before it said so. ``memory_ceiling``: bytes that devices can make
    the MQTT server take at most, beside the buffer. ``fault``: why devices get no acks at present.
    ``error``: what the cloud finds wrong with our frames. ``alarm``: what was lost or damaged.
    ``left``: damaged files that stay for people to look at, with their bytes. ``flash``: what was written to storage.
    ``counters``: since the start, by stage and name.
    ``full``: which limit of the buffer makes lanes refuse, beside their own caps.
    ``clock``: why times are told as unknown, or an empty string (:attr:`edge_agent.clock.Clock.trouble`).
    ``holds_s``: seconds until the buffer is full as it fills now; ``outage_s``: if nothing leaves it from now on;
    ``drained_s``: until the backlog is gone, but for lanes that are held (0: there is none). None: never as it goes, or
    while ``outlook_known`` is false not known yet. ``plan``: None where none is configured.
    """

    gateway: str
    version: str
    epoch: int
    at_ms: int
    started_ms: int
    listeners: tuple[ListenerState, ...]
    uplinks: tuple[UplinkState, ...]
    link: LinkState
    lanes: tuple[LaneState, ...]
    rate_in: float
    rate_out: float
    in_flight: int
    credit: int | None
    memory_ceiling: int
    fault: str
    error: str
    counters: dict[str, float]
    alarm: str = ""
    left: tuple[tuple[str, int], ...] = ()
    flash: FlashState | None = None
    sources: tuple[SourceState, ...] = ()
    clock: str = ""
    full: str = ""
    holds_s: float | None = None
    outage_s: float | None = None
    drained_s: float | None = 0.0
    outlook_known: bool = True
    plan: PlanState | None = None


class Rate:
    """The mean rate of a growing count over the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SPAN + 1)

    def sample(self, now: float, count: int) -> None:
        """Note the count; once a second. ``now``: seconds, monotonic."""
        self._samples.append((now, count))

    @property
    def value(self) -> float:
        """A second; 0 before there are two samples."""
        if len(self._samples) < 2:  # noqa: PLR2004 - a difference needs two
            return 0.0
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else 0.0


def render(status: EdgeStatus) -> RenderableType:
    """Draw a snapshot."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    link = status.link
    style = {"online": "green", "off": "dim"}.get(link.state, "yellow")
    since = f"{link.state} for {_age(status.at_ms - link.since_ms)}"
    facts.add_row("gateway", f"{status.gateway}   waybill {status.version}   epoch {status.epoch}")
    facts.add_row("devices", f"{status.counters.get('mqtt_connections', 0):.0f} connected")
    for row in _inlets(status):
        facts.add_row(*row)
    several = len(status.uplinks) > 1
    name = f" on {link.uplink}" if several and link.uplink else ""
    facts.add_row("uplink", Text(f"{since}{name}" if status.uplinks else "none configured", style=style))
    for uplink in status.uplinks:
        facts.add_row("", Text(_way(uplink, several=several)))
        if uplink.error and uplink.state != "online":
            facts.add_row("", Text(uplink.error, style="yellow"))
    credit = "none yet" if status.credit is None else _size(status.credit)
    facts.add_row("in flight", f"{_size(status.in_flight)}   credit {credit}")
    facts.add_row("rates", f"in {status.rate_in:,.0f}/s   out {status.rate_out:,.0f}/s")
    facts.add_row("buffer", _lasts(status))
    _draw_plan(facts, status.plan)
    if status.flash is not None:
        cost = status.flash.per_message
        a_message = "" if cost is None else f"   {cost:,.0f} B a message"
        a_day = f"   {_size(status.flash.per_day)} a day"
        facts.add_row("written", f"{_size(status.flash.written)}{a_message}{a_day}")
    for name, text, colour in (
        ("clock", status.clock, "yellow"),
        ("full", status.full, "yellow"),
        ("fault", status.fault, "red"),
        ("error", status.error, "red"),
        ("alarm", status.alarm, "red"),
    ):
        if text:
            facts.add_row(Text(name, style=colour), Text(text, style=colour))
    for path, size in status.left:
        facts.add_row("left", f"{path}   {_size(size)}   damaged; remove it when nobody needs it")
    lanes = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    gone = ("dropped", "expired", "refused")
    more = [name for name in ("cap", *gone) if any(getattr(lane, name) for lane in status.lanes)]
    for heading in ("lane", "waiting", "bytes", "oldest", *more, "held by"):
        lanes.add_column(heading, justify="left" if heading in {"lane", "held by"} else "right")
    for lane in status.lanes:
        oldest = "" if lane.oldest_ms is None else _age(status.at_ms - lane.oldest_ms)
        texts = {name: f"{getattr(lane, name):,}" for name in gone} | {"cap": _size(lane.cap) if lane.cap else ""}
        title = Text(f"{lane.lane} (full)", style="yellow") if lane.full else Text(lane.lane)
        counts = [texts[name] for name in more]
        lanes.add_row(title, f"{lane.count:,}", _size(lane.bytes), oldest, *counts, ", ".join(lane.held))
    return Group(facts, lanes)


def _inlets(status: EdgeStatus) -> Iterator[tuple[str, RenderableType]]:
    """Say where messages come in."""
    for each in status.listeners:
        yield "", f"{each.kind}   {each.address}   {each.name}".rstrip()
    for source in status.sources:
        yield "source", _source(source, status.at_ms)


def _way(uplink: UplinkState, *, several: bool) -> str:
    label = f"{uplink.name}   {uplink.state}   " if several else ""
    metered = " (metered)" if uplink.metered else ""
    return f"{label}{uplink.way}   {_size(uplink.sent)} up, {_size(uplink.received)} down{metered}"


def _source(source: SourceState, at_ms: int) -> RenderableType:
    from rich.text import Text

    link = source.link
    since = f"{link.state} for {_age(at_ms - link.since_ms)}"
    lines = [f"{source.name}   {since}   {source.url}", f"{source.received:,} messages"]
    if link.error and link.state != "online":
        lines.append(link.error)
    if source.forgotten:
        lines.append(f"the broker has forgotten the session {source.forgotten} times: what it had kept may be lost")
    if source.dropped:
        lines.append(f"{source.dropped:,} messages not taken: too large, or without a topic")
    troubled = link.state != "online" or len(lines) > 2  # noqa: PLR2004 - those that are always there
    return Text("\n".join(lines), style="yellow" if troubled else "green")


def _lasts(status: EdgeStatus) -> str:
    """Say how long the buffer holds, and when its backlog will be gone."""
    if status.holds_s is not None and status.drained_s is None:
        holds = f"holds {say_span(status.holds_s)} more"
    elif status.outage_s is not None:
        holds = f"holds {say_span(status.outage_s)} without the uplink"
    else:
        holds = "does not fill" if status.outlook_known else "how long it holds is not known yet"
    waits = any(lane.count and not lane.held for lane in status.lanes)
    if status.drained_s == 0 and (status.link.state == "online" or not waits):
        held = any(lane.held and lane.count for lane in status.lanes)
        return f"{holds}   no backlog{' but what is held' if held else ''}"
    if status.link.state != "online":
        return holds
    if status.drained_s is not None:
        gone = f"gone in {say_span(status.drained_s)}"
    else:
        gone = "not gone at this rate" if status.outlook_known else "gone when is not known yet"
    return f"{holds}   backlog {gone}"


def _draw_plan(facts: Table, plan: PlanState | None) -> None:
    """Add the data plan's rows, where there is one."""
    if plan is None:
        return
    from rich.text import Text

    style = "red" if plan.used_up else "yellow" if plan.stage else ""
    used = f"{say_bytes(plan.used)} of {say_bytes(plan.budget)} used ({plan.used / plan.budget:.0%})"
    expected = "" if plan.forecast is None else f"   {say_bytes(plan.forecast)} expected by its end"
    facts.add_row("plan", Text(used + expected, style=style))
    cycle = "the cycle is not known while the clock is not set"
    if plan.cycle_ms is not None and plan.ends_ms is not None:
        since = "" if plan.since_ms is None else f", counted since {_day(plan.since_ms)}"
        cycle = f"cycle {_day(plan.cycle_ms)} to {_day(plan.ends_ms)}{since}"
    facts.add_row("", f"{cycle}   idle {say_bytes(plan.idle)} in 30 d")
    if plan.used_up:
        facts.add_row("", Text("the budget is used up: over metered uplinks only control goes", style=style))
    elif plan.held:
        facts.add_row("", Text(f"not over metered uplinks: {', '.join(plan.held)}", style=style))
    if plan.error:
        facts.add_row("", Text(plan.error, style="red"))


def _day(milliseconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(milliseconds // 1000))


def _age(milliseconds: int) -> str:
    seconds = max(0, milliseconds) // 1000
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _size(count: float) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:  # noqa: PLR2004 - a power of two
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

"""The screen *Gateway*: all that is known of one. Pure: a page of sections, in one column or in two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from waybill.fleet_state import (
    DeviceInfo,
    DiskInfo,
    GatewayDetail,
    Health,
    LaneInfo,
    LinkChange,
    PlanInfo,
    Talker,
    Talkers,
)
from waybill.monitor.fleet import CERTIFICATE_SOON, days_left, grade, since
from waybill.monitor.table import Column, Order, arranged, fit, heading, line
from waybill.monitor.words import (
    GAP,
    GLYPHS,
    NEVER,
    Bit,
    Line,
    Tone,
    bar,
    beside,
    bit,
    brief,
    clock,
    count,
    fitted,
    folded,
    moment,
    size,
    span,
    sparkline,
)
from waybill.printable import say_bytes

WIDE: Final = 120
"""Cells from which on there are two columns."""

SHOWN: Final = 8
"""So many topics and devices are listed among the largest."""

FULL_DISK: Final = 0.9
"""The part of a file system from which on it is to be looked at."""

SORTS: Final = ("bytes", "messages")
"""What the largest can be sorted by."""

_NAME: Final = 12  # cells of what stands before a fact
_MARKS: Final[dict[str, Bit]] = {
    "online": Bit("━", "good"),
    "offline": Bit("✖", "bad"),
    "connecting": Bit("┄", "look"),
    "off": Bit("·", "quiet"),
}
_TONES: Final[dict[str, Tone]] = {"online": "good", "offline": "bad", "connecting": "look"}


def page(detail: GatewayDetail, cells: int, order: Order) -> list[Line]:
    """Return the whole page, ``cells`` wide. ``order``: by what talkers are sorted, and which names are looked for."""
    if cells < WIDE:
        return [*_left(detail, cells), *_right(detail, cells, order)]
    half = (cells - GAP) // 2
    return beside(_left(detail, half), _right(detail, cells - GAP - half, order)[1:], half)


def _left(detail: GatewayDetail, cells: int) -> list[Line]:
    health = detail.health
    lines = [*_facts(detail, cells), *_uplinks(health, cells)]
    if health is None:
        return [*lines, (), *folded("Its agent says nothing of itself: it is older than that, or never came.", cells)]
    return [*lines, *_timeline(health, cells), *_lanes(health, cells)]


def _right(detail: GatewayDetail, cells: int, order: Order) -> list[Line]:
    health = detail.health
    if health is None:
        return []
    return [*_sparks(health, cells), *_talkers(health, cells, order), *_devices(health, cells, order)]


def _title(name: str, more: str = "") -> list[Line]:
    return [(), (Bit(name, "head"), Bit(f"  {more}" if more else "", "quiet"))]


def _fact(name: str, words: str, cells: int, tone: Tone = "") -> list[Line]:
    """Return a fact: its name, and what it is in as many lines as it takes."""
    folds = folded(words, max(8, cells - _NAME), tone)
    return [(Bit((name if at == 0 else "").ljust(_NAME), "quiet"), *each) for at, each in enumerate(folds)]


def _facts(detail: GatewayDetail, cells: int) -> list[Line]:
    row, health, now = detail.row, detail.health, detail.at_ms
    tone = grade(row, now)
    uplink = f" on {row.uplink}" if row.uplink and row.state == "online" else ""
    age = since(row, now)
    lasting = "" if age is None else f" for {span(age)}"
    reason = f": {row.reason}" if row.reason and row.state != "online" else ""
    link_tone: Tone = _TONES.get(row.state, "quiet")
    lines = _fact("link", f"{GLYPHS[link_tone]} {row.state}{lasting}{uplink}{reason}", cells, link_tone)
    if row.node:
        lines += _fact("cloud", f"{row.node}, from {row.address}" if row.address else row.node, cells)
    started = f", runs for {span((health.at_ms - health.started_ms) / 1000)}" if health and health.started_ms else ""
    version = row.version or (health.version if health else "")
    lines += _fact("agent", f"waybill {version or 'of an unknown version'}{started}", cells)
    if row.reported_ms:
        lines += _fact("reported", f"{span((now - row.reported_ms) / 1000)} ago", cells)
    if row.trouble and not health:
        lines += _fact("look at", f"{GLYPHS[tone]} {row.trouble}", cells, tone)
    if (days := days_left(row, now)) is not None:
        ends: Tone = "bad" if days <= 0 else "look" if days < CERTIFICATE_SOON else ""
        mark = f"{GLYPHS[ends]} " if ends else ""
        left = f"{int(days)} days left" if days > 0 else "its end is over"
        lines += _fact("certificate", f"{mark}{left}, until {moment(row.certificate_ms)[:10]}", cells, ends)
    return lines if health is None else lines + _own(health, cells)


def _own(health: Health, cells: int) -> list[Line]:
    """Return what the agent says of its faults, its buffer, its disk and its plan."""
    return [*_faults(health, cells), *_buffer(health, cells), *_disk(health.disk, cells), *_plan(health.plan, cells)]


def _faults(health: Health, cells: int) -> list[Line]:
    told: tuple[tuple[str, str, Tone], ...] = (
        ("fault", health.fault, "bad"),
        ("error", health.error, "bad"),
        ("alarm", health.alarm, "bad"),
        ("full", health.full, "look"),
        ("clock", health.clock, "look"),
    )
    lines: list[Line] = []
    for name, words, tone in told:
        if words:
            lines += _fact(name, f"{GLYPHS[tone]} {words}", cells, tone)
    return lines if health.clock else [*lines, *_fact("clock", "set", cells)]


def _buffer(health: Health, cells: int) -> list[Line]:
    waits = sum(lane.count for lane in health.lanes)
    kept = sum(lane.bytes for lane in health.lanes)
    holds = "does not fill as it goes" if health.holds_s is None else f"lasts {span(health.holds_s)} without the uplink"
    gone = ""
    if waits:
        gone = ", not gone at this rate" if health.drained_s is None else f", gone in {span(health.drained_s)}"
    return _fact("buffer", f"{waits:,} messages wait ({size(kept)}){gone}; {holds}", cells)


def _disk(disk: DiskInfo, cells: int) -> list[Line]:
    if not disk.total:
        return []
    used = 1 - disk.free / disk.total
    a_day = "" if disk.per_day is None else f", {size(disk.per_day)} written a day"
    words = f"{bar(used, 8)} {size(disk.free)} free of {size(disk.total)}; buffer {size(disk.buffer)}{a_day}"
    return _fact("disk", words, cells, "look" if used > FULL_DISK else "")


def _plan(plan: PlanInfo | None, cells: int) -> list[Line]:
    if plan is None or plan.budget <= 0:
        return []
    share = plan.used / plan.budget
    more = "" if plan.forecast is None else f", {say_bytes(plan.forecast)} expected"
    until = f" by {moment(plan.ends_ms)[:10]}" if plan.ends_ms and more else ""
    held = f"; waits: {', '.join(plan.held)}" if plan.held else ""
    words = f"used up: {say_bytes(plan.budget)}" if plan.used_up else f"{share:.0%} of {say_bytes(plan.budget)} used"
    tone: Tone = "bad" if plan.used_up else "look" if plan.stage else ""
    return _fact("data plan", f"{bar(share, 8)} {words}{more}{until}{held}", cells, tone)


def _uplinks(health: Health | None, cells: int) -> list[Line]:
    if health is None or not health.uplinks:
        return []
    lines = _title("Uplinks", "since the start")
    for uplink in health.uplinks:
        metered = ", metered" if uplink.metered else ""
        tone: Tone = _TONES.get(uplink.state, "quiet")
        words = (
            f"{uplink.name or 'uplink'} {uplink.state}{metered}; {size(uplink.sent)} up, {size(uplink.received)} down"
        )
        lines += folded(f"{GLYPHS[tone]} {words}", cells, tone if tone != "quiet" else "")
        if uplink.error and uplink.state != "online":
            lines += [(Bit("  "), *each) for each in folded(uplink.error, cells - 2, "look")]
    return lines


# --- the link over time ---


def timeline(links: Sequence[LinkChange], until_ms: int, cells: int) -> Line:
    """Return the link's states from the first change to ``until_ms``, a mark a cell: the worst of that time."""
    if not links or cells < 1:
        return ()
    begin = links[0].at_ms
    if until_ms <= begin:
        mark = _MARKS.get(links[-1].state, _MARKS["off"])
        return (Bit(mark.text * cells, mark.tone),)
    step = (until_ms - begin) / cells
    worst = ("offline", "connecting", "off", "online")
    ends = [each.at_ms for each in links[1:]] + [max(until_ms, links[-1].at_ms)]
    states: list[set[str]] = [set() for _ in range(cells)]
    for change, end in zip(links, ends, strict=True):
        first = min(cells - 1, max(0, int((change.at_ms - begin) / step)))
        last = min(cells - 1, max(first, int((end - begin - 1) / step)))
        for at in range(first, last + 1):
            states[at].add(change.state)
    marks = [_MARKS[next((one for one in worst if one in each), "off")] for each in states]
    joined: list[Bit] = []
    for mark in marks:
        if joined and joined[-1].tone == mark.tone:
            joined[-1] = Bit(joined[-1].text + mark.text, mark.tone)
        else:
            joined.append(mark)
    return tuple(joined)


def _timeline(health: Health, cells: int) -> list[Line]:
    links = health.links
    if not links:
        return []
    until = max(health.at_ms, links[-1].at_ms)
    lines = _title("Link", f"━ online  ✖ offline  ┄ connecting; the last {span((until - links[0].at_ms) / 1000)}")
    lines.append(timeline(links, until, cells))
    lasted = {after.at_ms: (after.at_ms - before.at_ms) / 1000 for before, after in pairwise(links)}
    for change in reversed(links[-5:]):
        tone: Tone = _TONES.get(change.state, "quiet")
        on = f" on {change.uplink}" if change.uplink else ""
        why = f": {change.reason}" if change.reason else ""
        before = f", after {span(lasted[change.at_ms])}" if change.at_ms in lasted else ""
        lines.append(
            fitted((Bit(f"{moment(change.at_ms)[5:]} ", "quiet"), bit(f"{change.state}{on}{before}{why}", tone)), cells)
        )
    return lines


# --- tables of the page ---


def _lanes(health: Health, cells: int) -> list[Line]:
    now = health.at_ms

    def gone(name: str, rank: int) -> Column[LaneInfo]:
        return Column(name, 7, lambda lane: _some(getattr(lane, name)), right=True, rank=rank)

    columns: list[Column[LaneInfo]] = [
        Column(
            "lane",
            10,
            lambda lane: bit(f"{lane.lane} (full)" if lane.full else lane.lane, "look" if lane.full else ""),
            grow=1,
        ),
        Column("waiting", 7, lambda lane: Bit(count(lane.count)), right=True),
        Column("bytes", 9, lambda lane: Bit(size(lane.bytes)), right=True),
        Column(
            "oldest", 6, lambda lane: Bit(brief((now - lane.oldest_ms) / 1000) if lane.oldest_ms else ""), right=True
        ),
        Column("cap", 9, lambda lane: Bit(size(lane.cap) if lane.cap else ""), right=True, rank=3),
        *(gone(name, rank) for name, rank in (("dropped", 1), ("expired", 4), ("refused", 2))),
        Column("held by", 9, lambda lane: bit(", ".join(lane.held), "look"), rank=5, grow=2),
    ]
    fitting = fit(columns, cells)
    return [*_title("Lanes"), heading(fitting, Order()), *(line(lane, fitting) for lane in health.lanes)]


def _some(number: int) -> Bit:
    return Bit(count(number), "look") if number else Bit("")


def _sparks(health: Health, cells: int) -> list[Line]:
    history = health.history
    points = len(history.rate_in)
    if not points:
        return []
    wide = max(10, cells - 31)
    lines = _title("Rates", f"the last {span(min(points, wide) * history.step_s)} until {clock(history.until_ms)}Z")
    latency = [value or 0.0 for value in history.latency_ms]
    said = [value for value in history.latency_ms if value is not None]
    for name, values, unit, newest in (
        ("in", history.rate_in, "/s", health.rate_in),
        ("out", history.rate_out, "/s", health.rate_out),
        ("bytes", history.bytes_per_min, " B/min", health.bytes_per_min),
        ("latency", latency, " ms", said[-1] if said else None),
    ):
        if not values:
            continue
        seen = values[-wide:]
        now = NEVER if newest is None else f"{count(newest)}{unit}"
        lines.append(
            (
                Bit(name.ljust(8), "quiet"),
                Bit(sparkline(seen, wide).rjust(wide)),
                Bit(f" {now:<11}"),
                Bit(f"top {count(max(seen))}", "quiet"),
            )
        )
    return lines


def _talkers(health: Health, cells: int, order: Order) -> list[Line]:
    talkers = health.talkers
    if not talkers.count:
        return []
    by_count = order.column == "messages"
    since_when = f"since {moment(talkers.since_ms)[:16]}" if talkers.since_ms else "since the start"
    ratio = f", {size(talkers.wire)} on the wire" if talkers.wire else ""
    lines = _title(
        "Who eats the data plan", f"{since_when}: {count(talkers.count)} messages, {size(talkers.bytes)}{ratio}"
    )
    lists = (
        ("topic", talkers.topics_by_count if by_count else talkers.topics_by_bytes),
        ("device", talkers.devices_by_count if by_count else talkers.devices_by_bytes),
    )
    for name, largest in lists:
        if largest:
            lines += _largest(name, largest, talkers, cells, order, by_count=by_count)
    return lines


def _largest(
    name: str, largest: Sequence[Talker], talkers: Talkers, cells: int, order: Order, *, by_count: bool
) -> list[Line]:
    def share(talker: Talker) -> float:
        whole = talkers.count if by_count else talkers.bytes
        return (talker.count if by_count else talker.bytes) / whole if whole else 0.0

    columns: list[Column[Talker]] = [
        Column(name, 16, lambda one: bit(one.name), grow=1),
        Column(
            "messages", 9, lambda one: _about(count(one.count), one.over_count), lambda one: one.count, True, 0, 0, True
        ),
        Column(
            "bytes", 10, lambda one: _about(size(one.bytes), one.over_bytes), lambda one: one.bytes, True, 0, 0, True
        ),
        Column("share", 14, lambda one: Bit(f"{bar(share(one), 8)} {share(one):4.0%}")),
    ]
    by = Order(order.filter, "messages" if by_count else "bytes")
    fitting = fit(columns, cells)
    return [heading(fitting, by), *(line(one, fitting) for one in arranged(largest, columns, by)[:SHOWN])]


def _about(words: str, over: int) -> Bit:
    return Bit(f"≤{words}" if over else words)


def _devices(health: Health, cells: int, order: Order) -> list[Line]:
    some = f"{health.connected:,} connected"
    if len(health.devices) < health.connected:
        some += f", {len(health.devices):,} of them listed" if health.devices else ""
    columns: list[Column[DeviceInfo]] = [
        Column("device", 16, lambda one: bit(one.device), lambda one: one.device, grow=2),
        Column("connected for", 13, lambda one: Bit(_for(health.at_ms, one.since_ms)), right=True),
        Column("from", 21, lambda one: bit(one.address), grow=1),
    ]
    lines = _title("Devices", some)
    if not health.devices:
        return lines
    fitting = fit(columns, cells)
    found = arranged(health.devices, columns, Order(order.filter, "device"))
    return [*lines, heading(fitting, Order(column="device")), *(line(one, fitting) for one in found)]


def _for(now: int, since_ms: int) -> str:
    return span((now - since_ms) / 1000) if since_ms else NEVER


def summary(detail: GatewayDetail) -> Line:
    """Say in one line whose page it is, and how that gateway is."""
    row = detail.row
    tone = grade(row, detail.at_ms)
    return bit(f"{row.gateway}  ", "head"), bit(f"{GLYPHS[tone]} {row.state}", tone), bit(f"  {row.trouble}", tone)

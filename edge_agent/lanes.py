"""Lanes as configured (``[[lane]]``): which topics, how urgent, what becomes of them when there is no room. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal

import msgspec

from waybill.errors import ConfigError
from waybill.mqtt.topics import valid_filter
from waybill.wire import CONTROL_LANE, LANE_NAME, TELEMETRY_LANE

MAX_LANES: Final = 32
"""Lanes of a configuration: each costs a block in every commit that touches it."""

MAX_LEVELS: Final = 64
"""Levels of a topic filter."""

_LEAST: Final = 64 << 10

WhenFull = Literal["reject", "drop-oldest", "drop-newest"]


class Lane(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One lane.

    ``filters``: MQTT topic filters of what it takes; the first lane of the file that matches has the message, and
    ``telemetry`` what no other claims. ``priority``: lower goes first; 0 is the control lane's. ``share``: per cent of
    the link that it gets while more urgent lanes have something to send. ``order``: ``fresh-first`` sends the newest
    first and the backlog behind it. ``durability``: ``relaxed`` acknowledges what a power cut may still take away.
    ``ttl_s``: seconds after which a message is not worth sending, 0: never. ``max_bytes``: what it may take of the
    buffer, 0: as much as there is. ``when_full``: what gives way at that, or at the buffer's own limits. ``only_on``:
    names of the uplinks that it may use; none: any.
    """

    name: str
    priority: Annotated[int, msgspec.Meta(ge=0, le=255)] = 10
    filters: tuple[str, ...] = ()
    share: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    order: Literal["fifo", "fresh-first"] = "fifo"
    durability: Literal["every-commit", "relaxed"] = "every-commit"
    ttl_s: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    when_full: WhenFull = "reject"
    only_on: tuple[str, ...] = ()


CONTROL: Final = Lane(CONTROL_LANE, 0)
"""What the agent itself has to say, such as receipts. It goes first, and nothing of it is refused or dropped."""


def complete(configured: Sequence[Lane], found: Iterable[str] = ()) -> tuple[Lane, ...]:
    """Return all lanes there are: the control lane, those configured, and telemetry, whether it is configured or not.

    ``found``: names of lanes that the buffer holds messages of; those that are not configured any more are sent like
    telemetry without settings.
    """
    lanes = {lane.name: lane for lane in (CONTROL, *configured)}
    for name in (TELEMETRY_LANE, *found):
        lanes.setdefault(name, Lane(name))
    return tuple(lanes.values())


def check(lanes: Sequence[Lane], where: str) -> None:
    """Check what a type cannot say; ``where`` names the file. Raises ConfigError."""
    if len(lanes) > MAX_LANES:
        raise ConfigError(f"{where}: lane: {len(lanes)} of them; {MAX_LANES} are the most")
    seen: set[str] = set()
    for number, lane in enumerate(lanes, 1):
        if wrong := _fault(lane) or ("name: another lane has the same" if lane.name in seen else ""):
            raise ConfigError(f"{where}: [[lane]] {number} {wrong}")
        seen.add(lane.name)
    if sum(lane.share for lane in lanes) > 100:  # noqa: PLR2004 - per cent
        raise ConfigError(f"{where}: [[lane]] share: together they are over 100 per cent; lower some")


def _fault(lane: Lane) -> str:
    """Return what is wrong with one lane, and the mend; empty: nothing."""
    if lane.name == CONTROL_LANE:
        return f"name: {CONTROL_LANE!r} is the agent's own lane; choose another"
    if not LANE_NAME.fullmatch(lane.name):
        return f"name: {lane.name!r} cannot name a lane: use 1 to 64 letters, digits, '.', '_', '-'"
    if lane.priority == CONTROL.priority:
        return "priority: 0 is the control lane's; use 1 to 255"
    if 0 < lane.max_bytes < _LEAST:
        return (
            f"max_bytes: {lane.max_bytes} is too little to work with: use {_LEAST} or more, or 0 for no cap of its own"
        )
    return _fault_of_filters(lane)


def _fault_of_filters(lane: Lane) -> str:
    if lane.name == TELEMETRY_LANE:
        return f"filters: {TELEMETRY_LANE!r} takes what no other lane claims; leave them out" if lane.filters else ""
    if not lane.filters:
        return 'filters: which topics is it for? write filters = ["…"]'
    for text in lane.filters:
        if not valid_filter(text, MAX_LEVELS) or text.startswith("$"):
            return (
                f"filters: {text!r} is no filter of topics that go up: '+' stands for one whole level, "
                "'#' for the rest and comes last; topics that begin with $ stay"
            )
    return ""

"""``--once``: a screen as plain text, whole, and how healthy what it shows is. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from waybill.fleet_state import CommandsState, FleetSnapshot, GatewayDetail, KafkaState
from waybill.monitor import fleet, kafka
from waybill.monitor.table import Order, arranged, fit, heading, line
from waybill.monitor.views import Table, View
from waybill.monitor.words import Line, Tone, text

CODES: Final[dict[Tone, int]] = {"look": 3, "bad": 4}
"""Exit codes by health; 0: nothing is to be looked at."""

PAGE: Final = 119
"""Cells of a page at most: one column, for programs that read lines."""

WIDTH: Final = 160
"""Cells where nobody says how many there are."""


def once(view: View, picture: Any, cells: int, words: str = "") -> str:  # noqa: ANN401 - the view's picture
    """Return the whole screen; ``words``: as a person filters."""
    order = view.order if not words else type(view.order)(words, view.order.column)
    lines: list[Line] = [view.summary(picture)]
    if isinstance(view.body, Table):
        columns = view.body.columns
        fitting = fit(columns, cells)
        rows = arranged(view.body.rows(picture), columns, order, view.body.text)
        lines += [*view.body.notes(picture), heading(fitting, order), *(line(row, fitting) for row in rows)]
    else:
        lines += view.body.lines(picture, min(cells, PAGE), order)
    return "\n".join(map(text, lines))


def kept(picture: Any, words: str) -> Any:  # noqa: ANN401 - any view's picture
    """Return a fleet with the gateways alone that ``words`` keep; any other picture as it is."""
    if not words or not isinstance(picture, FleetSnapshot):
        return picture
    rows = arranged(fleet.rows(picture), fleet.COLUMNS, Order(words), fleet.words)
    return msgspec.structs.replace(picture, gateways=tuple(one.row for one in rows))


def health(picture: Any) -> Tone:  # noqa: ANN401 - any view's picture
    """Return the worst there is: ``bad``, ``look``, or ``good``."""
    tones: set[Tone] = set()
    if isinstance(picture, FleetSnapshot):
        tones = {fleet.grade(row, picture.at_ms) for row in picture.gateways}
        if picture.faults or picture.left_out:
            tones.add("look")
    elif isinstance(picture, GatewayDetail):
        own = picture.health
        tones = {fleet.grade(picture.row, picture.at_ms)}
        if own is not None and (own.fault or own.error or own.alarm):
            tones.add("bad")
        if own is not None and (own.full or own.clock):
            tones.add("look")
    elif isinstance(picture, KafkaState):
        tones = {kafka.grade(picture)}
    elif isinstance(picture, CommandsState) and picture.fault:
        tones = {"look"}
    return "bad" if "bad" in tones else "look" if "look" in tones else "good"

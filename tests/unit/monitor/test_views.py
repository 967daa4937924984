"""What is drawn of a picture, and how healthy it is."""

from __future__ import annotations

import msgspec
import pytest

from tests.support import pictures as p
from waybill.fleet_state import (
    CommandsState,
    FleetSnapshot,
    GatewayDetail,
    GatewayRow,
    Health,
    KafkaState,
    LinkChange,
    LogLine,
    LogState,
    TopicState,
)
from waybill.monitor import fleet, gateway, kafka, logs, plain
from waybill.monitor.panes import Pane
from waybill.monitor.sources import PAUSES, Feed
from waybill.monitor.table import Order
from waybill.monitor.views import VIEWS, whole
from waybill.monitor.words import Tone, text

WELL = GatewayRow("g", "online", p.NOW - p.HOUR, reported_ms=p.NOW)


def told(*rows: GatewayRow, gone: tuple[str, ...] = (), full: bool = False) -> FleetSnapshot:
    return FleetSnapshot(p.NOW, "d", "n", "r", full, rows, gone)


@pytest.mark.parametrize(
    ("fields", "tone"),
    [
        ({}, "good"),
        ({"state": "offline"}, "bad"),
        ({"state": "connecting"}, "look"),
        ({"state": "unknown"}, "quiet"),
        ({"trouble": "a fault"}, "look"),
        ({"dropped": 1}, "look"),
        ({"plan_used": 1.0}, "look"),
        ({"certificate_ms": p.NOW + 13 * p.DAY}, "look"),
        ({"certificate_ms": p.NOW + 15 * p.DAY}, "good"),
        ({"certificate_ms": p.NOW - 1}, "bad"),
    ],
)
def test_how_a_gateway_is(fields: dict[str, object], tone: Tone) -> None:
    assert fleet.grade(msgspec.structs.replace(WELL, **fields), p.NOW) == tone


def test_a_fleet_is_what_was_known_with_what_changed() -> None:
    names = [msgspec.structs.replace(WELL, gateway=name) for name in "abc"]
    known = fleet.merged(None, told(*names, full=True))
    changed = msgspec.structs.replace(names[1], state="offline")
    new = msgspec.structs.replace(WELL, gateway="aa")
    after = fleet.merged(known, told(changed))
    assert [(row.gateway, row.state) for row in after.gateways] == [("a", "online"), ("b", "offline"), ("c", "online")]
    after = fleet.merged(after, told(new, gone=("c", "never was")))
    assert [row.gateway for row in after.gateways] == ["a", "aa", "b"]
    after = fleet.merged(after, told(new, full=True))
    assert [row.gateway for row in after.gateways] == ["aa"]
    assert after.full


def test_an_uplink_without_a_name_is_told_by_its_number() -> None:
    row = msgspec.structs.replace(WELL, uplink="[[uplink]] 2")
    assert " uplink 2 " in plain.once(VIEWS["fleet"], told(row, full=True), 160, "")


def test_a_log_is_what_was_known_with_what_came() -> None:
    def lines(first: int, last: int, what: str = "x") -> LogState:
        return LogState(0, tuple(LogLine(n, n, "info", "s", what) for n in range(first, last + 1)), "")

    known = logs.merged(None, lines(1, 3))
    assert [line.number for line in logs.merged(known, lines(4, 5)).lines] == [1, 2, 3, 4, 5]
    assert [line.number for line in logs.merged(known, LogState(0)).lines] == [1, 2, 3]
    anew = logs.merged(known, lines(1, 2, "after a restart"))
    assert [line.text for line in anew.lines] == ["after a restart"] * 2
    assert len(logs.merged(lines(1, logs.KEPT), lines(logs.KEPT + 1, logs.KEPT + 9)).lines) == logs.KEPT


def test_the_link_over_time_shows_the_worst_of_each_cell() -> None:
    links = (
        LinkChange(0, "online"),
        LinkChange(500, "offline"),
        LinkChange(510, "connecting"),
        LinkChange(520, "online"),
    )
    assert text(gateway.timeline(links, 1000, 10)) == "━━━━━✖━━━━"
    assert text(gateway.timeline(links[:2], 1000, 10)) == "━━━━━✖✖✖✖✖"
    assert gateway.timeline((), 1000, 10) == ()
    assert text(gateway.timeline(links[:1], 0, 4)) == "━━━━"


@pytest.mark.parametrize("cells", [20, 40, 80, 119, 120, 200])
def test_nothing_of_a_page_is_obeyed_by_a_terminal(cells: int) -> None:
    detail = p.gateway(p.HOSTILE)
    for line in [*gateway.page(detail, max(cells, 80), Order()), *kafka.page(p.kafka(), max(cells, 80), Order())]:
        assert text(line).isprintable()
    assert gateway.page(GatewayDetail(p.NOW, WELL), cells, Order())


def test_a_gateway_that_says_nothing_of_itself_says_that() -> None:
    said = "\n".join(map(text, gateway.page(GatewayDetail(p.NOW, WELL), 80, Order())))
    assert "says nothing of itself" in said
    empty = "\n".join(map(text, gateway.page(GatewayDetail(p.NOW, WELL, Health(p.NOW)), 80, Order())))
    assert "0 messages wait" in empty


def test_devices_and_talkers_are_filtered_and_sorted() -> None:
    by_count = "\n".join(map(text, gateway.page(p.gateway(), 80, Order(column="messages"))))
    assert by_count.index("vehicles/V1/telemetry") < by_count.index("camera/thumbnail")
    by_bytes = "\n".join(map(text, gateway.page(p.gateway(), 80, Order(column="bytes"))))
    assert by_bytes.index("vehicles/V1/telemetry") > by_bytes.index("camera/thumbnail")
    found = "\n".join(map(text, gateway.page(p.gateway(), 80, Order("v12"))))
    assert "192.168.4.12" in found
    assert "192.168.4.11" not in found


@pytest.mark.parametrize(
    ("picture", "tone", "code"),
    [
        (told(WELL), "good", 0),
        (told(WELL, msgspec.structs.replace(WELL, state="unknown")), "good", 0),
        (told(WELL, msgspec.structs.replace(WELL, dropped=2)), "look", 3),
        (told(WELL, msgspec.structs.replace(WELL, state="offline")), "bad", 4),
        (msgspec.structs.replace(told(WELL), faults=("the log is away",)), "look", 3),
        (GatewayDetail(p.NOW, WELL, Health(p.NOW)), "good", 0),
        (GatewayDetail(p.NOW, WELL, Health(p.NOW, full="a lane")), "look", 3),
        (GatewayDetail(p.NOW, WELL, Health(p.NOW, fault="the disk")), "bad", 4),
        (KafkaState(p.NOW, "kafka"), "good", 0),
        (KafkaState(p.NOW, "kafka", topics=(TopicState("t", "route", under_replicated=1),)), "look", 3),
        (KafkaState(p.NOW, "kafka", topics=(TopicState("t", "route", offline=1),)), "bad", 4),
        (KafkaState(p.NOW, "kafka", fault="no broker answers"), "bad", 4),
        (CommandsState(p.NOW), "good", 0),
        (CommandsState(p.NOW, fault="not read"), "look", 3),
        (LogState(p.NOW), "good", 0),
    ],
)
def test_health_is_the_worst_there_is(picture: object, tone: Tone, code: int) -> None:
    assert plain.health(picture) == tone
    assert plain.CODES.get(tone, 0) == code


def test_health_is_that_of_the_rows_that_are_asked_for() -> None:
    away = msgspec.structs.replace(WELL, gateway="away", state="offline")
    picture = told(WELL, away)
    assert plain.health(plain.kept(picture, "away")) == "bad"
    assert plain.health(plain.kept(picture, "!away")) == "good"
    assert plain.kept(picture, "away").gateways == (away,)
    assert plain.kept(picture, "") == picture


def test_one_screen_as_plain_text_has_every_row() -> None:
    said = plain.once(VIEWS["fleet"], p.fleet(), 160).splitlines()
    assert len(said) == 242
    assert said[1].split()[:3] == ["gateway", "link↑", "backlog"]
    assert len(plain.once(VIEWS["fleet"], p.fleet(), 160, "offline").splitlines()) == 8
    assert all(line.isprintable() for line in plain.once(VIEWS["gateway"], p.gateway(p.HOSTILE), 160).splitlines())


def test_a_row_says_all_that_its_columns_have_no_room_for() -> None:
    view = VIEWS["commands"]
    pane = Pane(view)
    pane.feed = Feed().arrived(p.commands(), 0, 1)
    said = "\n".join(map(text, whole(view.body, pane.row, 60)))  # type: ignore[arg-type] # a table
    assert '{"locked":true}' in said
    assert "c-9000" in said


def test_a_feed_that_fails_waits_longer_each_time_and_keeps_its_picture() -> None:
    feed = Feed().arrived(p.log(), 100.0, 1.0)
    assert (feed.due, feed.error) == (101.0, "")
    for at, pause in enumerate([*PAUSES, PAUSES[-1], PAUSES[-1]]):
        feed = feed.failed("away", 200.0 + at)
        assert (feed.due, feed.lost, feed.seen) == (200.0 + at + pause, 200.0, 100.0)
    assert feed.picture is not None
    assert feed.arrived(p.log(), 300.0, 1.0).failures == 0


def pane_of(count: int, order: Order | None = None) -> Pane:
    pane = Pane(VIEWS["fleet"])
    pane.order = order or pane.order
    pane.feed = Feed().arrived(p.fleet(count), 0, 1)
    return pane


def test_the_row_that_is_looked_at_stays_when_others_move() -> None:
    pane = pane_of(240, Order(column="gateway"))
    pane.lines(80, 20, "")
    pane.move(30)
    assert pane.row.row.gateway == "depot-0031"
    pane.feed = Feed().arrived(p.fleet(240, p.NOW + 1000), 1, 1)
    assert pane.row.row.gateway == "depot-0031"
    lines, cursor = pane.lines(80, 20, "")
    assert cursor is not None
    assert "depot-0031" in text(lines[cursor])
    pane.feed = Feed().arrived(p.fleet(10), 2, 1)  # it is gone
    assert pane.row.row.gateway == "depot-0010"


def test_whoever_looks_at_the_first_row_sees_what_comes_to_the_top() -> None:
    pane = pane_of(240)
    assert pane.row.row.gateway == "depot-0040"
    rows = [msgspec.structs.replace(row, state="online" if row.gateway != "depot-0007" else "offline")
            for row in p.fleet(240).gateways]  # fmt: skip
    pane.feed = Feed().arrived(msgspec.structs.replace(p.fleet(240), gateways=tuple(rows)), 1, 1)
    assert pane.row.row.gateway == "depot-0007"


def test_a_log_follows_its_end_until_one_looks_elsewhere() -> None:
    pane = Pane(VIEWS["log"])
    lines = p.log().lines
    pane.feed = Feed().arrived(LogState(p.NOW, lines[:30]), 0, 1)
    assert pane.row.number == 30
    pane.feed = Feed().arrived(LogState(p.NOW, lines[:31]), 0, 1)
    assert pane.row.number == 31
    pane.lines(80, 20, "")
    pane.move(-3)
    pane.feed = Feed().arrived(LogState(p.NOW, lines), 0, 1)
    assert pane.row.number == 28
    pane.end(first=False)
    assert pane.row.number == 60
    assert pane.position == "13–31 of 31"  # as it was last drawn


def test_an_empty_table_says_so() -> None:
    pane = pane_of(0)
    assert "nothing" in text(pane.lines(80, 20, "")[0][-1])
    assert pane.row is None
    pane.move(1)
    assert pane.about() == ()

"""The table of all gateways: what the topics say, what has changed since, its bounds; and the newest commands."""

from __future__ import annotations

import sys
import zlib

import msgspec
import pytest

from cloud_ingest.fleet import state
from cloud_ingest.fleet.recent import KEPT, Recent
from cloud_ingest.fleet.state import Fleet, is_gateway, lags
from cloud_ingest.journal.port import TopicRecord
from cloud_ingest.presence import Here
from tests.unit.shared.test_health import NOW, TYPICAL
from waybill.errors import Refused
from waybill.fleet_state import FleetSnapshot, GatewayRow
from waybill.health import pack, unpack
from waybill.wire import CommandStatus

BLANK = FleetSnapshot(NOW, "fleet", "node:1", "", full=True, gateways=())
HEALTH = msgspec.json.encode(unpack(pack(TYPICAL)))


class Table(Fleet):
    """One whose answers are read as a reader reads them."""

    def __init__(self, limit: int = state.LIMIT) -> None:
        self.told: list[tuple[str, str, str]] = []
        super().__init__("start", lambda _: 3, lambda level, who, text, _: self.told.append((level, who, text)), limit)

    def ask(self, since: str = "") -> FleetSnapshot:
        return msgspec.json.decode(msgspec.json.encode(self.snapshot(since, BLANK)), type=FleetSnapshot)

    def row(self, gateway: str = "gw") -> GatewayRow:
        return next(one for one in self.ask().gateways if one.gateway == gateway)


def here(state: str, connection: str = "c1", gateway: str = "gw", reason: str = "") -> Here:
    return Here(state, NOW, gateway, "", "node:1", connection, reason, "0.1.0", "10.0.0.1:1")  # type: ignore[arg-type]


def test_a_gateway_that_comes_says_how_it_is_and_goes() -> None:
    table = Table()
    table.presence("gw", here("online"), live=True)
    assert (table.row().state, table.row().node, table.row().partition) == ("online", "node:1", 3)
    assert table.row().backlog is None
    table.health("gw", HEALTH, NOW + 5, live=True)
    row = table.row()
    assert (row.backlog, row.reported_ms, row.uplink, row.devices) == (123_458, NOW + 5, "lte", 40)
    table.presence("gw", here("offline", reason="keepalive"), live=True)
    row = table.row()
    assert (row.state, row.reason, row.backlog) == ("offline", "keepalive", 123_458)
    assert table.told == [
        ("info", "gw", "online from 10.0.0.1:1"),
        ("warning", "gw", "the buffer was cut off"),
        ("warning", "gw", "offline: keepalive"),
    ]
    detail = table.detail("gw", NOW)
    assert detail.row == row
    assert detail.health == msgspec.json.decode(HEALTH, type=type(TYPICAL))


def test_c3_an_older_connections_offline_is_not_believed() -> None:
    table = Table()
    table.presence("gw", here("online", "c2"), live=True)
    table.presence("gw", here("offline", "c1"), live=True)
    assert table.row().state == "online"


def test_what_was_there_at_the_start_is_no_news() -> None:
    table = Table()
    table.presence("gw", here("offline"), live=False)
    table.health("gw", HEALTH, NOW, live=False)
    assert not table.told


def test_an_agent_that_says_nothing_of_itself_is_known_by_its_presence_alone() -> None:
    table = Table()
    table.presence("gw", here("online"), live=True)
    assert table.detail("gw", NOW).health is None
    table.health("other", HEALTH, NOW, live=True)
    assert table.row("other").state == "unknown"
    assert (table.ask().total, table.ask().online, table.ask().offline) == (2, 1, 0)
    table.health("other", None, NOW, live=True)
    assert table.row("other") == GatewayRow("other", version="0.1.0", partition=3)
    with pytest.raises(Refused, match="nothing is known"):
        table.detail("none", NOW)


def test_who_asked_before_is_told_what_has_changed() -> None:
    table = Table()
    for name in ("a", "b", "c"):
        table.presence(name, here("online", gateway=name), live=True)
    first = table.ask()
    assert (first.full, len(first.gateways)) == (True, 3)
    assert table.ask(first.revision).gateways == ()
    table.presence("b", here("online", gateway="b"), live=True)  # as it was: no change
    assert table.ask(first.revision).revision == first.revision
    table.presence("b", here("offline", gateway="b"), live=True)
    table.presence("c", None, live=True)
    changed = table.ask(first.revision)
    assert ([one.gateway for one in changed.gateways], changed.gone, changed.full) == (["b"], ("c",), False)
    assert not table.ask(changed.revision).gateways
    assert not table.ask(changed.revision).gone


@pytest.mark.parametrize(
    "since", ["", "start", "other-0", "start-x", "start--1", "start-99", f"start-{'9' * 9999}", "-"]
)
def test_a_place_that_means_nothing_here_gets_all(since: str) -> None:
    table = Table()
    table.presence("gw", here("online"), live=True)
    assert (table.ask(since).full, len(table.ask(since).gateways)) == (True, 1)


def test_who_was_away_while_more_was_forgotten_than_is_remembered_gets_all() -> None:
    table = Table()
    before = table.ask().revision
    for number in range(state.FORGOTTEN + 1):
        table.presence(f"g{number}", here("online", gateway=f"g{number}"), live=False)
        table.presence(f"g{number}", None, live=False)
    assert table.ask(before).full
    assert not table.ask(table.revision).full


def test_there_is_a_limit_and_what_is_beyond_is_counted() -> None:
    table = Table(limit=2)
    for name in ("a", "b", "c", "d"):
        table.presence(name, here("online", gateway=name), live=True)
        table.health(name, HEALTH, NOW, live=True)
    found = table.ask()
    assert ([one.gateway for one in found.gateways], found.left_out) == (["a", "b"], 2)
    with pytest.raises(Refused, match="no room"):
        table.detail("c", NOW)


def test_a_gateway_takes_less_than_2_kb() -> None:
    table = Table()
    table.presence("depot-0001", here("online", gateway="depot-0001"), live=True)
    table.health("depot-0001", HEALTH, NOW, live=True)
    one = table._gateways["depot-0001"]
    parts = (one, "depot-0001", one.row, one.health, one.connection, one.changed)
    assert sum(map(sys.getsizeof, parts)) + 100 < 2_000  # and its place in the table
    assert zlib.decompress(one.health) == HEALTH


def test_names_of_the_topics_keys() -> None:
    found = [is_gateway(key) for key in ("gw", "gw/V1", "/V1", "node:1", "")]
    assert found == [True, False, False, False, False]
    assert lags([(1, 5), (7, 3)], 3) == (None, 5, None)


def command(name: str, stamp: int, gateway: str = "gw") -> TopicRecord:
    value = msgspec.json.encode(
        {"id": name, "gateway": gateway, "device": "V1", "name": "horn", "expires_at": NOW + 5_000}
    )
    return TopicRecord("waybill.commands", 0, 0, stamp, b"gw", value, ())


def said(name: str, state: str, at_ms: int, result: bytes | None = None) -> TopicRecord:
    value = msgspec.json.encode(CommandStatus(name, "gw", "V1", state, at_ms, result))  # type: ignore[arg-type]
    return TopicRecord("waybill.command-status", 0, 0, at_ms, name.encode(), value, ())


def test_commands_and_their_states_in_any_order() -> None:
    recent = Recent()
    recent.status(said("c2", "delivered", NOW + 3))
    recent.command(command("c1", NOW))
    recent.command(command("c2", NOW + 1))
    recent.command(command("c2", NOW + 9, gateway="other"))  # the first of an id wins
    recent.status(said("c2", "done", NOW + 4, b"honked\xff"))
    recent.status(said("c2", "expired", NOW + 5))  # so does the first end
    recent.status(TopicRecord("waybill.command-status", 0, 0, 0, None, b"{", ()))
    recent.command(TopicRecord("waybill.commands", 0, 0, 0, None, b"{", ()))
    two, one = recent.newest()
    assert (one.id, one.state, one.name, one.written_ms) == ("c1", "open", "horn", NOW)
    assert (two.id, two.state, two.gateway, two.result, two.at_ms) == ("c2", "done", "gw", "honked�", NOW + 4)


def test_only_the_newest_commands_are_kept() -> None:
    recent = Recent()
    for number in range(3 * KEPT):
        recent.command(command(f"c{number}", NOW + number))
        assert len(recent._rows) <= 2 * KEPT
    found = recent.newest()
    assert (len(found), found[0].id, found[-1].id) == (KEPT, f"c{3 * KEPT - 1}", f"c{2 * KEPT}")

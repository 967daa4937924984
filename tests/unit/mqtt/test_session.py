"""waybill.mqtt.session: packet ids of what goes out."""

from __future__ import annotations

from tests.unit.mqtt import rig
from tests.unit.mqtt.rig import Rig
from waybill.mqtt.session import IDS, packet_id


def test_ids_go_round_and_are_never_0() -> None:
    assert [packet_id(n) for n in (1, 2, IDS, IDS + 1)] == [b"\0\1", b"\0\2", b"\xff\xff", b"\0\1"]


def test_an_id_that_is_still_open_is_not_used_again() -> None:
    r = Rig()
    sub = r.client("sub", clean=False)
    sub.feed(rig.subscribe(("a", 1)))
    r.commit()
    sub.take()
    pub = r.client("pub")
    pub(rig.publish("a", b"first", 1, 1))
    r.commit()
    assert sub.take() == rig.publish("a", b"first", 1, 1)
    r.broker.sessions["sub"].next_n = IDS + 1  # as after 65,534 more
    pub(rig.publish("a", b"second", 1, 2))
    r.commit()
    assert sub.take() == b""
    assert sub(rig.puback(1)) == rig.publish("a", b"second", 1, 1)

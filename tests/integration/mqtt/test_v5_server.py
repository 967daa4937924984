"""MQTT 5 over sockets: what no client library does, and what the clock decides."""

from __future__ import annotations

from tests.integration.mqtt.conftest import Raw, Site, Start
from tests.unit.mqtt import rig, v5
from waybill.mqtt.settings import Settings


async def device(site: Site, name: str = "dev", properties: bytes = b"", *, clean: bool = True) -> Raw:
    raw = await site.raw(v5.connect(name, properties, clean=clean))
    (answer,) = v5.packets(await one(raw))
    assert (answer.kind, answer.reason) == (0x20, 0)
    return raw


async def one(raw: Raw) -> bytes:
    """Read one packet with a short remaining length."""
    head = await raw.reader.readexactly(2)
    assert head[1] < 128
    return head + await raw.reader.readexactly(head[1])


async def test_keepalive_expiry_says_so_and_fires_the_will(site: Site) -> None:
    raw = await site.raw(v5.connect(keepalive=1, will=("w", b"gone", 1, False, v5.CONTENT)))
    await one(raw)
    (said,) = v5.packets(await raw.expect_end())
    assert (said.kind, said.reason) == (0xE0, 0x8D)
    await site.until(lambda: site.stored == [b"gone"])


async def test_sessions_and_wills_end_by_the_clock(site: Site) -> None:
    raw = await site.raw(v5.connect("dev", v5.expiry(3), will=("w", b"gone", 1, False, v5.delay(100))))
    await one(raw)
    await raw.send(v5.subscribe(("a", 1)))
    await one(raw)
    raw.reset()
    await site.until(lambda: site.server.counters.connections == 0)
    assert "dev" in site.server.broker.sessions
    await site.until(lambda: site.stored == [b"gone"])
    assert "dev" not in site.server.broker.sessions
    assert not site.sink._sessions


async def test_a_version_5_session_over_a_restart_of_the_server(start: Start) -> None:
    first = await start()
    sub = await device(first, "sub", v5.expiry(600), clean=False)
    await sub.send(v5.subscribe(("a", 1), ("$share/g/b", 1), properties=v5.identifier(9)))
    assert await one(sub) == v5.suback(1, 1)
    sub.close()
    pub = await device(first, "pub")
    await pub.send(v5.publish("a", b"x", 1, 1, v5.CONTENT + v5.expires(100)) + v5.publish("b", b"y", 1, 2))
    await pub.expect(rig.puback(1) + rig.puback(2))
    await first.server.close()
    second = await start(sink=first.sink)
    sub = await second.raw(v5.connect("sub", v5.expiry(600), clean=False))
    answer, one_message, other = v5.packets(await one(sub) + await one(sub) + await one(sub))
    assert answer.present
    assert (one_message.body, one_message.values(3), one_message.number(0x0B)) == (b"x", [b"text/plain"], 9)
    assert 90 <= (one_message.number(2) or 0) <= 100
    assert other.body == b"y"


async def test_too_much_under_way_ends_the_connection(start: Start) -> None:
    site = await start(Settings(receive_maximum=2))
    raw = await device(site)
    site.sink.gate.clear()
    await raw.send(*[v5.publish("a", b"%d" % n, 1, n) for n in (1, 2)])
    await site.until(lambda: site.sink.waiting)
    await raw.send(v5.publish("a", b"3", 1, 3))
    (said,) = v5.packets(await raw.expect_end())
    assert said.reason == 0x93
    site.sink.gate.set()
    await site.until(lambda: site.stored == [b"1", b"2"])


async def test_versions_live_side_by_side(site: Site) -> None:
    old = await site.device("old")
    await old.send(rig.subscribe(("a", 1)))
    await old.expect(rig.suback(1))
    new = await device(site, "new", v5.alias_maximum(1))
    await new.send(v5.subscribe(("a", 1)))
    assert await one(new) == v5.suback(1)
    await new.send(v5.publish("a", b"1", 1, 1, v5.CONTENT + v5.alias(1)))
    await old.expect(rig.publish("a", b"1", 1, 1))
    assert {each.kind for each in v5.packets(await one(new) + await one(new))} == {0x40, 0x30}
    await old.send(rig.publish("a", b"2", 1, 7))
    assert v5.packets(await one(new))[0].body == b"2"

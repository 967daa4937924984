"""waybill.mqtt.server on real sockets: commits, limits, time-outs, wills, resends, shutdown."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from tests.integration.mqtt.conftest import Raw, Site, Start
from tests.unit.mqtt import rig
from tests.unit.mqtt.test_connection import MALFORMED
from waybill.errors import Unavailable
from waybill.mqtt.settings import Client, Hooks, Message, Settings
from waybill.mqtt.testing import MemorySink


async def test_b1_nothing_leaves_before_the_commit_returned(site: Site) -> None:
    device = await site.device()
    site.sink.gate.clear()
    await device.send(rig.publish("a", b"1", 1, 1), rig.publish("a", b"2", 2, 2), rig.subscribe(("x", 1), pid=3))
    await site.until(lambda: site.sink.waiting)
    await device.send(rig.pubrel(2), rig.unsubscribe("x", pid=4), rig.PING)
    await device.expect(rig.PONG)  # all of it was read, and nothing else was answered
    site.sink.gate.set()
    await device.expect(rig.puback(1) + rig.pubrec(2) + rig.suback(1, pid=3) + rig.pubcomp(2) + rig.unsuback(4))


async def test_group_commit(start: Start) -> None:
    site = await start(sink=MemorySink(delay=0.05))
    devices = [await site.device(f"d{n}") for n in range(20)]
    for n in range(1, 51):
        for device in devices:
            device.writer.write(rig.publish("a", b"%d" % n, 1, n))
        await asyncio.sleep(0)
    for device in devices:
        await device.expect(b"".join(rig.puback(n) for n in range(1, 51)))
    assert len(site.stored) == 1000
    assert site.sink.batches < 50


@pytest.mark.parametrize("stream", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_packets_close_that_connection_alone(site: Site, stream: bytes) -> None:
    other = await site.device("other")
    bad = await site.raw(stream)
    assert (await bad.expect_end()) in (b"", rig.ACCEPTED)
    await other.send(rig.PING)
    await other.expect(rig.PONG)
    assert site.server.counters.malformed == 1
    await site.until(lambda: site.server.counters.connections == 1)


async def test_connect_timeout(start: Start) -> None:
    site = await start(Settings(connect_timeout=0.2))
    raw = await site.raw(rig.connect()[:4])
    assert await raw.expect_end() == b""
    assert site.server.counters.timed_out == 1


async def test_keepalive_expiry_fires_the_will(site: Site) -> None:
    watcher = await site.device("watcher")
    await watcher.send(rig.subscribe(("w", 0)))
    await watcher.expect(rig.suback(0))
    silent = await site.raw(rig.connect("dev", keepalive=1, will=("w", b"gone", 1, False)))
    await silent.expect(rig.ACCEPTED)
    await watcher.expect(rig.publish("w", b"gone"))
    assert await silent.expect_end() == b""
    assert site.stored == [b"gone"]


@pytest.mark.parametrize("how", ["FIN", "RST", "DISCONNECT", "take-over"])
async def test_wills(site: Site, how: str) -> None:
    device = await site.raw(rig.connect("dev", will=("w", b"gone", 1, False)))
    await device.expect(rig.ACCEPTED)
    if how == "FIN":
        device.close()
    elif how == "RST":
        device.reset()
    elif how == "DISCONNECT":
        await device.send(rig.DISCONNECT)
        assert await device.expect_end() == b""
    else:
        await site.device("dev")
        assert await device.expect_end() == b""
    await site.until(lambda: site.server.counters.connections == (1 if how == "take-over" else 0))
    await site.server.publish("flush", b"", 1)
    assert site.stored == ([] if how == "DISCONNECT" else [b"gone"])


async def test_connections_are_bounded(start: Start) -> None:
    site = await start(Settings(max_connections=2))
    first = await site.device("1")
    await site.device("2")
    third = await site.raw(rig.connect("3"))
    assert await third.expect_end() == b""
    assert site.server.counters.over_limit == 1
    first.close()
    await site.until(lambda: site.server.counters.connections == 1)
    await site.device("4")


async def test_o1_lost_puback_by_rst_is_stored_once(site: Site) -> None:
    """The client's TCP never saw the PUBACK: it was reset while the commit was under way."""
    device = await site.device()
    site.sink.gate.clear()
    await device.send(rig.publish("a", b"x", 1, 7))
    await site.until(lambda: site.sink.waiting)
    device.reset()
    await site.until(lambda: site.server.counters.connections == 0)
    site.sink.gate.set()
    device = await site.device()
    await device.send(rig.publish("a", b"x", 1, 7, dup=True))
    await device.expect(rig.puback(7))
    assert site.stored == [b"x"]
    assert site.server.counters.duplicates == 1


async def test_o1_acks_written_into_a_full_socket_are_not_taken_for_arrived(site: Site) -> None:
    """What waits in the process or in the kernel when a reset comes was never acknowledged."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (site.host, site.port))
    device = Raw(*await asyncio.open_connection(sock=sock))
    device.writer.transport.pause_reading()  # type: ignore[attr-defined] # of the reading side
    await device.send(rig.connect(), rig.subscribe(("big", 0)))
    await site.until(lambda: site.server.broker.sessions.get("dev") and site.sink)
    await site.until(lambda: site.server.send("big", b"x" * 200_000) and site.server.counters.dropped)
    await device.send(rig.publish("a", b"m", 1, 1))
    wire = next(iter(site.server.wires))
    wire.paused = False
    wire.resume()  # a client that does not read is not read: look at its message all the same
    await site.until(lambda: site.stored)
    await site.until(lambda: site.server.counters.acked == 1)
    device.reset()
    await site.until(lambda: site.server.counters.connections == 0)
    device = await site.device()
    await device.send(rig.publish("a", b"m", 1, 1, dup=True))
    await device.expect(rig.puback(1))
    assert site.stored == [b"m"]


async def test_o1_a_puback_that_tcp_acknowledged_makes_a_repetition_new(site: Site) -> None:
    device = await site.device()
    await device.send(rig.publish("a", b"x", 1, 7))
    await device.expect(rig.puback(7))
    (wire,) = site.server.wires
    await site.until(lambda: wire.acknowledged() == wire.written)  # the peer's TCP may delay it by 40 ms
    device.reset()
    await site.until(lambda: site.server.counters.connections == 0)
    device = await site.device()
    await device.send(rig.publish("a", b"x", 1, 7, dup=True))
    await device.expect(rig.puback(7))
    assert site.stored == [b"x", b"x"]


async def test_o1_a_busy_client_remembers_only_what_is_under_way(site: Site) -> None:
    device = await site.device()
    for n in range(1, 201):
        await device.send(rig.publish("a", b"%d" % n, 1, n))
        await device.expect(rig.puback(n))
    assert max(arrival.keep for arrival in site.sink.arrivals) <= 1


async def test_slow_subscriber_costs_others_nothing(start: Start) -> None:
    site = await start(Settings(queue_messages=100, output_bytes=20_000, inflight=10))
    slow, quick, pub = await site.device("slow"), await site.device("quick"), await site.device("pub")
    for sub in (slow, quick):
        await sub.send(rig.subscribe(("q0", 0), ("q1", 1)))
        await sub.expect(rig.suback(0, 1))
    slow.writer.transport.pause_reading()  # type: ignore[attr-defined] # of the reading side
    payload = b"x" * 50_000
    for n in range(1, 301):
        await pub.send(rig.publish("q0", payload), rig.publish("q1", b"%d" % n, 1, n))
        await pub.expect(rig.puback(n))
        await quick.expect(rig.publish("q0", payload) + rig.publish("q1", b"%d" % n, 1, n))
        await quick.send(rig.puback(n))
    assert site.server.counters.dropped > 100
    wire = site.server.broker.sessions["slow"].connection
    assert wire is not None
    assert wire.buffered() < 20_000 + 2 * len(payload)
    assert site.server.broker.sessions["slow"].queued <= 100


async def test_reading_stops_while_the_store_is_stuck(start: Start) -> None:
    site = await start(Settings(uncommitted_bytes=100_000))
    device = await site.device()
    site.sink.gate.clear()
    count = 5_000
    sending = asyncio.create_task(
        device.send(*[rig.publish("a", b"x" * 1000, 1, n) for n in range(1, count + 1)]), name="sender"
    )
    await site.until(lambda: site.server.broker.paused)
    assert site.server.broker.uncommitted < 1_000_000
    site.sink.gate.set()
    await device.expect(b"".join(rig.puback(n) for n in range(1, count + 1)))
    await sending
    assert len(site.stored) == count


async def test_o2_a_failed_commit_is_counted_shown_and_survived(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = []
    site = await start(hooks=Hooks(on_commit_failed=errors.append))
    device, bystander = await site.device(), await site.device("bystander")
    site.sink.failures.append(OSError("disk on fire"))
    await device.send(rig.publish("a", b"x", 1, 1))
    assert await device.expect_end() == b""
    assert [str(error) for error in errors] == ["disk on fire"]
    assert str(site.server.last_error) == "disk on fire"
    assert site.server.counters.commits_failed == 1
    device = await site.device()
    await device.send(rig.publish("a", b"x", 1, 1, dup=True))
    await device.expect(rig.puback(1))
    assert site.stored == [b"x"]
    assert site.server.last_error is None
    await bystander.send(rig.PING)
    await bystander.expect(rig.PONG)
    assert "a commit failed" in caplog.text


async def test_close_commits_acks_and_fires_wills(start: Start) -> None:
    heard: list[str] = []
    site = await start(sink=MemorySink(delay=0.1), hooks=Hooks(on_disconnected=lambda _, reason: heard.append(reason)))
    device = await site.raw(rig.connect("dev", will=("w", b"gone", 1, False)))
    await device.expect(rig.ACCEPTED)
    await device.send(rig.publish("a", b"x", 1, 1))
    await site.until(lambda: site.server.broker.committing)
    await site.server.close()
    await device.expect(rig.puback(1))
    assert await device.expect_end() == b""
    assert site.stored == [b"x", b"gone"]
    assert heard == ["the server shuts down"]
    with pytest.raises(OSError, match="Connect"):
        await site.raw()


async def test_close_is_bounded_when_the_store_is_stuck(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    site = await start(Settings(close_timeout=0.2))
    device = await site.device()
    site.sink.gate.clear()
    await device.send(rig.publish("a", b"x", 1, 1))
    await site.until(lambda: site.sink.waiting)
    async with asyncio.timeout(60):
        await site.server.close()
    assert await device.expect_end() == b""
    assert site.stored == []
    (said,) = [record for record in caplog.records if "not acknowledged" in record.message]
    assert said.exc_info is None  # a full disk is no mistake of the program


async def test_a_persistent_session_over_a_restart_of_the_server(start: Start) -> None:
    site = await start()
    sub = await site.device("sub", clean=False)
    await sub.send(rig.subscribe(("a", 1)))
    await sub.expect(rig.suback(1))
    sub.close()
    await site.until(lambda: site.server.counters.connections == 0)
    pub = await site.device("pub")
    await pub.send(rig.publish("a", b"x", 1, 1))
    await pub.expect(rig.puback(1))
    await site.server.close()
    again = await start(sink=site.sink)
    sub = await again.raw(rig.connect("sub", clean=False))
    await sub.expect(rig.PRESENT + rig.publish("a", b"x", 1, 1, dup=True))


async def test_publish_and_subscribe_of_the_program(site: Site) -> None:
    heard: list[Message] = []
    site.server.subscribe("cmd/+/+/res", heard.append)
    device = await site.device("d7")
    await device.send(rig.subscribe(("cmd/d7/+/req", 1)))
    await device.expect(rig.suback(1))
    site.sink.gate.clear()
    publishing = asyncio.create_task(site.server.publish("cmd/d7/c1/req", b"do", 1), name="publish")
    await asyncio.sleep(0)
    assert not publishing.done()
    site.sink.gate.set()
    assert await publishing == 1
    await device.expect(rig.publish("cmd/d7/c1/req", b"do", 1, 1))
    await device.send(rig.puback(1), rig.publish("cmd/d7/c1/res", b"done", 1, 9))
    await device.expect(rig.puback(9))
    assert heard == [Message("d7", "cmd/d7/c1/res", b"done", 1, False)]


async def test_publish_of_the_program_raises_when_the_commit_fails(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.sink.failures.append(OSError("full"))
    with pytest.raises(Unavailable, match="full"):
        await site.server.publish("a", b"x", 1, retain=True)
    assert site.server.broker.retained.get(b"a") is None
    assert "a commit failed" in caplog.text


async def test_a_sink_may_answer_from_its_commit(start: Start) -> None:
    class Listener(MemorySink):
        site: Site

        async def commit(self, batch: object) -> None:
            await super().commit(batch)  # type: ignore[arg-type] # a Batch
            self.site.server.send("wb/v1/g/ack", b"journaled")

    sink = Listener()
    sink.site = site = await start(sink=sink)
    gateway = await site.device("g")
    await gateway.send(rig.subscribe(("wb/v1/g/ack", 0)))
    await gateway.expect(rig.suback(0))
    await gateway.send(rig.publish("wb/v1/g/up", b"frame"))
    await gateway.expect(rig.publish("wb/v1/g/ack", b"journaled"))


async def test_disconnect_by_the_program(start: Start) -> None:
    gone: list[tuple[Client, str]] = []
    site = await start(hooks=Hooks(on_disconnected=lambda client, reason: gone.append((client, reason))))
    device = await site.device()
    assert site.server.disconnect("dev", "certificate revoked")
    assert not site.server.disconnect("nobody")
    assert await device.expect_end() == b""
    assert [(client.client_id, reason) for client, reason in gone] == [("dev", "certificate revoked")]


async def test_who_is_turned_away_is_told_to_the_program(start: Start) -> None:
    said: list[tuple[str, str]] = []
    site = await start(hooks=Hooks(on_turned_away=lambda address, reason: said.append((address, reason))))
    for packet in (rig.PING, rig.connect(level=9), rig.connect("", clean=False)):
        raw = await site.raw(packet)
        await raw.expect_end()
    device = await site.device()
    await device.send(rig.packet(0xF0, b""))
    await device.expect_end()
    assert all(address.startswith("127.0.0.1:") for address, _ in said)
    assert [reason for _, reason in said] == [
        "the first packet is not CONNECT",
        "protocol level 9 is not spoken",
        "refused: BAD_CLIENT_ID",
    ]


async def test_a_taken_address_is_a_clear_error(site: Site) -> None:
    with pytest.raises(Unavailable, match=rf"cannot listen on 127.0.0.1:{site.port}"):
        await site.server.listen("127.0.0.1", site.port)


async def test_a_dead_task_says_so_and_stops_the_server(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    device = await site.device()

    def broken() -> None:
        raise RuntimeError("a bug")

    site.server.broker.cut = broken  # type: ignore[method-assign,assignment] # what no store can cause
    died = asyncio.create_task(site.server.died())
    with caplog.at_level(logging.CRITICAL):
        await device.send(rig.publish("a", b"x", 1, 1))
        assert await device.expect_end() == b""
    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(died, 60)
    assert "mqtt-commit died" in caplog.text
    assert site.server.closing


async def test_many_connections_come_and_go(site: Site) -> None:
    for _ in range(3):
        devices = await asyncio.gather(*[site.device(f"d{n}") for n in range(100)])
        for device in devices[:50]:
            device.close()
        for device in devices[50:]:
            device.reset()
        await site.until(lambda: site.server.counters.connections == 0)
    assert not site.server.wires
    assert not site.server.broker.sessions
    assert len(site.server.broker.memories) == 0

"""The listener with real certificates and real sockets, on the embedded log: who may connect, and do what."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from cloud_ingest import config
from cloud_ingest.app import Ingest
from cloud_ingest.intake import ONE_FRAME
from cloud_ingest.journal.embedded import EmbeddedLog
from cloud_ingest.journal.port import OutRecord
from cloud_ingest.listener import STATE_BYTES, Listener
from tests.integration.cloud.gateway import (
    Pki,
    connected,
    embedded,
    frame,
    records,
    running,
    span,
    until,
)
from waybill import pki, wire
from waybill.errors import Unavailable
from waybill.frames.header import VERSIONS
from waybill.wire import Ack, State


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def ingest(tmp_path: Path, certificates: Pki) -> AsyncIterator[Ingest]:
    async with running(embedded(tmp_path / "data", certificates.listener())) as one:
        yield one


def client(ingest: Ingest, name: str, context: Any, **options: Any) -> aiomqtt.Client:
    host, _, port = ingest.listener.address.rpartition(":")
    return aiomqtt.Client(host, int(port), identifier=name, tls_context=context, **{"timeout": 60, **options})


async def refusal(ingest: Ingest, name: str, context: Any, **options: Any) -> str:
    with pytest.raises(aiomqtt.MqttError) as caught:
        async with client(ingest, name, context, **options):
            pass
    return str(caught.value)


def journal(ingest: Ingest) -> int:
    return ingest.listener.intake.counters.journaled


async def test_a_frame_is_journaled_acked_and_routed(ingest: Ingest, certificates: Pki) -> None:
    async with connected(ingest, "g1", certificates.gateway("g1")) as gateway:
        await gateway.send(frame(1, 3))
        ack = await gateway.ack()
        assert ack.journaled == (span(1, 3),)
    found = await records(ingest, "fleet.telemetry", 3)
    assert [(one.key, one.value) for one in found] == [(b"V1", b'{"n":%d}' % n) for n in (1, 2, 3)]
    assert dict(found[0].headers)["ce_source"] == b"/gateways/g1/devices/V1"


async def test_u3_credit_is_told_right_after_suback(ingest: Ingest, certificates: Pki) -> None:
    async with connected(ingest, "g1", certificates.gateway("g1")) as gateway:
        async with asyncio.timeout(60):
            assert await gateway.acks.get() == Ack(credit=4 << 20, log=ingest.log.log_id)


async def test_a_gateway_that_publishes_under_anothers_topic_is_cut_off(ingest: Ingest, certificates: Pki) -> None:
    for topic in (wire.up_topic("g2"), wire.state_topic("g2"), wire.ack_topic("g1"), "anything"):
        async with connected(ingest, "g1", certificates.gateway("g1")) as gateway:
            await gateway.client.publish(topic, frame(), qos=0)
            async with asyncio.timeout(60):
                await gateway.closed.wait()
    assert ingest.listener.counters.denied == 4
    assert journal(ingest) == 0


async def test_a_will_under_anothers_topic_is_refused(ingest: Ingest, certificates: Pki) -> None:
    will = aiomqtt.Will(wire.state_topic("g2"), b"{}", 1, retain=True)
    assert "authori" in (await refusal(ingest, "g1", certificates.gateway("g1"), will=will)).lower()


async def test_a_gateway_that_subscribes_under_anothers_topics_is_refused(ingest: Ingest, certificates: Pki) -> None:
    async with client(ingest, "g1", certificates.gateway("g1")) as one:
        for pattern in (wire.ack_topic("g2"), wire.down_topic("g2"), "wb/v1/+/ack", "#", wire.up_topic("g1")):
            codes = await one.subscribe(pattern, qos=0)
            assert [getattr(code, "value", code) for code in codes] == [0x80], pattern
        codes = await one.subscribe(wire.ack_topic("g1"))
        assert [getattr(code, "value", code) for code in codes] == [0]
    assert ingest.listener.counters.denied == 5


async def test_the_client_id_must_be_the_certificates(ingest: Ingest, certificates: Pki) -> None:
    assert "identifier" in (await refusal(ingest, "g2", certificates.gateway("g1"))).lower()
    assert ingest.listener.connected == {}
    assert ingest.listener.counters.refused == 1


async def test_a_session_that_outlives_its_connection_is_refused(ingest: Ingest, certificates: Pki) -> None:
    assert "authori" in (await refusal(ingest, "g1", certificates.gateway("g1"), clean_session=False)).lower()


async def test_another_cas_certificate_or_none_fails_the_handshake_and_is_counted(
    ingest: Ingest, certificates: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = dt.datetime.now(dt.UTC)
    pki.ca_init(tmp_path / "other", now=now)
    made = pki.issue_gateway(tmp_path / "other", tmp_path / "g1", "g1", now=now)
    ours = certificates.server.ca
    # To aiomqtt a connection that ends before CONNACK is one that takes its time.
    await refusal(ingest, "g1", pki.client_context(ours, made.certificate, made.key), timeout=2)
    await refusal(ingest, "g1", pki.client_context(ours), timeout=2)
    await until(lambda: ingest.listener.counters.handshakes_failed == 2)
    assert caplog.text.count("the TLS handshake failed") >= 1
    # aiomqtt, on the other side, may look at its socket once more when that is closed
    assert not [r for r in caplog.records if r.exc_info and "add_writer" not in r.getMessage()]
    async with connected(ingest, "g1", certificates.gateway("g1")) as gateway:
        await gateway.send(frame())
        await gateway.journaled(1, 1)


async def test_a_certificate_without_a_gateway_is_refused(ingest: Ingest, certificates: Pki) -> None:
    server = certificates.server
    context = pki.client_context(server.ca, server.certificate, server.key)
    await refusal(ingest, "g1", context, timeout=2)
    assert ingest.listener.connected == {}


async def test_u4_corrupt_frames_and_unknown_versions_are_answered_and_not_journaled(
    ingest: Ingest, certificates: Pki
) -> None:
    good = frame(5, 2)
    async with connected(ingest, "g1", certificates.gateway("g1")) as gateway:
        await gateway.send(good[:-1] + bytes([good[-1] ^ 1]))
        (refused,) = (await gateway.ack()).refused
        assert (refused.epoch, refused.lane, refused.first, refused.last) == (4711, "telemetry", 5, 6)
        assert "checksum" in refused.reason
        await gateway.send(good[:2] + b"\x63" + good[3:])
        assert (await gateway.ack()).versions == VERSIONS
        assert journal(ingest) == 0
        await gateway.send(good)
        assert (await gateway.ack()).journaled == (span(5, 6),)


async def test_u4_a_frame_over_the_limit_is_answered_so_that_the_gateway_cuts_it_smaller(
    tmp_path: Path, certificates: Pki
) -> None:
    """A connection that is closed instead would come back with the same frame for ever."""
    large = frame(1, 40_000)
    assert 20_000 < len(large) <= ONE_FRAME
    async with (
        running(embedded(tmp_path / "data", certificates.listener(max_frame=10_000))) as ingest,
        connected(ingest, "g1", certificates.gateway("g1")) as gateway,
    ):
        await gateway.send(large)
        (refused,) = (await gateway.ack()).refused
        assert (refused.first, refused.last) == (1, 40_000)
        assert "over the limit of 10000" in refused.reason
        await gateway.send(frame(1, 10))
        await gateway.journaled(1, 10)


async def test_a_second_connection_of_a_gateway_takes_over(ingest: Ingest, certificates: Pki) -> None:
    context = certificates.gateway("g1")
    async with connected(ingest, "g1", context) as first, connected(ingest, "g1", context) as second:
        async with asyncio.timeout(60):
            await first.closed.wait()
        await second.send(frame())
        await second.journaled(1, 1)
        assert list(ingest.listener.connected) == ["g1"]
        ingest.listener.intake.counters.journaled = 0
    await until(lambda: not ingest.listener.connected)


async def test_the_state_and_the_will_of_a_gateway_are_seen(ingest: Ingest, certificates: Pki) -> None:
    async with connected(ingest, "g1", certificates.gateway("g1")) as gateway:
        await gateway.client.publish(wire.state_topic("g1"), b'{"state":"online","version":"9"}', qos=1, retain=True)
        assert ingest.listener.connected["g1"].state == State("online", version="9")
        (seen,) = ingest.snapshot().gateways
        assert (seen.gateway, seen.state, seen.version) == ("g1", "online", "9")
        for unfit in (b"{", b'{"state":"\xff"}', b'{"state":"online","version":"%s"}' % (b"9" * STATE_BYTES)):
            await gateway.client.publish(wire.state_topic("g1"), unfit, qos=1, retain=True)
            assert ingest.listener.connected["g1"].state == State("online", version="9")
    await until(lambda: not ingest.snapshot().gateways)


async def test_the_will_of_a_connection_that_was_taken_over_is_not_the_gateways_state(
    ingest: Ingest, certificates: Pki
) -> None:
    context, topic = certificates.gateway("g1"), wire.state_topic("g1")
    will = aiomqtt.Will(topic, b'{"state":"offline","reason":"connection lost"}', qos=1, retain=True)
    heard: list[bytes] = []
    assert isinstance(ingest.listener, Listener)
    ingest.listener.server.subscribe(topic, lambda message: heard.append(bytes(message.payload)))
    with contextlib.suppress(aiomqtt.MqttError):  # it is taken over
        async with client(ingest, "g1", context, will=will) as first:
            await first.publish(topic, b'{"state":"online","version":"1"}', qos=1, retain=True)
            async with client(ingest, "g1", context, will=will) as second:
                await until(lambda: heard[1:] == [will.payload])
                assert ingest.listener.connected["g1"].state is None  # not known yet, and not offline
                await second.publish(topic, b'{"state":"online","version":"2"}', qos=1, retain=True)
                assert ingest.listener.connected["g1"].state == State("online", version="2")


async def test_over_websockets_too_a_gateway_is_who_its_certificate_says(tmp_path: Path, certificates: Pki) -> None:
    made = config.CloudConfig(
        data=str(tmp_path / "data"),
        listener=certificates.listener(),
        websocket=config.WebSocket("127.0.0.1:0", str(certificates.server.certificate), str(certificates.server.key)),
    )
    async with running(config.check(made, tmp_path, "test")) as ingest:
        port = int(ingest.listener.websocket_address.rpartition(":")[2])

        def over(name: str, context: Any) -> aiomqtt.Client:
            return aiomqtt.Client(
                "127.0.0.1", port, identifier=name, tls_context=context, timeout=60, transport="websockets"
            )

        async with over("g1", certificates.gateway("g1")) as one, connected(ingest, "g2", certificates.gateway("g2")):
            await one.publish(wire.up_topic("g1"), frame(1, 3))
            await until(lambda: journal(ingest) == 1)
            assert sorted(ingest.listener.connected) == ["g1", "g2"]
        with pytest.raises(aiomqtt.MqttError, match="identifier"):
            async with over("g2", certificates.gateway("g1")):
                pass
        assert ingest.snapshot().websocket == ingest.listener.websocket_address


async def test_b1_qos_1_is_acked_after_the_journal_and_never_without_it(
    ingest: Ingest, certificates: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PUBLISH whose frame could not be journaled gets no PUBACK, and its resend with DUP is journaled (D7)."""
    away = True
    append = ingest.log.append_frame

    async def append_frame(gateway: str, data: bytes) -> None:
        if away:
            raise Unavailable("the disk is full")
        await append(gateway, data)

    monkeypatch.setattr(ingest.log, "append_frame", append_frame)
    done = threading.Event()
    losses: list[int] = []
    device = paho.Client(CallbackAPIVersion.VERSION2, client_id="g1", clean_session=True)
    device.tls_set_context(certificates.gateway("g1"))
    device.reconnect_delay_set(1, 1)
    device.on_publish = lambda *_: done.set()
    device.on_disconnect = lambda *_: losses.append(1)
    host, _, port = ingest.listener.address.rpartition(":")
    device.connect_async(host, int(port))
    device.loop_start()
    try:
        await until(lambda: ingest.listener.connected)
        device.publish(wire.up_topic("g1"), frame(), qos=1)
        await until(lambda: losses)
        assert not done.is_set()
        assert journal(ingest) == 0
        away = False
        await until(done.is_set)
        assert journal(ingest) == 1
    finally:
        device.disconnect()
        device.loop_stop()
    assert len(await records(ingest, "fleet.telemetry", 1)) == 1


async def test_frames_of_qos_1_and_2_are_journaled_before_they_are_acked(ingest: Ingest, certificates: Pki) -> None:
    async with connected(ingest, "g1", certificates.gateway("g1")) as gateway:
        for n, qos in enumerate((1, 2, 1), 1):
            await gateway.send(frame(n), qos=qos)
            assert journal(ingest) == n
        await gateway.journaled(1, 3)


async def test_frames_of_many_gateways_at_once(ingest: Ingest, certificates: Pki) -> None:
    async with contextlib.AsyncExitStack() as stack:
        names = [f"g{n}" for n in range(8)]
        gateways = [
            await stack.enter_async_context(connected(ingest, name, certificates.gateway(name))) for name in names
        ]
        for first in range(1, 101, 10):
            await asyncio.gather(*(gateway.send(frame(first, 10)) for gateway in gateways))
        await asyncio.gather(*(gateway.journaled(1, 100) for gateway in gateways))
    found = await records(ingest, "fleet.telemetry", 800)
    assert len(found) == 800
    for name in names:
        of_one = [
            one.value for one in found if dict(one.headers)["ce_source"].startswith(f"/gateways/{name}/".encode())
        ]
        assert of_one == [b'{"n":%d}' % n for n in range(1, 101)]


async def test_a_log_that_cannot_write_is_answered_with_retry(tmp_path: Path, certificates: Pki) -> None:
    """R8: at the embedded log's cap nothing is acked; where there is room again, the same frame is."""
    settings = embedded(tmp_path / "data", certificates.listener())
    async with running(settings) as ingest:
        assert isinstance(ingest.log, EmbeddedLog)
        limit, ingest.log._max_bytes = ingest.log._max_bytes, 0
        async with connected(ingest, "g1", certificates.gateway("g1")) as gateway:
            await gateway.send(frame(1, 2))
            ack = await gateway.ack()
            assert (ack.retry, ack.journaled) == ((span(1, 2),), ())
            assert "cap" in ingest.snapshot().frames.fault
            ingest.log._max_bytes = limit
            await gateway.send(frame(1, 2))
            assert (await gateway.ack()).journaled == (span(1, 2),)
            assert ingest.snapshot().frames.fault == ""


async def test_plain_tcp_on_loopback_takes_the_client_id_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(config.first_look("127.0.0.1:0", tmp_path / "data")) as ingest:
        assert "anywhere else use certificates" in caplog.text
        async with connected(ingest, "g1", None) as gateway:
            await gateway.send(frame())
            await gateway.journaled(1, 1)
        for name in ("a b", "node:1"):
            assert "identifier" in (await refusal(ingest, name, None)).lower()


async def test_frames_taken_before_a_shutdown_are_answered(tmp_path: Path, certificates: Pki) -> None:
    settings, context = embedded(tmp_path / "data", certificates.listener()), certificates.gateway("g1")
    async with running(settings) as ingest, connected(ingest, "g1", context) as gateway:
        await gateway.send(*[frame(n) for n in range(1, 51)], qos=0)
        await until(lambda: ingest.listener.counters.received_0 == 50)
        await ingest.stop()
        await gateway.journaled(1, 50)


async def test_a_gateway_that_is_gone_takes_no_share_of_the_credit_and_no_commands(
    ingest: Ingest, certificates: Pki
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for n in range(64):
            name = f"g{n}"
            await stack.enter_async_context(connected(ingest, name, certificates.gateway(name)))
        assert ingest.listener.intake.credit() == 2 << 20
    await until(lambda: not ingest.listener.connected)
    assert ingest.listener.intake.credit() == 4 << 20
    expires_ms = time.time_ns() // 1_000_000 + 60_000
    value = b'{"id":"c1","gateway":"g1","device":"d","name":"n","expires_at":%d}' % expires_ms
    await ingest.log.append(OutRecord("waybill.commands", b"g1", value, []))
    await until(lambda: ingest.dispatcher.open == 1)
    await asyncio.sleep(1.5)  # longer than the dispatcher ever waits before it looks
    assert ingest.dispatcher.counters.sent == 0


async def test_a_node_that_ends_lets_its_gateways_go_one_by_one_and_serves_the_others_meanwhile(
    tmp_path: Path, certificates: Pki
) -> None:
    """The last one of many is still answered while the first ones have been let go; nobody new gets in."""
    names = [f"g{n}" for n in range(10)]
    async with contextlib.AsyncExitStack() as stack:
        ingest = await stack.enter_async_context(running(embedded(tmp_path / "data", certificates.listener(drain=5.0))))
        assert isinstance(ingest.listener, Listener)
        gateways = [
            await stack.enter_async_context(connected(ingest, name, certificates.gateway(name))) for name in names
        ]
        drain = asyncio.create_task(ingest.listener.server.drain(600.0, rate=0.01))
        async with asyncio.timeout(60):
            await asyncio.wait(
                [asyncio.create_task(each.closed.wait()) for each in gateways], return_when="FIRST_COMPLETED"
            )
        assert 0 < len(ingest.listener.connected) < len(names)
        assert "efused" in await refusal(ingest, "late", certificates.gateway("late"))
        (last, *_) = [each for each in gateways if each.name in ingest.listener.connected]
        await last.send(frame())
        await last.journaled(1, 1)
        drain.cancel()
        async with asyncio.timeout(60):
            await asyncio.wait([drain])
            await ingest.listener.server.drain(5.0, rate=2.0)
        await until(lambda: not ingest.listener.connected)


async def test_handshakes_are_begun_at_a_rate(tmp_path: Path, certificates: Pki) -> None:
    async with contextlib.AsyncExitStack() as stack:
        asked = certificates.listener(accept_rate=20.0)
        ingest = await stack.enter_async_context(running(embedded(tmp_path / "data", asked)))
        began = time.monotonic()
        names = [f"g{n}" for n in range(10)]
        contexts = [certificates.gateway(name) for name in names]
        await asyncio.gather(
            *(stack.enter_async_context(client(ingest, *each)) for each in zip(names, contexts, strict=True))
        )
        assert time.monotonic() - began > 0.4

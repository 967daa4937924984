"""What is amqtt's own: its plug-ins, its configuration, and the limits that are put on it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from amqtt.contexts import Action
from amqtt.plugins.authentication import Argon2Hasher
from amqtt.plugins.base import BaseTopicPlugin

from edge_agent import config
from edge_agent.amqtt_engine import AmqttEngine
from edge_agent.config import AmqttSettings, EdgeConfig
from tests.integration.edge.peer import until
from tests.support.device import Device
from tests.unit.mqtt import rig
from waybill import pki
from waybill.errors import ConfigError, Unavailable
from waybill.mqtt.settings import Hooks, Settings
from waybill.mqtt.testing import MemorySink

FILE = "amqtt.plugins.authentication.FileAuthPlugin"
ANONYMOUS = "amqtt.plugins.authentication.AnonymousAuthPlugin"
ACL = "amqtt.plugins.topic_checking.TopicAccessControlListPlugin"
ACCEPTED, UNAVAILABLE, REFUSED = b"\x20\2\0\0", b"\x20\2\0\3", b"\x20\2\0\5"


@dataclass
class Site:
    engine: AmqttEngine
    sink: MemorySink
    port: int
    why: list[str]

    @contextlib.asynccontextmanager
    async def raw(self, *packets: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"".join(packets))
        yield reader, writer
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def running(
    plugins: dict[str, dict[str, Any]] | None = None,
    settings: Settings | None = None,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[Site]:
    why: list[str] = []
    hooks = Hooks(
        on_disconnected=lambda client, reason: why.append(f"{client.client_id}: {reason}"),
        on_turned_away=lambda _, reason: why.append(reason),
    )
    sink = MemorySink()
    engine = AmqttEngine(AmqttSettings(plugins or {}), sink, settings or Settings(), hooks)
    await engine.start()
    _, port = await engine.listen("127.0.0.1", 0, context)
    try:
        yield Site(engine, sink, port, why)
    finally:
        sink.gate.set()
        await engine.close()


@pytest.fixture
def passwords(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A plug-in that lets "ann" in, with the password "pass"."""
    path = tmp_path / "passwords"
    path.write_text(f"ann:{Argon2Hasher().hash('pass')}\n")
    return {FILE: {"password_file": str(path)}}


def ann(client: str = "a", password: bytes = b"pass", **options: Any) -> bytes:
    return rig.connect(client, user="ann", password=password, **options)


# -- without it --------------------------------------------------------------------------------------------------------


def test_without_the_engine_amqtt_is_not_imported(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from edge_agent.app import Agent
from edge_agent.config import EdgeConfig
from edge_agent.listener_config import ListenerSettings
async def main():
    agent = Agent(EdgeConfig("gw1", Path({str(tmp_path)!r}), (ListenerSettings(port=0),)), lambda _: agent.stop())
    assert await agent.run() == 0
asyncio.run(main())
sys.exit("amqtt" in sys.modules or "edge_agent.amqtt_engine" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_engine_without_its_package_is_a_clear_error(tmp_path: Path) -> None:
    path = written(tmp_path, 'engine = "amqtt"')
    code = f"""
import sys
sys.modules["amqtt"] = None  # as Python marks what cannot be imported
from pathlib import Path
from edge_agent import config
from waybill.errors import ConfigError
try:
    config.load(Path({str(path)!r}))
except ConfigError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, capture_output=True, text=True)
    assert done.stderr.strip() == (
        f'{path}: engine: "amqtt" needs amqtt, which is not installed: pip install "waybill[amqtt]"'
    )


# -- configuration -----------------------------------------------------------------------------------------------------


def written(directory: Path, text: str) -> Path:
    path = directory / "agent.toml"
    path.write_text(f'gateway = "gw1"\ndata = "data"\n{text}\n')
    return path


def test_a_table_with_a_plugin(tmp_path: Path) -> None:
    text = f'[amqtt]\nsession_expiry_interval = 60\n[amqtt.plugins."{ANONYMOUS}"]\nallow_anonymous = false'
    read = config.load(written(tmp_path, f'engine = "amqtt"\n{text}'))
    assert (read.engine, read.amqtt) == ("amqtt", AmqttSettings({ANONYMOUS: {"allow_anonymous": False}}, 60))
    assert EdgeConfig("gw1", tmp_path).engine == "waybill"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('engine = "mosquitto"', "engine: 'mosquitto': write "),
        ("[amqtt]\nsession_expiry_interval = 60", '[amqtt] is for another engine: write engine = "amqtt", or leave'),
        ('engine = "amqtt"\n[amqtt]\nlisteners = {}', "[amqtt] unknown key 'listeners'"),
        ('engine = "amqtt"\n[amqtt.plugins."no.such.Plugin"]', '[amqtt.plugins."no.such.Plugin"]: '),
        ('engine = "amqtt"\n[amqtt.plugins."plugin"]', '[amqtt.plugins."plugin"]: '),
        ('engine = "amqtt"\n[amqtt.plugins."pathlib.Path"]', '[amqtt.plugins."pathlib.Path"]: this is no plug-in'),
        (f'engine = "amqtt"\n[amqtt.plugins."{FILE}"]\nfile = "x"', f'[amqtt.plugins."{FILE}"]: '),
        (
            'engine = "amqtt"\n[[listener]]\nkind = "unix"\npath = "s"',
            '[[listener]] 1 kind: engine = "amqtt" has "mqtt"',
        ),
        ('engine = "amqtt"\n[limits]\npublish_rate = 5.0', 'publish_rate: engine = "amqtt" has no such limit'),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config.load(written(tmp_path, text))
    assert said in str(raised.value)


async def test_a_plugin_that_does_not_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[amqtt.plugins\]: .*FileAuthPlugin.*Password file '.*none' not found"):
        async with running({FILE: {"password_file": str(tmp_path / "none")}}):
            pass


async def test_an_address_that_is_taken_is_named() -> None:
    async with running() as site:
        with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{site.port}: .*; free it or choose another"):
            await site.engine.listen("127.0.0.1", site.port)


# -- plug-ins ----------------------------------------------------------------------------------------------------------


async def test_who_may_not_connect_touches_nothing_of_a_session(passwords: dict[str, dict[str, Any]]) -> None:
    async with running(passwords) as site, site.raw(ann(clean=False), rig.subscribe(("t", 1))) as (reader, writer):
        assert await reader.readexactly(9) == ACCEPTED + rig.suback(1)
        for clean in (True, False):
            wrong = ann(password=b"wrong", clean=clean, will=("will", b"forged", 1, False))
            async with site.raw(wrong, rig.publish("t", b"forged", 1, 1)) as (other, _):
                assert await asyncio.wait_for(other.read(), 60) == REFUSED
        async with site.raw(rig.connect("nobody")) as (other, _):
            assert await asyncio.wait_for(other.read(), 60) == REFUSED
        writer.write(rig.publish("t", b"mine", 1, 9))
        heard = await asyncio.wait_for(reader.readexactly(4 + 11), 60)
        assert rig.puback(9) in heard
        assert b"mine" in heard
        writer.transport.abort()
        await until(lambda: any(one.startswith("a: ") for one in site.why))
        assert site.sink.messages == [("a", b"t", b"mine")]
        assert site.sink.arrivals[0].user == "ann"
        assert site.engine.counters.refused == 3
        assert site.why[:3] == ["not authorized"] * 3


async def test_what_may_not_be_published_is_not_stored(passwords: dict[str, dict[str, Any]]) -> None:
    mine = {"ann": ["mine/#"]}
    async with running(passwords | {ACL: {"publish_acl": mine, "acl": mine}}) as site:
        packets = [rig.publish(topic, b"x", 1, n) for n, topic in enumerate(("mine/1", "others", "mine/2"), 1)]
        will = ("others", b"forged", 1, False)
        async with site.raw(ann(will=will), rig.subscribe(("others", 1)), *packets) as (reader, _):
            answer = await asyncio.wait_for(reader.read(), 60)
            assert rig.suback(0x80) in answer
            assert rig.puback(1) in answer
            assert rig.puback(2) not in answer
        await until(lambda: site.why)
        assert site.why == ["a: not authorized to publish on 'others'"]
        assert site.sink.messages == [("a", b"mine/1", b"x")]
        assert site.engine.counters.denied == 3


class Broken(BaseTopicPlugin):  # type: ignore[misc] # amqtt ships no types
    """A plug-in with a bug."""

    async def topic_filtering(
        self, *, session: Any = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        """Fail for one topic."""
        del session
        if action == Action.PUBLISH and topic == "bug":
            raise ValueError(topic)
        return True


async def test_a_plugin_that_fails_ends_the_connection_and_nothing_else() -> None:
    async with running({f"{__name__}.Broken": {}}) as site, Device(site.port, "other") as other:
        packets = [rig.publish("t", b"1", 1, 1), rig.publish("bug", b"2", 1, 2), rig.publish("t", b"3", 1, 3)]
        async with site.raw(rig.connect("a", will=("bug", b"4", 1, False)), *packets) as (reader, _):
            assert await asyncio.wait_for(reader.read(), 60) == ACCEPTED + rig.puback(1)
        await until(lambda: site.why)
        assert site.why == ["a: an error of the server or of a plug-in"]
        async with site.raw(rig.connect("a", clean=False)) as (reader, _):
            assert await asyncio.wait_for(reader.readexactly(4), 60) == ACCEPTED
        await other.publish("t", b"5", 1)
        assert [payload for _, _, payload in site.sink.messages] == [b"1", b"5"]


async def test_a_client_certificate(tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    pki.ca_init(tmp_path / "ca", now=now)
    server = pki.issue_server(tmp_path / "ca", tmp_path / "server", ["127.0.0.1"], now=now)
    device = pki.issue_gateway(tmp_path / "ca", tmp_path / "device", "truck-7", now=now)
    context = pki.server_context(server.certificate, server.key, server.ca)
    async with running(context=context) as site:
        mine = pki.client_context(device.ca, device.certificate, device.key)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=mine)
        writer.write(rig.connect("truck-7") + rig.publish("t", b"x" * 100_000, 1, 1))
        assert await asyncio.wait_for(reader.readexactly(8), 60) == ACCEPTED + rig.puback(1)
        writer.close()
        stranger = pki.client_context(device.ca, None, None)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=stranger)
        writer.write(rig.connect("truck-8"))
        with contextlib.suppress(OSError):
            assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        assert site.engine.counters.bytes_in < 100_100


async def test_a_client_of_mqtt_5_is_told_that_it_is_not_spoken() -> None:
    async with running() as site, Device(site.port, "five", v5=True) as device:
        assert device.code == 0x84
        assert site.why == ["protocol level 5 is not spoken"]


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_a_connection_without_connect_in_time() -> None:
    async with running(settings=Settings(connect_timeout=0.2)) as site, site.raw(rig.connect("a")[:5]) as (reader, _):
        assert await asyncio.wait_for(reader.read(), 60) == b""
        assert site.why == ["no CONNECT in time"]


async def test_a_packet_that_is_not_finished() -> None:
    async with running(settings=Settings(stall_timeout=0.2)) as site:
        async with site.raw(rig.connect("a"), rig.publish("t", b"xxx")[:-1]) as (reader, _):
            assert await asyncio.wait_for(reader.read(), 60) == ACCEPTED
        await until(lambda: site.why)
        assert site.why == ["a: unfinished packet"]
        assert site.engine.counters.timed_out == 1


async def test_too_many_connections_and_sessions() -> None:
    async with running(settings=Settings(max_connections=2, max_sessions=1)) as site:
        async with site.raw(rig.connect("a")) as (reader, _):
            assert await reader.readexactly(4) == ACCEPTED
            async with site.raw(rig.connect("b")) as (second, _):
                assert await asyncio.wait_for(second.read(), 60) == UNAVAILABLE
            await until(lambda: site.engine.counters.connections == 1)
            async with site.raw() as _, site.raw() as (third, _):
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.wait_for(third.read(), 60) == b""
                await until(lambda: "too many connections" in site.why)
        assert site.engine.counters.over_limit == 1


async def test_what_does_not_fit_a_sleeping_session_is_dropped_and_counted() -> None:
    settings = Settings(queue_messages=5, queue_bytes=50)
    async with running(settings=settings) as site, Device(site.port, "p") as device:
        async with Device(site.port, "s", clean=False) as listener:
            await listener.subscribe(("t", 1))
        await until(lambda: site.why)
        for n in range(8):
            await device.publish("t", b"%d" % n, 1)
        await device.publish("t", b"x" * 50, 1)
        await until(lambda: site.engine.counters.dropped == 4)
        async with Device(site.port, "s", clean=False) as listener:
            await until(lambda: len(listener.heard) == 5)
            await device.publish("t", b"end", 1)
            await until(lambda: listener.payloads[-1] == b"end")
            assert listener.payloads == [b"0", b"1", b"2", b"3", b"4", b"end"]


async def test_a_subscriber_that_reads_nothing_costs_others_nothing_and_is_cut_off() -> None:
    settings = Settings(queue_messages=100, queue_bytes=1 << 20, stall_timeout=3.0)
    async with running(settings=settings) as site, Device(site.port, "p") as device:
        async with site.raw(rig.connect("s"), rig.subscribe(("t", 0))) as (reader, writer):
            assert await reader.readexactly(9) == ACCEPTED + rig.suback(0)
            writer.transport.pause_reading()  # type: ignore[attr-defined] # a transport of a socket can
            for n in range(400):
                device.client.publish("t", b"%04d" % n * 5000, 1)
            await until(lambda: site.engine.counters.acked == 400)
            await until(lambda: any(one.startswith("s: ") for one in site.why))
        assert site.engine.counters.dropped > 0
        assert len(site.sink.messages) == 400


async def test_a_client_that_does_not_read_is_not_read_either() -> None:
    settings = Settings(queue_messages=100, queue_bytes=1 << 20, output_bytes=10_000)
    async with (
        running(settings=settings) as site,
        Device(site.port, "p") as device,
        site.raw(rig.connect("s"), rig.subscribe(("t", 0))) as (reader, writer),
    ):
        assert await reader.readexactly(9) == ACCEPTED + rig.suback(0)
        writer.transport.pause_reading()  # type: ignore[attr-defined] # a transport of a socket can
        while not site.engine.counters.dropped:
            await device.publish("t", b"x" * 100_000, 1)
        writer.write(rig.PING + rig.publish("late", b"late", 1, 1))
        for n in range(10):
            async with Device(site.port, "other") as other:
                await other.publish("other", b"%d" % n, 1)
        assert all(topic != b"late" for _, topic, _ in site.sink.messages)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        reading = asyncio.create_task(reader.read())
        await until(lambda: site.sink.messages[-1][1] == b"late")
        reading.cancel()
        await asyncio.wait([reading])


async def test_subscriptions_and_retained_messages_are_limited() -> None:
    settings = Settings(max_subscriptions=2, max_levels=3, retained_messages=1)
    async with running(settings=settings) as site:
        filters = [("a/b/c/d", 0), ("a/#/b", 0), ("a", 0), ("b", 1), ("c", 0)]
        async with site.raw(rig.connect("s"), rig.subscribe(*filters)) as (reader, _):
            expected = ACCEPTED + rig.suback(0x80, 0x80, 0, 1, 0x80)
            assert await asyncio.wait_for(reader.readexactly(len(expected)), 60) == expected
        async with Device(site.port, "p") as device:
            for topic in ("a", "b", "a"):
                await device.publish(topic, b"x", 1, retain=True)
        assert site.engine.counters.unretained == 1
        assert list((await site.sink.restore()).retained) == [b"a"]


async def test_more_of_qos_2_than_is_remembered_ends_the_connection() -> None:
    async with running(settings=Settings(dup_window=3)) as site:
        async with site.raw(rig.connect("a"), *(rig.publish("t", b"", 2, n) for n in range(1, 6))) as (reader, _):
            await asyncio.wait_for(reader.read(), 60)
        await until(lambda: site.why)
        assert site.why == ["a: too many messages of QoS 2 that it does not release"]

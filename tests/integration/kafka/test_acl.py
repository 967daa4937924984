"""The ACLs that docs/kafka.md asks for: enough for everything, and without each of them it is said what is missing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import aiomqtt
import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from cloud_ingest import config
from cloud_ingest.app import Ingest
from cloud_ingest.journal import kafka_admin, kafka_owner
from cloud_ingest.journal.keys import partition_of
from cloud_ingest.logs import open_log
from cloud_ingest.router import worker
from deploy.kafka.cluster import Cluster
from fleet_simulator.processes import Process, waybill
from tests.integration.cloud.gateway import EPOCH, Gateway, connected, running, status_frame, until
from tests.integration.kafka.acls import SETTINGS, Acl, Acls, documented
from tests.support.gateway import Epoch, control, trained
from tests.support.kafka import StartCluster
from tests.support.kafka_log import make_log, values
from tests.support.tools import ended
from waybill import snapshot, wire
from waybill.errors import ConfigError
from waybill.fleet_state import KafkaState
from waybill.wire import DICTIONARY_TOPIC, CommandStatus

USER = "cloud"
ONE = Epoch(EPOCH)
TWO_ROUTES = ("vehicles/V1/telemetry", "other/V1")


@pytest.fixture(scope="module")
def cluster(kafka_cluster: StartCluster) -> Cluster:
    """Return a broker on which USER may do what an ACL allows, and nothing else."""
    return kafka_cluster(users={USER: "secret"}, settings=SETTINGS)


@pytest.fixture
async def acls(cluster: Cluster) -> AsyncIterator[Acls]:
    client = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await client.start()
    yield Acls(client)
    await client.close()


def routes_of(name: str) -> dict[str, str]:
    """Return topics by filter; what is neither has no route."""
    return {"vehicles/#": f"{name}.fleet", "other/#": f"{name}.other"}


def settings_of(cluster: Cluster, name: str, data: Path) -> config.Settings:
    """Return the configuration of an ingest called ``name`` that logs in as USER."""
    return config.check(
        config.CloudConfig(
            data=str(data),
            deployment=name,
            listener=config.Listener("127.0.0.1:0"),
            log={
                "kind": "kafka",
                "bootstrap.servers": cluster.secure_bootstrap,
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": USER,
                "sasl.password": "secret",
                "ssl.ca.location": str(cluster.ca),
                "session.timeout.ms": 6000,
                "request.timeout.ms": 5000,
                "delivery.timeout.ms": 5000,
            },
            topics=config.Topics(prefix=f"{name}.", partitions=2),
            route=tuple(config.Route(filter=filter_, topic=topic) for filter_, topic in routes_of(name).items()),
        ),
        data,
        "test",
    )


class Site:
    """A running ingest, two gateways whose frames go to different partitions, and a reader who may read all."""

    def __init__(self, ingest: Ingest, gateways: tuple[Gateway, Gateway], cluster: Cluster, acls: Acls) -> None:
        self.ingest = ingest
        self.one, self.two = gateways
        self.name = ingest.log.deployment  # type: ignore[attr-defined]
        self.acls = acls
        self._reader = make_log(cluster.bootstrap, self.name)
        self._sent = {gateway.name: 0 for gateway in gateways}

    async def send(self, gateway: Gateway, *topics: str) -> list[str]:
        """Send a message to each of ``topics``, again while it is answered ``retry``; return the payloads."""
        first = self._sent[gateway.name] + 1
        last = self._sent[gateway.name] = first + len(topics) - 1
        turn = first % len(topics)  # a frame of ``ONE`` takes its topics in turn, by seq
        frame = ONE.frame(first, last, topics=topics[-turn:] + topics[:-turn])
        async with asyncio.timeout(180):
            while True:
                await gateway.send(frame)
                ack = await gateway.ack()
                assert not ack.refused, "a good frame must never be given up"
                if ack.journaled:
                    return [f"{EPOCH}:{seq}" for seq in range(first, last + 1)]
                await asyncio.sleep(0.2)

    async def read(self, topic: str) -> list[str]:
        """Return what is in ``topic``."""
        return [(value or b"").decode() for value in await values(self._reader, f"{self.name}.{topic}")]

    async def arrives(self, topic: str, *payloads: str) -> None:
        """Wait until ``payloads`` are in ``topic``."""
        async with asyncio.timeout(180):
            while not set(payloads) <= set(await self.read(topic)):  # noqa: ASYNC110 - a broker's doing
                await asyncio.sleep(0.1)

    async def states(self, state: str, *texts: str) -> None:
        """Wait until one partition is in ``state``, for a reason in which each of ``texts`` is."""

        def found() -> bool:
            partitions = self.ingest.snapshot().partitions
            return any(one.state == state and all(text in one.reason for text in texts) for one in partitions)

        await until(found, 60)

    async def alarm(self, *texts: str) -> None:
        """Wait for an alarm with each of ``texts`` in it."""
        await until(lambda: any(all(t in one.text for t in texts) for one in self.ingest.snapshot().alarms), 60)

    def topic(self, name: str, operation: str) -> Acl:
        """Return the ACL of one topic."""
        return Acl(USER, "Topic", "literal", f"{self.name}.{name}", operation)

    def internal(self, operation: str) -> Acl:
        """Return the ACL of all internal topics."""
        return Acl(USER, "Topic", "prefixed", f"{self.name}.waybill.", operation)

    @contextlib.asynccontextmanager
    async def without(self, *acls: Acl) -> AsyncIterator[None]:
        """Take documented ACLs away while the context is open."""
        for acl in acls:
            await self.acls.take(acl)
        yield
        await self.acls.allow(acls)

    @contextlib.asynccontextmanager
    async def denied(self, acl: Acl) -> AsyncIterator[None]:
        """Deny one topic of those that an ACL with a prefix allows."""
        await self.acls.deny(acl)
        yield
        await self.acls.undeny(acl)


@pytest.fixture
async def site(
    cluster: Cluster, acls: Acls, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    """Give a site that has the documented ACLs and no other, and does not wait long before it tries again."""
    monkeypatch.setattr(worker, "STOPPED_FOR", 0.5)
    monkeypatch.setattr(worker, "REFUSED_FOR", 0.5)
    monkeypatch.setattr(worker, "LONGEST_PAUSE", 0.5)
    monkeypatch.setattr(kafka_owner, "RETRY", 0.5)
    await acls.allow(documented(USER, unique, f"{unique}.", list(routes_of(unique).values())))
    names = [f"g-{secrets.token_hex(4)}" for _ in range(50)]
    one, two = (next(name for name in names if partition_of(name.encode(), 2) == number) for number in (0, 1))
    async with running(settings_of(cluster, unique, tmp_path)) as ingest:
        await until(lambda: [each.state for each in ingest.snapshot().partitions] == ["ready"] * 2, 60)
        async with connected(ingest, one, None) as first, connected(ingest, two, None) as second:
            yield Site(ingest, (first, second), cluster, acls)


async def internal_write(site: Site) -> None:
    """The journal: frames stay with the gateway (``send`` fails where one is refused), and come when it is mended."""
    async with site.without(site.internal("Write")):
        sending = asyncio.create_task(site.send(site.one, "other/V1"))
        text = f"must allow Write on topic {site.name}.waybill.frames"
        await until(lambda: text in site.ingest.snapshot().frames.fault, 60)
    await site.arrives("other", *await sending)
    assert not site.ingest.snapshot().frames.fault


async def internal_read(site: Site) -> None:
    async with site.without(site.internal("Read")):
        sent = await site.send(site.one, "other/V1")  # is journaled
        await site.states("waiting", f"must allow Read on topic {site.name}.waybill.")
    await site.arrives("other", *sent)


async def route_write(site: Site) -> None:
    """R5: its records become dead letters, the other route's do not."""
    async with site.without(site.topic("fleet", "Write")):
        letter, other = await site.send(site.one, *TWO_ROUTES)
        await site.alarm(f"{site.name}.fleet: not allowed: its ACLs must allow Write", "goes to dead letters")
        await site.arrives("fleet.dlq", letter)
        await site.arrives("other", other)
    await asyncio.sleep(worker.REFUSED_FOR)
    sent, _ = await site.send(site.one, *TWO_ROUTES)
    await site.arrives("fleet", sent)


async def letters_write(site: Site) -> None:
    """R5: a partition that needs the dead letters stops and says so; the other one goes on."""
    async with site.without(site.topic("fleet", "Write"), site.topic("fleet.dlq", "Write")):
        stuck = await site.send(site.one, *TWO_ROUTES)
        await site.alarm("partition 0 is stopped", f"{site.name}.fleet.dlq: not allowed: its ACLs must allow Write")
        await site.arrives("other", *await site.send(site.two, "other/V1"))
    await site.arrives("other", stuck[1])
    await site.arrives("fleet", stuck[0])


async def group_read(site: Site) -> None:
    async with site.without(Acl(USER, "Group", "literal", f"{site.name}.router", "Read")):
        sent = await site.send(site.one, "other/V1")
        await site.states("waiting", f"must allow Read on group {site.name}.router")
    await site.arrives("other", *sent)


async def transactional_write(site: Site) -> None:
    async with site.without(Acl(USER, "TransactionalId", "prefixed", f"{site.name}.", "Write")):
        sent = await site.send(site.one, "other/V1")
        await site.states("waiting", "fencing", f"must allow Write on transactional id {site.name}.0")
    await site.arrives("other", *sent)


async def ledger_write(site: Site) -> None:
    async with site.denied(site.topic("waybill.ledger", "Write")):
        sent = await site.send(site.one, "other/V1")
        await site.states("stopped", f"must allow Write on topic {site.name}.waybill.ledger")
    await site.arrives("other", *sent)


async def dictionaries_write(site: Site) -> None:
    """R10: frames that need it come behind it, so the partition waits for a person; the other one goes on."""
    async with site.denied(site.topic("waybill.dictionaries", "Write")):
        await site.one.send(control(9, 1, (DICTIONARY_TOPIC, trained().content)))
        sent = await site.send(site.one, "other/V1")
        await site.states("stopped", f"must allow Write on topic {site.name}.waybill.dictionaries")
        await site.arrives("other", *await site.send(site.two, "other/V1"))
    await site.arrives("other", *sent)
    assert len(await values(site._reader, f"{site.name}.waybill.dictionaries")) == 1


async def commands_read(site: Site) -> None:
    async with site.denied(site.topic("waybill.commands", "Read")):
        text = f"must allow Read on topic {site.name}.waybill.commands"
        await until(lambda: text in site.ingest.snapshot().commands.fault, 60)
        await site.states("waiting", text)
        async with site.denied(site.topic("waybill.commands", "Describe")):
            await site.states("waiting", f"{site.name}.waybill.commands: no such topic, or not allowed to see it")
    await until(lambda: not site.ingest.snapshot().commands.fault, 60)


async def status_write(site: Site) -> None:
    """R5: a state that may not be written is a dead letter; data goes on."""
    async with site.denied(site.topic("waybill.command-status", "Write")):
        await site.two.send(status_frame(1, CommandStatus("c-1", site.two.name, "V1", "delivered", 1)))
        await site.alarm(f"{site.name}.waybill.command-status: not allowed: its ACLs must allow Write")
        await site.arrives("other", *await site.send(site.two, "other/V1"))
    assert any("c-1" in letter for letter in await site.read("waybill.dlq"))


async def deployment_letters_write(site: Site) -> None:
    async with site.denied(site.topic("waybill.dlq", "Write")):
        unrouted = await site.send(site.one, "nowhere")
        await site.states("stopped", f"must allow Write on topic {site.name}.waybill.dlq")
    await site.arrives("waybill.dlq", *unrouted)


CASES: tuple[Callable[[Site], Coroutine[None, None, None]], ...] = (
    internal_write,
    internal_read,
    route_write,
    letters_write,
    group_read,
    transactional_write,
    ledger_write,
    dictionaries_write,
    commands_read,
    status_write,
    deployment_letters_write,
)


async def test_each_acl_that_is_taken_away_is_named_and_nothing_is_lost(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for case in CASES:
        await case(site)
    last = [await site.send(gateway, *TWO_ROUTES) for gateway in (site.one, site.two)]
    for sent in last:
        await site.arrives("fleet", sent[0])
        await site.arrives("other", sent[1])
    # Each message of either gateway is somewhere, once.
    found: list[str] = []
    for topic in ("fleet", "other", "fleet.dlq", "other.dlq", "waybill.dlq"):
        found += [value for value in await site.read(topic) if value.startswith(f"{EPOCH}:")]
    expected = [f"{EPOCH}:{seq}" for count in site._sent.values() for seq in range(1, count + 1)]
    assert sorted(found) == sorted(expected)
    gc.collect()  # an error that nobody took is told now
    assert "Traceback" not in caplog.text


async def started(cluster: Cluster, name: str, tmp_path: Path) -> None:
    """Open the log of ``name`` as an ingest does, and journal a frame of three million bytes."""
    log = open_log(settings_of(cluster, name, tmp_path)).log
    try:
        await log.start()
        await log.append_frame("g", bytes(3_000_000))
    finally:
        await log.close()


async def test_a_start_without_an_acl_says_which(
    cluster: Cluster,
    acls: Acls,
    unique: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = documented(USER, unique, f"{unique}.", list(routes_of(unique).values()))
    fleet = {acl.operation: acl for acl in given if acl.name == f"{unique}.fleet"}
    internal = {acl.operation: acl for acl in given if acl.name == f"{unique}.waybill."}
    await acls.allow(given)

    await acls.take(fleet["Create"])
    await acls.take(internal["Create"])
    with pytest.raises(ConfigError) as wrong:
        await started(cluster, unique, tmp_path)
    for topic in ("fleet", "waybill.frames", "waybill.ledger", "waybill.commands", "waybill.dlq"):
        assert f"topic {unique}.{topic} is missing and may not be created here: create it, or allow" in str(wrong.value)
    await acls.allow([fleet["Create"], internal["Create"]])
    await started(cluster, unique, tmp_path)

    # There, and not to be written: a matter for dead letters, not for the start.
    await acls.take(fleet["Write"])
    await started(cluster, unique, tmp_path)
    await acls.take(fleet["Describe"])
    with monkeypatch.context() as soon:
        soon.setattr(kafka_admin, "APPEARS", 2.0)
        with pytest.raises(ConfigError, match=f"topic {unique}.fleet is there but not seen: allow Describe on it"):
            await started(cluster, unique, tmp_path)
    await acls.take(fleet["Create"])
    with pytest.raises(ConfigError, match=f"topic {unique}.fleet is missing .* if it is there, allow Describe"):
        await started(cluster, unique, tmp_path)
    await acls.allow([fleet["Write"], fleet["Describe"], fleet["Create"]])

    # What may not be checked is believed: large frames are journaled.
    assert "settings may not be read" not in caplog.text
    await acls.take(internal["DescribeConfigs"])
    await started(cluster, unique, tmp_path)
    for topic in ("waybill.frames", "waybill.ledger", "waybill.dlq"):
        assert f"topic {unique}.{topic}: its settings may not be read; allow DescribeConfigs" in caplog.text


CONFIG = """
deployment = "waybill"
data = "data"
[listener]
address = "127.0.0.1:{port}"
[log]
kind = "kafka"
"bootstrap.servers" = "{bootstrap}"
"security.protocol" = "SASL_SSL"
"sasl.mechanism" = "SCRAM-SHA-512"
"sasl.username" = "cloud"
"sasl.password" = "secret"
"ssl.ca.location" = "{ca}"
[[route]]
filter = "vehicles/#"
topic = "fleet.telemetry"
"""


async def test_the_documented_acls_are_enough(cluster: Cluster, acls: Acls, tmp_path: Path, free_port: int) -> None:
    """A process with the names of the document: topics made, frames journaled and routed, commands, audit, tail."""
    await acls.allow(documented(USER, "waybill", "", ["fleet.telemetry"]))
    await acls.allow([Acl(USER, "Topic", "literal", "fleet.telemetry", "Read")])  # for the tail
    file = tmp_path / "cloud.toml"
    file.write_text(CONFIG.format(port=free_port, bootstrap=cluster.secure_bootstrap, ca=cluster.ca))
    ingest = Process("ingest", [*waybill("cloud", "run"), "--config", str(file)], tmp_path / "log")
    await ingest.start()
    try:
        await until(lambda: "the log is connected" in ingest.said(), 60)
        async with aiomqtt.Client("127.0.0.1", free_port, identifier="g1", timeout=60) as client:
            gateway = Gateway("g1", client)
            listening = asyncio.create_task(gateway.listen())
            await client.subscribe(wire.ack_topic("g1"))
            await client.subscribe(wire.down_topic("g1"))
            await gateway.send(ONE.frame(1, 2, topics=["nowhere", "vehicles/V1/telemetry"]))
            await gateway.journaled(1, 2)
            sent = await tool(file, "command", "send", *("--gateway", "g1", "--device", "V1", "--name", "lock"))
            id_ = sent.strip()
            assert (await gateway.envelope()).id == id_
            await gateway.send(status_frame(1, CommandStatus(id_, "g1", "V1", "done", 5)))
            assert await tool(file, "command", "watch", id_, "--timeout", "30s") == "done g1/V1\n"
            listening.cancel()
            await asyncio.wait({listening})
        # The state was routed after the data of the same partition.
        assert "4711:1" in await tool(file, "cloud", "tail", "fleet.telemetry", "--end")
        assert "4711:2" in await tool(file, "cloud", "tail", "waybill.dlq", "--end")
        assert "g1" in await tool(file, "cloud", "audit")
        state = msgspec.convert(await snapshot.request(tmp_path / "data" / "cloud.sock", "kafka"), KafkaState)
        assert (state.fault, len(state.brokers)) == ("", 1)
        told = {one.topic: one.records for one in state.topics}
        assert told["waybill.health"]  # the node's own
        assert told.keys() >= {"waybill.frames", "waybill.ledger", "fleet.telemetry", "waybill.dlq"}
    finally:
        code = await ingest.stop()
    assert code == 0
    expected = (" info ", "plain TCP on", "Kafka has one broker")
    said = [line for line in ingest.said().splitlines() if not any(text in line for text in expected)]
    assert said == [f"listening on 127.0.0.1:{free_port}"]


async def tool(file: Path, *arguments: str) -> str:
    """Run ``waybill ARGUMENTS`` on the deployment of ``file``; return what it prints."""
    code, out, err = await ended(*waybill(*arguments), "--config", file)
    assert code == 0, err
    return out

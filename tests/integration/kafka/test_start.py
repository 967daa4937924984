"""Start: topics made with the right settings, or checked (R4, R6, R8, B4); a Kafka that is not there."""

import asyncio
import logging
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from fleet_simulator.processes import Process, waybill
from tests.support.kafka_log import OpenLog, make_log
from waybill.errors import ConfigError, Unavailable


async def _settings(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    [resource] = response.resources
    return {entry[0]: entry[1] for entry in resource[4]}


async def test_r4_topics_are_made_with_the_settings_that_the_rules_need(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient
) -> None:
    settings = {"frames.retention.ms": 86_400_000}
    log = await open_log(partitions=3, **settings)
    assert log.partitions == 3
    frames = await _settings(admin, f"{unique}.waybill.frames")
    assert frames["cleanup.policy"] == "delete"
    assert frames["message.timestamp.type"] == "LogAppendTime"
    assert frames["max.message.bytes"] == str(4 << 20)
    assert frames["retention.ms"] == "86400000"
    for table in ("ledger", "health"):
        made = await _settings(admin, f"{unique}.waybill.{table}")
        assert made["cleanup.policy"] == "compact"
        assert made["segment.bytes"] == str(16 << 20)
        assert float(made["min.cleanable.dirty.ratio"]) == 0.1
    letters = await _settings(admin, f"{unique}.fleet.dlq")
    assert int(letters["max.message.bytes"]) > 4 << 20
    there = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}
    names = ("waybill.frames", "waybill.ledger", "waybill.commands", "waybill.command-status", "waybill.dlq", "fleet")
    assert {name: there.get(f"{unique}.{name}") for name in (*names, "fleet.dlq")} == dict.fromkeys(
        (*names, "fleet.dlq"), 3
    )
    await open_log(partitions=3, **settings)  # a second node finds them right


async def _open_often(open_log: OpenLog) -> None:
    """Open until that fails: a broker may answer from before a change."""
    async with asyncio.timeout(180):
        while True:
            await open_log()


@pytest.mark.parametrize(
    ("topic", "settings", "says"),
    [
        ("waybill.frames", {"cleanup.policy": "compact"}, "cleanup.policy=delete"),
        ("waybill.frames", {"message.timestamp.type": "CreateTime"}, "message.timestamp.type=LogAppendTime"),
        ("waybill.frames", {"max.message.bytes": "1048588"}, "max.message.bytes=4194304"),
        ("waybill.frames", {"retention.ms": "3600000"}, "retention.ms=604800000"),
        ("waybill.frames", {"retention.bytes": "1000000"}, "retention.bytes=-1"),
        ("waybill.ledger", {"cleanup.policy": "delete"}, "cleanup.policy=compact"),
        ("waybill.ledger", {"cleanup.policy": "compact,delete"}, "cleanup.policy=compact"),
        ("waybill.ledger", {"cleanup.policy": "compact", "max.message.bytes": "9000"}, "max.message.bytes=524288"),
        ("waybill.commands", {"cleanup.policy": "compact"}, "cleanup.policy=delete"),
        ("waybill.command-status", {"cleanup.policy": "compact"}, "cleanup.policy=delete"),
        ("waybill.dictionaries", {"cleanup.policy": "compact,delete"}, "cleanup.policy=compact"),
        ("waybill.presence", {"cleanup.policy": "delete"}, "cleanup.policy=compact"),
        ("fleet.dlq", {"cleanup.policy": "compact"}, "cleanup.policy=delete"),
        ("waybill.frames", {"unclean.leader.election.enable": "true"}, "unclean.leader.election.enable=false"),
        ("fleet", {"unclean.leader.election.enable": "true"}, "unclean.leader.election.enable=false"),
    ],
)
async def test_r4_an_existing_topic_that_breaks_a_rule_is_an_error_with_its_mend(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient, topic: str, settings: dict[str, str], says: str
) -> None:
    await open_log()
    name = f"{unique}.{topic}"
    right = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(4 << 20), "cleanup.policy": "delete"}
    base = right if topic == "waybill.frames" else {}
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {**base, **settings})])
    with pytest.raises(ConfigError, match=f"{name} has .* --entity-name {name} --add-config .*") as wrong:
        await _open_often(open_log)
    assert f"--entity-name {name} --add-config {says}" in str(wrong.value)
    await open_log(allow_unsafe=True)


async def test_an_unsafe_topic_ends_the_command_with_its_mend_unless_it_is_allowed(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient, kafka: str, tmp_path: Path
) -> None:
    await open_log()
    topic = f"{unique}.waybill.ledger"
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": "delete"})])
    with pytest.raises(ConfigError):
        await _open_often(open_log)
    config = tmp_path / "cloud.toml"
    config.write_text(
        f'deployment = "{unique}"\ndata = "data"\n[listener]\naddress = "127.0.0.1:0"\n'
        f'[log]\nkind = "kafka"\n"bootstrap.servers" = "{kafka}"\n'
        f'[topics]\nprefix = "{unique}."\npartitions = 2\n[[route]]\ntopic = "{unique}.fleet"\n'
    )
    command = waybill("cloud", "run", "--config", str(config))
    refused = Process("refused", command, tmp_path / "refused")
    with pytest.raises(Unavailable, match="ended with 2") as end:
        await refused.start()
    assert f"--entity-name {topic} --add-config cleanup.policy=compact" in str(end.value)
    assert "--allow-unsafe" in str(end.value)
    allowed = Process("allowed", [*command, "--allow-unsafe"], tmp_path / "allowed")
    await allowed.start()
    assert await allowed.stop() == 0
    assert f"unsafe, but allowed: topic {topic}" in allowed.said()


async def test_r4_frames_and_ledger_have_the_configured_number_of_partitions(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient
) -> None:
    await admin.create_topics([NewTopic(f"{unique}.waybill.ledger", 5, 1, topic_configs={"cleanup.policy": "compact"})])
    with pytest.raises(ConfigError, match=r"waybill.ledger has 5 partitions.*partitions = 5"):
        await open_log()


async def test_r5_dead_letters_that_may_not_fit_are_warned_of(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{unique}.fleet.dlq"
    await admin.create_topics([NewTopic(name, 1, 1)])
    with caplog.at_level(logging.WARNING):
        await open_log()
    assert f"--entity-name {name} --add-config max.message.bytes=5242880" in caplog.text


async def test_a_compacted_topic_of_a_route_is_warned_of(
    open_log: OpenLog, unique: str, admin: AIOKafkaAdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    await admin.create_topics([NewTopic(f"{unique}.fleet", 1, 1, topic_configs={"cleanup.policy": "compact"})])
    with caplog.at_level(logging.WARNING):
        await open_log()
    assert "is compacted" in caplog.text


async def test_a_replication_that_the_cluster_does_not_have_is_an_error(kafka: str, unique: str) -> None:
    log = make_log(kafka, unique)
    log._topics = type(log._topics)(prefix=f"{unique}.", replication_factor=50)
    with pytest.raises(ConfigError, match="replication_factor"):
        await log.start()


async def test_a_kafka_that_is_away_is_said_with_its_address(free_port: int, unique: str) -> None:
    log = make_log(f"127.0.0.1:{free_port}", unique)
    with pytest.raises(Unavailable, match=f"127.0.0.1:{free_port}"):
        await log.start()
    with pytest.raises(Unavailable):
        await log.append_frame("gw-1", b"x")
    await log.close()

"""Other people's way from MQTT to Kafka under our ledger: mosquitto's bridge, and a collector behind it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from fleet_simulator.ports import free_ports
from tests.integration.test_demo import processes_below
from tests.integration.test_fleet_run import run
from tests.support import mqtt_to_kafka

pytestmark = pytest.mark.system

EDGE = """
user root
listener {edge} 127.0.0.1
allow_anonymous true
max_queued_messages 0
max_inflight_messages 0
{persistence}
connection uplink
address 127.0.0.1:{relay}
remote_clientid uplink
cleansession false
restart_timeout 1
topic vehicles/# out 1
"""
KEPT = """
persistence true
persistence_location {directory}/
autosave_interval 1
"""
CLOUD = """
user root
listener {cloud} 127.0.0.1
allow_anonymous true
max_queued_messages 0
max_inflight_messages 0
"""
SCENARIO = """
seconds = 6
drain = 8
[target]
mqtt = "mqtt://127.0.0.1:{edge}"
kafka = "{kafka}"
topic = "{topic}"
[[target.link]]
name = "uplink"
listen = "127.0.0.1:{relay}"
to = "127.0.0.1:{cloud}"
[[target.process]]
name = "cloud"
command = ["mosquitto", "-c", "{directory}/cloud.conf"]
ready = "127.0.0.1:{cloud}"
[[target.process]]
name = "collector"
command = ["{python}", "-P", "{collector}", "127.0.0.1:{cloud}", "{kafka}", "{topic}"]
ready = "subscribed"
[[target.process]]
name = "edge"
command = ["mosquitto", "-c", "{directory}/edge.conf"]
ready = "127.0.0.1:{edge}"
[[vehicle]]
name = "car"
count = 10
interval = "100ms"
[[link]]
kind = "cut"
at = 2
for = 3
"""
KILL = """
[[fault]]
what = "edge"
at = 4
for = "500ms"
"""


async def setup(directory: Path, kafka: str, topic: str, story: str, persistence: str = "") -> Path:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    edge, relay, cloud = free_ports(3)
    ports: dict[str, object] = {
        "edge": edge,
        "relay": relay,
        "cloud": cloud,
        "directory": directory,
        "kafka": kafka,
        "topic": topic,
    }
    ports |= {"python": sys.executable, "collector": mqtt_to_kafka.__file__}
    directory.mkdir(exist_ok=True)
    (directory / "edge.conf").write_text(EDGE.format(persistence=persistence.format(**ports), **ports))
    (directory / "cloud.conf").write_text(CLOUD.format(**ports))
    scenario = directory / "peer.toml"
    scenario.write_text(SCENARIO.format(**ports) + story)
    return scenario


async def test_a_bridge_delivers_at_least_once_over_a_cut(kafka: str, unique: str, tmp_path: Path) -> None:
    scenario = await setup(tmp_path, kafka, unique, "")
    code, out, words = await run("run", str(scenario), "--keep", str(tmp_path / "run"))
    found = re.match(r"verdict: (PASS|FAIL) delivered=[1-9]\d+ lost=0 duplicated=(\d+) ", out)
    assert found is not None, out + words
    assert (code == 0) == (found[1] == "PASS") == (found[2] == "0")
    assert processes_below(tmp_path) == []


async def test_a_bridge_that_is_killed_loses_what_it_had_acknowledged(kafka: str, unique: str, tmp_path: Path) -> None:
    scenario = await setup(tmp_path, kafka, unique, KILL)
    code, out, words = await run("run", str(scenario), "--keep", str(tmp_path / "run"))
    found = re.match(r"verdict: FAIL delivered=\d+ lost=(\d+)", out)
    assert code == 1, out + words
    assert found is not None
    assert int(found[1]) > 10, "of what it had queued for two seconds"

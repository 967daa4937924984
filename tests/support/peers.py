"""Other people's way from MQTT to Kafka as scenarios: a mosquitto, its bridge, a mosquitto in the cloud, a collector.

::

    vehicles ──▶ edge ──bridge, QoS 1──▶ relay ──▶ cloud ──QoS 1──▶ collector ──acks=all──▶ Kafka

The collector is Telegraf, or a program of ours with the same order of acks. The brokers' queues have no limit, and
every session stays. The same stories can happen to Waybill, in a scenario with a ``[[gateway]]``.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from fleet_simulator.ports import free_ports
from tests.support import mqtt_to_kafka

IN_MEMORY = ""
EACH_SECOND = """
persistence true
autosave_interval 1
"""
EACH_CHANGE = """
persistence true
autosave_on_changes true
autosave_interval 1
"""

BROKER = """
user root
listener {port} 127.0.0.1
allow_anonymous true
max_queued_messages 0
max_inflight_messages 0
{persistence}
"""
BRIDGE = """
connection uplink
address 127.0.0.1:{relay}
remote_clientid uplink
cleansession false
restart_timeout 1
topic vehicles/# out 1
"""
TELEGRAF = """
[agent]
interval = "1s"
flush_interval = "100ms"
metric_batch_size = 1000
metric_buffer_limit = 20000
omit_hostname = true
[[inputs.mqtt_consumer]]
servers = ["tcp://127.0.0.1:{cloud}"]
topics = ["vehicles/#"]
qos = 1
client_id = "telegraf"
persistent_session = true
max_undelivered_messages = 10000
startup_error_behavior = "retry"
data_format = "value"
data_type = "string"
[[inputs.mqtt_consumer.topic_parsing]]
topic = "vehicles/+/+"
tags = "_/vehicle/_"
[[outputs.kafka]]
brokers = ["{kafka}"]
topic = "{topic}"
routing_tag = "vehicle"
required_acks = -1
idempotent_writes = true
startup_error_behavior = "retry"
data_format = "template"
template = '{{{{.Field "value"}}}}'
"""

FLEET = """
seconds = {seconds}
drain = {drain}
[[vehicle]]
name = "car"
count = {count}
interval = "{interval}"
{gateway}
"""
CHAIN = """
[target]
mqtt = "mqtt://127.0.0.1:{edge}"
kafka = "{kafka}"
topic = "{topic}"
[[target.link]]
name = "uplink"
listen = "127.0.0.1:{relay}"
to = "127.0.0.1:{cloud}"
"""
PROGRAM = """
[[target.process]]
name = "{}"
command = {}
ready = "{}"
"""
OURS = """
[[gateway]]
name = "gateway"
"""


@functools.cache
def telegraf() -> str:
    """Return the path of Telegraf; the first call builds it. Raises RuntimeError, which says what is missing."""
    # Below another make, this one would say last which directory it leaves.
    command = ["make", "--no-print-directory", "telegraf"]
    made = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(made.stderr)
    return made.stdout.splitlines()[-1]


class Peers:
    """One chain below a directory: its configuration, and the scenarios that it is judged by."""

    def __init__(
        self,
        directory: Path,
        kafka: str,
        topic: str,
        persistence: str,
        *,
        collector: str = "ours",
        relayed: bool = True,
    ) -> None:
        """``persistence``: of both mosquittos, as they have it in their configuration. ``collector``: or "telegraf".

        ``relayed``: whether the bridge goes through a relay of the scenario's, which can be cut.
        """
        self.directory = directory
        self.kafka = kafka
        self.topic = topic
        self.edge, self.relay, self.cloud = free_ports(3)
        if not relayed:
            self.relay = self.cloud
        self.collector = [sys.executable, "-P", mqtt_to_kafka.__file__, f"127.0.0.1:{self.cloud}", kafka, topic]
        self.ready = "subscribed"
        if collector == "telegraf":
            self.collector, self.ready = [telegraf(), "--config", f"{directory}/telegraf.conf"], "Connected [tcp"
        for name, port in (("edge", self.edge), ("cloud", self.cloud)):
            (directory / name).mkdir(parents=True)
            kept = f"{persistence}\npersistence_location {directory / name}/" if persistence else ""
            text = BROKER.format(port=port, persistence=kept)
            text += BRIDGE.format(relay=self.relay) if name == "edge" else ""
            (directory / f"{name}.conf").write_text(text)
        (directory / "telegraf.conf").write_text(TELEGRAF.format(cloud=self.cloud, kafka=kafka, topic=topic))

    def programs(self) -> list[tuple[str, list[str], str]]:
        """Return name, command and what says that it serves, in the order in which they are started."""
        return [
            ("cloud", ["mosquitto", "-c", f"{self.directory}/cloud.conf"], f"127.0.0.1:{self.cloud}"),
            ("collector", self.collector, self.ready),
            ("edge", ["mosquitto", "-c", f"{self.directory}/edge.conf"], f"127.0.0.1:{self.edge}"),
        ]

    async def scenario(self, fleet: str, story: str) -> Path:
        """Make the topic, and write a scenario of ``fleet`` to which ``story`` happens."""
        await make_topic(self.kafka, self.topic)
        chain = CHAIN.format(
            edge=self.edge,
            relay=self.relay,
            cloud=self.cloud,
            kafka=self.kafka,
            topic=self.topic,
        )
        file = self.directory / "peers.toml"
        file.write_text(fleet + chain + "".join(PROGRAM.format(*each) for each in self.programs()) + story)
        return file


async def make_topic(kafka: str, topic: str) -> None:
    """Make a topic with one partition."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()

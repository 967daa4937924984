"""Topics read back by Java's own console consumer: a client that others wrote."""

import fcntl
import subprocess
from pathlib import Path
from typing import NamedTuple

from deploy.kafka.cluster import VERSION, java

SEPARATOR = "\x1f"


class Read(NamedTuple):
    """One record as Java prints it."""

    partition: int
    key: str
    value: str
    headers: dict[str, str]


def _class_path() -> str:
    """Return the jars of the broker and of Kafka's tools. The first call downloads the tools."""
    import jgo
    from jgo.config import GlobalSettings

    command = java()
    with (GlobalSettings.load().cache_dir / "waybill-kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(jgo.build(f"org.apache.kafka:kafka-tools:{VERSION}").path)
    return ":".join([command[-1], *(str(jar) for jar in sorted(folder.rglob("kafka-tools-*.jar")))])


def read_committed(bootstrap: str, topic: str, count: int, *, more: float = 3.0) -> list[Read]:
    """Read ``topic`` from its start, read_committed: ``count`` records, and any others within ``more`` seconds.

    Raises AssertionError where the consumer fails.
    """
    command = java()
    properties = {
        "print.key": "true",
        "print.partition": "true",
        "print.headers": "true",
        "key.separator": SEPARATOR,
        "headers.separator": ",",
    }
    arguments = ["--bootstrap-server", bootstrap, "--topic", topic, "--from-beginning"]
    arguments += ["--isolation-level", "read_committed", "--timeout-ms", str(int(more * 1000) + 5_000)]
    arguments += ["--max-messages", str(count + 1)]  # one more than there should be: a copy would be it
    for name, value in properties.items():
        arguments += ["--formatter-property", f"{name}={value}"]
    ran = subprocess.run(
        [*command[:-1], _class_path(), "org.apache.kafka.tools.consumer.ConsoleConsumer", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    lines = [
        line for line in ran.stdout.splitlines() if SEPARATOR in line
    ]  # it logs there too, at the least its time-out
    assert lines or count == 0, f"the console consumer says: {ran.stdout[-2000:]} {ran.stderr[-2000:]}"
    return [_parse(line) for line in lines]


def _parse(line: str) -> Read:
    partition, headers, key, value = line.split(SEPARATOR)
    pairs = dict(pair.split(":", 1) for pair in headers.split(",")) if ":" in headers else {}
    return Read(int(partition.removeprefix("Partition:")), key, value, pairs)

"""Reading a topic back with a client that Waybill has nothing to do with: Kafka's own console consumer, in Java."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final

from deploy.kafka.cluster import java

SILENCE: Final = 10  # a busy machine may need some for the first record


@dataclass(frozen=True)
class JavaRecord:
    """One record as the console consumer prints it. ``headers``: by name."""

    partition: int
    offset: int
    timestamp: int
    headers: dict[str, str]
    key: str
    value: str


async def read_committed(bootstrap: str, topic: str) -> list[JavaRecord]:
    """Return all committed records of ``topic``, each partition in order, when nothing came for SILENCE seconds."""
    shown = ["timestamp", "partition", "offset", "headers", "key", "value"]
    process = await asyncio.create_subprocess_exec(
        *java(tools=True),
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        *("--bootstrap-server", bootstrap, "--topic", topic, "--from-beginning"),
        *("--isolation-level", "read_committed", "--timeout-ms", str(1000 * SILENCE)),
        *(part for what in shown for part in ("--formatter-property", f"print.{what}=true")),
        *("--formatter-property", "headers.separator=\x1f", "--formatter-property", "key.separator=\x1e"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, words = await process.communicate()
    # It ends its wait for more with an exception and a count; any other end is a failure.
    counted = re.search(rb"Processed a total of ([0-9]+) messages", words)
    if counted is None:
        raise AssertionError(words.decode())
    # Its log comes on the same stream. (splitlines would split at the separators.)
    records = [_record(line) for line in said.decode().split("\n") if line.count("\x1e") == len(shown) - 1]
    if len(records) != int(counted[1]):
        raise AssertionError(f"{len(records)} lines, but it counts {int(counted[1])}")
    return records


def _record(line: str) -> JavaRecord:
    time, partition, offset, headers, key, value = line.split("\x1e")
    return JavaRecord(
        partition=int(partition.removeprefix("Partition:")),
        offset=int(offset.removeprefix("Offset:")),
        timestamp=int(time.rpartition(":")[2]),
        headers=dict(part.split(":", 1) for part in headers.split("\x1f")) if headers != "NO_HEADERS" else {},
        key=key,
        value=value,
    )

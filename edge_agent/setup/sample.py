"""Messages to size a gateway by: the user's own, as ``mosquitto_sub -v`` prints them, or some that are made up."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Final

from edge_agent.setup.sizing import Message
from waybill.errors import ConfigError

TOPIC: Final = "devices/1/telemetry"
"""Of lines that are JSON alone."""

MOST: Final = 20_000
"""Lines that are looked at."""

_MADE: Final = 4000


def read(path: Path) -> list[Message]:
    """Read ``TOPIC PAYLOAD`` a line, or JSON alone, at most MOST of them. Raises ConfigError."""
    found: list[Message] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.rstrip(b"\r\n")
                if text:
                    found.append(_message(text, path, number))
                if len(found) == MOST:
                    break
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not found:
        raise ConfigError(f"{path}: no messages; fill it with: mosquitto_sub -v -t '#' > {path}")
    return found


def _message(text: bytes, path: Path, number: int) -> Message:
    if text[:1] in b"{[":
        return Message(TOPIC, text)
    topic, space, payload = text.partition(b" ")
    try:
        name = topic.decode()
    except UnicodeDecodeError:
        name = ""
    if not name or not space or "#" in name or "+" in name:
        raise ConfigError(f"{path}:{number}: write TOPIC PAYLOAD, as mosquitto_sub -v does, or JSON alone")
    return Message(name, payload)


def made_up(devices: int, size: int) -> list[Message]:
    """Return messages of about ``size`` bytes that devices may send: JSON whose numbers drift as sensors do."""
    rng = random.Random(7)  # noqa: S311 - the same each time
    fields = max(1, round((size - 33) / 12))
    values = [[rng.uniform(0, 100) for _ in range(fields)] for _ in range(devices)]
    found: list[Message] = []
    for number in range(_MADE):
        own = values[number % devices]
        for at in range(fields):
            own[at] += rng.gauss(0, 0.3)
        body: dict[str, object] = {"ts": 1_790_000_000_000 + 1000 * (number // devices) + rng.randrange(20)}
        body |= {f"f{at:02}": round(value, at % 3) for at, value in enumerate(own)}
        found.append(Message(f"devices/{number % devices:04}/telemetry", json.dumps(body).encode()))
    return found

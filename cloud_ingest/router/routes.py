"""Routes: which Kafka topic and key a message gets, by its MQTT topic. The first route that matches wins. Pure.

Key templates know {device} {client} {gateway} {topic} {level:N}, N from 1; a level that the topic does not have is
empty. The device is the second level of the MQTT topic (``vehicles/V7/telemetry`` is of V7), or the client where it
has one level.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote

from cloud_ingest.config import Route
from waybill.errors import ConfigError
from waybill.mqtt.topics import matcher, valid_filter
from waybill.wire import is_node

MAX_LEVELS: Final = 128
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_BY_DEVICE: Final = ("", "device", "")
_ALL: Final = "#"
_LEVEL = re.compile(r"level:([1-9][0-9]{0,2})")
_UNRESERVED: Final = (string.ascii_letters + string.digits + "-._~").encode()
"""What a URI holds as it is (RFC 3986, section 2.3)."""
_new = tuple.__new__

Header = tuple[str, bytes]


class Target(NamedTuple):
    """Where the messages of one (gateway, topic, client) go, and the headers that they all share.

    ``topic``: the Kafka topic, None where no route matches.
    """

    topic: str | None
    key: bytes
    ce_source: Header
    mqtt_topic: Header


class _Compiled(NamedTuple):
    matches: Callable[[bytes], object] | None  # None for ``#``, which takes all but what begins with $
    topic: str
    parts: tuple[str, ...] | None  # literal, placeholder, literal, …, literal; None for {device} alone


class Routes:
    """The compiled routes of a deployment."""

    def __init__(self, routes: Sequence[Route], where: str = "routes") -> None:
        """Compile ``routes``; ``where`` names their origin in errors.

        Raises ConfigError for a filter or key template that cannot be.
        """
        self._routes = [_compile(f"{where}: [[route]] {number}", route) for number, route in enumerate(routes, 1)]
        self.linger = min((route.linger_ms for route in routes), default=0) / 1000
        """Seconds that a step may wait for more messages."""

    @property
    def topics(self) -> frozenset[str]:
        """The Kafka topics that messages are routed to."""
        return frozenset(route.topic for route in self._routes)

    def target(self, gateway: str, topic: str, client: str) -> Target:
        """Return where messages of ``client`` behind ``gateway`` on the MQTT ``topic`` go."""
        return self.targets(gateway, ((topic, client),))[0]

    def targets(self, gateway: str, sources: Iterable[tuple[str, str]]) -> list[Target]:
        """Return where messages of each (MQTT topic, client) behind ``gateway`` go.

        Nothing is remembered: a fleet may have a million topics, and each is to cost no more than one of a thousand.
        """
        found: list[Target] = []
        routes, behind = self._routes, _behind(gateway)
        for topic, client in sources:
            name = topic.encode()
            levels = topic.split("/", 2)
            device = levels[1] if len(levels) > 1 else client
            key = device.encode()
            source = behind + (key if key.isalnum() else _quoted(key))
            kafka_topic = None
            for matches, to, parts in routes:
                if not topic.startswith("$") if matches is None else matches(name):
                    kafka_topic = to
                    if parts is not None:
                        values = {"device": device, "client": client, "gateway": gateway, "topic": topic}
                        key = _filled(parts, values, topic.split("/")).encode()
                    break
            found.append(_new(Target, (kafka_topic, key, ("ce_source", source), ("mqtt_topic", name))))
        return found


@lru_cache(maxsize=4096)
def _behind(gateway: str) -> bytes:
    return b"/devices/" if is_node(gateway) else f"/gateways/{quote(gateway, safe='')}/devices/".encode()


def _quoted(name: bytes) -> bytes:
    return quote(name, safe="").encode() if name.translate(None, _UNRESERVED) else name


def _filled(parts: Sequence[str], values: Mapping[str, str], levels: Sequence[str]) -> str:
    """Return a key template with its placeholders replaced."""
    return "".join(
        (values[part] if part in values else _level(part, levels)) if number % 2 else part
        for number, part in enumerate(parts)
    )


def _level(placeholder: str, levels: Sequence[str]) -> str:
    number = int(placeholder.removeprefix("level:"))
    return levels[number - 1] if number <= len(levels) else ""


def _compile(where: str, route: Route) -> _Compiled:
    if not valid_filter(route.filter, MAX_LEVELS):
        raise ConfigError(
            f"{where}: filter {route.filter!r} is no MQTT filter: '+' and '#' stand alone in their level, '#' last"
        )
    parts = tuple(_PLACEHOLDER.split(route.key))
    for placeholder in parts[1::2]:
        if placeholder not in {"device", "client", "gateway", "topic"} and not _LEVEL.fullmatch(placeholder):
            raise ConfigError(
                f"{where}: key {route.key!r}: unknown placeholder {{{placeholder}}}; "
                "known are {device} {client} {gateway} {topic} {level:N}, N from 1"
            )
    if any("{" in literal or "}" in literal for literal in parts[::2]):
        raise ConfigError(f"{where}: key {route.key!r}: a brace without its partner")
    matches = None if route.filter == _ALL else matcher(route.filter).fullmatch
    return _Compiled(matches, route.topic, None if parts == _BY_DEVICE else parts)

"""A broker that is already there, as configured: ``[[source]]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec

from edge_agent.lanes import MAX_LEVELS
from waybill import config
from waybill.acl import covers
from waybill.errors import ConfigError
from waybill.mqtt.topics import valid_filter
from waybill.wire import GATEWAY_ID

RESULTS: Final = "cmd/+/+/res"
"""Where devices answer commands."""

MAX_SOURCES: Final = 16
MAX_FILTERS: Final = 64
"""Filters of one source: they go in one SUBSCRIBE."""


class SourceSettings(config.Server, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One broker to subscribe to, with QoS 1 and a session that it keeps.

    ``url``: ``mqtt://HOST[:1883]`` or ``mqtts://HOST[:8883]``. ``topics``: MQTT topic filters. ``name``: what stands
    for the client in records, for the log and the status; default: the host. ``client_id``: under which the broker
    keeps the session; default: ``waybill-`` and the gateway's id. ``password_file``: its first line. ``ca``: whom to
    believe (default: the system's CAs); ``certificate`` and ``key``: who this gateway is. All PEM. ``version``: of
    MQTT. ``keepalive``: seconds. ``commands``: whether devices there get commands.
    """

    url: str
    topics: tuple[str, ...]
    name: str = ""
    client_id: str = ""
    username: str = ""
    password_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    version: Literal["3.1.1", "5"] = "3.1.1"
    keepalive: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    commands: bool = True

    @property
    def filters(self) -> tuple[str, ...]:
        """What is subscribed to: ``topics``, and answers to commands unless they are among them."""
        if not self.commands or any(covers(each, RESULTS) for each in self.topics):
            return self.topics
        return (*self.topics, RESULTS)


def completed(source: SourceSettings, gateway: str) -> SourceSettings:
    """Return ``source`` with a name and a client id."""
    return msgspec.structs.replace(
        source, name=source.name or source.host, client_id=source.client_id or f"waybill-{gateway}"
    )


def check(sources: Sequence[SourceSettings], where: str) -> None:
    """Check what a type cannot say of completed sources; ``where`` names the origin in errors. Raises ConfigError."""
    if len(sources) > MAX_SOURCES:
        raise ConfigError(f"{where}: [[source]]: {len(sources)} of them; at most {MAX_SOURCES} can be read")
    names: set[str] = set()
    sessions: set[tuple[str, int, str]] = set()
    for number, source in enumerate(sources, 1):
        at = f"{where}: [[source]] {number}"
        _check_url(source, at)
        if not GATEWAY_ID.fullmatch(source.name):
            raise ConfigError(f"{at}: name: {source.name!r}: use 1 to 64 letters, digits, '.', '_', '-'")
        if source.name in names:
            raise ConfigError(f"{at}: name: {source.name!r} is another one's, too; give each a name of its own")
        session = (source.host, source.port, source.client_id)
        if session in sessions:
            raise ConfigError(
                f"{at}: client_id: {source.client_id!r} is another one's at the same broker, and they would cut each "
                "other off; give each one of its own, or put their topics together"
            )
        names.add(source.name)
        sessions.add(session)
        _check_topics(source, at)
        config.check_files(source, at)
        if (source.certificate is None) != (source.key is None):
            raise ConfigError(f"{at}: certificate and key go together: give both, or neither")
        if source.password_file is not None and not source.username:
            raise ConfigError(f"{at}: password_file needs username; MQTT has no password without one")


def _check_url(source: SourceSettings, at: str) -> None:
    mend = f"{at}: url: {source.url!r}: write mqtt://HOST:PORT, or mqtts://HOST:PORT with TLS"
    try:
        parts = urlsplit(source.url)
        wrong = parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.port == 0
    except ValueError as error:
        raise ConfigError(mend) from error
    if "@" in parts.netloc:
        raise ConfigError(f"{at}: url: a password does not belong there; use username and password_file")
    if wrong or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ConfigError(mend)
    given = [name for name in ("ca", "certificate", "key") if getattr(source, name) is not None]
    if given and not source.tls:
        raise ConfigError(f"{at}: {given[0]} is for TLS, and url begins with mqtt://; write mqtts://")


def _check_topics(source: SourceSettings, at: str) -> None:
    if not 0 < len(source.topics) <= MAX_FILTERS:
        raise ConfigError(f'{at}: topics: give 1 to {MAX_FILTERS} MQTT topic filters, such as ["#"]')
    for number, text in enumerate(source.topics):
        if not valid_filter(text, MAX_LEVELS):
            raise ConfigError(
                f"{at}: topics: {text!r} is no MQTT topic filter: '+' stands for one whole level, '#' for the rest and "
                "comes last"
            )
        if text.startswith("$"):
            raise ConfigError(f"{at}: topics: {text!r}: topics that begin with $ never go up; leave it out")
        for other in source.topics[:number]:
            if overlap(text, other):
                raise ConfigError(
                    f"{at}: topics: {other!r} and {text!r} overlap: brokers may send what both match twice; choose "
                    "filters that have nothing in common"
                )


def overlap(one: str, other: str) -> bool:
    """Say whether a topic name can match both filters."""
    mine, theirs = one.split("/"), other.split("/")
    for depth, (left, right) in enumerate(zip(mine, theirs, strict=False)):
        if "#" in (left, right):
            return True
        if left != right and "+" not in (left, right):
            return False
        if depth + 1 in (len(mine), len(theirs)):  # "a/#" matches "a" as well
            rest = mine[depth + 1 :] or theirs[depth + 1 :]
            return not rest or rest == ["#"]
    return False

"""The agent's configuration: a TOML file into one typed object with visible defaults (docs/configuration.md)."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec

from edge_agent.buffer.port import Lane
from edge_agent.buffer.settings import BufferSettings
from waybill import config
from waybill.errors import ConfigError
from waybill.mqtt.topics import valid_filter
from waybill.wire import CONTROL_LANE, GATEWAY_ID, TELEMETRY_LANE

LANES: Final = (Lane(CONTROL_LANE, 0), Lane(TELEMETRY_LANE, 10))

MAX_LEVELS: Final = 64
"""Levels of a topic filter."""

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Keepalive = Annotated[int, msgspec.Meta(ge=2, le=3600)]


class ListenerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where devices connect. ``port`` 0: any free one.

    ``certificate`` and ``key`` (PEM) switch TLS on; with ``client_ca`` devices must show a certificate of that CA.
    """

    host: str = "127.0.0.1"
    port: _Port = 1883
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


class UplinkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the cloud is.

    ``url``: ``mqtts://HOST[:8883]``, or ``mqtt://HOST[:1883]`` without TLS. ``ca``: whom to believe (default: the
    system's CAs); ``certificate`` and ``key``: who this gateway is. All PEM. ``keepalive``: a dead link is noticed
    within 1.5 times this, seconds.
    """

    url: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    keepalive: _Keepalive = 20

    @property
    def tls(self) -> bool:
        """Whether the link is encrypted."""
        return urlsplit(self.url).scheme == "mqtts"

    @property
    def host(self) -> str:
        """The cloud's host."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The cloud's port."""
        return urlsplit(self.url).port or (8883 if self.tls else 1883)


class ForwardSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes up, and in frames of which size.

    ``filters``, ``exclude``: MQTT topic filters; topics that begin with ``$`` never go. A frame is cut at
    ``frame_messages``, at ``frame_bytes`` of payload, or when its first message has waited for ``linger_ms``.
    ``window_bytes``: encoded frames kept for resends, and so at most in flight.
    """

    filters: tuple[str, ...] = ("#",)
    exclude: tuple[str, ...] = ("cmd/#",)
    frame_messages: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    frame_bytes: Annotated[int, msgspec.Meta(ge=1, le=512 << 10)] = 256 << 10
    linger_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 200
    window_bytes: _Count = 8 << 20


class EdgeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"listeners": "listener"}):
    """All of it. ``gateway``: this gateway's id. ``data``: the data directory.

    ``max_message_bytes``: the largest MQTT packet that a device may send (B4). Without ``uplink`` the agent buffers,
    and sends nothing.
    """

    gateway: str
    data: Path
    listeners: tuple[ListenerSettings, ...] = (ListenerSettings(),)
    uplink: UplinkSettings | None = None
    forward: ForwardSettings = ForwardSettings()
    buffer: BufferSettings = BufferSettings()
    max_message_bytes: Annotated[int, msgspec.Meta(ge=1024, le=512 << 10)] = 256 << 10


def load(path: Path) -> EdgeConfig:
    """Read and check the file ``path``; relative paths in it are relative to it. Raises ConfigError."""
    return check(_resolved(config.load(path, EdgeConfig), path.parent), str(path))


def first_look(listen: str, data: Path) -> EdgeConfig:
    """Return the configuration of an agent without a file: one plain listener and no uplink. Raises ConfigError."""
    host, port = config.address(listen, "--listen")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "gateway"
    return check(EdgeConfig(name, data, (ListenerSettings(host, port),)), "--listen")


def check(settings: EdgeConfig, where: str) -> EdgeConfig:
    """Check what a type cannot say; ``where`` names the origin in errors. Raises ConfigError."""
    if not GATEWAY_ID.fullmatch(settings.gateway):
        raise ConfigError(
            f"{where}: gateway: {settings.gateway!r} cannot name a gateway: use 1 to 64 letters, digits, '.', '_', '-'"
        )
    if not settings.listeners:
        raise ConfigError(f"{where}: listener: at least one [[listener]] is needed, or none for 127.0.0.1:1883")
    for number, listener in enumerate(settings.listeners, 1):
        if (listener.certificate is None) != (listener.key is None):
            raise ConfigError(f"{where}: [[listener]] {number}: certificate and key go together: give both, or neither")
        if listener.client_ca is not None and listener.certificate is None:
            raise ConfigError(f"{where}: [[listener]] {number}: client_ca needs certificate and key of the listener")
        _check_files(listener, f"{where}: [[listener]] {number}")
    for key, filters in (("filters", settings.forward.filters), ("exclude", settings.forward.exclude)):
        for text in filters:
            if not valid_filter(text, MAX_LEVELS):
                raise ConfigError(
                    f"{where}: [forward] {key}: {text!r} is no MQTT topic filter: '+' stands for one whole level, "
                    "'#' for the rest and comes last"
                )
    if settings.uplink is not None:
        _check_uplink(settings.uplink, where)
    return settings


def _check_uplink(uplink: UplinkSettings, where: str) -> None:
    mend = f"{where}: [uplink] url: {uplink.url!r}: write mqtts://HOST:PORT (or mqtt://HOST:PORT without TLS)"
    try:
        parts = urlsplit(uplink.url)
        wrong = parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.port == 0
    except ValueError as error:
        raise ConfigError(mend) from error
    if wrong or parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(mend)
    given = [name for name in ("ca", "certificate", "key") if getattr(uplink, name) is not None]
    if given and not uplink.tls:
        raise ConfigError(f"{where}: [uplink] {given[0]} is for TLS, and url begins with mqtt://; write mqtts://")
    _check_files(uplink, f"{where}: [uplink]")
    if (uplink.certificate is None) != (uplink.key is None):
        raise ConfigError(f"{where}: [uplink] certificate and key go together: give both, or neither")


def _check_files(table: ListenerSettings | UplinkSettings, where: str) -> None:
    for item in msgspec.structs.fields(table):
        path = getattr(table, item.name)
        if isinstance(path, Path) and not path.is_file():
            raise ConfigError(f"{where} {item.name}: {path}: no such file")


def _resolved(settings: EdgeConfig, base: Path) -> EdgeConfig:
    """Return ``settings`` with every path relative to ``base``."""

    def full(path: Path | None) -> Path | None:
        return None if path is None else base / path.expanduser()

    def files(one: ListenerSettings | UplinkSettings) -> dict[str, Path | None]:
        names = [item.name for item in msgspec.structs.fields(one)]
        return {name: full(getattr(one, name)) for name in names if isinstance(getattr(one, name), Path)}

    uplink = settings.uplink
    return msgspec.structs.replace(
        settings,
        data=base / settings.data.expanduser(),
        listeners=tuple(msgspec.structs.replace(one, **files(one)) for one in settings.listeners),
        uplink=None if uplink is None else msgspec.structs.replace(uplink, **files(uplink)),
    )

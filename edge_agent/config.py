"""The agent's configuration: a TOML file into one typed object with visible defaults (docs/configuration.md)."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edge_agent import lanes
from edge_agent.buffer.settings import BufferSettings
from edge_agent.forward.bodies import Body
from edge_agent.health.settings import HealthSettings
from edge_agent.lanes import MAX_LEVELS, Lane
from edge_agent.listener_config import LimitSettings, ListenerSettings, check_listener
from edge_agent.plan import plan
from edge_agent.plan.plan import PlanSettings
from edge_agent.source import config as source_config
from edge_agent.source.config import SourceSettings
from edge_agent.uplink.config import UplinkSettings, check_uplinks
from waybill import acl, config
from waybill.acl import AclRule
from waybill.config import LogSettings, MetricsSettings
from waybill.errors import ConfigError
from waybill.mqtt.settings import Settings
from waybill.mqtt.topics import valid_filter
from waybill.wire import GATEWAY_ID

_Count = Annotated[int, msgspec.Meta(ge=1)]


class ForwardSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes up, and in frames of which size.

    ``filters``, ``exclude``: MQTT topic filters; topics that begin with ``$`` never go. A frame is cut at
    ``frame_messages``, at ``frame_bytes`` of payload, at what the link takes in half a second, or when its first
    message has waited for ``linger_ms``.
    ``window_bytes``: encoded frames kept for resends, and so at most in flight.
    ``body``, ``dictionaries``: see :mod:`edge_agent.forward.bodies`, :mod:`edge_agent.forward.dictionaries`.
    """

    filters: tuple[str, ...] = ("#",)
    exclude: tuple[str, ...] = ("cmd/#",)
    frame_messages: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 4000
    frame_bytes: Annotated[int, msgspec.Meta(ge=1, le=512 << 10)] = 512 << 10
    linger_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 200
    window_bytes: _Count = 8 << 20
    body: Body = "auto"
    dictionaries: bool = True


class AmqttSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What amqtt is told (docs/amqtt.md), in its own words.

    ``plugins``: MODULE.CLASS of each plug-in → its options. ``session_expiry_interval``: seconds that a session is kept
    without a connection; None: for ever.
    """

    plugins: dict[str, dict[str, Any]] = {}
    session_expiry_interval: _Count | None = None


class EdgeConfig(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename={"listeners": "listener", "uplinks": "uplink", "lanes": "lane", "sources": "source"},
):
    """All of it. ``gateway``: this gateway's id. ``data``: the data directory.

    Without ``uplinks`` the agent buffers, and sends nothing. Without ``acl`` who may connect may do everything. Without
    ``plan`` a metered uplink may carry as much as it can.
    ``engine``: whose broker devices connect to; ``amqtt`` is for that of the same name.
    ``event_loop``: ``uvloop`` needs the extra of that name; what it brings is in docs/bench.md.
    """

    gateway: str
    data: Path
    listeners: tuple[ListenerSettings, ...] = (ListenerSettings(),)
    uplinks: tuple[UplinkSettings, ...] = ()
    forward: ForwardSettings = ForwardSettings()
    lanes: tuple[Lane, ...] = ()
    buffer: BufferSettings = BufferSettings()
    limits: LimitSettings = LimitSettings()
    acl: tuple[AclRule, ...] | None = None
    engine: Literal["waybill", "amqtt"] = "waybill"
    amqtt: AmqttSettings = AmqttSettings()
    plan: PlanSettings | None = None
    event_loop: Literal["asyncio", "uvloop"] = "asyncio"
    sources: tuple[SourceSettings, ...] = ()
    presence: bool = False
    logging: LogSettings = LogSettings()
    metrics: MetricsSettings | None = None
    health: HealthSettings = HealthSettings()


def server_settings(settings: EdgeConfig, close_timeout: float) -> Settings:
    """Return what the MQTT server is told. ``close_timeout``: seconds, see there."""
    limits = msgspec.structs.asdict(settings.limits)
    buffer = settings.buffer
    gather = buffer.gather_ms / 1000
    return Settings(**limits, dup_window=buffer.dup_window, gather=gather, close_timeout=close_timeout)


def memory_ceiling(settings: EdgeConfig) -> int:
    """Return the most bytes that devices can make the MQTT server take, beside the buffer (``Settings.ceiling``)."""
    common = server_settings(settings, 0)
    own = [(listener.limits(settings.limits), listener.certificate is not None) for listener in settings.listeners]
    tls = min(common.max_connections, sum(limits.max_connections for limits, encrypted in own if encrypted))
    return replace(common, max_packet=max((limits.max_packet for limits, _ in own), default=common.max_packet)).ceiling(
        tls
    )


def load(path: Path) -> EdgeConfig:
    """Read and check the file ``path``; relative paths in it are relative to it. Raises ConfigError."""
    return check(_resolved(config.load(path, EdgeConfig), path.parent), str(path))


def first_look(listen: str, data: Path) -> EdgeConfig:
    """Return the configuration of an agent without a file: one plain listener and no uplink. Raises ConfigError."""
    host, port = config.address(listen, "--listen")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "gateway"
    listener = ListenerSettings(host, port)
    if not listener.inside:
        raise ConfigError(
            f"--listen {listen!r}: anybody could connect; use 127.0.0.1, or write a file that says who may (--config)"
        )
    return check(EdgeConfig(name, data, (listener,)), "--listen")


def check(settings: EdgeConfig, where: str) -> EdgeConfig:
    """Check what a type cannot say; ``where`` names the origin in errors. Raises ConfigError."""
    if not GATEWAY_ID.fullmatch(settings.gateway):
        raise ConfigError(
            f"{where}: gateway: {settings.gateway!r} cannot name a gateway: use 1 to 64 letters, digits, '.', '_', '-'"
        )
    if not settings.listeners and not settings.sources:
        raise ConfigError(
            f"{where}: listener: without a [[source]] there has to be one; leave it out for 127.0.0.1:1883"
        )
    for number, listener in enumerate(settings.listeners, 1):
        check_listener(listener, f"{where}: [[listener]] {number}")
    names = [listener.name for listener in settings.listeners if listener.name]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: [[listener]] name: two have the same; give each one of its own")
    _check_acl(settings.acl, names, where)
    for key, filters in (("filters", settings.forward.filters), ("exclude", settings.forward.exclude)):
        for text in filters:
            if not valid_filter(text, MAX_LEVELS):
                raise ConfigError(
                    f"{where}: [forward] {key}: {text!r} is no MQTT topic filter: '+' stands for one whole level, "
                    "'#' for the rest and comes last"
                )
    lanes.check(settings.lanes, where)
    check_uplinks(settings.uplinks, where)
    _check_only_on(settings, where)
    sources = tuple(source_config.completed(source, settings.gateway) for source in settings.sources)
    settings = msgspec.structs.replace(settings, sources=sources)
    source_config.check(sources, where)
    if settings.plan is not None:
        metered = any(uplink.metered for uplink in settings.uplinks)
        plan.check(settings.plan, [lane.name for lane in lanes.complete(settings.lanes)], where, metered=metered)
    _check_engine(settings, where)
    return settings


def _check_engine(settings: EdgeConfig, where: str) -> None:
    if settings.engine != "amqtt":
        if settings.amqtt != AmqttSettings():
            raise ConfigError(f'{where}: [amqtt] is for another engine: write engine = "amqtt", or leave the table out')
        return
    try:
        from edge_agent.amqtt_engine import plugins
    except ModuleNotFoundError as error:
        missing = (error.name or "amqtt").partition(".")[0]
        raise ConfigError(
            f'{where}: engine: "amqtt" needs {missing}, which is not installed: pip install "waybill[amqtt]"'
        ) from error
    plugins.check(settings.amqtt.plugins, where)
    for number, listener in enumerate(settings.listeners, 1):
        if listener.kind != "mqtt":
            raise ConfigError(f'{where}: [[listener]] {number} kind: engine = "amqtt" has "mqtt" alone; leave it out')
        for key in ("publish_rate", "max_connections_per_address"):
            if getattr(listener.limits(settings.limits), key):
                raise ConfigError(f'{where}: {key}: engine = "amqtt" has no such limit; leave it out')


def _check_acl(rules: tuple[AclRule, ...] | None, listeners: list[str], where: str) -> None:
    if rules is not None and not rules:
        raise ConfigError(f"{where}: acl: write [[acl]], once for each rule; without any, everything is allowed")
    for number, rule in enumerate(rules or (), 1):
        wrong = acl.fault(rule, MAX_LEVELS)
        if not wrong and rule.listener is not None and rule.listener not in listeners:
            known = ", ".join(map(repr, listeners)) or "none has one"
            wrong = f"listener: no [[listener]] has name = {rule.listener!r}; names are: {known}"
        if wrong:
            raise ConfigError(f"{where}: [[acl]] {number} {wrong}")


def _check_only_on(settings: EdgeConfig, where: str) -> None:
    names = [uplink.name for uplink in settings.uplinks if uplink.name]
    for number, lane in enumerate(settings.lanes, 1):
        for name in lane.only_on:
            if name not in names:
                known = ", ".join(map(repr, names)) or "none has one"
                raise ConfigError(
                    f"{where}: [[lane]] {number} only_on: no [[uplink]] has name = {name!r}; names are: {known}"
                )


def _resolved(settings: EdgeConfig, base: Path) -> EdgeConfig:
    """Return ``settings`` with every path relative to ``base``."""
    return msgspec.structs.replace(
        settings,
        data=base / settings.data.expanduser(),
        listeners=tuple(config.relative_to(one, base) for one in settings.listeners),
        uplinks=tuple(config.relative_to(one, base) for one in settings.uplinks),
        sources=tuple(config.relative_to(one, base) for one in settings.sources),
    )

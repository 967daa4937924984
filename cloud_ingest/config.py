"""The cloud ingest's configuration: TOML into one typed, frozen object. Every default stands here.

::

    deployment = "waybill"          # names the consumer group and the transactional ids; one for each set of topics
    data = "/var/lib/waybill-cloud" # the embedded log and the socket for tools

    [listener]                      # where gateways connect
    [websocket]                     # where else: those that nothing but port 443 is open to
    [devices]                       # where devices without a gateway connect; with [[acl]]
    [log]                           # kind = "embedded" or "kafka"
    [topics]                        # names and partitions of the internal topics
    [logging]                       # how this process logs
    [metrics]                       # where Prometheus and probes ask
    [api]                           # where the state of the fleet can be asked for, over HTTP
    [[route]]                       # MQTT filter -> Kafka topic and key; the first that matches wins

Relative paths are relative to the directory of the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from cloud_ingest.device_config import Devices, check_devices
from cloud_ingest.external_config import Broker, check_broker
from cloud_ingest.fleet.api_config import Api, check_api
from waybill.acl import AclRule
from waybill.config import LogSettings, MetricsSettings, address, convert, is_loopback, load
from waybill.errors import ConfigError
from waybill.mqtt import proxy

MIB: Final = 1 << 20


class Listener(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where gateways connect.

    ``address``: HOST:PORT. ``certificate``, ``key``: this node's, PEM. ``ca``: PEM, whose signature a gateway's
    certificate must bear. Without the three it is plain TCP, on loopback only, and the client id is the gateway.

    ``max_frame``: bytes; a larger frame is refused. ``memory``: bytes of frames of all gateways that are not journaled
    yet; beyond it nothing more is read. ``credit``: bytes that one gateway may have in flight when there is room.
    ``connections``: how many at once; more are turned away. ``connect_timeout``: seconds until CONNECT.
    ``mode`` ``external``: not here but at a broker that others run, ``broker``; ``plain``: filters of topics there
    whose messages are of devices without a gateway. Then ``max_frame``, ``memory`` and ``credit`` count as well.
    ``accept_rate``: TLS handshakes begun a second, so that a fleet that returns at once leaves time to those that are
    there; 0: any number. ``drain``: seconds within which gateways are let go at the end, one by one.
    ``proxies``: addresses and networks of load balancers, whose connections begin with a header of the PROXY protocol.
    """

    address: str = "0.0.0.0:8883"
    certificate: str = ""
    key: str = ""
    ca: str = ""
    max_frame: int = 3 * MIB
    memory: int = 256 * MIB
    credit: int = 4 * MIB
    connections: int = 10_000
    connect_timeout: float = 10.0
    accept_rate: float = 500.0
    drain: float = 30.0
    proxies: tuple[str, ...] = ()
    mode: Literal["own", "external"] = "own"
    plain: tuple[str, ...] = ()
    broker: Broker | None = None

    @property
    def tls(self) -> bool:
        """Whether gateways show certificates."""
        return bool(self.certificate)


class WebSocket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where gateways connect over WebSockets, too. ``address``: HOST:PORT.

    ``certificate``, ``key``: PEM; without them they are the listener's. All else is as there: who a gateway is, and the
    limits, which hold for both together.
    """

    address: str
    certificate: str = ""
    key: str = ""


class Topics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The internal topics. ``prefix`` stands before their names, so that several deployments can share a cluster.

    ``partitions``: of frames, ledger and dictionaries (they must agree, R4), and of topics that are created.
    ``replication_factor``: of topics that are created; -1 for three, or as many as there are brokers.
    """

    prefix: str = ""
    partitions: int = 4
    replication_factor: int = -1

    @property
    def frames(self) -> str:
        """Frames as gateways sent them: the journal."""
        return f"{self.prefix}waybill.frames"

    @property
    def ledger(self) -> str:
        """What of each gateway, epoch and lane was routed; compacted."""
        return f"{self.prefix}waybill.ledger"

    @property
    def dictionaries(self) -> str:
        """What gateways compress small frames with; compacted (R10)."""
        return f"{self.prefix}waybill.dictionaries"

    @property
    def commands(self) -> str:
        """Commands, as producers write them."""
        return f"{self.prefix}waybill.commands"

    @property
    def command_status(self) -> str:
        """The states of commands."""
        return f"{self.prefix}waybill.command-status"

    @property
    def presence(self) -> str:
        """Who is there; compacted (C3)."""
        return f"{self.prefix}waybill.presence"

    @property
    def health(self) -> str:
        """What gateways and nodes say of themselves; compacted."""
        return f"{self.prefix}waybill.health"

    @property
    def dead_letters(self) -> str:
        """Frames that do not decode, and messages without a route."""
        return f"{self.prefix}waybill.dlq"

    @property
    def internal(self) -> frozenset[str]:
        """All of these."""
        return frozenset(
            (
                self.frames,
                self.ledger,
                self.dictionaries,
                self.commands,
                self.command_status,
                self.presence,
                self.health,
                self.dead_letters,
            )
        )


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Messages whose MQTT topic matches ``filter`` become records of ``topic`` under ``key``.

    Placeholders of ``key``: {device} {client} {gateway} {topic} {level:N}, N from 1. ``name``: by which ``reroute``
    knows it; without one its topic's.

    How the records reach Kafka, alike in all routes of a topic: ``compression``: empty for that of ``[log]``.
    ``batch_bytes``: of a batch before compression, at which it is closed. ``send`` ``sync``: a batch goes when Kafka
    has acknowledged the one before; else all of a step go at once. ``linger_ms``: how long messages may wait for others
    to share a step with; a step is one transaction for all routes, so the smallest of all routes counts.
    """

    topic: str
    filter: str = "#"
    key: str = "{device}"
    compression: Literal["", "none", "gzip", "snappy", "lz4", "zstd"] = ""
    batch_bytes: int = 512 << 10
    send: Literal["async", "sync"] = "async"
    linger_ms: int = 0
    name: str = ""

    @property
    def sending(self) -> tuple[object, ...]:
        """What must be alike in all routes of a topic."""
        return self.compression, self.batch_bytes, self.send, self.linger_ms


DEFAULT_ROUTES: Final = (Route(topic="fleet.telemetry"),)


class CloudConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. ``websocket``: None where there is no such listener.

    ``devices``: None where none may connect without a gateway; ``acl``: what they may do.

    ``api``: None where the state of the fleet is not served over HTTP.

    ``log``: ``kind`` and the keys of that kind; its keys are checked by the log that reads them.
    """

    data: str
    deployment: str = "waybill"
    listener: Listener = Listener()
    websocket: WebSocket | None = None
    devices: Devices | None = None
    acl: tuple[AclRule, ...] = ()
    log: dict[str, Any] = {}
    topics: Topics = Topics()
    route: tuple[Route, ...] = DEFAULT_ROUTES
    logging: LogSettings = LogSettings()
    metrics: MetricsSettings | None = None
    api: Api | None = None


class _EmbeddedTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str = ""
    max_bytes: int = 4 << 30
    retention_ms: int = 0
    retention_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Embedded:
    """``[log] kind = "embedded"``. ``path``: the SQLite file. ``max_bytes``: its disk cap; at it nothing is acked.

    ``retention_ms``, ``retention_bytes``: beyond this age, or size of the file, the oldest records of data topics are
    deleted; 0: never.
    """

    path: Path
    max_bytes: int
    retention_ms: int = 0
    retention_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Kafka:
    """``[log] kind = "kafka"``. ``settings``: the other keys of ``[log]``, Kafka's own names.

    ``base``: the directory that paths in them are relative to. ``allow_unsafe``: its topics may have settings that make
    the promise untrue.
    """

    settings: dict[str, Any]
    base: Path
    allow_unsafe: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked configuration with its paths resolved. ``where``: its origin, for errors."""

    config: CloudConfig
    data: Path
    log: Embedded | Kafka
    where: str

    @property
    def socket(self) -> Path:
        """The Unix socket for tools on this machine."""
        return self.data / "cloud.sock"


_DEPLOYMENT = re.compile(r"[A-Za-z0-9._-]{1,100}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_ROUTE_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,245}")  # Kafka's limit is 249, and ".dlq" comes behind it


_OPEN: Final = (
    "without certificates: plain TCP is for loopback only, because there a client may call itself any gateway; add "
    "certificate, key and ca to [listener] (waybill cloud ca init makes them), or listen on 127.0.0.1"
)


def read(path: Path, *, allow_unsafe: bool = False) -> Settings:
    """Read and check a configuration file. Raises ConfigError, which names file, key and mend.

    ``allow_unsafe``: the topics in Kafka may have settings that make the promise untrue.
    """
    settings = check(load(path, CloudConfig), path.resolve().parent, str(path))
    if not allow_unsafe:
        return settings
    if not isinstance(settings.log, Kafka):
        raise ConfigError(f"--allow-unsafe is for topics in Kafka; {path} has the embedded log")
    return replace(settings, log=replace(settings.log, allow_unsafe=True))


def first_look(listen: str, data: Path) -> Settings:
    """Return the configuration of ``waybill cloud run --listen HOST:PORT --data DIR``.

    Embedded log, plain TCP on loopback. Raises ConfigError.
    """
    config = CloudConfig(data=str(data), listener=Listener(address=listen))
    return check(config, Path.cwd(), "--listen")


def bootstrap(servers: str) -> Settings:
    """Return what reading a Kafka without security needs: the default topics, nothing of the listener."""
    return Settings(CloudConfig(data=""), Path(), Kafka({"bootstrap.servers": servers}, Path()), "--bootstrap")


def check(config: CloudConfig, base: Path, where: str) -> Settings:
    """Check what types cannot say, and resolve paths against ``base``. Raises ConfigError."""
    if not _DEPLOYMENT.fullmatch(config.deployment):
        raise ConfigError(f"{where}: deployment {config.deployment!r}: use 1 to 100 letters, digits, '.', '_', '-'")
    _check_listener(config.listener, where)
    if config.websocket is not None:
        _check_websocket(config.websocket, config.listener, where)
    check_topics(config, where)
    if config.metrics is not None:
        address(config.metrics.listen, f"{where}: [metrics] listen")
    data = base / config.data
    listener, websocket = config.listener, config.websocket
    if websocket is not None and websocket.certificate:
        websocket = msgspec.structs.replace(
            websocket, certificate=str(base / websocket.certificate), key=str(base / websocket.key)
        )
    if listener.tls:
        listener = msgspec.structs.replace(
            listener,
            certificate=str(base / listener.certificate),
            key=str(base / listener.key),
            ca=str(base / listener.ca),
        )
    if listener.mode == "external":
        broker = check_broker(listener.broker, listener.plain, base, where)
        listener = msgspec.structs.replace(listener, broker=broker)
        if websocket is not None:
            raise ConfigError(f'{where}: [websocket] means nothing with [listener] mode = "external"; leave it out')
    elif listener.broker is not None or listener.plain:
        raise ConfigError(f'{where}: [listener] broker and plain are for mode = "external"; say so, or leave them out')
    devices = check_devices(config.devices, config.acl, base, where)
    api = check_api(config.api, base, where) if config.api is not None else None
    config = msgspec.structs.replace(config, listener=listener, websocket=websocket, devices=devices, api=api)
    return Settings(config, data, _log(config.log, base, data, where), where)


def _check_listener(listener: Listener, where: str) -> None:
    host, _ = address(listener.address, f"{where}: [listener] address")
    given = [name for name in ("certificate", "key", "ca") if getattr(listener, name)]
    if given and len(given) < 3:  # noqa: PLR2004 - the three of them
        missing = ", ".join(sorted({"certificate", "key", "ca"} - set(given)))
        raise ConfigError(f"{where}: [listener] {missing} is missing: TLS needs certificate, key and ca together")
    if not given and not is_loopback(host) and listener.mode == "own":
        raise ConfigError(f"{where}: [listener] address {listener.address!r} {_OPEN}")
    for name in ("max_frame", "memory", "credit", "connections"):
        if getattr(listener, name) < 1:
            raise ConfigError(f"{where}: [listener] {name} must be at least 1")
    if listener.memory < 2 * listener.max_frame:
        raise ConfigError(f"{where}: [listener] memory must hold two frames: at least {2 * listener.max_frame} bytes")
    if listener.connect_timeout <= 0:
        raise ConfigError(f"{where}: [listener] connect_timeout must be more than 0 seconds")
    for name in ("accept_rate", "drain"):
        if getattr(listener, name) < 0:
            raise ConfigError(f"{where}: [listener] {name} must be 0 or more")
    proxy.networks(listener.proxies, f"{where}: [listener] proxies")


def _check_websocket(websocket: WebSocket, listener: Listener, where: str) -> None:
    host, _ = address(websocket.address, f"{where}: [websocket] address")
    if bool(websocket.certificate) != bool(websocket.key):
        raise ConfigError(f"{where}: [websocket] certificate and key go together: give both, or neither")
    if websocket.certificate and not listener.tls:
        raise ConfigError(
            f"{where}: [listener] certificate, key and ca are missing: [websocket] has TLS with them alone"
        )
    if not listener.tls and not is_loopback(host):
        raise ConfigError(f"{where}: [websocket] address {websocket.address!r} {_OPEN}")


def check_topics(config: CloudConfig, where: str) -> None:
    """Check topics and routes. Raises ConfigError."""
    if config.topics.prefix and not _TOPIC.fullmatch(config.topics.prefix):
        raise ConfigError(f"{where}: [topics] prefix {config.topics.prefix!r}: use letters, digits, '.', '_', '-'")
    if not 1 <= config.topics.partitions <= 1000:  # noqa: PLR2004 - a producer each
        raise ConfigError(f"{where}: [topics] partitions {config.topics.partitions}: use 1 to 1000")
    if config.topics.replication_factor != -1 and config.topics.replication_factor < 1:
        raise ConfigError(f"{where}: [topics] replication_factor: use 1 or more, or -1 for three")
    if not config.route:
        raise ConfigError(f"{where}: no [[route]]: leave the key out for the default, or add one")
    for number, route in enumerate(config.route, 1):
        if not _ROUTE_TOPIC.fullmatch(route.topic) or route.topic in {".", ".."}:
            raise ConfigError(
                f"{where}: [[route]] {number}: topic {route.topic!r}: use 1 to 245 letters, digits, '.', '_', '-'"
            )
        if route.topic in config.topics.internal:
            raise ConfigError(
                f"{where}: [[route]] {number}: topic {route.topic!r} is an internal topic, which messages of devices "
                "would spoil; choose another name"
            )
        _check_sending(route, config.route, f"{where}: [[route]] {number}")


def _check_sending(route: Route, routes: Sequence[Route], where: str) -> None:
    if not 1024 <= route.batch_bytes <= 16 * MIB:  # noqa: PLR2004 - a record with its headers; a request
        raise ConfigError(f"{where}: batch_bytes {route.batch_bytes}: use 1024 to {16 * MIB}")
    if not 0 <= route.linger_ms <= 60_000:  # noqa: PLR2004 - a minute
        raise ConfigError(f"{where}: linger_ms {route.linger_ms}: use 0 to 60000")
    other = next(other for other in routes if other.topic == route.topic)
    if other.sending != route.sending:
        raise ConfigError(
            f"{where}: topic {route.topic!r} has another route: give compression, batch_bytes, send and linger_ms "
            "alike in both"
        )


def _log(table: dict[str, Any], base: Path, data: Path, where: str) -> Embedded | Kafka:
    settings = dict(table)
    kind = settings.pop("kind", "embedded")
    if kind == "kafka":
        return Kafka(settings, base)
    if kind != "embedded":
        raise ConfigError(f'{where}: [log] kind {kind!r}: use "embedded" or "kafka"')
    embedded = convert(settings, _EmbeddedTable, f"{where}: [log]")
    if embedded.max_bytes < 16 * MIB:
        raise ConfigError(f"{where}: [log] max_bytes {embedded.max_bytes}: use at least {16 * MIB}")
    for name in ("retention_ms", "retention_bytes"):
        if getattr(embedded, name) < 0:
            raise ConfigError(f"{where}: [log] {name} must be 0 (keep) or more")
    if embedded.retention_bytes > embedded.max_bytes:
        raise ConfigError(
            f"{where}: [log] retention_bytes {embedded.retention_bytes} is above max_bytes {embedded.max_bytes}, where "
            "nothing is written any more: use less"
        )
    path = base / embedded.path if embedded.path else data / "log.db"
    return Embedded(path, embedded.max_bytes, embedded.retention_ms, embedded.retention_bytes)

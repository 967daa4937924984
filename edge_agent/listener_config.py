"""Where devices connect, and the limits that hold there: ``[[listener]]`` and ``[limits]`` of the configuration."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from waybill import config
from waybill.errors import ConfigError
from waybill.mqtt.codec import NEVER
from waybill.mqtt.limits import Limits
from waybill.mqtt.settings import Settings
from waybill.wire import GATEWAY_ID

SOCKET_PATH: Final = 107
"""Bytes of a Unix socket's path: what the kernel takes."""

_DEFAULT: Final = Settings()

_Natural = Annotated[int, msgspec.Meta(ge=0)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Packet = Annotated[int, msgspec.Meta(ge=1024, le=512 << 10)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=3600)]
_U16 = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
_Some16 = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
_Rate = Annotated[float, msgspec.Meta(ge=0)]


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The limits of the MQTT server, see :class:`waybill.mqtt.settings.Settings` and docs/security.md.

    Those that a listener has too hold for listeners that do not set their own.
    """

    max_packet: _Packet = 256 << 10
    max_connections: _Count = _DEFAULT.max_connections
    max_connections_per_address: _Natural = _DEFAULT.max_connections_per_address
    connect_timeout: _Seconds = _DEFAULT.connect_timeout
    inflight: _Some16 = _DEFAULT.inflight
    publish_rate: _Rate = _DEFAULT.publish_rate
    max_keepalive: _U16 = _DEFAULT.max_keepalive
    stall_timeout: _Seconds = _DEFAULT.stall_timeout
    full_timeout: _Seconds = _DEFAULT.full_timeout
    receive_maximum: _Some16 = _DEFAULT.receive_maximum
    topic_aliases: _U16 = _DEFAULT.topic_aliases
    max_session_expiry: Annotated[int, msgspec.Meta(ge=0, le=NEVER)] = _DEFAULT.max_session_expiry
    max_sessions: _Count = _DEFAULT.max_sessions
    max_subscriptions: _Count = _DEFAULT.max_subscriptions
    subscription_bytes: _Count = _DEFAULT.subscription_bytes
    max_topic: _Some16 = _DEFAULT.max_topic
    queue_messages: _Count = _DEFAULT.queue_messages
    queue_bytes: _Count = _DEFAULT.queue_bytes
    queue_bytes_all: _Count = _DEFAULT.queue_bytes_all
    output_bytes: _Count = _DEFAULT.output_bytes
    buffer_bytes_all: _Count = _DEFAULT.buffer_bytes_all
    uncommitted_bytes: _Count = _DEFAULT.uncommitted_bytes
    uncommitted_bytes_all: _Count = _DEFAULT.uncommitted_bytes_all
    retained_messages: _Natural = _DEFAULT.retained_messages
    retained_bytes: _Natural = _DEFAULT.retained_bytes
    will_bytes: _Natural = _DEFAULT.will_bytes
    max_held_all: _Count = _DEFAULT.max_held_all
    route_bytes: _Count = _DEFAULT.route_bytes
    memory_clients: _Natural = _DEFAULT.memory_clients
    memory_entries: _Natural = _DEFAULT.memory_entries
    memory_entries_all: _Natural = _DEFAULT.memory_entries_all


class ListenerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where devices connect. ``port`` 0: any free one; ``unix`` has a ``path`` instead of ``host`` and ``port``.

    ``certificate`` and ``key`` (PEM) switch TLS on; with ``client_ca`` devices must show a certificate of that CA, or
    may, where ``client_certificates`` is ``optional``. ``passwords``: a password file. With ``required`` certificates
    and passwords both are wanted, with ``optional`` ones either. ``anonymous``: whether one may connect without;
    None: where nothing else is asked for, on loopback (not over WebSockets) and Unix sockets. ``client_ids`` ``user``:
    a client id is the user's name, or begins with it and a colon. ``name``: for the ACL, the log and the status. The
    rest: as in ``[limits]``, for this listener; None: what is there.
    """

    host: str = "127.0.0.1"
    port: _Port = 1883
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    client_certificates: Literal["required", "optional"] | None = None
    kind: Literal["mqtt", "websocket", "unix"] = "mqtt"
    path: Path | None = None
    name: str = ""
    passwords: Path | None = None
    anonymous: bool | None = None
    client_ids: Literal["any", "user"] = "any"
    max_packet: _Packet | None = None
    max_connections: _Count | None = None
    max_connections_per_address: _Natural | None = None
    connect_timeout: _Seconds | None = None
    inflight: _Some16 | None = None
    publish_rate: _Rate | None = None
    max_keepalive: _U16 | None = None

    @property
    def inside(self) -> bool:
        """Whether it can be reached from this machine alone."""
        if self.kind == "unix" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def certificates(self) -> Literal["", "optional", "required"]:
        """Whether devices show certificates."""
        return (self.client_certificates or "required") if self.client_ca is not None else ""

    @property
    def lets_anybody(self) -> bool:
        """Whether one may connect without a password or certificate.

        Not by default over WebSockets: any page in a browser on this machine could.
        """
        if self.anonymous is None:
            return self.inside and self.kind != "websocket" and self.passwords is None and self.client_ca is None
        return self.anonymous

    def limits(self, common: LimitSettings) -> Limits:
        """Return this listener's limits; what it does not set is ``common``."""
        names = Limits.__dataclass_fields__
        return Limits(
            **{name: getattr(common, name) if getattr(self, name) is None else getattr(self, name) for name in names}
        )


_UNSET: Final = ListenerSettings()


def check_listener(listener: ListenerSettings, where: str) -> None:
    """Check what a type cannot say; ``where`` names the table in errors. Raises ConfigError."""
    if (listener.certificate is None) != (listener.key is None):
        raise ConfigError(f"{where}: certificate and key go together: give both, or neither")
    if listener.client_ca is not None and listener.certificate is None:
        raise ConfigError(f"{where}: client_ca needs certificate and key of the listener")
    if listener.name and not GATEWAY_ID.fullmatch(listener.name):
        raise ConfigError(f"{where}: name: {listener.name!r}: use 1 to 64 letters, digits, '.', '_', '-'")
    if listener.kind == "unix":
        _check_unix(listener, where)
    elif listener.path is not None:
        raise ConfigError(f'{where}: path is for kind = "unix"; say so, or leave it out')
    config.check_files(listener, where, but=("path", "passwords"))
    _check_who(listener, where)


def _check_unix(listener: ListenerSettings, where: str) -> None:
    if listener.path is None:
        raise ConfigError(f'{where}: kind = "unix" needs the path of its socket; add path = "FILE"')
    if len(os.fsencode(listener.path)) > SOCKET_PATH:
        raise ConfigError(f"{where}: path: {listener.path} is longer than {SOCKET_PATH} bytes; choose a shorter one")
    for key in ("host", "port", "certificate", "max_connections_per_address"):
        if getattr(listener, key) != getattr(_UNSET, key):
            raise ConfigError(f"{where}: {key} means nothing on a Unix socket; leave it out")


def _check_who(listener: ListenerSettings, where: str) -> None:
    """Nobody is let in, or kept out, by a key that was forgotten."""
    if listener.client_ca is None and listener.client_certificates is not None:
        raise ConfigError(f"{where}: client_certificates needs client_ca, the CA that signed them")
    if listener.passwords is None and listener.client_ca is None and not listener.lets_anybody:
        mend = "give it passwords = FILE (waybill edge passwd FILE USER makes one) or client_ca = FILE"
        if listener.anonymous is None:
            who = "any page in a browser on this machine" if listener.inside else f"anybody who reaches {listener.host}"
            raise ConfigError(f"{where}: {who} could connect; {mend}, or say anonymous = true")
        raise ConfigError(f"{where}: nobody could connect without anonymous; {mend}")
    if listener.lets_anybody and listener.certificates == "required":
        raise ConfigError(f"{where}: anonymous means nothing where a certificate is required; leave one of them out")
    if listener.certificates == "optional" and listener.passwords is None and not listener.lets_anybody:
        raise ConfigError(
            f'{where}: nobody could connect without a certificate: write client_certificates = "required", or give it '
            "passwords = FILE or anonymous = true"
        )
    if listener.client_ids == "user" and listener.lets_anybody:
        raise ConfigError(f'{where}: client_ids = "user" needs users: add passwords = FILE or client_ca = FILE')

"""Where devices without a gateway connect: ``[devices]`` of the cloud's configuration, and ``[[acl]]`` beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from waybill import acl
from waybill.acl import AclRule
from waybill.config import address, is_loopback, relative_to
from waybill.errors import ConfigError
from waybill.mqtt import proxy

MAX_LEVELS: Final = 64

_Count = Annotated[int, msgspec.Meta(ge=1)]


class Devices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Plain MQTT clients. ``address``: HOST:PORT. ``certificate``, ``key``: PEM; without them on loopback only.

    ``client_ca``: PEM; devices must show a certificate of that CA, or may (``client_certificates``). ``passwords``: a
    password file; with ``required`` certificates both are wanted, with ``optional`` ones either. ``client_ids``
    ``user``: a client id is the user's name, or begins with it and a colon.

    ``max_packet``: bytes of an MQTT packet at most. ``memory``: bytes of messages of all devices that are not journaled
    yet; beyond it nothing is read. ``publish_rate``: messages a second of one device, 0 for any. ``connections``,
    ``connections_per_address`` (0: any number): more are turned away. ``connect_timeout``: seconds until CONNECT.
    ``proxies``: as of gateways.
    """

    address: str = "0.0.0.0:8884"
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    client_certificates: Literal["required", "optional"] = "required"
    passwords: Path | None = None
    client_ids: Literal["any", "user"] = "user"
    max_packet: Annotated[int, msgspec.Meta(ge=1024, le=1 << 20)] = 256 << 10
    memory: _Count = 64 << 20
    publish_rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    connections: _Count = 10_000
    connections_per_address: Annotated[int, msgspec.Meta(ge=0)] = 0
    connect_timeout: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    proxies: tuple[str, ...] = ()

    @property
    def certificates(self) -> Literal["", "optional", "required"]:
        """Whether devices show certificates."""
        return self.client_certificates if self.client_ca is not None else ""


def check_devices(devices: Devices | None, rules: tuple[AclRule, ...], base: Path, where: str) -> Devices | None:
    """Check the two tables; returns the first with its paths resolved against ``base``. Raises ConfigError."""
    if devices is None:
        if rules:
            raise ConfigError(f"{where}: [[acl]] is for devices without a gateway; add [devices], or leave it out")
        return None
    _check_listener(devices, f"{where}: [devices]")
    proxy.networks(devices.proxies, f"{where}: [devices] proxies")
    if not rules:
        raise ConfigError(
            f"{where}: [devices]: no [[acl]]: say what devices may publish and subscribe to, for example "
            'user = "*", publish = ["vehicles/%u/#", "cmd/%u/+/res"], subscribe = ["cmd/%u/+/req"]'
        )
    for number, rule in enumerate(rules, 1):
        if wrong := acl.fault(rule, MAX_LEVELS):
            raise ConfigError(f"{where}: [[acl]] {number}: {wrong}")
        if rule.listener is not None:
            raise ConfigError(f"{where}: [[acl]] {number}: listener: there is one for devices; leave it out")
    return relative_to(devices, base)


def _check_listener(devices: Devices, here: str) -> None:
    host, _ = address(devices.address, f"{here} address")
    if (devices.certificate is None) != (devices.key is None):
        raise ConfigError(f"{here}: certificate and key go together: give both, or neither")
    if devices.client_ca is not None and devices.certificate is None:
        raise ConfigError(f"{here}: client_ca needs certificate and key of the listener")
    if devices.certificate is None and not is_loopback(host):
        raise ConfigError(
            f"{here} address {devices.address!r} without certificate and key: passwords would cross the network as "
            "they are; add both, or listen on 127.0.0.1"
        )
    if devices.passwords is None and devices.client_ca is None:
        raise ConfigError(
            f"{here}: nobody could connect; give it passwords = FILE (waybill edge passwd FILE USER makes one) or "
            "client_ca = FILE"
        )
    if devices.client_certificates == "optional" and devices.passwords is None:
        raise ConfigError(
            f'{here}: client_certificates = "optional" needs passwords = FILE, or nobody else can connect'
        )
    if devices.memory < 2 * devices.max_packet:
        raise ConfigError(f"{here}: memory must hold two packets: at least {2 * devices.max_packet} bytes")

"""The ways to the cloud, ``[[uplink]]`` of the configuration, in order of preference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from waybill import config
from waybill.errors import ConfigError
from waybill.wire import GATEWAY_ID

PROXIES: Final = ("http", "socks5")

WEBSOCKET_PATH: Final = "/mqtt"
"""Path of ``url`` where none is given."""

_INTERFACE: Final = re.compile(r"[^\s/]{1,15}")  # IFNAMSIZ of linux/if.h is 16, with its NUL

_Keepalive = Annotated[int, msgspec.Meta(ge=2, le=3600)]
_Return = Annotated[int, msgspec.Meta(ge=1, le=86_400)]


class Proxy(msgspec.Struct, frozen=True):
    """A proxy. ``kind``: one of ``PROXIES``; ``user``: empty where it wants none."""

    kind: str
    host: str
    port: int
    user: str = ""
    password: str = ""


class UplinkSettings(config.Server, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to the cloud.

    ``url``: ``mqtts://HOST[:8883]`` or ``wss://HOST[:443][/PATH]``; without TLS ``mqtt://HOST[:1883]`` or
    ``ws://HOST[:80][/PATH]``. ``name``: for ``only_on`` of a lane, the log and the status. ``ca``: whom to believe
    (default: the system's CAs); ``certificate`` and ``key``: who this gateway is. All PEM; where none of the three is
    given, they are the first uplink's. ``keepalive``: a dead link is noticed within 1.5 times this, seconds.
    ``interface``: the network interface to use. ``proxy``: ``http://[USER[:PASSWORD]@]HOST:PORT`` or ``socks5://…``;
    ``proxy_password_file`` holds the password instead. ``metered``: bytes cost money here. ``return_s``: seconds after
    which it is tried again while a less preferred one is in use. ``broker`` ``foreign``: a broker of others stands
    there, and the cloud behind it (U1); ``user``, ``password_file``: as that asks.
    """

    url: str
    name: str = ""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    keepalive: _Keepalive = 20
    interface: str = ""
    proxy: str = ""
    proxy_password_file: Path | None = None
    metered: bool = False
    return_s: _Return = 300
    broker: Literal["cloud", "foreign"] = "cloud"
    user: str = ""
    password_file: Path | None = None

    @property
    def ping(self) -> int:
        """Seconds of silence after which a ping goes: its answer may take as long, 1.5 × ``keepalive`` in all."""
        return max(1, int((1.5 * self.keepalive - 2) / 2))

    @property
    def websocket(self) -> bool:
        """Whether MQTT is carried in a WebSocket."""
        return urlsplit(self.url).scheme in {"ws", "wss"}

    @property
    def way(self) -> str:
        """How it goes, for a person: ``url``, and what is between; no password."""
        proxy = self.through()
        parts = [self.url]
        if self.interface:
            parts.append(f"by {self.interface}")
        if proxy is not None:
            parts.append(f"through {proxy.kind}://{_address(proxy.host, proxy.port)}")
        return " ".join(parts)

    def password(self) -> str | None:
        """Read the password; None without a file. Raises ConfigError."""
        if self.password_file is None:
            return None
        try:
            return self.password_file.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"[[uplink]] password_file {self.password_file}: cannot be read: {error}") from error

    def through(self) -> Proxy | None:
        """Return the proxy, without a password that is in a file."""
        if not self.proxy:
            return None
        parts = urlsplit(self.proxy)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return Proxy(parts.scheme, parts.hostname or "", parts.port or 0, user, password)


def labels(uplinks: Sequence[UplinkSettings]) -> list[str]:
    """Return what each is called: its name, or its place in the file."""
    return [uplink.name or f"[[uplink]] {number}" for number, uplink in enumerate(uplinks, 1)]


def metered(uplinks: Sequence[UplinkSettings]) -> dict[str, UplinkSettings]:
    """Return the metered ones by what each is called."""
    return {label: uplink for label, uplink in zip(labels(uplinks), uplinks, strict=True) if uplink.metered}


def certificates(uplinks: Sequence[UplinkSettings]) -> dict[str, Path]:
    """Return the certificate that each shows, by what the uplink is called."""
    every = zip(labels(uplinks), with_certificates(uplinks), strict=True)
    return {label: uplink.certificate for label, uplink in every if uplink.certificate is not None}


def with_certificates(uplinks: Sequence[UplinkSettings]) -> list[UplinkSettings]:
    """Return ``uplinks`` with the first one's files where one over TLS has none of its own."""
    if not uplinks:
        return []
    files = {key: getattr(uplinks[0], key) for key in ("ca", "certificate", "key")}
    return [
        uplink if _given(uplink) or not uplink.tls else msgspec.structs.replace(uplink, **files) for uplink in uplinks
    ]


def check_uplinks(uplinks: Sequence[UplinkSettings], where: str) -> None:
    """Check what types cannot say. Raises ConfigError."""
    for number, uplink in enumerate(uplinks, 1):
        _check(uplink, f"{where}: [[uplink]] {number}")
    names = [uplink.name for uplink in uplinks if uplink.name]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: [[uplink]] name: two have the same; give each one of its own")


def _check(uplink: UplinkSettings, where: str) -> None:
    parts = _parts(uplink.url)
    if parts is None or parts.scheme not in config.PORTS or parts.port == 0 or "@" in parts.netloc or parts.fragment:
        raise ConfigError(
            f"{where} url: {_shown(uplink.url)!r}: write mqtts://HOST[:PORT] or wss://HOST[:PORT]/PATH "
            "(mqtt:// or ws:// without TLS)"
        )
    if not uplink.websocket and (parts.path not in {"", "/"} or parts.query):
        raise ConfigError(f"{where} url: {_shown(uplink.url)!r}: a path is for wss:// and ws://; leave it out")
    given = _given(uplink)
    if given and not uplink.tls:
        raise ConfigError(f"{where} {given[0]} is for TLS, and url has none; write mqtts:// or wss://")
    config.check_files(uplink, where)
    if (uplink.certificate is None) != (uplink.key is None):
        raise ConfigError(f"{where} certificate and key go together: give both, or neither")
    if uplink.name and not GATEWAY_ID.fullmatch(uplink.name):
        raise ConfigError(f"{where} name: {uplink.name!r}: use 1 to 64 letters, digits, '.', '_', '-'")
    if uplink.interface and not _INTERFACE.fullmatch(uplink.interface):
        raise ConfigError(
            f"{where} interface: {uplink.interface!r}: write its name, such as wwan0 (ip link shows them)"
        )
    if uplink.password_file is not None and not uplink.user:
        raise ConfigError(f"{where} password_file: there is no user; add it, or leave this out")
    _check_proxy(uplink, where)


def _check_proxy(uplink: UplinkSettings, where: str) -> None:
    """No error shows the proxy's own text: there may be a password in it."""
    if not uplink.proxy:
        if uplink.proxy_password_file is not None:
            raise ConfigError(f"{where} proxy_password_file: there is no proxy; add it, or leave this out")
        return
    parts = _parts(uplink.proxy)
    if (
        parts is None
        or parts.scheme not in PROXIES
        or not parts.port
        or parts.path not in {"", "/"}
        or parts.query
        or parts.fragment
    ):
        raise ConfigError(
            f"{where} proxy: write http://[USER:PASSWORD@]HOST:PORT or socks5://… (it looks names up; TLS to the proxy "
            "itself is not spoken); %3A, %2F and %40 stand for : / and @ in a password"
        )
    proxy = uplink.through()
    if proxy is None or (proxy.password and not proxy.user):
        raise ConfigError(f"{where} proxy: there is a password and no user; write USER:PASSWORD@ before the host")
    if uplink.proxy_password_file is not None and (proxy.password or not proxy.user):
        raise ConfigError(f"{where} proxy_password_file: write USER@ before the proxy's host, without a password there")
    if any(not 0 <= len(text.encode()) <= 255 for text in (proxy.user, proxy.password)) or ":" in proxy.user:  # noqa: PLR2004 - RFC 1929
        raise ConfigError(f"{where} proxy: user and password have at most 255 bytes, and no colon in the user")


def _shown(url: str) -> str:
    """Return a URL as an error may show it: what stands before an @ may hold a password."""
    before, at, after = url.rpartition("@")
    scheme, between, _ = before.partition("://")
    return f"{scheme}://…@{after}" if at and between else f"…@{after}" if at else url


def _parts(url: str) -> SplitResult | None:
    """Return the parts of a URL with a host; None where it is none."""
    try:
        parts = urlsplit(url)
        named = bool((parts.hostname or "").encode("idna"))
        return parts if named and (parts.port or 0) >= 0 else None
    except ValueError:  # a UnicodeError is one
        return None


def _given(uplink: UplinkSettings) -> list[str]:
    return [key for key in ("ca", "certificate", "key") if getattr(uplink, key) is not None]


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

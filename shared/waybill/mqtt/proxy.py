"""The PROXY protocol, versions 1 and 2: who is behind a load balancer (haproxy.org, doc/proxy-protocol.txt). No I/O.

The header comes before anything else, TLS included; :mod:`waybill.mqtt.greeting` reads it. It is believed only from
addresses that were named: from any other it is no MQTT, and ends the connection.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

from waybill.errors import ConfigError

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
LINE: Final = b"PROXY "
"""How a header of version 1 begins."""

MAX_LINE: Final = 107
"""Bytes of a header of version 1 at most."""

MAX_PORT: Final = 65_535

MAX_BODY: Final = 4096
"""Bytes of a header of version 2 at most, behind its first 16: addresses and what else the balancer adds."""

_ADDRESSES: Final = {0x11: 4, 0x21: 16}
"""TCP over IPv4 and IPv6: bytes of an address."""


class ProxyError(OSError):
    """What should be a header of the PROXY protocol is none."""


def networks(texts: Sequence[str], where: str) -> tuple[Network, ...]:
    """Return addresses and networks as such; ``where`` names the key in errors. Raises ConfigError."""
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ConfigError(f"{where}: {error}; write an address, or a network as in 10.0.0.0/8") from error
    return tuple(found)


def trusts(proxies: Sequence[Network], name: object) -> bool:
    """Say whether a peer (a socket's name for it) is one of ``proxies``."""
    if not proxies or not isinstance(name, tuple):
        return False
    address = ipaddress.ip_address(str(name[0]).partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in proxies)


def version_1(line: bytes, name: object) -> object:
    r"""Read ``PROXY TCP4 FROM TO PORT PORT\r\n``. Raises ProxyError."""
    words = line.removesuffix(b"\r\n").decode("ascii", "replace").split(" ")
    if words[1:2] == ["UNKNOWN"]:
        return name
    try:
        _, kind, host, _, port, _ = words
        address = ipaddress.ip_address(host)
        if kind != f"TCP{address.version}" or "%" in host or not line.endswith(b"\r\n"):
            raise ValueError(kind)
        if not port.isdigit() or int(port) > MAX_PORT:
            raise ValueError(port)
        return str(address), int(port)
    except ValueError as error:
        raise ProxyError(f"a PROXY header that cannot be read: {line!r}") from error


def version_2(command: int, kind: int, body: bytes, name: object) -> object:
    """Read what follows the signature. Raises ProxyError."""
    if command not in {0x20, 0x21}:
        raise ProxyError(f"a PROXY header of version and command 0x{command:02x}")
    if command == 0x20 or kind == 0:  # LOCAL: the balancer itself; or it does not say
        return name
    if kind not in _ADDRESSES:
        raise ProxyError(f"a PROXY header of address family and protocol 0x{kind:02x}; here it is TCP over IP")
    size = _ADDRESSES[kind]
    if len(body) < 2 * size + 4:
        raise ProxyError("a PROXY header that is too short for its addresses")
    (port,) = struct.unpack_from(">H", body, 2 * size)
    return str(ipaddress.ip_address(body[:size])), port

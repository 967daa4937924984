"""The way through a proxy: HTTP CONNECT (RFC 9110, 9.3.6) and SOCKS5 (RFC 1928, RFC 1929).

Names go to the proxy as they are: it looks them up. The answer is read byte by byte where its length is not known
before, so that nothing of what the cloud says is taken for a part of it, however it is cut into segments.
"""

from __future__ import annotations

import base64
import ipaddress
from typing import Final, Protocol

from edge_agent.uplink.config import Proxy
from waybill.errors import Unavailable

HEAD: Final = 16 << 10
"""Bytes of an HTTP answer at most, up to its empty line."""

REPLIES: Final = {
    1: "it failed",
    2: "its rules do not allow it",
    3: "the network is unreachable",
    4: "the host is unreachable, or its name is not known",
    5: "the connection was refused",
    6: "its time to live expired",
    7: "it knows no CONNECT",
    8: "it does not know this type of address",
}
"""What a SOCKS server says (RFC 1928, 6)."""

_HTTP: Final = b"HTTP/1."
_VERSION: Final = 5
_NO_AUTHENTICATION: Final = 0
_PASSWORD: Final = 2
_CONNECT: Final = 1
_IPV4: Final = 1
_DOMAIN: Final = 3
_IPV6: Final = 4


class ProxyRefused(Unavailable):
    """The proxy does not let it through; the text says why, and the mend."""


class Stream(Protocol):
    """A connected socket."""

    async def send(self, data: bytes) -> None:
        """Write all of it."""

    async def receive(self, count: int) -> bytes:
        """Read exactly ``count`` bytes. Raises ConnectionError at the end."""


async def tunnel(stream: Stream, proxy: Proxy, host: str, port: int) -> None:
    """Ask the proxy at the other end of ``stream`` for a connection to ``host``. Raises ProxyRefused, OSError."""
    await (_http if proxy.kind == "http" else _socks5)(stream, proxy, host, port)


async def _http(stream: Stream, proxy: Proxy, host: str, port: int) -> None:
    name = f"[{host}]" if ":" in host else host.encode("idna").decode()
    target = f"{name}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.user:
        secret = base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {secret}")
    await stream.send("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
    head = bytearray()
    while not head.endswith((b"\r\n\r\n", b"\n\n")):
        if len(head) >= HEAD:
            raise ProxyRefused("the proxy's answer does not end: is it an HTTP proxy?")
        head += await stream.receive(1)
        if not bytes(head).startswith(_HTTP[: len(head)]):
            raise ProxyRefused("the proxy speaks no HTTP: check its port, or write socks5://")
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    status = words[1] if len(words) > 1 else ""
    if not (len(status) == 3 and status.isdigit()):  # noqa: PLR2004 - RFC 9110, 15
        raise ProxyRefused("the proxy's answer has no status: is it an HTTP proxy? Check its port in [[uplink]] proxy")
    if status.startswith("2"):
        return
    said = f"HTTP {status} {words[2] if len(words) > 2 else ''}".strip()  # noqa: PLR2004 - a reason is not required
    if status in {"401", "407"}:  # tinyproxy says 401
        mend = "it wants another user or password" if proxy.user else "it wants a user and password: USER:PASSWORD@HOST"
        raise ProxyRefused(f"the proxy refuses: {said}; {mend}; check [[uplink]] proxy")
    if status in {"502", "503", "504"}:
        raise ProxyRefused(f"the proxy cannot reach {target}: {said}")
    raise ProxyRefused(f"the proxy refuses {target}: {said}; its rules must allow CONNECT to this host and port")


async def _socks5(stream: Stream, proxy: Proxy, host: str, port: int) -> None:
    methods = [_NO_AUTHENTICATION, _PASSWORD] if proxy.user else [_NO_AUTHENTICATION]
    await stream.send(bytes([_VERSION, len(methods), *methods]))
    version, method = await stream.receive(2)
    if version != _VERSION:
        raise ProxyRefused("the proxy speaks no SOCKS5: check its port, or write http://")
    if method == _PASSWORD and proxy.user:
        user, password = proxy.user.encode(), proxy.password.encode()
        await stream.send(bytes([1, len(user)]) + user + bytes([len(password)]) + password)
        _, refused = await stream.receive(2)
        if refused:
            raise ProxyRefused("the proxy refuses user or password; check [[uplink]] proxy")
    elif method != _NO_AUTHENTICATION:
        raise ProxyRefused("the proxy wants a user and password; write USER:PASSWORD@HOST in [[uplink]] proxy")
    await stream.send(bytes([_VERSION, _CONNECT, 0]) + _target(host) + port.to_bytes(2, "big"))
    _, reply = await stream.receive(2)
    if reply:
        raise ProxyRefused(f"the proxy does not connect to {host}:{port}: {REPLIES.get(reply, f'reply {reply}')}")
    _, kind = await stream.receive(2)
    length = {_IPV4: 4, _IPV6: 16}.get(kind) or (await stream.receive(1))[0]
    await stream.receive(length + 2)  # the address it connects from, which matters to nobody


def _target(host: str) -> bytes:
    """Return a host as SOCKS5 has it (RFC 1928, 5)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("idna")
        return bytes([_DOMAIN, len(name)]) + name
    return bytes([_IPV4 if address.version == 4 else _IPV6]) + address.packed  # noqa: PLR2004 - of IP

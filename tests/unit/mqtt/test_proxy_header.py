"""The PROXY protocol: headers of both versions, and what is none."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest

from waybill.errors import ConfigError
from waybill.mqtt import proxy

NAME = ("10.0.0.7", 4711)


def body(family: int, source: str, port: int) -> bytes:
    packed = socket.inet_pton(family, source)
    return packed + bytes(len(packed)) + struct.pack(">HH", port, 8883)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"PROXY TCP4 203.0.113.9 10.0.0.1 56324 8883\r\n", ("203.0.113.9", 56324)),
        (b"PROXY TCP6 2001:db8::9 2001:db8::1 56324 8883\r\n", ("2001:db8::9", 56324)),
        (b"PROXY UNKNOWN\r\n", NAME),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", NAME),
    ],
)
def test_version_1(line: bytes, name: object) -> None:
    assert proxy.version_1(line, NAME) == name


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 203.0.113.9 10.0.0.1 56324\r\n",
        b"PROXY TCP4 2001:db8::9 2001:db8::1 56324 8883\r\n",
        b"PROXY UDP4 203.0.113.9 10.0.0.1 56324 8883\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 x 8883\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 65536 8883\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 -1 8883\r\n",
        b"PROXY TCP6 fe80::1%eth0 fe80::2 56324 8883\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 56324 8883\n",
        b"PROXY \r\n",
    ],
)
def test_version_1_that_is_none(line: bytes) -> None:
    with pytest.raises(proxy.ProxyError, match="cannot be read"):
        proxy.version_1(line, NAME)


@pytest.mark.parametrize(
    ("command", "kind", "data", "name"),
    [
        (0x21, 0x11, body(socket.AF_INET, "203.0.113.9", 5), ("203.0.113.9", 5)),
        (0x21, 0x21, body(socket.AF_INET6, "2001:db8::9", 5), ("2001:db8::9", 5)),
        (0x21, 0x11, body(socket.AF_INET, "203.0.113.9", 5) + b"\x04\0\2xx", ("203.0.113.9", 5)),
        (0x20, 0x11, b"", NAME),
        (0x21, 0x00, b"", NAME),
    ],
)
def test_version_2(command: int, kind: int, data: bytes, name: object) -> None:
    assert proxy.version_2(command, kind, data, NAME) == name


@pytest.mark.parametrize(
    ("command", "kind", "data"),
    [(0x11, 0x11, b""), (0x22, 0x11, b""), (0x21, 0x12, bytes(12)), (0x21, 0x11, bytes(11)), (0x21, 0x21, bytes(35))],
)
def test_version_2_that_is_none(command: int, kind: int, data: bytes) -> None:
    with pytest.raises(proxy.ProxyError):
        proxy.version_2(command, kind, data, NAME)


def test_who_is_trusted() -> None:
    named = proxy.networks(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"], "here")
    for host in ("10.1.2.3", "192.0.2.7", "2001:db8::5", "::ffff:10.0.0.1"):
        assert proxy.trusts(named, (host, 1)), host
    for host in ("11.0.0.1", "192.0.2.8", "2001:db9::5", "fe80::1%lo"):
        assert not proxy.trusts(named, (host, 1)), host
    assert not proxy.trusts(named, "")
    assert not proxy.trusts((), ("10.0.0.1", 1))
    assert proxy.networks(["10.0.0.1"], "here") == (ipaddress.ip_network("10.0.0.1/32"),)
    with pytest.raises(ConfigError, match="here: 'x' does not appear"):
        proxy.networks(["x"], "here")

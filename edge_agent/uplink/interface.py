"""Whether the interface of a connection is still there: what the kernel knows at once, a keepalive finds out late."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import sys
from typing import Final

SIOCGIFFLAGS: Final = 0x8913
SIOCGIFADDR: Final = 0x8915
"""netdevice(7): an interface's flags, and its first IPv4 address."""

_REQUEST: Final = struct.Struct("16s24s")
_FLAGS: Final = struct.Struct("16xH")
_ADDRESS: Final = 20
_WORKS: Final = 0x1 | 0x40
"""IFF_UP, IFF_RUNNING: switched on, and with a carrier."""

_NO_WAY: Final = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}


def trouble(sock: socket.socket) -> str:
    """Return why nothing can pass through the interface of a connected socket, or an empty string. Linux.

    Nothing is sent. Of a socket that is closed nothing is said.
    """
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    try:
        local, peer = sock.getsockname(), sock.getpeername()
    except OSError:
        return ""
    with socket.socket(sock.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((local[0], 0, *local[2:]))
        except OSError as error:
            return f"its address {local[0]} is gone" if error.errno == errno.EADDRNOTAVAIL else ""
        name = _of(probe, local[0]) if sock.family == socket.AF_INET else ""
        if name and not _works(probe, name):
            return f"the interface {name} is down"
        try:
            probe.connect(peer)
        except OSError as error:
            return f"no way to {peer[0]} from {local[0]}" if error.errno in _NO_WAY else ""
    return ""


def _of(probe: socket.socket, address: str) -> str:
    """Return the interface whose first address this is, or an empty string."""
    wanted = socket.inet_aton(address)
    for _, name in socket.if_nameindex():
        try:
            found = fcntl.ioctl(probe, SIOCGIFADDR, _REQUEST.pack(name.encode(), b""))
        except OSError:  # it has none
            continue
        if found[_ADDRESS : _ADDRESS + 4] == wanted:
            return name
    return ""


def _works(probe: socket.socket, name: str) -> bool:
    try:
        (flags,) = _FLAGS.unpack_from(fcntl.ioctl(probe, SIOCGIFFLAGS, _REQUEST.pack(name.encode(), b"")))
    except OSError:  # it has just gone, with its address
        return False
    return bool(flags & _WORKS == _WORKS)

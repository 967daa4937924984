"""What a TCP connection costs on the wire: payload, TLS, retransmissions and the headers of IP and TCP.

The kernel counts it, in both directions (``struct tcp_info`` of linux/tcp.h, since Linux 4.19). Two things it does not
tell: data that came twice, and headers longer than usual because of losses (SACK). Both are small.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final, NamedTuple

INFO: Final = struct.Struct("=B4xB122xQII56xQ")
"""State, options in use, bytes received in order, segments sent and received, bytes sent, also again."""

UNCONNECTED: Final = (2, 7)
"""The states TCP_SYN_SENT and TCP_CLOSE: nothing has to be ended."""

TIMESTAMPS: Final = 1
"""TCPI_OPT_TIMESTAMPS, among the options."""

HEADER: Final = {socket.AF_INET: 20 + 20, socket.AF_INET6: 40 + 20}
"""Bytes of the headers of IP and TCP, without options."""

STAMP: Final = 12
"""Bytes of TCP's timestamp in each segment."""

SYN: Final = 20
"""Bytes of the options of a SYN: segment size, SACK, timestamp, window scale."""

FINS: Final = 2
"""Segments each way that end a connection: FIN and the acknowledgement of the other side's."""


class Traffic(NamedTuple):
    """Bytes on the wire, with all headers from IP upwards."""

    sent: int = 0
    received: int = 0

    def plus(self, other: Traffic) -> Traffic:
        """Return the sum."""
        return Traffic(self.sent + other.sent, self.received + other.received)


def of(sock: socket.socket, *, closing: bool = False) -> Traffic:
    """Return what a connected socket has cost so far; nothing where the system does not tell.

    ``closing``: add what its end costs.
    """
    if sys.platform != "linux":
        return Traffic()
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO.size)
    except OSError:
        return Traffic()
    if len(info) < INFO.size or sock.family not in HEADER:
        return Traffic()
    state, options, received, segments_out, segments_in, sent = INFO.unpack(info)
    stamp = STAMP if options & TIMESTAMPS else 0
    header, more = HEADER[sock.family] + stamp, FINS if closing and state not in UNCONNECTED else 0
    return Traffic(
        sent + (segments_out + more) * header + (SYN - stamp if segments_out else 0),
        received + (segments_in + more) * header + (SYN - stamp if segments_in else 0),
    )

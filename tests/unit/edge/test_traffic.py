"""What a connection costs on the wire: each end's kernel counts on its own, and both must agree."""

from __future__ import annotations

import socket
import time

import pytest

from edge_agent.uplink import traffic
from edge_agent.uplink.traffic import Traffic

SYN = {socket.AF_INET: 60, socket.AF_INET6: 80}
PLAIN = {socket.AF_INET: 52, socket.AF_INET6: 72}


def exchange(client: socket.socket, peer: socket.socket, size: int) -> None:
    client.sendall(bytes(size))
    left = size
    while left:
        left -= len(peer.recv(left))
    peer.sendall(b"!")
    assert client.recv(1) == b"!"
    for one in (client, peer):  # what it would acknowledge within 40 ms, it acknowledges now
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    deadline = time.monotonic() + 60
    while traffic.of(client).sent != traffic.of(peer).received:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_all_headers_are_counted_and_one_ends_sent_is_the_others_received(
    family: socket.AddressFamily, host: str
) -> None:
    with socket.create_server((host, 0), family=family) as server:
        client = socket.create_connection(server.getsockname()[:2])
        peer, _ = server.accept()
        with client, peer:
            # SYN and the handshake's last segment there, SYN-ACK back
            assert traffic.of(client) == (SYN[family] + PLAIN[family], SYN[family])
            for size in (1, 10_000, 300_000):
                exchange(client, peer, size)
            sent, received = traffic.of(client)
            assert sent == traffic.of(peer).received
            assert sent > 310_001 + 3 * PLAIN[family]
            assert received >= SYN[family] + 3 * (PLAIN[family] + 1)
            end = traffic.of(client, closing=True)
            assert end == (sent + 2 * PLAIN[family], received + 2 * PLAIN[family])


def test_a_socket_that_tells_nothing_counts_nothing() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert traffic.of(one) == Traffic()
    assert traffic.of(one) == Traffic()

"""An interface that works is not taken for one that does not; what is not is the matter of tests/system."""

from __future__ import annotations

import socket

import pytest

from edge_agent.uplink.interface import trouble


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_loopback_works(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server, socket.socket(family) as sock:
        assert trouble(sock) == ""
        sock.connect(server.getsockname())
        assert trouble(sock) == ""
        sock.close()
        assert trouble(sock) == ""


def test_a_unix_socket_has_no_interface() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert trouble(one) == ""

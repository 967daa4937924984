"""A WebSocket with a socket's interface, over a socket that takes little at once."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest
from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from edge_agent.uplink.web_socket import PART, WebSocket


class Peer:
    """The server's end; what it got."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.protocol = ServerProtocol(state=OPEN, max_size=1 << 20)
        self.data = bytearray()
        self.others: list[tuple[Opcode, bytes]] = []
        self.largest = 0

    def read(self, most: int = 5000) -> int:
        """Read at most so much of what is there; returns how much that was."""
        try:
            data = self.sock.recv(most)
        except BlockingIOError:
            return 0
        self.protocol.receive_data(data)
        for frame in self.protocol.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode is Opcode.BINARY:
                self.data += frame.data
                self.largest = max(self.largest, len(frame.data))
            else:
                self.others.append((frame.opcode, bytes(frame.data)))
        return len(data)

    def write(self) -> None:
        """Send what the protocol has to say."""
        self.sock.sendall(b"".join(self.protocol.data_to_send()))


@pytest.fixture
def ends() -> Iterator[tuple[WebSocket, Peer]]:
    near, far = socket.socketpair()
    with near, far:
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield WebSocket(near, ClientProtocol(parse_uri("ws://h"), state=OPEN)), Peer(far)


def test_what_is_sent_arrives_whole_however_little_the_socket_takes_and_pings_are_answered_in_between(
    ends: tuple[WebSocket, Peer],
) -> None:
    near, peer = ends
    rng = random.Random(7)
    packets = [rng.randbytes(rng.choice((1, 100, PART, 20_000, 300_000))) for _ in range(30)]
    pings: list[bytes] = []
    for packet in packets:
        at = 0
        while at < len(packet):
            try:
                at += near.send(packet[at:])
            except BlockingIOError:
                peer.read(rng.randrange(1, 9000))
                if len(pings) < 20:
                    pings.append(rng.randbytes(4))
                    peer.protocol.send_ping(pings[-1])
                    peer.write()
                    with pytest.raises(BlockingIOError):
                        near.recv(1)
    while peer.read():
        pass
    assert bytes(peer.data) == b"".join(packets)
    assert peer.largest <= PART
    near.send(b"")
    while peer.read():
        pass
    assert peer.others == [(Opcode.PONG, ping) for ping in pings]


def test_what_is_received_is_a_stream_whatever_its_frames(ends: tuple[WebSocket, Peer]) -> None:
    near, peer = ends
    peer.protocol.send_binary(b"one")
    peer.protocol.send_binary(b"", fin=False)
    peer.protocol.send_continuation(b"two", fin=False)
    peer.protocol.send_continuation(b"three", fin=True)
    peer.write()
    assert near.recv(1) == b"o"
    assert near.pending() == 10
    assert near.recv(100) == b"netwothree"
    with pytest.raises(BlockingIOError):
        near.recv(1)
    peer.protocol.send_binary(b"last")
    peer.protocol.send_close(CloseCode.GOING_AWAY)
    peer.write()
    assert near.recv(2) == b"la"
    assert near.recv(2) == b"st"
    assert near.recv(2) == b""


def test_a_connection_that_ends_without_a_close_is_an_end(ends: tuple[WebSocket, Peer]) -> None:
    near, peer = ends
    peer.sock.shutdown(socket.SHUT_WR)
    assert near.recv(1) == b""
    assert near.recv(1) == b""


def test_a_message_that_is_too_large_is_an_end(ends: tuple[WebSocket, Peer]) -> None:
    near, peer = ends
    peer.sock.sendall(b"\x82\x7f" + (1 << 40).to_bytes(8, "big"))
    assert near.recv(1) == b""

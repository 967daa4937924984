"""What comes on a socket before TLS and MQTT: a load balancer's header, or nothing at all.

The header is read to its last byte and no further, so that nothing of what follows is taken.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

from waybill.mqtt.proxy import LINE, MAX_BODY, MAX_LINE, SIGNATURE, ProxyError, version_1, version_2

_HEAD: Final = struct.Struct(">BBH")


class NoByteError(EOFError):
    """The peer closed without having sent anything: a balancer that looks whether somebody listens."""


async def client_of(sock: socket.socket, name: object) -> object:
    """Read the header; returns the client as a socket names a peer, ``name`` where it says nothing (LOCAL, UNKNOWN).

    Raises NoByteError, ProxyError, OSError.
    """
    head = await _begin(sock)
    if head == SIGNATURE:
        command, kind, size = _HEAD.unpack(await _exactly(sock, _HEAD.size))
        if size > MAX_BODY:
            raise ProxyError(f"a PROXY header of {size} bytes; at most {MAX_BODY}")
        return version_2(command, kind, await _exactly(sock, size) if size else b"", name)
    while not head.endswith(b"\n"):
        if len(head) >= MAX_LINE:
            raise ProxyError("a PROXY header without an end")
        head += await _exactly(sock, 1)
    return version_1(head, name)


async def first_byte(sock: socket.socket) -> None:
    """Wait until the peer has sent something, and take nothing of it. Raises NoByteError, OSError."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)
    if not sock.recv(1, socket.MSG_PEEK):
        raise NoByteError


async def _begin(sock: socket.socket) -> bytes:
    """Read what tells the two versions apart. What can be neither is an error at once: no more of it may come."""
    data = await _some(sock, len(SIGNATURE))
    if not data:
        raise NoByteError
    while any(known.startswith(data[: len(known)]) for known in (SIGNATURE, LINE)):
        if len(data) == len(SIGNATURE):
            return data
        data += await _exactly(sock, 1)
    raise ProxyError("no PROXY header; switch it on at the balancer, or take its address out of proxies")


async def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await _some(sock, size - len(data))
        if not more:
            raise ProxyError("the connection ended within its PROXY header")
        data += more
    return data


async def _some(sock: socket.socket, size: int) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, size)

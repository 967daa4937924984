"""Devices by hand: bytes to an agent's listeners, and password files that are quick to verify."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from tests.integration.mqtt.conftest import Raw

Dial = Callable[..., Awaitable[Raw]]

ACCEPTED, UNAVAILABLE, BAD_CREDENTIALS, NOT_AUTHORIZED, BAD_CLIENT_ID = (b"\x20\x02\0%c" % n for n in (0, 3, 4, 5, 2))
"""CONNACK of MQTT 3.1.1."""


def quick(password: str) -> str:
    """Return the cheapest hash that a file may have."""
    kdf = Argon2id(salt=os.urandom(16), length=32, iterations=1, lanes=1, memory_cost=7168)
    return kdf.derive_phc_encoded(password.encode())


def written(path: Path, **users: str) -> Path:
    """Put a password file in place of another, at once."""
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(f"{user}:{quick(password)}\n" for user, password in users.items()))
    temporary.chmod(0o600)
    return temporary.replace(path)


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    """Connect to a port or a Unix socket, and send packets."""
    raws: list[Raw] = []

    async def connect(to: int | Path, *packets: bytes, tls: ssl.SSLContext | None = None) -> Raw:
        if isinstance(to, Path):
            raw = Raw(*await asyncio.open_unix_connection(to))
        else:
            raw = Raw(*await asyncio.open_connection("127.0.0.1", to, ssl=tls))
        raws.append(raw)
        await raw.send(*packets)
        return raw

    yield connect
    for raw in raws:
        raw.close()
        with contextlib.suppress(OSError):
            await raw.writer.wait_closed()


async def one(raw: Raw) -> bytes:
    """Read one packet of less than 128 bytes."""
    head = await asyncio.wait_for(raw.reader.readexactly(2), 60)
    return head + await raw.reader.readexactly(head[1])

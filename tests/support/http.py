"""A client of the cloud's HTTP API, for tests: the standard library's, in a thread."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def of(self, kind: Any) -> Any:
        """Return the body as ``kind``."""
        assert self.status == 200, self
        return msgspec.json.decode(self.body, type=kind)


async def get(
    address: str, path: str, *, token: str = "", method: str = "GET", headers: Mapping[str, str] | None = None
) -> Answer:
    """Ask once."""
    sent = dict(headers or {}) | ({"Authorization": f"Bearer {token}"} if token else {})

    def ask() -> Answer:
        connection = http.client.HTTPConnection(address, timeout=60)
        try:
            connection.request(method, path, headers=sent)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    return await asyncio.to_thread(ask)

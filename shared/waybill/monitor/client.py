"""HTTP/1.1 as far as the fleet's API needs it: GET over one connection that is kept. RFC 9112.

A client library would bring a gateway more bytes than the monitor itself has.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from waybill.config import is_loopback
from waybill.errors import ConfigError, Unavailable

TIMEOUT: Final = 10.0
"""Seconds that an answer may take."""

MAX_BODY: Final = 64 << 20
"""Bytes of an answer at most."""

MAX_TOKEN: Final = 4096
_MAX_HEAD: Final = 64 << 10
_CODING: Final = "transfer-encoding"


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes


class Client:
    """One server. ``url``: ``http://HOST:PORT``, ``https://HOST:PORT`` or ``unix:PATH``.

    ``token``: called at each connection, so that a token that was changed is taken; empty: none is sent. ``ca``: who
    signed the server's certificate, None: whom this machine trusts. Raises ConfigError.
    """

    def __init__(self, url: str, token: Callable[[], str] = str, ca: Path | None = None) -> None:
        """Connect at the first request."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"--cloud {url}: {error}") from error
        self._socket = Path(parts.path) if parts.scheme == "unix" and parts.path else None
        known = parts.scheme in {"http", "https"} and parts.hostname and parts.path in {"", "/"} and not parts.query
        if (not known and self._socket is None) or parts.username is not None:
            raise ConfigError(f"--cloud {url}: write http://HOST:PORT, https://HOST:PORT or unix:PATH")
        self._host = parts.hostname or "localhost"
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._name = "localhost" if self._socket else parts.netloc
        self._tls = _context(ca) if parts.scheme == "https" else None
        self._token = token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._sent_token = ""
        self.url = url
        self.in_clear = parts.scheme == "http" and not is_loopback(self._host)
        """Whether the token can be read on the way."""

    async def get(self, path: str) -> Answer:
        """Ask for ``path``. Raises Unavailable."""
        try:
            async with asyncio.timeout(TIMEOUT):
                kept = self._streams is not None
                try:
                    return await self._ask(path)
                except (ConnectionError, asyncio.IncompleteReadError):
                    if not kept:
                        raise
                    await self.close()  # it was let go of while nobody asked
                    return await self._ask(path)
        except TimeoutError as error:
            await self.close()
            raise Unavailable(f"{self.url} does not answer within {TIMEOUT:.0f} s") from error
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            await self.close()
            ended = isinstance(error, EOFError | ConnectionResetError | BrokenPipeError)
            tls = "; is it https://?" if ended and self.url.startswith("http://") else ""
            raise Unavailable(f"{self.url}: {_said(error)}{tls}") from error
        except BaseException:
            await self.close()  # half an answer may be under way
            raise

    async def close(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._sent_token = self._token()
        if self._socket is not None:
            return await asyncio.open_unix_connection(str(self._socket), limit=_MAX_HEAD)
        return await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=_MAX_HEAD)

    async def _ask(self, path: str) -> Answer:
        self._streams = self._streams or await self._connect()
        reader, writer = self._streams
        lines = [f"GET {path} HTTP/1.1", f"Host: {self._name}", "Accept: application/json"]
        if self._sent_token:
            lines.append(f"Authorization: Bearer {self._sent_token}")
        writer.write("\r\n".join([*lines, "", ""]).encode("ascii"))
        await writer.drain()
        status, fields = _head(await reader.readuntil(b"\r\n\r\n"))
        body = await _body(reader, fields)
        if fields.get("connection", "").lower() == "close" or not fields.keys() & {"content-length", _CODING}:
            await self.close()
        return Answer(status, body)


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return status and fields (names in lower case). Raises ValueError."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("it does not speak HTTP/1.1")
    fields = (line.partition(":") for line in lines if line)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in fields}


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    """Return the body. Raises ValueError where it is too long or not as announced."""
    if fields.get(_CODING, "").lower() == "chunked":
        body = bytearray()
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            _check(len(body) + size)
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return bytes(body)
    if "content-length" in fields:
        size = int(fields["content-length"])
        _check(size)
        return await reader.readexactly(size)
    body = bytearray()
    while some := await reader.read(_MAX_HEAD):
        body += some
        _check(len(body))
    return bytes(body)


def _check(size: int) -> None:
    if not 0 <= size <= MAX_BODY:
        raise ValueError(f"an answer of {size} bytes; {MAX_BODY} at most are taken")


def _said(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}; name who signed it with --ca"
    if isinstance(error, EOFError):
        return "it ended the connection"
    return str(error) or type(error).__name__


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--ca {ca}: cannot be used: {error}; give a file of certificates, PEM") from error


def token_of(file: Path) -> str:
    """Return the token in ``file``. Raises ConfigError."""
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {file}: cannot be read: {error}") from error
    if not token or len(token) > MAX_TOKEN or not token.isprintable() or " " in token:
        raise ConfigError(
            f"--token-file {file}: holds no token; it is one line without spaces, as in the API's own file"
        )
    return token

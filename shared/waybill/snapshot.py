"""One frozen snapshot a process, served on a Unix socket.

The same socket takes a few requests from tools on this machine.

A client sends one line of JSON, ``{"op": NAME, …}``; the server answers with one line, ``{"ok": …}`` or ``{"error":
TEXT}``, and closes. ``{"op": "snapshot"}`` is known to every process; others (``append`` in the cloud ingest) are
given as handlers. The socket is mode 0600: whoever may read the data directory's files may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from waybill.errors import ConfigError, Unavailable, WaybillError

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
"""Takes the request's JSON object, returns something msgspec can encode.

A WaybillError becomes the answer's ``error``.
"""

MAX_REQUEST = 1 << 20
TIMEOUT = 20.0
"""Seconds that the other side may take: a gateway with much to do takes some, and is not dead."""


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a name for ``path`` that fits into ``sun_path`` (108 bytes).

    Through the directory's descriptor where it is too long.
    """
    if len(os.fsencode(path)) < 100:  # noqa: PLR2004 - some systems have 104
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


@contextlib.asynccontextmanager
async def serve(
    path: Path, snapshot: Callable[[], msgspec.Struct], handlers: Mapping[str, Handler] | None = None
) -> AsyncIterator[None]:
    """Serve ``snapshot()`` and ``handlers`` on the Unix socket ``path`` while the context is open.

    A socket file left by a killed process is replaced: the data directory's lock already says that nobody else is
    alive. Raises ConfigError where the socket cannot be made.
    """

    async def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                line = await reader.readline()
            writer.write(await _answer(line, snapshot, handlers or {}) + b"\n")
            async with asyncio.timeout(TIMEOUT):
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    try:
        path.unlink(missing_ok=True)
        with _short(path) as name:
            mask = os.umask(0o177)
            try:
                server = await asyncio.start_unix_server(on_connect, name, limit=MAX_REQUEST)
            finally:
                os.umask(mask)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made a socket: {error.strerror}; move away what is there") from error
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


async def _answer(line: bytes, snapshot: Callable[[], msgspec.Struct], handlers: Mapping[str, Handler]) -> bytes:
    try:
        request = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        return msgspec.json.encode({"error": f"not a JSON object: {error}"})
    op = request.get("op")
    if op == "snapshot":
        return msgspec.json.encode({"ok": snapshot()})
    handler = handlers.get(op) if isinstance(op, str) else None
    if handler is None:
        return msgspec.json.encode({"error": f"unknown op {op!r}; known: {', '.join(sorted({'snapshot', *handlers}))}"})
    try:
        return msgspec.json.encode({"ok": await handler(request)})
    except WaybillError as error:
        return msgspec.json.encode({"error": str(error)})


async def request(path: Path, op: str, **fields: object) -> Any:  # noqa: ANN401 - what the handler returned
    """Ask the process behind ``path``. Raises Unavailable where none answers or it answers with an error."""
    try:
        async with asyncio.timeout(TIMEOUT):
            with _short(path) as name:
                reader, writer = await asyncio.open_unix_connection(name, limit=1 << 24)
            try:
                writer.write(msgspec.json.encode({"op": op, **fields}) + b"\n")
                answer = msgspec.json.decode(await reader.readline())
            finally:
                writer.close()
    except PermissionError as error:
        raise Unavailable(f"{path} is not for this user; ask as who runs the process, or as root") from error
    except (OSError, TimeoutError, msgspec.DecodeError) as error:
        msg = f"nothing answers on {path}; is the process running, and with this data directory?"
        raise Unavailable(msg) from error
    if "error" in answer:
        raise Unavailable(answer["error"])
    return answer["ok"]

"""The read-only HTTP API: GET, JSON, a bearer token (docs/api.md).

What can reach it is bounded: connections, the bytes of a request's head, the seconds until that is whole, and those in
which a reader must take what it asked for. Only what a request names is logged, never its headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cloud_ingest.fleet.api_config import Api, read_token
from cloud_ingest.fleet.watcher import Watcher
from waybill.config import address
from waybill.errors import ConfigError, Refused, Unavailable
from waybill.pki import server_context

HEAD_BYTES: Final = 16 << 10
_PIECE: Final = 4 << 10
"""Bytes of a request that are looked at together: h11 bounds a head that it waits for, not one that comes at once."""

HEAD_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 30
STUCK_SECONDS: Final = 30.0
"""In which a reader must take something of what was sent to it."""

log = logging.getLogger(__name__)

_JSON: Final = "application/json"
_encode = msgspec.json.Encoder().encode


def _answer(value: object, status: int = 200, **headers: str) -> Response:
    return Response(
        _encode(value), status, {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **headers}, _JSON
    )


def _error(status: int, text: str, **headers: str) -> Response:
    return _answer({"error": text}, status, **headers)


async def _missing(_: Request, __: Exception) -> Response:
    return _error(404, "there is /v1/fleet, /v1/gateways/ID, /v1/commands, /v1/kafka and /v1/log")


async def _other(_: Request, __: Exception) -> Response:
    return _error(405, "this only reads: GET", Allow="GET, HEAD")


async def _broken(_: Request, __: Exception) -> Response:
    return _error(500, "this node could not answer; its log says why")


def application(watcher: Watcher, token: bytes, *, inside: bool) -> ASGIApp:
    """Return the ASGI application. ``inside``: it can be reached from this machine alone."""

    async def fleet(request: Request) -> Response:
        found = watcher.fleet(request.query_params.get("since", ""))
        rest = msgspec.structs.replace(found, at_ms=0, gateways=())
        tag = f'W/"{found.revision}.{zlib.crc32(_encode(rest)):08x}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return _answer(found, ETag=tag)

    async def gateway(request: Request) -> Response:
        try:
            return _answer(watcher.gateway(request.path_params["id"]))
        except Refused as error:
            return _error(404, str(error))

    async def commands(_: Request) -> Response:
        return _answer(watcher.commands())

    async def kafka(_: Request) -> Response:
        return _answer(await watcher.kafka())

    async def lines(request: Request) -> Response:
        return _answer(watcher.log_lines(request.query_params.get("since", "")))

    routes: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/v1/fleet": fleet,
        "/v1/gateways/{id}": gateway,
        "/v1/commands": commands,
        "/v1/kafka": kafka,
        "/v1/log": lines,
    }
    inner = Starlette(
        routes=[Route(path, handler, methods=["GET"]) for path, handler in routes.items()],
        exception_handlers={404: _missing, 405: _other, 500: _broken},
    )
    return _Door(inner, token, inside=inside)


class _Door:
    """Lets those in who have the token. Without one, those who name this machine: no page in a browser can."""

    def __init__(self, inner: ASGIApp, token: bytes, *, inside: bool) -> None:
        self._inner = inner
        self._token = token
        self._inside = inside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        refused = self._refused(scope)
        await (refused or self._inner)(scope, receive, send)

    def _refused(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        if not self._token:
            host = headers.get(b"host", b"localhost").decode("latin-1").rpartition("@")[2]
            name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
            if self._inside and name.lower() in {"localhost", "127.0.0.1", "[::1]", ""}:
                return None
            return _error(403, "without a token only localhost, 127.0.0.1 and [::1] may be asked")
        said = headers.get(b"authorization", b"")
        kind, _, given = said.partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token):
            return None
        client = scope.get("client")
        log.warning("the API was asked without the token from %s", client[0] if client else "the socket")
        return _error(401, "give the token: Authorization: Bearer TOKEN", **{"WWW-Authenticate": "Bearer"})


class _Protocol(H11Protocol):
    """uvicorn's, with bounds: on connections, and on the time until a request's head is whole."""

    most = 0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError, AttributeError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STUCK_SECONDS * 1000))
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._look()

    def data_received(self, data: bytes) -> None:
        for begin in range(0, len(data), _PIECE):
            if self.transport.is_closing():
                return
            super().data_received(data[begin : begin + _PIECE])
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def _look(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr] # None at first
        if not waits:
            self._in_time()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _Server(uvicorn.Server):
    """uvicorn's, without its signal handlers: the ingest has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class HttpApi:
    """The API of one node."""

    def __init__(self, settings: Api, watcher: Watcher) -> None:
        """Read the token and the certificate. Raises ConfigError."""
        self._settings = settings
        self._app = application(watcher, read_token(settings), inside=settings.inside)
        self._context: ssl.SSLContext | None = None
        if settings.certificate:
            self._context = server_context(Path(settings.certificate), Path(settings.key), None)
        self.address = ""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Answer while the context is open. Raises ConfigError, Unavailable (the address is taken)."""
        protocol = type("Protocol", (_Protocol,), {"most": self._settings.connections})
        config = uvicorn.Config(
            self._app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=HEAD_BYTES,
        )
        config.load()
        config.ssl = self._context
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # others can make it say the rest at will
        server = _Server(config)
        sock = self._bound()
        task = asyncio.create_task(server.serve([sock]), name="api")
        try:
            yield
        finally:
            server.should_exit = True
            await asyncio.wait({task}, timeout=5)
            task.cancel()
            sock.close()
            if self._settings.path is not None:
                _remove(self._settings.path)

    def _bound(self) -> socket.socket:
        path = self._settings.path
        if path is not None:
            sock = socket.socket(socket.AF_UNIX)
            mask = os.umask(0o177)
            try:
                _remove(path)
                sock.bind(str(path))
                sock.listen()
            except OSError as error:
                sock.close()
                raise ConfigError(f"[api] listen: {path}: cannot be made a socket: {error.strerror}") from error
            finally:
                os.umask(mask)
            self.address = str(path)
        else:
            host, port = address(self._settings.listen)
            try:
                family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
                sock = socket.create_server((where[0], port), family=family)
            except OSError as error:
                raise Unavailable(f"[api] listen {self._settings.listen}: {error.strerror}") from error
            bound: Any = sock.getsockname()
            self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
        sock.setblocking(False)
        return sock


def _remove(path: Path) -> None:
    """Remove the socket that a killed process has left; another kind of file stays."""
    if path.is_socket():
        path.unlink(missing_ok=True)

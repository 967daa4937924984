"""What monitoring systems ask of a process over HTTP: ``/metrics`` of Prometheus, and probes.

==========  ===================================================================================================
path        answer
==========  ===================================================================================================
/metrics    the process's snapshot as metrics, in the text format that was asked for
/livez      200 while the process's loop answers; else 503: it has to be started again
/readyz     200 while it can take messages; else 503 and why: nothing is gained by starting it again
==========  ===================================================================================================

Threads serve it (prometheus-client is made for them), at most ASKERS at once; a further one is turned away. Each has
PATIENCE seconds. There is no authentication: listen where only those who may ask can reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import TimeoutError as Late
from functools import partial
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from waybill.config import address
from waybill.errors import Unavailable

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

T = TypeVar("T")

ASKERS: Final = 8
PATIENCE: Final = 5.0
"""Seconds for a request to arrive, and for the loop to answer."""


def count(name: str, text: str, value: float) -> Metric:
    """Return a counter, something that only grows while the process lives. ``name``: without ``_total``."""
    return CounterMetricFamily(name, text, value=value)


def gauge(name: str, text: str, value: float | None) -> Metric:
    """Return a value as of now; None: no sample."""
    return GaugeMetricFamily(name, text, value=value)


def several(kind: str, name: str, text: str, labels: Mapping[Any, float], *keys: str) -> Metric:
    """Return a ``counter`` or ``gauge`` with labels ``keys``. ``labels``: a tuple of their values → the sample."""
    make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
    family = make(name, text, labels=keys)
    for values, sample in labels.items():
        family.add_metric(values, sample)
    return family


@contextlib.asynccontextmanager
async def serve(
    listen: str, snapshot: Callable[[], T], metrics: Callable[[T], Iterable[Metric]], trouble: Callable[[T], str]
) -> AsyncIterator[str]:
    """Serve on ``listen``, HOST:PORT (0: any free one), while the context is open; yield the address.

    ``snapshot`` is called in this loop, ``metrics`` in threads. ``trouble``: why no messages can be taken, or empty.
    Raises ConfigError (no HOST:PORT), Unavailable (the address is taken).
    """
    host, port = address(listen, "[metrics] listen")
    loop = asyncio.get_running_loop()

    async def ask() -> T:
        return snapshot()

    def now() -> T:
        """Return the snapshot. Raises Late."""
        asked = asyncio.run_coroutine_threadsafe(ask(), loop)
        try:
            return asked.result(PATIENCE)
        except Late:
            asked.cancel()
            raise

    def alive() -> str:
        now()
        return ""

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(lambda: metrics(now())))
    ProcessCollector(registry=registry)
    answers: dict[str, Callable[..., Any]] = {
        "/metrics": make_wsgi_app(registry),
        "/livez": partial(_probe, alive),
        "/readyz": partial(_probe, lambda: trouble(now())),
    }
    try:
        server = make_server(host, port, partial(_answer, answers), _Server, _Handler)
    except OSError as error:
        raise Unavailable(f"[metrics] listen {listen!r}: {error.strerror}; is another process there?") from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"[{host}]:{server.server_port}" if ":" in host else f"{host}:{server.server_port}"
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


class _Snapshot(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = ASKERS

    def __init__(self, where: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        import socket

        self.address_family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        self._room = threading.BoundedSemaphore(ASKERS)
        super().__init__(where, handler)

    def server_bind(self) -> None:
        """Bind, without the look-up of this machine's name that the base class makes."""
        from socketserver import TCPServer

        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: who asks has gone."""


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log no request: probes come every few seconds."""


def _answer(answers: dict[str, Callable[..., Any]], environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    answer = answers.get(environ.get("PATH_INFO", ""))
    if environ["REQUEST_METHOD"] not in {"GET", "HEAD"} or answer is None:
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [f"{' '.join(answers)}\n".encode()]
    try:
        return answer(environ, start)  # type: ignore[no-any-return]
    except Late:
        start("503 Service Unavailable", [("Content-Type", "text/plain")])
        return [f"the process does not answer within {PATIENCE:.0f} s\n".encode()]


def _probe(ask: Callable[[], str], _environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    trouble = ask()
    start("503 Service Unavailable" if trouble else "200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{trouble or 'ok'}\n".encode()]

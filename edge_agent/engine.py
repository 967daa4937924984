"""What the agent asks of its local broker, and which broker it gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from waybill.mqtt.server import MqttServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from edge_agent.config import EdgeConfig
    from waybill.mqtt.limits import Limits
    from waybill.mqtt.settings import Counters, Hooks, Settings
    from waybill.mqtt.state import Sink


class Engine(Protocol):
    """A local broker whose acks wait for its sink (B1). It lives in one event loop and is used from there."""

    @property
    def counters(self) -> Counters:
        """The counters, live."""

    async def start(self) -> None:
        """Restore the state from the sink and start. Raises what ``Sink.restore`` raises."""

    async def listen(
        self,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext | None = None,
        *,
        name: str = "",
        websocket: bool = False,
        limits: Limits | None = None,
    ) -> tuple[str, int]:
        """Accept connections on an address (port 0: any), with ``ssl_context`` over TLS, with ``websocket`` over that.

        ``name``: what hooks hear as ``listener``. ``limits``: of this listener; without them those of the settings.
        Returns the address bound. Raises Unavailable where it is taken.
        """

    async def listen_unix(self, path: Path, *, name: str = "", limits: Limits | None = None) -> None:
        """Accept connections on a Unix socket. Raises Unavailable where that cannot be."""

    def refuse(self, shut: Callable[[bytes], bool] | None) -> None:
        """Take no PUBLISH of QoS 1 or 2 to topics for which ``shut`` is true; None: take all.

        MQTT 5 is answered with 0x97; 3.1.1 is not read until there is room, and closed after ``full_timeout``.
        """

    def disconnect(self, client_id: str, reason: str) -> bool:
        """Close a client's connection (its will fires); False where it has none."""

    async def publish(self, topic: str, payload: bytes, qos: int = 0) -> object:
        """Publish for the agent itself, to local subscribers; it never is an arrival. Raises Unavailable."""

    async def died(self) -> None:
        """Wait for the end of one of the engine's own tasks, which only :meth:`close` should bring; raise its error."""

    async def close(self) -> None:
        """Stop accepting, commit what was read, send the acks, close; waits a bounded time for the sink."""


def make(config: EdgeConfig, sink: Sink, settings: Settings, hooks: Hooks) -> Engine:
    """Return the engine that ``config`` names. Raises ConfigError where a plug-in of amqtt will not start."""
    if config.engine == "amqtt":
        from edge_agent.amqtt_engine import AmqttEngine

        return AmqttEngine(config.amqtt, sink, settings, hooks)
    return MqttServer(sink, settings, hooks)

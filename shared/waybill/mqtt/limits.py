"""What a listener may set on its own; :class:`waybill.mqtt.settings.Settings` has the rest. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the connections of one listener, and what happens at each. Times in seconds, sizes in bytes.

    ``max_packet``: a larger packet closes its connection (B4: what is acked can be delivered); clients of MQTT 5 are
    told.
    ``max_connections``, ``max_connections_per_address``: of this listener, and of one IP address (of IPv6 one /64)
    among them (0: as many as of the listener); further ones are closed at once, before TLS, and counted
    (``over_limit``).
    ``connect_timeout``: a connection without a whole CONNECT by then is closed and counted (``timed_out``); the TLS and
    WebSocket handshakes and the answer of ``authorize_connect`` have to come within it too.
    ``inflight``: QoS 1 and 2 messages sent to one client and not yet acknowledged; a client of MQTT 5 may want fewer,
    one of 3.1.1 gets no more than 20 of QoS 2 (:data:`waybill.mqtt.session.WINDOW_2`).
    ``publish_rate``: messages a second that one client may publish, 0 for any. A client may be ahead by what it may
    publish in a second, then it is not read until it no longer is (``throttled``); nothing is dropped.
    ``max_keepalive``: seconds; a client of MQTT 5 that wants more, or none, is told this. 0: as it likes.
    """

    max_packet: int = MIB
    max_connections: int = 20_000
    max_connections_per_address: int = 0
    connect_timeout: float = 10.0
    inflight: int = 1_000
    publish_rate: float = 0.0
    max_keepalive: int = 0

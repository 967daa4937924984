"""What an MQTT server is told (limits, hooks) and what it tells (counters)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from waybill.mqtt import budget
from waybill.mqtt.codec import NEVER, ConnackCode
from waybill.mqtt.limits import KIB, MIB, Limits
from waybill.mqtt.memories import MEMORY_CLIENTS, MEMORY_ENTRIES
from waybill.mqtt.resend import MEMORY_ENTRIES_ALL
from waybill.mqtt.state import DUP_WINDOW

GATHERED: Final = 100
"""Arrivals that make a commit worth its writes."""


@dataclass(frozen=True, slots=True)
class Settings(Limits):
    """The limits of a server, and what happens at each. Times in seconds, sizes in bytes.

    Those of :class:`waybill.mqtt.limits.Limits` hold for listeners that have none of their own; ``max_connections``
    also for all listeners together.
    ``stall_timeout``: a connection that sends less than 1 KiB of an unfinished packet, or reads nothing of what waits
    for it, in that time is closed and counted (``timed_out``).
    ``full_timeout``: a client of MQTT 3.1.1 that publishes what there is no room for is not read, and closed after that
    time; MQTT 5 is answered with 0x97. Counted (``no_room``).
    ``receive_maximum``: as ``inflight`` in the other direction, for clients of MQTT 5, and what is remembered of them
    (O3); at most ``dup_window``. More ends the connection with 0x93.
    ``topic_aliases``: of one connection of MQTT 5, in each direction. A higher one ends it with 0x94.
    ``max_session_expiry``: seconds; a client of MQTT 5 that wants more is told this.
    ``ephemeral``: every session ends with its connection, whatever its client asks for.
    ``queue_messages``, ``queue_bytes``: of QoS 1 and 2 waiting for one session; what comes when they are full is
    dropped, counted (``dropped``) and logged. ``queue_bytes_all``: of all sessions together, with what a message costs
    besides its bytes; no session may have more than is left of it.
    ``output_bytes``: unsent output of a connection; beyond it QoS 0 is dropped and counted, QoS 1 and 2 wait in the
    queue, and nothing more is read from it.
    ``buffer_bytes_all``: unsent output and unfinished packets of all connections; one that has more than is left of it
    is closed and counted (``crowded``).
    ``uncommitted_bytes``, ``uncommitted_bytes_all``: of one connection and of all, with what a message costs besides
    its bytes; beyond them reading pauses until half is committed, beyond the second that of every connection.
    ``retained_messages``, ``retained_bytes``: beyond them a retained message is delivered but not kept, and counted
    (``unretained``).
    ``will_bytes``: of all wills that may still come; a client whose will has no room is refused with CONNACK 3 or 0x97.
    ``max_sessions``: persistent ones; a client that needs one more is answered with CONNACK 3 or 0x97.
    ``max_subscriptions``: of one client. ``subscription_bytes``: what all subscriptions cost; no session may have more
    than is left of it. More are answered with SUBACK 0x80 or 0x97.
    ``max_held``, ``max_held_all``: packet ids of QoS 2 from one client, and from all, that wait for PUBREL; no client
    may have more than is left of the second. A PUBLISH beyond is not stored: MQTT 5 answers PUBREC 0x97, 3.1.1 closes.
    What is refused for want of room in these five is counted (``over_quota``).
    ``max_topic``, ``max_levels``: bytes and levels of a topic or a filter; beyond them the connection is closed.
    ``route_bytes``: what is remembered of who gets which topic; at the limit all of it is found anew.
    ``dup_window``, ``memory_clients``, ``memory_entries``, ``memory_entries_all``: of the resend memory, see
    :mod:`waybill.mqtt.resend`.
    ``gather``: seconds that a commit of less than ``GATHERED`` arrivals waits for more, and acknowledgements with it.
    ``close_timeout``: how long ``close()`` waits for the last commit and for output to leave.

    What cannot be set: a first packet of 256 KiB, a client id and a user name of 1 KiB each, 1,024 filters in a
    SUBSCRIBE, 64 KiB of properties and 256 user properties in a packet. Beyond them a connection is closed, or refused.
    """

    stall_timeout: float = 60.0
    full_timeout: float = 60.0
    receive_maximum: int = DUP_WINDOW
    topic_aliases: int = 32
    max_session_expiry: int = NEVER
    ephemeral: bool = False
    queue_messages: int = 50_000
    queue_bytes: int = 16 * MIB
    queue_bytes_all: int = 256 * MIB
    output_bytes: int = 256 * KIB
    buffer_bytes_all: int = 128 * MIB
    uncommitted_bytes: int = 4 * MIB
    uncommitted_bytes_all: int = 64 * MIB
    retained_messages: int = 100_000
    retained_bytes: int = 64 * MIB
    will_bytes: int = 32 * MIB
    max_sessions: int = 20_000
    max_subscriptions: int = 1_000
    subscription_bytes: int = 128 * MIB
    max_held: int = 65_535
    max_held_all: int = 500_000
    max_topic: int = 1024
    max_levels: int = 64
    route_bytes: int = 8 * MIB
    dup_window: int = DUP_WINDOW
    memory_clients: int = MEMORY_CLIENTS
    memory_entries: int = MEMORY_ENTRIES
    memory_entries_all: int = MEMORY_ENTRIES_ALL
    gather: float = 0.0
    close_timeout: float = 5.0

    def ceiling(self, tls_connections: int = 0) -> int:
        """Return the most bytes of memory that the server takes, besides what it takes idle, with all limits reached.

        ``tls_connections``: how many of the connections may be over TLS, which has buffers of its own. What the store
        holds meanwhile is its own affair.
        """
        connections, topic = self.max_connections, self.max_topic
        connection = budget.CONNECTION + 2 * budget.SMALL + budget.ASKED_BYTES
        connection += 2 * self.topic_aliases * (budget.ALIAS + topic) + budget.ENTRY * min(
            budget.SHARE, self.dup_window
        )
        shared = self.queue_bytes_all + self.subscription_bytes + self.will_bytes + self.buffer_bytes_all
        kept = 2 * self.retained_bytes + budget.RETAINED * self.retained_messages
        # a batch holds each packet whole, and its topic and payload; the read that goes over the limit is still taken
        batch = 2 * self.uncommitted_bytes_all + budget.read(self.max_packet) + budget.PUBLISH * self.queue_messages
        writes = self.queue_bytes + self.output_bytes + self.max_packet
        remembered = budget.ENTRY * self.memory_entries_all + budget.FOLD_BYTES_ALL + budget.AWAY * self.memory_clients
        return (
            connections * connection
            + tls_connections * budget.TLS
            + (connections + self.max_sessions) * budget.SESSION
            + shared
            + kept
            + batch
            + writes
            + remembered
            + self.max_held_all * budget.HELD
            + self.route_bytes
            + budget.BLOCKS
        )


@dataclass(frozen=True, slots=True)
class ConnectInfo:
    """Who wants to connect. ``peer_certificate``: DER, verified, or None. ``address``: host and port, or "unix".

    ``listener``: the name of the listener that it came to.
    """

    client_id: str
    user: str | None
    password: bytes | None
    peer_certificate: bytes | None
    address: str
    version: int
    clean: bool
    listener: str = ""


Answer: TypeAlias = ConnackCode | str | None
"""What ``authorize_connect`` says: a code other than ACCEPTED refuses, a text becomes the client's ``user``."""


@dataclass(frozen=True, slots=True)
class Client:
    """A connected client. ``user``: the identity that ``authorize_connect`` gave it, else its user name.

    ``listener``: the name of the listener that it came to.
    """

    client_id: str
    user: str | None
    version: int
    address: str
    listener: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """A PUBLISH for a subscription of the program itself. ``client_id``: who published it, empty for the program.

    ``properties``: the block of MQTT 5.
    """

    client_id: str
    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: bytes = b""


OnMessage: TypeAlias = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the program decides and hears.

    All are called in the event loop and must be quick; None allows, or says nothing. One that raises is logged, and
    counts as a refusal.
    ``authorize_connect``: a ConnackCode other than ACCEPTED refuses, before anything of a session is touched; a text
    becomes the client's ``user``, an empty one means that it has none; with None it is the user name of CONNECT. The
    answer may be awaited: until it is there nothing more is read from that connection, and ``connect_timeout`` cancels
    it. One that raises refuses with UNAVAILABLE.
    ``authorize_publish(client, topic)``: False closes the connection (3.1.1 has no other answer), with MQTT 5 it is
    answered with 0x87 (QoS 0: not at all), and the message is not stored; asked again only for topics not seen lately
    on that connection. It is asked for the will's topic at CONNECT: False refuses with NOT_AUTHORIZED.
    ``authorize_subscribe(client, filter)``: False is answered with SUBACK 0x80 or 0x87. Of a shared subscription it is
    asked for the filter behind the share name.
    ``on_connected``: just after CONNACK was written. ``on_disconnected(client, reason)``: after the connection ended;
    the reason is empty where the client sent DISCONNECT. ``on_subscribed(client, filter, qos)``: just after SUBACK
    was written. ``on_acknowledged(client, topic)``: the client has acknowledged a message of QoS 1 or 2 for good.
    ``on_no_room(client, topic)``: a PUBLISH was not taken because the program had no room for it
    (``MqttServer.refuse``).
    ``on_turned_away(address, reason)``: a connection was closed before it was accepted (refused, not MQTT, a version
    that is not spoken, too slow).
    ``on_commit_failed(error)``: a commit raised; nothing of it was acknowledged, its connections are closed.
    """

    authorize_connect: Callable[[ConnectInfo], Answer | Awaitable[Answer]] | None = None
    authorize_publish: Callable[[Client, str], bool] | None = None
    authorize_subscribe: Callable[[Client, str], bool] | None = None
    on_connected: Callable[[Client], None] | None = None
    on_disconnected: Callable[[Client, str], None] | None = None
    on_subscribed: Callable[[Client, str, int], None] | None = None
    on_no_room: Callable[[Client, str], None] | None = None
    on_acknowledged: Callable[[Client, bytes], None] | None = None
    on_turned_away: Callable[[str, str], None] | None = None
    on_commit_failed: Callable[[Exception], None] | None = None


@dataclass(slots=True)
class Counters:
    """Since the start, but for ``connections`` and ``uncommitted`` (bytes), which are as of now.

    ``received``, ``sent``: PUBLISH packets by QoS. ``duplicates``: copies that were acknowledged and not stored (O1,
    QoS 2).
    ``dropped``: messages for a subscriber that did not keep up; ``expired``: those that no longer counted, or were
    larger than the subscriber takes; ``unretained``: not kept at the limit; ``over_quota``: clients, subscriptions and
    QoS 2 messages that were refused for want of room; ``removed``: subscriptions of a session, and messages that
    waited for them, that its client may no longer have. ``throttled``: how often a client was not read because it
    published faster than ``publish_rate``. ``no_room``: PUBLISH packets that were not taken for want of room.
    ``probes``: connections that ended without a byte, as a load balancer makes them, where TLS or a proxy's header was
    awaited.
    ``malformed``, ``denied``, ``refused`` (CONNECT), ``over_limit`` (connections), ``handshakes_failed`` (TLS,
    WebSocket), ``timed_out``, ``crowded`` (too much unsent or unfinished): why connections ended.
    """

    connections: int = 0
    uncommitted: int = 0
    connects: int = 0
    refused: int = 0
    over_limit: int = 0
    handshakes_failed: int = 0
    probes: int = 0
    timed_out: int = 0
    crowded: int = 0
    malformed: int = 0
    denied: int = 0
    taken_over: int = 0
    wills: int = 0
    received_0: int = 0
    received_1: int = 0
    received_2: int = 0
    sent_0: int = 0
    sent_1: int = 0
    sent_2: int = 0
    acked: int = 0
    duplicates: int = 0
    dropped: int = 0
    expired: int = 0
    unretained: int = 0
    over_quota: int = 0
    removed: int = 0
    throttled: int = 0
    no_room: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    commits: int = 0
    commits_failed: int = 0

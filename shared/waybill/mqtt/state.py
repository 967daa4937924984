"""What the MQTT server hands to its store in one commit, and what the store hands back at a start.

The server gathers everything that happens while one commit is under way into the next :class:`Batch`, and calls
``Sink.commit`` with one batch at a time, in order. No PUBACK, PUBREC, PUBCOMP, SUBACK, UNSUBACK (or CONNACK that
changed a persistent session) leaves before the commit of its batch has returned (B1).

Order within a batch: ``arrivals`` are in order of arrival, ``changes`` in order of occurrence. The two lists do not
depend on each other, but for :class:`ResendFrozen`, which says its place itself.

Resend memory (O1-O3), for a store that outlives a restart
    A client's memory is its frozen entries and after them a tail of messages of QoS 1 and 2. Replay in order::

        before each arrival:            tail = the last `keep` messages of tail (keep 0: none)
        each QoS 1 or 2 of an arrival:  tail += (packet id, fingerprint)
        ResendFrozen(client, e, at):    frozen = e; tail = empty;  in force just before batch.arrivals[at]

    ``SavedState.memories[client]`` is ``frozen + tail``, oldest first. :func:`waybill.mqtt.resend.entries_of`
    computes the messages of an arrival from its ``raw``. What is in the tail must outlive the deletion of the blocks
    it was in. A tail longer than the window may be cut to its newest ``dup_window`` entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import msgspec

from waybill.mqtt.codec import NEVER

DUP_WINDOW: Final = 4096
"""Remembered messages a client, by default (O3)."""

Publish: TypeAlias = tuple[bytes, bytes, int, bytes | None, int, int, bytes]
"""One PUBLISH of an arrival, a plain tuple because one is made for every message:
``(topic, payload, flags, packet id, start, end, properties)``.

``topic``: valid UTF-8, no wildcard. ``flags``: low nibble of the fixed header (1 retain, 2 and 4 QoS, 8 DUP).
``packet id``: two bytes, big endian; None for QoS 0. ``raw[start:end]`` is the whole packet.
``properties``: the MQTT 5 property block without its length, as it is in ``raw``; empty for 3.1.1.
"""

Subscription: TypeAlias = tuple[int, int]
"""Options and identifier, as of :class:`Subscribed`."""

ResendEntry: TypeAlias = tuple[int, bytes]
"""A remembered message: packet id and :func:`waybill.mqtt.resend.fingerprint` of its content (16 bytes)."""


class Arrival(msgspec.Struct, gc=False):
    """Consecutive PUBLISH packets of one connection out of one read, to be stored. Copies (O1) are left out.

    ``user``: identity from the certificate or the user name. ``version``: MQTT protocol level of ``raw`` (4 or 5).
    ``wall_ms``: milliseconds since 1970 UTC; ``mono_ns``: CLOCK_MONOTONIC; both at the read.
    ``raw``: the packets exactly as they came, but for a topic alias: such a packet is encoded anew with its topic. A
    will that fires is an arrival of its own, encoded as a PUBLISH with packet id 0 where its QoS is not 0 (a number no
    client may use, so it is not remembered).
    ``keep``: how many messages of the tail of this client's resend memory were not proven acknowledged at this arrival.
    What the program itself publishes (:meth:`waybill.mqtt.server.MqttServer.publish`) never is an arrival.
    """

    client_id: str
    user: str | None
    version: int
    wall_ms: int
    mono_ns: int
    raw: bytes
    publishes: Sequence[Publish]
    keep: int = 0


class SessionOpened(msgspec.Struct, frozen=True, gc=False):
    """A persistent session begins, or goes on under other terms. What existed under this id is kept.

    ``expiry``: seconds after its connection ends (5.0, 3.1.2.11.2), 0xFFFFFFFF for never. What SessionLeft said of
    it is no longer so.
    """

    client: str
    version: int
    expiry: int = NEVER


class SessionLeft(msgspec.Struct, frozen=True, gc=False):
    """The connection of a session that expires has ended.

    ``expires_ms``: when it expires, wall time in milliseconds. A store never deletes a session for that: the server
    says so (SessionDeleted), also of what expired while it was not running.
    """

    client: str
    expiry: int
    expires_ms: int


class SessionDeleted(msgspec.Struct, frozen=True, gc=False):
    """A persistent session ends, with its subscriptions, queue and inbound ids. Its resend memory stays (O3)."""

    client: str


class Subscribed(msgspec.Struct, frozen=True, gc=False):
    """A subscription was made or replaced.

    ``options``: QoS 0 to 2 in the low two bits, above them as in 5.0, 3.8.3.1. ``identifier``: 0 for none.
    """

    client: str
    filter: str
    options: int
    identifier: int = 0


class Unsubscribed(msgspec.Struct, frozen=True, gc=False):
    """A subscription ended."""

    client: str
    filter: str


class Queued(msgspec.Struct, frozen=True, gc=False):
    """A message for a persistent session, kept until :class:`Dequeued`.

    ``n`` counts upwards within a session (gaps happen); it is the order of the queue and also gives the packet id:
    ``(n - 1) % 65535 + 1``, so that no assignment needs a commit of its own. ``qos``: 1 or 2. ``retain``: as it is to
    be sent. ``properties``: as they are to be sent, but for the message expiry, which is ``expires_ms``: wall time in
    milliseconds, 0 for never.
    """

    client: str
    n: int
    qos: int
    retain: bool
    topic: bytes
    payload: bytes
    properties: bytes = b""
    expires_ms: int = 0


class Received(msgspec.Struct, frozen=True, gc=False):
    """The session's client has answered queued message ``n`` (QoS 2) with PUBREC: from now on PUBREL is sent for it."""

    client: str
    n: int


class Dequeued(msgspec.Struct, frozen=True, gc=False):
    """Queued message ``n`` is done: acknowledged, or dropped at a limit."""

    client: str
    n: int


class InboundHeld(msgspec.Struct, frozen=True, gc=False):
    """The client published QoS 2 under ``pid``; a PUBLISH of that id is a copy until :class:`InboundReleased`."""

    client: str
    pid: int


class InboundReleased(msgspec.Struct, frozen=True, gc=False):
    """The client sent PUBREL for ``pid``."""

    client: str
    pid: int


class Retained(msgspec.Struct, frozen=True, gc=False):
    """The retained message of a topic was set or replaced. ``properties``, ``expires_ms``: as of :class:`Queued`."""

    topic: bytes
    qos: int
    payload: bytes
    properties: bytes = b""
    expires_ms: int = 0


class RetainCleared(msgspec.Struct, frozen=True, gc=False):
    """The topic has no retained message any more."""

    topic: bytes


class ResendFrozen(msgspec.Struct, frozen=True, gc=False):
    """A client's resend memory was written down: on a lost connection, or emptied by a DISCONNECT.

    ``entries`` replaces all that was remembered of the client before ``batch.arrivals[at]`` (``at`` may be their
    number: after all of them).
    """

    client: str
    entries: Sequence[ResendEntry]
    at: int


Change: TypeAlias = (
    SessionOpened
    | SessionLeft
    | SessionDeleted
    | Subscribed
    | Unsubscribed
    | Queued
    | Received
    | Dequeued
    | InboundHeld
    | InboundReleased
    | Retained
    | RetainCleared
    | ResendFrozen
)
"""One step of durable state. Only persistent sessions (clean session 0, or an expiry) appear; changes are to be applied
in their order."""


@dataclass(slots=True)
class Batch:
    """Everything since the previous commit."""

    arrivals: list[Arrival] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SavedMessage:
    """A queued message as :class:`Queued` described it; ``received``: its PUBREC has come."""

    n: int
    qos: int
    retain: bool
    topic: bytes
    payload: bytes
    properties: bytes = b""
    received: bool = False
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A persistent session. ``queue`` in order of ``n``; ``inbound``: packet ids held for QoS 2.

    ``expires_ms``: as SessionLeft said it; 0 where it had a connection.
    """

    version: int = 4
    subscriptions: Mapping[str, Subscription] = field(default_factory=dict)
    queue: Sequence[SavedMessage] = ()
    inbound: Sequence[int] = ()
    expiry: int = NEVER
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class SavedState:
    """What the store knows at a start. ``retained``: by topic."""

    sessions: Mapping[str, SavedSession] = field(default_factory=dict)
    retained: Mapping[bytes, Retained] = field(default_factory=dict)
    memories: Mapping[str, Sequence[ResendEntry]] = field(default_factory=dict)


class Sink(Protocol):
    """The store behind an MQTT server."""

    async def restore(self) -> SavedState:
        """Return the state as of the last commit; called once, before the first commit."""

    async def commit(self, batch: Batch) -> None:
        """Make the batch durable, whole or not at all, then return.

        May wait as long as it likes: the server stops reading when enough is uncommitted. If it raises, nothing of
        the batch may be stored; the server acknowledges none of it, closes the connections concerned and forgets
        their messages (O2).
        """

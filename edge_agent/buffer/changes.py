"""Durable state of MQTT sessions: the server's changes into rows, and rows into what it gets back at a start."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Final

from edge_agent.buffer.sql import SQL
from waybill.mqtt.state import (
    Change,
    Dequeued,
    InboundHeld,
    InboundReleased,
    Queued,
    Received,
    ResendEntry,
    RetainCleared,
    Retained,
    SavedMessage,
    SavedSession,
    SavedState,
    SessionDeleted,
    SessionLeft,
    SessionOpened,
    Subscribed,
    Subscription,
    Unsubscribed,
)

_Row = tuple[Any, ...]

_STATEMENTS: Final[dict[type[Any], tuple[tuple[str, ...], Callable[[Any], _Row]]]] = {
    SessionOpened: (("open_session",), lambda c: (c.client, c.version, c.expiry)),
    SessionLeft: (("leave_session",), lambda c: (c.expiry, c.expires_ms, c.client)),
    SessionDeleted: (
        ("delete_session", "delete_subscriptions", "delete_queue", "delete_inbound"),
        lambda c: (c.client,),
    ),
    Subscribed: (("subscribe",), lambda c: (c.client, c.filter, c.options, c.identifier)),
    Unsubscribed: (("unsubscribe",), lambda c: (c.client, c.filter)),
    Queued: (
        ("enqueue",),
        lambda c: (c.client, c.n, c.qos, c.retain, c.topic, c.payload, c.properties, c.expires_ms),
    ),
    Received: (("received",), lambda c: (c.client, c.n)),
    Dequeued: (("dequeue",), lambda c: (c.client, c.n)),
    InboundHeld: (("hold_inbound",), lambda c: (c.client, c.pid)),
    InboundReleased: (("release_inbound",), lambda c: (c.client, c.pid)),
    Retained: (("retain",), lambda c: (c.topic, c.qos, c.payload, c.properties, c.expires_ms)),
    RetainCleared: (("clear_retained",), lambda c: (c.topic,)),
}


def apply(db: sqlite3.Connection, changes: Iterable[Change]) -> None:
    """Write ``changes``, in their order, within the transaction under way. ResendFrozen is not among them."""
    for kind, group in groupby(changes, type):
        names, row = _STATEMENTS[kind]
        rows = [row(change) for change in group]
        for name in names:
            db.executemany(SQL[name], rows)


def size_of(changes: Sequence[Change]) -> int:
    """Return about how many bytes ``changes`` take."""
    return sum(64 + len(c.payload) + len(c.properties) if isinstance(c, Queued | Retained) else 64 for c in changes)


def saved_state(db: sqlite3.Connection, memories: dict[str, Sequence[ResendEntry]]) -> SavedState:
    """Read sessions and retained messages."""
    sessions = {
        client: SavedSession(version, expiry=expiry, expires_ms=expires_ms)
        for client, version, expiry, expires_ms in db.execute(SQL["sessions"])
    }
    subscriptions: dict[str, dict[str, Subscription]] = {}
    queues: dict[str, list[SavedMessage]] = {}
    inbound: dict[str, list[int]] = {}
    for client, name, options, identifier in db.execute(SQL["subscriptions"]):
        subscriptions.setdefault(client, {})[name] = options, identifier
    for client, n, qos, retain, topic, payload, properties, received, expires_ms in db.execute(SQL["queue"]):
        message = SavedMessage(n, qos, bool(retain), topic, payload, properties, bool(received), expires_ms)
        queues.setdefault(client, []).append(message)
    for client, pid in db.execute(SQL["inbound"]):
        inbound.setdefault(client, []).append(pid)
    return SavedState(
        {
            client: replace(
                session,
                subscriptions=subscriptions.get(client, {}),
                queue=queues.get(client, ()),
                inbound=inbound.get(client, ()),
            )
            for client, session in sessions.items()
        },
        {row[0]: Retained(*row) for row in db.execute(SQL["retained"])},
        memories,
    )

"""Who is there: ``waybill.presence``, compacted, one record a gateway and a device (C3). Pure.

A record names the node and the connection. An ``offline`` counts only where it names the connection of the ``online``
before it, so a connection that a node takes for alive long after the gateway has gone to another ends nobody else's.
Nodes write what comes and goes at them, follow the topic, and hold a lease in it:

- An ``offline`` that came after this node's ``online`` and names an older connection has displaced that in the
  compacted topic: it is said again.
- An ``online`` of another node after this node's own: the connection here is not the current one, and is closed.
- A lease that was not renewed: one of the others says ``offline`` for all connections of that node. If it goes on after
  all, it reads so, and closes them: gateways connect anew. A node that did not read its own lease either, since it was
  paused or the log was away, knows nothing of the others': they count anew from when it reads its own again.

:mod:`cloud_ingest.presence_keeper` follows and writes. While the log is away only the newest state of each is kept, and
written when it is back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from cloud_ingest.journal.port import OutRecord
from waybill.wire import NODE

LEASE: Final = 30.0
"""Seconds after which a node that has not renewed its lease counts as gone; it renews three times as often."""

BLIND: Final = LEASE * 2 / 3
"""Seconds without its own lease after which a node does not judge the others'."""

Key = str


class Here(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record of the topic, JSON. ``gateway``: empty for a device without one, ``device``: empty for a gateway.

    ``at_ms``: when it came or went, milliseconds since 1970 UTC, by the clock of who noticed. ``reason``: why it went:
    what it said itself, or its will, else what the node saw. ``version``: of the agent.
    """

    state: Literal["online", "offline"]
    at_ms: int
    gateway: str = ""
    device: str = ""
    node: str = ""
    connection: str = ""
    reason: str = ""
    version: str = ""
    address: str = ""

    @property
    def key(self) -> Key:
        """The record's key: ``gateway``, ``gateway/device``, ``/device``, or ``node:…`` for a lease."""
        if not self.gateway and not self.device:
            return self.node
        return f"{self.gateway}/{self.device}" if self.device else self.gateway


_encode = msgspec.json.Encoder().encode


def record_of(topic: str, here: Here) -> OutRecord:
    """Return a record of the presence topic."""
    return OutRecord(topic, here.key.encode(), _encode(here), [("content-type", b"application/json")])


@dataclass(slots=True)
class _Mine:
    """A connection of this node. ``read``: its ``online`` was read back: what is read from now on came after it."""

    said: Here
    read: bool = False


@dataclass(slots=True)
class Presence:
    """What this node is to write, and which of its connections are to end. Times: monotonic seconds."""

    node: str
    _mine: dict[Key, _Mine] = field(default_factory=dict)
    _online: dict[Key, tuple[str, str]] = field(default_factory=dict)  # as the topic says: node and connection
    _leases: dict[str, float] = field(default_factory=dict)  # other nodes, and when each was heard of
    _seen: float = -LEASE  # when this node read its own lease
    _due: dict[Key, Here | None] = field(default_factory=dict)
    _told: dict[Key, str] = field(default_factory=dict)  # connections that were written to be there, and not to be gone

    def came(self, here: Here) -> None:
        """Note a connection of this node, or more of what is known of it."""
        self._mine[here.key] = _Mine(here)
        self._due[here.key] = here

    def went(self, key: Key, reason: str, at_ms: int) -> None:
        """Note its end."""
        mine = self._mine.pop(key, None)
        if mine is None:
            return
        now = self._online.get(key)
        if mine.read and now is not None and now[1] != mine.said.connection:
            self._due.pop(key, None)
            return  # it has come to another node since
        untold = self._due.get(key)
        connection = mine.said.connection
        if untold is not None and untold.state == "online":  # nobody may know of it, but of one before
            connection = self._told.get(key, "")
        if connection:
            ended = msgspec.structs.replace(mine.said, state="offline", at_ms=at_ms, reason=reason)
            self._due[key] = msgspec.structs.replace(ended, connection=connection)
        else:
            del self._due[key]

    def leave(self, key: Key) -> None:
        """Another node looks after it from now on; it has not gone."""
        self._mine.pop(key, None)
        self._due.pop(key, None)
        self._told.pop(key, None)

    def here(self, key: Key) -> Here | None:
        """Return what was said of a connection of this node."""
        mine = self._mine.get(key)
        return None if mine is None else mine.said

    def read(self, key: Key, found: Here | None, now: float) -> str:
        """Take a record; returns why the connection of ``key`` at this node has to end, or an empty string."""
        if key.startswith(NODE):
            if key != self.node:
                self._leases[key] = now if found is not None else -LEASE
            elif found is not None:
                self._read_lease(now)
            return ""
        if found is None or (found.gateway and found.device):
            return ""  # of a device behind a gateway: that is the gateway's to say
        mine = self._mine.get(key)
        if found.state == "offline":
            return self._read_offline(key, found, mine)
        if found.node != self.node:
            self._leases.setdefault(found.node, now)  # its lease is in another partition and may be read later
        self._online[key] = found.node, found.connection
        if mine is None:
            return ""
        if found.connection == mine.said.connection:
            mine.read = True
            return ""
        return "it has connected to another node" if mine.read else ""

    def _read_lease(self, now: float) -> None:
        """Take this node's own lease."""
        if now - self._seen > BLIND:
            for node, heard in self._leases.items():
                self._leases[node] = now if heard > -LEASE else heard
        self._seen = now

    def _read_offline(self, key: Key, found: Here, mine: _Mine | None) -> str:
        if self._online.get(key, ("", ""))[1] == found.connection:
            del self._online[key]
        if mine is None:
            return ""
        if found.connection == mine.said.connection:
            return "this node's lease had expired"
        if mine.read:
            self._online[key] = self.node, mine.said.connection
            self._due[key] = mine.said
        return ""

    def lapse(self, now: float, at_ms: int) -> None:
        """Say ``offline`` for the connections of nodes that are gone, where this node is the one to do it."""
        if now - self._seen > BLIND:
            return
        gone = {node for node, heard in self._leases.items() if now - heard > LEASE}
        if min([self.node, *(self._leases.keys() - gone)]) != self.node:
            return
        for key, (node, connection) in self._online.items():
            if node in gone and key not in self._mine:
                gateway, _, device = key.partition("/")
                self._due[key] = Here("offline", at_ms, gateway, device, node, connection, "its node is gone")
        for node in gone:
            if self._leases[node] > -LEASE:
                self._due[node] = None
            del self._leases[node]

    def renew(self, at_ms: int) -> None:
        """Write the lease again."""
        self._due[self.node] = Here("online", at_ms, node=self.node)

    def end(self) -> None:
        """Give the lease up."""
        self._due[self.node] = None

    def again(self) -> None:
        """The topic is about to be read from its start."""
        self._online.clear()

    def take(self, count: int) -> dict[Key, Here | None]:
        """Return what is to be written now; it is no longer due."""
        taken = {key: self._due[key] for key in list(self._due)[:count]}
        for key, here in taken.items():
            del self._due[key]
            if here is not None and here.state == "online" and key in self._mine:
                self._told[key] = here.connection
            elif here is not None and here.state == "offline":
                self._told.pop(key, None)
        return taken

    def put_back(self, key: Key, here: Here | None) -> None:
        """A record could not be written: it is due again, unless there is something newer."""
        self._due.setdefault(key, here)

    @property
    def due(self) -> int:
        """How many records are to be written."""
        return len(self._due)

"""Resend memory: was this PUBLISH with DUP stored already? (O1-O3) No I/O.

MQTT lets a client whose PUBACK got lost send its message again; nothing in the protocol tells that copy from a new
message. O1 calls a PUBLISH with DUP=1 a copy only if it repeats, packet id and content, that client's newest use of
the id; that content occurs once among the client's remembered messages; and nothing shows that the PUBACK arrived.

What is remembered of a client
    ``tail``: what its present connection published, one :class:`Chunk` a read, in order. A chunk leaves when the
    peer's TCP has acknowledged the bytes of its PUBACKs (``prove``). ``frozen``: what was still unproven when an
    earlier connection ended; one by one it leaves when a copy of it was acknowledged and that is proven, or when its
    packet id is used anew. A DISCONNECT empties both, except for what was not yet acknowledged by then: its ack
    cannot have arrived. What ends a QoS 2 message is its PUBCOMP: until then clients without a session (paho with clean
    sessions) publish it again.

MQTT 5 sends again within a session only (4.4): the memory of such a client ends with its session (``clear``), and holds
as many messages as the Receive Maximum that it was told.

Cost. A chunk is a reference to what was read; hashes are made when the first DUP=1 comes (or when more than
``FOLD_BYTES`` are held, so that the memory does not keep the reads alive), and from then on until nothing is left.

What stays undecidable
    A client that lost its own state (restarted from nothing, with packet ids from 1 again), whose first attempt at a
    *new* message never arrived, and that sends it again with DUP=1 under the id and with the content of its newest
    remembered message: taken for a copy. And a client that was acknowledged as far as its TCP, but died before its
    MQTT library read the ack, sends a copy that is stored again. Both need the proof to be wrong in a way no server
    can see.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from waybill.mqtt import properties
from waybill.mqtt.budget import FOLD_BYTES_ALL, PUBLISH, SHARE
from waybill.mqtt.codec import MQTT_3_1_1, MQTT_5, QOS_BITS, RETAIN
from waybill.mqtt.properties import read_variable
from waybill.mqtt.state import DUP_WINDOW, Publish, ResendEntry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOLD_BYTES: Final = 64 * 1024
"""Reads that one client's memory may keep alive before it makes hashes of the oldest."""

MEMORY_ENTRIES_ALL: Final = 1_000_000
"""How many messages are remembered of all clients. One that has more than is left of it forgets its oldest, but not its
newest ``SHARE``."""


def fingerprint(topic: bytes, payload: bytes, flags: int, properties: bytes = b"") -> bytes:
    """Return 16 bytes that stand for the content of a PUBLISH: everything but packet id and DUP."""
    head = b"%b\0%c%d\0" % (topic, flags & (QOS_BITS | RETAIN), len(properties))
    return blake2b(head + properties + payload, digest_size=16).digest()


def entries_of(raw: bytes, version: int = MQTT_3_1_1) -> list[ResendEntry]:
    """Return what is to be remembered of the PUBLISH packets in ``raw`` (an arrival's, so well formed), in order."""
    entries: list[ResendEntry] = []
    at = 0
    block = b""
    while at < len(raw):
        flags = raw[at] & 0xF
        size, at = read_variable(raw, at + 1)
        end = at + size
        if flags & QOS_BITS:
            payload = at + 2 + int.from_bytes(raw[at : at + 2], "big") + 2
            topic = raw[at + 2 : payload - 2]
            if pid := int.from_bytes(raw[payload - 2 : payload], "big"):
                if version == MQTT_5:
                    block, payload = properties.block(raw, payload)
                entries.append((pid, fingerprint(topic, raw[payload:end], flags, block)))
        at = end
    return entries


class Commit:
    """The mark of one commit: ``open`` until it has returned."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = True


class Entry:
    """One remembered message. ``commit``: the one that stores it; None for what a restart brought back."""

    __slots__ = ("commit", "digest", "pid")

    def __init__(self, pid: int, digest: bytes, commit: Commit | None) -> None:
        self.pid = pid
        self.digest = digest
        self.commit = commit

    @property
    def stored(self) -> bool:
        """Whether the commit has returned: until then a copy has to wait with it (O2)."""
        return self.commit is None or not self.commit.open


class Chunk:
    """What one read brought.

    ``end``: where its last acks end in the connection's output, None until all were written.
    ``unreleased``: messages of QoS 2 whose PUBREL has not come.
    """

    __slots__ = ("commit", "count", "end", "entries", "publishes", "size", "unreleased")

    def __init__(self, publishes: Sequence[Publish], count: int, size: int, commit: Commit) -> None:
        self.publishes: Sequence[Publish] | None = publishes
        self.count = count
        self.size = size
        self.commit = commit
        self.end: int | None = None
        self.unreleased = 0
        self.entries: Sequence[Entry] = ()

    def fold(self) -> Sequence[Entry]:
        """Replace the references by hashes."""
        if self.publishes is not None:
            self.entries = tuple(
                Entry(int.from_bytes(pid, "big"), fingerprint(topic, payload, flags, properties), self.commit)
                for topic, payload, flags, pid, _, _, properties in self.publishes
                if pid is not None
            )
            self.publishes = None
            self.size = 0
        return self.entries


class Shared:
    """What the memories of all clients share: ``messages``, and the bytes that are no hashes yet (``unfolded``).

    A budget of each (see :class:`waybill.mqtt.budget.Budget`), kept as plain numbers because every read counts.
    """

    __slots__ = ("limit", "messages", "unfolded")

    def __init__(self, limit: int = MEMORY_ENTRIES_ALL) -> None:
        self.limit = limit
        self.messages = 0
        self.unfolded = 0


class ClientMemory:
    """The memory of one client. Every method is cheap but those that hash.

    ``judge``, ``freeze``, and ``add`` past FOLD_BYTES.
    """

    __slots__ = (
        "_counts",
        "_newest",
        "_reacked",
        "_second",
        "_shared",
        "_unfolded",
        "frozen",
        "tail",
        "tail_count",
        "touched",
        "window",
    )

    def __init__(
        self, window: int = DUP_WINDOW, saved: Sequence[ResendEntry] = (), shared: Shared | None = None
    ) -> None:
        self.window = window
        self._shared = shared or Shared()
        self.frozen: dict[Entry, None] = {Entry(pid, digest, None): None for pid, digest in saved[-window:]}
        self.tail: list[Chunk] = []  # lists, because an empty deque takes 600 bytes, and every connection has these
        self.tail_count = 0
        self.touched = bool(saved)  # the store has a tail, or more frozen entries than are left
        self._unfolded = 0
        self._newest: dict[int, Entry] | None = None  # the index: only while it is needed
        self._counts: dict[bytes, int] = {}
        self._reacked: list[tuple[int, Entry]] = []
        self._second: dict[bytes, Chunk] = {}  # by id: QoS 2 of the tail whose PUBREL has not come
        self._shared.messages += len(self.frozen)
        if self.frozen:
            self._index()

    def __len__(self) -> int:
        return len(self.frozen) + self.tail_count

    def prove(self, acknowledged: int) -> None:
        """Forget what was acknowledged within the first ``acknowledged`` bytes sent to the present connection."""
        proven = 0
        for chunk in self.tail:
            if chunk.end is None or chunk.end > acknowledged:
                break
            self._drop(chunk)
            proven += 1
        del self.tail[:proven]
        while self._reacked and self._reacked[0][0] <= acknowledged:
            self._forget_frozen(self._reacked.pop(0)[1])
        if self._newest is not None and not self.tail_count and not self.frozen:
            self._newest = None
            self._counts.clear()

    def add(self, publishes: Sequence[Publish], count: int, size: int, commit: Commit) -> Chunk:
        """Remember ``count`` messages (those with a packet id) of a read of ``size`` bytes that ``commit`` stores."""
        size += PUBLISH * len(publishes)
        chunk = Chunk(publishes, count, size, commit)
        shared = self._shared
        shared.messages += count
        shared.unfolded += size
        self.touched = True
        self.tail.append(chunk)
        self.tail_count += count
        self._unfolded += size
        if self._newest is not None:
            self._fold(chunk)
            for entry in chunk.entries:
                self._enter(entry)
        elif self._unfolded > FOLD_BYTES or self._unfolded > FOLD_BYTES_ALL - shared.unfolded:
            for each in self.tail:
                self._fold(each)
        own, left = self.tail_count + len(self.frozen), shared.limit - shared.messages
        if own > self.window or own > left:
            self._trim(min(self.window, max(SHARE, left)))
        return chunk

    def hold(self, chunk: Chunk, packet_ids: Sequence[bytes]) -> None:
        """Note the ids of QoS 2 in a chunk: its acks are not all written before the last PUBCOMP."""
        chunk.unreleased = len(packet_ids)
        for pid in packet_ids:
            self._second[pid] = chunk

    def release(self, pid: bytes) -> Chunk | Entry | None:
        """PUBREL came: return what the end of its PUBCOMP will prove, a whole chunk or one frozen message."""
        chunk = self._second.pop(pid, None)
        if chunk is not None:
            chunk.unreleased -= 1
            return None if chunk.unreleased else chunk
        return (self._newest or {}).get(int.from_bytes(pid, "big")) if self.frozen else None

    def judge(self, pid: bytes, topic: bytes, payload: bytes, flags: int, properties: bytes = b"") -> Entry | None:
        """Return the remembered message of which this PUBLISH with DUP=1 is a copy; None: it is to be stored."""
        if not self.tail_count and not self.frozen:
            return None
        if self._newest is None:
            self._index()
        newest = (self._newest or {}).get(int.from_bytes(pid, "big"))
        if newest is None:
            return None
        digest = fingerprint(topic, payload, flags, properties)
        return newest if newest.digest == digest and self._counts.get(digest) == 1 else None

    def reacknowledged(self, entry: Entry, end: int) -> None:
        """Note that the ack of a copy of ``entry`` ends at ``end`` in the connection's output."""
        if entry in self.frozen:
            self._reacked.append((end, entry))

    def freeze(self) -> bool:
        """End the present connection.

        What is unproven is frozen. Says whether the store must be told (ResendFrozen).
        """
        for chunk in self.tail:
            self._fold(chunk)
            for entry in chunk.entries:
                self.frozen[entry] = None
        self.tail.clear()
        self.tail_count = 0
        self._reacked.clear()
        self._second.clear()
        if self.frozen:
            self._index()
        changed = self.touched
        self.touched = False
        return changed

    def disconnected(self) -> None:
        """Forget everything whose ack was sent (DISCONNECT shows that it arrived); what is uncommitted stays."""
        for chunk in [chunk for chunk in self.tail if not chunk.commit.open]:
            self.tail.remove(chunk)
            self._drop(chunk)
        for entry in [entry for entry in self.frozen if entry.stored]:
            self._forget_frozen(entry)

    def clear(self) -> None:
        """Forget everything: the client begins a new session and sends nothing again (MQTT 5.0, 4.4)."""
        self.forget()
        self.tail.clear()
        self._reacked.clear()
        self._second.clear()
        self._counts.clear()
        self._newest = None
        self.touched = self.touched or bool(len(self))
        self.frozen.clear()
        self.tail_count = self._unfolded = 0

    def forget(self) -> None:
        """Give back what is shared: this memory is at its end, or emptied."""
        self._shared.messages -= len(self)
        self._shared.unfolded -= self._unfolded

    def failed(self, commit: Commit) -> None:
        """``commit`` failed: its messages were never stored (O2)."""
        for chunk in [chunk for chunk in self.tail if chunk.commit is commit]:
            self.tail.remove(chunk)
            self._drop(chunk)
        for entry in [entry for entry in self.frozen if entry.commit is commit]:
            self._forget_frozen(entry)
        if self._newest is not None:
            self._index()  # an older use of an id may be its newest again

    def saved(self) -> tuple[ResendEntry, ...]:
        """Return the frozen messages as the store keeps them."""
        return tuple((entry.pid, entry.digest) for entry in self.frozen)

    def _entries(self) -> Iterator[Entry]:
        yield from self.frozen
        for chunk in self.tail:
            yield from self._fold(chunk)

    def _fold(self, chunk: Chunk) -> Sequence[Entry]:
        self._unfolded -= chunk.size
        self._shared.unfolded -= chunk.size
        return chunk.fold()

    def _index(self) -> None:
        self._newest = {}
        self._counts.clear()
        for entry in list(self._entries()):
            self._enter(entry)

    def _enter(self, entry: Entry) -> None:
        newest = self._newest
        if newest is None:
            return
        superseded = newest.get(entry.pid)
        if superseded is not None and superseded in self.frozen:
            self._forget_frozen(superseded)
        newest[entry.pid] = entry
        self._counts[entry.digest] = self._counts.get(entry.digest, 0) + 1

    def _leave(self, entry: Entry) -> None:
        newest = self._newest
        if newest is None:
            return
        if newest.get(entry.pid) is entry:
            del newest[entry.pid]
        left = self._counts[entry.digest] - 1
        if left:
            self._counts[entry.digest] = left
        else:
            del self._counts[entry.digest]

    def _drop(self, chunk: Chunk) -> None:
        """Undo a chunk that has left the tail."""
        if chunk.unreleased:
            self._second = {pid: each for pid, each in self._second.items() if each is not chunk}
        self.tail_count -= chunk.count
        self._unfolded -= chunk.size
        self._shared.messages -= chunk.count
        self._shared.unfolded -= chunk.size
        if self._newest is not None:
            for entry in chunk.entries:
                self._leave(entry)

    def _forget_frozen(self, entry: Entry) -> None:
        if entry in self.frozen:
            del self.frozen[entry]
            self._shared.messages -= 1
            self._leave(entry)
            self.touched = True

    def _trim(self, most: int) -> None:
        """Forget the oldest beyond ``most``."""
        excess = len(self) - most
        for entry in list(self.frozen)[:excess]:
            self._forget_frozen(entry)
        excess = len(self) - most
        while excess > 0:
            chunk = self.tail[0]
            if chunk.count <= excess:
                self._drop(self.tail.pop(0))
                excess -= chunk.count
                continue
            for entry in self._fold(chunk)[:excess]:
                self._leave(entry)
            chunk.entries = chunk.entries[excess:]
            chunk.count -= excess
            self.tail_count -= excess
            self._shared.messages -= excess
            excess = 0

"""Frames that a node makes itself, of what reached the cloud without a gateway.

They are journaled under the name ``node:{random}``, drawn at each start, in one epoch without a previous one; a lane a
frames partition (``devices.3``, ``control.3``), so that a device keeps its partition whichever node it connects to.
Their order is ``arrival``: the router never holds them, and a hole in their seqs is no loss, because nothing of a frame
that was not journaled was acknowledged. So where partitions are added, a device's messages keep theirs while the node
runs: in another one they could overtake. States of commands go to who decides on them now (C1).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import msgspec

from cloud_ingest.journal.keys import partition_of
from waybill.errors import Refused, Unavailable
from waybill.frames import Row, encode_plain
from waybill.frames.header import MAX_EPOCH
from waybill.mqtt.state import Publish
from waybill.wire import COMMAND_STATUS_TOPIC, CONTROL_LANE, NODE, CommandStatus

log = logging.getLogger(__name__)

LANE: Final = "devices"
FRAME_BYTES: Final = 256 << 10
FRAME_MESSAGES: Final = 4_000
"""A frame is cut at so many bytes of payloads and topics, or messages."""

PAUSES: Final = (0.1, 5.0)
"""Seconds until what could not be journaled is tried again: at first, and at most (doubling)."""

_encode = msgspec.json.Encoder().encode


class Journal(Protocol):
    """The part of a :class:`~cloud_ingest.journal.port.Log` that this needs."""

    @property
    def partitions(self) -> int:
        """How many frames partitions there are."""

    async def append_frame(self, gateway: str, frame: bytes, partition: int | None = None) -> None:
        """Journal a frame; durable on return. Raises Unavailable, Refused."""


class Item(NamedTuple):
    """A message to be journaled. ``device``: whose partition it goes to. ``wall_ms``: when it came, since 1970 UTC.

    ``flags``: as in a frame's body. ``properties``: the block of MQTT 5.
    """

    device: str
    topic: str
    client: str
    wall_ms: int
    flags: int
    payload: bytes
    properties: bytes = b""
    lane: str = LANE


def item(client: str, wall_ms: int, publish: Publish) -> Item:
    """Return a PUBLISH of ``client`` as a message of its own partition."""
    topic, payload, flags, _, _, _, properties = publish
    kept = flags >> 1 & 3 | (flags & 1) << 2 | flags & 8
    return Item(client, topic.decode(), client, wall_ms, kept, bytes(payload), properties)


def status_item(status: CommandStatus) -> Item:
    """Return the state of a command for a device without a gateway as a control message."""
    return Item(status.device, COMMAND_STATUS_TOPIC, "", status.at_ms, 1 << 0, _encode(status), b"", CONTROL_LANE)


@dataclass(slots=True)
class Counters:
    """Since the start. ``bytes``: of frames."""

    messages: int = 0
    frames: int = 0
    bytes: int = 0
    retried: int = 0


class NodeFrames:
    """Makes and journals the frames of one node."""

    def __init__(self, journal: Journal, closed: Callable[[], str]) -> None:
        """``closed``: why nothing can be journaled at present, or empty."""
        self.name = f"{NODE}{secrets.token_hex(8)}"
        self.counters = Counters()
        self.fault = ""
        self._epoch = secrets.randbelow(MAX_EPOCH) + 1
        self._journal = journal
        self._closed = closed
        self._partitions = 0
        self._next: dict[str, int] = {}
        self._ending = asyncio.Event()

    async def write(self, items: Iterable[Item]) -> None:
        """Journal ``items``, those of a device in their order; durable on return, however long that takes.

        Raises Unavailable after ``end``: then nothing of it may be acknowledged.
        """
        lanes: dict[tuple[str, int], list[Item]] = {}
        now = self._journal.partitions
        self._partitions = self._partitions or now
        for each in items:
            count = self._partitions if each.lane == LANE else now
            lanes.setdefault((each.lane, partition_of(each.device.encode(), count)), []).append(each)
        work = [self._write(f"{lane}.{number}", number, mine) for (lane, number), mine in lanes.items()]
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _write(self, lane: str, partition: int, items: Sequence[Item]) -> None:
        for part in _cut(items):
            frame = self._frame(lane, part)
            await self._append(partition, frame)
            self.counters.messages += len(part)
            self.counters.frames += 1
            self.counters.bytes += len(frame)

    def _frame(self, lane: str, items: Sequence[Item]) -> bytes:
        first = self._next.get(lane, 1)
        self._next[lane] = first + len(items)
        sources: dict[tuple[str, str], int] = {}
        base = items[0].wall_ms
        rows: list[Row] = [
            (
                sources.setdefault((each.topic, each.client), len(sources)),
                each.wall_ms - base,
                each.flags,
                each.payload,
                each.properties,
            )
            for each in items
        ]
        return encode_plain(
            epoch=self._epoch,
            prev_epoch=0,
            prev_last=0,
            oldest_epoch=self._epoch,
            lane=lane,
            order="arrival",
            durability="every-commit",
            clock="synced",
            first=first,
            base_ms=base,
            sources=list(sources),
            rows=rows,
        )

    async def _append(self, partition: int, frame: bytes) -> None:
        """Journal one frame, again and again: written twice, its seqs tell. Raises Unavailable after ``end``."""
        pause, longest = PAUSES
        while True:
            fault = self._closed()
            if not fault:
                try:
                    await self._journal.append_frame(self.name, frame, partition)
                except (Unavailable, Refused) as error:  # refused: the topic's settings, which a person has to mend
                    fault = str(error)
            self._note(fault)
            if not fault:
                return
            self.counters.retried += 1
            try:
                async with asyncio.timeout(pause):
                    await self._ending.wait()
            except TimeoutError:
                pause = min(pause * 2, longest)
            else:
                raise Unavailable(f"not journaled: {fault}")

    def _note(self, fault: str) -> None:
        if fault and not self.fault:
            log.warning("messages of devices wait for the journal: %s", fault)
        elif self.fault and not fault:
            log.info("messages of devices are journaled again")
        self.fault = fault

    def end(self) -> None:
        """Try nothing again any more."""
        self._ending.set()


def _cut(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Cut what goes into one frame after the other."""
    start = size = 0
    for at, each in enumerate(items):
        cost = len(each.payload) + len(each.topic) + len(each.properties)
        if at > start and (size + cost > FRAME_BYTES or at - start >= FRAME_MESSAGES):
            yield items[start:at]
            start, size = at, 0
        size += cost
    if start < len(items):
        yield items[start:]

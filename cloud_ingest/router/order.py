"""Frames that wait: in a ``fifo`` lane for what they follow (R7), in any for a dictionary (R10). Pure.

They are held in memory, and stay in the journal: the committed offset never passes a held frame, so a restart reads it
again. Changes are made on a :class:`HeldDraft` and adopted when the commit has returned (R3).
"""

from __future__ import annotations

from bisect import insort
from typing import Final, NamedTuple

from cloud_ingest.journal.port import JournalRecord
from waybill.frames import FrameHeader

OVERHEAD: Final = 1024
"""Bytes that a held frame costs besides its own."""

Lane = tuple[str, str]
"""``(gateway, lane)``."""


class HeldFrame(NamedTuple):
    """A frame that waits. Compared by place, its first seq in a ``fifo`` lane and 0 in others, then by offset."""

    place: int
    offset: int
    record: JournalRecord
    header: FrameHeader

    @property
    def lane(self) -> Lane:
        """Whose frame it is."""
        return (self.record.gateway, self.header.lane)


Queues = dict[int, list[HeldFrame]]
"""Held frames of one lane: epoch -> frames in the order in which they go."""


class Held:
    """The held frames of a partition, as of the last commit. ``frames``: by offset, oldest first. ``size``: bytes."""

    def __init__(self) -> None:
        """Start with none."""
        self.frames: dict[int, HeldFrame] = {}
        self.lanes: dict[Lane, Queues] = {}
        self.size = 0

    def adopt(self, draft: HeldDraft) -> None:
        """Make ``draft`` the truth."""
        self.frames = draft.frames
        self.size = draft.size
        for lane, queues in draft.touched.items():
            if queues:
                self.lanes[lane] = queues
            else:
                self.lanes.pop(lane, None)


class HeldDraft:
    """Changes to the held frames that nobody sees until they are adopted."""

    def __init__(self, held: Held) -> None:
        """Start with no changes to ``held``."""
        self._held = held
        self.frames = held.frames
        self.size = held.size
        self.touched: dict[Lane, Queues] = {}

    @property
    def oldest(self) -> HeldFrame | None:
        """The held frame with the lowest offset."""
        return next(iter(self.frames.values()), None)

    def queues(self, lane: Lane) -> Queues:
        """Return the held frames of ``lane``, to be read only."""
        touched = self.touched.get(lane)
        return self._held.lanes.get(lane, {}) if touched is None else touched

    def add(self, record: JournalRecord, header: FrameHeader) -> None:
        """Hold a frame."""
        frame = HeldFrame(header.first if header.order == "fifo" else 0, record.offset, record, header)
        insort(self._edit(frame.lane).setdefault(header.epoch, []), frame)
        self.frames[record.offset] = frame
        self.size += len(record.frame) + OVERHEAD

    def remove(self, frame: HeldFrame) -> None:
        """Let a frame go."""
        queues = self._edit(frame.lane)
        queue = queues[frame.header.epoch]
        queue.remove(frame)
        if not queue:
            del queues[frame.header.epoch]
        del self.frames[frame.offset]
        self.size -= len(frame.record.frame) + OVERHEAD

    def _edit(self, lane: Lane) -> Queues:
        if self.frames is self._held.frames:
            self.frames = self.frames.copy()
        queues = self.touched.get(lane)
        if queues is None:
            queues = self.touched[lane] = {
                epoch: list(queue) for epoch, queue in self._held.lanes.get(lane, {}).items()
            }
        return queues

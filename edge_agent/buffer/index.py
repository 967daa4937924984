"""What the buffer knows of its file without asking it: per lane the epochs, how far they go, what is settled. Pure.

Changed only in the event loop, and only by what a transaction that returned has done (``Index.apply``) or the cloud
has acknowledged (``Index.settle``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from edge_agent.buffer.losses import Key
from edge_agent.buffer.port import Backlog, Position
from edge_agent.buffer.spans import SpanSet
from waybill.wire import Receipt, Span


@dataclass(slots=True)
class Track:
    """One epoch's part of one lane.

    ``last``: the last seq assigned. ``settled``: what left the buffer or may leave it. ``leased``: what was read for
    sending since the start (B5). ``delivered``: 1..delivered were acknowledged by the cloud; a lower bound. ``boot``:
    the boot id that its stamps are of.
    """

    ordinal: int
    epoch: int
    boot: str
    prev_epoch: int
    prev_last: int
    last: int = 0
    settled: SpanSet = field(default_factory=SpanSet)
    leased: SpanSet = field(default_factory=SpanSet)
    delivered: int = 0

    @property
    def pending(self) -> int:
        """How many messages wait."""
        return self.last - self.settled.total


@dataclass(slots=True)
class LaneIndex:
    """One lane: its epochs, oldest first; bytes stored; wall time of its oldest message.

    ``dropped``, ``expired``: messages since the start that left so, and were declared.
    """

    tracks: list[Track] = field(default_factory=list)
    bytes: int = 0
    oldest_ms: int | None = None
    dropped: int = 0
    expired: int = 0


@dataclass(slots=True)
class Tail:
    """Counters of a client's resend memory in this epoch (O3).

    ``total``: messages counted; ``low``: those before it are proven acknowledged; ``blocks``: chunks of it on disk;
    ``frozen``: whether there are frozen entries.
    """

    total: int = 0
    low: int = 0
    blocks: int = 0
    frozen: bool = False

    def copy(self) -> Tail:
        """Return one with the same counts."""
        return Tail(self.total, self.low, self.blocks, self.frozen)

    @property
    def remembers(self) -> bool:
        """Whether anything of the client is to be kept."""
        return self.frozen or self.low < self.total


@dataclass(slots=True)
class Gone:
    """Messages that leave by a declaration. ``bytes``: as stored. ``expired``: by their TTL, else for want of room."""

    lane: str
    track: Track
    first: int
    last: int
    bytes: int
    reason: str
    expired: bool = False


@dataclass(slots=True)
class Outcome:
    """What one transaction changed, to be applied once it has returned.

    ``lasts``: per lane the new last seq. ``tails``: None for a client that can be forgotten. ``added`` and ``removed``:
    bytes per lane. ``oldest``: wall times of lanes' oldest messages, where they may have changed. ``gone``: what was
    declared as lost; ``losses``: all that is declared and not said, None where that did not change.
    """

    lasts: dict[str, int] = field(default_factory=dict)
    tails: dict[str, Tail | None] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    oldest: dict[str, int | None] = field(default_factory=dict)
    gone: list[Gone] = field(default_factory=list)
    losses: dict[Key, Receipt] | None = None
    messages: int = 0
    blocks: int = 0
    deleted: int = 0


class Index:
    """All lanes of one buffer, and the present epoch."""

    def __init__(self, ordinal: int, epoch: int, boot: str, lanes: Iterable[str]) -> None:
        self.ordinal = ordinal
        self.epoch = epoch
        self.boot = boot
        self.lanes: dict[str, LaneIndex] = {name: LaneIndex() for name in lanes}
        self.tails: dict[str, Tail] = {}
        self.losses: dict[Key, Receipt] = {}
        self.transactions = 0

    def upcoming(self, lane: str) -> Track:
        """Return the track that new messages of ``lane`` belong to; not part of the index until something is in it."""
        known = self.lanes.get(lane)
        tracks = known.tracks if known else []
        if tracks and tracks[-1].ordinal == self.ordinal:
            return tracks[-1]
        newest = tracks[-1] if tracks else None
        prev = (newest.epoch, newest.last) if newest else (0, 0)
        return Track(self.ordinal, self.epoch, self.boot, *prev)

    def apply(self, outcome: Outcome) -> None:
        """Take over what a transaction did that has returned."""
        for name, last in outcome.lasts.items():
            track = self.upcoming(name)
            lane = self.lanes.setdefault(name, LaneIndex())
            if not track.last:
                lane.tracks.append(track)
            track.last = last
        for client, tail in outcome.tails.items():
            if tail is None:
                self.tails.pop(client, None)
            else:
                self.tails[client] = tail
        for name, size in outcome.added.items():
            self.lanes[name].bytes += size
        for name, size in outcome.removed.items():
            self.lanes[name].bytes -= size
        for name, wall_ms in outcome.oldest.items():
            self.lanes[name].oldest_ms = wall_ms
        for gone in outcome.gone:
            self._forget(gone)
        if outcome.losses is not None:
            self.losses = outcome.losses
        self.transactions += 1

    def _forget(self, gone: Gone) -> None:
        lane = self.lanes[gone.lane]
        if track := next((track for track in lane.tracks if track.ordinal == gone.track.ordinal), None):
            track.settled.add(gone.first, gone.last)
        count = gone.last - gone.first + 1
        if gone.expired:
            lane.expired += count
        else:
            lane.dropped += count
        self.forget_done(gone.lane)

    def waiting(self, lane: str) -> int:
        """Return how many messages of ``lane`` are not settled."""
        known = self.lanes.get(lane)
        return sum(track.pending for track in known.tracks) if known else 0

    def track(self, lane: str, epoch: int) -> Track | None:
        """Return the track of an epoch in a lane."""
        known = self.lanes.get(lane)
        return next((track for track in known.tracks if track.epoch == epoch), None) if known else None

    def clamp(self, span: Span) -> tuple[Track, int, int] | None:
        """Return the part of a span that was assigned; None where there is none."""
        track = self.track(span.lane, span.epoch)
        if track is None:
            return None
        first, last = max(1, span.first), min(span.last, track.last)
        return (track, first, last) if first <= last else None

    def next_unsettled(self, lane: str, after: Position | None) -> tuple[Track, int, int] | None:
        """Return the next run of unsettled messages behind ``after``: their track, first and last seq."""
        known = self.lanes.get(lane)
        for track in known.tracks if known else ():
            start = 1
            if after is not None:
                if track.ordinal < after.ordinal:
                    continue
                if track.ordinal == after.ordinal:
                    start = after.seq + 1
            run = track.settled.next_gap(start, track.last) if start <= track.last else None
            if run:
                return track, *run
        return None

    def newest_unsettled(
        self, lane: str, under_way: Sequence[tuple[int, int, int]], count: int, size: int
    ) -> tuple[Track, int, int] | None:
        """Return the last ``count`` messages, or about ``size`` bytes, of the newest run that is to be sent."""
        known = self.lanes.get(lane)
        for track in reversed(known.tracks if known else ()):
            taken = sorted((first, last) for ordinal, first, last in under_way if ordinal == track.ordinal)
            end = track.last
            while run := track.settled.last_gap(end):
                first, last = run
                ahead = [one for one in taken if one[0] <= last and first <= one[1]]
                if ahead and ahead[-1][1] >= last:
                    end = ahead[-1][0] - 1
                    continue
                first = ahead[-1][1] + 1 if ahead else first
                waiting = sum(one.pending for one in self.lanes[lane].tracks)
                fit = size * waiting // max(1, self.lanes[lane].bytes)
                return track, max(first, last + 1 - max(1, min(count, fit))), last
        return None

    def settled_elsewhere(self) -> Iterator[tuple[str, Track, int, int]]:
        """Yield lane, track, first and last of what is settled and not known to be in the cloud: losses, mostly."""
        for name, lane in self.lanes.items():
            for track in lane.tracks:
                for first, last in track.settled:
                    if last > track.delivered:
                        yield name, track, max(first, track.delivered + 1), last

    def oldest_epoch(self, lane: str) -> int:
        """Return the oldest epoch with unsettled messages in ``lane`` (E4); the present one where there are none."""
        return next((track.epoch for track in self.lanes[lane].tracks if track.pending), self.epoch)

    def forget_done(self, lane: str) -> None:
        """Drop tracks that hold nothing any more, but for the lane's newest (E2)."""
        tracks = self.lanes[lane].tracks
        if len(tracks) > 1 and not tracks[0].pending:
            self.lanes[lane].tracks = [track for track in tracks[:-1] if track.pending] + tracks[-1:]

    def backlog(self) -> list[Backlog]:
        """Return what waits in every lane."""
        return [
            Backlog(
                name,
                count,
                lane.bytes if count else 0,
                lane.oldest_ms if count else None,
                lane.dropped,
                lane.expired,
            )
            for name, lane in self.lanes.items()
            for count in (self.waiting(name),)
        ]

"""How long it will last: until the buffer is full, and until its backlog is gone. Pure: counts and times come in.

Rates are means that fade, and what counts is what the disk sees: pages in use, not payload. Those of filling and
draining begin anew when the uplink comes or goes, and with a backlog while it is there. In an outage they fade within
an hour, so that they are of the whole outage at first; else within half a minute: a link may change at any time.
``None`` stands for never at this rate, and for not known yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

HOUR: Final = 3600.0
HALF_MINUTE: Final = 30.0

ENOUGH: Final = 10.0
"""Seconds that a mean must be of."""

BEHIND: Final = 10.0
"""Seconds of age, beside the linger, below which what waits is no backlog."""

PAGE: Final = 4096
"""Bytes of a page of the buffer's file."""

_CELL, _ENTRY = 24, 34  # what a row costs beside its blobs, and its entry in the index: lane, ordinal, first


class Space(NamedTuple):
    """The buffer on the disk: bytes that hold something, and bytes that it may still take."""

    used: int
    left: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in a lane. ``bytes``: as stored; ``cap``: of them, 0 where only the whole buffer's counts.

    ``behind``: its oldest message is older than it should be. ``shut``: it is not sent for now.
    """

    lane: str
    count: int
    bytes: int
    cap: int = 0
    behind: bool = True
    shut: bool = False


class Arrived(NamedTuple):
    """What came in since the start."""

    bytes: int
    blocks: int


class Mean:
    """The mean rate of a count. ``fade``: seconds after which a third of the weight is left."""

    def __init__(self, fade: float) -> None:
        self.restart(fade)

    def restart(self, fade: float) -> None:
        """Begin anew."""
        self._fade = fade
        self._sum = self._seconds = 0.0

    def add(self, seconds: float, amount: float) -> None:
        """Note by how much the count changed within the last ``seconds``."""
        kept = math.exp(-seconds / self._fade)
        self._sum = self._sum * kept + amount
        self._seconds = self._seconds * kept + seconds

    @property
    def rate(self) -> float | None:
        """A second; None where too little is known."""
        return self._sum / self._seconds if self._seconds >= ENOUGH else None


class _Lane:
    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self.filling, self.draining = Mean(HOUR), Mean(HOUR)


class Outlook:
    """What one agent's buffer will come to."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._online = False
        self._space = Space(0, 0)
        self._arrived = Arrived(0, 0)
        self._filling = Mean(HOUR)
        self._bytes_in, self._blocks_in = Mean(HOUR), Mean(HOUR)
        self._draining = Mean(HOUR)
        self._backlog = False
        self._lanes: dict[str, _Lane] = {}

    def sample(self, now: float, space: Space, arrived: Arrived, lanes: Iterable[Waiting], *, online: bool) -> None:
        """Take what is so now; every few seconds. ``now``: seconds, monotonic. ``online``: the uplink is."""
        seconds = now - self._at if self._at is not None else 0.0
        lanes = list(lanes)
        backlog = online and any(waiting.count and waiting.behind and not waiting.shut for waiting in lanes)
        if online != self._online or (backlog and not self._backlog):
            fade = HALF_MINUTE if online else HOUR
            for mean in (self._filling, self._draining):
                mean.restart(fade)
            for lane in self._lanes.values():
                lane.filling.restart(fade)
                lane.draining.restart(fade)
        self._online, self._backlog = online, backlog
        if seconds > 0:
            self._filling.add(seconds, space.used - self._space.used)
            self._bytes_in.add(seconds, arrived.bytes - self._arrived.bytes)
            self._blocks_in.add(seconds, arrived.blocks - self._arrived.blocks)
        fell = 0
        for waiting in lanes:
            lane = self._lanes.setdefault(waiting.lane, _Lane(waiting))
            before, lane.waiting = lane.waiting, waiting
            if seconds > 0:
                lane.filling.add(seconds, waiting.bytes - before.bytes)
                lane.draining.add(seconds, before.count - waiting.count)
            if not waiting.shut and not before.shut:
                fell += before.count - waiting.count
        if seconds > 0:
            self._draining.add(seconds, fell)
        self._at, self._space, self._arrived = now, space, arrived

    @property
    def known(self) -> bool:
        """Whether enough was seen of how it fills and drains now; until then None means not known yet."""
        return self._filling.rate is not None

    @property
    def holds_s(self) -> float | None:
        """Seconds until the buffer is full, at the rate at which it fills."""
        return _until(self._space.left, self._filling.rate)

    @property
    def outage_s(self) -> float | None:
        """Seconds until the buffer is full if nothing leaves it from now on."""
        arriving, blocks = self._bytes_in.rate, self._blocks_in.rate
        if not arriving or not blocks:
            return None
        return _until(self._space.left, blocks * on_disk(arriving / blocks))

    @property
    def drained_s(self) -> float | None:
        """Seconds until the backlog is gone, but for lanes that are shut; 0 where there is none.

        Without the uplink all that waits is backlog, however young.
        """
        lanes = [lane.waiting for lane in self._lanes.values() if not lane.waiting.shut]
        if not any(waiting.count and (waiting.behind or not self._online) for waiting in lanes):
            return 0.0
        return _until(sum(waiting.count for waiting in lanes), self._draining.rate) if self._online else None

    def lane(self, name: str) -> tuple[float | None, float | None]:
        """Return the seconds until a lane is at its own cap, and until its backlog is gone."""
        lane = self._lanes.get(name)
        if lane is None:
            return None, None
        waiting = lane.waiting
        full = _until(max(0, waiting.cap - waiting.bytes), lane.filling.rate) if waiting.cap else None
        if not waiting.count or not waiting.behind:
            return full, 0.0
        moving = self._online and not waiting.shut
        return full, _until(waiting.count, lane.draining.rate) if moving else None


def on_disk(size: float) -> float:
    """Return the bytes of the file that a block of ``size`` bytes takes, its share of half-filled pages included.

    SQLite's file format, 1.5 and 1.6: a row that is larger than a page keeps a part of itself in the tree, which fills
    up a last page where it can, and the rest in pages of its own.
    """
    cell = size + _CELL
    if cell <= PAGE - 35:
        return PAGE / (PAGE // cell) + _ENTRY
    least = (PAGE - 12) * 32 // 255 - 23
    inside = least + (cell - least) % (PAGE - 4)
    if inside > PAGE - 35:
        inside = least
    pages = math.ceil((cell - inside) / (PAGE - 4))
    return pages * PAGE + PAGE / (PAGE // (inside + 4)) + _ENTRY


def _until(amount: float, rate: float | None) -> float | None:
    """Return when ``amount`` is used up at ``rate``; None: never."""
    return max(0.0, amount) / rate if rate is not None and rate > 0 else None

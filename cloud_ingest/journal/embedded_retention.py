"""What the embedded log deletes, and when (D4). Each function runs in the writer's thread.

- Frames: once routed and KEEP_FRAMES_MS old; where the file is over half full, or the disk is, once routed. Never
  before (R8).
- Entries of compacted topics that were forgotten: KEEP_FRAMES_MS later.
- Records of all other topics: by age and by what the file takes, where the configuration says so, the oldest first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from cloud_ingest.config import Topics
from cloud_ingest.journal import embedded_file as file

KEEP_FRAMES_MS: Final = 7 * 86_400_000

AT_ONCE: Final = 2_000
"""Records that one call deletes of a partition at most; it says so where there may be more."""


class Retention(NamedTuple):
    """How long records of data topics are kept. ``age_ms``, ``size`` (bytes of the file): 0 while there is room."""

    age_ms: int = 0
    size: int = 0


def prune(
    db: sqlite3.Connection,
    path: Path,
    known: Collection[file.Topic],
    topics: Topics,
    now_ms: int,
    retention: Retention,
    *,
    full: bool,
    short: bool,
) -> bool:
    """Delete what need not be kept of the topics ``known``; tell whether there may be more.

    ``short``: the disk has no room; then one record of a partition at once, so that the write-ahead log stays small.
    """
    at_once = 1 if short else AT_ONCE
    frames = next((topic for topic in known if topic.name == topics.frames), None)
    data = data_topics(known, topics)
    more = frames is not None and prune_frames(db, frames, topics.partitions, now_ms, at_once, full=full)
    prune_forgotten(db, now_ms)
    return prune_data(db, path, data, topics.partitions, now_ms, retention, at_once) or more


def data_topics(known: Iterable[file.Topic], topics: Topics) -> list[file.Topic]:
    """Return which of ``known`` retention is about: routed topics and dead letters."""
    kept = {topics.frames, topics.commands, topics.command_status}
    return [topic for topic in known if not topic.compact and topic.name not in kept]


def prune_frames(
    db: sqlite3.Connection, frames: file.Topic, partitions: int, now_ms: int, at_once: int, *, full: bool
) -> bool:
    """Delete routed frames that are old, or all of them where the file is ``full``; tell whether there may be more."""
    before = now_ms + 1 if full else now_ms - KEEP_FRAMES_MS
    more = False
    for partition in range(partitions):
        if found := db.execute(file.SQL["routed"], (partition,)).fetchone():
            low, high = file.record_id(frames.number, partition, 0), file.record_id(frames.number, partition, found[0])
            more |= db.execute(file.SQL["prune"], (low, high, before, at_once)).rowcount >= at_once
    return more


def prune_forgotten(db: sqlite3.Connection, now_ms: int) -> None:
    """Delete what says that an entry of a compacted topic was forgotten."""
    db.execute(file.SQL["prune_compacted"], (now_ms - KEEP_FRAMES_MS,))


def prune_data(
    db: sqlite3.Connection,
    path: Path,
    topics: Collection[file.Topic],
    partitions: int,
    now_ms: int,
    retention: Retention,
    at_once: int,
) -> bool:
    """Delete the oldest records of ``topics`` that ``retention`` does not keep; tell whether there may be more."""
    places = [(topic.number, partition) for topic in topics for partition in range(partitions)]
    bounds = [(file.record_id(*place, 0), file.record_id(place[0], place[1] + 1, 0)) for place in places]
    more = False
    if retention.age_ms:
        for low, high in bounds:
            gone = db.execute(file.SQL["prune"], (low, high, now_ms - retention.age_ms, at_once)).rowcount
            more |= gone >= at_once
    if retention.size and file.used_bytes(db, path) > retention.size:
        oldest: tuple[int, int, int] | None = None
        for low, high in bounds:
            if found := db.execute(file.SQL["first"], (low, high)).fetchone():
                oldest = min(oldest or (found[0], low, high), (found[0], low, high))
        if oldest is not None:
            _, low, high = oldest
            more |= db.execute(file.SQL["prune"], (low, high, now_ms + 1, at_once)).rowcount > 0
    return more

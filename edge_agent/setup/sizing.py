"""``waybill edge plan``: what so many messages need of disk, card and data plan. Pure: messages in, figures out.

Bytes on the link come from encoding the messages with the agent's own codec. The rest is measured constants:

==================  ===================================================================================================
``COMMIT_BYTES``    written to flash by a commit, however little is in it; ``CLIENT_BYTES`` more for each client with
                    messages in it, and each byte ``WRITTEN_TIMES``: docs/configuration.md, "Flash"; held to within
                    40 % by tests/system/test_sizing.py
``JOURNAL``         what a file system writes for itself: edge_agent/flash.py
``STORED_TIMES``    bytes of the buffer's file a byte of a message, and ``BLOCK_BYTES`` a commit: the same test
``FRAME_BYTES``     on the wire beside a frame: its headers and those of its ack, both ways: docs/bench.md, "the uplink"
``PING_BYTES``      a ping and its answer: docs/data-plan.md
==================  ===================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from edge_agent.forward.dictionaries import FEWEST, Sample, train
from waybill.frames import Dictionary, Row, encode_plain, in_columns

COMMIT_BYTES: Final = 17_000
CLIENT_BYTES: Final = 1_750
WRITTEN_TIMES: Final = 2.2
JOURNAL: Final = 1.1
STORED_TIMES: Final = 1.5
BLOCK_BYTES: Final = 120
FRAME_BYTES: Final = 280
PING_BYTES: Final = 204
SEGMENTS: Final = 1.055
"""TCP's and IP's headers of a long stream."""

PACKET: Final = 4
"""Bytes of an MQTT PUBLISH beside topic and payload, about."""

DAY: Final = 86_400.0
MONTH: Final = 30 * DAY
YEAR: Final = 365.25 * DAY

FRAMES: Final = 400
"""Frames of a size that are encoded at most."""

LINGERS: Final = (200, 1_000, 10_000, 60_000)
"""What ``linger_ms`` may be: the same messages in fewer frames."""


class Message(NamedTuple):
    """A topic and a payload."""

    topic: str
    payload: bytes


class Given(msgspec.Struct, frozen=True):
    """What is asked. ``rate``: messages a second of all ``devices``. ``gather_ms``, ``max_bytes``: of ``[buffer]``.

    ``frame_messages``, ``linger_ms``: of ``[forward]``. ``ping_s``: seconds after which a silent uplink pings.
    ``outage_s``: how long it may be away. ``tbw``: 10¹² bytes that may be written to the card.
    """

    rate: float
    devices: int
    gather_ms: int
    max_bytes: int
    frame_messages: int
    linger_ms: int
    ping_s: int
    outage_s: float
    tbw: float


class Traffic(msgspec.Struct, frozen=True):
    """A month on the wire, both ways, 10⁶ bytes, for one ``linger_ms``; pings included, where they are due.

    ``a_frame``: messages of a frame. A dictionary of None: there were too few messages to train one, or none pays.
    """

    linger_ms: int
    a_frame: int
    plain: float
    columns: float
    plain_dictionary: float | None
    columns_dictionary: float | None


class Sizing(msgspec.Struct, frozen=True):
    """What it comes to. Bytes, but where a name says otherwise.

    ``size``: of a payload, the mean. ``outage_bytes``: of the buffer for the outage; ``holds_days``: how long
    ``max_bytes`` last. ``written_message``, ``written_day``: to flash; ``card_years``: until ``tbw`` are written.
    ``ping_mb``: a month of a silent uplink, 10⁶ bytes.
    """

    given: Given
    messages: int
    size: float
    stored_message: float
    outage_bytes: float
    holds_days: float
    written_message: float
    written_day: float
    card_years: float
    ping_mb: float
    traffic: tuple[Traffic, ...]


def sizing(given: Given, sample: Sequence[Message]) -> Sizing:
    """Compute it from messages such as ``sample``, at least one."""
    packet = sum(len(each.topic.encode()) + len(each.payload) + PACKET for each in sample) / len(sample)
    together = 1 + given.rate * given.gather_ms / 1000
    commit = COMMIT_BYTES + CLIENT_BYTES * min(together, given.devices) + WRITTEN_TIMES * packet * together
    written = JOURNAL * commit / together
    stored = STORED_TIMES * packet + BLOCK_BYTES / together
    a_second = given.rate * stored
    lingers = sorted({given.linger_ms, *LINGERS})
    return Sizing(
        given=given,
        messages=len(sample),
        size=sum(len(each.payload) for each in sample) / len(sample),
        stored_message=stored,
        outage_bytes=a_second * given.outage_s,
        holds_days=given.max_bytes / a_second / DAY,
        written_message=written,
        written_day=written * given.rate * DAY,
        card_years=given.tbw * 1e12 / (written * given.rate * YEAR),
        ping_mb=MONTH / given.ping_s * PING_BYTES / 1e6,
        traffic=tuple(_traffic(given, linger, sample) for linger in lingers),
    )


def _traffic(given: Given, linger_ms: int, sample: Sequence[Message]) -> Traffic:
    count = max(1, min(given.frame_messages, round(given.rate * linger_ms / 1000)))
    every = count / given.rate
    frames = MONTH / every
    pings = MONTH / given.ping_s * PING_BYTES if every > given.ping_s else 0.0
    parts = _parts(sample, count)
    some, rest = parts[: 3 * len(parts) // 4], parts[3 * len(parts) // 4 :]
    found: list[float | None] = []
    for columns in (False, True):
        bare = [_frame(part, given.rate, columns=columns) for part in parts]
        found.append(sum(map(len, bare)) / len(bare))
        known = None
        if len(some) >= FEWEST and rest:
            known = train(Sample(bare[: len(some)], DAY / every, None))
        if known is None:
            found.append(None)
        else:
            small = [_frame(part, given.rate, columns=columns, known=known) for part in rest]
            found.append(sum(map(len, small)) / len(small))
    of = [None if size is None else (frames * (size * SEGMENTS + FRAME_BYTES) + pings) / 1e6 for size in found]
    return Traffic(linger_ms, count, of[0] or 0.0, of[2] or 0.0, of[1], of[3])


def _parts(sample: Sequence[Message], count: int) -> list[Sequence[Message]]:
    """Cut a sample into frames of ``count``; one that is too short is what a frame begins with, again and again."""
    if len(sample) < count:
        return [[sample[at % len(sample)] for at in range(count)]]
    return [sample[at : at + count] for at in range(0, len(sample) - count + 1, count)][:FRAMES]


def _frame(part: Sequence[Message], rate: float, *, columns: bool, known: Dictionary | None = None) -> bytes:
    topics = list(dict.fromkeys(each.topic for each in part))
    where = {topic: at for at, topic in enumerate(topics)}
    rows: list[Row] = [
        (where[each.topic], round(at * 1000 / rate), 1, each.payload, b"") for at, each in enumerate(part)
    ]
    made = encode_plain(
        epoch=1 << 60,
        prev_epoch=0,
        prev_last=0,
        oldest_epoch=1 << 60,
        lane="telemetry",
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=1_000_000,
        base_ms=1_790_000_000_000,
        sources=[(topic, topic) for topic in topics],
        rows=rows,
        dictionary=known,
    )
    return in_columns(made, known, fewest=True) if columns else made

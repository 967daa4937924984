"""Messages of a frame as records: CloudEvents in binary mode (CloudEvents Kafka binding 1.0.2, section 3.2). Pure.

This is the router's innermost loop: about a microsecond a message, so whatever is the same for a source, a frame or a
second is made once, and no object is made for a message but its record.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from cloud_ingest.journal.port import JournalRecord, OutRecord
from cloud_ingest.router.routes import Header, Target
from waybill.frames import Frame, FrameHeader

_SPEC: Final = ("ce_specversion", b"1.0")
_TYPE: Final = ("ce_type", b"waybill.message")
_JSON: Final = ("content-type", b"application/json")
_BYTES: Final = ("content-type", b"application/octet-stream")
_QOS: Final = tuple(("mqtt_qos", b"%d" % qos) for qos in range(4))
_RETAINED: Final = (("mqtt_retained", b"false"), ("mqtt_retained", b"true"))
_FLAGS: Final = tuple((_QOS[flags & 3], _RETAINED[flags >> 2 & 1]) for flags in range(16))
_MILLIS: Final = tuple(b".%03dZ" % ms for ms in range(1000))
_CE_ID: Final = "ce_id"
_CE_TIME: Final = "ce_time"
_OPENS_JSON: Final = (b"{", b"[")

_YEAR_1: Final = -62_135_596_800
_YEAR_9999: Final = 253_402_300_799

_new = tuple.__new__


def message_id(gateway: str, header: FrameHeader, seq: int) -> str:
    """Return ``ce_id`` of a message: gateway/epoch/lane/seq."""
    return f"{gateway}/{header.epoch}/{header.lane}/{seq}"


def utc(second: int) -> bytes:
    """Return ``second`` (since 1970 UTC) as RFC 3339 without zone; years beyond 1 to 9999 become these."""
    at = time.gmtime(min(max(second, _YEAR_1), _YEAR_9999))
    return b"%04d-%02d-%02dT%02d:%02d:%02d" % at[:6]


def append_records(
    out: list[OutRecord],
    journaled: JournalRecord,
    frame: Frame,
    targets: Sequence[Target] | Mapping[int, Target],
    first: int,
    last: int,
) -> None:
    """Append the records of seqs ``first..last`` of ``frame`` to ``out``; ``targets[i]`` is for source i."""
    header = frame.header
    base = header.base_ms
    prefix = b"%s/%d/%s/" % (journaled.gateway.encode(), header.epoch, header.lane.encode())
    stamp: Header = ("waybill_journaled", b"%d" % journaled.stamp_ms)
    clock: Header = ("waybill_clock", header.clock.encode())
    current = None
    day_time = b""
    seq = first
    append = out.append
    for source, offset, flags, payload, _ in frame.rows[first - header.first : last - header.first + 1]:
        topic, key, ce_source, mqtt_topic = targets[source]
        second, ms = divmod(base + offset, 1000)
        if second != current:
            current = second
            day_time = utc(second)
        qos, retained = _FLAGS[flags]
        append(
            _new(
                OutRecord,
                (
                    topic,
                    key,
                    payload,
                    [
                        _SPEC,
                        (_CE_ID, prefix + b"%d" % seq),
                        ce_source,
                        _TYPE,
                        (_CE_TIME, day_time + _MILLIS[ms]),
                        _JSON if payload.startswith(_OPENS_JSON) else _BYTES,
                        mqtt_topic,
                        qos,
                        retained,
                        stamp,
                        clock,
                    ],
                ),
            )
        )
        seq += 1


def one_record(
    journaled: JournalRecord, frame: Frame, targets: Sequence[Target] | Mapping[int, Target], seq: int
) -> OutRecord:
    """Return the record of one message."""
    out: list[OutRecord] = []
    append_records(out, journaled, frame, targets, seq, seq)
    return out[0]


def dead_letter(topic: str, record: OutRecord, error: str) -> OutRecord:
    """Return ``record`` as a dead letter in ``topic``: key, value and headers, where it was to go, what was wrong."""
    headers = [*record.headers, ("waybill_error", error.encode())]
    if record.topic:
        headers.append(("waybill_error_topic", record.topic.encode()))
    return OutRecord(topic, record.key, record.value, headers)


def dead_frame(topic: str, journaled: JournalRecord, header: FrameHeader | None, error: str) -> OutRecord:
    """Return a whole frame as a dead letter: key gateway, value the frame as it was journaled."""
    headers = [
        ("content-type", b"application/vnd.waybill.frame"),
        ("waybill_error", error.encode()),
        ("waybill_frame", f"{journaled.partition}/{journaled.offset}".encode()),
        ("waybill_journaled", b"%d" % journaled.stamp_ms),
    ]
    if header is not None:
        span = f"{message_id(journaled.gateway, header, header.first)}-{header.last}"
        headers.append(("waybill_span", span.encode()))
    return OutRecord(topic, journaled.gateway.encode(), journaled.frame, headers)

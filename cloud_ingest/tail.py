"""``waybill cloud tail``: records of a topic as JSON lines or as text. Rendering is pure.

A JSON line is an object: ``topic``, ``partition``, ``offset``, ``timestamp`` (milliseconds since 1970 UTC), ``key``,
``headers`` (name to text) and ``value``. Bytes that are not UTF-8 stand in ``key_base64`` or ``value_base64`` instead;
in headers they are escaped.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections import deque
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from cloud_ingest.following import Readable, following
from cloud_ingest.journal.port import CaughtUp, TopicRecord
from waybill.printable import printable

LAST: Final = 10
"""How many of the records that are there are shown before new ones."""

_encode = msgspec.json.Encoder().encode


class _Line(msgspec.Struct, frozen=True, gc=False):
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: str | None
    headers: dict[str, str]
    value: str | None


def as_json(record: TopicRecord, only: Collection[str] | None = None) -> bytes:
    """Return ``record`` as one line of JSON, UTF-8. ``only``: the headers to write, None for all."""
    headers = {
        name: str(value, "utf-8", "backslashreplace") for name, value in record.headers if only is None or name in only
    }
    key, value = record.key, record.value
    try:
        return _encode(
            _Line(
                record.topic,
                record.partition,
                record.offset,
                record.stamp_ms,
                None if key is None else str(key, "utf-8"),
                headers,
                None if value is None else str(value, "utf-8"),
            )
        )
    except UnicodeDecodeError:
        return _encode(
            {
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "timestamp": record.stamp_ms,
                **_field("key", key),
                "headers": headers,
                **_field("value", value),
            }
        )


def as_text(record: TopicRecord) -> str:
    """Return ``record`` as a line for people: place, time, key, value; what cannot be shown is escaped."""
    time = dt.datetime.fromtimestamp(record.stamp_ms / 1000, dt.UTC).isoformat(timespec="milliseconds")
    place = f"{record.topic}/{record.partition}@{record.offset}"
    return f"{place} {time.replace('+00:00', 'Z')} {_shown(record.key)} {_shown(record.value)}"


async def tail(
    source: Readable,
    topic: str,
    show: Callable[[TopicRecord], None],
    *,
    partition: int | None = None,
    last: int | None = LAST,
    end: bool = False,
) -> None:
    """Show the ``last`` records of ``topic`` (None: all that are there), then new ones unless ``end``.

    Raises Unavailable, Refused (no such topic).
    """
    waiting: deque[TopicRecord] = deque(maxlen=last)
    caught_up = False
    async with following(source, [topic], only=partition, end=end) as records:
        async for record in records:
            if isinstance(record, CaughtUp):
                caught_up = True
                for old in waiting:
                    show(old)
                waiting.clear()
            elif caught_up or last is None:
                show(record)
            else:
                waiting.append(record)


def _field(name: str, data: bytes | None) -> dict[str, str | None]:
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def _shown(data: bytes | None) -> str:
    if data is None:
        return "-"
    return printable(data.decode(errors="backslashreplace"))

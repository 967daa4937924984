"""Which log a configuration means, for the ingest itself and for tools beside it.

A tool reads the embedded log from its file, and writes through the ingest that owns it (its socket, op ``append``);
Kafka it reads and writes itself.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from cloud_ingest import config
from cloud_ingest.following import Journal
from cloud_ingest.journal.port import Log, OutRecord
from waybill import snapshot
from waybill.errors import Refused

Append = Callable[[OutRecord], Awaitable[None]]


class Opened(NamedTuple):
    """A log, not started. ``retention_ms``: how long it keeps frames, routed or not; None: until they are routed."""

    log: Log
    retention_ms: int | None


def open_log(settings: config.Settings) -> Opened:
    """Return the log of ``settings``. Only the one that is asked for is imported. Raises ConfigError."""
    topics = settings.config.topics
    if isinstance(settings.log, config.Kafka):
        from cloud_ingest.journal.kafka import KafkaLog

        kafka = KafkaLog(
            settings.log.settings,
            deployment=settings.config.deployment,
            topics=topics,
            routes=settings.config.route,
            base=settings.log.base,
            where=settings.where,
            allow_unsafe=settings.log.allow_unsafe,
        )
        return Opened(kafka, kafka.config.frames_retention_ms)
    from cloud_ingest.journal.embedded import EmbeddedLog
    from cloud_ingest.journal.embedded_retention import Retention

    retention = Retention(settings.log.retention_ms, settings.log.retention_bytes)
    return Opened(EmbeddedLog(settings.log.path, topics, max_bytes=settings.log.max_bytes, retention=retention), None)


@contextlib.asynccontextmanager
async def reading(settings: config.Settings) -> AsyncIterator[Journal]:
    """Give something to read topics with, beside a running ingest. Raises ConfigError, Unavailable."""
    if isinstance(settings.log, config.Embedded):
        from cloud_ingest.journal.embedded_reader import open_reader

        async with open_reader(settings.log.path, settings.config.topics.frames) as reader:
            yield reader
        return
    log = open_log(settings).log
    try:
        yield log
    finally:
        await log.close()


@contextlib.asynccontextmanager
async def appending(settings: config.Settings) -> AsyncIterator[Append]:
    """Give something to append records with, beside a running ingest. Raises ConfigError, Unavailable."""
    if isinstance(settings.log, config.Embedded):
        yield lambda record: snapshot.request(settings.socket, "append", **as_fields(record))
        return
    log = open_log(settings).log
    try:
        yield log.append
    finally:
        await log.close()


def as_fields(record: OutRecord) -> dict[str, Any]:
    """Return ``record`` as the fields of the socket's request ``append``; bytes are base64."""
    return {
        "topic": record.topic,
        "key": _text(record.key),
        "value": _text(record.value),
        "headers": [[name, _text(value)] for name, value in record.headers],
    }


def from_fields(fields: dict[str, Any]) -> OutRecord:
    """Read what :func:`as_fields` made. Raises Refused."""
    try:
        headers = [(str(name), _bytes(value) or b"") for name, value in fields["headers"]]
        return OutRecord(str(fields["topic"]), _bytes(fields["key"]), _bytes(fields["value"]), headers)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"append needs topic, key, value and headers, bytes as base64: {error!r}") from error


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)

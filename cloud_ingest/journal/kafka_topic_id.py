"""The id that Kafka draws for each topic when it is made (KIP-516, since 2.8): what tells a topic from one before it.

aiokafka asks for metadata up to version 5, ids come with version 10. So this asks for that one itself.
"""

from __future__ import annotations

import logging
from io import BytesIO
from typing import Final

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

log = logging.getLogger(__name__)

_BYTES: Final = 16


class _Uuid(AbstractType[bytes]):  # type: ignore[misc] # aiokafka has no types
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        found = data.read(_BYTES)
        if len(found) != _BYTES:
            raise ValueError("a topic id is cut short")
        return found


_NAME: Final = CompactString("utf-8")
_NODES: Final = CompactArray(Int32)


class _Metadata(Response):  # type: ignore[misc] # aiokafka has no types
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node_id", Int32), ("host", _NAME), ("port", Int32), ("rack", _NAME), ("tags", TaggedFields)),
        ),
        ("cluster_id", _NAME),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _NAME),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", _NODES),
                        ("isr", _NODES),
                        ("offline_replicas", _NODES),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _Ask(RequestStruct):  # type: ignore[misc] # aiokafka has no types
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _Metadata
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _NAME), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Question(Request[_Ask]):  # type: ignore[misc] # aiokafka has no types
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_Ask]) -> _Ask:
        return request_struct_class([(bytes(_BYTES), self._topic, {})], False, False, False, {})


async def topic_number(admin: AIOKafkaAdminClient, topic: str) -> int:
    """Return 63 bits of the id of ``topic``; 0 where there is none, or it cannot be asked for."""
    try:
        found = await admin._send_request(_Question(topic))  # noqa: SLF001 - its way for requests it has no method for
    except (errors.KafkaError, NotImplementedError, ValueError) as error:
        log.warning("topic %s: its id is not known, gateways send dictionaries more often: %s", topic, error)
        return 0
    topic_id: bytes = next((each[2] for each in found.topics if each[1] == topic), bytes(_BYTES))
    return int.from_bytes(topic_id[:8], "big") >> 1

"""What is said of Kafka's errors, and how its clients end."""

import asyncio

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient

from cloud_ingest.journal.kafka_client import discard, reason


def test_r6_a_node_whose_clock_the_broker_does_not_take_is_told_so() -> None:
    said = reason(errors.InvalidTimestampError("out of range"), "Write", "t")
    assert "out of range" in said
    assert "set this node's clock" in said


class Closing:
    """A connection of aiokafka's, as it is when a wait for its end was given up: that cancels what tells of the end."""

    def close(self, **_: object) -> asyncio.Future[None]:
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        told.cancel()
        return told


async def test_r3_a_connection_that_took_too_long_to_close_cancels_nobody() -> None:
    """Else a router would end without a word, as if it had been told to."""
    client = AIOKafkaAdminClient(bootstrap_servers="127.0.0.1:9")
    client._client._conns["slow"] = Closing()
    await discard(client)
    client._client._conns.clear()

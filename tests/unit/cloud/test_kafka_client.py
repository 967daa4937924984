"""What is said of Kafka's errors."""

from aiokafka import errors

from cloud_ingest.journal.kafka_client import reason


def test_r6_a_node_whose_clock_the_broker_does_not_take_is_told_so() -> None:
    said = reason(errors.InvalidTimestampError("out of range"), "Write", "t")
    assert "out of range" in said
    assert "set this node's clock" in said

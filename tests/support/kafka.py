"""A real Kafka for tests: one that all of them share, and clusters of a test's own."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from deploy.kafka.cluster import Cluster


class StartCluster(Protocol):
    """What the fixture ``kafka_cluster`` is: call it as ``Cluster.start``, without a directory."""

    def __call__(
        self, *, brokers: int = 1, users: dict[str, str] | None = None, settings: dict[str, str] | None = None
    ) -> Cluster:
        """Start a cluster; it is stopped when the module's tests are done, if the test did not do that."""


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the ``bootstrap.servers`` of a Kafka that all tests share: take topics and groups named after ``unique``.

    Where WAYBILL_TEST_KAFKA names one, that; else one broker, started when the first test asks.
    """
    if given := os.environ.get("WAYBILL_TEST_KAFKA"):
        yield given
        return
    cluster = Cluster.start(tmp_path_factory.mktemp("kafka"), bound=True)
    try:
        yield cluster.bootstrap
    finally:
        cluster.stop(seconds=0)


@pytest.fixture(scope="module")
def kafka_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartCluster]:
    """Give a function that starts clusters to break: three brokers, SCRAM users, other settings."""
    with ExitStack() as stack:

        def start(
            *, brokers: int = 1, users: dict[str, str] | None = None, settings: dict[str, str] | None = None
        ) -> Cluster:
            directory = tmp_path_factory.mktemp("kafka")
            cluster = Cluster.start(directory, brokers=brokers, users=users, settings=settings, bound=True)
            stack.callback(cluster.stop, seconds=0)
            return cluster

        yield start

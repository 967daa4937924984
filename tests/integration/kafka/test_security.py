"""SASL_SSL for real: the right login, and every wrong one with an answer that says what to do."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloud_ingest.journal.kafka import KafkaLog
from cloud_ingest.journal.keys import partition_of
from deploy.kafka.cluster import Cluster
from tests.support.kafka import StartCluster
from tests.support.kafka_log import make_log, read_all, step, values
from waybill.errors import ConfigError, WaybillError


@pytest.fixture(scope="module")
def secured(kafka_cluster: StartCluster) -> Cluster:
    """Return a broker that knows one user."""
    return kafka_cluster(users={"app": "secret"})


@pytest.fixture(autouse=True)
async def sockets() -> AsyncIterator[None]:
    """Wait after each test until all sockets are closed: aiokafka does not await the end of TLS while it connects."""
    yield
    selector: Any = asyncio.get_running_loop().__dict__["_selector"]
    for _ in range(1200):
        if len(selector.get_map()) <= 1:  # the loop's own
            return
        await asyncio.sleep(0.05)


def _log(cluster: Cluster, name: str, **settings: str) -> KafkaLog:
    right: dict[str, Any] = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "app",
        "sasl.password": "secret",
        "ssl.ca.location": str(cluster.ca),
    }
    return make_log(cluster.secure_bootstrap, name, **{**right, **settings})


async def test_everything_works_over_sasl_ssl(secured: Cluster, unique: str) -> None:
    log = _log(secured, unique)
    await log.start()
    await log.append_frame("gw-1", b"frame")
    partition = log.open_partition(partition_of(b"gw-1", 2))
    await partition.load()
    assert [frame.frame for frame in await read_all(partition, 1)] == [b"frame"]
    await partition.commit(step(unique, b"a"))
    assert await values(log, f"{unique}.fleet") == [b"a"]
    await partition.close()
    await log.close()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sasl.password": "wrong"}, "refused the login of 'app'"),
        ({"sasl.username": "nobody"}, "refused the login of 'nobody'"),
        ({"sasl.mechanism": "PLAIN"}, "refused the login of 'app'"),
        ({"ssl.ca.location": ""}, "certificate of .* is not accepted.*ssl.ca.location"),
    ],
)
async def test_a_wrong_login_says_which_key_to_check(
    secured: Cluster, unique: str, settings: dict[str, str], says: str
) -> None:
    log = _log(secured, unique, **settings)
    with pytest.raises(ConfigError, match=says):
        await log.start()
    await log.close()


async def test_tls_with_a_port_that_speaks_none(secured: Cluster, unique: str) -> None:
    log = _log(secured, unique)
    settings: dict[str, Any] = {"security.protocol": "SSL", "ssl.ca.location": str(secured.ca)}
    plain = make_log(secured.bootstrap, unique, **settings)
    with pytest.raises(WaybillError, match=secured.bootstrap):
        await plain.start()
    await plain.close()
    await log.start()  # the other port does
    await log.close()

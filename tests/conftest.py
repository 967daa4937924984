"""Fixtures that any test may ask for; what is bigger is in tests/support."""

import os
import secrets

import pytest
from hypothesis import HealthCheck, settings

from fleet_simulator.ports import free_port as one_port
from tests.support.loop_disk import clear_mounts

pytest_plugins = ["tests.support.kafka", "tests.support.kafka_log"]

# The short form draws the same examples each time, so that it fails for a change and not by chance; the long one looks
# further at every run. How long anything takes says more of the machine's other work than of us.
settings.register_profile(
    "short", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("long" if os.environ.get("WAYBILL_LONG") else "short")


def pytest_configure() -> None:
    """Make room before the first directory is made."""
    clear_mounts()


@pytest.fixture
def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses, and that no other test is given."""
    return one_port()


@pytest.fixture
def unique() -> str:
    """Return a name that no other test uses: a topic prefix or a deployment, so that one Kafka serves all tests."""
    return f"t{secrets.token_hex(5)}"

"""The server on a free port, as the integration tests start it."""

from tests.integration.mqtt.conftest import start

__all__ = ["start"]

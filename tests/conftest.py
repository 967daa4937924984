"""Fixtures of all tests; the real Kafka is in tests/support."""

pytest_plugins: list[str] = []

"""The logs that the suites run over."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud_ingest.config import Topics
from cloud_ingest.journal.port import Log
from tests.support.logs import PARTITIONS, make


@pytest.fixture(params=["embedded", "kafka"])
async def log(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> AsyncIterator[Log]:
    bootstrap = request.getfixturevalue("kafka") if request.param == "kafka" else ""
    made = make(request.param, unique, tmp_path, bootstrap)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def fleet(unique: str) -> str:
    return f"{unique}.fleet"


@pytest.fixture
def topics(unique: str) -> Topics:
    return Topics(prefix=f"{unique}.", partitions=PARTITIONS)

"""A router of one partition as a process of its own: delivery_worker.py BOOTSTRAP DEPLOYMENT DELIVERY."""

import asyncio
import sys

from cloud_ingest.config import Route, Topics
from cloud_ingest.router.routes import Routes
from cloud_ingest.router.state import Limits
from cloud_ingest.router.worker import Router
from tests.support.kafka_log import make_log


async def main(bootstrap: str, deployment: str, delivery: str) -> None:
    """Route until killed, in many small steps."""
    log = make_log(bootstrap, deployment, partitions=1, delivery=delivery)
    await log.start()
    topics = Topics(prefix=f"{deployment}.", partitions=1)
    limits = Limits(step_messages=200, read_frames=4)
    await Router(log, topics, Routes([Route(topic=f"{deployment}.fleet")]), limits=limits).route(log.open_partition(0))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

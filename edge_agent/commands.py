"""Commands at the gateway (C2): from an envelope into the outbox, and from there to the device.

An envelope becomes an outbox entry and its ``delivered`` status in one transaction; only then it is published to the
device, on ``cmd/{device}/{id}/req`` with QoS 1. At the device a command is at least once, its id is in the topic. An
open entry is published again at the agent's start and whenever somebody subscribes to its topic (a device without a
persistent session hears nothing while it is away; one with a session has the command in its queue). The answer on
``cmd/{device}/{id}/res`` closes the entry in the intake's commit.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from edge_agent.buffer.port import Buffer
from edge_agent.clock import Clock
from waybill.errors import Unavailable
from waybill.mqtt.topics import matcher
from waybill.wire import Envelope

log = logging.getLogger(__name__)

EVERYTHING: Final = "cmd/#"
MAX_FILTERS: Final = 1000
"""New subscriptions that wait to be looked at; beyond it all open commands are published again."""

RETRY_PAUSE: Final = 1.0
"""Seconds until what could not be read or published is tried again."""

_LEVEL = re.compile(r"[^+#/\0]+")

PublishToDevices = Callable[[str, bytes], Awaitable[object]]
"""Publish ``payload`` on ``topic`` with QoS 1 at the local broker; returns when it is durable for sleeping sessions.

Raises Unavailable.
"""


@dataclass(slots=True)
class Counters:
    """Since the start. ``known``: envelopes ignored because their id was known or they had expired."""

    received: int = 0
    known: int = 0
    published: int = 0


def request_topic(device: str, command: str) -> str:
    """Return the topic on which a device gets its command."""
    return f"cmd/{device}/{command}/req"


class Commands:
    """Brings commands from the cloud to the devices of this gateway."""

    def __init__(self, buffer: Buffer, publish: PublishToDevices, clock: Clock) -> None:
        self._buffer = buffer
        self._to_devices = publish
        self._clock = clock
        self._filters: set[str] = {EVERYTHING}  # at the start all open ones are published again
        self._wake = asyncio.Event()
        self._wake.set()
        self.counters = Counters()

    async def receive(self, envelope: Envelope) -> None:
        """Take an envelope of the cloud. One that is known or has expired is ignored, as the contract says."""
        if not _LEVEL.fullmatch(envelope.device) or not _LEVEL.fullmatch(envelope.id):
            log.warning(
                "command %r for device %r ignored: these cannot be levels of a topic", envelope.id, envelope.device
            )
            return
        try:
            new = await self._buffer.receive(envelope, self._clock.now_ms())
        except Unavailable as error:
            # Not delivered, so the cloud sends it again (C1).
            log.warning("command %r not taken: %s", envelope.id, error)
            return
        if not new:
            self.counters.known += 1
            return
        self.counters.received += 1
        self._want(request_topic(envelope.device, envelope.id))

    def on_subscribed(self, pattern: str) -> None:
        """Somebody subscribed to ``pattern``; open commands that it matches will be published again."""
        if not pattern.startswith(("cmd/", "+", "#")):
            return
        self._want(pattern)

    def _want(self, pattern: str) -> None:
        if len(self._filters) >= MAX_FILTERS:
            self._filters = {EVERYTHING}
        self._filters.add(pattern)
        self._wake.set()

    async def publish(self) -> None:
        """Publish open commands where there is a reason to. A task of its own, for the life of the agent."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            wanted, self._filters = self._filters, set()
            try:
                await self._publish_matching([matcher(pattern) for pattern in wanted])
            except Unavailable as error:
                log.warning("commands not published, tried again: %s", error)
                for pattern in wanted:
                    self._want(pattern)
                await asyncio.sleep(RETRY_PAUSE)

    async def open(self) -> Sequence[tuple[str, bytes]]:
        """Return topic and payload of each open command. Raises Unavailable."""
        found = await self._buffer.outbox(self._clock.now_ms())
        return [(request_topic(entry.device, entry.id), entry.payload) for entry in found]

    async def _publish_matching(self, patterns: Sequence[re.Pattern[bytes]]) -> None:
        for topic, payload in await self.open():
            if any(pattern.fullmatch(topic.encode()) for pattern in patterns):
                self._filters.discard(topic)  # taken in while the outbox was read: this is its publication
                await self._to_devices(topic, payload)
                self.counters.published += 1

"""A gateway as the cloud sees one: an MQTT client of others' making, frames of ours; and an ingest to talk to."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec

from cloud_ingest import config
from cloud_ingest.app import Ingest
from cloud_ingest.following import following
from cloud_ingest.journal.port import CaughtUp, TopicRecord
from waybill import pki, wire
from waybill.errors import Refused
from waybill.frames import encode_plain
from waybill.wire import Ack, CommandStatus, Envelope, Span

EPOCH = 4711


def frame(first: int = 1, count: int = 1, *, epoch: int = EPOCH, previous: tuple[int, int] = (0, 0)) -> bytes:
    """Make a frame of ``count`` messages of vehicle V1, whose payloads say their seq.

    ``previous``: the epoch before this one and its last seq.
    """
    rows = [(0, n, 1, b'{"n":%d}' % (first + n), b"") for n in range(count)]
    return _frame(first, [("vehicles/V1/telemetry", "V1")], rows, wire.TELEMETRY_LANE, epoch, previous)


def status_frame(first: int, status: CommandStatus) -> bytes:
    """Make a frame of the control lane that reports a command's state."""
    rows = [(0, 0, 1, msgspec.json.encode(status), b"")]
    return _frame(first, [(wire.COMMAND_STATUS_TOPIC, "")], rows, wire.CONTROL_LANE, EPOCH, (0, 0))


def _frame(first: int, sources: Any, rows: Any, lane: str, epoch: int, previous: tuple[int, int]) -> bytes:
    return encode_plain(
        epoch=epoch,
        prev_epoch=previous[0],
        prev_last=previous[1],
        oldest_epoch=epoch,
        lane=lane,
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=first,
        base_ms=1_800_000_000_000,
        sources=sources,
        rows=rows,
    )


def span(first: int, last: int, lane: str = "telemetry") -> Span:
    """Return a span of EPOCH."""
    return Span(EPOCH, lane, first, last)


class Pki:
    """A CA, one server certificate for 127.0.0.1, gateways on demand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = dt.datetime.now(dt.UTC)
        pki.ca_init(directory / "ca", now=self.now)
        self.server = pki.issue_server(directory / "ca", directory / "server", ["127.0.0.1"], now=self.now)

    def listener(self, **limits: Any) -> config.Listener:
        """Return the listener's part of a configuration, on any free port."""
        server = self.server
        return config.Listener("127.0.0.1:0", str(server.certificate), str(server.key), str(server.ca), **limits)

    def gateway(self, name: str) -> ssl.SSLContext:
        """Return the TLS context of a gateway with a certificate of its own."""
        directory = self.directory / name
        if not directory.exists():
            pki.issue_gateway(self.directory / "ca", directory, name, now=self.now)
        return pki.client_context(directory / "ca.pem", directory / "gateway.pem", directory / "gateway.key")


class Gateway:
    """A connected gateway; what the cloud sends waits in ``acks`` and ``envelopes``."""

    def __init__(self, name: str, client: aiomqtt.Client) -> None:
        self.name = name
        self.client = client
        self.acks: asyncio.Queue[Ack] = asyncio.Queue()
        self.envelopes: asyncio.Queue[Envelope] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def send(self, *frames: bytes, qos: int = 0) -> None:
        """Publish frames."""
        for each in frames:
            await self.client.publish(wire.up_topic(self.name), each, qos=qos)

    async def ack(self) -> Ack:
        """Return the next ack that says more than the credit."""
        async with asyncio.timeout(180):
            while True:
                ack = await self.acks.get()
                if ack != Ack(credit=ack.credit, log=ack.log):
                    return ack

    async def journaled(self, first: int, last: int, lane: str = "telemetry") -> None:
        """Wait until every seq of a span of EPOCH is acked as journaled."""
        missing = set(range(first, last + 1))
        while missing:
            for each in (await self.ack()).journaled:
                if (each.epoch, each.lane) == (EPOCH, lane):
                    missing -= set(range(each.first, each.last + 1))

    async def envelope(self) -> Envelope:
        """Return the next envelope."""
        async with asyncio.timeout(180):
            return await self.envelopes.get()

    async def listen(self) -> None:
        """Sort what comes until the connection ends."""
        try:
            async for message in self.client.messages:
                payload = message.payload
                assert isinstance(payload, bytes)
                if message.topic.matches(wire.ack_topic(self.name)):
                    self.acks.put_nowait(wire.decode_ack(payload))
                else:
                    self.envelopes.put_nowait(wire.decode_envelope(payload))
        except aiomqtt.MqttError:
            pass
        finally:
            self.closed.set()


@contextlib.asynccontextmanager
async def connected(
    ingest: Ingest, name: str, context: ssl.SSLContext | None, *, down: bool = True
) -> AsyncIterator[Gateway]:
    """Connect a gateway, subscribed to its ``ack`` (and ``down``) topic."""
    host, _, port = ingest.listener.address.rpartition(":")
    client = aiomqtt.Client(host, int(port), identifier=name, tls_context=context, timeout=60)
    with contextlib.suppress(aiomqtt.MqttError):  # the connection that a test has ended
        async with client:
            gateway = Gateway(name, client)
            task = asyncio.create_task(gateway.listen())
            try:
                await client.subscribe(wire.ack_topic(name))
                if down:
                    await client.subscribe(wire.down_topic(name))
                yield gateway
            finally:
                task.cancel()
                await asyncio.wait({task})


@contextlib.asynccontextmanager
async def running(settings: config.Settings) -> AsyncIterator[Ingest]:
    """Run an ingest in this process."""
    settings.data.mkdir(parents=True, exist_ok=True)
    ingest = Ingest(settings)
    try:
        await ingest.start()
        yield ingest
    finally:
        async with asyncio.timeout(180):
            await ingest.stop()
    assert ingest.tasks.failure is None


def embedded(data: Path, listener: config.Listener) -> config.Settings:
    """Return the configuration of an ingest on the embedded log."""
    return config.check(config.CloudConfig(data=str(data), listener=listener), data, "test")


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def records(ingest: Ingest, topic: str, count: int) -> list[TopicRecord]:
    """Return all records of ``topic``, waiting until there are ``count``."""
    found: list[TopicRecord] = []
    async with asyncio.timeout(180):
        while True:
            found.clear()
            # On Kafka a topic that nothing was written to may not be there yet.
            with contextlib.suppress(Refused):
                async with following(ingest.log, [topic], end=True) as source:
                    found += [record async for record in source if not isinstance(record, CaughtUp)]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.05)

"""A cloud for the agent's tests: a real MQTT server whose sink journals in memory and answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import msgspec

from edge_agent.uplink.config import UplinkSettings
from waybill.frames import Dictionary, FrameHeader, decode, read_header
from waybill.mqtt.server import MqttServer
from waybill.mqtt.settings import Client, Hooks
from waybill.mqtt.state import Batch, SavedState
from waybill.wire import DICTIONARY_TOPIC, Ack, Envelope, RefusedSpan, Span, State, ack_topic, down_topic, encode

GATEWAY = "gw1"


def span(header: FrameHeader) -> Span:
    return Span(header.epoch, header.lane, header.first, header.last)


def journal_it(header: FrameHeader) -> Ack:
    return Ack(journaled=(span(header),))


def refuse_it(header: FrameHeader, reason: str) -> Ack:
    return Ack(refused=(RefusedSpan(header.epoch, header.lane, header.first, header.last, reason),))


@dataclass
class Cloud:
    """What the cloud saw and does.

    ``judge``: the answer to a frame, None for silence; frames whose answer has ``journaled`` are kept in ``journal``.
    ``credit``: said when the gateway subscribes, unless None. ``headers``: every frame that arrived, in order.
    """

    judge: Callable[[FrameHeader], Ack | None] = journal_it
    credit: int | None = 1 << 20
    headers: list[FrameHeader] = field(default_factory=list)
    journal: list[bytes] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    subscribed: int = 0
    reasons: list[str] = field(default_factory=list)
    server: MqttServer = field(init=False)
    address: tuple[str, int] = ("", 0)

    async def restore(self) -> SavedState:
        return SavedState()

    async def commit(self, batch: Batch) -> None:
        for arrival in batch.arrivals:
            for topic, payload, *_ in arrival.publishes:
                if topic.endswith(b"/state"):
                    self.states.append(msgspec.json.decode(payload, type=State))
                elif topic.endswith(b"/up"):
                    self._frame(bytes(payload))

    def _frame(self, frame: bytes) -> None:
        header = read_header(frame)
        self.headers.append(header)
        answer = self.judge(header)
        if answer is not None:
            if answer.journaled:
                self.journal.append(frame)
            self.say(answer)

    def say(self, answer: Ack) -> None:
        self.server.send(ack_topic(GATEWAY), encode(answer))

    def command(self, envelope: Envelope) -> None:
        self.server.send(down_topic(GATEWAY), encode(envelope))

    def on_subscribed(self, _client: Client, pattern: str, _qos: int) -> None:
        if pattern == ack_topic(GATEWAY):
            self.subscribed += 1
            if self.credit is not None:
                self.say(Ack(credit=self.credit))

    def on_disconnected(self, _client: Client, reason: str) -> None:
        self.reasons.append(reason)

    @property
    def payloads(self) -> Counter[bytes]:
        """How often each payload of the telemetry lane was journaled, each seq counted once."""
        return Counter(self.by_seq("telemetry").values())

    def by_seq(self, lane: str) -> dict[tuple[int, int], bytes]:
        """Payload by epoch and seq, as the router's ledger would let them through."""
        found: dict[tuple[int, int], bytes] = {}
        dictionaries: dict[int, Dictionary] = {}
        for frame in self.journal:
            one = decode(frame, dictionary=dictionaries.get(read_header(frame).dictionary))  # journaled before it
            for source, _, _, payload, _ in one.rows:
                if one.sources[source][0] == DICTIONARY_TOPIC:
                    brought = Dictionary(payload)
                    dictionaries[brought.id] = brought
            if one.header.lane == lane:
                for seq, row in enumerate(one.rows, one.header.first):
                    found.setdefault((one.header.epoch, seq), row[3])
        return found


@contextlib.asynccontextmanager
async def listening(cloud: Cloud, context: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Cloud]:
    """Run ``cloud`` on a free port of the loopback interface."""
    cloud.server = MqttServer(
        cloud, hooks=Hooks(on_subscribed=cloud.on_subscribed, on_disconnected=cloud.on_disconnected)
    )
    await cloud.server.start()
    try:
        cloud.address = await cloud.server.listen("127.0.0.1", port, context)
        yield cloud
    finally:
        await cloud.server.close()


def url(address: tuple[str, int], scheme: str = "mqtt") -> UplinkSettings:
    return UplinkSettings(f"{scheme}://{address[0]}:{address[1]}", keepalive=2)


async def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until ``holds()`` is true; fail after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - the condition is somebody else's state
            await asyncio.sleep(0.01)

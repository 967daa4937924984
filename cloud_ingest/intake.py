"""From a gateway's ``up`` topic to the journal, and the ack back: what the listener's MQTT server commits to.

::

    Batch ─▶ commit ─▶ a queue a gateway ─▶ judge (U4) ─▶ append_frame ─▶ Ack (journaled, refused, retry, versions)
                └─ waits for frames of QoS 1 and 2, and while more than ``memory`` bytes are not journaled

The frames of one gateway are journaled as they were sent; gateways do not wait for each other. Frames that came
together share the log's next commit, and are answered in one Ack. Nothing is acked that the log did not say is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from waybill.errors import Corrupt, Refused, TopicRefused, Unavailable, UnknownVersion
from waybill.frames.header import FrameHeader, check_body, peek_span, read_header
from waybill.mqtt.state import Batch, SavedState
from waybill.wire import LANE_NAME, Ack, RefusedSpan, Span, up_topic

log = logging.getLogger(__name__)

ONE_FRAME: Final = 1 << 20
"""Bytes of the largest frame that a gateway sends; credit is never below it (U3)."""


AGAIN: Final = 60.0
"""Seconds after which an ack says the credit again, although it has not changed: it may have been lost (U3)."""


class Journal(Protocol):
    """The part of a :class:`~cloud_ingest.journal.port.Log` that the listener needs."""

    @property
    def log_id(self) -> int:
        """Which log this is; 0 where that is not known (R10)."""

    async def append_frame(self, gateway: str, frame: bytes) -> None:
        """Journal a frame; durable on return. Raises Unavailable, Refused."""


@dataclass(slots=True)
class IntakeCounters:
    """Frames since the start of the process. ``bytes``: of the journaled ones."""

    journaled: int = 0
    bytes: int = 0
    refused: int = 0
    retried: int = 0
    unknown_versions: int = 0


@dataclass(slots=True)
class _Waiting:
    """A frame that is not journaled yet. ``done``: set for QoS 1 and 2, to whether it may be acknowledged."""

    frame: bytes
    done: asyncio.Future[bool] | None


@dataclass(slots=True)
class _Queue:
    waiting: list[_Waiting] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


def judge(frame: bytes, max_frame: int) -> FrameHeader:
    """Check what can be checked without decompressing (U4). Raises UnknownVersion, or Corrupt where nobody can use it.

    The body is not read here; the router dead-letters a frame that passed and does not decode (R5).
    """
    if len(frame) > max_frame:
        raise Corrupt(f"a frame of {len(frame)} bytes is over the limit of {max_frame}")
    header = read_header(frame)
    check_body(header)
    if not LANE_NAME.fullmatch(header.lane):
        raise Corrupt(f"lane {header.lane!r}: a lane is named with letters, digits, '.', '_' and '-'")
    return header


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Join spans that follow each other within an epoch's lane."""
    joined: list[Span] = []
    for span in spans:
        before = joined[-1] if joined else None
        if before and (before.epoch, before.lane, before.last + 1) == (span.epoch, span.lane, span.first):
            joined[-1] = Span(span.epoch, span.lane, before.first, span.last)
        else:
            joined.append(span)
    return tuple(joined)


class Intake:
    """The store behind the listener's MQTT server (a :class:`waybill.mqtt.state.Sink`).

    ``send`` hands an ack to a connected gateway and must not block; ``hang_up`` closes a gateway's connection at once.
    ``closed`` says why nothing can be journaled at present, or is empty (R8: also when the router lags too far).
    """

    def __init__(
        self,
        journal: Journal,
        *,
        send: Callable[[str, Ack], None],
        hang_up: Callable[[str], None],
        closed: Callable[[], str],
        max_frame: int,
        memory: int,
        credit: int,
    ) -> None:
        """Hold what is needed; nothing runs yet."""
        self._journal = journal
        self._send = send
        self._hang_up = hang_up
        self._closed = closed
        self._max_frame = max_frame
        self._memory = memory
        self._credit = credit
        self._queues: dict[str, _Queue] = {}
        self._room = asyncio.Event()
        self._told: dict[str, tuple[int, float]] = {}  # who listens: the credit last told, and when
        self.counters = IntakeCounters()
        self.pending = 0
        self.fault = ""
        self._closing = False

    async def restore(self) -> SavedState:
        """Nothing outlives a restart: a gateway's session is clean, and what it published is in the journal."""
        return SavedState()

    async def commit(self, batch: Batch) -> None:
        """Queue the frames of ``batch``; return when those of QoS 1 and 2 are journaled and there is room for more.

        Never raises: where a frame of QoS 1 or 2 could not be journaled its connection is closed before this returns,
        so that no PUBACK leaves for it, and the others are not harmed.
        """
        acknowledged: list[tuple[str, asyncio.Future[bool]]] = []
        for arrival in batch.arrivals:
            topic = up_topic(arrival.client_id).encode()
            for message in arrival.publishes:
                if message[0] != topic:
                    continue
                if message[2] & 0x06:
                    acknowledged.append((arrival.client_id, self.take(arrival.client_id, bytes(message[1]))))
                elif not self._closing:
                    self._enqueue(arrival.client_id, _Waiting(bytes(message[1]), None))
        for gateway, done in acknowledged:
            if not await done:
                self._hang_up(gateway)
        while self.pending > self._memory:
            self._room.clear()
            await self._room.wait()

    def take(self, gateway: str, frame: bytes) -> asyncio.Future[bool]:
        """Queue a frame; the result says whether it may be acknowledged."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._closing:
            done.set_result(False)
        else:
            self._enqueue(gateway, _Waiting(frame, done))
        return done

    def _enqueue(self, gateway: str, item: _Waiting) -> None:
        queue = self._queues.setdefault(gateway, _Queue())
        queue.waiting.append(item)
        self.pending += len(item.frame)
        if queue.task is None:
            queue.task = asyncio.create_task(self._drain(gateway, queue), name=f"journal {gateway}")

    async def _drain(self, gateway: str, queue: _Queue) -> None:
        """Journal what is queued of one gateway, until nothing is."""
        try:
            while queue.waiting:
                taken, queue.waiting = queue.waiting, []
                try:
                    ack = await self._answer(gateway, taken)
                finally:
                    self._release(taken)
                self._send(gateway, ack)
        except Exception:
            # A fault of this program. The gateway sends again to whom it connects next; others go on.
            log.exception("its frames could not be handled; its connection is closed", extra={"gateway": gateway})
            self._hang_up(gateway)
        finally:
            self._release(queue.waiting)
            del self._queues[gateway]

    def _release(self, items: list[_Waiting]) -> None:
        for item in items:
            self.pending -= len(item.frame)
            if item.done and not item.done.done():
                item.done.set_result(False)
        self._room.set()

    async def _answer(self, gateway: str, taken: list[_Waiting]) -> Ack:
        refused: list[RefusedSpan] = []
        versions: tuple[int, ...] = ()
        fit: list[tuple[_Waiting, Span]] = []
        for item in taken:
            try:
                header = judge(item.frame, self._max_frame)
                fit.append((item, Span(header.epoch, header.lane, header.first, header.last)))
            except UnknownVersion as error:
                self.counters.unknown_versions += 1
                log.warning("%s", error, extra={"gateway": gateway})
                versions = error.spoken
                _done(item, acknowledge=True)
            except Corrupt as error:
                refused.append(_refuse(gateway, item, error))
        # In order, but without waiting for one before the next: they share the log's next commit.
        results = await asyncio.gather(*[self._append(gateway, item.frame) for item, _ in fit], return_exceptions=True)
        journaled: list[Span] = []
        retry: list[Span] = []
        for (item, span), result in zip(fit, results, strict=True):
            if isinstance(result, Refused):
                refused.append(_refuse(gateway, item, result))
            elif isinstance(result, BaseException):
                raise result
            else:
                (journaled if result else retry).append(span)
                _done(item, acknowledge=result)
        self.counters.refused += len(refused)
        self.counters.retried += len(retry)
        return self._ack(gateway, merged(journaled), tuple(refused), merged(retry), versions)

    async def _append(self, gateway: str, frame: bytes) -> bool:
        """Journal one frame. False where that is not possible now. Raises Refused."""
        fault = self._closed()
        if not fault:
            try:
                await self._journal.append_frame(gateway, frame)
            except (Unavailable, TopicRefused) as error:
                # A journal that is not there or not allowed is for a person to mend; the frame is fit for it.
                fault = str(error)
            else:
                self.counters.journaled += 1
                self.counters.bytes += len(frame)
        if fault != self.fault:
            if fault:
                log.warning("frames are not journaled: %s", fault)
            else:
                log.info("frames are journaled again")
            self.fault = fault
        return not fault

    def listening(self, gateway: str) -> None:
        """``gateway`` has subscribed to its ``ack`` topic: from now on it is told its credit (U3)."""
        self._told[gateway] = 0, 0.0
        self._send(gateway, self._ack(gateway))

    def _ack(
        self,
        gateway: str,
        journaled: tuple[Span, ...] = (),
        refused: tuple[RefusedSpan, ...] = (),
        retry: tuple[Span, ...] = (),
        versions: tuple[int, ...] = (),
    ) -> Ack:
        credit = self._news(gateway)
        return Ack(journaled, credit, refused, retry, versions, 0 if credit is None else self._journal.log_id)

    def _news(self, gateway: str) -> int | None:
        """Return the credit of ``gateway`` where it has changed, or was told so long ago that it may be lost."""
        told, at = self._told.get(gateway, (0, 0.0))
        credit, now = self.credit(), asyncio.get_running_loop().time()
        if credit == told and now - at < AGAIN:
            return None
        if gateway in self._told:
            self._told[gateway] = credit, now
        return credit

    def gone(self, gateway: str) -> None:
        """``gateway`` is not connected any more."""
        self._told.pop(gateway, None)

    def credit(self) -> int:
        """Return the bytes that each gateway may have in flight: its share of the free memory, at least one frame."""
        share = (self._memory - self.pending) // max(1, len(self._told))
        return max(ONE_FRAME, min(self._credit, share))

    async def renew_credit(self, every: float = 15.0) -> None:
        """Tell each gateway whose credit has changed, ``every`` seconds, until cancelled."""
        while True:
            await asyncio.sleep(every)
            for gateway, (told, _) in tuple(self._told.items()):
                if self.credit() != told:
                    self._send(gateway, self._ack(gateway))

    async def answered(self, gateway: str) -> None:
        """Wait until every frame of ``gateway`` that was taken is answered."""
        while (queue := self._queues.get(gateway)) is not None and queue.task is not None:
            await asyncio.wait({queue.task})

    async def close(self, patience: float) -> None:
        """Take nothing more; wait ``patience`` seconds at most until what was taken is journaled and answered.

        What is left then, and what comes later, is not answered: gateways send it again.
        """
        self._closing = True
        tasks = [queue.task for queue in self._queues.values() if queue.task]
        if not tasks:
            return
        _, pending = await asyncio.wait(tasks, timeout=patience)
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _done(item: _Waiting, *, acknowledge: bool) -> None:
    if item.done and not item.done.done():
        item.done.set_result(acknowledge)


def _refuse(gateway: str, item: _Waiting, error: Exception) -> RefusedSpan:
    log.warning("a frame is refused: %s", error, extra={"gateway": gateway})
    _done(item, acknowledge=True)
    return _refused(item.frame, str(error))


def _refused(frame: bytes, reason: str) -> RefusedSpan:
    """Name the span as far as it can be read: a frame that fails its checksum may still say which one it was."""
    epoch, lane, first, last = peek_span(frame) or (0, "", 0, 0)
    return RefusedSpan(epoch, lane, first, last, reason)

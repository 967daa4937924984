"""From ``waybill.commands`` to the gateways that are connected to this node (C1).

A device that connects to the cloud itself is a recipient as gateways are, under the name ``device:`` and its own.

Every node reads commands and their states whole, holds the open ones, and sends them to the gateways whose ``down``
topic is subscribed here: in the order of the log, again after 5 s, 10 s, … up to 60 s, until ``delivered`` or another
state is read, or the command has expired. Nodes write no state: ``rejected`` and ``expired`` are written by the router
that owns the gateway's partition, ``delivered`` and ``done`` by the gateway itself.

:class:`Dispatch` decides and does no I/O; :class:`Dispatcher` reads and sends.

Limits: a gateway has at most ``window`` commands under way. A node holds ``per_gateway`` open
commands of each gateway and ``memory`` bytes of payload in all; what is beyond stays in the log, and the log is read
again when half of what was held is done (at most once a minute). Ids are remembered for a day after their expiry.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from cloud_ingest.command_record import Command, MalformedCommand, parse, recipient
from cloud_ingest.config import Topics
from cloud_ingest.following import Readable, following
from cloud_ingest.journal.port import CaughtUp, TopicRecord
from cloud_ingest.wall import now_ms
from waybill.errors import Refused, Unavailable
from waybill.wire import CommandStatus, Envelope

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 60.0
RELOAD_PAUSE: Final = 60.0

ID_MARGIN_MS: Final = 86_400_000
"""How long after its expiry an id is remembered: a record written meanwhile under the same id is ignored."""

REPORTED: Final = frozenset({"delivered", "done"})
"""States that gateways report; the others are the router's."""

_decode_status = msgspec.json.Decoder(CommandStatus).decode


@dataclass(frozen=True, slots=True)
class Limits:
    """What one node holds; see the module."""

    window: int = 32
    per_gateway: int = 1_000
    memory: int = 64 << 20
    early_statuses: int = 100_000


@dataclass(slots=True)
class _Open:
    """A command that no state was read of. ``due``: monotonic seconds at which it is to be sent."""

    envelope: Envelope
    due: float = 0.0
    sent: int = 0


@dataclass(slots=True)
class CommandCounters:
    """Since the start of the process."""

    sent: int = 0
    sent_again: int = 0
    malformed: int = 0
    repeated: int = 0
    postponed: int = 0


@dataclass(slots=True)
class Dispatch:
    """Which command is to be sent to whom, and when.

    Times: ``*_ms`` is wall time, milliseconds since 1970 UTC; ``now`` is monotonic, seconds.
    """

    limits: Limits = field(default_factory=Limits)
    counters: CommandCounters = field(default_factory=CommandCounters)
    ready: bool = False
    _open: dict[str, dict[str, _Open]] = field(default_factory=dict)
    _gateway_of: dict[str, str] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)
    _early: dict[str, str] = field(default_factory=dict)
    _attached: set[str] = field(default_factory=set)
    _bytes: int = 0
    _left_out: set[str] = field(default_factory=set)

    @property
    def open(self) -> int:
        """How many commands wait for a state."""
        return len(self._gateway_of)

    def command(self, command: Command, stamp_ms: int, now_ms: int) -> None:
        """Take a record of ``waybill.commands``, written at ``stamp_ms``. The first one of an id wins."""
        until = self._seen.get(command.id)
        if until is not None and stamp_ms <= until:
            self.counters.repeated += 1
            return
        self._seen[command.id] = command.expires_ms + ID_MARGIN_MS
        to = recipient(command.gateway, command.device)
        if self._early.pop(command.id, None) in {"", to}:
            return
        if command.expires_ms <= now_ms:
            return
        held = self._open.get(to, {})
        size = len(command.payload)
        if len(held) >= self.limits.per_gateway or self._bytes + size > self.limits.memory:
            self.counters.postponed += 1
            self._left_out.add(to)
            return
        self._open.setdefault(to, held)[command.id] = _Open(command.envelope())
        self._gateway_of[command.id] = to
        self._bytes += size

    def status(self, status: CommandStatus) -> None:
        """Take a record of ``waybill.command-status``: whatever it says, the command is not sent any more.

        But where a gateway reported it, it is only about that gateway's own command.
        """
        by = recipient(status.gateway, status.device) if status.state in REPORTED else ""
        if status.id in self._gateway_of:
            if by in {"", self._gateway_of[status.id]}:
                self._close(status.id)
        elif status.id not in self._seen:
            # States are read first, and then side by side with commands: a state can come before its command.
            self._early[status.id] = by
            if len(self._early) > self.limits.early_statuses:
                # Forgotten, the command is sent once more; the gateway knows its id (C2).
                del self._early[next(iter(self._early))]

    def attach(self, gateway: str) -> None:
        """Note that ``gateway`` listens here from now on: everything open is due at once."""
        self._attached.add(gateway)
        for item in self._open.get(gateway, {}).values():
            item.due, item.sent = 0.0, 0

    def detach(self, gateway: str) -> None:
        """Note that ``gateway`` is not connected here any more."""
        self._attached.discard(gateway)

    def due(self, now_ms: int, now: float) -> Iterator[tuple[str, Envelope]]:
        """Yield (gateway, envelope) of what is to be sent now; what has expired is let go."""
        if not self.ready:
            return
        for gateway in self._attached & self._open.keys():
            held = self._open[gateway]
            for id_ in [id_ for id_, item in held.items() if item.envelope.expires_ms <= now_ms]:
                self._close(id_)
            for item in list(itertools.islice(held.values(), self.limits.window)):
                if item.due <= now:
                    self.counters.sent += 1
                    self.counters.sent_again += item.sent > 0
                    item.due = now + min(FIRST_PAUSE * 2.0**item.sent, LONGEST_PAUSE)
                    item.sent += 1
                    yield gateway, item.envelope

    def forget(self, now_ms: int) -> None:
        """Let go of what has expired, and of ids whose expiry and margin have passed."""
        for id_ in [
            id_ for held in self._open.values() for id_, item in held.items() if item.envelope.expires_ms <= now_ms
        ]:
            self._close(id_)
        for id_ in [id_ for id_, until in self._seen.items() if until < now_ms]:
            del self._seen[id_]

    def wants_reload(self) -> bool:
        """Tell whether commands were left in the log for which there is room by now."""
        return self._bytes <= self.limits.memory // 2 and any(
            len(self._open.get(gateway, {})) <= self.limits.per_gateway // 2 for gateway in self._left_out
        )

    def reload(self) -> None:
        """Forget what was read, because it will be read again; who is connected stays."""
        self.ready = False
        self._open.clear()
        self._gateway_of.clear()
        self._seen.clear()
        self._early.clear()
        self._bytes = 0
        self._left_out.clear()

    def _close(self, id_: str) -> None:
        gateway = self._gateway_of.pop(id_)
        held = self._open[gateway]
        self._bytes -= len(held.pop(id_).envelope.payload)
        if not held:
            del self._open[gateway]


class Dispatcher:
    """Reads the two topics, and sends through ``send(gateway, envelope)``, which must not block."""

    def __init__(
        self, source: Readable, topics: Topics, send: Callable[[str, Envelope], None], limits: Limits | None = None
    ) -> None:
        """Hold what is needed; nothing runs yet."""
        self._log = source
        self._topics = topics
        self._send = send
        self._changed = asyncio.Event()
        self._reading = asyncio.timeout(None)
        self._core = Dispatch(limits or Limits())
        self.on_read: Callable[[TopicRecord], None] = lambda _: None
        """Told of each record that is read."""
        self.fault = ""

    @property
    def counters(self) -> CommandCounters:
        """Counters of the core."""
        return self._core.counters

    @property
    def open(self) -> int:
        """How many commands wait for a state."""
        return self._core.open

    def attach(self, gateway: str) -> None:
        """``gateway`` has subscribed to its ``down`` topic here."""
        self._core.attach(gateway)
        self._changed.set()

    def detach(self, gateway: str) -> None:
        """``gateway`` is not connected here any more."""
        self._core.detach(gateway)

    async def read(self) -> None:
        """Follow commands and states until cancelled; where the log is away, say so and try again."""
        while True:
            self._core.reload()
            try:
                async with asyncio.timeout(None) as self._reading:
                    await self._follow()
            except TimeoutError:
                if not self._reading.expired():
                    raise
            except (Unavailable, Refused) as error:  # refused: the topics are not there yet, or not allowed
                if not self.fault:
                    log.warning("commands wait: %s", error)
                self.fault = str(error)
                await asyncio.sleep(1.0)

    async def _follow(self) -> None:
        """Read all states, then commands and states without an end. Raises Unavailable."""
        async with following(self._log, [self._topics.command_status], end=True) as states:
            async for record in states:
                if isinstance(record, TopicRecord):
                    self._take(record)
        async with following(self._log, [self._topics.commands, self._topics.command_status]) as records:
            async for record in records:
                if isinstance(record, CaughtUp):
                    if self.fault:
                        log.info("commands are read again")
                    self.fault = ""
                    self._core.ready = True
                else:
                    self._take(record)
                self._changed.set()

    def _take(self, record: TopicRecord) -> None:
        self.on_read(record)
        try:
            if record.topic == self._topics.commands:
                self._core.command(parse(record.value), record.stamp_ms, now_ms())
            else:
                self._core.status(_decode_status(record.value or b""))
        except (MalformedCommand, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.counters.malformed += 1
            log.warning("%s[%d] offset %d is skipped: %s", record.topic, record.partition, record.offset, error)

    async def send(self) -> None:
        """Send what is due until cancelled."""
        forget_at = reload_at = time.monotonic() + RELOAD_PAUSE
        while True:
            now = time.monotonic()
            if now >= forget_at:
                self._core.forget(now_ms())
                forget_at = now + RELOAD_PAUSE
            if self._core.ready and now >= reload_at and self._core.wants_reload():
                self._reading.reschedule(0.0)  # ends the reading, which begins anew
                reload_at = now + RELOAD_PAUSE
            for gateway, envelope in self._core.due(now_ms(), now):
                self._send(gateway, envelope)
            # Pauses are whole seconds: looking once a second is near enough, and at once when something changed.
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 1.0)

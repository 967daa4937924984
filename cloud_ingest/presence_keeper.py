"""Keeps ``waybill.presence`` true for one node: follows it, writes what is due, holds the lease (C3)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from cloud_ingest.following import Readable, following
from cloud_ingest.journal.port import CaughtUp, OutRecord, TopicRecord
from cloud_ingest.presence import LEASE, Here, Key, Presence, record_of
from cloud_ingest.wall import now_ms
from waybill.errors import Refused, Unavailable

log = logging.getLogger(__name__)

WRITES: Final = 500
"""Records that are written at once."""

_decode = msgspec.json.Decoder(Here).decode


class Source(Readable, Protocol):
    """The part of a log that presence needs."""

    async def append(self, record: OutRecord) -> None:
        """Append one record; durable on return. Raises Unavailable, Refused."""


class Keeper:
    """Keeps the topic true for this node. ``close(key, reason)`` ends a connection here; set it before ``follow``."""

    def __init__(self, source: Source, topic: str, node: str) -> None:
        """Hold what is needed; nothing runs yet."""
        self._log = source
        self._topic = topic
        self._core = Presence(node)
        self._changed = asyncio.Event()
        self._ready = False
        self.close: Callable[[Key, str], None] = lambda *_: None
        self.on_read: Callable[[Key, Here | None, bool], None] = lambda *_: None
        """Told of each record that is read, and whether it is new."""
        self.fault = ""

    def came(self, *, gateway: str = "", device: str = "", address: str = "", version: str = "") -> None:
        """A gateway, or a device without one, has connected here."""
        connection = secrets.token_hex(8)
        self._say(Here("online", now_ms(), gateway, device, self._core.node, connection, "", version, address))

    def told(self, gateway: str, version: str) -> None:
        """A gateway has said more of itself."""
        here = self._core.here(gateway)
        if here is not None and here.version != version:
            self._say(msgspec.structs.replace(here, version=version))

    def _say(self, here: Here) -> None:
        self._core.came(here)
        self._changed.set()

    def went(self, reason: str, *, gateway: str = "", device: str = "") -> None:
        """Its connection has ended."""
        self._core.went(Here("offline", 0, gateway, device).key, reason, now_ms())
        self._changed.set()

    def leave(self, gateway: str) -> None:
        """Another node looks after ``gateway`` from now on."""
        self._core.leave(gateway)

    async def follow(self) -> None:
        """Follow the topic until cancelled; where the log is away, say so and try again."""
        while True:
            self._core.again()
            self._ready = False
            try:
                async with following(self._log, [self._topic]) as records:
                    async for record in records:
                        if isinstance(record, CaughtUp):
                            self._ready = True
                            self.fault = ""
                        else:
                            self._read(record)
            except (Unavailable, Refused) as error:
                if not self.fault:
                    log.warning("presence waits: %s", error)
                self.fault = str(error)
            await asyncio.sleep(1.0)

    def _read(self, record: TopicRecord) -> None:
        try:
            found = _decode(record.value) if record.value is not None else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("%s[%d] offset %d is skipped: %s", record.topic, record.partition, record.offset, error)
            return
        key = (record.key or b"").decode(errors="replace")
        self.on_read(key, found, self._ready)
        reason = self._core.read(key, found, time.monotonic())
        if reason:
            self.close(key, reason)
        if self._core.due:
            self._changed.set()

    async def write(self) -> None:
        """Write what is due, and renew the lease, until cancelled."""
        renew_at = 0.0
        while True:
            now = time.monotonic()
            if now >= renew_at:
                self._core.renew(now_ms())
                renew_at = now + LEASE / 3
            if self._ready:
                self._core.lapse(now, now_ms())
            if not await self._write():
                await asyncio.sleep(1.0)
                continue
            self._changed.clear()
            if not self._core.due:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 1.0)

    async def _write(self) -> bool:
        taken = self._core.take(WRITES)
        results = await asyncio.gather(*(self._append(key, here) for key, here in taken.items()))
        return all(results)

    async def _append(self, key: Key, here: Here | None) -> bool:
        record = OutRecord(self._topic, key.encode(), None, []) if here is None else record_of(self._topic, here)
        try:
            await self._log.append(record)
        except (Unavailable, Refused) as error:
            self._core.put_back(key, here)
            if not self.fault:
                log.warning("presence is not written: %s", error)
            self.fault = str(error)
            return False
        except asyncio.CancelledError:
            self._core.put_back(key, here)
            raise
        if self._ready:
            self.fault = ""
        return True

    async def finish(self, patience: float) -> None:
        """Write what is left, within ``patience`` seconds, and give the lease up; ``write`` no longer runs."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._core.due:
                    if not await self._write():
                        return
                self._core.end()
                await self._write()

"""What those who watch this gateway are told: on the socket what is so now, and to the cloud a small record.

A record goes up every ``interval``, and a few seconds after something important has changed, but at most once a minute;
and only while the link is up: an outage would fill the buffer with what nobody needs any more. Where the data plan is
used up, changes alone are told. It is a message of the control lane (:mod:`waybill.health`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_agent.buffer.directory import size
from edge_agent.buffer.port import Commit, Own, Stored
from edge_agent.clock import Clock
from edge_agent.health.history import Counts, Recorder
from edge_agent.health.talkers import TopTalkers
from edge_agent.status import EdgeStatus, LaneState, UplinkState
from waybill import health as wire_health
from waybill import snapshot
from waybill.certificate import ends_ms
from waybill.errors import Unavailable
from waybill.fleet_state import (
    DeviceInfo,
    DiskInfo,
    GatewayDetail,
    GatewayRow,
    Health,
    LaneInfo,
    LinkChange,
    LogState,
    PlanInfo,
    UplinkUse,
)
from waybill.health_row import row_of
from waybill.log_lines import LogLines
from waybill.wire import HEALTH_TOPIC

if TYPE_CHECKING:
    from edge_agent.uplink.uplinks import Uplinks
    from waybill.mqtt.settings import Client

log = logging.getLogger(__name__)

FINE: Final = 5
COARSE: Final = 60
"""Seconds of a step of history: on the socket, and in a record."""

LOOK: Final = 5.0
"""Seconds between two looks at what has changed."""

SOON: Final = 5.0
"""Seconds between a change and its record: what comes together is told together."""

APART: Final = 60.0
"""Seconds between two records at least, but for a shorter interval."""

JITTER: Final = 0.1
"""Part of the interval by which it varies: a fleet that came at once must not tell at once."""

DEVICES: Final = 500
"""Devices that the socket lists at most."""

MOST: Final = 20
"""Talkers of each list that the socket has."""

CERTIFICATES: Final = 600.0
"""Seconds after which certificates are read again: they may have been renewed."""


class Watch:
    """One agent's.

    ``status``: what it says of itself; ``uplinks``: None without any; ``certificates``: of each uplink, by its name.
    """

    def __init__(
        self,
        clock: Clock,
        data: Path,
        status: Callable[[], EdgeStatus],
        uplinks: Uplinks | None,
        certificates: Mapping[str, Path],
    ) -> None:
        self._lines = LogLines()
        self._talkers = TopTalkers(clock.mono(), clock.wall_ms(), _choose)
        self._clock = clock
        self._data = data
        self._status = status
        self._uplinks = uplinks
        self._certificates = certificates
        self._ends: dict[str, int] = {}
        self._read_at = float("-inf")
        self._fine, self._coarse = Recorder(FINE), Recorder(COARSE)
        self._devices: dict[str, DeviceInfo] = {}
        self.records = 0
        """Records written since the start."""

    def framed(self, messages: Sequence[Stored], wire: int) -> None:
        """Messages were put into frames of ``wire`` bytes in all."""
        self._talkers.count(messages, wire, self._clock.mono(), self._clock.wall_ms())

    def came(self, client: Client) -> None:
        """A device has connected."""
        self._devices.pop(client.client_id, None)
        if len(self._devices) < 2 * DEVICES:
            self._devices[client.client_id] = DeviceInfo(client.client_id, self._clock.wall_ms(), client.address)

    def went(self, client_id: str) -> None:
        """Its connection has ended."""
        self._devices.pop(client_id, None)

    def sample(self, came: int, acked: int, acks: int, waited: float) -> None:
        """Note counts, once a second: see :class:`Counts`."""
        traffic = self._uplinks.traffic().values() if self._uplinks is not None else ()
        counts = Counts(came, acked, sum(one.sent + one.received for one in traffic), acks, waited)
        for recorder in (self._fine, self._coarse):
            recorder.sample(self._clock.mono(), self._clock.wall_ms(), counts)

    # --- on the socket ---

    @contextlib.asynccontextmanager
    async def served(self, path: Path) -> AsyncIterator[None]:
        """Answer on the Unix socket ``path`` while the context is open. Raises ConfigError."""
        with self._lines.attached():
            async with snapshot.serve(path, self._status, {"gateway": self._gateway, "log": self._log}):
                yield

    async def _gateway(self, _: dict[str, Any]) -> GatewayDetail:
        """Answer the op ``gateway``."""
        status = self._status()
        health = self.health(status, self._fine, MOST, DEVICES)
        row = GatewayRow(
            status.gateway,
            status.link.state,
            status.link.since_ms,
            status.link.error if status.link.state != "online" else "",
        )
        return GatewayDetail(status.at_ms, row_of(row, health, status.at_ms), health)

    async def _log(self, request: dict[str, Any]) -> LogState:
        """Answer the op ``log``; ``since`` of the request: as of an answer before."""
        return self._lines.state(str(request.get("since", "")))

    # --- to the cloud ---

    async def report(self, interval: float, commit: Callable[[Commit], Awaitable[object]]) -> None:
        """Write records for the life of the agent."""
        told: tuple[object, ...] = ()
        next_at, apart = math.inf, -math.inf
        while True:
            await asyncio.sleep(min(LOOK, interval))
            now, status = self._clock.mono(), self._status()
            if status.link.state != "online":
                continue
            important = _important(status)
            if important != told:
                # the first one at random: a fleet may have come at once
                wait = min(SOON, interval) if told else random.uniform(0, min(2 * SOON, interval))  # noqa: S311
                next_at = min(next_at, now + wait)
                told = important
            if now < max(next_at, apart):
                continue
            used_up = status.plan is not None and status.plan.used_up
            next_at = math.inf if used_up else now + interval * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
            apart = now + min(APART, interval)
            record = wire_health.pack(self.health(status, self._coarse, wire_health.TALKERS, 0))
            try:
                await commit(Commit(own=[Own(HEALTH_TOPIC, record)]))
            except Unavailable:
                return  # the buffer is closed
            self.records += 1

    def health(self, status: EdgeStatus, history: Recorder, talkers: int, devices: int) -> Health:
        """Return all there is to say; ``talkers``, ``devices``: at most so many in each list."""
        self._read_certificates()
        points = history.state()
        plan = status.plan
        return Health(
            at_ms=status.at_ms,
            version=status.version,
            started_ms=status.started_ms,
            epoch=status.epoch,
            clock=status.clock,
            links=self._links(),
            uplinks=tuple(map(self._uplink, status.uplinks)),
            lanes=tuple(map(_lane, status.lanes)),
            holds_s=status.outage_s,
            drained_s=status.drained_s,
            rate_in=round(status.rate_in, 2),
            rate_out=round(status.rate_out, 2),
            bytes_per_min=_mean(points.bytes_per_min or self._fine.state().bytes_per_min),
            connected=int(status.counters.get("mqtt_connections", 0)),
            devices=tuple(self._devices.values())[:devices],
            history=points,
            talkers=self._talkers.state(self._clock.mono(), self._clock.wall_ms(), talkers),
            disk=self._disk(status),
            plan=None
            if plan is None
            else PlanInfo(
                plan.budget, plan.used, plan.forecast, plan.ends_ms or 0, plan.stage, plan.used_up, plan.held
            ),
            fault=status.fault,
            error=status.error,
            alarm=status.alarm,
            full=status.full,
        )

    def _links(self) -> tuple[LinkChange, ...]:
        changes = self._uplinks.changes if self._uplinks is not None else ()
        return tuple(LinkChange(one.since_ms, one.state, one.uplink, one.error) for one in changes)

    def _uplink(self, one: UplinkState) -> UplinkUse:
        return UplinkUse(
            one.name, one.state, one.metered, one.sent, one.received, one.error, self._ends.get(one.name, 0)
        )

    def _disk(self, status: EdgeStatus) -> DiskInfo:
        try:
            found = os.statvfs(self._data)
        except OSError:
            return DiskInfo()
        return DiskInfo(
            found.f_bavail * found.f_frsize,
            found.f_blocks * found.f_frsize,
            sum(size(path) for path in self._data.iterdir()),
            None if status.flash is None else round(status.flash.per_day),
        )

    def _read_certificates(self) -> None:
        now = self._clock.mono()
        if now < self._read_at + CERTIFICATES:
            return
        self._read_at = now
        for name, path in self._certificates.items():
            try:
                self._ends[name] = ends_ms(path)
            except (OSError, ValueError) as error:
                log.warning("when the certificate of %s ends cannot be read: %s", name, error)


def _important(status: EdgeStatus) -> tuple[object, ...]:
    """Return what is told at once when it changes."""
    plan = status.plan
    return (
        status.link.since_ms,
        status.link.uplink,
        bool(status.fault),
        bool(status.error),
        bool(status.clock),
        status.full,
        status.alarm,
        None if plan is None else (plan.stage, plan.used_up),
    )


def _lane(one: LaneState) -> LaneInfo:
    return LaneInfo(
        one.lane,
        one.count,
        one.bytes,
        one.oldest_ms or 0,
        one.held,
        one.cap,
        one.dropped,
        one.expired,
        one.refused,
        one.full,
    )


def _choose(messages: Sequence[Stored], count: int) -> Sequence[Stored]:
    return random.choices(messages, k=count)  # noqa: S311 - a sample


def _mean(points: tuple[float, ...]) -> float:
    """Return the mean of the last points, about five minutes of them."""
    last = points[-5:]
    return round(sum(last) / len(last), 1) if last else 0.0

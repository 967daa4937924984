"""Which uplink is used: several in order of preference, one at a time.

::

    none ──▶ the most preferred whose delay is over ──▶ connected ──▶ lost: its delay begins, the next has its turn
                                                            │
                     every return_s the better ones are tried meanwhile; one that connects takes over,
                     one that hangs is given up when the link in use is lost

**Delays** are each uplink's own: full jitter, doubling up to a minute, short again after a stable minute. What is lost
after a stable minute is tried first once more before a less preferred one has its turn: most losses are short.

**Return.** The better connection is made before the other one is left; the gateway's id is the same on both, so an
ingest node that has both takes the older one for replaced. What is unacked goes over the new one (U2). An uplink that
did not hold for a minute is tried after twice as long the next time, up to four times.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal

from edge_agent.status import LinkState, UplinkState
from edge_agent.uplink.config import UplinkSettings, labels, with_certificates
from edge_agent.uplink.dial import LinkLost
from edge_agent.uplink.link import Link, Uplink
from edge_agent.uplink.traffic import Traffic
from waybill.pki import FloorMs
from waybill.wire import State

log = logging.getLogger(__name__)

BASE_DELAY: Final = 0.5
MAX_DELAY: Final = 60.0
STABLE: Final = 60.0
"""Seconds after which a connection counts as stable: the next reconnect begins with short delays again."""

TAKING_OVER: Final = 5.0
"""Seconds in which the cloud answers who has introduced himself, once the link before was lost."""

RETURN_JITTER: Final = 0.25
"""Part of ``return_s`` by which it varies."""

CHANGES: Final = 60
"""Changes of the link that are remembered."""

MOST_DOUBLINGS: Final = 2
"""Of ``return_s``, for an uplink that does not hold."""


class _Way:
    """One uplink and its delays. ``next``, ``again``: when it may be tried where there is no other, and where there is.

    Monotonic seconds. ``failures``: in a row; ``flaps``: connections in a row that were lost before they were stable.
    """

    def __init__(self, uplink: Uplink) -> None:
        self.uplink = uplink
        self.next = 0.0
        self.again = 0.0
        self.failures = 0
        self.flaps = 0
        self.connecting = False
        self.error = ""


class Uplinks:
    """Keeps a connection to the cloud for as long as :meth:`run` runs."""

    def __init__(
        self,
        uplinks: Sequence[UplinkSettings],
        gateway: str,
        version: str,
        rng: random.Random | None = None,
        *,
        floor_ms: FloorMs | None = None,
    ) -> None:
        """Raise ConfigError where the certificate files cannot be used.

        ``uplinks``: at least one, in order of preference. ``version``: the agent's, for its state. ``rng``: for the
        jitter. ``floor_ms``: of the agent's clock.
        """
        self._ways = [
            _Way(Uplink(settings, label, gateway, version, floor_ms=floor_ms))
            for settings, label in zip(with_certificates(uplinks), labels(uplinks), strict=True)
        ]
        self._version = version
        self._rng = rng or random.SystemRandom()
        self._used: _Way | None = None
        self.state = LinkState("connecting", _wall_ms())
        self.changes: deque[LinkState] = deque(maxlen=CHANGES)
        """When the link came and went, the newest last."""
        self.connects = 0
        """Connections made since the start."""

    @property
    def states(self) -> tuple[UplinkState, ...]:
        """How each uplink stands, in order of preference."""
        return tuple(self._state(way) for way in self._ways)

    def traffic(self) -> dict[str, Traffic]:
        """Return what each uplink has cost on the wire since the start, by its name (:meth:`Uplink.traffic`)."""
        return {way.uplink.label: way.uplink.traffic() for way in self._ways}

    async def run(self, serve: Callable[[Link], Awaitable[None]]) -> None:
        """Connect, run ``serve`` on the link until it is lost, and again; until cancelled, which says offline first.

        A better link ends ``serve`` on the other one, by cancelling it, and begins it anew.
        """
        again: _Way | None = None
        while True:
            way = again or await self._next()
            link, again = await self._connect(way), None
            if link is not None:
                again = await self._use(way, link, serve)

    async def _next(self) -> _Way:
        """Wait for the first uplink, in order of preference, whose delay is over."""
        while True:
            now = time.monotonic()
            for way in self._ways:
                if way.next <= now:
                    return way
            await asyncio.sleep(min(way.next for way in self._ways) - now)

    async def _connect(self, way: _Way) -> Link | None:
        way.connecting = True
        try:
            link = await way.uplink.connect()
        except LinkLost as lost:
            self._failed(way, str(lost))
            return None
        finally:
            way.connecting = False
        way.error = ""
        self.connects += 1
        return link

    async def _use(self, way: _Way, link: Link, serve: Callable[[Link], Awaitable[None]]) -> _Way | None:
        """Serve ``link``, and each better one that comes meanwhile, until one is lost.

        Returns the uplink that is to be tried before all others now, its delay being over; None: none is.
        """
        since = self._online(way)
        serving = asyncio.create_task(self._serve(link, serve), name="uplink serve")
        try:
            while True:
                better = self._ways[: self._ways.index(way)]
                due = min((each.again for each in better), default=None)
                wait = None if due is None else max(0.0, due - time.monotonic())
                done, _ = await asyncio.wait({serving}, timeout=wait)
                if done:
                    break
                candidate = next(each for each in better if each.again <= time.monotonic())
                self._later(candidate)
                found = await self._connect_beside(candidate, serving)
                if found is None:
                    continue
                # What is unacked goes over the new one: the old one's sender ends first.
                log.info("uplink: %s is back; moving over from %s", candidate.uplink.label, way.uplink.label)
                await _ended(serving)
                await link.leave()
                self._settle(way, since)
                way, link, since = candidate, found, self._online(candidate)
                serving = asyncio.create_task(self._serve(link, serve), name="uplink serve")
        except BaseException:
            await _ended(serving)
            await link.leave(State(state="offline", reason="stopped", version=self._version))
            self._used = None
            self._say("offline", "stopped")
            raise
        link.close()
        self._used = None
        reason = await _reason(serving)
        stable = self._settle(way, since)
        way.flaps += not stable
        delay = self._failed(way, reason)
        if not stable:
            return None
        await asyncio.sleep(delay)
        return way

    async def _connect_beside(self, way: _Way, serving: asyncio.Task[None]) -> Link | None:
        """Connect while another link is ``serving``; given up when that is lost first, which must not wait for it.

        But the cloud itself ends the other one when it accepts this one: what has introduced itself may finish.
        """
        connecting = asyncio.create_task(self._connect(way), name="uplink return")
        try:
            await asyncio.wait({connecting, serving}, return_when=asyncio.FIRST_COMPLETED)
            if way.uplink.introduced:
                await asyncio.wait({connecting}, timeout=TAKING_OVER)
        except BaseException:
            await _ended(connecting)
            if not connecting.cancelled() and connecting.exception() is None and (made := connecting.result()):
                made.close()
            raise
        if connecting.done():
            return connecting.result()
        await _ended(connecting)
        if not connecting.cancelled():  # it was just done
            return connecting.result()
        self._failed(way, "given up, because the link in use was lost: it had not answered yet")
        return None

    async def _serve(self, link: Link, serve: Callable[[Link], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            # Not awaited: a journal that is away would hold its PUBACK, and the link is up all the same.
            said = link.say(State(state="online", version=self._version))
            online = group.create_task(said, name="uplink state")
            looking = group.create_task(link.watch(), name="uplink interface")
            await serve(link)
            online.cancel()
            looking.cancel()

    # --- delays ---

    def _online(self, way: _Way) -> float:
        """Note that a link is used from now on, and when the better ones are tried again; returns the time."""
        self._used = way
        for better in self._ways[: self._ways.index(way)]:
            self._later(better)
        self._say("online", "", way.uplink.label)
        log.info("uplink: online at %s (%s)", way.uplink.settings.way, way.uplink.label)
        return time.monotonic()

    def _later(self, way: _Way) -> None:
        """Set when an uplink is tried again while a less preferred one is in use."""
        way.again = time.monotonic() + return_delay(way.uplink.settings.return_s, way.flaps, self._rng)

    def _settle(self, way: _Way, since: float) -> bool:
        """Take account of how long a connection has held; says whether it was stable."""
        stable = time.monotonic() - since >= STABLE
        if stable:
            way.failures = way.flaps = 0
        return stable

    def _failed(self, way: _Way, reason: str) -> float:
        """Begin an uplink's delay; returns it, seconds."""
        delay = backoff(way.failures, self._rng)
        way.failures += 1
        way.next = time.monotonic() + delay
        # The same reason again and again is one event.
        level = logging.DEBUG if way.error == reason else logging.WARNING
        label = f"{way.uplink.label}: " if len(self._ways) > 1 else ""
        log.log(level, "uplink: %soffline: %s; next attempt in %.1f s", label, reason, delay)
        way.error = reason
        if self._used is None:
            self._say("offline", label + reason)
        return delay

    # --- what it says of itself ---

    def _say(self, state: Literal["online", "offline"], error: str, uplink: str = "") -> None:
        changed = self.state.state != state or (state == "online" and self.state.uplink != uplink)
        since = self.state.since_ms if self.state.state == state else _wall_ms()
        self.state = LinkState(state, since, error or self.state.error, uplink)
        if changed:
            self.changes.append(LinkState(state, _wall_ms(), error, uplink))

    def _state(self, way: _Way) -> UplinkState:
        settings = way.uplink.settings
        state: Literal["online", "connecting", "offline", "unused"] = "offline" if way.error else "unused"
        if way is self._used:
            state = "online"
        elif way.connecting:
            state = "connecting"
        sent, received = way.uplink.traffic()
        return UplinkState(way.uplink.label, settings.way, state, settings.metered, way.error, sent, received)


async def _ended(task: asyncio.Task[Any]) -> None:
    """End a task, whatever its own end is."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def _reason(task: asyncio.Task[None]) -> str:
    """Return why a link's task has ended; raises what is no end of a link."""
    reason = "closed"
    try:
        await task
    except* LinkLost as lost:
        reason = _first(lost)
    return reason


def backoff(attempt: int, rng: random.Random) -> float:
    """Return the delay before reconnect number ``attempt`` (from 0), seconds: full jitter, 0.5 s doubling up to 60 s.

    Jitter over the whole interval spreads a fleet best after an outage that hit all of it (Brooker, "Exponential
    Backoff And Jitter", 2015).
    """
    return rng.uniform(0, min(MAX_DELAY, BASE_DELAY * 2 ** min(attempt, 10)))


def return_delay(return_s: float, flaps: int, rng: random.Random) -> float:
    """Return the seconds after which a better uplink is tried again that was lost ``flaps`` times before it was stable.

    With some jitter: a fleet must not come back in one moment.
    """
    return rng.uniform(1 - RETURN_JITTER, 1 + RETURN_JITTER) * return_s * (1 << min(flaps, MOST_DOUBLINGS))


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    """Return the text of the first error in a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
